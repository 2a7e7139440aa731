"""What the person chose besides the prompt: the options that the model announces, the seed and the count."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from engine.events import Plan
from engine.request import (
    AUTO,
    DEFAULT_CFG,
    MAX_COUNT,
    MAX_GUIDANCE,
    MAX_SEED,
    Defaults,
    Option,
    Request,
    RequestError,
    read_schedule,
)
from engine.sampling.guidance import steering
from engine.times import DEFAULT_TIMES, FlowTimes

RATIOS = ((1, 1), (5, 4), (4, 3), (3, 2), (16, 9), (2, 1), (4, 5), (3, 4), (2, 3), (9, 16), (1, 2))
# Fields of a request that a model may offer.
CHOICES = (
    *("steps", "width", "height", "guidance", "cfg", "negative_prompt", "guidance_schedule", "cfg_zero", "apg"),
    *("precision", "salience", "distill"),
)
LABELS = {"negative_prompt": "negative", "guidance_schedule": "schedule", "cfg_zero": "cfg zero*"}
OFF = (None, False, "off", "constant")  # what a model does that does not have an option
SIZE = re.compile(r"\s*([0-9]{1,6})\s*[xX\u00d7* ]\s*([0-9]{1,6})\s*")
NO_SEED = "no seed was used yet; make a picture first."


@dataclass
class Parameters:
    """`chosen` holds only what differs from the model's own choice; a seed of None is drawn for each picture."""

    options: tuple[Option, ...] = ()
    chosen: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    count: int = 1
    times: FlowTimes = DEFAULT_TIMES  # of the model's steps
    pixels_per_token: int = 256
    limits: tuple[float, float] = (1.0, MAX_GUIDANCE)  # of its distilled guidance
    auto: Plan | None = field(default=None, compare=False)  # the last whose precision auto chose

    def names(self) -> list[str]:
        """The rows of the panel, in order; width and height are one, called size."""
        names = [option.name for option in self.options]
        if "width" in names and "height" in names:
            names[names.index("width")] = "size"
            names.remove("height")
        return [*names, "seed", "count"]

    def value(self, name: str) -> Any:
        """What is in effect; for the size a pair."""
        if name == "size":
            return self.value("width"), self.value("height")
        if name in ("seed", "count"):
            return getattr(self, name)
        return self.chosen.get(name, self._option(name).default)

    def shown(self, name: str) -> str:
        """The value for people."""
        value = self.value(name)
        if name == "size":
            return f"{value[0]}x{value[1]}"
        if name == "seed":
            return "random" if value is None else str(value)
        if value == "":
            return "empty"
        if value == AUTO and (choice := self._auto_precision) is not None:
            return f"{AUTO} ({choice})"
        if name == "cfg" and value is None and self.chosen.get("negative_prompt") is not None:
            value = DEFAULT_CFG
        return f"{value:g}" if isinstance(value, float) else _choice(value)

    @property
    def _auto_precision(self) -> str | None:
        """What auto chose for the present size; None before it is known."""
        return self.auto.precision if self.auto is not None and self.auto.size == self.shown("size") else None

    def weights(self) -> list[float] | None:
        """The guidance of every step, where a schedule varies it."""
        offered = {option.name: self.value(option.name) for option in self.options}
        if offered.get("guidance_schedule") in OFF or offered.get("steps") is None:
            return None
        known = {name: offered[name] for name in CHOICES if name in offered and name not in ("precision", "salience")}
        try:
            request = Request("a plot", seed=0, **known).resolved(Defaults(1, 64, 64, None, "fp32"))
            tokens = (request.width or 0) * (request.height or 0) // self.pixels_per_token
            found = steering(request, self.times.numbers(request.steps or 1, tokens), self.limits)
        except (RequestError, ValueError, ArithmeticError):
            return None
        weights = found.cfg if found.cfg is not None else found.distilled
        return list(weights) if weights is not None else None

    def requested(self) -> dict[str, Any]:
        """What a request is to say: all that was chosen and has a meaning."""
        chosen = dict(self.chosen)
        if any(option.name == "precision" for option in self.options) and self.value("precision") != "int8":
            chosen.pop("salience", None)
        return chosen

    def is_default(self, name: str) -> bool:
        """Whether the model, not the person, decided."""
        if name == "size":
            return "width" not in self.chosen and "height" not in self.chosen
        return {"seed": self.seed is None, "count": self.count == 1}.get(name, name not in self.chosen)

    def allowed(self, name: str) -> str:
        """The range, for people."""
        if name == "seed":
            return "random, or 0 to 2**64 - 1"
        if name == "count":
            return f"1 to {MAX_COUNT}"
        option = self._option("width" if name == "size" else name)
        if option.choices:
            *others, last = map(_choice, option.choices)
            return " or ".join(filter(None, (", ".join(others), last)))
        if option.is_text:
            return "Enter, then any text; nothing: off"
        if option.default is None:
            return f"off, or {option.low:g} to {option.high:g}"
        step = f", multiples of {option.multiple:g}" if name == "size" else ""
        return f"{option.low:g} to {option.high:g}{step}"

    def step(self, name: str, direction: int) -> None:
        """The next (1) or previous (-1) value; stops at the ends of the range."""
        if name == "seed":
            self.seed = None if self.seed is None else min(max(0, self.seed + direction), MAX_SEED)
        elif name == "count":
            self.count = min(max(1, self.count + direction), MAX_COUNT)
        elif name == "size":
            sizes, now = self.sizes(), self.value("size")
            place = sizes.index(now) if now in sizes else 0
            width, height = sizes[(place + direction) % len(sizes)]
            self._choose("width", width)
            self._choose("height", height)
        else:
            option, now = self._option(name), self.value(name)
            if option.choices:
                place = option.choices.index(now) if now in option.choices else 0
                self._choose(name, option.choices[(place + direction) % len(option.choices)])
            elif option.is_text:
                pass
            elif now is None:
                if direction > 0:
                    self._choose(name, option.first)
            elif option.default is None and direction < 0 and now <= (option.low or 0):
                self.reset(name)
            else:
                by = option.multiple or 1
                number = (math.floor if direction > 0 else math.ceil)(now / by) * by + direction * by
                self._choose(name, _as(option, min(max(option.low or 0, number), option.high or number)))

    def write(self, name: str, text: str) -> None:
        """Take over what was typed; an empty text is the model's own choice. Raises `RequestError`."""
        text = text.strip()
        if not text:
            self.reset(name)
        elif name == "size":
            match = SIZE.fullmatch(text)
            if match is None:
                raise RequestError(
                    "size", f"size must be width x height, such as {self.shown(name)}, got {text[:40]!r}."
                )
            self._check(width=int(match[1]), height=int(match[2]))
            self._choose("width", int(match[1]))
            self._choose("height", int(match[2]))
        elif name == "seed" and text.lower() in ("random", "r", "-1"):
            self.seed = None
        elif name in ("seed", "count"):
            number = int(_number(text, self.allowed(name), name, whole=True))
            Request("check", seed=number) if name == "seed" else Request("check", count=number)
            setattr(self, name, number)
        else:
            option = self._option(name)
            if option.is_text:
                value: Any = text
            elif option.default is None and text.lower() == "off":
                self.reset(name)
                return
            elif name == "guidance_schedule":
                kinds = [kind for kind in option.choices if str(kind).startswith(text.lower())]
                value = kinds[0] if len(kinds) == 1 else text.lower()  # what is no kind is refused with the nearest
            elif option.choices:
                matching = [choice for choice in option.choices if _choice(choice).startswith(text.lower())]
                exact = [choice for choice in matching if _choice(choice) == text.lower()]
                if len(exact or matching) != 1:
                    raise RequestError(name, f"{name} must be {self.allowed(name)}, got {text[:40]!r}.")
                value = (exact or matching)[0]
            else:
                value = _number(text, self.allowed(name), name, whole=isinstance(option.default, int))
            self._check(**{name: value})
            self._choose(name, value)

    def reset(self, name: str) -> None:
        """Back to the model's own choice."""
        if name == "seed":
            self.seed = None
        elif name == "count":
            self.count = 1
        for part in ("width", "height") if name == "size" else (name,):
            self.chosen.pop(part, None)

    def take(self, request: Request, *, seed: bool) -> list[str]:
        """Take over all that `request` chose and this model offers; returns the names of what it does not offer."""
        left_out = []
        values = request.to_dict()
        if not self.options:  # no model is open yet; it takes of these what it offers
            self.restore({"chosen": values, "seed": request.seed if seed else self.seed, "count": self.count})
            return []
        for option in self.options:
            value = values.pop(option.name, None)
            self.chosen.pop(option.name, None)
            if value is None:
                continue
            try:
                self._check(**{option.name: value})
            except RequestError:
                left_out.append(option.name)
            else:
                if option.name == "precision" and value == self._auto_precision:
                    value = option.default  # it comes to the same, and stays right for another size
                self._choose(option.name, value)
        # Off is what a model does that does not have it.
        extra = [name for name in CHOICES if values.get(name) not in OFF]
        if seed:
            self.seed = request.seed
        return left_out + extra

    def sizes(self) -> list[tuple[int, int]]:
        """Sizes of the usual proportions with about as many pixels as the model prefers; the present one as well."""
        width, height = self._option("width"), self._option("height")
        area = float(width.default or 0) * float(height.default or 0)
        found: dict[tuple[int, int], None] = {}
        for across, down in RATIOS:
            pair = (
                _rounded(math.sqrt(area * across / down), width),
                _rounded(math.sqrt(area * down / across), height),
            )
            found.setdefault(pair)
        found.setdefault(self.value("size"))
        return list(found)

    def pixels(self, request: Request) -> float:
        """Of a picture; what the request leaves open is the open model's own."""
        return self._number_of(request, "width") * self._number_of(request, "height")

    def work(self, request: Request) -> float:
        """Steps times pixels: what a picture's time goes with."""
        return self._number_of(request, "steps") * self.pixels(request)

    def _number_of(self, request: Request, name: str) -> float:
        default = next((option.default for option in self.options if option.name == name), None)
        return float(getattr(request, name) or default or 0)

    def lock_seed(self, last: int | None) -> str:
        """Lock the last used seed; let go of it where it is the locked one. Returns a sentence."""
        if last is None:
            raise RequestError("seed", NO_SEED)
        self.seed = None if self.seed == last else last
        return "The seed is drawn for each picture." if self.seed is None else f"The seed stays {last}."

    def change_seed(self, last: int | None, step: int) -> None:
        """One more or less than the locked or the last used seed, and lock it."""
        base = self.seed if self.seed is not None else last
        if base is None:
            raise RequestError("seed", NO_SEED)
        self.seed = min(max(0, base + step), MAX_SEED)

    def to_dict(self) -> dict[str, Any]:
        """For the next start."""
        return {"chosen": self.chosen, "seed": self.seed, "count": self.count}

    def restore(self, values: object) -> None:
        """What `to_dict` gave; nonsense is passed over, and what the model does not offer when it announces that."""
        if not isinstance(values, Mapping):
            return
        chosen, seed, count = values.get("chosen"), values.get("seed"), values.get("count")
        if isinstance(chosen, Mapping):
            for name in CHOICES:
                value: Any = chosen.get(name)
                with suppress(RequestError):
                    Request("check", **{name: value})
                    if value is not None:
                        self.chosen[name] = value
        if type(seed) is int and 0 <= seed <= MAX_SEED:
            self.seed = seed
        if type(count) is int and 1 <= count <= MAX_COUNT:
            self.count = count

    def announce(self, options: Sequence[Option]) -> None:
        """Another model: keep of the choices what it offers, too."""
        self.options, self.auto = tuple(options), None
        for name, value in list(self.chosen.items()):
            del self.chosen[name]
            if any(option.name == name for option in self.options):
                try:
                    self._check(**{name: value})
                except (RequestError, TypeError):
                    continue
                self._choose(name, value)

    def _option(self, name: str) -> Option:
        return next(option for option in self.options if option.name == name)

    def _choose(self, name: str, value: Any) -> None:
        if value == self._option(name).default:
            self.chosen.pop(name, None)
        else:
            self.chosen[name] = value

    def _check(self, **values: Any) -> None:
        """Raises `RequestError` for a value that a request or this model cannot take."""
        Request("check", **values)
        for name, value in values.items():
            option = self._option(name)
            if option.is_text:
                wrong = False
            elif option.choices:
                kind = read_schedule(value)[0] if name == "guidance_schedule" else value
                wrong = kind not in option.choices
            else:
                wrong = (option.low is not None and value < option.low) or (
                    option.high is not None and value > option.high
                )
            if wrong:
                row = "size" if name in ("width", "height") else name
                raise RequestError(name, f"{name} must be {self.allowed(row)} for this model, got {value}.")


def _rounded(value: float, option: Option) -> int:
    by = option.multiple or 1
    return int(min(max(option.low or by, round(value / by) * by), option.high or value))


def _choice(value: object) -> str:
    """One of an option's choices, for people."""
    return {True: "on", False: "off", None: "off"}[value] if isinstance(value, bool | None) else str(value)


def _as(option: Option, value: float) -> int | float:
    return int(value) if isinstance(option.default, int) else float(value)


def _number(text: str, allowed: str, name: str, *, whole: bool) -> int | float:
    pattern = r"[0-9]{1,20}" if whole else r"[0-9]{1,6}(\.[0-9]{0,6})?|\.[0-9]{1,6}"
    if not re.fullmatch(pattern, text):
        kind = "a whole number" if whole else "a number"
        raise RequestError(name, f"{name} must be {kind}, {allowed}; got {text[:40]!r}.")
    return int(text) if whole else float(text)
