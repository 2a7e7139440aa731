"""What the memory manager promises, measured: plans, predictions, conversion, streaming, tables, simulation.

    python -m tests.bench.memory [--full] [--rounds 7] [PART ...]

Prints a line for each figure, with its target where it has one. Parts: plan, cost, ledger, decode, convert, overhead,
tables, simulate; all of them unless some are named. `--full` converts a checkpoint of 24 GB (40 GB of disk) instead of
one of 2 GB. Quote the figures from an idle machine.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import psutil
import torch
import transformers
from diffusers import FluxTransformer2DModel
from torch.profiler import ProfilerActivity, profile

from engine import Engine, PhaseFinished, Request, RequestError
from engine.events import Plan, Simulated
from engine.families.flux1 import FLUX1
from engine.families.flux1 import published as flux1
from engine.families.flux1.latents import image_position_ids
from engine.families.flux1.networks import NETWORKS
from engine.families.networks import Tokens
from engine.images.save import plan_output
from engine.library.catalog import DEMO_FOLDER, open_model
from engine.memory.components import Components
from engine.memory.ledger import counted
from engine.memory.loan import Loan
from engine.memory.planner import Planner
from engine.memory.target import resolve
from engine.precision import BF16, FP8, Precision
from engine.request import Resolved
from engine.sampling import modulation
from engine.sampling.decode import decode, parked_bytes
from engine.sampling.denoise import Prompt, denoise
from engine.text import size
from engine.weights.converted import converted_files
from engine.weights.forms import Form
from engine.weights.model import Model
from tests.bench.models import (
    GIB,
    MIB,
    Sampler,
    anonymous_bytes,
    flux_configs,
    medium_configs,
    write_component,
    write_model,
)
from tests.bench.speed import medians, timed
from tests.painting import TOKENS, latents_by_diffusers, open_pipeline

PLANNING = """
import json, time
start = time.perf_counter()
from engine import Engine, Request
from engine.memory import components, planner, target
from engine.sampling.preview import PreviewMap
from tests.bench.models import Sampler, anonymous_bytes
imports = time.perf_counter() - start
engine, request = Engine.open("flux.1-schnell", vram="12GiB", simulate=True), Request(**REQUEST)
with Sampler(anonymous_bytes) as memory:
    start = time.perf_counter()
    engine.plan(request)
    first = time.perf_counter() - start
