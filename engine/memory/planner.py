"""The plan: made before anything is loaded, from measured activations, known weights and two budgets.

It decides, for each phase, which weights lie on the device and which cross to it block by block, what stays in host
memory between pictures, and whether the picture is decoded whole or in tiles. What cannot work is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from engine.events import Phase, PhasePlan, Plan, Turnaround
from engine.families.facts import Cost, Part
from engine.memory.components import Components
from engine.memory.measure import META, Activations
from engine.memory.placement import Placement
from engine.memory.target import Target
from engine.memory.units import Component, Unit, precision_of
from engine.precision import PRECISIONS, Precision
from engine.request import MIN_SIDE, SIDE_MULTIPLE, Request, RequestError
from engine.sampling.decode import parked_bytes, smaller_tiles
from engine.text import duration, size

MIB = 2**20
SLOTS, MIN_SLOTS = 3, 2  # of the ring
# Beside live tensors. An H100 under a cap held 96 to 106 MiB more than tensors, workspaces and context in encode, and
# with these pieces it is within 2 per cent of the prediction in denoise and decode as well (FLUX.1 [dev], 1024x1024).
CARD_WORKSPACE_BYTES, CARD_PIECES_BYTES = 64 * MIB, 96 * MIB  # cuBLAS's and others' own; what an allocator cuts off
CARD_ROUNDING, CPU_ROUNDING = 0.10, 0.03  # of the activations: an allocator's pieces, scratch of matrix products
# Of the decoder's activations: scratch inside one operation. Processors without bf16 arithmetic unfold it.
CARD_CONVOLUTION, CPU_CONVOLUTION, CPU_BF16_CONVOLUTION = 0.50, 1.50, 4.00
NOTICEABLE = 0.05  # of a loop's time, that is worth more memory
CPU_ROUNDING_BYTES = MIB // 4
CARD_PROCESS_BYTES, CPU_PROCESS_BYTES = 900 * MIB, 450 * MIB  # Python, torch and the libraries, in RAM


@dataclass(frozen=True, slots=True)
class Layout:
    """A plan, and what follows from it for the components."""

    plan: Plan
    placements: dict[str, Placement]
    tile: int  # pixels a side; 0: whole
    reads_on_host: bool  # the prompt is read on the CPU beside the card
    batch: int  # prompts that the transformer is given at a time
    pace: Pace


@dataclass(frozen=True, slots=True)
class Pace:
    """Estimates of what a step is made of."""

    compute_seconds: float  # of one prompt
    moving_seconds: float  # of what crosses to the card, or comes from disk, whenever the transformer runs
    batch: int

    def step_seconds(self, prompts: int) -> float:
        """A step with one prompt or two, with what of the weights is waited for."""
        if self.batch > 1:
            return max(prompts * self.compute_seconds, self.moving_seconds)
        return prompts * max(self.compute_seconds, self.moving_seconds)


class BudgetError(RequestError):
    """A budget that cannot work; `floor_bytes` is the smallest that would."""

    def __init__(self, field: str, message: str, floor_bytes: int) -> None:
        super().__init__(field, message)
        self.floor_bytes = floor_bytes


@dataclass(frozen=True, slots=True)
class _Need:
    """What one component needs of the device while it runs."""

    name: str
    phase: Phase
    component: Component
    activation_bytes: int
    allowance_bytes: int
    on_host: bool = False  # it runs on the CPU, though there is a card

    @property
    def units(self) -> list[Unit]:
        return [unit for unit in self.component.units if unit.role != "modulation"]

    @property
    def work_bytes(self) -> int:
        return self.activation_bytes + self.allowance_bytes

    @property
    def floor_bytes(self) -> int:
        """The smallest budget: every block streamed through the fewest slots."""
        base, blocks = _bytes(self.component.of_role("base")), self.component.of_role("block")
        return self.work_bytes + base + MIN_SLOTS * max((unit.nbytes for unit in blocks), default=0)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Weights of one component on the device."""

    resident_bytes: int  # the ring's slots among them
    streamed: frozenset[str]
    slots: int


