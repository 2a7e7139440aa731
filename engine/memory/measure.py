"""Activations predicted: the engine's own phases run on torch's meta device, with the model's real configuration and
the request's real size, under a ledger of live storages. No weights, no card, about a second at FLUX.1's size.

What was measured is kept in memory and in the cache folder, by everything that it depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from engine.families.facts import Size
from engine.families.networks import Tokens
from engine.files import write_whole
from engine.folders import cache_dir
from engine.memory.components import Components
from engine.memory.ledger import counted
from engine.memory.loan import Loan
from engine.memory.placement import Placement
from engine.memory.units import Component, build, precision_of
from engine.precision import Precision
from engine.sampling import modulation
from engine.sampling.decode import decode
from engine.sampling.denoise import Prompt, denoise
from engine.sampling.true_cfg import TrueGuidance
from engine.untrusted import parse_json, read_file
from engine.version import engine_version
from engine.weights.model import Model

META = torch.device("meta")
STEPS = 2  # what a step leaves behind is there from the second on; more of them change nothing
BLOCKS = 2  # of each kind that are measured
MAX_FILES, MAX_FILE_BYTES = 500, 1024
FORMAT = 3  # to be raised when the same phases would be measured differently


class Activations:
    """The highest sum of live tensors that are no weights, for each phase of a model."""

    def __init__(self, components: Components) -> None:
        """Of this model, which must be a simulated one."""
        self.model = components.model
        self._known: dict[str, int] = {}
        self._components = components
        self._built: dict[tuple[str, Precision], Component] = {}

    def component(self, name: str, precision: Precision) -> Component:
        """A component as plans look at it, in any precision, without weights: 1 to 5 MB of FLUX.1, built once."""
        key = name, precision_of(self.model.family.part(name), precision)
        if key not in self._built:
            self._built[key] = build(self.model, *key)
        return self._built[key]

    def encode(self, name: str, precision: Precision, kernel: str | None = None) -> int:
        """Of a text encoder, for a prompt's full length. `kernel`: of 8-bit layers."""
        sizes = [self.model.limit_of(name)]
        return self._get(name, precision, sizes, lambda loan: run_encoder(loan, self.model), kernel)

    def denoise(
        self, precision: Precision, size: Size, kernel: str | None = None, *, prompts: int = 1, batch: int = 1
    ) -> int:
        """Of the step loop; with a negative prompt there are two `prompts`, which may be one `batch`."""
        sizes = [size.text_tokens, size.width, size.height, prompts, batch]
        return self._get(
            self.model.family.core.name,
            precision,
            sizes,
            lambda loan: run_loop(loan, self.model, size, prompts=prompts, batch=batch),
            kernel,
        )

    def decode(self, precision: Precision, size: Size, tile: int) -> int:
        """Of the decoder: whole (tile 0), or in tiles of this many pixels a side."""
        sizes, name = [size.width, size.height, tile], self.model.family.decoder.name
        return self._get(name, precision, sizes, lambda loan: run_decoder(loan, self.model, size, tile))

    def _get(
        self,
        name: str,
        precision: Precision,
        sizes: list[int],
        run: Callable[[Loan], object],
        kernel: str | None = None,
    ) -> int:
        precision = precision_of(self.model.family.part(name), precision)
        kernel = kernel if kernel is not None and precision.is_8_bits else "dequantize"
        part, config = self.model.family.key_of(name), self.model.configs[name]
        key = hashlib.sha256(
            json.dumps([FORMAT, _versions(), part, config, str(precision), sizes, kernel]).encode()
        ).hexdigest()[:32]
        if key not in self._known:
            file = cache_dir() / "plans" / f"{key}.json"
            found = _read(file)
            if found is None:
                found = self._run(name, precision, run, kernel)
                _write(file, found)
            self._known[key] = found
        return self._known[key]

    def _run(self, name: str, precision: Precision, run: Callable[[Loan], object], kernel: str) -> int:
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


def run_encoder(loan: Loan, model: Model) -> None:
    """A text encoder's pass over a prompt's full length on the meta device."""
    limit = model.limit_of(loan.name)
    ids = {model.family.tokenizer_of(loan.name).name: torch.zeros(1, limit, dtype=torch.int64)}
    model.family.networks.encode(loan.name, loan.module, Tokens(ids, limit, limit), loan.embedded, loan.device)


def run_loop(loan: Loan, model: Model, size: Size, steps: int = STEPS, *, prompts: int = 1, batch: int = 1) -> None:
    """The sampler loop on the meta device; with a negative prompt there are two `prompts`."""
    reader, networks = loan.component.reader, model.family.networks
    assert reader is not None
    tables = modulation.Tables(torch.empty(steps, reader.total, dtype=reader.dtype))
    prompt = Prompt(tables, networks.unread(model.configs, size, loan.dtype))
    for _ in denoise(
        networks,
        loan.module,
        reader,
        [prompt] * prompts,
        torch.empty(size.shape),
        torch.linspace(1, 0, steps + 1),
        size,
        lambda: None,
        loan.device,
        loan.dtype,
        TrueGuidance([2.0] * steps, "apg") if prompts > 1 else None,
        batched=batch > 1,
    ):
        pass


def run_decoder(loan: Loan, model: Model, size: Size, tile: int) -> None:
    """The decoder on the meta device."""
    tokens = torch.empty(size.shape, device=loan.device)
    networks = model.family.networks
    decode(networks, loan.module, tokens, size, lambda: None, tile=tile, device=loan.device, dtype=loan.dtype)


@cache
def _versions() -> list[str]:
    return [engine_version(), *(version(name) for name in ("torch", "diffusers", "transformers"))]


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
