"""Activations predicted: the engine's own phases run on torch's meta device, with the model's real configuration and
the request's real size, under a ledger of live storages. No weights, no card, about a second at FLUX.1's size.

What was measured is kept in memory and in the cache folder, by everything that it depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import engine
from engine import encode, flow, modulation
from engine.decode import decode
from engine.denoise import Prompt, denoise
from engine.files import write_whole
from engine.folders import cache_dir
from engine.memory.components import Components, Loan, Placement
from engine.memory.ledger import counted
from engine.memory.units import precision_of
from engine.models.model import Model
from engine.true_cfg import TrueGuidance
from engine.untrusted import parse_json, read_file

META = torch.device("meta")
STEPS = 2  # what a step leaves behind is there from the second on; more of them change nothing
BLOCKS = 2  # of each kind that are measured
MAX_FILES, MAX_FILE_BYTES = 500, 1024
EIGHT_BITS = ("fp8", "int8")
FORMAT = 3  # to be raised when the same phases would be measured differently


class Activations:
    """The highest sum of live tensors that are no weights, for each phase of a model."""

    def __init__(self, components: Components) -> None:
        """Of this model, which must be a simulated one."""
        self.model = components.model
        self._known: dict[str, int] = {}
        self._components = components

    def encode(self, name: str, precision: str, kernel: str | None = None) -> int:
        """Of CLIP (text_encoder), T5 (text_encoder_2) or DistillT5, for a prompt's full length.

        `kernel`: of 8-bit layers.
        """
        limit = self.model.clip_limit if name == "text_encoder" else self.model.token_limit
        return self._get(name, precision, [limit], lambda loan: run_encoder(loan, limit), kernel)

    def denoise(
        self, precision: str, width: int, height: int, kernel: str | None = None, *, prompts: int = 1, batch: int = 1
    ) -> int:
        """Of the step loop; with a negative prompt there are two `prompts`, which may be one `batch`."""
        sizes = [self.model.token_limit, width, height, prompts, batch]
        return self._get(
            "transformer",
            precision,
            sizes,
            lambda loan: run_loop(loan, self.model, width, height, prompts=prompts, batch=batch),
            kernel,
        )

    def decode(self, precision: str, width: int, height: int, tile: int) -> int:
        """Of the decoder: whole (tile 0), or in tiles of this many pixels a side."""
        sizes = [width, height, tile]
        return self._get("vae", precision, sizes, lambda loan: run_decoder(loan, self.model, width, height, tile))

    def _get(
        self, name: str, precision: str, sizes: list[int], run: Callable[[Loan], object], kernel: str | None = None
    ) -> int:
        precision = precision_of(name, precision)
        kernel = kernel if kernel is not None and precision.startswith(EIGHT_BITS) else "dequantize"
        config = self.model.configs[name]
        key = hashlib.sha256(
            json.dumps([FORMAT, _versions(), name, config, precision, sizes, kernel]).encode()
        ).hexdigest()[:32]
        if key not in self._known:
            file = cache_dir() / "plans" / f"{key}.json"
            found = _read(file)
            if found is None:
                found = self._run(name, precision, run, kernel)
                _write(file, found)
            self._known[key] = found
        return self._known[key]

    def _run(self, name: str, precision: str, run: Callable[[Loan], object], kernel: str) -> int:
        components = self._components
        component = components.component(name, precision)  # before the ledger, which would count what it is made with
        with (
            _shortened(component.module, component.cut.repeats),
            counted("meta") as ledger,
            components.lend(name, precision, Placement(slots=2), lambda: None, kernel=kernel) as loan,
        ):
            for _ in loan.load():
                pass
            ledger.restart()
            run(loan)
            return ledger.peak_bytes - components.device.placed_bytes


@contextmanager
def _shortened(module: Any, repeats: Sequence[str]) -> Iterator[None]:
    """While open, a network of blocks has only the first few of each kind: their peak is the peak of all.

    The blocks of a kind are alike and leave behind what came in. Simulated runs have all of them.
    """
    whole = {path: module.get_submodule(path) for path in repeats}
    for path, blocks in whole.items():
        module.set_submodule(path, blocks[:BLOCKS])
    try:
        yield
    finally:
        for path, blocks in whole.items():
            module.set_submodule(path, blocks)


def run_encoder(loan: Loan, tokens: int) -> torch.Tensor:
    """A text encoder's pass over `tokens` ids on the meta device."""
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    if loan.name == "text_encoder":
        return encode.pooled_embedding(loan.module, ids, lambda: None, loan.device)
    return encode.sequence_embedding(loan.module, loan.embedded(ids), lambda: None, loan.device)


def run_loop(
    loan: Loan, model: Model, width: int, height: int, steps: int = STEPS, *, prompts: int = 1, batch: int = 1
) -> None:
    """The sampler loop on the meta device; with a negative prompt there are two `prompts`."""
    reader = loan.component.reader
    assert reader is not None
    channels = int(model.configs["vae"]["latent_channels"])
    width_of_text = int(model.configs["transformer"]["joint_attention_dim"])
    latents = torch.empty(flow.tokens_shape(channels, width, height))
    sequence = torch.empty(1, model.token_limit, width_of_text, dtype=loan.dtype)
    prompt = Prompt(modulation.Tables(torch.empty(steps, reader.total, dtype=reader.dtype)), sequence)
    sigmas = torch.linspace(1, 0, steps + 1)
    for _ in denoise(
        loan.module,
        reader,
        prompt,
        latents,
        sigmas,
        width,
        height,
        lambda: None,
        loan.device,
        loan.dtype,
        prompt if prompts > 1 else None,
        TrueGuidance([2.0] * steps, "apg") if prompts > 1 else None,
        batched=batch > 1,
    ):
        pass


def run_decoder(loan: Loan, model: Model, width: int, height: int, tile: int) -> None:
    """The decoder on the meta device."""
    channels = int(model.configs["vae"]["latent_channels"])
    tokens = torch.empty(flow.tokens_shape(channels, width, height), device=loan.device)
    decode(loan.module, tokens, width, height, lambda: None, tile=tile, device=loan.device, dtype=loan.dtype)


def _versions() -> list[str]:
    return [engine.__version__, *(version(name) for name in ("torch", "diffusers", "transformers"))]


def _read(file: Path) -> int | None:
    try:
        value: Any = None if file.is_symlink() else parse_json(read_file(file, MAX_FILE_BYTES))["activation_bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if type(value) is int and 0 <= value < 2**50 else None


def _write(file: Path, activation_bytes: int) -> None:
    with suppress(OSError):
        old = sorted(file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in old[: max(0, len(old) - MAX_FILES)]:
            path.unlink(missing_ok=True)
        write_whole(file, json.dumps({"activation_bytes": activation_bytes}).encode())
