"""A grid: a picture for each combination of some choices, such as steps 4, 8, 20 with cfg 1, 2, 4.

The first axis goes to the right, all others go down. `engine.images.sheet` puts the pictures on one sheet.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Any

from engine.request import Request, RequestError
from engine.sizes import check_multiples, read_size
from engine.text import quoted

MAX_PICTURES = 1000
MAX_AXES = 6
KINDS: dict[str, type] = {  # what may be an axis, and what its values are
    "steps": int,
    "seed": int,
    "size": str,
    "width": int,
    "height": int,
    "guidance": float,
    "cfg": float,
    "negative_prompt": str,
    "guidance_schedule": str,
    "cfg_zero": bool,
    "apg": bool,
    "precision": str,
    "salience": str,
    "distill": bool,
}
PROMPT = "prompt"  # the axis that variants are
SIZES = {"size": ("width", "height", "crop"), "width": ("width", "size", "crop"), "height": ("height", "size", "crop")}
SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


@dataclass(frozen=True, slots=True)
class Axis:
    """One choice that varies: a field of `Request`, or its size as text, and what it is in turn.

    Raises `RequestError` where a value cannot be chosen.
    """

    name: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.name not in (*KINDS, PROMPT):
            near = difflib.get_close_matches(self.name, KINDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KINDS)}."
            raise RequestError("grid", f"a grid has no axis {quoted(self.name, 60)}; {hint}")
        if not 1 <= len(self.values) <= MAX_PICTURES:
            raise RequestError("grid", f"grid {self.name} needs 1 to {MAX_PICTURES} values, got {len(self.values)}.")
        for value in self.values:
            try:
                _checked(self.name, value)
            except RequestError as error:
                raise RequestError("grid", f"grid {self.name}: {error}") from None

    @property
    def labels(self) -> tuple[str, ...]:
        """Of each value, for the sheet."""
        name = "" if self.name == PROMPT else f"{self.name.replace('_', ' ')} "
        return tuple(f"{name}{_shown(value)}" for value in self.values)


def read_axis(text: str) -> Axis:
    """The axis that `steps=4,8,20` describes; values with commas in them are parted by `|`. Raises `RequestError`."""
    name, equals, listed = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    if not equals or not listed.strip():
        raise RequestError("grid", f"a grid's axis is a name and values, such as steps=4,8,20, got {quoted(text, 60)}.")
    if name == PROMPT:
        raise RequestError("grid", "the prompt's variants are an axis by themselves: write {a|b} in the prompt.")
    words = [word.strip() for word in listed.split("|" if "|" in listed else ",")]
    return Axis(name, tuple(dict.fromkeys(_read(name, word) for word in words)))


def check(axes: Sequence[Axis]) -> None:
    """Raises `RequestError` where these make no grid together."""
    names = [axis.name for axis in axes]
    for name in names:
        if any(names.count(other) > (other == name) for other in (name, *SIZES.get(name, ()))):
            raise RequestError("grid", f"the grid has the {name} twice; give all its values in one --grid.")
    if len(axes) > MAX_AXES:
        raise RequestError("grid", f"a grid has at most {MAX_AXES} axes, got {len(axes)}.")
    number = math.prod(len(axis.values) for axis in axes)
    if number > MAX_PICTURES:
        each = " x ".join(str(len(axis.values)) for axis in axes)
        raise RequestError(
            "grid", f"{each} are {number} pictures; at most {MAX_PICTURES} are painted: take fewer values."
        )


def requests(
    base: Request, axes: Sequence[Axis], shape: Callable[[Fraction], Mapping[str, int]]
) -> list[tuple[Request, str]]:
    """The request of each cell and what is particular to it, in words: row by row, each from left to right.

    `shape` gives width and height for a ratio. Raises `RequestError` for what cannot be chosen together.
    """
    check(axes)
    columns, *others = axes
    if base.salience != "off" and any(axis.name == "precision" for axis in axes):
        base = replace(base, salience=None)  # of int8 alone: as each cell has it
    cells = []
    for values in product(*(axis.values for axis in others)):
        for value in columns.values:
            chosen = [(columns, value), *zip(others, values, strict=True)]
            label = ", ".join(_label(axis, value) for axis, value in chosen if axis.name != PROMPT)
            changes: dict[str, Any] = {}
            for axis, value in chosen:
                changes |= _changes(axis.name, value, shape)
            cells.append((replace(base, **changes), label))
    return cells


def headings(axes: Sequence[Axis]) -> tuple[list[str], list[str]]:
    """The labels of the columns, and those of the rows."""
    columns, *others = axes
    return [*columns.labels], [", ".join(labels) for labels in product(*(axis.labels for axis in others))]


def to_plain(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """As a picture's record keeps them."""
    return [{"name": axis.name, "values": [*axis.values]} for axis in axes]


def from_plain(value: object) -> tuple[Axis, ...]:
    """The axes in a picture's record, which nobody vouches for. Raises `RequestError`."""
    wrong = RequestError("grid", "the grid in this picture cannot be read.")
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_AXES:
        raise wrong
    axes = []
    for each in value:
        if not isinstance(each, dict) or each.keys() != {"name", "values"}:
            raise wrong
        if not isinstance(each["name"], str) or not isinstance(each["values"], list):
            raise wrong
        axes.append(Axis(each["name"], tuple(each["values"])))
    check(axes)
    return tuple(axes)


def without(axes: Sequence[Axis], names: Collection[str]) -> tuple[Axis, ...]:
    """The axes but for those whose choice was made otherwise."""
    made = {*names, *(other for name in names for other in SIZES.get(name, ()))}
    return tuple(axis for axis in axes if axis.name not in made)


def _read(name: str, word: str) -> Any:
    kind = KINDS.get(name, str)
    if kind is int and re.fullmatch("-?[0-9]{1,24}", word):
        return int(word)
    if kind is float and re.fullmatch(r"-?[0-9]{1,6}(\.[0-9]{1,12})?", word):
        return float(word)
    if kind is bool:
        return SWITCH.get(word.lower(), word)
    return word


def _checked(name: str, value: Any) -> None:
    if name == "size":
        if not isinstance(value, str):
            raise RequestError("size", f"size must be text, got {quoted(value, 60)}.")
        if not isinstance(size := read_size(value), Fraction):
            check_multiples(*size)
            Request("to be read", width=size[0], height=size[1])
    elif value is None:
        raise RequestError(name, f"{name} needs a value.")
    else:
        Request(**{"prompt": "to be read", name: value})


def _changes(name: str, value: Any, shape: Callable[[Fraction], Mapping[str, int]]) -> dict[str, Any]:
    if name == "size":
        size = read_size(value)
        width, height = shape(size).values() if isinstance(size, Fraction) else size
        return {"width": width, "height": height, "crop": None}
    return {name: value, "crop": None} if name in SIZES else {name: value}


def _label(axis: Axis, value: Any) -> str:
    return axis.labels[axis.values.index(value)]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