start = time.perf_counter()
engine.plan(request)
again = time.perf_counter() - start
kept = anonymous_bytes() - memory.first
print(json.dumps(dict(imports=imports, first=first, again=again, growth=memory.growth, kept=kept, all=memory.peak)))
"""  # what is measured here imports what the engine does, and no more

PROMPTS = tuple(f"a large {colour} circle" for colour in ("red", "blue", "green", "yellow", "orange", "purple", "pink"))
FULL_SIZE = Request("anything", width=1024, height=1024, precision="fp8", seed=1)
CPU = torch.device("cpu")


def nothing() -> None:
    """No request to stop."""


def row(figure: str, value: str, target: str = "", *, ok: bool | None = None) -> None:
    """One line of the table; `ok` says whether the target is met."""
    verdict = "" if ok is None else "ok" if ok else "MISSED"
    print(f"{figure:<72} {value:>26}  {target:<18} {verdict}".rstrip(), flush=True)


def gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"


@contextmanager
def own_cache() -> Iterator[Path]:
    """An empty folder, which is the cache folder of this process and of those that it starts."""
    before = os.environ.get("TEXTTOIMAGETOOL_CACHE_DIR")
    with tempfile.TemporaryDirectory(prefix="t2i-bench-") as folder:
        os.environ["TEXTTOIMAGETOOL_CACHE_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["TEXTTOIMAGETOOL_CACHE_DIR"]
            else:
                os.environ["TEXTTOIMAGETOOL_CACHE_DIR"] = before


def in_a_fresh_process(*command: str) -> dict[str, Any]:
    """What a Python of its own prints last, as JSON."""
    done = subprocess.run([sys.executable, *command], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} {command[-1][:60]} ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# Plans.


def planned(model: str, budget: str) -> Plan:
    """A plan for a simulated card."""
    with Engine.open(model, vram=budget, simulate=True) as engine:
        return engine.plan(FULL_SIZE)


def plan_part(_: argparse.Namespace) -> None:
    for model in flux1.NAMES:
        plan = planned(model, "12GiB")
        streamed = plan.phases[1].streamed_bytes_per_step
        row(
            f"{model}, 1024x1024, fp8, 12 GiB: predicted peak, streamed a step",
            f"{gib(plan.peak_bytes)}, {size(streamed)}",
            "<= 10 GiB, 0",
            ok=plan.peak_bytes <= 10 * GIB and not streamed,
        )
        print("    " + ", ".join(f"{phase.name} {gib(phase.peak_bytes)}" for phase in plan.phases))
        for budget, most in (("8GiB", 2.5), ("6GiB", 4.6), ("4GiB", None)):
            figure, target = f"{model}, {budget}: peak, streamed a step", "within the budget"
            try:
                plan = planned(model, budget)
            except RequestError as error:
                row(figure, "refused", target, ok=False)
                print(f"    {error}")
                continue
            streamed = plan.phases[1].streamed_bytes_per_step
            row(
                figure,
                f"{gib(plan.peak_bytes)}, {gib(streamed)}",
                target if most is None else f"<= {most} GiB",
                ok=plan.peak_bytes <= plan.budget_bytes and (most is None or streamed <= most * GIB),
            )


def cost_part(_: argparse.Namespace) -> None:
    with own_cache():
        code = PLANNING.replace("REQUEST", repr(FULL_SIZE.to_dict()))
        cost, known = in_a_fresh_process("-c", code), in_a_fresh_process("-c", code)
    row("first plan at full size, nothing cached: seconds", f"{cost['first']:.2f}", "<= 10", ok=cost["first"] <= 10)
    row(
        "    its anonymous memory: highest growth, left afterwards",
        f"{cost['growth'] / 1e6:.0f} MB, {cost['kept'] / 1e6:.0f} MB",
        "<= 600 MB",
        ok=cost["growth"] <= 600e6,
    )
    row("    all anonymous memory then; seconds of the imports", f"{cost['all'] / 1e6:.0f} MB, {cost['imports']:.1f}")
    row("    first plan in a new process, measured before: seconds", f"{known['first']:.2f}")
    row("repeated plan: milliseconds", f"{1000 * cost['again']:.3f}", "< 5", ok=cost["again"] < 0.005)


# Predictions.


@contextmanager
def lent(components: Components, planner: Planner, name: str, request: Resolved, passes: int = 1) -> Iterator[Loan]:
    """A component with its real weights on the CPU, loaded."""
    placement = planner.plan(request).placements[name]
    with components.lend(name, request.form, placement, nothing, passes=passes) as loan:
        yield loan


def loaded(loan: Loan) -> Any:
    for _ in loan.load():
        pass
    return loan.module


def held_by_encoder(loan: Loan, model: Model) -> int:
    """What the real pass of a text encoder over its full length held beside weights, by the ledger."""
    limit, module = model.limit_of(loan.name), loaded(loan)
    ids = {model.family.tokenizer_of(loan.name).name: torch.zeros(1, limit, dtype=torch.int64)}
    tokens = Tokens(ids, limit, limit)
    table = [] if loan._opened.table is None else [loan._opened.table]
    with counted("cpu") as ledger:
        ledger.ignore([*module.parameters(), *table])
        NETWORKS.encode(loan.name, module, tokens, loan.embedded, loan.device)
        return ledger.peak_bytes


def held_by_loop(loan: Loan, model: Model, side: int, sigmas: torch.Tensor) -> int:
    """What the real step loop held beside weights and the tables, which stay on the host, by the ledger."""
    reader, size = loan.component.reader, model.size(Request("any", width=side, height=side).resolved(model.defaults))
    assert reader is not None
    latents = NETWORKS.noise(1, size)
    told = {name: torch.randn_like(each) for name, each in NETWORKS.unread(model.configs, size, loan.dtype).items()}
    for _ in loan.read():
        pass
    scale = None if model.defaults.guidance is None else [model.defaults.guidance] * (len(sigmas) - 1)
    where = NETWORKS, loan.device, loan.dtype, nothing
    (tables,) = modulation.compute(reader, loan.visit, [told], sigmas, scale, *where)
    module = loaded(loan)
    with counted("cpu") as ledger:
        ledger.ignore([*module.parameters(), tables.rows])
        for step in denoise(
            NETWORKS, module, reader, [Prompt(tables, told)], latents, sigmas, size, nothing, loan.device, loan.dtype
        ):
            assert bool(step.latents.isfinite().all())
        return ledger.peak_bytes


def allocated_by_decoder(loan: Loan, model: Model, side: int, tile: int) -> int:
    """What the real decoder held beside weights by torch's own allocator, scratch of convolutions included."""
    size, module = model.size(Request("any", width=side, height=side).resolved(model.defaults)), loaded(loan)
    tokens = torch.randn(size.shape)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        decode(NETWORKS, module, tokens, size, nothing, tile=tile, device=loan.device, dtype=loan.dtype)
    now = highest = 0
    assert profiler.profiler is not None
    memory = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest


