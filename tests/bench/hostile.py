"""Hostile files of every kind that the program reads: `python -m tests.bench.hostile COUNT [--seed N] [--kind K]`.

Valid files are changed in a few places each (tests/mutations.py) and read as the program reads them
(tests/strangers.py), under watch (tests/watching.py). Each must be accepted, or refused in one sentence of at most 400
characters; a traceback, more than 10 s or 1 GB, a file opened outside of its folder, a connection or a process is a
violation. What violates stays on the disk, with a command that repeats it. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import BinaryIO

import torch

from engine.libraries import hush_libraries
from engine.request import RequestError
from tests import strangers
from tests.strangers import KINDS, Kind, ViolationError
from tests.watching import memory, restart_peak, watching

BATCH = 40  # inputs to a process
MAX_SECONDS, GRACE_SECONDS = 10, 5
MAX_BYTES = 10**9  # resident, of which the imported libraries take half
SPARE_BYTES = 4 * 2**30  # of addresses, beyond those that are taken when an input is read
WORKERS = 2
CHANGES = "changes.txt"


@dataclass(frozen=True, slots=True)
class Input:
    """One hostile file: the same for the same seed, kind and number."""

    seed: int
    kind: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.seed}-{self.number}"

    @property
    def command(self) -> str:
        return f"python -m tests.bench.hostile --seed {self.seed} --kind {self.kind} --only {self.number}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an input: accepted, refused, or a violation; `about` is the sentence or what was seen."""

    input: Input
    outcome: str
    about: str = ""
    changes: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0


class TooLongError(BaseException):
    """The time is over; no reader may take it for an error of its own."""


def inputs(count: int, seed: int, kinds: Sequence[str]) -> list[Input]:
    """So many inputs, of all kinds in turn."""
    return [Input(seed, kinds[index % len(kinds)], index // len(kinds)) for index in range(count)]


class Range:
    """Valid files of each kind in a folder, and the places where they are made hostile and read."""

    def __init__(self, folder: Path, kept: Path) -> None:
        self.folder, self.kept = folder, kept

    def prepare(self, kinds: Sequence[str]) -> None:
        """Write valid files, and read them once: all that reading imports is there when processes are forked."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        torch.set_num_threads(1)
        hush_libraries()
        with quiet():
            kit = strangers.small_kit()
        for name in dict.fromkeys(kinds):
            kind = KINDS[name]
            with quiet():
                strangers.make(kind, self.folder / name / "valid", kit)
            first = Input(0, name, -1)
            place = self._place(first)
            verdict = self._judged(kind, first, place, "", Random(name), watched=False)
            plans = Path("cache", "plans")
            if (place / plans).is_dir():  # what is as it was need not be measured again
                shutil.rmtree(self.folder / name / "valid" / plans, ignore_errors=True)
                os.rename(place / plans, self.folder / name / "valid" / plans)
            shutil.rmtree(place)
            if verdict.outcome != "accepted":
                raise RuntimeError(f"valid files of the kind {name} are {verdict.outcome}: {verdict.about}")
        gc.collect()
        gc.freeze()

    def read(self, each: Input) -> Verdict:
        """Make an input and read it, in a process of its own or with others."""
        rng = Random(f"{each.seed} {each.kind} {each.number}")
        kind, place = KINDS[each.kind], self._place(each)
        changes = strangers.change(kind, place, rng)
        (place / CHANGES).write_text(changes, "utf-8", errors="backslashreplace")  # should the process not come back
        verdict = self._judged(kind, each, place, changes, rng)
        if verdict.outcome == "violation":
            self.keep(verdict)
        shutil.rmtree(place, ignore_errors=True)
        return verdict

    def keep(self, verdict: Verdict) -> None:
        """Put a violating input where it stays."""
        kept, place = self.kept / verdict.input.name, self.folder / verdict.input.kind / str(verdict.input.number)
        self.kept.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        if place.exists():
            os.rename(place, kept)
        kept.mkdir(exist_ok=True)
        lines = [verdict.input.command, f"changes: {verdict.changes}", f"{verdict.seconds:.2f} s", verdict.about]
        (kept / "verdict.txt").write_text("\n".join(lines) + "\n", "utf-8", errors="backslashreplace")

    def _place(self, each: Input) -> Path:
        place = self.folder / each.kind / str(each.number)
        shutil.rmtree(place, ignore_errors=True)
        strangers.copy(self.folder / each.kind / "valid", place)
        return place

    def _judged(
        self, kind: Kind, each: Input, place: Path, changes: str, rng: Random, *, watched: bool = True
    ) -> Verdict:
        own = tuple(place / name for name in strangers.OWN)
        outcome, about, seen = "accepted", "", []
        restart_peak()
        begun = time.perf_counter()
        try:
            with strangers.at(place), quiet(), _limits() if watched else nullcontext(), watching(place, own) as watch:
                seen = watch.seen if watched else []
                said = list(kind.read(place, rng))
            for sentence in said:
                strangers.check_sentence(sentence, "it")
            outcome, about = ("refused", said[0]) if said else ("accepted", "")
        except RequestError as error:
            outcome, about = "refused", str(error)
            try:
                strangers.check_sentence(about, "the refusal")
                if error.machine:
                    raise ViolationError(f"told as a fault of the machine: {about}")
            except ViolationError as violation:
                outcome, about = "violation", str(violation)
        except ViolationError as error:
            outcome, about = "violation", str(error)
        except TooLongError:
            outcome, about = "violation", f"took more than {MAX_SECONDS} s: {_last_of_ours()}"
        except BaseException as error:
            outcome = "violation"
            about = f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))[-6000:]}"
        seconds, peak = time.perf_counter() - begun, memory()
        if outcome != "violation" and seen:
            outcome, about = "violation", "; ".join(seen)
        if outcome != "violation" and peak > MAX_BYTES and watched:
            outcome, about = "violation", f"took {peak / 1e9:.2f} GB of memory"
        return Verdict(each, outcome, about, changes, seconds, peak)


def _last_of_ours() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in frames
        if "/tests/" not in frame.filename
    ]
    return " > ".join(ours[-6:])


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing on the terminal and nobody to ask: what libraries print is not the program's."""
    saved = [os.dup(number) for number in range(3)]
    null = os.open(os.devnull, os.O_RDWR)
    sys.stdout.flush()
    for number in range(3):
        os.dup2(null, number)
    try:
        yield
    finally:
        for number, descriptor in enumerate(saved):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(null)


@contextmanager
def _limits() -> Iterator[None]:
    """An alarm, and no more addresses than would be too many anyway."""
    import resource

    def ring(number: int, frame: object) -> None:
        raise TooLongError

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + SPARE_BYTES, before[1]))
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)


