"""What a person asks for: one frozen `Request`, validated at the door."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
MAX_COUNT = 1000
MAX_GUIDANCE = 30.0
MAX_PROMPT_CHARACTERS = 10_000
MIN_SIDE, MAX_SIDE, SIDE_MULTIPLE = 64, 2048, 16
PRECISIONS = ("fp32", "bf16", "fp8", "int8")  # fp8: of the weights, computed in bf16; int8: of activations as well
SALIENCES = ("off", "csb", "csb+ssc")  # how channels that are hard to round are balanced in int8


class RequestError(ValueError):
    """Bad input: `field` names what was wrong, the message says what is allowed and what to do.

    `machine` says that the request is fine and the machine cannot do it (a full disk).
    """

    def __init__(self, field: str, message: str, machine: bool = False) -> None:
        super().__init__(message)
        self.field = field
        self.machine = machine

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, str, bool]]:
        return (RequestError, (self.field, str(self), self.machine))


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a model fills in where a request leaves a choice open."""

    steps: int
    width: int
    height: int
    guidance: float | None  # None: the model takes no guidance input
    precision: str


@dataclass(frozen=True, slots=True)
class Option:
    """A field of `Request` that an open model lets the person choose, and what it may be.

    Numbers run from `low` to `high` in multiples of `multiple`; a text is one of `choices`, a bool is on or off.
    """

    name: str
    default: int | float | str | bool
    low: float | None = None
    high: float | None = None
    multiple: float | None = None
    choices: tuple[str | bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One job: a prompt and how to paint it. None means "as the model prefers" (a random number for the seed).

    Image k of `count` uses seed + k. `template` is what the person wrote where the prompt is one variant of it; it
    changes no pixel. Raises `RequestError` where a value is out of range.
    """

    prompt: str
    steps: int | None = None
    seed: int | None = None
    width: int | None = None  # pixels
    height: int | None = None  # pixels
    count: int = 1
    guidance: float | None = None
    precision: str | None = None
    salience: str | None = None  # of int8
    distill: bool = False  # a smaller text encoder (DistillT5) in T5's place
    template: str | None = None

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        if self.template is not None:
            _check_text("template", self.template)
        _check_integer("steps", self.steps, 1, MAX_STEPS)
        _check_integer("count", self.count, 1, MAX_COUNT)
        _check_integer("seed", self.seed, 0, MAX_SEED)
        if self.seed is not None and self.seed + self.count - 1 > MAX_SEED:
            raise RequestError(
                "seed", f"seed {self.seed} with count {self.count} passes 2**63 - 1; take a smaller seed."
            )
        for name in ("width", "height"):
            side = getattr(self, name)
            _check_integer(name, side, MIN_SIDE, MAX_SIDE)
            if side is not None and side % SIDE_MULTIPLE:
                lower = side - side % SIDE_MULTIPLE
                raise RequestError(
                    name,
                    f"{name} {side} is not a multiple of {SIDE_MULTIPLE}; "
                    f"the nearest are {lower} and {lower + SIDE_MULTIPLE}.",
                )
        if self.guidance is not None:
            number = isinstance(self.guidance, (int, float)) and not isinstance(self.guidance, bool)
            if not number or not math.isfinite(self.guidance) or not 0 <= self.guidance <= MAX_GUIDANCE:
                raise RequestError(
                    "guidance", f"guidance must be a number from 0 to {MAX_GUIDANCE:g}, got {_shown(self.guidance)}."
                )
        for name, choices in (("precision", PRECISIONS), ("salience", SALIENCES)):
            choice = getattr(self, name)
            if choice is not None and choice not in choices:
                raise RequestError(name, f"{name} must be one of {', '.join(choices)}, got {_shown(choice)}.")
        if not isinstance(self.distill, bool):
            raise RequestError("distill", f"distill must be true or false, got {_shown(self.distill)}.")

    def resolved(self, defaults: Defaults) -> Request:
        """This request with every open choice filled in: what the metadata record and a picture repeats."""
        choices = {
            name: value if (value := getattr(self, name)) is not None else getattr(defaults, name)
            for name in ("steps", "width", "height", "guidance", "precision")
        }
        seed = self.seed if self.seed is not None else random.SystemRandom().randrange(2**32)
        return replace(self, seed=seed, **choices)

    @property
    def form(self) -> str:
        """How the transformer's weights are stored: the precision, in int8 with the balancing: "int8+csb"."""
        balanced = self.precision == "int8" and self.salience not in (None, "off")
        return f"{self.precision}+{self.salience}" if balanced else str(self.precision)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Request:
        """The request in `values` (untrusted: wrong types and unknown keys raise `RequestError`)."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(str(key) for key in values if key not in known)
        if unknown:
            raise RequestError("request", f"unknown request fields: {_shown(', '.join(unknown))}.")
        if "prompt" not in values:
            raise RequestError("prompt", "the request has no prompt.")
        return cls(**values)


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise RequestError(name, f"{name} must be text, got {type(text).__name__}.")
    if not text.strip():
        raise RequestError(name, f"{name} is empty; say what the picture should show.")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise RequestError(name, f"{name} has {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(name, f"{name} holds characters that are not valid Unicode; type it again.") from None


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if value is None and name != "count":
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        limit = "2**63 - 1" if high == MAX_SEED else str(high)
        raise RequestError(name, f"{name} must be a whole number from {low} to {limit}, got {_shown(value)}.")


def _shown(value: object) -> str:
    """A value as an error message may show it: short, one line, no control characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
