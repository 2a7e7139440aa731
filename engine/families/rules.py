"""How the tensors of a part are called in another program's files, and how they are cut. torch is not imported."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]
MAX_BLOCKS = 256  # a name may claim any number


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of ours that is made of rows of a stored one: `rows` are pieces of its first dimension, in our order."""

    name: str
    shape: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A stored tensor, the shape that it must have, and what becomes of it."""

    stored: str
    shape: tuple[int, ...]
    targets: tuple[Target, ...]


def whole(stored: str, name: str, *shape: int, ours: tuple[int, ...] | None = None) -> Rule:
    return Rule(stored, shape, (Target(name, shape if ours is None else ours, ((0, shape[0]),)),))


def split(stored: str, names: Iterable[str], heights: Iterable[int], *width: int) -> Rule:
    targets, start = [], 0
    for name, height in zip(names, heights, strict=True):
        targets.append(Target(name, (height, *width), ((start, start + height),)))
        start += height
    return Rule(stored, (start, *width), tuple(targets))


def linear(stored: str, name: str, rows: int, columns: int) -> Iterator[Rule]:
    yield whole(f"{stored}.weight", f"{name}.weight", rows, columns)
    yield whole(f"{stored}.bias", f"{name}.bias", rows)


def usual(values: list[int]) -> int:
    """The most frequent: one tensor with a wrong shape is not believed against all others."""
    return Counter(values).most_common(1)[0][0]


def count(shapes: Iterable[str], prefix: str) -> int:
    """How many are numbered after this prefix, gaps included: a missing one is to be missed."""
    numbers = (name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix))
    return min(MAX_BLOCKS, 1 + max((int(each) for each in numbers if re.fullmatch("[0-9]{1,6}", each)), default=-1))
