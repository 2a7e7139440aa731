"""The course of one picture: its phases and its memory over time, as foreseen and as measured.

A course is fed with what the engine says. It is plain data, so that the history keeps a short form of it beside the
picture, and two of them can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from engine.events import (
    TERMINAL,
    Event,
    MemorySample,
    Phase,
    PhaseFinished,
    PhaseStarted,
    Plan,
    Planned,
    Simulated,
    StepFinished,
)

ORDER: tuple[Phase, ...] = ("encode", "denoise", "decode", "save")
GAP_SECONDS = 0.005  # between two phases, that is no loading
SAVE_SECONDS = 0.05  # foreseen
MAX_SAMPLES = 4000  # then every second one goes
KEPT_SAMPLES, KEPT_STEPS = 240, 200  # in the short form
TICKS = 10_000  # a second, in the short form
MAX_BYTES, MAX_SECONDS = 2**50, 10**7  # of what is read back


@dataclass(frozen=True, slots=True)
class Stretch:
    """A phase's place in time, in seconds since the job began."""

    phase: Phase
    began: float
    ended: float
    state: str = "done"  # or running, waiting


@dataclass(frozen=True, slots=True)
class Slope:
    """What is foreseen of memory from one moment to another, in bytes."""

    began: float
    ended: float
    first_bytes: int
    last_bytes: int