def prepared(model: Model) -> tuple[Components, Planner]:
    components = Components(model, CPU)
    return components, Planner(components, resolve("cpu", None, None, simulated=False))


def ledger_part(options: argparse.Namespace) -> None:
    for model, precisions, side in (
        (open_model("demo"), ("fp32", "bf16", "fp8"), 128),
        (open_model(options.medium), ("bf16", "fp8"), 192),
    ):
        name = "demo" if model.name == "demo" else "300 M parameters"
        for precision in precisions:
            with own_cache():
                for part, predicted, measured in activations(model, precision, side):
                    error = predicted / measured - 1
                    row(
                        f"{name}, {precision}, {part}: predicted, counted in a run",
                        f"{predicted:,} {measured:,}",
                        "within 1 %",
                        ok=abs(error) <= 0.01,
                    )


def activations(model: Model, precision: str, side: int) -> Iterator[tuple[str, int, int]]:
    """Of each part that is no decoder: its name, the bytes predicted, and what a real run's ledger counted."""
    components, planner = prepared(model)
    known = planner.needs.activations
    defaults = model.defaults
    request = Request("any", width=side, height=side, precision=precision, steps=2, seed=1).resolved(defaults)
    try:
        for name in ("text_encoder", "text_encoder_2"):
            with lent(components, planner, name, request) as loan:
                yield name, known.encode(name, request.form), held_by_encoder(loan, model)
        sigmas = torch.linspace(1, 0, 3)
        with lent(components, planner, "transformer", request, passes=2) as loan:
            measured = held_by_loop(loan, model, side, sigmas)
        yield f"denoise {side}x{side}", known.denoise(request.form, model.size(request)), measured
    finally:
        components.clear()


def decode_part(options: argparse.Namespace) -> None:
    """The decoder against prediction and allowance; in bands, what waits on the host is the CPU's own memory, too."""
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    print(f"    this processor {'has' if native else 'has NO'} instructions for convolutions in bf16")
    medium = open_model(options.medium)
    demo = open_model("demo")
    for model, precision, sides in (
        (demo, "fp32", ((128, 0), (256, 0), (256, 64), (256, 128))),
        (demo, "bf16", ((128, 0), (256, 64))),
        (medium, "fp32", ((256, 0), (512, 0), (512, 128), (512, 256))),
        (medium, "bf16", ((128, 0), (192, 64))),
    ):
        components, planner = prepared(model)
        name = "demo" if model.name == "demo" else "FLUX.1's at a quarter"
        for side, tile in sides:
            request = Request("any", width=side, height=side, precision=precision, seed=1).resolved(model.defaults)
            with lent(components, planner, "vae", request) as loan:
                measured = allocated_by_decoder(loan, model, side, tile)
                parked = parked_bytes(loan.module, model.size(request), loan.dtype) if tile else 0
            predicted = planner.needs.activations.decode(request.form, model.size(request), tile)
            allowed = predicted + planner.needs.allowance("decode", predicted, loan.dtype) + parked
            row(
                f"decoder {name}, {precision}, {side}x{side}{f', tile {tile}' if tile else ''}: allocated, predicted",
                f"{measured / MIB:.1f} {predicted / MIB:.1f}+{(allowed - predicted) / MIB:.1f} MiB",
                "<= predicted",
                ok=measured <= allowed,
            )
            print(
                f"    {measured / allowed:.2f} of what is allowed, {measured / (predicted + parked):.2f} of activations"
            )
        components.clear()


# Conversion.


