"""One run of the bench: its models, its clock, its results, and the process that measures."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from engine import Engine, Request, RequestError
from engine.memory.budget import read_size
from tests.bench.models import GIB, MIB, Configs, bf16_bytes, flux_configs, small_configs, write_model

CAPS = ("12GiB", "8GiB", "6GiB", "4GiB")
T5_LAYERS = 6  # of 24: more of them take only time
RESULT = "RESULT "


class OutOfTimeError(Exception):
    """A part has used what it was given."""


@dataclass(slots=True)
class Bench:
    """What all parts share."""

    device: str
    folder: Path  # of the models
    output: Path
    rehearse: bool
    deadline: float  # of the running part, on time.monotonic's clock
    total_bytes: int = 10 * GIB  # of the card
    kernel: dict[str, str] = field(default_factory=dict)  # as the probes chose, by precision
    painted: list[dict[str, Any]] = field(default_factory=list)
    small_caps: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of a rehearsal, by precision
    worker: Worker | None = None
    failures: int = 0

    @property
    def side(self) -> int:
        """Of most pictures."""
        return 128 if self.rehearse else 1024

    @property
    def configs(self) -> Configs:
        return small_configs() if self.rehearse else flux_configs(t5_layers=T5_LAYERS)

    def model(self, precision: str) -> str:
        """A model with random weights in this precision, written when it is first asked for."""
        folder = self.folder / precision
        if not (folder / "model_index.json").is_file():
            needed = int((1 if precision == "bf16" else 0.6) * bf16_bytes(self.configs)) + GIB // 2
            if precision == "bf16":  # 56 GB of models are more than a lent disk has
                shutil.rmtree(self.folder / "int8", ignore_errors=True)
            free = shutil.disk_usage(self.folder).free
            if needed > free and not self.rehearse:
                raise RuntimeError(f"{self.folder} needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")
            start = time.perf_counter()
            write_model(folder, self.configs, form=None if precision == "bf16" else precision)
            seconds = time.perf_counter() - start
            nbytes = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
            rate = f"{nbytes / 1e9:.1f} GB in {seconds:.0f} s"
            self.tell("write", f"random {precision} weights: {rate} ", {"bytes": nbytes, "seconds": seconds})
        return str(folder)

    def caps(self, precision: str) -> tuple[str, ...]:
        """Budgets from one where everything is resident to one where most is streamed."""
        if not self.rehearse:  # what is sold as 12 GiB has a little less, and a budget above it is refused
            return tuple(cap if (read_size(cap, "vram") or 0) <= self.total_bytes else "auto" for cap in CAPS)
        if precision in self.small_caps:
            return self.small_caps[precision]
        request = Request("any", width=self.side, height=self.side, precision=precision, seed=1)
        with Engine.open(self.model(precision), device="cpu") as engine:
            plan = engine.plan(request)
        denoise = plan.phases[1]
        work, weights = denoise.activation_bytes + denoise.allowance_bytes, denoise.resident_bytes
        wanted = (plan.peak_bytes, work + 0.5 * weights)
        found = (-(-int(1.03 * self._enough(request, cap)) // MIB) for cap in wanted)
        self.small_caps[precision] = tuple(dict.fromkeys(f"{mebibytes}MiB" for mebibytes in found))
        return self.small_caps[precision]

    def _enough(self, request: Request, cap: float) -> int:
        """`cap`, or the smallest that a plan accepts if that is more."""
        while True:
            with Engine.open(
                self.model(request.precision or ""), vram=f"{int(cap) // MIB + 1}MiB", device="cpu"
            ) as engine:
                try:
                    engine.plan(request)
                except RequestError as error:
                    if error.field != "vram":
                        raise
                    cap *= 1.05
                else:
                    return int(cap)

    def work(self, name: str, *, fresh: bool = False, **spec: Any) -> dict[str, Any]:
        """What `WORK[name]` measures in the worker, a `fresh` one where what ran before would show.

        `error` says why there is nothing else. Raises `OutOfTimeError` where the part has no time left.
        """
        left = self.deadline - time.monotonic()
        if left < 1:
            raise OutOfTimeError(f"no time was left for {name} {spec.get('vram', '')}".strip())
        if fresh or (self.worker is not None and not self.worker.is_alive):
            self.end_worker()
        if self.worker is None:
            self.worker = Worker(self.output / "gpu.log")
        spec = {"device": self.device, **spec}
        spec.setdefault("kernel", self.kernel.get(spec.get("precision", "")))
        start = time.perf_counter()
        found = self.worker.ask(name, spec, left)
        return {**spec, **found, "wall_seconds": round(time.perf_counter() - start, 1)}

    def end_worker(self) -> None:
        if self.worker is not None:
            self.worker.end()
            self.worker = None

    def tell(self, part: str, text: str, record: dict[str, Any]) -> None:
        """One line for people, one for programs."""
        error = record.get("error")
        if error:
            self.failures += 1
        print(f"{part:<8} {text}{f'FAILED: {error}' if error else ''}", flush=True)
        with (self.output / "gpu.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"part": part, "text": text, **record}) + "\n")


class Worker:
    """A process that measures one thing after the other, so that imports and the card's context are paid once."""

    def __init__(self, log: Path) -> None:
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.gpu", "--work"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, name: str, spec: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What it measures; it is ended where it takes longer than this."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([name, spec]) + "\n")
            self._process.stdin.flush()
            end = time.monotonic() + seconds
            while (line := self._lines.get(timeout=max(0.01, end - time.monotonic()))) is not None:
                if line.startswith(RESULT):
                    found: dict[str, Any] = json.loads(line.removeprefix(RESULT))
                    return found
        except queue.Empty:
            self.end()
            return {"error": f"no answer in {seconds:.0f} seconds"}
        except OSError:
            pass
        return {"error": f"the process ended with {self._process.wait()}"}

    def end(self) -> None:
        with suppress(OSError):
            self._process.kill()
        self._process.wait()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)
