"""What the phases of a picture need of the device and of RAM, wherever their weights will lie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from engine.events import Phase
from engine.families.facts import Part
from engine.memory.components import Components
from engine.memory.layout import Task
from engine.memory.measure import META, Activations
from engine.memory.target import Target
from engine.memory.units import Component, Unit
from engine.precision import Precision
from engine.sampling.decode import parked_bytes, smaller_tiles

MIB = 2**20
MIN_SLOTS = 2  # of the ring
# Beside live tensors. An H100 under a cap held 96 to 106 MiB more than tensors, workspaces and context in encode, and
# with these pieces it is within 2 per cent of the prediction in denoise and decode as well (FLUX.1 [dev], 1024x1024).
CARD_WORKSPACE_BYTES, CARD_PIECES_BYTES = 64 * MIB, 96 * MIB  # cuBLAS's and others' own; what an allocator cuts off
CARD_ROUNDING, CPU_ROUNDING = 0.10, 0.03  # of the activations: an allocator's pieces, scratch of matrix products
# Of the decoder's activations: scratch inside one operation. Processors without bf16 arithmetic unfold it.
CARD_CONVOLUTION, CPU_CONVOLUTION, CPU_BF16_CONVOLUTION = 0.50, 1.50, 4.00
CPU_ROUNDING_BYTES = MIB // 4
CARD_PROCESS_BYTES, CPU_PROCESS_BYTES = 900 * MIB, 450 * MIB  # Python, torch and the libraries, in RAM


@dataclass(frozen=True, slots=True)
class Need:
    """What one component needs of the device while it runs."""

    part: Part
    component: Component
    activation_bytes: int
    allowance_bytes: int  # what no ledger sees
    on_host: bool  # it runs on the CPU, though there is a card

    @property
    def name(self) -> str:
        """The component's."""
        return self.part.name

    @property
    def phase(self) -> Phase:
        """In which it runs."""
        return self.part.phase

    @property
    def units(self) -> list[Unit]:
        """What lies on the device or crosses to it while it runs: all but what is in the tables."""
        return [unit for unit in self.component.units if unit.role != "modulation"]

    @property
    def work_bytes(self) -> int:
        """Beside weights."""
        return self.activation_bytes + self.allowance_bytes

    @property
    def floor_bytes(self) -> int:
        """The smallest budget: every block streamed through the fewest slots."""
        base, blocks = bytes_of(self.component.of_role("base")), self.component.of_role("block")
        return self.work_bytes + base + MIN_SLOTS * max((unit.nbytes for unit in blocks), default=0)

    @property
    def table_bytes(self) -> int:
        """Of an embedding that stays in RAM, whose rows are looked up there."""
        shape = self.component.host_shape
        return math.prod(shape) * self.component.dtype.itemsize if shape else 0

    @property
    def parameters(self) -> int:
        """How many numbers its weights are."""
        tied = self.component.cut.host_tables[1:]  # the table's other name
        return sum(math.prod(shape) for name, shape in self.component.wanted.items() if name not in tied)


class Needs:
    """Measures what one model needs on one target."""

    def __init__(self, components: Components, target: Target, activations: Activations | None = None) -> None:
        """`activations` are measured already where they are given, with a simulated double of the model."""
        self.model, self.target = components.model, target
        self._open = components
        if activations is None:
            double = components if components.simulated else Components(self.model, META, simulated=True)
            activations = Activations(double)
        self.activations = activations

    def before_decode(self, task: Task) -> list[Need]:
        """Of the text encoders and the transformer, in the order in which they run."""
        request, family, measured = task.request, self.model.family, self.activations
        encoders = [
            self._need(part, request.form, measured.encode(part.name, request.form, task.kernel))
            for part in family.encoders(distill=request.distill)
        ]
        size = self.model.size(request)
        loop = measured.denoise(request.form, size, task.kernel, prompts=task.prompts, batch=task.batch)
        return [*encoders, self._need(family.core, request.form, loop)]

    def decoder(self, task: Task, budget_bytes: int) -> tuple[int, Need]:
        """The largest tile that fits, or the smallest there is; 0 where the whole picture does; and its need."""
        size = self.model.size(task.request)
        for tile in [0, *smaller_tiles(0, size)] if task.tile is None else [task.tile]:
            activation = self.activations.decode(task.request.form, size, tile)
            need = self._need(self.model.family.decoder, task.request.form, activation)
            if need.floor_bytes <= budget_bytes:
                break
        return tile, need

    def floor_bytes(self, task: Task) -> int:
        """The smallest budget of the device that works, with the task's tile or with whichever is best."""
        others = max(need.floor_bytes for need in self.before_decode(task) if not need.on_host)
        _, decoder = self.decoder(task, others)
        return max(others, decoder.floor_bytes)

    def allowance(self, phase: Phase, activation_bytes: int, dtype: torch.dtype) -> int:
        """What no ledger sees, in bytes."""
        if self.target.is_card:
            share = CARD_CONVOLUTION if phase == "decode" else CARD_ROUNDING
            beside = self.target.context_bytes + CARD_WORKSPACE_BYTES + CARD_PIECES_BYTES
            return beside + int(share * activation_bytes)
        unfolds = dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        convolution = CPU_BF16_CONVOLUTION if unfolds else CPU_CONVOLUTION
        share = convolution if phase == "decode" else CPU_ROUNDING
        return CPU_ROUNDING_BYTES + int(share * activation_bytes)

    def host_bytes(self, task: Task, needs: Sequence[Need], tile: int) -> int:
        """What the process takes of RAM in any case."""
        process = CARD_PROCESS_BYTES if self.target.is_card else CPU_PROCESS_BYTES
        by_phase = {need.phase: need.component for need in needs}  # one decodes, one denoises
        core, decoder = by_phase["denoise"], by_phase["decode"]
        parked = parked_bytes(decoder.module, self.model.size(task.request), decoder.dtype) if tile else 0
        rows = task.prompts * task.request.steps * core.reader.total * core.reader.dtype.itemsize if core.reader else 0
        tables = rows + sum(need.table_bytes for need in needs)
        on_host = sum(bytes_of(need.units) + need.work_bytes for need in needs if need.on_host)
        return process + self.staging_bytes(needs) + tables + parked + on_host

    def staging_bytes(self, needs: Sequence[Need]) -> int:
        """Pinned memory, through which weights cross to the card."""
        if not self.target.is_card:
            return 0
        crossing = [need for need in needs if not need.on_host]
        return 2 * max(unit.nbytes for need in crossing for unit in need.component.units if unit.role != "base")

    def _need(self, part: Part, precision: Precision, activation: int) -> Need:
        # A precision that is not the open one is planned beside it: the open one's weights stay where they are.
        forgets = self._open.would_forget(part.name, precision)
        component = (self.activations if forgets else self._open).component(part.name, precision)
        allowance = self.allowance(part.phase, activation, component.dtype)
        return Need(part, component, activation, allowance, part.beside_card and self.target.is_card)


def bytes_of(units: Iterable[Unit]) -> int:
    """All of them."""
    return sum(unit.nbytes for unit in units)


def named(units: Iterable[Unit], names: frozenset[str]) -> list[Unit]:
    """Those of these names."""
    return [unit for unit in units if unit.name in names]
