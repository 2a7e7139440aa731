"""The streaming ring: weights that do not fit cross to the device unit by unit, a few units ahead of the compute.

A few slots of device memory, allocated once, are filled in turn by a thread of their own. On a card the thread only
issues copies on a copy stream: the compute stream waits for an event of the copy, the copy waits for an event of the
compute that used the slot before, and no host thread waits for the device. Where the host copy is pinned, nothing else
is needed; where it is not, or the weights come from a file, two pinned staging buffers lie between. On the CPU the
same ring fills slots of host memory, and on the meta device it only keeps the order.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.memory.units import Unit
from engine.weights.direct import page_aligned

HUGE_PAGE_BYTES = 2 * 2**20
POLL_SECONDS = 0.05  # between two looks at the cancel flag while a copy is waited for


class Source(Protocol):
    """Where units come from."""

    def host_copy(self, unit: Unit) -> Tensor | None:
        """The unit in host memory (uint8), or None where there is no copy."""

    def read(self, unit: Unit, memory: Tensor) -> None:
        """Read it from its file into host memory, with several threads."""


class Ring:
    """Brings units, in the given order, into its slots. One thread acquires and releases, in that order too."""

    def __init__(
        self,
        slots: Sequence[Tensor],
        order: Iterator[Unit],
        source: Source,
        device: torch.device,
        check: Callable[[], None],
    ) -> None:
        """`slots` are uint8 on the device, each as large as the largest unit; `check` raises to cancel a wait."""
        self._slots, self._order, self._source, self._device, self._check = slots, order, source, device, check
        self._changed = threading.Condition()
        self._issued = 0  # units whose copy is under way or done
        self._released = 0
        self._units: list[Unit] = []  # in the slots, or on their way there, by number modulo slots
        self._error: BaseException | None = None
        self._closed = False
        self._acquired: int | None = None
        self._thread: threading.Thread | None = None
        self._ready: list[Any] = []
        self._free: list[Any] = []
        self._stream: Any = None
        if device.type == "meta":
            return
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # which may still use the slots' memory
            self._ready = [torch.cuda.Event() for _ in slots]
            self._free = [torch.cuda.Event() for _ in slots]
        self._units = [None] * len(slots)  # type: ignore[list-item]
        self._thread = threading.Thread(target=self._copy_all, name="weights", daemon=True)
        self._thread.start()

    def acquire(self, unit: Unit) -> int:
        """Wait until the next unit, which must be this one, is in its slot; returns the slot's number.

        On a card it is the compute stream that waits. Raises what went wrong in the copy thread, or what `check` does.
        """
        number = self._released
        slot = number % len(self._slots)
        if self._acquired is not None:
            raise RuntimeError(f"{unit.name} was asked for while another unit of the ring is in use")
        if self._thread is None:
            following = next(self._order, None)
            if following is not unit:
                raise RuntimeError(f"the ring has {following and following.name} next, not {unit.name}")
            self._acquired = slot
            return slot
        with self._changed:
            while self._issued <= number and self._error is None:
                self._check()
                if not self._thread.is_alive() and self._issued <= number and self._error is None:
                    raise RuntimeError(f"the ring has ended before {unit.name}")
                self._changed.wait(POLL_SECONDS)
            if self._issued <= number:
                error, self._error = self._error, RuntimeError("the ring has failed before")
                assert error is not None
                try:
                    raise error
                finally:
                    del error  # with its frames it would keep everything that they hold alive
        if self._units[slot] is not unit:
            raise RuntimeError(f"the ring has {self._units[slot].name} next, not {unit.name}")
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_event(self._ready[slot])
        self._acquired = slot
        return slot

    def release(self) -> None:
        """The unit that was acquired last is no longer needed, once the work issued until now is done."""
        slot, self._acquired = self._acquired, None
        assert slot is not None
        if self._stream is not None:
            self._free[slot].record(torch.cuda.current_stream(self._device))
        with self._changed:
            self._released += 1
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread, also in the middle of a copy's wait; the slots may be freed afterwards."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._stream is not None:
            self._stream.synchronize()

    def _copy_all(self) -> None:
        staging = _Staging()
        try:
            for number, unit in enumerate(self._order):
                slot = number % len(self._slots)
                with self._changed:
                    while self._released <= number - len(self._slots) and not self._closed:
                        self._changed.wait()
                    if self._closed:
                        break
                memory = self._slots[slot][: unit.nbytes]
                if self._stream is not None:
                    if number >= len(self._slots):
                        self._stream.wait_event(self._free[slot])
                    staging.to_card(unit, memory, self._source, self._stream)
                    self._ready[slot].record(self._stream)
                else:
                    to_host(unit, memory, self._source)
                with self._changed:
                    self._units[slot] = unit
                    self._issued += 1
                    self._changed.notify_all()
        except BaseException as error:  # it is raised where the unit is waited for
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            if self._stream is not None:
                self._stream.synchronize()  # before the staging buffers go, from which copies may still run


def to_host(unit: Unit, memory: Tensor, source: Source) -> None:
    """Put a unit into host memory, on this thread alone (torch's own copy would wake its pool of threads)."""
    kept = source.host_copy(unit)
    if kept is None:
        source.read(unit, memory)
    else:
        np.copyto(memory.numpy(), kept.numpy())


def host_memory(nbytes: int) -> Tensor:
    """New host memory (uint8) that is not initialized, in huge pages where the system has them.

    A large file is read into memory that was never touched at a third of the disk cache's speed in pages of 4 KiB.
    Raises `MemoryError`, or as torch does, where there is none.
    """
    if nbytes < HUGE_PAGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(nbytes, dtype=torch.uint8)
    memory = page_aligned(nbytes)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)  # which keeps it


