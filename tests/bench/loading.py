"""Weights from files, beside what reading and writing the same bytes takes on the same disk in the same run.

    python -m tests.bench.loading [--quick] [--blocks 12] [--rounds 3] [--kills 20] [--folder DIR] [--only PART ...]

A transformer of FLUX.1's shape with fewer blocks, random bf16 weights, in DIR (by default the temporary folder).

    conversion   to FP8 and to int8, source in the page cache, over the slower of reading it and writing the result,
                 which is written in the faster of two ways: through the page cache and past it
    load         file to memory, through the engine, over plain reading of that file; cold and from the page cache.
                 "staged" goes into two buffers that are used in turn, as what crosses to a card does, beside plain
                 reading into one block that is used again and again; "kept" goes into host copies, beside plain
                 reading into memory that was never touched either. With a card there is the file to the card, too.
    shared       both conversions at once, from a cold file: what came from the disk, over the file's size
    killed       conversions that are killed at random: what the next start leaves of them

Best of the rounds, in turn. Quote them from an idle machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import torch

from engine.families.flux1 import FLUX1
from engine.families.flux1.published import DEV
from engine.files import clean_up
from engine.library.catalog import published
from engine.memory.components import Components
from engine.memory.placement import Placement
from engine.precision import FP8, INT8
from engine.quantization.salience import Folds
from engine.weights.converted import converted_files
from engine.weights.direct import page_aligned
from engine.weights.forms import Form
from engine.weights.model import Model, described
from engine.weights.reading import WeightFiles
from tests.bench.memory import own_cache, row
from tests.bench.models import flux_configs, forget_pages, write_component
from tests.bench.speed import timed

BLOCK_BYTES = 64 * 2**20
PARTS = ("conversion", "load", "shared", "killed")


# Peers.


def warm(file: Path) -> None:
    """Bring a file into the page cache."""
    read_plainly(file)


def cool(file: Path) -> None:
    """Take a file out of the page cache."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        forget_pages(stream.fileno())


def read_plainly(file: Path) -> None:
    """Large blocks, one after the other, into the same memory."""
    memory = bytearray(BLOCK_BYTES)
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(memory):
            pass


def read_whole(file: Path) -> None:
    """The same into memory that was never touched."""
    memory = torch.empty(file.stat().st_size, dtype=torch.uint8).numpy().data
    with file.open("rb", buffering=0) as stream:
        for at in range(0, len(memory), BLOCK_BYTES):
            stream.readinto(memory[at : at + BLOCK_BYTES])


def write_plainly(file: Path, nbytes: int) -> None:
    """As many bytes, on the disk."""
    memory = memoryview(os.urandom(BLOCK_BYTES))
    with file.open("wb", buffering=0) as stream:
        for at in range(0, nbytes, BLOCK_BYTES):
            stream.write(memory[: min(BLOCK_BYTES, nbytes - at)])
        os.fsync(stream.fileno())


def write_directly(file: Path, nbytes: int) -> None:
    """The same past the page cache, which is faster where the processor is slower than the disk."""
    memory = page_aligned(BLOCK_BYTES)
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
    try:
        for _ in range(nbytes // BLOCK_BYTES):
            os.write(descriptor, memory)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy(file: Path, target: Path) -> None:
    """`cp`, and on the disk."""
    subprocess.run(["cp", str(file), str(target)], check=True)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())


# What is measured.


def form_of(kind: str, model: Model) -> Form:
    return Form(model.family, FP8) if kind == "fp8" else Form(model.family, INT8, Folds(model.inputs, {}))


def convert(model: Model, kind: str) -> Path:
    """Convert the transformer; the cache file."""
    notices: list[str] = []
    conversion = converted_files(
        "transformer", model.files["transformer"], torch.bfloat16, notices, form_of(kind, model)
    )
    try:
        while True:
            next(conversion)
    except StopIteration as end:
        files: WeightFiles | None = end.value
    if files is None:
        raise RuntimeError("; ".join(notices))
    files.close()
    return next(iter(files.tensors.values())).file


