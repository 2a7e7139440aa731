"""The plan: made before anything is loaded, from measured activations, known weights and two budgets.

It decides, for each phase, which weights lie on the device and which cross to it block by block, what stays in host
memory between pictures, and whether the picture is decoded whole or in tiles. What cannot work is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from engine.memory.components import Components
from engine.memory.estimates import Placed, core_of, pace_of
from engine.memory.layout import BudgetError, Layout, Task
from engine.memory.measure import Activations
from engine.memory.needs import MIB, MIN_SLOTS, Need, Needs, bytes_of
from engine.memory.placement import Placement
from engine.memory.report import plan_of
from engine.memory.target import Target
from engine.memory.units import Unit
from engine.request import MIN_SIDE, SIDE_MULTIPLE, RequestError, Resolved
from engine.text import size

SLOTS = 3  # of the ring, where there is room
NOTICEABLE = 0.05  # of a loop's time, that is worth more memory


@dataclass(frozen=True, slots=True)
class _Fit:
    """Weights of one component on the device."""

    resident_bytes: int  # the ring's slots among them
    streamed: frozenset[str]
    slots: int


Kept = dict[str, frozenset[str]]  # the units of each component that stay in host memory


class Planner:
    """Plans requests for one model on one target. Plans are kept: a repeated request costs next to nothing."""

    def __init__(self, components: Components, target: Target, activations: Activations | None = None) -> None:
        """`activations` are those of another planner for the same model, which measured them already."""
        self.needs = Needs(components, target, activations)
        self.target = target
        self._core = components.model.family.core.name
        self._layouts: dict[tuple[object, ...], Layout] = {}

    def plan(
        self,
        request: Resolved,
        tile: int | None = None,
        kernel: str | None = None,
        negative_passes: int = 0,
        batch: int | None = None,
    ) -> Layout:
        """The layout for a request; `tile` in pixels if it is not to be chosen (0: whole).

        `kernel` is how 8-bit layers will multiply; `negative_passes` are steps with a second pass of the transformer;
        `batch` is 2 if both are to be one, 1 if not, None as is faster.

        Raises `BudgetError` for a budget that cannot work, with the smallest that would and what to change.
        """
        size = request.width, request.height, request.steps
        key = (*size, request.form, request.distill, tile, kernel, negative_passes, batch)
        if key not in self._layouts:
            self._layouts[key] = self._faster(Task(request, tile, kernel, negative_passes), batch)
        return self._layouts[key]

    def _faster(self, task: Task, batch: int | None) -> Layout:
        """Both prompts in one pass only where that saves time: weights that are waited for cross once for both."""
        apart = self._plan(task)
        if not task.negative_passes or batch == 1 or (batch is None and not self.target.is_card):
            return apart
        with suppress(RequestError):  # no room for it
            as_one = replace(task, batch=2)
            together = self._plan(as_one)
            seconds = apart.pace.loop_seconds(task)
            if batch == 2 or seconds - together.pace.loop_seconds(as_one) > NOTICEABLE * seconds:
                return together
        return apart

    def _plan(self, task: Task) -> Layout:
        budget = self.target.budget_bytes
        needs = self.needs.before_decode(task)
        tile, decoder = self.needs.decoder(task, budget)
        needs.append(decoder)
        if max(need.floor_bytes for need in needs if not need.on_host) > budget:
            raise self._refusal("vram", task, self.needs.floor_bytes(task), budget)
        fits, kept = self._arrange(needs, task, tile)
        placed = [self._placed(need, fits[need.name], kept[need.name]) for need in needs]
        pace = pace_of(self.needs.model, self.target, task, core_of(placed))
        plan = plan_of(self.needs, task, tile, placed, pace)
        placements = {each.need.name: each.placement for each in placed}
        return Layout(plan, placements, tile, any(need.on_host for need in needs), task.batch, pace)

    def _placed(self, need: Need, fit: _Fit, kept: frozenset[str]) -> Placed:
        resident = {unit.name for unit in need.units} - fit.streamed
        on_host = need.on_host or not self.target.is_card
        in_place = on_host and resident <= kept and len(kept) > 0
        return Placed(need, fit.resident_bytes, Placement(fit.streamed, max(fit.slots, MIN_SLOTS), kept, in_place))

    def _arrange(self, needs: Sequence[Need], task: Task, tile: int) -> tuple[dict[str, _Fit], Kept]:
        """Weights on the device, and what stays in host memory."""
        if self.target.is_card:
            fits = {need.name: self._fit(need, self.target.budget_bytes) for need in needs}
            return fits, self._kept_beside_a_card(needs, fits, task, tile)
        return self._on_the_cpu(needs, task, tile)

    def _fit(self, need: Need, budget: int) -> _Fit:
        """As many units resident as the budget allows, the others spread evenly between them.

        A text encoder runs once a prompt: where weights have to cross a bus, it streams, however much room there is.
        """
        if need.on_host:
            return _Fit(0, frozenset(), 0)
        room = budget - need.work_bytes
        units = need.units
        base, blocks = need.component.of_role("base"), need.component.of_role("block")
        once = self.target.is_card and need.phase == "encode" and bool(blocks)
        if bytes_of(units) <= room and not once:
            return _Fit(bytes_of(units), frozenset(), 0)
        for slots in (SLOTS, MIN_SLOTS):
            for count in range(len(blocks) if once else 1, len(blocks) + 1):
                streamed = _spread(blocks, count)
                ring = slots * max(unit.nbytes for unit in streamed)
                resident = bytes_of(base) + bytes_of(blocks) - bytes_of(streamed) + ring
                if resident <= room:
                    return _Fit(resident, frozenset(unit.name for unit in streamed), slots)
        raise AssertionError("the floor was checked")

    def _kept_beside_a_card(self, needs: Sequence[Need], fits: dict[str, _Fit], task: Task, tile: int) -> Kept:
        """What is used most often comes first: in every step, for every picture, for every prompt."""
        by_name = {need.name: need for need in needs}
        core, decoder, streamed = by_name[self._core], needs[-1], fits[self._core].streamed
        encoders = [need for need in needs if need.phase == "encode" and not need.on_host]
        order: list[tuple[str, Iterable[Unit]]] = [
            (self._core, [unit for unit in core.units if unit.name in streamed]),
            (self._core, [unit for unit in core.units if unit.name not in streamed]),
            *((need.name, need.units) for need in (decoder, *encoders)),
            (self._core, core.component.of_role("modulation")),
        ]
        fixed = self.needs.host_bytes(task, needs, tile)
        room = self.target.ram_budget_bytes - fixed
        if room < 0:
            raise self._refusal("ram", task, fixed, self.target.ram_budget_bytes)
        # What runs on the CPU computes with its copy in RAM, which is counted before.
        kept = {need.name: {unit.name for unit in need.component.units if need.on_host} for need in needs}
        for name, units in order:
            for unit in units:
                if unit.nbytes <= room:
                    room -= unit.nbytes
                    kept[name].add(unit.name)
        return {name: frozenset(names) for name, names in kept.items()}

    def _on_the_cpu(self, needs: Sequence[Need], task: Task, tile: int) -> tuple[dict[str, _Fit], Kept]:
        """The device is host memory: what is kept there is computed with where it lies."""
        everything = [need.name for need in needs]
        largest = [need.name for need in needs if need.phase == "encode"][-1]  # runs once a prompt
        rest = [name for name in everything if name not in (self._core, largest)]
        fixed, budget = self.needs.host_bytes(task, needs, tile), self.target.budget_bytes
        for names in (everything, [self._core, *rest], rest, []):
            held = sum(bytes_of(need.component.units) for need in needs if need.name in names)
            room = self.target.ram_budget_bytes - fixed - held
            fits: dict[str, _Fit] = {}
            for need in needs:
                allowed = budget if need.name in names else min(budget, room)
                if need.floor_bytes > allowed:
                    break
                fits[need.name] = fit = self._fit(need, allowed)
                if need.name in names and need.work_bytes + _slot_bytes(need, fit) > room:
                    break
            else:
                kept = {
                    need.name: frozenset(unit.name for unit in need.component.units if need.name in names)
                    for need in needs
                }
                return fits, kept
        floor = fixed + max(need.floor_bytes for need in needs)
        raise self._refusal("ram", task, floor, self.target.ram_budget_bytes)

    # What cannot work.

    def _refusal(self, field: str, task: Task, floor: int, budget: int) -> BudgetError:
        request = task.request
        what = "RAM" if field == "ram" else "memory on the card" if self.target.is_card else "device memory"
        sentence = (
            f"{self.needs.model.name} at {request.width}x{request.height} in {request.precision} needs at least "
            f"{_rounded_up(floor)} of {what}, and {field} allows {size(budget)}"
        )
        changes = self._changes(task, budget) if field == "vram" else []
        hint = f"; or take {', or '.join(changes)}" if changes else ""
        return BudgetError(field, f"{sentence}: allow --{field} {_argument(floor)}{hint}.", floor)

    def _changes(self, task: Task, budget: int) -> list[str]:
        """Up to three changes that need less, the cheapest first, each with the budget that it needs."""
        task = replace(task, tile=None)
        request, candidates = task.request, []
        if not request.form.is_8_bits and "fp8" in self.needs.model.precisions:
            candidates.append(("--precision fp8", replace(request, precision="fp8")))
        for share in (0.75, 0.5):
            smaller = replace(request, width=_part_of(request.width, share), height=_part_of(request.height, share))
            if smaller != request:
                candidates.append((f"--size {smaller.width}x{smaller.height}", smaller))
        found, least = [], self.needs.floor_bytes(task)
        if least <= budget:
            found.append("--tile auto")
        for text, other in candidates:
            floor = self.needs.floor_bytes(replace(task, request=other))
            if floor < least:
                found.append(f"{text} ({_rounded_up(floor)})")
        return found[:3]


def _spread(units: Sequence[Unit], count: int) -> list[Unit]:
    """`count` of the units, at even distances."""
    total = len(units)
    return [unit for i, unit in enumerate(units) if (i + 1) * count // total > i * count // total]


def _slot_bytes(need: Need, fit: _Fit) -> int:
    return fit.slots * max((unit.nbytes for unit in need.units if unit.name in fit.streamed), default=0)


def _part_of(side: int, share: float) -> int:
    """A smaller side, in pixels."""
    return max(MIN_SIDE, round(side * share / SIDE_MULTIPLE) * SIDE_MULTIPLE)


def _rounded_up(count: int) -> str:
    """A size that is enough, as people read it."""
    unit, name = (2**30, "GiB") if count >= 2**30 else (MIB, "MiB")
    digits = 10 if count >= 2**30 else 1
    return f"{math.ceil(count / unit * digits) / digits:g} {name}"


def _argument(count: int) -> str:
    return _rounded_up(count).replace(" ", "")
