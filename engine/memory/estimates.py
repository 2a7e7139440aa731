"""How long a plan takes and what it moves: estimates from the target's profile and the family's costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.events import Turnaround
from engine.families.facts import Cost
from engine.memory.layout import Pace, Task
from engine.memory.needs import Need, bytes_of, named
from engine.memory.placement import Placement
from engine.memory.target import Target
from engine.memory.units import Unit
from engine.weights.model import Model


@dataclass(frozen=True, slots=True)
class Placed:
    """A component, and where its weights lie."""

    need: Need
    resident_bytes: int  # on the device while it runs, the ring's slots among them
    placement: Placement

    @property
    def streamed(self) -> list[Unit]:
        """What crosses to the device in every pass."""
        return named(self.need.units, self.placement.streamed)

    @property
    def slot_bytes(self) -> int:
        """Of the ring."""
        return self.placement.slots * max((unit.nbytes for unit in self.streamed), default=0)

    @property
    def kept(self) -> list[Unit]:
        """What stays in RAM between pictures."""
        return named(self.need.component.units, self.placement.kept)

    @property
    def loaded_bytes(self) -> int:
        """One-off traffic to the device."""
        if self.need.phase == "encode":
            return bytes_of(self.streamed if self.placement.in_place else self.need.units)
        if self.placement.in_place:
            return 0
        resident = [unit for unit in self.need.units if unit.name not in self.placement.streamed]
        return bytes_of(resident) + self.modulation_bytes

    @property
    def modulation_bytes(self) -> int:
        """Of the layers that are in the tables: read once a prompt."""
        return bytes_of(self.need.component.of_role("modulation"))

    def unkept(self, units: Iterable[Unit]) -> list[Unit]:
        """Those of the units that are read from disk anew."""
        return [unit for unit in units if unit.name not in self.placement.kept]


def pace_of(model: Model, target: Target, task: Task, core: Placed) -> Pace:
    """What a step computes, and what of its weights crosses to the card or comes from disk meanwhile."""
    profile, streamed = target.profile, core.streamed
    compute = profile.step_seconds(
        cost_of(model, task, core.need),
        bytes_of(core.need.component.of_role("block")),
        task.request.form,
        task.kernel,
    )
    read = bytes_of(core.unkept(streamed))
    moving = max(profile.move_seconds(bytes_of(streamed), pinned=True), profile.move_seconds(read, read))
    return Pace(compute, moving, task.batch)


def turnaround_of(
    model: Model, target: Target, task: Task, placed: Sequence[Placed], pace: Pace, *, new_prompt: bool
) -> Turnaround:
    """Of the next picture: what crosses and is read, once and in every step, and how long its phases take."""
    moved, read = {"encode": 0, "denoise": 0, "decode": 0}, {"encode": 0, "denoise": 0, "decode": 0}  # once
    crossing = waited = 0  # in every pass of the transformer
    for each in placed:
        need = each.need
        if need.on_host or (need.phase == "encode" and not new_prompt):
            continue
        moved[need.phase] += each.loaded_bytes
        if not new_prompt and not each.placement.in_place:
            moved[need.phase] -= each.modulation_bytes
        missing = each.unkept(need.component.units if new_prompt else need.units)
        read[need.phase] += bytes_of(missing)
        if need.phase == "denoise":
            crossing = bytes_of(each.streamed)
            waited = bytes_of(named(missing, each.placement.streamed))
            read[need.phase] -= waited
    profile, precision = target.profile, task.request.form
    seconds = {"load": profile.move_seconds(moved["denoise"] + moved["decode"], read["denoise"] + read["decode"])}
    if new_prompt:
        reader = reader_of(placed).need
        seconds["encode"] = profile.encode_seconds(
            cost_of(model, task, reader), moved["encode"], read["encode"], precision, on_host=reader.on_host
        )
    (decoder,) = (each.need for each in placed if each.need.phase == "decode")
    seconds["denoise"] = pace.loop_seconds(task)
    seconds["decode"] = profile.decode_seconds(cost_of(model, task, decoder), precision)
    passes = task.passes
    return Turnaround(sum(moved.values()) + passes * crossing, sum(read.values()) + passes * waited, seconds)


def reader_of(placed: Sequence[Placed]) -> Placed:
    """The last of the text encoders: the one that takes long."""
    return [each for each in placed if each.need.phase == "encode"][-1]


def core_of(placed: Sequence[Placed]) -> Placed:
    """The transformer, or whatever takes the steps."""
    (core,) = (each for each in placed if each.need.phase == "denoise")
    return core


def cost_of(model: Model, task: Task, need: Need) -> Cost:
    """What a component computes for the task's picture."""
    return model.family.cost(need.name, model.configs[need.name], model.size(task.request))