# Processes


@dataclass
class Worker:
    """A forked process that reads a batch; `current` is what it has begun and not ended."""

    pid: int
    pipe: BinaryIO
    waiting: list[Input]
    current: Input | None = None
    since: float = 0.0
    buffer: bytes = b""


def run(range_: Range, wanted: Sequence[Input], workers: int = WORKERS) -> Iterator[Verdict]:
    """The verdicts on all inputs, as they come. Hangs and deaths of a process are verdicts, too."""
    batches = [list(wanted[start : start + BATCH]) for start in range(0, len(wanted), BATCH)]
    busy: list[Worker] = []
    while batches or busy:
        while batches and len(busy) < workers:
            busy.append(_forked(range_, batches.pop(0)))
        ready, _, _ = select.select([worker.pipe for worker in busy], [], [], 1.0)
        for worker in list(busy):
            ended = False
            if worker.pipe in ready:
                data = os.read(worker.pipe.fileno(), 2**20)
                ended = not data
                yield from _heard(worker, data)
            if worker.current is not None and time.monotonic() - worker.since > MAX_SECONDS + GRACE_SECONDS:
                os.kill(worker.pid, signal.SIGKILL)
                ended = True
            if ended:
                busy.remove(worker)
                _, status = os.waitpid(worker.pid, 0)
                worker.pipe.close()
                if worker.current is not None:
                    yield _lost(range_, worker, status)
                if worker.waiting:
                    batches.insert(0, worker.waiting)


def _forked(range_: Range, batch: list[Input]) -> Worker:
    import pickle

    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Worker(pid, os.fdopen(reading, "rb", buffering=0), batch)
    try:
        os.close(reading)
        for each in batch:
            os.write(writing, b"\n")  # begins
            data = pickle.dumps(range_.read(each))
            os.write(writing, len(data).to_bytes(4, "little") + data)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _heard(worker: Worker, data: bytes) -> Iterator[Verdict]:
    """Verdicts in what a worker wrote: a newline before an input is read, its length and itself behind."""
    import pickle

    worker.buffer += data
    while worker.buffer:
        if worker.current is None:
            worker.buffer = worker.buffer[1:]
            worker.current, worker.since = worker.waiting.pop(0), time.monotonic()
            continue
        length = int.from_bytes(worker.buffer[:4], "little")
        if len(worker.buffer) < 4 + length or len(worker.buffer) < 4:
            return
        verdict: Verdict = pickle.loads(worker.buffer[4 : 4 + length])
        worker.buffer = worker.buffer[4 + length :]
        worker.current = None
        yield verdict


