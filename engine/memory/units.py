"""A component cut into units: the parts of its weights that move to the device together, each as one piece of memory.

A transformer block's attention, its feed-forward nets, a layer of T5: whatever one module needs when it runs. A unit
is laid out flat, so that it moves with one copy, and every tensor in it begins at a multiple of 256 bytes, so that it
computes the same bits wherever it lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engine.families.facts import Part
from engine.families.networks import Cut
from engine.precision import FP8, Precision
from engine.quantization import fp8, int8
from engine.quantization.fp8 import SCALE_SUFFIX
from engine.quantization.salience import balanced_at_run_time
from engine.sampling import modulation
from engine.weights.converted import quantize_into
from engine.weights.forms import Form
from engine.weights.loading import empty_component
from engine.weights.model import Model
from engine.weights.reading import PART_BYTES, WeightFiles

ALIGNMENT = 256
INVERSE_SUFFIX = ".inverse"  # of balancing factors, which are in no file of weights

Role = Literal["base", "block", "modulation"]
NOTHING = nn.Parameter(torch.empty(0, device="meta"), requires_grad=False)  # where no weights are at the moment


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A tensor of a unit: where it belongs, what it is called in the files, where it lies in the unit's memory."""

    owner: nn.Module
    leaf: str
    stored: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes

    def view(self, memory: Tensor) -> Tensor:
        """This piece's place in the unit's memory (uint8), as a tensor."""
        place = memory[self.offset : self.offset + math.prod(self.shape) * self.dtype.itemsize]
        return place.view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Weights that one module needs when it runs; `name` is the module's path, empty for what is always needed."""

    name: str
    role: Role
    module: nn.Module
    pieces: tuple[Piece, ...]
    nbytes: int

    def views(self, memory: Tensor) -> list[tuple[Piece, nn.Parameter]]:
        """The unit's parameters over its memory (uint8 [nbytes] on any device)."""
        return [(piece, nn.Parameter(piece.view(memory), requires_grad=False)) for piece in self.pieces]

    def install(self, views: Iterable[tuple[Piece, nn.Parameter]]) -> None:
        """Make the modules compute with these."""
        for piece, parameter in views:
            piece.owner._parameters[piece.leaf] = parameter

    def withdraw(self) -> None:
        """Leave nothing behind that holds memory."""
        for piece in self.pieces:
            piece.owner._parameters[piece.leaf] = NOTHING


@dataclass(slots=True, eq=False)
class Component:
    """A component's module, without weights, and its units in the order in which they are needed."""

    name: str
    module: Any
    cut: Cut
    units: tuple[Unit, ...]
    dtype: torch.dtype
    wanted: dict[str, tuple[int, ...]]  # shapes by name, as files have them
    reader: modulation.TableReader | None  # of the transformer
    host_shape: tuple[int, ...] | None = None  # of the table that stays on the host
    buffers: list[tuple[nn.Module, str, Tensor]] = field(default_factory=list)  # constants, kept on the host

    @property
    def host_name(self) -> str:
        """What files call the table that stays on the host."""
        return self.cut.host_tables[0]

    def of_role(self, role: Role) -> tuple[Unit, ...]:
        return tuple(unit for unit in self.units if unit.role == role)

    def place_buffers(self, device: torch.device) -> None:
        """Constants that belong to no weight file (position ids)."""
        for owner, leaf, value in self.buffers:
            owner._buffers[leaf] = value.to(device)


def precision_of(part: Part, precision: Precision) -> Precision:
    """What a component computes in where a picture is asked for in `precision`: some have one of their own, and those
    that cannot compute in int8 have FP8 beside it."""
    if part.fixed is not None:
        return part.fixed
    return FP8 if precision.is_int8 and precision.kind not in part.forms else precision


def build(model: Model, name: str, precision: Precision) -> Component:
    """A component with its real configuration and no weights.

    Raises `RequestError` where its configuration cannot be used.
    """
    networks = model.family.networks
    dtype = torch.float32 if precision.is_fp32 else torch.bfloat16
    module = empty_component(model, name).eval()
    cut = networks.cut(name, module)
    wanted = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    if precision.is_int8:
        inputs = networks.inputs(model.configs[name])
        balanced = balanced_at_run_time(inputs) if precision.salience else set()
        int8.replace_linears(module, partial(model.family.eight_bit, name), dtype, balanced)
    elif precision.is_8_bits:
        fp8.replace_linears(module, partial(model.family.eight_bit, name), dtype)
    if name == model.family.core.name:
        networks.install_blocks(module, dtype, folded=precision.is_int8)
    paths: dict[str, Role] = dict.fromkeys(cut.step_only, "modulation")
    paths |= {**dict.fromkeys(cut.units, "block"), "": "base"}
    owners = {path: module.get_submodule(path) for path in paths}
    grouped: dict[str, list[tuple[nn.Module, str, str, torch.dtype, tuple[int, ...]]]] = {path: [] for path in paths}
    host_shape = None
    for parameter_name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter_name in cut.host_tables:
            host_shape = tuple(parameter.shape)
            continue
        if parameter_name.startswith(cut.unused):
            continue
        path = next((path for path in paths if path and parameter_name.startswith(path + ".")), "")
        owner_path, _, leaf = parameter_name.rpartition(".")
        owner = module.get_submodule(owner_path)
        stored, kind = _stored(owner, owner_path, leaf, parameter_name, dtype)
        grouped[path].append((owner, leaf, stored, kind, tuple(parameter.shape)))
    for owner in list(module.modules()):
        for leaf, parameter in owner._parameters.items():
            owner._parameters[leaf] = NOTHING if parameter is not None else None
    reader = modulation.detach(module, cut, dtype) if cut.step_only else None
    if reader is not None and precision.is_int8:
        reader.dtype = torch.float32
    units = tuple(_unit(path, paths[path], owners[path], pieces) for path, pieces in grouped.items() if pieces)
    buffers = [
        (module.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], value)
        for path, value in module.named_buffers()
    ]
    return Component(name, module, cut, units, dtype, wanted, reader, host_shape, buffers)


