"""Whole pictures by the engine: memory by phase, seconds a step, the overlap, the picture after the first."""

from __future__ import annotations

import gc
import hashlib
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from engine import Engine, ImageSaved, PhaseFinished, Request, StepFinished
from engine.events import Failed, LoadProgress, Noticed, Planned
from engine.images.save import plan_output
from engine.jobs.latents import KeptLatents
from engine.jobs.runtime import Repeat
from tests.bench.gpu.card import CardGauge, allocator_faults, peak_bytes, reserved_peak, restart_peaks, synchronize
from tests.bench.models import Sampler

PROMPT = "a large red circle above a small blue square on a white background"
OTHER_PROMPT = "a small green triangle to the left of a large yellow star on a black background"
OUT_OF_MEMORY = "ran out of memory"


def nothing() -> None:
    """No request to stop."""


def opened(spec: dict[str, Any], vram: str | None = None) -> Engine:
    return Engine.open(
        spec["model"], device=spec["device"], vram=vram or spec["vram"], repeat=Repeat(kernel=spec.get("kernel"))
    )


def request_of(spec: dict[str, Any], seed: int = 1) -> Request:
    side = spec["side"]
    return Request(
        PROMPT, width=side, height=side, steps=spec["steps"], precision=spec["precision"], seed=seed, guidance=3.5
    )


def paint(spec: dict[str, Any]) -> dict[str, Any]:
    """One picture by the engine under a budget: peaks of each phase, seconds a step, traffic, the latents' digest."""
    device = spec["device"]
    gauge, faults_before = CardGauge(device), allocator_faults(device)
    digests: list[str] = []
    keep = KeptLatents.keep

    def keep_and_digest(self: KeptLatents, latents: Tensor) -> None:
        digests.append(hashlib.sha256(latents.contiguous().numpy().tobytes()).hexdigest())
        keep(self, latents)

    result: dict[str, Any] = {"measured": {}, "reserved": {}, "notices": [], "steps_seconds": []}
    began = False
    with (
        patch.object(KeptLatents, "keep", keep_and_digest),
        tempfile.TemporaryDirectory() as folder,
        opened(spec) as engine,
        Sampler(gauge) as card,
    ):
        for event in engine.generate(request_of(spec), plan_output(Path(folder), 1)):
            if isinstance(event, Planned):
                plan = event.plan
                result |= {
                    "budget_bytes": plan.budget_bytes,
                    "predicted": {phase.name: phase.peak_bytes for phase in plan.phases},
                    "streamed_bytes_per_step": plan.phases[1].streamed_bytes_per_step,
                    "tile": plan.tile,
                    "context_bytes": engine.runtime().target.context_bytes,
                }
            elif isinstance(event, LoadProgress) and not began:
                began = True  # the probe of the kernel is over, which is not part of the plan
                result["probe_peak_bytes"] = peak_bytes(device, card, result["context_bytes"])
                restart_peaks(device)
                card.restart()
            elif isinstance(event, StepFinished):
                result["steps_seconds"].append(event.seconds)
            elif isinstance(event, PhaseFinished) and event.phase in result["predicted"]:
                result["measured"][event.phase] = peak_bytes(device, card, result["context_bytes"])
                result["reserved"][event.phase] = reserved_peak(device)
                restart_peaks(device)
                card.restart()
            elif isinstance(event, Noticed):
                result["notices"].append(event.message)
            elif isinstance(event, Failed):
                result["error"] = event.message
            elif isinstance(event, ImageSaved):
                result |= {
                    "moved_bytes": event.moved_bytes,
                    "disk_bytes": event.disk_bytes,
                    "seconds_by_phase": event.seconds_by_phase,
                    "device_peak_bytes": event.memory.device_peak_bytes,
                }
        result["gauge"] = gauge.source
        result["samples"] = card.samples
        result["chosen_kernel"] = engine.runtime().kernels
    said = sum(OUT_OF_MEMORY in text for text in [*result["notices"], result.get("error", "")])
    faults = {name: count - faults_before[name] for name, count in allocator_faults(device).items()}
    result |= {**faults, "out_of_memory": max(said, faults["out_of_memory"])}
    result["latents"] = digests[0] if digests else None
    return result


def overlap(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds a step with everything resident, of the copies alone, and with both at once."""
    request = request_of(spec)
    with opened(spec, "auto") as engine:
        if engine.plan(request).phases[1].streamed_bytes_per_step:
            return {"error": "the card has no room for the resident side of the comparison"}
        compute = step_seconds(engine, request)
    gc.collect()
    with opened(spec) as engine:
        streamed_bytes = engine.plan(request).phases[1].streamed_bytes_per_step
        if not streamed_bytes:
            return {"error": f"nothing is streamed in {spec['vram']}"}
        streamed = step_seconds(engine, request)
        copy = copy_seconds(engine, request)
    hidden = copy + compute - streamed
    return {
        "compute": compute,
        "copy": copy,
        "streamed": streamed,
        "streamed_bytes_per_step": streamed_bytes,
        "bytes_per_second": streamed_bytes / copy,
        "hidden": hidden,
        "hidden_share": hidden / min(copy, compute),
    }


def step_seconds(engine: Engine, request: Request) -> float:
    """The median of a picture's steps, without the first, which warms up. Raises `RuntimeError` where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        events = list(engine.generate(request, plan_output(Path(folder), 1)))
    if not isinstance(events[-1], ImageSaved):
        raise RuntimeError(f"{events[-1]}")
    return statistics.median([event.seconds for event in events if isinstance(event, StepFinished)][1:])


def copy_seconds(engine: Engine, request: Request, passes: int = 6) -> float:
    """Of one pass of the streamed weights through the ring while nothing computes."""
    runtime, request = engine.runtime(), engine.resolve(request)
    placement = runtime.plan(request).placements["transformer"]
    seconds = []
    with runtime.components.lend("transformer", request.form, placement, nothing, passes=passes) as loan:
        for _ in loan.load():
            pass
        assert loan._ring is not None
        crossing = [unit for unit in loan.component.units if unit.name in placement.streamed]
        for _ in range(passes):
            synchronize(str(loan.device))
            start = time.perf_counter()
            for unit in crossing:
                loan._ring.acquire(unit)
                loan._ring.release()
            synchronize(str(loan.device))
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:-1])  # the first begins with full slots, the last fills none ahead


def next_picture(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a first picture, and of one with a new prompt after it."""
    told: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, opened(spec) as engine:
        for seed, prompt in ((1, PROMPT), (2, OTHER_PROMPT)):
            start, steps = time.perf_counter(), []
            for event in engine.generate(replace(request_of(spec, seed), prompt=prompt), plan_output(Path(folder), 1)):
                if isinstance(event, StepFinished):
                    steps.append(event.seconds)
            if not isinstance(event, ImageSaved):
                return {"error": f"{event}"}
            told.append(
                {
                    "seconds": time.perf_counter() - start,
                    "steps_seconds": sum(steps),
                    "disk_bytes": event.disk_bytes,
                    "moved_bytes": event.moved_bytes,
                    "seconds_by_phase": event.seconds_by_phase,
                }
            )
    return {"first": told[0], "second": told[1]}
