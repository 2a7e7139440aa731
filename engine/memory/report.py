"""A layout in words and figures: the `Plan` that people see."""

from __future__ import annotations

from collections.abc import Sequence

from engine.events import Phase, PhasePlan, Plan
from engine.memory.estimates import Placed, core_of, reader_of, turnaround_of
from engine.memory.layout import Pace, Task
from engine.memory.needs import Needs, bytes_of
from engine.memory.units import precision_of
from engine.text import duration, size


def plan_of(needs: Needs, task: Task, tile: int, placed: Sequence[Placed], pace: Pace) -> Plan:
    """What is said of where weights lie, by phase and as a whole."""
    request, model, target = task.request, needs.model, needs.target
    names: tuple[Phase, ...] = ("encode", "denoise", "decode")
    on_device = [each for each in placed if not each.need.on_host]
    phases = [_phase(name, [each for each in on_device if each.need.phase == name], task) for name in names]
    core = core_of(placed)
    of_all = [each.need for each in placed]
    host = needs.host_bytes(task, of_all, tile)
    host += sum(bytes_of(each.kept) for each in on_device)
    pinned = 0
    if target.is_card:
        pinned = needs.staging_bytes(of_all) + bytes_of(
            [unit for unit in core.streamed if unit.name in core.placement.kept]
        )
    else:
        host += max(
            each.need.work_bytes + (each.slot_bytes if each.placement.in_place else each.resident_bytes)
            for each in placed
        )
    return Plan(
        model=model.name,
        size=f"{request.width}x{request.height}",
        steps=request.steps,
        precision=request.precision,
        target=target.name,
        budget_bytes=target.budget_bytes,
        peak_bytes=max(phase.peak_bytes for phase in phases),
        ram_budget_bytes=target.ram_budget_bytes,
        host_bytes=host,
        pinned_bytes=pinned,
        phases=tuple(phases),
        text_encoder=_text_encoder(reader_of(placed), task),
        tile=tile,
        same_prompt=turnaround_of(model, target, task, placed, pace, new_prompt=False),
        new_prompt=turnaround_of(model, target, task, placed, pace, new_prompt=True),
        notes=tuple(_notes(needs, task, core, phases, pace)),
        elsewhere=model.elsewhere,
    )


def _phase(name: Phase, inside: Sequence[Placed], task: Task) -> PhasePlan:
    top = max(inside, key=lambda each: each.need.work_bytes + each.resident_bytes)
    streamed = sum(bytes_of(each.streamed) for each in inside)
    return PhasePlan(
        name=name,
        resident_bytes=top.resident_bytes,
        streamed_bytes_per_step=streamed * task.passes_a_step if name == "denoise" else 0,
        loaded_bytes=sum(each.loaded_bytes for each in inside),
        activation_bytes=top.need.activation_bytes,
        allowance_bytes=top.need.allowance_bytes,
        peak_bytes=top.resident_bytes + top.need.work_bytes,
    )


def _text_encoder(reader: Placed, task: Task) -> str:
    part = reader.need.part
    where = "on the CPU" if reader.need.on_host else "streamed" if reader.placement.streamed else "whole"
    return f"{part.short}, {_parameters(reader.need.parameters)}, {precision_of(part, task.request.form)}, {where}"


def _parameters(count: int) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.1f} billion parameters"
    return f"{count / 1e6:.{0 if count >= 1e7 else 1}f} million parameters"


def _notes(needs: Needs, task: Task, core: Placed, phases: Sequence[PhasePlan], pace: Pace) -> list[str]:
    model, request = needs.model, task.request
    notes = [note for note in (needs.target.note, model.size_note(request)) if note]
    if task.negative_passes:
        how = "as one batch" if task.batch > 1 else "one after the other"
        notes.append(f"{task.negative_passes} of {request.steps} steps run the transformer with both prompts, {how}.")
    streamed = phases[1].streamed_bytes_per_step
    if streamed and needs.target.is_card:
        crossing = task.passes_a_step * pace.moving_seconds
        compute = task.passes_a_step * task.batch * pace.compute_seconds
        hidden = "behind" if crossing <= compute else "longer than"
        notes.append(
            f"a step streams {size(streamed)} in about {duration(crossing)}, {hidden} about {duration(compute)} "
            "of compute."
        )
    unkept = bytes_of(core.unkept(core.streamed))
    if unkept:
        smaller = not request.form.is_8_bits and "fp8" in model.precisions
        fp8 = ", or take --precision fp8" if smaller else ""
        notes.append(
            f"{size(unkept)} of weights are read from disk in every step, because RAM has no room for them; "
            f"allow more with --ram{fp8}."
        )
    return notes