class Course:
    """One picture on its way."""

    def __init__(self, plan: Plan | None = None, *, simulated: bool = False) -> None:
        """`simulated`: nobody waits for it, and its time is what events say that it would take."""
        self._simulated = simulated
        self.plan: Plan | None = None
        self.in_ram = False  # there is no card: memory is the process's
        self.steps = 0
        self.step_ends: list[float] = []
        self.samples: list[tuple[float, int]] = []  # (seconds, bytes)
        self.ended = False
        self._done: list[Stretch] = []
        self._running: tuple[Phase, float] | None = None
        self._now = 0.0
        self._slopes: list[Slope] | None = None  # of a course that was kept
        self._budget_bytes = 0
        if plan is not None:
            self._follow(plan)

    def _follow(self, plan: Plan) -> None:
        self.plan, self.steps = plan, plan.steps
        # Unless a card is played by a smaller budget of the same memory.
        self.in_ram = plan.target == "cpu" and plan.budget_bytes >= plan.ram_budget_bytes

    @property
    def now(self) -> float:
        """How far it is, in seconds."""
        return self._now

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of it, neither foreseen nor measured."""
        return self.plan is None and not self._done and not self.samples

    def take(self, event: Event) -> None:
        """Take over what an event says."""
        now = self._estimated(event) if self._simulated else max(self._now, event.elapsed_seconds)
        match event:
            case Planned(plan=plan):
                self._follow(plan)
            case PhaseStarted(phase=phase):
                self._close_gap(now)
                self._running = phase, now
            case PhaseFinished(phase=phase):
                began = self._running[1] if self._running is not None else now
                self._done.append(Stretch(phase, began, now))
                self._running = None
            case StepFinished(step=step, steps=steps):
                self.steps = steps
                self._step_to(step, now)
        if isinstance(event, TERMINAL):
            if self._running is not None and not isinstance(event, Simulated):
                self._done.append(Stretch(*self._running, now))
            self._running, self.ended = None, True
        elif self.plan is not None and not (self._simulated and isinstance(event, PhaseStarted)):
            memory = event.memory
            used = memory.ram_bytes if self.in_ram else memory.device_bytes
            if used is not None:
                if self._simulated:
                    self._add(self._now, used)
                self._add(now, used)
        self._now = now

    def _estimated(self, event: Event) -> float:
        """When an event of a simulated run would come."""
        match event:
            case PhaseStarted(phase=phase):
                return self._now + self._loading_before(phase)
            case StepFinished(step=step, seconds=seconds):
                return self._now + seconds * (step - len(self.step_ends))
            case PhaseFinished(seconds=seconds) if self._running is not None:
                return self._running[1] + seconds
        return self._now

    def sampled(self, samples: Iterable[MemorySample]) -> None:
        """Take over what was measured."""
        for sample in samples if not self._simulated else ():
            used = sample.ram_bytes if self.in_ram else sample.device_bytes
            if used is not None and self.plan is not None:
                self._add(sample.seconds, used)
            if not self.ended:
                self._now = max(self._now, sample.seconds)

    def _add(self, seconds: float, used: int) -> None:
        self.samples.append((seconds, used))
        if len(self.samples) > MAX_SAMPLES:
            self.samples = _thinned(self.samples, MAX_SAMPLES // 2)

    def _step_to(self, step: int, now: float) -> None:
        """A step has ended; of those in a row only the last may have been told."""
        began = self._running[1] if self._running is not None else now
        last, missing = (self.step_ends or [began])[-1], step - len(self.step_ends)
        self.step_ends += [last + (now - last) * (number + 1) / missing for number in range(missing)]

    def _close_gap(self, now: float) -> None:
        """What is between two phases is loading."""
        before = self._done[-1].ended if self._done else 0.0
        if now - before > GAP_SECONDS:
            self._done.append(Stretch("load", before, now))

    # What is seen of it.

    @property
    def budget_bytes(self) -> int:
        """That it is to stay in; 0 where it is not known."""
        if self.plan is None:
            return self._budget_bytes
        return self.plan.ram_budget_bytes if self.in_ram else self.plan.budget_bytes

    @property
    def peak_bytes(self) -> int | None:
        """The most that was measured."""
        return max((used for _, used in self.samples), default=None)

    @property
    def foreseen_bytes(self) -> int | None:
        """The most that was foreseen."""
        return max((max(slope.first_bytes, slope.last_bytes) for slope in self.slopes()), default=None)

    def stretches(self) -> list[Stretch]:
        """All phases in their order: past ones as long as they took, others as long as they are estimated to take."""
        stretches = list(self._done)
        if self.ended or self._slopes is not None:
            return stretches
        at = self._now
        begun = {stretch.phase for stretch in stretches}
        if self._running is not None:
            phase, began = self._running
            at = max(self._now, began + self._seconds_of(phase))
            if phase == "denoise" and self.step_ends and self.steps:
                each = (self.step_ends[-1] - began) / len(self.step_ends)
                at = max(self._now, self.step_ends[-1] + each * (self.steps - len(self.step_ends)))
            stretches.append(Stretch(phase, began, at, "running"))
            begun.add(phase)
        elif stretches and at - stretches[-1].ended > GAP_SECONDS:
            stretches.append(Stretch("load", stretches[-1].ended, at, "running"))
        last = max((ORDER.index(phase) for phase in begun if phase in ORDER), default=-1)
        for phase in ORDER[last + 1 :]:
            loading = self._loading_before(phase)
            if stretches and stretches[-1].phase == "load" and stretches[-1].state == "running":
                began = stretches.pop().began
                stretches.append(Stretch("load", began, at := max(at, began + loading), "running"))
            elif loading > GAP_SECONDS:
                stretches.append(Stretch("load", at, at := at + loading, "waiting"))
            if seconds := self._seconds_of(phase):
                stretches.append(Stretch(phase, at, at := at + seconds, "waiting"))
        return stretches

    def slopes(self) -> list[Slope]:
        """What is foreseen of memory, over the stretches."""
        if self._slopes is not None:
            return self._slopes
        if self.plan is None:
            return []
        phases = {phase.name: phase for phase in self.plan.phases}
        stretches, slopes = self.stretches(), []
        for place, stretch in enumerate(stretches):
            following = next((phases[each.phase] for each in stretches[place:] if each.phase in phases), None)
            if self.in_ram:
                first = last = self.plan.host_bytes
            elif stretch.phase in phases:
                first = last = phases[stretch.phase].peak_bytes
            else:  # weights come in, up to what the next phase keeps there; nothing comes in before saving
                first, last = 0, 0 if following is None or stretch.phase == "save" else following.resident_bytes
            slopes.append(Slope(stretch.began, stretch.ended, first, last))
        return slopes

    def _seconds_of(self, phase: Phase) -> float:
        """Foreseen."""
        if phase == "save":
            return SAVE_SECONDS
        return 0.0 if self.plan is None else self.plan.new_prompt.seconds_by_phase.get(phase, 0.0)

    def _loading_before(self, phase: Phase) -> float:
        """Foreseen seconds; those before encode are in the estimate of encode."""
        if self.plan is None or phase not in ("denoise", "decode"):
            return 0.0
        shares = {each.name: each.loaded_bytes for each in self.plan.phases if each.name != "encode"}
        total = sum(shares.values())
        return self.plan.new_prompt.seconds_by_phase.get("load", 0.0) * shares[phase] / total if total else 0.0

    # The short form.

    def to_dict(self) -> dict[str, Any]:
        """A few kilobytes of plain values: tenths of milliseconds and KiB, as whole numbers."""

        def moments(values: Sequence[float]) -> list[int]:
            return [round(TICKS * value) for value in values]

        step = max(1, math.ceil(len(self.step_ends) / KEPT_STEPS))
        return {
            "ram": self.in_ram,
            "budget": self.budget_bytes >> 10,
            "stretches": [[each.phase, *moments((each.began, each.ended))] for each in self.stretches()],
            "steps": moments(self.step_ends[step - 1 :: step]),
            "samples": [[round(TICKS * when), used >> 10] for when, used in _thinned(self.samples, KEPT_SAMPLES)],
            "slopes": [
                [*moments((each.began, each.ended)), each.first_bytes >> 10, each.last_bytes >> 10]
                for each in self.slopes()
            ],
        }

    @classmethod
    def from_dict(cls, values: Any) -> Course:
        """A course that was kept. Raises ValueError for what `to_dict` does not write."""
        course = cls()
        try:
            course.in_ram = bool(values["ram"])
            course._budget_bytes = _whole(values["budget"], MAX_BYTES) << 10
            for phase, began, ended in values["stretches"][: 2 * KEPT_STEPS]:
                if phase not in get_args(Phase):
                    raise ValueError
                course._done.append(Stretch(phase, _seconds(began), _seconds(ended)))
            course.step_ends = [_seconds(end) for end in values["steps"][:KEPT_STEPS]]
            course.steps = len(course.step_ends)
            for when, used in values["samples"][: 2 * KEPT_SAMPLES]:
                course.samples.append((_seconds(when), _whole(used, MAX_BYTES) << 10))
            course._slopes = [
                Slope(_seconds(began), _seconds(ended), _whole(first, MAX_BYTES) << 10, _whole(last, MAX_BYTES) << 10)
                for began, ended, first, last in values["slopes"][: 2 * KEPT_STEPS]
            ]
        except (KeyError, TypeError, IndexError, ValueError):
            raise ValueError("this is no course of a picture") from None
        course.ended = True
        course._now = max((each.ended for each in course._done), default=0.0)
        return course


def _thinned(samples: Sequence[tuple[float, int]], count: int) -> list[tuple[float, int]]:
    """At most `count` of them, of neighbours the highest."""
    if len(samples) <= count:
        return list(samples)
    size = math.ceil(len(samples) / count)
    return [max(samples[at : at + size], key=lambda sample: sample[1]) for at in range(0, len(samples), size)]


def _whole(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError
    return value


def _seconds(moment: object) -> float:
    return _whole(moment, TICKS * MAX_SECONDS) / TICKS
