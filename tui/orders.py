"""What Enter asks for: the pictures that a prompt, its wildcards, the count and the panel's grid stand for.

Files of wildcards are read here, so that a prompt with some of them is looked at in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.prompts.variants import WILDCARD, Expansion, expand
from engine.request import Request, RequestError

if TYPE_CHECKING:
    from fractions import Fraction

    from engine.grids import Axis
    from engine.prompts.wildcards import Wildcards

MAX_PICTURES = 1000  # of one press of Enter


@dataclass(frozen=True, slots=True)
class Order:
    """A request for each picture; with `axes` they are the cells of a grid, row by row."""

    requests: tuple[Request, ...]
    axes: tuple[Axis, ...] = ()


def wildcards() -> Wildcards:
    """The files as they are now."""
    from engine.library.wildcards import wildcard_folders
    from engine.prompts.wildcards import Wildcards

    return Wildcards(others=wildcard_folders)


def expanded(text: str) -> Expansion:
    """The prompts that `text` stands for, before wildcards are drawn. Raises `RequestError` for one without a file."""
    if "__" not in text:
        return expand(text)
    files = wildcards()
    for wildcard in WILDCARD.finditer(text):
        files.lines(wildcard[1])
    return expand(text, files.lines)


def order(
    text: str,
    choices: Mapping[str, Any],
    seeds: Sequence[int],
    axes: Sequence[Axis],
    shape: Callable[[Fraction], Mapping[str, int]],
) -> Order:
    """The pictures of each variant and each seed, or the cells of a grid with one seed. Raises `RequestError`."""
    files = wildcards() if "__" in text else None
    prompts = expand(text, files.lines if files else None).prompts
    if len(prompts) * len(seeds) > MAX_PICTURES:
        pictures = f"{len(prompts)} variants times {len(seeds)}"
        raise RequestError("count", f"{pictures} are more than {MAX_PICTURES} pictures; lower the count.")
    if axes and len(seeds) > 1:
        raise RequestError(
            "grid", "a grid and a count exclude each other; several seeds, such as 1,2,3, vary the seed."
        )
    requests = []
    for prompt in prompts:
        for seed in seeds:  # one job a picture: each can be moved, removed and recovered by itself
            drawn = files.draw(prompt, seed) if files else prompt
            template = text if len(prompts) > 1 or drawn != prompt else None  # the line below says where it is capped
            requests.append(Request(drawn, seed=seed, template=template, **choices))
    return _cells(requests, axes, shape) if axes else Order(tuple(requests))


def _cells(requests: Sequence[Request], axes: Sequence[Axis], shape: Callable[[Fraction], Mapping[str, int]]) -> Order:
    from engine import grids

    templates = {request.prompt: request.template for request in requests}
    if len(templates) > 1:
        axes = [*axes, grids.Axis(grids.PROMPT, tuple(templates))]
    cells = [request for request, _ in grids.requests(requests[0], axes, shape)]
    return Order(tuple(replace(each, template=templates[each.prompt]) for each in cells), tuple(axes))
