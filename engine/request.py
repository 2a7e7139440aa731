"""What a person asks for: one frozen `Request`, validated at the door."""

from __future__ import annotations

import difflib
import math
import random
import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from engine.precision import MODES, PRECISIONS, Precision

MAX_SEED = 2**64 - 1  # as torch's generator takes them
MAX_STEPS = 1000
MAX_COUNT = 1000
MAX_GUIDANCE = 30.0
MIN_CFG = 1.0  # of true classifier-free guidance: the model without it
DEFAULT_CFG = 3.0  # where only a negative prompt is given
# Schedules of guidance, and for each of their options the range and what it is otherwise.
SCHEDULES: dict[str, dict[str, tuple[float, float, float]]] = {
    "constant": {},
    "interval": {"low": (0.0, 1.0, 0.15), "high": (0.0, 1.0, 0.78)},  # flow times
    "tv": {},
    "tv-anchored": {},
    "linear": {},
    "cosine": {},
    "beta": {},
}
MAX_PROMPT_CHARACTERS = 10_000
MIN_SIDE, MAX_SIDE, SIDE_MULTIPLE = 64, 2048, 16
AUTO = "auto"  # the precision that suits machine and budget, chosen by `engine.memory.choice` when a picture begins
PRECISION_CHOICES = (AUTO, *PRECISIONS)
SALIENCES = ("off", *MODES)  # how channels that are hard to round are balanced in int8


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
    precision: str  # a concrete one: what auto begins with
    cfg: float | None = None  # None: no true guidance


