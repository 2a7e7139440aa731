"""How strongly each step follows the prompt: one weight a step, from schedules over the course of the denoising.

A weight w is that of classifier-free guidance as `v = v_neg + w (v_pos - v_neg)` has it: 1 is the model without it. All
schedules of a scale spend the same guidance, the sum of w_i (sigma_i - sigma_(i+1)), and differ in when they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from engine.request import SCHEDULES, Resolved

LOW, HIGH = (SCHEDULES["interval"][bound][2] for bound in ("low", "high"))  # TV-CFG's authors guide in between


def weights(kind: str, scale: float, sigmas: Sequence[float], **options: float) -> list[float]:
    """One weight for each step of `sigmas`, the N + 1 flow times from 1 (noise) to 0.

    | kind | shape | source |
    |---|---|---|
    | constant | the scale | Ho and Salimans, arXiv:2207.12598 |
    | interval | high between the flow times `low` and `high`, 1 elsewhere | Kynkaanniemi et al., arXiv:2404.07724 |
    | tv | low, high, low: a triangle over step numbers | TV-CFG, arXiv:2509.22007, the authors' program |
    | tv-anchored | the same with both ends exactly 1, where no second pass is needed | ours |
    | linear, cosine | rising from 0 with the progress | Wang et al., arXiv:2404.13040 |
    | beta | the density of Beta(2, 2) over the progress | beta-CFG, arXiv:2502.10574, without its norm |

    The progress of step i is (i + 1/2) / N. Raises `ValueError` for a scale below 1, an unknown kind or option, and
    flow times that do not fall.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no schedule {kind!r}")
    if not (math.isfinite(scale) and scale >= 1):
        raise ValueError(f"a scale is at least 1, not {scale}")
    spans = [before - after for before, after in pairwise(sigmas)]
    if not spans or min(spans) <= 0 or not all(map(math.isfinite, sigmas)):
        raise ValueError("flow times have to fall from step to step")
    shares = [span / math.fsum(spans) for span in spans]  # of the way from noise to picture
    if len(shares) == 1:
        return [scale]
    return KINDS[kind](scale, sigmas, shares, **options)


@dataclass(frozen=True, slots=True)
class Steering:
    """The guidance of every step of a picture."""

    distilled: tuple[float, ...] | None  # what the transformer is told; None: it takes no guidance
    cfg: tuple[float, ...] | None  # of true guidance; None: there is one pass
    notice: str = ""  # a sentence for the person

    @property
    def negative_passes(self) -> int:
        """How many steps need a pass with the negative prompt."""
        return sum(weight != 1 for weight in self.cfg or ())


def steering(request: Resolved, sigmas: Sequence[float], limits: tuple[float, float]) -> Steering:
    """What a complete request wants of every step of `sigmas`; `limits` are the distilled guidance that was trained.

    A schedule is of true guidance where that is on, else of the distilled one, which stays within its limits.
    """
    steps = len(sigmas) - 1
    kind, options = request.schedule
    distilled = None if request.guidance is None else (request.guidance,) * steps
    if request.cfg is not None:
        return Steering(distilled, tuple(weights(kind, request.cfg, sigmas, **options)))
    if request.guidance is None or kind == "constant":
        return Steering(distilled, None)
    wanted = weights(kind, request.guidance, sigmas, **options)
    distilled = tuple(min(max(weight, limits[0]), limits[1]) for weight in wanted)
    notice = "a schedule of distilled guidance is an experiment: the model was not trained to change it"
    if (reached := mean(distilled, sigmas)) != mean(wanted, sigmas):
        notice += (
            f"; kept from {limits[0]:g} to {limits[1]:g}, its mean is {reached:.2f} in place of {request.guidance:g}"
        )
    return Steering(distilled, None, f"{notice}.")


def mean(schedule: Sequence[float], sigmas: Sequence[float]) -> float:
    """The guidance that a schedule spends: its mean over flow time."""
    spans = [before - after for before, after in pairwise(sigmas)]
    return math.fsum(w * span for w, span in zip(schedule, spans, strict=True)) / math.fsum(spans)


def _constant(scale: float, sigmas: Sequence[float], shares: Sequence[float]) -> list[float]:
    return [scale] * len(shares)


def _interval(
    scale: float, sigmas: Sequence[float], shares: Sequence[float], low: float = LOW, high: float = HIGH
) -> list[float]:
    inside = [low < sigma < high for sigma in sigmas[:-1]]
    share = math.fsum(share for share, within in zip(shares, inside, strict=True) if within)
    if not any(inside) or all(inside):
        return [scale] * len(shares)
    value = (scale - (1 - share)) / share
    return [value if within else 1.0 for within in inside]


def _tv(scale: float, sigmas: Sequence[float], shares: Sequence[float]) -> list[float]:
    low, high = 1.0, 2 * scale - 1
    raw = [low + (high - low) * height for height in _triangle(len(shares))]
    return _scaled(raw, shares, scale)


def _tv_anchored(scale: float, sigmas: Sequence[float], shares: Sequence[float]) -> list[float]:
    return [1 + excess for excess in _scaled(_triangle(len(shares)), shares, scale - 1)]


def _over_progress(shape: Callable[[float], float]) -> Callable[..., list[float]]:
    def schedule(scale: float, sigmas: Sequence[float], shares: Sequence[float]) -> list[float]:
        return _scaled([shape((step + 0.5) / len(shares)) for step in range(len(shares))], shares, scale)

    return schedule


def _triangle(steps: int) -> list[float]:
    """From 0 up to 1 and down to 0; of an even number of steps the highest is the first of the second half."""
    rising = [step / (steps // 2) for step in range(steps // 2)]
    if steps % 2:
        return [*rising, 1.0, *reversed(rising)]
    last = max(1, steps // 2 - 1)
    return [*rising, *(1 - step / last for step in range(steps // 2))]


def _scaled(raw: Sequence[float], shares: Sequence[float], target: float) -> list[float]:
    """Multiplied so that the mean over flow time is `target`."""
    found = math.fsum(value * share for value, share in zip(raw, shares, strict=True))
    return [value * target / found for value in raw]


KINDS: dict[str, Callable[..., list[float]]] = {
    "constant": _constant,
    "interval": _interval,
    "tv": _tv,
    "tv-anchored": _tv_anchored,
    "linear": _over_progress(lambda progress: progress),
    "cosine": _over_progress(lambda progress: 1 - math.cos(math.pi * progress)),
    "beta": _over_progress(lambda progress: 6 * progress * (1 - progress)),
}
