"""A few threads that share work on weights. Reading a file and torch's operations let go of Python's lock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_all
from contextlib import contextmanager
from typing import TypeVar

import torch

MOST = 8  # threads: enough for the fastest disks
KEPT_BYTES = 8 * 2**20  # more than a thread needs at a time
_starting = threading.Lock()
Work = TypeVar("Work")
Result = TypeVar("Result")


def start_workers(most: int = MOST) -> ThreadPoolExecutor:
    """As many threads as torch computes with, at least two, at most `most`.

    Each computes alone: with a pool of torch's own behind each of them they would wait for one another. Nothing else
    may compute meanwhile.
    """
    count = max(2, min(most, torch.get_num_threads()))
    pool = ThreadPoolExecutor(count, thread_name_prefix="weights")
    with _starting:  # torch keeps the number for each thread, but new threads take it from the last who set it
        usual = torch.get_num_threads()
        together = threading.Barrier(count)

        def alone() -> None:
            torch.set_num_threads(1)
            together.wait()

        try:
            for begun in [pool.submit(alone) for _ in range(count)]:
                begun.result()
        except BaseException:  # the system has no more threads: those that there are would wait for the others forever
            together.abort()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(usual)
    # glibc gives pieces larger than any that was freed before back to the system at once; the threads would get all of
    # their memory anew for every MiB: a million page faults for 2 GB.
    torch.empty(KEPT_BYTES, dtype=torch.uint8)
    return pool


@contextmanager
def workers(most: int = MOST) -> Iterator[ThreadPoolExecutor]:
    """`start_workers`, as long as this is open; what has not begun when it closes is dropped."""
    pool = start_workers(most)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_turn(
    pool: ThreadPoolExecutor, work: Callable[[Work], Result], items: Iterable[Work], ahead: int
) -> Iterator[tuple[Work, Result]]:
    """Each item with what `work` makes of it, in their order; up to `ahead` items are at work meanwhile."""
    coming: deque[tuple[Work, Future[Result]]] = deque()
    for item in items:
        coming.append((item, pool.submit(work, item)))
        if len(coming) > ahead:
            first, future = coming.popleft()
            yield first, future.result()
    for first, future in coming:
        yield first, future.result()


def wait(tasks: Sequence[Future[object]]) -> None:
    """Wait for all of them. Raises what the first of them raised that failed, when none is at work any more."""
    try:
        for task in tasks:
            task.result()
    finally:
        give_up(tasks)


def give_up(tasks: Iterable[Future[object]]) -> None:
    """Drop what has not begun, and wait for what has: it may be at work on memory that is about to go."""
    begun = [task for task in list(tasks) if not task.cancel()]
    wait_for_all(begun)