def _stored(owner: nn.Module, path: str, leaf: str, name: str, dtype: torch.dtype) -> tuple[str, torch.dtype]:
    """A parameter's name in the files and its type in memory."""
    if isinstance(owner, (fp8.Fp8Linear, int8.Int8Linear)) and leaf != "bias":
        kind = fp8.FP8 if isinstance(owner, fp8.Fp8Linear) else torch.int8
        known = {
            "quantized": (f"{path}.weight", kind),
            "scale": (f"{path}.weight{SCALE_SUFFIX}", torch.float32),
            "inverse": (f"{path}{INVERSE_SUFFIX}", torch.float32),
        }
        return known[leaf]
    return name, dtype


def _unit(
    path: str,
    role: Role,
    module: nn.Module,
    tensors: list[tuple[nn.Module, str, str, torch.dtype, tuple[int, ...]]],
) -> Unit:
    pieces, end = [], 0
    for owner, leaf, stored, dtype, shape in tensors:
        pieces.append(Piece(owner, leaf, stored, dtype, shape, end))
        end += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
    return Unit(path, role, module, tuple(pieces), end)


class Weights:
    """Where a component's weights come from: files of any layout, in which 8-bit weights may have scales."""

    def __init__(self, files: WeightFiles, names: Mapping[str, str], form: Form | None, *, converted: bool) -> None:
        """`names` gives the name in the files for each name that a unit uses. `form` is of what a unit has in 8 bits;
        `converted`: the files have all in that form."""
        self.files, self.names, self.form, self.converted = files, names, form, converted

    def fill(self, unit: Unit, memory: Tensor) -> None:
        """Read a unit into its memory (uint8 [nbytes], on the CPU), in the types that the unit has.

        What is not in its form in the files is converted to it now.
        """
        for task in self.tasks(unit, memory):
            task()

    def tasks(self, unit: Unit, memory: Tensor) -> Iterator[Callable[[], object]]:
        """What `fill` does, in pieces that threads may share."""
        scales = {piece.stored: piece for piece in unit.pieces if piece.stored.endswith(f".weight{SCALE_SUFFIX}")}
        for piece in unit.pieces:
            if piece.stored in scales:
                continue  # filled with its weight
            if piece.stored.endswith(INVERSE_SUFFIX):
                assert self.form is not None and self.form.folds is not None
                inverse = self.form.folds.inverse[piece.stored.removesuffix(INVERSE_SUFFIX)]
                yield partial(piece.view(memory).copy_, inverse)
                continue
            stored, view = self.names[piece.stored], piece.view(memory)
            if (scale := scales.get(f"{piece.stored}{SCALE_SUFFIX}")) is not None:
                assert self.form is not None
                for rows in self._rows(stored):
                    yield partial(quantize_into, self.files, stored, view, scale.view(memory), self.form, rows)
            elif self.form is not None and not self.converted and self.form.changes(stored):
                yield partial(self._rebalance, stored, view)
            else:
                for start, stop in self.files.parts(stored):
                    yield partial(self.files.read_part, stored, start, stop, view)

    def _rows(self, stored: str) -> Iterator[tuple[int, int]]:
        """Rows of a weight that one thread converts."""
        tensor = self.files.tensors[stored]
        step = max(1, PART_BYTES * tensor.shape[0] // max(1, tensor.nbytes))
        for start in range(0, tensor.shape[0], step):
            yield start, min(start + step, tensor.shape[0])

    def _rebalance(self, stored: str, view: Tensor) -> None:
        """A bias that is balanced; it is rounded once, as the cache has it."""
        assert self.form is not None
        self.files.read(stored, view)
        whole = self.files.elements(stored, 0, view.numel())
        view.copy_(self.form.other(stored, whole, 0).view(view.shape))

    def stored_bytes(self, units: Iterable[Unit]) -> int:
        """What lies in the files for these units."""
        names = {self.names[piece.stored] for unit in units for piece in unit.pieces if piece.stored in self.names}
        return sum(self.files.tensors[name].nbytes for name in names)