def cached_bytes(file: Path) -> int:
    """What the system's page cache holds of a file."""
    length, page = file.stat().st_size, mmap.PAGESIZE
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), length, prot=mmap.PROT_READ) as mapped:
        pages = (ctypes.c_ubyte * -(-length // page))()
        array = np.frombuffer(mapped, dtype=np.uint8)
        address = array.ctypes.data
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), pages)
        del array
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
        return page * sum(1 for state in bytes(pages) if state & 1)


def convert_once(file: str) -> dict[str, Any]:
    """Convert a transformer's file; run in a fresh process."""
    notices: list[str] = []
    start = time.perf_counter()
    with Sampler(anonymous_bytes) as memory:
        conversion = converted_files("transformer", [Path(file)], torch.bfloat16, notices, Form(FLUX1, FP8))
        try:
            while True:
                next(conversion)
        except StopIteration as end:
            converted = end.value
    if converted is None:
        raise RuntimeError("; ".join(notices))
    seconds = time.perf_counter() - start
    converted.close()
    return {"seconds": seconds, "peak": memory.peak, "growth": memory.growth, "before": memory.first}


def convert_part(options: argparse.Namespace) -> None:
    wanted = 40 * 10**9 if options.full else 4 * 10**9
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < wanted:
        row("conversion to FP8", "not measured", f"{wanted / 1e9:.0f} GB of disk")
        return
    configs = flux_configs() if options.full else flux_configs(double=1, single=5)
    with own_cache() as cache, tempfile.TemporaryDirectory(prefix="t2i-bench-") as folder:
        file = write_component(Path(folder), configs, "transformer")
        nbytes = file.stat().st_size
        found = in_a_fresh_process("-m", "tests.bench.memory", "--work", "convert", str(file))
        (made,) = (cache / "weights").glob("*.safetensors")
        left, left_made = cached_bytes(file), cached_bytes(made)
    what = f"conversion of {nbytes / 1e9:.1f} GB in bf16 to FP8"
    row(f"{what}: highest anonymous memory", f"{found['peak'] / 1e6:.0f} MB", "<= 2 GB", ok=found["peak"] <= 2e9)
    row("    of it before the conversion (Python, torch)", f"{found['before'] / 1e6:.0f} MB")
    row("    left in the page cache: of the source, of the FP8 file", f"{left / 1e6:.0f}, {left_made / 1e6:.0f} MB")
    row("    speed", f"{nbytes / 1e6 / found['seconds']:.0f} MB/s")


# Overhead.


def streaming_budget(share: float = 0.75) -> tuple[str, float, int]:
    """Of a card for the demo, on which this share of its blocks streams; the true share, and the decoder's tile."""
    for quarters in range(80, 4, -1):
        budget = f"{quarters / 4}MiB"
        with Engine.open("demo", device="cpu", vram=budget) as engine:
            plan = engine.plan(Request("any", seed=1))
            component = engine.runtime().components.component("transformer", Precision(engine.defaults.precision))
            blocks = sum(unit.nbytes for unit in component.of_role("block"))
            streamed = plan.phases[1].streamed_bytes_per_step / blocks
            if streamed >= share:
                return budget, streamed, plan.tile
    raise RuntimeError("no budget makes the demo stream")


def step_loop(budget: str, rounds: int, steps: int = 20) -> tuple[float, float, float]:
    """Seconds a step of the engine's loop and of the pipeline's, given the same prompt, and the ratio."""
    pipeline = open_pipeline(DEMO_FOLDER)
    embeds, pooled, _ = pipeline.encode_prompt(PROMPTS[0], None, max_sequence_length=TOKENS)
    pairs = []
    with Engine.open("demo", device="cpu", vram=budget) as engine, tempfile.TemporaryDirectory() as folder:
        destination = plan_output(Path(folder), 1)

        def ours(seed: int) -> float:
            events = list(engine.generate(Request(PROMPTS[0], steps=steps, seed=seed), destination))
            (seconds,) = (e.seconds for e in events if isinstance(e, PhaseFinished) and e.phase == "denoise")
            return seconds

        def theirs(seed: int) -> None:
            request = engine.resolve(Request(PROMPTS[0], steps=steps, seed=seed))
            latents_by_diffusers(pipeline, (embeds, pooled), request)

        for seed in range(rounds + 1):
            pair = alternately(lambda: ours(seed), lambda: timed(lambda: theirs(seed)), seed)  # noqa: B023
            pairs.append((pair[0] / steps, pair[1] / steps))
    return medians(pairs[1:])