class Planner:
    """Plans requests for one model on one target. Plans are kept: a repeated request costs next to nothing."""

    def __init__(self, components: Components, target: Target) -> None:
        self.model, self.target = components.model, target
        self._core = components.model.family.core.name
        self._open = components
        # Measuring, and planning another precision than the open one, is done with a double of the model.
        self._double = components if components.simulated else Components(self.model, META, simulated=True)
        self.activations = Activations(self._double)
        self._kernel: str | None = None
        self._negative_passes, self._batch = 0, 1
        self._layouts: dict[tuple[object, ...], Layout] = {}

    def plan(
        self,
        request: Request,
        tile: int | None = None,
        kernel: str | None = None,
        negative_passes: int = 0,
        batch: int | None = None,
    ) -> Layout:
        """The layout for a complete request; `tile` in pixels if it is not to be chosen (0: whole).

        `kernel` is how 8-bit layers will multiply; `negative_passes` are steps with a second pass of the transformer;
        `batch` is 2 if both are to be one, 1 if not, None as is faster.

        Raises `BudgetError` for a budget that cannot work, with the smallest that would and what to change.
        """
        assert request.precision in PRECISIONS
        size = request.width, request.height, request.steps
        key = (*size, request.form, request.distill, tile, kernel, negative_passes, batch)
        if key not in self._layouts:
            self._kernel, self._negative_passes = kernel, negative_passes
            self._layouts[key] = self._faster(request, tile, batch)
        return self._layouts[key]

    def _faster(self, request: Request, tile: int | None, batch: int | None) -> Layout:
        """Both prompts in one pass only where that saves time: weights that are waited for cross once for both."""
        self._batch = 1
        apart = self._plan(request, tile)
        if not self._negative_passes or batch == 1 or (batch is None and not self.target.is_card):
            return apart
        self._batch = 2
        with suppress(RequestError):  # no room for it
            together = self._plan(request, tile)
            seconds = self._loop_seconds(request, apart.pace)
            if batch == 2 or seconds - self._loop_seconds(request, together.pace) > NOTICEABLE * seconds:
                return together
        self._batch = 1
        return apart

    def _loop_seconds(self, request: Request, pace: Pace) -> float:
        assert request.steps
        guided = self._negative_passes * pace.step_seconds(2)
        return guided + (request.steps - self._negative_passes) * pace.step_seconds(1)

    def _plan(self, request: Request, asked: int | None) -> Layout:
        budget = self.target.budget_bytes
        needs = self._needs(request)
        tile, decoder = self._decoder(request, asked, budget)
        needs.append(decoder)
        if max(need.floor_bytes for need in needs if not need.on_host) > budget:
            raise self._refusal("vram", request, self._floor(request, asked), budget)
        fits, kept = self._arrange(needs, request, tile)
        in_place = {need.name: self._in_place(need, fits[need.name], kept[need.name]) for need in needs}
        placements = {
            name: Placement(fit.streamed, max(fit.slots, MIN_SLOTS), kept[name], in_place[name])
            for name, fit in fits.items()
        }
        pace = self._pace(request, needs, placements[self._core])
        plan = self._told(request, tile, needs, fits, placements, pace)
        return Layout(plan, placements, tile, any(need.on_host for need in needs), self._batch, pace)

    # What each phase needs.

    def _needs(self, request: Request) -> list[_Need]:
        """Of the text encoders and the transformer."""
        precision, family = request.form, self.model.family
        needs = [
            self._need(part, precision, self.activations.encode(part.name, precision, self._kernel))
            for part in family.encoders(distill=request.distill)
        ]
        activation = self.activations.denoise(
            precision,
            self.model.size(request),
            self._kernel,
            prompts=2 if self._negative_passes else 1,
            batch=self._batch,
        )
        return [*needs, self._need(family.core, precision, activation)]

    def _need(self, part: Part, precision: Precision, activation: int) -> _Need:
        component = self._component(part.name, precision)
        allowance = self.allowance(part.phase, activation, component.dtype)
        on_host = part.beside_card and self.target.is_card
        return _Need(part.name, part.phase, component, activation, allowance, on_host)

    def _component(self, name: str, precision: Precision) -> Component:
        owner = self._double if self._open.would_forget(name, precision) else self._open
        return owner.component(name, precision)

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

    def _decoder(self, request: Request, tile: int | None, budget: int) -> tuple[int, _Need]:
        """The largest tile that fits the budget, or the smallest there is; whole where that fits."""
        sizes = [0, *smaller_tiles(0, self.model.size(request))] if tile is None else [tile]
        for side in sizes:
            need = self._decoding(request, side)
            if need.floor_bytes <= budget:
                break
        return side, need

    def _decoding(self, request: Request, tile: int) -> _Need:
        activation = self.activations.decode(request.form, self.model.size(request), tile)
        return self._need(self.model.family.decoder, request.form, activation)

    # Where weights lie.

    def _arrange(
        self, needs: Sequence[_Need], request: Request, tile: int
    ) -> tuple[dict[str, _Fit], dict[str, frozenset[str]]]:
        """Weights on the device, and the units of each component that stay in host memory."""
        if self.target.is_card:
            fits = {need.name: self._fit(need, self.target.budget_bytes) for need in needs}
            return fits, self._kept_beside_a_card(needs, fits, request, tile)
        return self._on_the_cpu(needs, request, tile)

    def _fit(self, need: _Need, budget: int) -> _Fit:
        """As many units resident as the budget allows, the others spread evenly between them.

        A text encoder runs once a prompt: where weights have to cross a bus, it streams, however much room there is.
        """
        if need.on_host:
            return _Fit(0, frozenset(), 0)
        room = budget - need.work_bytes
        units = need.units
        base, blocks = need.component.of_role("base"), need.component.of_role("block")
        once = self.target.is_card and need.phase == "encode" and bool(blocks)
        if _bytes(units) <= room and not once:
            return _Fit(_bytes(units), frozenset(), 0)
        for slots in (SLOTS, MIN_SLOTS):
            for count in range(len(blocks) if once else 1, len(blocks) + 1):
                streamed = _spread(blocks, count)
                ring = slots * max(unit.nbytes for unit in streamed)
                resident = _bytes(base) + _bytes(blocks) - _bytes(streamed) + ring
                if resident <= room:
                    return _Fit(resident, frozenset(unit.name for unit in streamed), slots)
        raise AssertionError("the floor was checked")

    def _kept_beside_a_card(
        self, needs: Sequence[_Need], fits: dict[str, _Fit], request: Request, tile: int
    ) -> dict[str, frozenset[str]]:
        """What is used most often comes first: in every step, for every picture, for every prompt."""
        by_name = {need.name: need for need in needs}
        core, streamed = by_name[self._core], fits[self._core].streamed
        others = (
            self.model.family.decoder.name,
            *(need.name for need in needs if need.phase == "encode" and not need.on_host),
        )
        order: list[tuple[str, Iterable[Unit]]] = [
            (self._core, [unit for unit in core.units if unit.name in streamed]),
            (self._core, [unit for unit in core.units if unit.name not in streamed]),
            *((name, by_name[name].units) for name in others),
            (self._core, core.component.of_role("modulation")),
        ]
        room = self.target.ram_budget_bytes - self._fixed_ram(needs, request, tile)
        if room < 0:
            raise self._refusal("ram", request, self._fixed_ram(needs, request, tile), self.target.ram_budget_bytes)
        # What runs on the CPU computes with its copy in RAM, which is counted before.
        kept = {need.name: {unit.name for unit in need.component.units if need.on_host} for need in needs}
        for name, units in order:
            for unit in units:
                if unit.nbytes <= room:
                    room -= unit.nbytes
                    kept[name].add(unit.name)
        return {name: frozenset(names) for name, names in kept.items()}

    def _on_the_cpu(
        self, needs: Sequence[_Need], request: Request, tile: int
    ) -> tuple[dict[str, _Fit], dict[str, frozenset[str]]]:
        """The device is host memory: what is kept there is computed with where it lies."""
        everything = [need.name for need in needs]
        largest = _reader(needs).name  # runs once a prompt
        rest = [name for name in everything if name not in (self._core, largest)]
        choices = [everything, [self._core, *rest], rest, []]
        for names in choices:
            held = sum(_bytes(need.component.units) for need in needs if need.name in names)
            room = self.target.ram_budget_bytes - self._fixed_ram(needs, request, tile) - held
            fits: dict[str, _Fit] = {}
            for need in needs:
                budget = self.target.budget_bytes
                if need.name not in names:
                    budget = min(budget, room)
                if need.floor_bytes > budget:
                    break
                fits[need.name] = fit = self._fit(need, budget)
                if need.name in names and need.work_bytes + self._slot_bytes(need, fit) > room:
                    break
            else:
                kept = {
                    need.name: frozenset(unit.name for unit in need.component.units if need.name in names)
                    for need in needs
                }
                return fits, kept
        floor = self._fixed_ram(needs, request, tile) + max(need.floor_bytes for need in needs)
        raise self._refusal("ram", request, floor, self.target.ram_budget_bytes)

    def _in_place(self, need: _Need, fit: _Fit, kept: frozenset[str]) -> bool:
        resident = {unit.name for unit in need.units} - fit.streamed
        on_host = need.on_host or not self.target.is_card
        return on_host and resident <= kept and len(kept) > 0

    def _slot_bytes(self, need: _Need, fit: _Fit) -> int:
        streamed = [unit.nbytes for unit in need.units if unit.name in fit.streamed]
        return fit.slots * max(streamed, default=0)

    def _staging_bytes(self, needs: Sequence[_Need]) -> int:
        if not self.target.is_card:
            return 0
        crossing = [need for need in needs if not need.on_host]
        return 2 * max(unit.nbytes for need in crossing for unit in need.component.units if unit.role != "base")

    def _fixed_ram(self, needs: Sequence[_Need], request: Request, tile: int) -> int:
        """What the process takes of RAM in any case."""
        assert request.width and request.height
        process = CARD_PROCESS_BYTES if self.target.is_card else CPU_PROCESS_BYTES
        table = sum(_table_bytes(need.component) for need in needs)
        (decoder,) = (need.component for need in needs if need.phase == "decode")
        parked = parked_bytes(decoder.module, self.model.size(request), decoder.dtype) if tile else 0
        (core,) = (need.component for need in needs if need.name == self._core)
        assert request.steps
        prompts = 2 if self._negative_passes else 1
        tables = prompts * request.steps * core.reader.total * core.reader.dtype.itemsize if core.reader else 0
        on_host = sum(_bytes(need.units) + need.work_bytes for need in needs if need.on_host)
        return process + self._staging_bytes(needs) + table + parked + tables + on_host

    # What is said about it.

    def _told(
        self,
        request: Request,
        tile: int,
        needs: Sequence[_Need],
        fits: dict[str, _Fit],
        placements: dict[str, Placement],
        pace: Pace,
    ) -> Plan:
        assert request.width and request.height and request.steps and request.precision
        by_name = {need.name: need for need in needs}
        phases = []
        for phase in ("encode", "denoise", "decode"):
            inside = [need for need in needs if need.phase == phase and not need.on_host]
            loaded = sum(self._loaded_bytes(need, placements[need.name]) for need in inside)
            top = max(inside, key=lambda need: need.work_bytes + fits[need.name].resident_bytes)
            resident = fits[top.name].resident_bytes
            streamed = sum(_bytes(_named(need.units, fits[need.name].streamed)) for need in inside)
            phases.append(
                PhasePlan(
                    name=phase,
                    resident_bytes=resident,
                    streamed_bytes_per_step=streamed * self._passes_a_step if phase == "denoise" else 0,
                    loaded_bytes=loaded,
                    activation_bytes=top.activation_bytes,
                    allowance_bytes=top.allowance_bytes,
                    peak_bytes=resident + top.work_bytes,
                )
            )
        held = sum(
            _bytes(_named(need.component.units, placements[need.name].kept)) for need in needs if not need.on_host
        )
        host, pinned = self._fixed_ram(needs, request, tile) + held, 0
        if self.target.is_card:
            core = by_name[self._core]
            crossing = placements[self._core].streamed & placements[self._core].kept
            pinned = _bytes(_named(core.units, crossing)) + self._staging_bytes(needs)
        else:
            host += max(
                need.work_bytes
                + (
                    self._slot_bytes(need, fits[need.name])
                    if placements[need.name].in_place
                    else fits[need.name].resident_bytes
                )
                for need in needs
            )
        reader = _reader(needs)
        part, how = self.model.family.part(reader.name), "streamed" if fits[reader.name].streamed else "whole"
        text_encoder = (
            f"{part.short}, {_parameters(reader.component)}, "
            f"{precision_of(part, request.form)}, {'on the CPU' if reader.on_host else how}"
        )
        return Plan(
            model=self.model.name,
            size=f"{request.width}x{request.height}",
            steps=request.steps,
            precision=request.precision,
            target=self.target.name,
            budget_bytes=self.target.budget_bytes,
            peak_bytes=max(phase.peak_bytes for phase in phases),
            ram_budget_bytes=self.target.ram_budget_bytes,
            host_bytes=host,
            pinned_bytes=pinned,
            phases=tuple(phases),
            text_encoder=text_encoder,
            tile=tile,
            same_prompt=self._turnaround(request, needs, placements, pace, new_prompt=False),
            new_prompt=self._turnaround(request, needs, placements, pace, new_prompt=True),
            notes=tuple(self._notes(request, by_name, placements, phases, pace)),
            elsewhere=self.model.elsewhere,
        )

    def _loaded_bytes(self, need: _Need, placement: Placement) -> int:
        """One-off traffic to the device for a component."""
        if need.phase == "encode":
            crossing = need.units if not placement.in_place else _named(need.units, placement.streamed)
            return _bytes(crossing)
        if placement.in_place:
            return 0
        resident = [unit for unit in need.units if unit.name not in placement.streamed]
        return _bytes(resident) + _bytes(need.component.of_role("modulation"))

    @property
    def _passes_a_step(self) -> int:
        """Of the transformer, in a step that is guided by a negative prompt if any is."""
        return 2 if self._negative_passes and self._batch == 1 else 1

    def _turnaround(
        self,
        request: Request,
        needs: Sequence[_Need],
        placements: dict[str, Placement],
        pace: Pace,
        *,
        new_prompt: bool,
    ) -> Turnaround:
        """Of the next picture: what crosses and is read, once and in every step, and how long its phases take."""
        assert request.steps and request.width and request.height
        moved, read = {"encode": 0, "denoise": 0, "decode": 0}, {"encode": 0, "denoise": 0, "decode": 0}  # once
        crossing = waited = 0  # in every pass of the transformer
        for need in needs:
            if need.on_host or (need.phase == "encode" and not new_prompt):
                continue
            placement = placements[need.name]
            moved[need.phase] += self._loaded_bytes(need, placement)
            if not new_prompt and not placement.in_place:
                moved[need.phase] -= _bytes(need.component.of_role("modulation"))
            wanted = need.component.units if new_prompt else need.units
            missing = [unit for unit in wanted if unit.name not in placement.kept]
            read[need.phase] += _bytes(missing)
            if need.phase == "denoise":
                crossing = _bytes(_named(need.units, placement.streamed))
                waited = _bytes(_named(missing, placement.streamed))
                read[need.phase] -= waited
        profile, reader = self.target.profile, _reader(needs)
        precision = request.form
        seconds = {"load": profile.move_seconds(moved["denoise"] + moved["decode"], read["denoise"] + read["decode"])}
        if new_prompt:
            seconds["encode"] = profile.encode_seconds(
                self._cost(request, reader.name),
                moved["encode"],
                read["encode"],
                precision,
                on_host=reader.on_host,
            )
        seconds["denoise"] = self._loop_seconds(request, pace)
        seconds["decode"] = profile.decode_seconds(self._cost(request, self.model.family.decoder.name), precision)
        passes = request.steps + (self._negative_passes if self._batch == 1 else 0)
        return Turnaround(sum(moved.values()) + passes * crossing, sum(read.values()) + passes * waited, seconds)

    def _notes(
        self,
        request: Request,
        by_name: dict[str, _Need],
        placements: dict[str, Placement],
        phases: Sequence[PhasePlan],
        pace: Pace,
    ) -> list[str]:
        notes = [note for note in (self.target.note, self.model.size_note(request)) if note]
        core, placement = by_name[self._core], placements[self._core]
        if self._negative_passes:
            how = "as one batch" if self._batch > 1 else "one after the other"
            notes.append(
                f"{self._negative_passes} of {request.steps} steps run the transformer with both prompts, {how}."
            )
        streamed = phases[1].streamed_bytes_per_step
        if streamed and self.target.is_card:
            crossing = self._passes_a_step * pace.moving_seconds
            compute = self._passes_a_step * self._batch * pace.compute_seconds
            hidden = "behind" if crossing <= compute else "longer than"
            notes.append(
                f"a step streams {size(streamed)} in about {duration(crossing)}, {hidden} about {duration(compute)} "
                "of compute."
            )
        unkept = _bytes(
            [unit for unit in core.units if unit.name in placement.streamed and unit.name not in placement.kept]
        )
        if unkept:
            smaller = not request.form.is_8_bits and "fp8" in self.model.precisions
            fp8 = ", or take --precision fp8" if smaller else ""
            notes.append(
                f"{size(unkept)} of weights are read from disk in every step, because RAM has no room for them; "
                f"allow more with --ram{fp8}."
            )
        return notes

    def _pace(self, request: Request, needs: Sequence[_Need], placement: Placement) -> Pace:
        """What a step computes, and what of its weights crosses to the card or comes from disk meanwhile."""
        core = next(need for need in needs if need.name == self._core)
        streamed = _named(core.units, placement.streamed)
        unkept = [unit for unit in streamed if unit.name not in placement.kept]
        profile = self.target.profile
        compute = profile.step_seconds(
            self._cost(request, self._core),
            _bytes(core.component.of_role("block")),
            request.form,
            self._kernel,
        )
        crossing = max(
            profile.move_seconds(_bytes(streamed), pinned=True), profile.move_seconds(_bytes(unkept), _bytes(unkept))
        )
        return Pace(compute, crossing, self._batch)

    def _cost(self, request: Request, part: str) -> Cost:
        return self.model.family.cost(part, self.model.configs[part], self.model.size(request))

    # What cannot work.

    def _refusal(self, field: str, request: Request, floor: int, budget: int) -> BudgetError:
        what = "RAM" if field == "ram" else "memory on the card" if self.target.is_card else "device memory"
        sentence = (
            f"{self.model.name} at {request.width}x{request.height} in {request.precision} needs at least "
            f"{_rounded_up(floor)} of {what}, and {field} allows {size(budget)}"
        )
        changes = self._changes(request, budget) if field == "vram" else []
        hint = f"; or take {', or '.join(changes)}" if changes else ""
        return BudgetError(field, f"{sentence}: allow --{field} {_argument(floor)}{hint}.", floor)

    def _changes(self, request: Request, budget: int) -> list[str]:
        """Up to three changes that need less, the cheapest first, each with the budget that it needs."""
        assert request.width and request.height
        smaller = [self._smaller(request, share) for share in (0.75, 0.5)]
        candidates = []
        if not request.form.is_8_bits and "fp8" in self.model.precisions:
            candidates.append(("--precision fp8", replace(request, precision="fp8")))
        candidates += [(f"--size {other.width}x{other.height}", other) for other in smaller if other != request]
        found, least = [], self._floor(request, None)
        if least <= budget:
            found.append("--tile auto")
        for text, other in candidates:
            floor = self._floor(other, None)
            if floor < least:
                found.append(f"{text} ({_rounded_up(floor)})")
        return found[:3]

    def _floor(self, request: Request, tile: int | None) -> int:
        """The smallest budget that works, with this tile or with whichever is best."""
        others = max(need.floor_bytes for need in self._needs(request) if not need.on_host)
        _, decoder = self._decoder(request, tile, others)
        return max(others, decoder.floor_bytes)

    @staticmethod
    def _smaller(request: Request, share: float) -> Request:
        assert request.width and request.height
        sides = [
            max(MIN_SIDE, round(side * share / SIDE_MULTIPLE) * SIDE_MULTIPLE)
            for side in (request.width, request.height)
        ]
        return replace(request, width=sides[0], height=sides[1])