def _lost(range_: Range, worker: Worker, status: int) -> Verdict:
    assert worker.current is not None
    died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    seconds = time.monotonic() - worker.since
    about = (
        f"hangs, and no alarm ends it ({seconds:.0f} s)" if died == signal.SIGKILL else f"the process died ({status})"
    )
    changes = ""
    with suppress(OSError):
        changes = (range_.folder / worker.current.kind / str(worker.current.number) / CHANGES).read_text("utf-8")
    verdict = Verdict(worker.current, "violation", about, changes, seconds)
    range_.keep(verdict)
    return verdict


# The report


def table(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """What became of the inputs of each kind, and every violation."""
    yield f"{'kind':<12}{'inputs':>8}{'accepted':>10}{'refused':>9}{'violations':>12}{'slowest':>10}{'most memory':>13}"
    for kind in [*KINDS, "all"]:
        mine = [verdict for verdict in verdicts if kind in (verdict.input.kind, "all")]
        if mine:
            counts = Counter(verdict.outcome for verdict in mine)
            slowest, most = max(verdict.seconds for verdict in mine), max(verdict.peak_bytes for verdict in mine)
            yield (
                f"{kind:<12}{len(mine):>8}{counts['accepted']:>10}{counts['refused']:>9}{counts['violation']:>12}"
                f"{slowest:>8.2f} s{most / 2**20:>9.0f} MiB"
            )
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.outcome == "violation":
            groups.setdefault(_group(verdict), []).append(verdict)
    for group, alike in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = min(alike, key=lambda verdict: len(verdict.changes))
        yield ""
        yield f"{len(alike)} of {', '.join(sorted({verdict.input.kind for verdict in alike}))}: {group}"
        yield f"    {first.input.command}\n    {ascii(first.changes)[1:-1][:200]}"
        yield f"    {ascii(first.about.splitlines()[0])[1:-1][:300] if first.about else ''}"


def _group(verdict: Verdict) -> str:
    """What violations that have one cause have in common."""
    lines = [line.strip() for line in verdict.about.splitlines()]
    frames = [line for line in lines if line.startswith("File ") and "/tests/" not in line]
    ours = [frame for frame in frames if "/engine/" in frame or "/tui/" in frame]
    if frames:
        match = re.search(r'/(\w+/\w+\.py)", line (\d+), in (\w+)', (ours or frames)[-1])
        return f"{lines[0].partition(':')[0]} from {match[1]}:{match[2]} {match[3]}" if match else lines[0][:80]
    about = re.sub(r"/\S+/(\w+-?\w*)/\d+", r"\1", lines[0] if lines else "")
    return re.sub(r"[0-9]+(\.[0-9]+)?|'.*|\.t2i\S*", "#", about)[:110]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=1000, help="inputs, of all kinds in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append", help="only these")
    parser.add_argument("--only", type=int, help="only the input with this number of its kind, told in full")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "t2i-hostile", help="for violations")
    options = parser.parse_args()
    kinds = options.kind or [*KINDS]
    wanted = inputs(options.count, options.seed, kinds)
    if options.only is not None:
        wanted = [Input(options.seed, kind, options.only) for kind in kinds]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="t2i-hostile-", ignore_cleanup_errors=True) as folder:
        range_ = Range(Path(folder), options.keep)
        range_.prepare(kinds)
        verdicts = []
        for verdict in run(range_, wanted):
            verdicts.append(verdict)
            if options.only is not None:
                print(f"{verdict.outcome}: {verdict.about}\nchanges: {verdict.changes}\n{verdict.seconds:.2f} s")
    verdicts.sort(key=lambda verdict: (verdict.input.kind, verdict.input.number))
    print("\n".join(table(verdicts)))
    violations = sum(verdict.outcome == "violation" for verdict in verdicts)
    print(f"\n{len(verdicts)} inputs in {time.monotonic() - begun:.0f} s, seed {options.seed}: {violations} violations")
    if violations:
        print(f"They are kept in {options.keep}.")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