class Loading:
    """The transformer from its cache file, over and over."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.components = Components(model, device)
        self.units = self.components.component("transformer", INT8).units
        for _ in self.components.keep("transformer", INT8, Placement(), lambda: None):
            pass
        self.opened = self.components._open["transformer"]
        largest = max(unit.nbytes for unit in self.units)
        self.buffers = [torch.zeros(largest, dtype=torch.uint8) for _ in range(2)]

    def kept(self) -> None:
        everything = Placement(kept=frozenset(unit.name for unit in self.units), in_place=True)
        for _ in self.components.keep("transformer", INT8, everything, lambda: None):
            pass

    def staged(self) -> None:
        source = self.components.host.source(self.opened)
        for number, unit in enumerate(self.units):
            source.read(unit, self.buffers[number % 2][: unit.nbytes])

    def to_card(self) -> None:
        with self.components.lend("transformer", INT8, Placement(), lambda: None) as loan:
            for _ in loan.load():
                pass
            torch.cuda.synchronize()


def best(rounds: int, works: dict[str, tuple[Callable[[], object], Callable[[], object]]]) -> dict[str, float]:
    """Seconds of each, after what has to be done before it, in turn."""
    seconds = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, (before, work) in works.items():
            before()
            seconds[name] = min(seconds[name], timed(work))
    return seconds


def conversion_part(model: Model, options: argparse.Namespace) -> None:
    (source,) = model.files["transformer"]
    peer = options.folder / "peer"
    for kind in ("fp8", "int8"):
        with own_cache() as cache:
            result = convert(model, kind).stat().st_size

            def before(cache: Path = cache) -> None:
                shutil.rmtree(cache / "weights", ignore_errors=True)
                peer.unlink(missing_ok=True)
                warm(source)

            works: dict[str, Callable[[], object]] = {
                "ours": partial(convert, model, kind),
                "read": partial(read_plainly, source),
                "write": partial(write_plainly, peer, result),
                "cp": partial(copy, source, peer),
            }
            if hasattr(os, "O_DIRECT"):
                works["direct"] = partial(write_directly, peer, result)
            seconds = best(options.rounds, {name: (before, work) for name, work in works.items()})
            before()
            begun = time.process_time()
            convert(model, kind)
            processor = time.process_time() - begun
            peer.unlink(missing_ok=True)
        write = min(seconds["write"], seconds.get("direct", float("inf")))
        ratio = seconds["ours"] / max(seconds["read"], write)
        row(f"conversion to {kind} / max(read, write)", f"{ratio:.2f}", "<= 1.25", ok=ratio <= 1.25)
        print(
            f"    {source.stat().st_size / 1e9:.2f} GB to {result / 1e9:.2f} GB in {seconds['ours']:.2f} s; reading "
            f"{seconds['read']:.2f} s, writing the result {write:.2f} s, cp of the source "
            f"{seconds['cp']:.2f} s; {processor:.2f} seconds of processors",
            flush=True,
        )


def load_part(model: Model, options: argparse.Namespace) -> None:
    has_card = torch.cuda.is_available()
    with own_cache():
        file = convert(model, "int8")
        nbytes = file.stat().st_size
        loading = Loading(model, torch.device("cuda" if has_card else "cpu"))

        def before(prepare: Callable[[Path], None]) -> None:
            loading.components.drop_host_copies()
            prepare(file)

        ways = [("staged", loading.staged, read_plainly), ("kept", loading.kept, read_whole)]
        if has_card:
            ways.insert(0, ("to the card", loading.to_card, read_plainly))
        for state, prepare in (("cached", warm), ("cold", cool)):
            for way, ours, plain in ways:
                ready = partial(before, prepare)
                seconds = best(options.rounds, {"ours": (ready, ours), "plain": (ready, partial(plain, file))})
                ratio = seconds["plain"] / seconds["ours"]
                row(f"int8 file {way} / plain reading, {state}", f"{ratio:.2f}", ">= 0.90", ok=ratio >= 0.9)
                rates = ", ".join(f"{nbytes / 1e9 / seconds[who]:.2f} GB/s {who}" for who in seconds)
                print(f"    {nbytes / 1e9:.2f} GB: {rates}", flush=True)
        loading.components.clear()


def convert_in_a_process(model: Model, kind: str) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=convert, args=(model, kind))
    process.start()
    return process


def disk_bytes_of(model: Model, kind: str) -> int:
    """Convert in this process; what it had to read from the disk."""
    begun = psutil.Process().io_counters().read_bytes
    convert(model, kind)
    return int(psutil.Process().io_counters().read_bytes - begun)


def shared_part(model: Model, options: argparse.Namespace) -> None:
    (source,) = model.files["transformer"]
    context = multiprocessing.get_context("spawn")
    with own_cache(), ProcessPoolExecutor(2, mp_context=context) as processes:
        list(processes.map(time.sleep, (1, 1)))  # both have begun
        cool(source)
        start = time.perf_counter()
        read = list(processes.map(disk_bytes_of, (model, model), ("fp8", "int8")))
        seconds = time.perf_counter() - start
    ratio = sum(read) / source.stat().st_size
    row("both conversions at once, cold: read from the disk / source", f"{ratio:.2f}", "<= 1.10", ok=ratio <= 1.1)
    print(f"    {seconds:.1f} s", flush=True)


def killed_part(model: Model, options: argparse.Namespace) -> None:
    """A process each, killed at a time that is drawn; then what a start does."""
    draw = random.Random(7)
    with own_cache() as cache:
        begun = left = 0
        for _ in range(options.kills):
            process = convert_in_a_process(model, draw.choice(("fp8", "int8")))
            while not [*cache.glob("weights/*")] and process.is_alive():
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 0.6))
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            begun += any(cache.glob("weights/.t2i-*"))
            clean_up()
            left += sum(file.stat().st_size for file in cache.glob("weights/.t2i-*"))
            shutil.rmtree(cache / "weights", ignore_errors=True)
    row(f"left behind by {options.kills} conversions killed at random", f"{left} bytes", "0", ok=left == 0)
    print(f"    {begun} of them were killed while they wrote", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 GB, one round, three kills: under a minute")
    parser.add_argument("--blocks", type=int, default=12, help="single blocks, of 0.28 GB each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    if options.quick:
        options.blocks, options.rounds, options.kills = 1, 1, 3
    os.environ["TMPDIR"] = str(options.folder)
    tempfile.tempdir = str(options.folder)
    with tempfile.TemporaryDirectory(prefix="t2i-bench-") as folder:
        options.folder = Path(folder)
        configs = flux_configs(double=1, single=options.blocks)
        file = write_component(options.folder, configs, "transformer")
        model = described(
            FLUX1, "bench", options.folder, {**published(DEV).configs, **configs}, {"transformer": (file,)}
        )
        memory = psutil.virtual_memory().total / 2**30
        print(
            f"{os.cpu_count()} cores, {memory:.0f} GiB, {sys.platform}, torch {torch.__version__}; the source has "
            f"{file.stat().st_size / 1e9:.2f} GB; best of {options.rounds}",
            flush=True,
        )
        parts = {"conversion": conversion_part, "load": load_part, "shared": shared_part, "killed": killed_part}
        for name in options.only:
            parts[name](model, options)


if __name__ == "__main__":
    main()