def _reader(needs: Sequence[_Need]) -> _Need:
    """The last of the text encoders: the one that takes long."""
    return [need for need in needs if need.phase == "encode"][-1]


def _bytes(units: Iterable[Unit]) -> int:
    return sum(unit.nbytes for unit in units)


def _named(units: Iterable[Unit], names: frozenset[str]) -> list[Unit]:
    return [unit for unit in units if unit.name in names]


def _spread(units: Sequence[Unit], count: int) -> list[Unit]:
    """`count` of the units, at even distances."""
    total = len(units)
    return [unit for i, unit in enumerate(units) if (i + 1) * count // total > i * count // total]


def _table_bytes(component: Component) -> int:
    return math.prod(component.host_shape) * component.dtype.itemsize if component.host_shape else 0


def _parameters(component: Component) -> str:
    tied = component.cut.host_tables[1:]  # the table's other name
    count = sum(math.prod(shape) for name, shape in component.wanted.items() if name not in tied)
    if count >= 1e9:
        return f"{count / 1e9:.1f} billion parameters"
    return f"{count / 1e6:.{0 if count >= 1e7 else 1}f} million parameters"


def _rounded_up(count: int) -> str:
    """A size that is enough, as people read it."""
    unit, name = (2**30, "GiB") if count >= 2**30 else (MIB, "MiB")
    digits = 10 if count >= 2**30 else 1
    return f"{math.ceil(count / unit * digits) / digits:g} {name}"


def _argument(count: int) -> str:
    return _rounded_up(count).replace(" ", "")
