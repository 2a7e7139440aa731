"""The precision that a picture is painted in where nobody names one: `--precision auto`.

The rule: the best picture that streams no weights in its steps; where all would, the fastest, counted from a new prompt
to its pixels. Better is what is nearer to the weights as they are stored: those themselves, then bf16, then 8 bits, of
which the faster form is taken, by what a probe measured on this card, else by the card's profile. Weights that are
stored in FP8 stay in it, because int8 would round them anew; a GGUF has 8 bits at most. Without a card it is what the
model prefers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engine.memory.layout import BudgetError, Layout
from engine.request import Resolved
from engine.text import duration, size
from engine.weights.model import Model

LEVELS = (("fp32",), ("bf16",), ("fp8", "int8"))  # the best first; what is in one level is equally good


@dataclass(frozen=True, slots=True)
class _Tried:
    """A precision, with its layout or the reason why there is none."""

    request: Resolved
    layout: Layout | None
    refusal: BudgetError | None = None

    @property
    def streamed_bytes(self) -> int:
        """In every step."""
        assert self.layout is not None
        return max(phase.streamed_bytes_per_step for phase in self.layout.plan.phases)

    @property
    def seconds(self) -> float:
        """Of a picture, from a new prompt to its pixels."""
        assert self.layout is not None
        return self.layout.plan.new_prompt.seconds

    @property
    def is_resident(self) -> bool:
        return self.layout is not None and not self.streamed_bytes


def levels(model: Model, *, on_card: bool) -> tuple[tuple[str, ...], ...]:
    """The precisions that may be chosen for a model, the best first."""
    preferred, known = model.defaults.precision, model.precisions
    if not on_card:
        return ((preferred,),)
    stored = model.found.get(model.family.core.name)
    if stored is not None and stored.is_fp8:
        wanted: Sequence[tuple[str, ...]] = ("fp8",), ("int8",)
    else:
        wanted = LEVELS[next(place for place, level in enumerate(LEVELS) if preferred in level) :]
    return tuple(tuple(precision for precision in level if precision in known) for level in wanted)


def choose(candidates: Sequence[Sequence[Resolved]], plan: Callable[[Resolved], Layout]) -> tuple[Resolved, Layout]:
    """The request to paint, of those that differ in precision alone, and its layout, whose plan says why.

    `candidates` come by level, the best first. Raises `BudgetError` where none fits: that of the smallest budget.
    """
    tried: list[_Tried] = []
    for level in candidates:
        here = [_try(request, plan) for request in level]
        resident = [each for each in here if each.is_resident]
        if resident:
            best = min(resident, key=lambda each: each.seconds)
            return _explained(best, [*tried, *(each for each in here if each is not best)])
        tried += here
    fitting = [each for each in tried if each.layout is not None]
    if not fitting:
        raise min((each.refusal for each in tried if each.refusal), key=lambda refusal: refusal.floor_bytes)
    best = min(fitting, key=lambda each: each.seconds)
    return _explained(best, [each for each in tried if each is not best])


def _try(request: Resolved, plan: Callable[[Resolved], Layout]) -> _Tried:
    try:
        return _Tried(request, plan(request))
    except BudgetError as error:
        return _Tried(request, None, error)


def _explained(best: _Tried, others: Sequence[_Tried]) -> tuple[Resolved, Layout]:
    """`others` were considered; the reason is about those that come nearest."""
    layout, precision = best.layout, best.request.precision
    assert layout is not None
    if not others:
        reason = "as the model prefers it"
    elif best.is_resident:
        reason = "; ".join(_why_not(each) for each in others[-2:])
    else:
        slower = ", ".join(f"{each.request.precision} {duration(each.seconds)}" for each in others if each.layout)
        rest = f" ({slower})" if slower else ""
        reason = f"none fits whole, and it is the fastest, {duration(best.seconds)} a picture{rest}"
    return best.request, replace(layout, plan=replace(layout.plan, precision_reason=f"{precision}: {reason}"))


def _why_not(other: _Tried) -> str:
    """What speaks against a precision beside one that streams nothing."""
    name = other.request.precision
    if other.refusal is not None:
        of_ram = " of RAM" if other.refusal.field == "ram" else ""
        return f"{name} needs at least {size(other.refusal.floor_bytes)}{of_ram}"
    assert other.layout is not None
    if other.streamed_bytes:
        return f"{name} would stream {size(other.streamed_bytes)} a step"
    return f"{name} would take {duration(other.seconds)} a picture"
