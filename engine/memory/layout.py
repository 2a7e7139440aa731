"""What a plan is made for, and what it comes to: small values that jobs and the choice of a precision read, too."""

from __future__ import annotations

from dataclasses import dataclass

from engine.events import Plan
from engine.memory.placement import Placement
from engine.request import RequestError, Resolved


@dataclass(frozen=True, slots=True)
class Task:
    """A picture to be planned."""

    request: Resolved
    tile: int | None = None  # pixels a side that are decoded at a time, 0 for the whole; None: to be chosen
    kernel: str | None = None  # how 8-bit layers will multiply
    negative_passes: int = 0  # steps with a second pass of the transformer
    batch: int = 1  # prompts that the transformer is given at a time

    @property
    def prompts(self) -> int:
        """That the transformer is guided by."""
        return 2 if self.negative_passes else 1

    @property
    def passes_a_step(self) -> int:
        """Of the transformer, in a step that is guided by a negative prompt if any is."""
        return 2 if self.negative_passes and self.batch == 1 else 1

    @property
    def passes(self) -> int:
        """Of the transformer, in all steps."""
        return self.request.steps + (self.negative_passes if self.batch == 1 else 0)


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

    def loop_seconds(self, task: Task) -> float:
        """All steps."""
        guided = task.negative_passes * self.step_seconds(2)
        return guided + (task.request.steps - task.negative_passes) * self.step_seconds(1)


class BudgetError(RequestError):
    """A budget that cannot work; `floor_bytes` is the smallest that would."""

    def __init__(self, field: str, message: str, floor_bytes: int) -> None:
        super().__init__(field, message)
        self.floor_bytes = floor_bytes