def whole_picture(budget: str, rounds: int) -> tuple[float, float, float]:
    """Seconds from a new prompt to pixels, of the engine and of the pipeline, with models loaded, and the ratio."""
    pipeline = open_pipeline(DEMO_FOLDER)
    pairs = []
    with Engine.open("demo", device="cpu", vram=budget) as engine, tempfile.TemporaryDirectory() as folder:
        defaults = engine.defaults
        destination = plan_output(Path(folder), 1)

        def ours(prompt: str, seed: int) -> float:
            start = time.perf_counter()
            end = start
            for event in engine.generate(Request(prompt, seed=seed), destination):
                if isinstance(event, PhaseFinished) and event.phase == "decode":
                    end = time.perf_counter()
            return end - start

        def theirs(prompt: str, seed: int) -> None:
            pipeline(
                prompt,
                width=defaults.width,
                height=defaults.height,
                num_inference_steps=defaults.steps,
                guidance_scale=defaults.guidance,
                generator=torch.Generator("cpu").manual_seed(seed),
                max_sequence_length=TOKENS,
                output_type="np",
            )

        for number in range(rounds + 2):
            prompt = f"{PROMPTS[number % len(PROMPTS)]} above a small {'blue ' * (number // len(PROMPTS))}square"
            pairs.append(
                alternately(lambda: ours(prompt, number), lambda: timed(lambda: theirs(prompt, number)), number)  # noqa: B023
            )
    return medians(pairs[2:])


def alternately(ours: Callable[[], float], theirs: Callable[[], float], number: int) -> tuple[float, float]:
    """Both, one after the other; every second time the other way round."""
    if number % 2:
        second, first = theirs(), ours()
        return first, second
    return ours(), theirs()


def overhead_part(options: argparse.Namespace) -> None:
    budget, share, tile = streaming_budget()
    for place, vram in (("resident", "auto"), (f"{share:.0%} of the blocks streamed", budget)):
        for what, measure in (("a step", step_loop), ("a picture", whole_picture)):
            mine, other, ratio = measure(vram, options.rounds)
            # A card on which the demo's blocks stream is too small for its whole decoder: that costs, and may.
            tiled = measure is whole_picture and vram == budget and tile
            row(
                f"{what}, {place}{f', tiles of {tile}' if tiled else ''}: seconds, diffusers', ratio",
                f"{mine:.4f} {other:.4f} {ratio:.3f}",
                "" if tiled else "<= 1.05",
                ok=None if tiled else ratio <= 1.05,
            )


# Modulation tables.


def difference_of_latents(precision: str, steps: int = 4) -> float:
    """The largest between the engine's loop with its tables and diffusers' own forward in a plain Euler loop."""
    model = open_model("demo")
    width, height = model.defaults.width, model.defaults.height
    guidance = model.defaults.guidance
    components, planner = prepared(model)
    request = Request(PROMPTS[0], steps=steps, seed=1, precision=precision).resolved(model.defaults)
    sigmas = torch.linspace(1, 0, steps + 1)
    size = model.size(request)
    latents = NETWORKS.noise(1, size)
    embeds, pooled, _ = open_pipeline(DEMO_FOLDER).encode_prompt(PROMPTS[0], None, max_sequence_length=TOKENS)
    with lent(components, planner, "transformer", request, passes=steps) as loan:
        reader, dtype = loan.component.reader, loan.dtype
        assert reader is not None
        for _ in loan.read():
            pass
        told = None if guidance is None else [guidance] * steps
        read = {"pooled": pooled, "sequence": embeds.to(dtype)}
        (tables,) = modulation.compute(reader, loan.visit, [read], sigmas, told, NETWORKS, CPU, dtype, nothing)
        prompt = Prompt(tables, read)
        module = loaded(loan)
        for step in denoise(NETWORKS, module, reader, [prompt], latents, sigmas, size, nothing, CPU, dtype):
            ours = step.latents
    components.clear()
    transformer = FluxTransformer2DModel.from_pretrained(DEMO_FOLDER / "transformer").to(dtype).eval()
    theirs = latents
    with torch.no_grad():
        for sigma, following in pairwise(sigmas):
            velocity = transformer(
                hidden_states=theirs.to(dtype),
                encoder_hidden_states=embeds.to(dtype),
                pooled_projections=pooled.to(dtype),
                timestep=sigma.expand(1).to(dtype),
                guidance=None if guidance is None else torch.full((1,), guidance).to(dtype),
                img_ids=image_position_ids(width, height).to(dtype),
                txt_ids=torch.zeros(embeds.shape[1], 3, dtype=dtype),
                return_dict=False,
            )[0]
            theirs = theirs + (following - sigma) * velocity.float()
    return float((ours - theirs).abs().max())


