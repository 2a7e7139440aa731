"""What a step costs the host: Python and the dispatch of operations, with the device's work left out.

    python -m tests.bench.host

FLUX.1's full number of blocks at widths that compute next to nothing, on one thread of a CPU. Products, attention, RMS
norms and reductions, which are a kernel each on a card, only allocate their output; Triton launches to nowhere. Told
are CPU microseconds of a step, the smallest of many, and how many operations it dispatches, beside diffusers' own
transformer in the same run. A card adds the launches themselves, 3 to 6 microseconds for each operation.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine import Engine
from engine.families.flux1.latents import image_position_ids
from engine.families.flux1.networks import NETWORKS
from engine.memory.components import Components
from engine.memory.placement import Placement
from engine.precision import BF16, FP8, INT8, Precision
from engine.sampling import modulation
from engine.sampling.denoise import Prompt, denoise
from engine.weights.loading import empty_component
from engine.weights.model import Model
from tests.bench.models import Configs, flux_configs, small_configs, write_model
from tests.tiny import flux_size

CPU = torch.device("cpu")
SIDE, WORDS = 64, 32  # pixels of the picture, tokens of the prompt
VIEWS = ("view", "slice", "select", "split", "expand", "unsqueeze", "squeeze", "permute", "transpose", "unbind", "t.")
CASES = (  # precision, kernel, whether all blocks are streamed
    (BF16, None, False),
    (BF16, None, True),
    (FP8, "scaled_mm", False),
    (FP8, "scaled_mm", True),
    (INT8, "triton", False),
    (INT8, "triton", True),
)


def thin_configs() -> Configs:
    """FLUX.1's number of blocks, 64 channels wide."""
    configs, small = flux_configs(t5_layers=1), small_configs()
    heads = {"num_attention_heads": 2}
    configs["transformer"] |= {**small["transformer"], "num_layers": 19, "num_single_layers": 38, **heads}
    return configs | {part: small[part] for part in ("text_encoder", "text_encoder_2", "vae")}


