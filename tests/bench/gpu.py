"""The memory manager on a real card, in one command: random weights of FLUX.1-dev's shape, no download.

    python -m tests.bench.gpu [--quick] [--output DIR] [--keep DIR] [PART ...]

Parts, all of them unless some are named:

    kernel    which FP8 kernel the probe chose, with both timings
    budgets   12, 8 and 6 GiB at 512 to 1536 pixels a side: out of memory, peak by the driver, prediction, seconds
    bits      whether the latents of these runs are the same at every budget
    overlap   how much of the copying a streamed step hides behind its compute, or the other way round
    offload   seconds a step against diffusers' group offloading with streams, and both with everything on the card
    decode    the decoder's peak, workspaces of convolutions included, against prediction and allowance

Every measurement runs in a process of its own, and becomes a JSON line in DIR/gpu.jsonl; what fails says so, and the
next one runs. The model takes 34 GB of disk and its FP8 form 17 more (`--quick`: 11 in all, with 4 double and 8 single
blocks and 4 layers of T5); `--keep` names a folder to keep them in for the next time. Quote figures from a machine
whose card does nothing else.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import apply_group_offloading
from torch import Tensor

from engine import Engine, ImageSaved, PhaseFinished, Request, RequestError, StepFinished, flow
from engine.decode import decode, smaller_tiles
from engine.events import Failed, LoadProgress, Noticed, Planned
from engine.images.save import plan_output
from engine.latents import KeptLatents
from engine.memory.budget import read_size
from engine.memory.components import Placement
from engine.memory.driver import process_bytes
from engine.memory.enforce import CardMemory, card_is_full
from engine.memory.target import resolve
from engine.quantization import fp8
from engine.quantization.probing import card_milliseconds
from engine.runtime import Repeat
from engine.text import size
from tests.bench.models import GIB, MIB, Sampler, bf16_bytes, flux_configs, small_configs, write_model

PROMPT = "a large red circle above a small blue square on a white background"
CAPS, SIDES = ("12GiB", "8GiB", "6GiB"), (512, 768, 1024, 1536)
DECODED_SIDES = (512, 768, 1024, 1280, 1536, 2048)
KERNELS = ("bf16", "dequantize", "scaled_mm")
RESULT = "RESULT "
WORKER_SECONDS = 40 * 60
OUT_OF_MEMORY = "ran out of memory"


def nothing() -> None:
    """No request to stop."""


@dataclass(slots=True)
class Bench:
    """One run of all parts."""

    device: str
    model: Path
    output: Path
    quick: bool
    rehearse: bool
    total_bytes: int = 0  # of the card
    kernel: str | None = None  # as the probe chose, so that every run multiplies alike
    painted: list[dict[str, Any]] = field(default_factory=list)
    failures: int = 0

    @property
    def sides(self) -> tuple[int, ...]:
        return (64, 128) if self.rehearse else SIDES

    @property
    def side(self) -> int:
        """Of the picture that steps are timed with."""
        return 128 if self.rehearse else 1024

    def caps(self, side: int, precision: str = "fp8") -> tuple[str, ...]:
        """Budgets from one where everything is resident to one where most is streamed."""
        if not (self.quick or self.rehearse):
            # What is sold as 12 GiB has a little less, and a budget above it is refused.
            return tuple(cap if (read_size(cap, "vram") or 0) <= self.total_bytes else "auto" for cap in CAPS)
        request = Request("any", width=side, height=side, precision=precision, seed=1)
        place: dict[str, Any] = {"device": "cpu"} if self.rehearse else {"vram": "512GiB", "simulate": True}
        with Engine.open(self.model, **place) as engine:
            plan = engine.plan(request)
        denoise = plan.phases[1]
        work, weights = denoise.activation_bytes + denoise.allowance_bytes, denoise.resident_bytes
        wanted = (plan.peak_bytes, work + 0.65 * weights, work + 0.4 * weights)
        spare = 1.03 if self.rehearse else 1.10  # the real card's context may be larger than the simulated one's
        return tuple(dict.fromkeys(f"{-(-int(spare * self._enough(request, cap)) // MIB)}MiB" for cap in wanted))

    def _enough(self, request: Request, cap: float) -> int:
        """`cap`, or the smallest that a plan accepts if that is more."""
        while True:
            place: dict[str, Any] = {"device": "cpu"} if self.rehearse else {"simulate": True}
            with Engine.open(self.model, vram=f"{int(cap) // MIB + 1}MiB", **place) as engine:
                try:
                    engine.plan(request)
                except RequestError as error:
                    if error.field != "vram":
                        raise
                    cap *= 1.05
                else:
                    return int(cap)

    def work(self, name: str, **spec: Any) -> dict[str, Any]:
        """What `WORK[name]` measures in a process of its own; `error` says why there is nothing else."""
        spec = {"model": str(self.model), "device": self.device, "kernel": self.kernel, **spec}
        command = [sys.executable, "-m", "tests.bench.gpu", "--work", name, json.dumps(spec)]
        start = time.perf_counter()
        with (self.output / "gpu.log").open("ab") as log:
            log.write(f"\n--- {name} {json.dumps(spec)}\n".encode())
            log.flush()
            try:
                done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=log, timeout=WORKER_SECONDS)
            except subprocess.TimeoutExpired:
                return {**spec, "error": f"no answer in {WORKER_SECONDS} seconds"}
        lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith(RESULT)]
        found = json.loads(lines[-1].removeprefix(RESULT)) if lines else {"error": f"ended with {done.returncode}"}
        return {**spec, **found, "wall_seconds": round(time.perf_counter() - start, 1)}

    def tell(self, part: str, text: str, record: dict[str, Any]) -> None:
        """One line for people, one for programs."""
        error = record.get("error")
        if error:
            self.failures += 1
        print(f"{part:<8} {text}{f'FAILED: {error}' if error else ''}", flush=True)
        with (self.output / "gpu.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"part": part, "text": text, **record}) + "\n")


# What runs in a process of its own.


class CardGauge:
    """What the driver counts for this process on a card; where it does not tell, what the whole card uses more."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.source: str | None = None
        self._handle: Any = None
        self._before = 0
        if self.device.type == "cuda":
            with suppress(Exception):  # whatever a driver may raise
                import pynvml

                pynvml.nvmlInit()
                uuid = f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                self._before = int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def __call__(self) -> int | None:
        if self._handle is None:
            return None
        with suppress(Exception):
            import pynvml

            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                if process.pid == os.getpid() and process.usedGpuMemory:
                    self.source = "process"
                    return int(process.usedGpuMemory)
            if self.source != "process":
                self.source = "card"
                return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used) - self._before
        return None


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def restart_peaks(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def reserved_peak(device: str) -> int | None:
    return torch.cuda.max_memory_reserved(device) if device.startswith("cuda") else None


def allocator_faults(device: str) -> dict[str, int]:
    """Allocations that were refused at last, and those that succeeded once the cache was emptied."""
    if not device.startswith("cuda"):
        return {"out_of_memory": 0, "retries": 0}
    stats = torch.cuda.memory_stats(device)
    return {"out_of_memory": int(stats.get("num_ooms", 0)), "retries": int(stats.get("num_alloc_retries", 0))}


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
    gauge = CardGauge(device)
    digests: list[str] = []
    keep = KeptLatents.keep

    def keep_and_digest(self: KeptLatents, latents: Tensor) -> None:
        digests.append(hashlib.sha256(latents.contiguous().numpy().tobytes()).hexdigest())
        keep(self, latents)

    KeptLatents.keep = keep_and_digest  # type: ignore[method-assign]
    result: dict[str, Any] = {"measured": {}, "reserved": {}, "notices": [], "steps_seconds": []}
    began = False
    with tempfile.TemporaryDirectory() as folder, opened(spec) as engine, Sampler(gauge) as card:
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
                result["probe_peak_bytes"] = _peak(device, card, result["context_bytes"])
                restart_peaks(device)
                card.restart()
            elif isinstance(event, StepFinished):
                result["steps_seconds"].append(event.seconds)
            elif isinstance(event, PhaseFinished) and event.phase in result["predicted"]:
                result["measured"][event.phase] = _peak(device, card, result["context_bytes"])
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
    faults = allocator_faults(device)
    result |= {**faults, "out_of_memory": max(said, faults["out_of_memory"])}
    result["latents"] = digests[0] if digests else None
    return result


def _peak(device: str, card: Sampler, context_bytes: int) -> int | None:
    """The most that the process took since the last restart: the driver's word, or the allocator's if that is more."""
    reserved = reserved_peak(device)
    found = [
        value for value in (card.peak, None if reserved is None else reserved + context_bytes) if value is not None
    ]
    return max(found, default=None)


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
    assert request.precision
    placement = runtime.plan(request).placements["transformer"]
    seconds = []
    with runtime.components.lend("transformer", request.precision, placement, nothing, passes=passes) as loan:
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


def diffusers_steps(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds a step of diffusers' own transformer in bf16: offloaded in groups under a cap, or whole on the card."""
    device = torch.device(spec["device"])
    if device.type == "cuda":
        vram = spec.get("vram")
        CardMemory(resolve(spec["device"], read_size(vram, "vram") if vram else None, None, simulated=False)).hold()
    transformer: Any = FluxTransformer2DModel.from_pretrained(
        Path(spec["model"]) / "transformer", torch_dtype=torch.bfloat16
    )
    transformer.eval().requires_grad_(False)
    if spec["way"] == "resident":
        transformer.to(device)
    else:
        options = {"low_cpu_mem_usage": True} if spec["way"] == "group, pinned as it goes" else {}
        apply_group_offloading(
            transformer,
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=device.type == "cuda",
            **(options if device.type == "cuda" else {}),
        )
    config, side, dtype = transformer.config, spec["side"], torch.bfloat16
    latents = flow.noise(1, config.in_channels // 4, side, side).to(device)
    given = {
        "encoder_hidden_states": torch.randn(1, 512, config.joint_attention_dim).to(device, dtype),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim).to(device, dtype),
        "guidance": torch.full((1,), 3.5, device=device, dtype=dtype) if config.guidance_embeds else None,
        "img_ids": flow.image_position_ids(side, side).to(device, dtype),
        "txt_ids": torch.zeros(512, 3, device=device, dtype=dtype),
    }
    restart_peaks(spec["device"])
    seconds = []
    sigmas = torch.linspace(1, 0, spec["steps"] + 1)
    with torch.no_grad():
        for sigma, following in itertools.pairwise(sigmas):
            synchronize(spec["device"])
            start = time.perf_counter()
            velocity = transformer(
                hidden_states=latents.to(dtype), timestep=sigma.expand(1).to(device, dtype), return_dict=False, **given
            )[0]
            latents = flow.euler_step(latents, velocity, sigma, following)
            synchronize(spec["device"])
            seconds.append(time.perf_counter() - start)
    return {
        "steps_seconds": seconds,
        "reserved": reserved_peak(spec["device"]),
        "process_bytes": process_bytes(device) if device.type == "cuda" else None,
        "finite": bool(latents.isfinite().all()),
        **allocator_faults(spec["device"]),
    }


def decode_peaks(spec: dict[str, Any]) -> dict[str, Any]:
    """The decoder's peaks at several sizes, whole and in bands, against prediction and allowance."""
    device = spec["device"]
    gauge = CardGauge(device)
    rows: list[dict[str, Any]] = []
    with opened(spec, "auto") as engine, ExitStack() as stack:
        runtime = engine.runtime()
        target, planner = runtime.target, runtime.planner
        units = runtime.components.component("vae", "bf16").units
        # The CPU computes with host copies where they lie; a card gets its own.
        here = Placement(kept=frozenset(unit.name for unit in units), in_place=not target.is_card)
        loan = stack.enter_context(runtime.components.lend("vae", "bf16", here, nothing))
        for _ in loan.load():
            pass
        resident = sum(unit.nbytes for unit in units)
        channels = int(engine.source.configs["vae"]["latent_channels"])
        card = stack.enter_context(Sampler(gauge))
        for side in spec["sides"]:
            tiles = smaller_tiles(0, side, side)
            for tile in dict.fromkeys([0, *tiles[:1], *tiles[-1:]]):
                predicted = planner.activations.decode("bf16", side, side, tile)
                allowance = planner.allowance("decode", predicted, loan.dtype)
                row: dict[str, Any] = {"side": side, "tile": tile, "activation_bytes": predicted}
                row["predicted"] = resident + predicted + allowance
                tokens = torch.randn(flow.tokens_shape(channels, side, side)).to(device)
                gc.collect()
                if target.is_card:
                    torch.cuda.empty_cache()
                restart_peaks(device)
                card.restart()
                start = time.perf_counter()
                try:
                    decode(loan.module, tokens, side, side, nothing, tile=tile, device=loan.device, dtype=loan.dtype)
                except Exception as error:
                    if not card_is_full(error):
                        raise
                    row["error"] = OUT_OF_MEMORY
                synchronize(device)
                row["seconds"] = time.perf_counter() - start
                row["measured"] = _peak(device, card, target.context_bytes)
                if target.is_card:
                    row["allocated"] = torch.cuda.max_memory_allocated(device) - resident  # scratch included
                    row["reserved"] = torch.cuda.max_memory_reserved(device)
                rows.append(row)
        used = process_bytes(loan.device) if target.is_card else None
        return {"rows": rows, "context_bytes": target.context_bytes, "process_bytes": used, "gauge": gauge.source}


def kernel(spec: dict[str, Any]) -> dict[str, Any]:
    """The FP8 kernel that the probe chooses, and the figures that it goes by."""
    device = torch.device(spec["device"])
    start = time.perf_counter()
    result: dict[str, Any] = {"chosen": fp8.probe_kernel(device, torch.bfloat16)}
    result["probe_seconds"] = time.perf_counter() - start
    if device.type == "cuda":
        result |= {"card": torch.cuda.get_device_name(device), "capability": torch.cuda.get_device_capability(device)}
        with torch.no_grad(), torch.cuda.device(device):
            layer, x = fp8._probe_layer(3072, 12288, 4096, device)
            dense = fp8.dequantize(layer.quantized, layer.scale, torch.bfloat16)
            result["bf16_ms"] = statistics.median(
                card_milliseconds(lambda: torch.nn.functional.linear(x, dense, layer.bias), 3, 9)
            )
            del dense
            for name in ("dequantize", "scaled_mm"):
                layer.kernel = name
                try:
                    result[f"{name}_ms"] = statistics.median(card_milliseconds(lambda: layer(x), 3, 9))
                except Exception as error:  # a card without FP8 arithmetic
                    result[f"{name}_refused"] = " ".join(str(error).split())[:200]
            with suppress(Exception):
                result["scaled_mm_error"] = fp8.scaled_mm_error(layer, x[:512])
    return result


def machine(spec: dict[str, Any]) -> dict[str, Any]:
    """What a figure is worth nothing without; asked in a process of its own, so that the first holds no context."""
    about: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "total_bytes": 10 * GIB}
    if spec["device"].startswith("cuda"):
        free, total = torch.cuda.mem_get_info(spec["device"])
        about |= {"card": torch.cuda.get_device_name(spec["device"]), "total_bytes": total, "free_bytes": free}
        about["cuda"] = torch.version.cuda
    return about


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Convert to FP8 once, so that no measurement has to."""
    start = time.perf_counter()
    with opened(spec, "auto") as engine:
        components = engine.runtime().components
        for name in ("text_encoder_2", "transformer"):
            for _ in components.keep(name, "fp8", Placement(), nothing):
                pass
    return {"seconds": time.perf_counter() - start}


WORK: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "machine": machine,
    "prepare": prepare,
    "kernel": kernel,
    "paint": paint,
    "overlap": overlap,
    "diffusers": diffusers_steps,
    "decode": decode_peaks,
}


def run_work(name: str, spec: dict[str, Any]) -> None:
    try:
        result = WORK[name](spec)
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        result["out_of_memory"] = int(card_is_full(error))
    print(RESULT + json.dumps(result), flush=True)


# The parts.


def kernel_part(bench: Bench) -> None:
    found = bench.work("kernel")
    bench.kernel = found.get("chosen")
    times = ", ".join(f"{name} {found[f'{name}_ms']:.3f} ms" for name in KERNELS if f"{name}_ms" in found)
    bench.tell("kernel", f"{found.get('chosen')}: {times or 'not timed here'} ", found)


def budgets_part(bench: Bench) -> None:
    """Targets: no allocation is refused, peak / budget <= 1.00, prediction within 5 %."""
    for side in bench.sides:
        for cap in bench.caps(side):
            found = bench.work("paint", vram=cap, side=side, steps=2, precision="fp8")
            bench.painted.append(found)
            bench.tell("budgets", f"{side}x{side} in {cap}: {budget_text(found)}", found)


def budget_text(found: dict[str, Any]) -> str:
    """Out of memory, peak / budget, prediction's error by phase, seconds a step, traffic; adds them to the record."""
    if "predicted" not in found:
        return ""
    measured = {phase: peak for phase, peak in found["measured"].items() if peak}
    texts = [f"{found['out_of_memory']} out of memory"]
    if measured:
        peak, predicted = max(measured.values()), max(found["predicted"].values())
        found["peak_of_budget"] = peak / found["budget_bytes"]
        found["prediction_error"] = abs(predicted - peak) / peak
        found["phase_errors"] = {phase: found["predicted"][phase] / peak - 1 for phase, peak in measured.items()}
        phases = ", ".join(f"{phase} {error:+.1%}" for phase, error in found["phase_errors"].items())
        verdict = "" if found["peak_of_budget"] <= 1 and found["prediction_error"] <= 0.05 else " MISSED"
        texts += [
            f"peak {size(peak)} = {found['peak_of_budget']:.3f} of the budget",
            f"predicted {size(predicted)}, off by {found['prediction_error']:.1%} ({phases}){verdict}",
        ]
    if found["steps_seconds"]:
        texts.append(f"{found['steps_seconds'][-1]:.3f} s a step")
    texts.append(f"{size(found['streamed_bytes_per_step'])} streamed a step")
    if "moved_bytes" in found:
        texts.append(f"{size(found['moved_bytes'])} moved")
    return ", ".join(texts) + " "


def bits_part(bench: Bench) -> None:
    """Target: the same latents at every budget."""
    if not bench.painted:
        budgets_part(bench)
    for side in bench.sides:
        runs = [found for found in bench.painted if found["side"] == side and found.get("latents")]
        digests = {found["latents"] for found in runs}
        record: dict[str, Any] = {"side": side, "caps": [found["vram"] for found in runs], "digests": sorted(digests)}
        if len(runs) < 2:
            record["error"] = "fewer than two budgets gave latents"
        same = "the same" if len(digests) == 1 else "DIFFERENT"
        bench.tell("bits", f"{side}x{side}: latents of {len(runs)} budgets are {same} ", record)


def overlap_part(bench: Bench) -> None:
    """Target: 0.95 of the smaller of copying and computing is hidden."""
    for cap in bench.caps(bench.side)[1:]:
        found = bench.work("overlap", vram=cap, side=bench.side, steps=6, precision="fp8")
        text = f"{cap}: "
        if "hidden_share" in found:
            verdict = "" if found["hidden_share"] >= 0.95 else "MISSED "
            text += (
                f"compute {found['compute']:.3f} s, copies {found['copy']:.3f} s "
                f"({found['bytes_per_second'] / 1e9:.1f} GB/s), both {found['streamed']:.3f} s: "
                f"{found['hidden_share']:.3f} of the smaller is hidden {verdict}"
            )
        bench.tell("overlap", text, found)


def offload_part(bench: Bench) -> None:
    """The same bf16 weights, the same cap: the engine's ring against diffusers' groups; then both resident."""
    spec: dict[str, Any] = {"side": bench.side, "steps": 5, "precision": "bf16"}
    for cap in bench.caps(bench.side, "bf16"):
        ours = bench.work("paint", vram=cap, **spec)
        theirs = bench.work("diffusers", vram=cap, way="group", **spec)
        if "error" in theirs:  # pinning all of the weights may have been too much for this machine's RAM
            bench.tell("offload", f"diffusers' groups in {cap}: ", theirs)
            theirs = bench.work("diffusers", vram=cap, way="group, pinned as it goes", **spec)
        _compare(bench, f"bf16 in {cap}, engine and diffusers' groups", ours, theirs)
    weights = (bench.model / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    if 1.15 * weights + 2 * GIB > bench.total_bytes:
        bench.tell("offload", "resident: the card has no room for the transformer in bf16", {"weight_bytes": weights})
        return
    ours, theirs = bench.work("paint", vram="auto", **spec), bench.work("diffusers", way="resident", **spec)
    _compare(bench, "bf16, everything on the card, engine and diffusers", ours, theirs)


def _compare(bench: Bench, what: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    sides = [statistics.median(found["steps_seconds"][2:]) for found in (ours, theirs) if _timed(found)]
    record: dict[str, Any] = {"ours": ours, "theirs": theirs}
    text = f"{what}: "
    if len(sides) == 2:
        record["ratio"] = sides[0] / sides[1]
        text += f"{sides[0]:.3f} and {sides[1]:.3f} s a step, ratio {record['ratio']:.3f} "
    else:
        record["error"] = ours.get("error") or theirs.get("error") or "no steps were timed"
    bench.tell("offload", text, record)


def _timed(found: dict[str, Any]) -> bool:
    return "error" not in found and len(found.get("steps_seconds", ())) > 2


def decode_part(bench: Bench) -> None:
    """Target: measured <= predicted, so that the allowance is enough, and not much more."""
    found = bench.work("decode", sides=(128, 256) if bench.rehearse else DECODED_SIDES, vram="auto")
    rows = found.pop("rows", [])
    context = f"context {size(found.get('context_bytes', 0))}, by the driver {found.get('gauge')} "
    bench.tell("decode", context, found)
    for row in rows:
        side, tile = row["side"], row["tile"]
        text = f"{side}x{side} {f'tile {tile}' if tile else 'whole'}: predicted {size(row['predicted'])}, "
        if row["measured"]:
            row["of_predicted"] = row["measured"] / row["predicted"]
            text += f"measured {size(row['measured'])} = {row['of_predicted']:.3f} of it, "
        if "allocated" in row:
            text += f"{row['allocated'] / row['activation_bytes']:.2f} of the activations allocated, "
        bench.tell("decode", f"{text}{row['seconds']:.2f} s ", row)


PARTS: dict[str, Callable[[Bench], None]] = {
    "kernel": kernel_part,
    "budgets": budgets_part,
    "bits": bits_part,
    "overlap": overlap_part,
    "offload": offload_part,
    "decode": decode_part,
}


def measure(bench: Bench, parts: Sequence[str]) -> None:
    """Write the model, convert it, run the parts; a part that breaks off is told, and the next one runs."""
    configs = small_configs() if bench.rehearse else flux_configs()
    if bench.quick and not bench.rehearse:
        configs = flux_configs(double=4, single=8, t5_layers=4)
    nbytes = bf16_bytes(configs)
    start = time.perf_counter()
    written = (bench.model / "model_index.json").is_file()
    needed, free = 0 if written else int(1.55 * nbytes) + GIB, shutil.disk_usage(bench.model.parent).free
    if needed > free:
        sys.exit(
            f"{bench.model.parent} needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free; try --quick or --keep."
        )
    write_model(bench.model, configs)
    print(f"a random model of {nbytes / 1e9:.1f} GB in {bench.model} ({time.perf_counter() - start:.0f} s)", flush=True)
    prepared = bench.work("prepare")
    bench.tell("prepare", f"converted to FP8 in {prepared.get('seconds', 0):.0f} s ", prepared)
    for name in parts:
        try:
            PARTS[name](bench)
        except Exception as error:
            traceback.print_exc()
            bench.tell(name, "", {"error": f"{type(error).__name__}: {error}"})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="fewer blocks, budgets to match")
    parser.add_argument("--output", type=Path, default=Path("t2i-bench"), help="folder of gpu.jsonl and gpu.log")
    parser.add_argument("--keep", type=Path, help="folder for the model and its FP8 form, to be found again")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)  # a toy model on the CPU
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        run_work(options.work[0], json.loads(options.work[1]))
        return
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if not (options.rehearse or torch.cuda.is_available()):
        print("torch sees no CUDA card, so there is nothing to measure here.")
        return
    options.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        kept = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t2i-gpu-bench-")))
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("STATE", "CACHE", "CONFIG", "OUTPUT"):
            os.environ[f"TEXTTOIMAGETOOL_{name}_DIR"] = str(kept / name.lower())
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        kind = "small" if options.rehearse else "quick" if options.quick else "dev"
        device = "cpu" if options.rehearse else options.device
        bench = Bench(device, kept / kind, options.output, options.quick, options.rehearse)
        about = bench.work("machine")
        bench.total_bytes = about.get("total_bytes", 0)
        known = [f"{key} {about[key]}" for key in ("torch", "cuda", "card", "threads") if key in about]
        bench.tell("machine", f"{', '.join(known)}, {size(bench.total_bytes)} ", {**about, "quick": bench.quick})
        measure(bench, options.parts or list(PARTS))
    print(f"{bench.failures} failed; all figures are in {bench.output / 'gpu.jsonl'}, the errors in gpu.log")


if __name__ == "__main__":
    main()