def tables_part(_: argparse.Namespace) -> None:
    for model in flux1.NAMES:
        component = Components(open_model(model), torch.device("meta"), simulated=True).component("transformer", BF16)
        assert component.reader is not None
        off = sum(unit.nbytes for unit in component.of_role("modulation"))
        everything = sum(unit.nbytes for unit in component.units)
        row(
            f"{model}: weights off the card, of all; table bytes a step",
            f"{gib(off)}, {off / everything:.1%}; {2 * component.reader.total / 1e6:.2f} MB",
        )
    for precision in ("fp32", "bf16"):
        difference = difference_of_latents(precision)
        row(
            f"demo, {precision}: largest difference of latents from diffusers' forward",
            f"{difference:g}",
            "0",
            ok=difference == 0,
        )


# Simulation.


def simulate_once() -> dict[str, Any]:
    """A whole simulated picture of FLUX.1; run in a fresh process."""
    start = time.perf_counter()
    request = Request("anything", width=1024, height=1024, precision="fp8", seed=1)
    with Sampler(anonymous_bytes) as memory, Engine.open(flux1.SCHNELL, vram="12GiB", simulate=True) as engine:
        plan = engine.plan(request)
        planned_in = time.perf_counter() - start
        *_, last = engine.generate(request)
    if not isinstance(last, Simulated):
        raise RuntimeError(f"{last}")
    differences = {
        phase.name: last.peak_bytes_by_phase[phase.name] - phase.peak_bytes
        for phase in plan.phases
        if phase.name in last.peak_bytes_by_phase
    }
    return {
        "seconds": time.perf_counter() - start,
        "plan_seconds": planned_in,
        "rss": psutil.Process().memory_info().rss,
        "growth": memory.growth,
        "differences": differences,
        "peaks": {phase.name: phase.peak_bytes for phase in plan.phases},
    }


def simulate_part(_: argparse.Namespace) -> None:
    with own_cache():
        found = in_a_fresh_process("-m", "tests.bench.memory", "--work", "simulate")
    row(
        "simulated run, flux.1-schnell fp8, 12 GiB: seconds, planning among them",
        f"{found['seconds']:.1f}, {found['plan_seconds']:.1f}",
    )
    row("    RSS, growth of anonymous memory", f"{found['rss'] / 1e6:.0f} MB, {found['growth'] / 1e6:.0f} MB")
    phase, difference = max(found["differences"].items(), key=lambda item: abs(item[1]))
    row(
        "    simulated less planned peak, the largest difference",
        f"{difference / MIB:+.2f} MiB",
        f"in {phase}, {difference / found['peaks'][phase]:+.2%}",
    )


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "plan": plan_part,
    "cost": cost_part,
    "tables": tables_part,
    "simulate": simulate_part,
    "overhead": overhead_part,
    "ledger": ledger_part,
    "decode": decode_part,
    "convert": convert_part,
}
WORK: dict[str, Callable[..., dict[str, Any]]] = {"convert": convert_once, "simulate": simulate_once}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--full", action="store_true", help="convert 24 GB (40 GB of disk)")
    parser.add_argument("--rounds", type=int, default=7, help="of what is measured in turn")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work, *rest = options.work
        print(json.dumps(WORK[work](*rest)))
        return
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} processors, load {load}")
    with tempfile.TemporaryDirectory(prefix="t2i-bench-") as folder:
        os.environ["TEXTTOIMAGETOOL_STATE_DIR"] = str(Path(folder) / "state")
        os.environ["TEXTTOIMAGETOOL_CACHE_DIR"] = str(Path(folder) / "cache")
        parts = options.parts or list(PARTS)
        options.medium = Path(folder) / "medium"
        if {"ledger", "decode"} & set(parts):
            write_model(options.medium, medium_configs())
        for part in parts:
            start = time.perf_counter()
            PARTS[part](options)
            print(f"    ({part}: {time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
