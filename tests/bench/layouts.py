"""What each layout costs to read: `python -m tests.bench.layouts` prints the table of its page (README.md).

A random transformer of FLUX.1's own width with few blocks is written in each layout, then read in a fresh process: by
`load` as diffusers' model in bf16, and by the engine for `--precision fp8`. The figure is the highest
anonymous memory of the process beyond what it had before and what it keeps; the largest tensor is printed beside it.
`--peer` also reads the BF16 file by diffusers' `from_single_file`, which knows this width alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

from engine.families.flux1 import published as flux1
from engine.precision import FP8
from tests import checkpoints
from tests.bench.models import Sampler, anonymous_bytes
from tests.checkpoints import State, bfl_state, prefixed

MIB = 2**20
KEPT: list[Any] = []


def random_transformer(layers: int, single_layers: int) -> FluxTransformer2DModel:
    """FLUX.1 [schnell]'s configuration but for the number of blocks, in bf16."""
    torch.manual_seed(0)
    config = flux1.transformer(guided=False) | {"num_layers": layers, "num_single_layers": single_layers}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return FluxTransformer2DModel.from_config(config)
    finally:
        torch.set_default_dtype(before)


def write_all(folder: Path, transformer: FluxTransformer2DModel) -> dict[str, Path]:
    """The transformer in every layout; the path of each."""
    state = bfl_state(transformer)
    written: dict[str, Path] = {}

    def save(name: str, state: State, file: str) -> None:
        save_file(state, folder / file)
        written[name] = folder / file

    transformer.save_pretrained(folder / "diffusers", max_shard_size="500MB")
    written["diffusers, sharded, bf16"] = folder / "diffusers"
    save("BFL, bf16", state, "bfl.safetensors")
    save("BFL, fp8 e4m3", checkpoints.plain_fp8(state)[0], "fp8.safetensors")
    save("BFL, fp8 e5m2", checkpoints.plain_fp8(state, torch.float8_e5m2)[0], "e5m2.safetensors")
    scaled, meant = checkpoints.scaled_fp8(state)
    del meant
    save("BFL, fp8 scaled", scaled, "scaled.safetensors")
    save("all in one, fp8 scaled", prefixed("model.diffusion_model.", scaled), "all.safetensors")
    checkpoints.save_gguf(state, folder / "q8.gguf", "Q8_0")
    written["GGUF, Q8_0"] = folder / "q8.gguf"
    checkpoints.save_gguf(state, folder / "q4.gguf", "Q4_K")
    written["GGUF, Q4_K"] = folder / "q4.gguf"
    return written


def measured(work: Callable[[], int]) -> dict[str, float]:
    """`work` returns the bytes that it keeps: seconds, and the highest anonymous memory beyond those in MiB."""
    gc.collect()
    before, start = anonymous_bytes(), time.perf_counter()
    with Sampler(anonymous_bytes) as memory:
        kept = work()
    return {"seconds": time.perf_counter() - start, "beyond": ((memory.peak or 0) - before - kept) / MIB, "kept": kept}


def as_diffusers(path: Path) -> dict[str, float]:
    from engine.weights.loading import load

    return measured(lambda: kept_bytes(load(path, "transformer", torch.bfloat16)))


def kept_bytes(module: FluxTransformer2DModel) -> int:
    """Of a module that is still there when this returns."""
    KEPT.append(module)
    return sum(parameter.nbytes for parameter in module.parameters())


def for_fp8(path: Path) -> dict[str, float]:
    """All units of the transformer, as a plan with enough RAM keeps them."""
    from engine.families.flux1 import FLUX1
    from engine.library.catalog import published
    from engine.memory.components import Components
    from engine.memory.placement import Placement
    from engine.weights.model import component_in, described

    part = component_in(path, "transformer")
    configs = published(flux1.SCHNELL).configs | {"transformer": part.config}
    sizes = dict.fromkeys(configs, 0)
    model = described(FLUX1, "x", path, configs, {"transformer": part.files}, sizes=sizes, found={"transformer": part})
    components = Components(model, torch.device("cpu"))
    units = components.component("transformer", FP8).units
    placement = Placement(kept=frozenset(unit.name for unit in units))

    def work() -> int:
        for _ in components.keep("transformer", FP8, placement, lambda: None):
            pass
        return sum(unit.nbytes for unit in units)

    with tempfile.TemporaryDirectory(prefix="t2i-bench-") as cache:
        os.environ["TEXTTOIMAGETOOL_CACHE_DIR"] = cache
        return measured(work)


def by_diffusers(path: Path) -> dict[str, float]:
    options = {"config": str(path.parent / "diffusers"), "torch_dtype": torch.bfloat16, "local_files_only": True}
    return measured(lambda: kept_bytes(FluxTransformer2DModel.from_single_file(path, **options)))


WAYS: dict[str, Callable[[Path], dict[str, float]]] = {
    "bf16": as_diffusers,
    "fp8": for_fp8,
    "peer": by_diffusers,
}


def in_fresh_process(way: str, path: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.layouts", "--way", way, "--file", str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def size_on_disk(path: Path) -> int:
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1, help="double blocks")
    parser.add_argument("--single-layers", type=int, default=2)
    parser.add_argument("--peer", action="store_true", help="read the BF16 file by diffusers, too")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(WAYS[options.way](options.file)))
        return
    with tempfile.TemporaryDirectory(prefix="t2i-bench-") as name:
        transformer = random_transformer(options.layers, options.single_layers)
        largest = max(parameter.nbytes for parameter in transformer.parameters())
        print(f"{sum(p.numel() for p in transformer.parameters()) / 1e6:.0f} million parameters; the largest tensor "
              f"has {largest / MIB:.0f} MiB in bf16", flush=True)  # fmt: skip
        written = write_all(Path(name), transformer)
        del transformer
        gc.collect()
        print(f"{'layout':<26}{'on disk':>10}   {'to bf16: RAM beyond, speed':>28}   {'to fp8: RAM beyond, speed':>28}")
        for layout, path in written.items():
            size = size_on_disk(path)
            cells = []
            for way in ("bf16", "fp8"):
                result = in_fresh_process(way, path)
                cells.append(f"{result['beyond']:>7.0f} MiB {size / result['seconds'] / 1e6:>10.0f} MB/s")
            print(f"{layout:<26}{size / MIB:>6.0f} MiB   {cells[0]:>28}   {cells[1]:>28}", flush=True)
        if options.peer:
            result = in_fresh_process("peer", written["BFL, bf16"])
            print(f"diffusers' from_single_file, BFL, bf16: {result['beyond']:.0f} MiB, "
                  f"{size_on_disk(written['BFL, bf16']) / result['seconds'] / 1e6:.0f} MB/s")  # fmt: skip


if __name__ == "__main__":
    main()
