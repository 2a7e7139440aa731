"""Modulation tables: the outputs of every adaLN linear for all steps, computed before the loop.

27 % of FLUX.1's parameters (every `norm*.linear`) depend only on timestep, guidance and the pooled prompt, not on the
picture. Their outputs for a step are 1,056,768 numbers; with those in a table, the weights need not be on the device
while the loop runs. Exact: every row is computed as the loop would compute it, with the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from engine.families.networks import Conditioning, Cut, Networks


class Lookup(nn.Module):
    """In the place of an adaLN linear: its output [B, width] for the current step."""

    def __init__(self, tables: TableReader, start: int, width: int, dtype: torch.dtype | None = None) -> None:
        """`dtype`: of the output, where it is not the tables'."""
        super().__init__()
        self.tables, self.start, self.width = [tables], start, width  # a list, or it would be a submodule
        self.dtype = dtype

    def forward(self, _: Tensor) -> Tensor:
        output = self.tables[0].row[:, self.start : self.start + self.width]
        return output if self.dtype is None else output.to(self.dtype)

    def parts(self, count: int, *, folded: bool) -> tuple[Tensor, ...]:
        """Shift, factor and gate, once or twice (`count` 3 or 6), for the current step: each [B, width / count].

        Of tables that are `folded` the factor is there already, and the gates come in the dtype that is computed in; of
        others it is 1 + scale.
        """
        return self.tables[0].parts(self.start, self.width, count, folded)


class TableReader(nn.Module):
    """In the place of the timestep, guidance and text embedder; holds the rows of the current step, [B, total].

    Blocks take views of the rows, which are made once: a step puts new numbers in the same memory.
    """

    row: Tensor

    def __init__(self, linears: dict[str, nn.Linear], path: str, embedder: nn.Module, dtype: torch.dtype) -> None:
        """`path` is the embedder's."""
        super().__init__()
        self.path = path
        self.dtype = self.compute_dtype = dtype  # the first is the tables'
        self.linears = {name: [linear] for name, linear in linears.items()}  # by path; none of them a submodule
        self.embedder = [embedder]
        widths = [linear.out_features for linear in linears.values()]
        starts = [sum(widths[:index]) for index in range(len(widths))]
        self.places = {name: (start, width) for name, start, width in zip(linears, starts, widths, strict=True)}
        self.total = sum(widths)
        self.leave()

    def leave(self) -> None:
        """Hold nothing on the device any more."""
        self.memory: Tensor | None = None
        self.__dict__.pop("row", None)
        self._derived: dict[bool, Tensor] = {}
        self._parts: dict[tuple[int, bool], tuple[Tensor, ...]] = {}

    def set_row(self, row: Tensor) -> None:
        """Make `row` [B, total] the current step's; where it is the same memory as before, its numbers may be new."""
        known = self.__dict__.get("row")
        if known is None or known.shape != row.shape or known.data_ptr() != row.data_ptr() or row.is_meta:
            self._derived, self._parts = {}, {}
            self.row = row
        for folded, derived in self._derived.items():
            self._derive(folded, derived)

    def parts(self, start: int, width: int, count: int, folded: bool) -> tuple[Tensor, ...]:
        """See `Lookup.parts`."""
        key = start, folded
        if key not in self._parts:
            if folded not in self._derived:
                self._derived[folded] = torch.empty_like(self.row, dtype=self.compute_dtype if folded else None)
                self._derive(folded, self._derived[folded])
            stored, derived = (
                rows[:, start : start + width].chunk(count, dim=1) for rows in (self.row, self._derived[folded])
            )
            other = 2 if folded else 1  # gates are rounded, or scales are made factors
            self._parts[key] = tuple((derived if place % 3 == other else stored)[place] for place in range(count))
        return self._parts[key]

    def _derive(self, folded: bool, out: Tensor) -> None:
        if folded:
            out.copy_(self.row)
        else:
            torch.add(self.row, 1, out=out)

    def forward(self, *_: object) -> Tensor:
        return self.row[:, :1]  # goes into the lookups, which do not look at it


def detach(transformer: Any, cut: Cut, dtype: torch.dtype) -> TableReader:
    """Put lookups in the place of every linear that follows from the step alone, and of the embedder before them.

    `dtype` is what the transformer computes in. Returns what feeds them.
    """
    embedder, *names = cut.step_only
    linears = {name: transformer.get_submodule(name) for name in names}
    reader = TableReader(linears, embedder, transformer.get_submodule(embedder), dtype)
    for name, (start, width) in reader.places.items():
        transformer.set_submodule(name, Lookup(reader, start, width, dtype if name in cut.read_by_library else None))
    transformer.set_submodule(embedder, reader)
    return reader


@dataclass(frozen=True, slots=True)
class Tables:
    """One row a step, on the host: [steps, total]."""

    rows: Tensor


def enter(reader: TableReader, tables: Sequence[Tables], step: int, device: torch.device) -> None:
    """Make `step` (from 0) the current one, for a batch of as many prompts as there are tables."""
    if reader.memory is None or len(reader.memory) < len(tables):
        rows = tables[0].rows
        reader.memory = torch.empty(len(tables), rows.shape[1], device=device, dtype=rows.dtype)
    row = reader.memory[: len(tables)]
    for number, table in enumerate(tables):
        row[number].copy_(table.rows[step], non_blocking=True)
    reader.set_row(row)


@torch.no_grad()
def compute(
    reader: TableReader,
    visit: Callable[[Iterable[str]], Iterator[str]],
    conditionings: Sequence[Conditioning],
    sigmas: Tensor,
    guidance: Sequence[float] | None,
    networks: Networks,
    device: torch.device,
    dtype: torch.dtype,
    check: Callable[[], None],
) -> list[Tables]:
    """The tables of all steps for each prompt, in one pass over the weights; `check` is called before every linear.

    `visit` brings the named parts to the device one after the other. `sigmas` [N + 1] are the
    flow times, `guidance` is the distilled one of each step.
    """
    steps = len(sigmas) - 1
    told = guidance if guidance is not None else [None] * steps
    where = "meta" if device.type == "meta" else "cpu"
    tables = [Tables(torch.empty(steps, reader.total, dtype=dtype, device=where)) for _ in conditionings]
    inputs: list[Tensor] = []
    for name in visit([reader.path, *reader.places]):
        check()
        if name == reader.path:
            inputs = [
                networks.step_input(reader.embedder[0], sigma, scale, each, device, dtype)
                for each in conditionings
                for sigma, scale in zip(sigmas[:-1], told, strict=True)
            ]
        else:
            start, width = reader.places[name]
            linear = reader.linears[name][0]
            outputs = torch.cat([linear(activated) for activated in inputs])  # [prompts * steps, width], one at a time
            for table, rows in zip(tables, outputs.split(steps), strict=True):
                table.rows[:, start : start + width] = rows  # one copy to the host for all steps
    return tables