@dataclass(frozen=True, slots=True)
class Option:
    """A field of `Request` that an open model lets the person choose, and what it may be.

    Numbers run from `low` to `high` in multiples of `multiple`; a text is one of `choices`, a bool is on or off. A
    default of None is off; a number then begins at `first`, and without one it is any text.
    """

    name: str
    default: int | float | str | bool | None
    low: float | None = None
    high: float | None = None
    multiple: float | None = None
    choices: tuple[str | bool, ...] = ()
    first: float | None = None

    @property
    def is_text(self) -> bool:
        """Whether anything may be written."""
        return self.default is None and self.first is None


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
    negative_prompt: str | None = None  # true classifier-free guidance: away from this; may be empty
    cfg: float | None = None  # its scale
    guidance_schedule: str | None = None  # of the true guidance, else of the distilled one: "interval:low=0.2"
    cfg_zero: bool = False  # CFG-Zero*
    apg: bool = False  # adaptive projected guidance
    template: str | None = None
    crop: str | None = None  # "1080x1920": the middle of what is painted, which alone is the picture

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        if self.template is not None:
            _check_text("template", self.template)
        _check_integer("steps", self.steps, 1, MAX_STEPS)
        _check_integer("count", self.count, 1, MAX_COUNT)
        _check_integer("seed", self.seed, 0, MAX_SEED)
        if self.seed is not None and self.seed + self.count - 1 > MAX_SEED:
            raise RequestError(
                "seed", f"seed {self.seed} with count {self.count} passes 2**64 - 1; take a smaller seed."
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
        _check_crop(self.crop, self.width, self.height)
        _check_number("guidance", self.guidance, 0, MAX_GUIDANCE)
        _check_number("cfg", self.cfg, MIN_CFG, MAX_GUIDANCE)
        for name, choices in (("precision", PRECISION_CHOICES), ("salience", SALIENCES)):
            choice = getattr(self, name)
            if choice is not None and choice not in choices:
                raise RequestError(name, f"{name} must be one of {', '.join(choices)}, got {_shown(choice)}.")
        for name in ("distill", "cfg_zero", "apg"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(name, f"{name} must be true or false, got {_shown(getattr(self, name))}.")
        if self.negative_prompt is not None:
            _check_text("negative_prompt", self.negative_prompt, empty=True)
        if self.guidance_schedule is not None:
            if not isinstance(self.guidance_schedule, str):
                raise RequestError("guidance_schedule", "a guidance schedule must be text.")
            read_schedule(self.guidance_schedule)

    @property
    def is_true_cfg(self) -> bool:
        """Whether every step is guided by a second pass with the negative prompt."""
        return self.cfg is not None or self.negative_prompt is not None

    @property
    def cfg_method(self) -> str:
        """How true guidance is computed."""
        return "zero" if self.cfg_zero else "apg" if self.apg else "plain"

    @property
    def schedule(self) -> tuple[str, dict[str, float]]:
        """The guidance schedule's kind and its options."""
        return read_schedule(self.guidance_schedule or "constant")

    def _check_together(self) -> None:
        """Raises `RequestError` for choices that do not go together."""
        if self.schedule[0] != "constant" and not self.is_true_cfg and self.guidance is not None and self.guidance < 1:
            raise RequestError(
                "guidance",
                f"a guidance schedule needs a guidance from 1 to {MAX_GUIDANCE:g}, got {self.guidance:g}.",
            )
        for name, title in (("cfg_zero", "CFG-Zero*"), ("apg", "APG")):
            if getattr(self, name) and not self.is_true_cfg:
                raise RequestError(
                    name, f"{title} changes true guidance: add a negative prompt or a cfg scale, or leave it out."
                )
        if self.cfg_zero and self.apg:
            raise RequestError("apg", "CFG-Zero* and APG exclude each other; choose one.")

    def resolved(self, defaults: Defaults) -> Resolved:
        """This request with every open choice filled in: what the metadata record and a picture repeats.

        Raises `RequestError` for choices that do not go together.
        """
        choices: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(Request)}
        for name in ("steps", "width", "height", "guidance", "precision", "cfg"):
            if choices[name] is None:
                choices[name] = getattr(defaults, name)
        if self.seed is None:
            choices["seed"] = random.SystemRandom().randrange(2**32)
        filled = Resolved(**choices)
        filled._check_together()
        if not filled.is_true_cfg:
            return filled
        cfg = filled.cfg if filled.cfg is not None else DEFAULT_CFG
        return replace(filled, cfg=cfg, negative_prompt=filled.negative_prompt or "")

    @property
    def form(self) -> Precision:
        """How the transformer's weights are stored. Raises ValueError where the precision is open, or auto."""
        salience = self.salience if self.precision == "int8" and self.salience != "off" else None
        return Precision(str(self.precision), salience or "")

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


@dataclass(frozen=True, slots=True)
class Resolved(Request):
    """A request in which no choice is open any more: `cfg` is there where guidance is true, precision may be auto."""

    steps: int = field(kw_only=True)
    seed: int = field(kw_only=True)
    width: int = field(kw_only=True)
    height: int = field(kw_only=True)
    precision: str = field(kw_only=True)

    @property
    def picture_box(self) -> tuple[int, int, int, int]:
        """What of the painted pixels is the picture: left, top, right, bottom."""
        width, height = map(int, self.crop.split("x")) if self.crop else (self.width, self.height)
        left, top = (self.width - width) // 2, (self.height - height) // 2
        return left, top, left + width, top + height


def read_schedule(text: str) -> tuple[str, dict[str, float]]:
    """A schedule's kind and all its options, of "interval:low=0.2,high=0.8". Raises `RequestError`."""
    name = "guidance_schedule"
    kind, colon, rest = text.strip().partition(":")
    kind = kind.strip().lower()
    if kind not in SCHEDULES:
        near = difflib.get_close_matches(kind, SCHEDULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(SCHEDULES)}."
        raise RequestError(name, f"there is no guidance schedule {_shown(kind)}; {hint}")
    known = SCHEDULES[kind]
    options = {option: default for option, (_, _, default) in known.items()}
    for part in rest.split(",") if colon else ():
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if option not in known:
            allowed = f"it takes {' and '.join(known)}" if known else "it takes none"
            raise RequestError(name, f"the schedule {kind} has no option {_shown(option)}; {allowed}.")
        low, high, _ = known[option]
        number = float(value) if re.fullmatch(r"[0-9]{0,6}\.?[0-9]{1,6}", value) else math.nan
        if not equals or not low <= number <= high:
            raise RequestError(
                name, f"{option} of the schedule {kind} must be a number from {low:g} to {high:g}, got {_shown(value)}."
            )
        options[option] = number
    if kind == "interval" and options["low"] >= options["high"]:
        raise RequestError(
            name, f"of the schedule interval low must be below high, got {options['low']:g} and {options['high']:g}."
        )
    return kind, options


def _check_crop(crop: object, width: int | None, height: int | None) -> None:
    if crop is None:
        return
    sides = re.fullmatch("([0-9]{1,4})x([0-9]{1,4})", crop) if isinstance(crop, str) else None
    painted = ((width or 0), (height or 0))
    if sides is None or not all(
        side - SIDE_MULTIPLE < int(kept) <= side for kept, side in zip(sides.groups(), painted, strict=True)
    ):
        raise RequestError(
            "crop",
            f"crop must be width x height, each less than {SIDE_MULTIPLE} pixels below that of the size, "
            f"got {_shown(crop)} of {width}x{height}.",
        )


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
        raise RequestError(name, f"{name} must be a number from {low:g} to {high:g}, got {_shown(value)}.")


def _check_text(name: str, text: object, *, empty: bool = False) -> None:
    if not isinstance(text, str):
        raise RequestError(name, f"{name} must be text, got {type(text).__name__}.")
    if not empty and not text.strip():
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
        limit = "2**64 - 1" if high == MAX_SEED else str(high)
        raise RequestError(name, f"{name} must be a whole number from {low} to {limit}, got {_shown(value)}.")


def _shown(value: object) -> str:
    """A value as an error message may show it: short, one line, no control characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