class Operations(TorchDispatchMode):
    """Counts what is dispatched while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(function).removeprefix("aten.")] += 1
        return function(*args, **(kwargs or {}))

    @property
    def kernels(self) -> int:
        """Those that a card would run."""
        passing = (*VIEWS, "new_empty", "empty", "alias", "detach", "_unsafe_view")
        return sum(count for name, count in self.counts.items() if not name.startswith(passing))


@contextmanager
def no_device_work() -> Iterator[None]:
    """While open, what a card would compute for long only allocates its output."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return x.new_empty((*x.shape[:-1], len(weight)))

    def scaled_mm(x: Tensor, weight: Tensor, out_dtype: torch.dtype | None = None, **_: object) -> Tensor:
        return x.new_empty((len(x), weight.shape[1]), dtype=out_dtype)

    def attention(query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
        return torch.empty_like(query)

    def rms_norm(x: Tensor, *_: object) -> Tensor:
        return torch.empty_like(x)

    def vector_norm(x: Tensor, ord: float = 2, dim: int = -1, keepdim: bool = False) -> Tensor:
        return x.new_empty((*x.shape[:-1], 1) if keepdim else x.shape[:-1])

    with ExitStack() as stack:
        for module, name, stand_in in (
            (F, "linear", linear),
            (torch, "_scaled_mm", scaled_mm),
            (F, "scaled_dot_product_attention", attention),
            (F, "rms_norm", rms_norm),
            (torch, "rms_norm", rms_norm),
            (torch.linalg, "vector_norm", vector_norm),
        ):
            stack.enter_context(patch.object(module, name, stand_in))
        yield


def engine_step(model: Model, precision: Precision, kernel: str | None, streamed: bool, steps: int) -> dict[str, Any]:
    """Of the engine's loop: CPU microseconds of a step, operations, and those that are kernels."""
    with ExitStack() as stack:
        if kernel == "triton":
            from tests.launches import Driver, no_card

            stack.enter_context(no_card(Driver(launches=None)))
        components = Components(model, CPU)
        units = components.component("transformer", precision).units
        crossing = frozenset(unit.name for unit in units if unit.role == "block" and streamed)
        kept = frozenset(unit.name for unit in units)
        placement = Placement(crossing, slots=3 if streamed else 0, kept=kept, in_place=not streamed)
        loan = stack.enter_context(
            components.lend("transformer", precision, placement, nothing, passes=4 * steps, kernel=kernel)
        )
        for _ in loan.load():
            pass
        reader = loan.component.reader
        assert reader is not None
        prompt = Prompt(
            modulation.Tables(torch.zeros(steps, reader.total, dtype=reader.dtype)),
            {"sequence": torch.zeros(1, WORDS, model.configs["transformer"]["joint_attention_dim"])},
        )
        size, sigmas = flux_size(SIDE, SIDE, 16, WORDS), torch.linspace(1, 0, steps + 1)
        latents = NETWORKS.noise(1, size)

        def loop(count: int) -> None:
            given = ([prompt], latents, sigmas[: count + 1], size, nothing, CPU, loan.dtype)
            for _ in denoise(NETWORKS, loan.module, reader, *given):
                pass

        # There are no numbers that could be finite.
        stack.enter_context(patch("engine.sampling.denoise._check_finite", lambda watch, *_: watch and watch.forget()))
        stack.enter_context(no_device_work())
        return measured(loop, steps)


def diffusers_step(model: Model, steps: int) -> dict[str, Any]:
    """The same of diffusers' own transformer in bf16."""
    transformer: Any = empty_component(model, "transformer").to_empty(device="cpu").bfloat16().eval()
    config = model.configs["transformer"]
    given = {
        "hidden_states": torch.zeros(1, (SIDE // 16) ** 2, config["in_channels"]),
        "encoder_hidden_states": torch.zeros(1, WORDS, config["joint_attention_dim"]),
        "pooled_projections": torch.zeros(1, config["pooled_projection_dim"]),
        "timestep": torch.zeros(1),
        "guidance": torch.zeros(1),
        "img_ids": image_position_ids(SIDE, SIDE),
        "txt_ids": torch.zeros(WORDS, 3),
    }
    given = {name: value.bfloat16() for name, value in given.items()}

    def loop(count: int) -> None:
        for _ in range(count):
            transformer(**given, return_dict=False)

    with torch.no_grad(), no_device_work():
        return measured(loop, steps)


def measured(loop: Callable[[int], None], steps: int) -> dict[str, Any]:
    """What one step of `loop` costs; it runs 3 * steps + 1 of them."""
    loop(steps)
    best = math.inf
    for _ in range(2):
        begun = time.thread_time()
        loop(steps)
        best = min(best, (time.thread_time() - begun) / steps)
    with Operations() as operations:
        loop(1)
    return {
        "microseconds": round(1e6 * best),
        "operations": sum(operations.counts.values()),
        "kernels": operations.kernels,
    }


def nothing() -> None:
    """No request to stop."""


def measure(steps: int = 20) -> Iterator[dict[str, Any]]:
    """One record for diffusers, then one for each case of the engine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as folder:
            write_model(Path(folder) / "thin", thin_configs())
            with Engine.open(Path(folder) / "thin", device="cpu") as engine:
                model = engine.source
                theirs = diffusers_step(model, steps)
                yield {"who": "diffusers", "precision": "bf16", **theirs}
                for precision, kernel, streamed in CASES:
                    about = {"who": "engine", "precision": str(precision), "kernel": kernel, "streamed": streamed}
                    try:
                        found = engine_step(model, precision, kernel, streamed, steps)
                    except ImportError as error:  # no Triton
                        yield {**about, "error": str(error)}
                        continue
                    yield {**about, **found, "of_diffusers": found["microseconds"] / theirs["microseconds"]}
    finally:
        torch.set_num_threads(threads)


def told(found: dict[str, Any]) -> str:
    """A record in words."""
    name = " ".join(
        [found["who"], found["precision"], *(["streamed"] if found.get("streamed") else []), found.get("kernel") or ""]
    ).strip()
    if "error" in found:
        return f"{name}: "
    ratio = f", {found['of_diffusers']:.2f} of diffusers in bf16" if "of_diffusers" in found else ""
    return (
        f"{name}: {found['microseconds'] / 1000:.1f} ms of the host a step, "
        f"{found['operations']} operations, {found['kernels']} kernels{ratio}"
    )


if __name__ == "__main__":
    for record in measure():
        print(told(record))
        print(json.dumps(record))
