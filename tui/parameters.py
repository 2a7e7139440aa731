"""What the person chose besides the prompt: the options that the model announces, the seed and the count."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.events import Plan
from engine.request import (
    AUTO,
    DEFAULT_CFG,
    MAX_COUNT,
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_SIDE,
    Defaults,
    Option,
    Request,
    RequestError,
    read_schedule,
)
from engine.sampling.guidance import steering
from engine.times import DEFAULT_TIMES, FlowTimes

if TYPE_CHECKING:
    from fractions import Fraction

    from engine.grids import Axis

RATIOS = ((1, 1), (5, 4), (4, 3), (3, 2), (16, 9), (2, 1), (4, 5), (3, 4), (2, 3), (9, 16), (1, 2))
# Fields of a request that a model may offer.
CHOICES = (
    *("steps", "width", "height", "guidance", "cfg", "negative_prompt", "guidance_schedule", "cfg_zero", "apg"),
    *("precision", "salience", "distill"),
)
LABELS = {"negative_prompt": "negative", "guidance_schedule": "schedule", "cfg_zero": "cfg zero*"}
OFF = (None, False, "off", "constant")  # what a model does that does not have an option
FIT = re.compile(r"(.*?)(\s+(?:--)?fit)?", re.DOTALL)  # 100x90 --fit
WITH_COMMAS = ("negative_prompt", "guidance_schedule")  # several of them are parted by |
GUIDED = ("guidance", "cfg")
NO_SEED = "no seed was used yet; make a picture first."


@dataclass
class Parameters:
    """`chosen` holds only what differs from the model's own choice; a seed of None is drawn for each picture."""

    options: tuple[Option, ...] = ()
    chosen: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    count: int = 1
    axes: dict[str, Axis] = field(default_factory=dict)  # rows with several values; `chosen` has the most costly one
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
        if name in self.axes:
            return f"grid {', '.join(self.axes[name].shown)}"
        value = self.value(name)
        if name == "size":
            return str(self.chosen.get("crop") or self._painted_size)
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
        return self.auto.precision if self.auto is not None and self.auto.size == self._painted_size else None

    @property
    def _painted_size(self) -> str:
        """Without what is cropped of it."""
        return "{}x{}".format(*self.value("size"))

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
        chosen = self._whole()
        if any(option.name == "precision" for option in self.options) and self.value("precision") != "int8":
            chosen.pop("salience", None)
        return chosen

    def is_default(self, name: str) -> bool:
        """Whether the model, not the person, decided."""
        if name == "size":
            return not {"width", "height", "crop"} & {*self.chosen} and name not in self.axes
        if name in self.axes:
            return False
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
        self.axes.pop(name, None)
        if name == "seed":
            self.seed = None if self.seed is None else min(max(0, self.seed + direction), MAX_SEED)
        elif name == "count":
            self.count = min(max(1, self.count + direction), MAX_COUNT)
        elif name == "size":
            sizes, now = self.sizes(), self.value("size")
            place = sizes.index(now) if now in sizes else 0
            self._choose_size(*sizes[(place + direction) % len(sizes)])
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
        """Take over what was typed: one value, several (`4,8,20`), or none: the model's own. Raises `RequestError`."""
        text = text.strip()
        between = "|" if "|" in text else ","
        if between in text and name != "count" and not (between == "," and name in WITH_COMMAS):
            from engine.grids import read_axis

            self.vary(read_axis(f"{name}={text}"))
        else:
            self._write(name, text)
            self.axes.pop(name, None)

    def vary(self, axis: Axis) -> None:
        """Let a row have several values, for a picture each. Raises `RequestError`, also where they are too many."""
        from engine.grids import check

        for value in axis.values:
            if axis.name == "size":
                self._read_size(value)
            elif axis.name != "seed":
                self._check(**{axis.name: value})
        axes = {**self.axes, axis.name: axis}
        check([*axes.values()])
        self.axes = {name: axes[name] for name in self.names() if name in axes}  # the first goes to the right
        if axis.name == "size":
            self._choose_size(*max(map(self._read_size, axis.values), key=lambda sides: sides[0] * sides[1]))
        elif axis.name != "seed":
            self._choose(axis.name, max(axis.values) if axis.name == "steps" else axis.values[0])

    def take_grid(self, axes: Sequence[Axis]) -> list[str]:
        """Let the rows vary as those of a sheet do; returns the names of those that this model does not offer."""
        left_out = []
        for axis in axes:
            if axis.name not in self.names():
                left_out.append(axis.name)
                continue
            try:
                self.vary(axis)
            except RequestError:
                left_out.append(axis.name)
        return left_out

    def shape(self, ratio: Fraction) -> dict[str, int]:
        """The sides that this ratio has with this model. Raises `RequestError`."""
        from engine.sizes import shaped

        width, height = self._option("width"), self._option("height")
        most = min(int(width.high or MAX_SIDE), int(height.high or MAX_SIDE))
        sides = shaped(ratio, int(width.default or 0), int(height.default or 0), most)
        return dict(zip(("width", "height"), sides, strict=True))

    def _read_size(self, text: str) -> tuple[int, int, str | None]:
        """Width, height and what they are cropped to, of what `--size` takes (and of `100x90 --fit`)."""
        from engine.sizes import check_multiples, fitted, read_size

        match = FIT.fullmatch(text)
        assert match is not None
        size, crop = read_size(match[1]), None
        if not isinstance(size, tuple):
            width, height = self.shape(size).values()
        elif match[2]:
            width, height, crop = fitted(*size)
        else:
            check_multiples(*size)
            width, height = size
        self._check(width=width, height=height)
        return width, height, crop

    def _write(self, name: str, text: str) -> None:
        if not text:
            self.reset(name)
        elif name == "size":
            self._choose_size(*self._read_size(text))
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
        self.axes.pop(name, None)
        if name == "seed":
            self.seed = None
        elif name == "count":
            self.count = 1
        for part in ("width", "height", "crop") if name == "size" else (name,):
            self.chosen.pop(part, None)

    def reset_all(self) -> None:
        """Everything back to the model's own choice."""
        for name in self.names():
            self.reset(name)

    def take(self, request: Request, *, seed: bool) -> list[str]:
        """Take over all that `request` chose and this model offers; returns the names of what it does not offer."""
        left_out = []
        values = request.to_dict()
        self.axes.clear()
        if not self.options:  # no model is open yet; it takes of these what it offers
            self.restore({"chosen": values, "seed": request.seed if seed else self.seed, "count": self.count})
            return []
        self.chosen.pop("crop", None)
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
        if request.crop is not None:
            if (request.width, request.height) == self.value("size"):
                self.chosen["crop"] = request.crop
            else:
                left_out.append("crop")
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
        """Passes through the network times pixels: what a picture's time goes with."""
        passes = 2 if request.is_true_cfg or self._number_of(request, "cfg") else 1
        return passes * self._number_of(request, "steps") * self.pixels(request)

    def _number_of(self, request: Request, name: str) -> float:
        default = next((option.default for option in self.options if option.name == name), None)
        return float(getattr(request, name) or default or 0)

    def check_together(self) -> None:
        """Raises `RequestError` for choices that this model cannot take together."""
        default = {option.name: option.default for option in self.options}
        guidance, cfg = (float(value) if (value := default.get(name)) is not None else None for name in GUIDED)
        Request("a check", **self.requested()).resolved(Defaults(1, 64, 64, guidance, "fp32", cfg))

    @property
    def conflict(self) -> str:
        """Why what is chosen cannot be painted, in a sentence; "" where it can."""
        try:
            self.check_together()
        except RequestError as error:
            return str(error)
        return ""

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

    def to_preset(self) -> dict[str, Any]:
        """What is set, as `engine.presets` keeps it; rows with several values are not in it."""
        sides = ("width", "height", "crop")
        values = {name: value for name, value in self.chosen.items() if name not in (*sides, *self.axes)}
        if not self.is_default("size") and "size" not in self.axes:
            values |= {"size": self.shown("size")} | ({"fit": True} if "crop" in self.chosen else {})
        values |= {"seed": self.seed} if self.seed is not None and "seed" not in self.axes else {}
        return values | ({"count": self.count} if self.count > 1 else {})

    def take_preset(self, values: Mapping[str, Any]) -> list[str]:
        """Choose what a preset does, and nothing else but seed and count; returns what this model does not offer."""
        left_out = []
        values = dict(values)
        if "width" in values and "height" in values:
            values["size"] = f"{values.pop('width')}x{values.pop('height')}"
        if values.pop("fit", False) and "size" in values:
            values["size"] += " --fit"
        for name in self.names():
            if name not in ("seed", "count") or name in values:
                self.reset(name)
        for name, value in values.items():
            try:
                if name == "size" and name in self.names():
                    self._choose_size(*self._read_size(value))
                elif name == "seed":
                    self.seed = None if value == -1 else value
                elif name == "count":
                    self.count = value
                elif any(option.name == name for option in self.options):
                    self._check(**{name: value})
                    self._choose(name, value)
                elif value not in OFF and name != "model":
                    left_out.append(name)
            except RequestError:
                left_out.append(name)
        return left_out

    def to_dict(self) -> dict[str, Any]:
        """For the next start."""
        kept: dict[str, Any] = {"chosen": self._whole(), "seed": self.seed, "count": self.count}
        if self.axes:
            from engine.grids import to_plain

            kept["grid"] = to_plain([*self.axes.values()])
        return kept

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
            with suppress(RequestError):
                width, height = self.chosen.get("width"), self.chosen.get("height")
                Request("check", width=width, height=height, crop=chosen.get("crop"))
                if chosen.get("crop") is not None:
                    self.chosen["crop"] = chosen["crop"]
        if type(seed) is int and 0 <= seed <= MAX_SEED:
            self.seed = seed
        if type(count) is int and 1 <= count <= MAX_COUNT:
            self.count = count
        if "grid" in values:
            from engine.grids import from_plain

            with suppress(RequestError):
                self.axes = {axis.name: axis for axis in from_plain(values["grid"])}

    def announce(self, options: Sequence[Option]) -> None:
        """Another model: keep of the choices what it offers, too."""
        chosen, axes = self._whole(), [*self.axes.values()]
        self.options, self.auto, self.chosen, self.axes = tuple(options), None, {}, {}
        for name, value in chosen.items():
            if any(option.name == name for option in self.options):
                try:
                    self._check(**{name: value})
                except (RequestError, TypeError):
                    continue
                self._choose(name, value)
        sides = chosen.get("width"), chosen.get("height")
        if "crop" in chosen and "size" in self.names() and sides == self.value("size"):
            self.chosen["crop"] = chosen["crop"]
        self.take_grid(axes)

    def _whole(self) -> dict[str, Any]:
        """What was chosen, with the sides that it crops."""
        if "crop" in self.chosen and self.options:
            width, height = self.value("size")
            return {**self.chosen, "width": width, "height": height}
        return dict(self.chosen)

    def _option(self, name: str) -> Option:
        return next(option for option in self.options if option.name == name)

    def _choose_size(self, width: int, height: int, crop: str | None = None) -> None:
        self._choose("width", width)
        self._choose("height", height)
        self.chosen.pop("crop", None)
        if crop is not None:
            self.chosen["crop"] = crop

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
