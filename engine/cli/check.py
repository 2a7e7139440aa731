"""`t2i models check`: every weight of a model looked at once, and what its FP8 form loses."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.cli.console import write
from engine.library.catalog import open_model
from engine.precision import FP8
from engine.request import RequestError
from engine.text import printable, size
from engine.weights.model import Model

if TYPE_CHECKING:
    from engine.weights.reading import WeightFiles

PIECE = 4 * 2**20  # elements looked at in one go


@dataclass(slots=True)
class _Kind:
    """Layers of one kind, in all blocks."""

    layers: int = 0
    squared: float = 0.0  # sum of squared relative errors
    worst: float = 0.0
    worst_name: str = ""
    largest: float = 0.0  # error of a single weight, relative to the largest of its row

    def add(self, name: str, relative: float, largest: float) -> None:
        self.layers += 1
        self.squared += relative**2
        self.largest = max(self.largest, largest)
        if relative >= self.worst:
            self.worst, self.worst_name = relative, name

    @property
    def mean(self) -> float:
        return float((self.squared / self.layers) ** 0.5)


def run(name: str, *, as_json: bool = False) -> int:
    """Print the report. Raises `RequestError` for what is missing, misshapen, or not finite."""
    model = open_model(name)
    if not model.has_weights:
        raise RequestError(
            "model",
            f"the weights of {model.name} are not here; get them with t2i models pull, or give their folder or file.",
        )
    kinds: dict[str, dict[str, _Kind]] = {}
    for component in model.files:
        kinds[component] = dict(_check(model, component))
    if as_json:
        report = {
            component: {
                kind: {
                    "layers": found.layers,
                    "relative_rms": found.mean,
                    "worst_relative_rms": found.worst,
                    "worst_layer": found.worst_name,
                    "largest_of_row_max": found.largest,
                }
                for kind, found in by_kind.items()
            }
            for component, by_kind in kinds.items()
        }
        parts = {
            component: {
                "layout": model.layout(component),
                "precision": model.precision(component),
                "bytes": model.bytes[component],
            }
            for component in model.files
        }
        write(json.dumps({"event": "model_checked", "model": model.name, "parts": parts, "fp8": report}))
        return 0
    for component, by_kind in kinds.items():
        stored = ", ".join((model.layout(component), model.precision(component), size(model.bytes[component])))
        write(printable(f"{component}: {stored}; every tensor is there, finite and in shape"))
        if by_kind:
            write(f"  {'FP8 against the weights, in %':<47}{'layers':>8}{'RMS':>7}{'worst':>7}{'one':>6}")
        for kind, found in sorted(by_kind.items()):
            figures = f"{found.layers:>8}{100 * found.mean:>7.2f}{100 * found.worst:>7.2f}{100 * found.largest:>6.1f}"
            write(f"  {kind:<47}{figures}")
    write("RMS: relative error of all layers of a kind; worst: of one layer; one: of one weight, of its row's largest")
    return 0


def _check(model: Model, component: str) -> dict[str, _Kind]:
    """Look at every tensor of a component. The kind of a layer is its path without the block's number."""
    from engine.weights.converted import rounding_errors
    from engine.weights.forms import Form
    from engine.weights.loading import check_tensors, empty_component
    from engine.weights.reading import WeightFiles

    wanted = {name: tuple(tensor.shape) for name, tensor in empty_component(model, component).state_dict().items()}
    kinds: dict[str, _Kind] = defaultdict(_Kind)
    with WeightFiles.open(model.files[component], component, True, [model.family]) as files:
        check_tensors(wanted, files, model.place(component), model.family.networks, component)
        layers = set()
        for name, relative, largest in rounding_errors(files, component, Form(model.family, FP8)):
            layers.add(name)
            path = re.sub(r"\.[0-9]+\.", ".", name.removesuffix(".weight"), count=1)
            kinds[path].add(name, relative, largest)
        for name, tensor in files.tensors.items():
            if name not in layers and tensor.dtype.is_floating_point:
                _check_finite(files, name)
    return kinds


def _check_finite(files: WeightFiles, name: str) -> None:
    from engine.weights.reading import is_finite, not_finite

    tensor = files.tensors[name]
    for start in range(0, tensor.count, PIECE):
        if not is_finite(files.elements(name, start, min(tensor.count, start + PIECE))):
            raise not_finite(tensor)