@contextmanager
def copying(device: torch.device) -> Iterator[Callable[[Unit, Tensor, Source], None]]:
    """A function that puts units into memory of the device, one by one; all of them are there when it closes."""
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        staging = _Staging()
        try:
            yield lambda unit, memory, source: staging.to_card(unit, memory, source, stream)
        finally:
            stream.synchronize()
    elif device.type == "cpu":
        yield to_host
    else:
        yield lambda unit, memory, source: None


class _Staging:
    """Two pinned buffers between pageable memory, or a file, and a card. Host waits happen here, and nowhere else."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._events: list[Any] = []
        self._turn = 0

    def to_card(self, unit: Unit, memory: Tensor, source: Source, stream: Any) -> None:
        """Issue the copy of a unit into `memory` on the card, on `stream`."""
        kept = source.host_copy(unit)
        with torch.cuda.stream(stream):
            if kept is not None and kept.is_pinned():
                memory.copy_(kept, non_blocking=True)
                return
            buffer, event = self._next(unit.nbytes)
            event.synchronize()  # its last copy has left it
            to_host(unit, buffer[: unit.nbytes], source)
            memory.copy_(buffer[: unit.nbytes], non_blocking=True)
            event.record(stream)

    def _next(self, nbytes: int) -> tuple[Tensor, Any]:
        if len(self._buffers) < 2:
            self._buffers.append(pinned(nbytes))
            self._events.append(torch.cuda.Event())
            self._turn = len(self._buffers) - 1
        else:
            self._turn = 1 - self._turn
        if self._buffers[self._turn].numel() < nbytes:
            self._events[self._turn].synchronize()
            self._buffers[self._turn] = pinned(nbytes)
        return self._buffers[self._turn], self._events[self._turn]


def pinned(nbytes: int) -> Tensor:
    """New page-locked host memory (uint8); ordinary memory where the system locks no more."""
    memory = host_memory(nbytes)
    pin(memory)
    return memory


def pin(memory: Tensor) -> bool:
    """Page-lock host memory for as long as it lives, for the current card; False where the system locks no more.

    Registered by ourselves: torch's own allocator of such memory rounds up to powers of two, and never gives it back.
    """
    runtime = torch.cuda.cudart()
    if memory.numel() and int(runtime.cudaHostRegister(memory.data_ptr(), memory.numel(), 0)) == 0:
        weakref.finalize(memory, runtime.cudaHostUnregister, memory.data_ptr())
        return True
    with suppress(RuntimeError):  # the refusal stays as CUDA's last error, and would fail the next kernel
        torch.zeros(1, device="cuda")
    return False
