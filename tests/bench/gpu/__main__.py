"""The memory manager and the kernels on a real card, in one command: random weights of FLUX.1-dev's shape, no download.

    python -m tests.bench.gpu [--minutes N] [--output DIR] [--keep DIR] [PART ...]

It fits a short loan of a card: 8 minutes with 16 cores and a disk of 1.3 GB/s. Parts, the most important first:

    memory    12, 8, 6 and 4 GiB in int8 and fp8 at 1024x1024, 12 GiB at 1536x1536: the process's peak by the driver
              against the budget, each phase against its prediction, allocations that were refused or tried again
    bits      whether the latents of these runs are the same at every budget
    step      the products of a step one by one, and a step beside the sum of its products and its attention
    next      seconds of a second picture with a new prompt
    overlap   how much of the copying a streamed step hides behind its compute, or the other way round
    decode    the decoder's peak at 512 to 2048 pixels, whole and in bands, against its prediction
    transfer  from file to card beside plain reading of the file, from the disk and from the page cache
    host      the host's side of a step, beside diffusers'
    rivals    bf16 beside diffusers: all on the card, and in 12 GiB against group offloading with streams

With fewer `--minutes`, parts are left out from the end on. Each result is told as soon as it is there, for people here
and as a JSON line in DIR/gpu.jsonl; a part that fails or runs out of its time says so, and the next one starts. Weights
are written as the engine keeps them (28 GB, then 28 in bf16 in the place of 14; `--keep` names a folder for the next
time), T5 with 6 of its 24 layers. The engine needs diffusers, also where a machine has torch, transformers and Triton:
`pip install diffusers accelerate typer rich platformdirs psutil nvidia-ml-py` says what such a machine lacks. Quote
figures from a machine whose card does nothing else.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDED = "torch diffusers transformers tokenizers accelerate safetensors typer rich platformdirs psutil".split()


def machine(spec: dict[str, Any]) -> dict[str, Any]:
    """What a figure is worth nothing without."""
    import torch

    about: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    if spec["device"].startswith("cuda"):
        free, total = torch.cuda.mem_get_info(spec["device"])
        about |= {"card": torch.cuda.get_device_name(spec["device"]), "total_bytes": total, "free_bytes": free}
        about["cuda"] = torch.version.cuda
    return about


def host(spec: dict[str, Any]) -> dict[str, Any]:
    """The host's side of a step."""
    from tests.bench.host import measure

    return {"records": list(measure(spec["steps"]))}


def works() -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    """What the worker can measure."""
    from tests.bench.gpu.decoding import decode_peaks
    from tests.bench.gpu.pictures import next_picture, overlap, paint
    from tests.bench.gpu.products import products, step
    from tests.bench.gpu.rivals import diffusers_steps
    from tests.bench.gpu.transfer import file_to_card

    return {
        "machine": machine,
        "paint": paint,
        "next_picture": next_picture,
        "overlap": overlap,
        "products": products,
        "step": step,
        "decode": decode_peaks,
        "transfer": file_to_card,
        "host": host,
        "diffusers": diffusers_steps,
    }


def run_worker() -> None:
    """Measure what is asked for, a line at a time."""
    import torch

    from engine.memory.enforce import card_is_full
    from tests.bench.gpu.bench import RESULT

    known = works()
    for line in sys.stdin:
        name, spec = json.loads(line)
        try:
            result = known[name](spec)
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            result["out_of_memory"] = int(card_is_full(error))
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        print(RESULT + json.dumps(result), flush=True)


def run(options: argparse.Namespace, names: list[str]) -> int:
    """All parts that fit; returns how many things failed."""
    import torch

    from tests.bench.gpu.bench import Bench, OutOfTimeError
    from tests.bench.gpu.parts import PARTS, chosen

    if not (options.rehearse or torch.cuda.is_available()):
        print("torch sees no CUDA card, so there is nothing to measure here.")
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    with ExitStack() as stack:
        kept = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t2i-gpu-bench-")))
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("STATE", "CACHE", "CONFIG", "OUTPUT"):
            os.environ[f"TEXTTOIMAGETOOL_{name}_DIR"] = str(kept / name.lower())
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if options.rehearse:
            os.environ["OMP_NUM_THREADS"] = "1"  # more would only wait for each other
        device = "cpu" if options.rehearse else options.device
        bench = Bench(device, kept, options.output, options.rehearse, end)
        stack.callback(bench.end_worker)
        about = bench.work("machine")
        bench.total_bytes = about.get("total_bytes", bench.total_bytes)
        known = [f"{key} {about[key]}" for key in ("torch", "cuda", "card", "cores") if key in about]
        bench.tell("machine", f"{', '.join(known)} ", about)
        taken, left_out = chosen(names, 60 * options.minutes)
        if left_out:
            bench.tell(
                "plan", f"left out of {options.minutes:g} minutes: {', '.join(left_out)} ", {"left_out": left_out}
            )
        for name in taken:
            start = time.monotonic()
            bench.deadline = min(end, start + 1.5 * PARTS[name].seconds) if not options.rehearse else end
            try:
                PARTS[name].run(bench)
            except OutOfTimeError as error:
                bench.tell(name, "", {"error": str(error)})
            except Exception as error:
                traceback.print_exc()
                bench.tell(name, "", {"error": f"{type(error).__name__}: {error}"})
            seconds = time.monotonic() - start
            bench.tell(name, f"took {seconds:.0f} s ", {"seconds": seconds})
    print(f"{bench.failures} failed; all figures are in {bench.output / 'gpu.jsonl'}, the errors in gpu.log")
    return bench.failures


def main(arguments: Sequence[str] | None = None) -> int:
    lacking = [name for name in NEEDED if find_spec(name) is None]
    if lacking:
        print(f"The engine needs what is not installed here: pip install {' '.join(lacking)}.")
        return 1
    from tests.bench.gpu.parts import PARTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=8.0, help="how long it may take in all (8)")
    parser.add_argument("--output", type=Path, default=Path("t2i-bench"), help="folder of gpu.jsonl and gpu.log")
    parser.add_argument("--keep", type=Path, help="folder for the models, to be found again")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--rehearse", action="store_true", help="all parts with a toy model on the CPU")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if not 0 < options.minutes <= 24 * 60:
        parser.error("--minutes is a number from 0 to 1440")
    return run(options, options.parts or list(PARTS))


if __name__ == "__main__":
    if sys.argv[1:] == ["--work"]:
        run_worker()
    else:
        sys.exit(1 if main() else 0)
