"""A model of the list in words: its row, and everything that is known of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len, chop_cells

from tui.text import printable, shortened, size

if TYPE_CHECKING:
    from engine.library.inventory import Listing, Part

State = Literal["open", "chosen", "here", "pulling", "incomplete", "broken", "not here"]
MARKS: dict[State, str] = {
    "open": "\u25b6",
    "chosen": "\u25b7",
    "here": "\u25cf",
    "pulling": "\u25d0",
    "incomplete": "\u25cc",
    "broken": "\u2717",
    "not here": "\u25cb",
}
ASCII_MARKS: dict[State, str] = {
    "open": ">",
    "chosen": "~",
    "here": "*",
    "pulling": "%",
    "incomplete": "-",
    "broken": "x",
    "not here": ".",
}
HEADINGS: tuple[str, ...] = ("name", "state", "kind", "size", "precision", "layout")
SIZE = 3  # the column of numbers
MIN_NAME, MAX_NAME, MAX_CELL, MIN_LACKS = 16, 36, 20, 20  # cells
LABEL = 9  # cells before each text of the details


def name_of(listing: Listing) -> str:
    """What to call it: a part by itself has its whole path for a name."""
    return PurePath(listing.place).name if listing.name == listing.place else listing.name


def is_named(listing: Listing, model: str) -> bool:
    """Whether a model that is opened by this name, folder or file is the listed one."""
    return listing.name == model or (bool(listing.place) and os.path.expanduser(listing.place) == model)


def is_part(listing: Listing) -> bool:
    """Whether it is no model of its own."""
    return listing.kind in ("autoencoder", "text encoder", "tokenizers")


def why_it_stays(listing: Listing) -> str:
    """Of one that cannot be removed, as a sentence."""
    if listing.kind == "demo":
        return "The demo model is part of the program; it stays."
    if listing.here:
        return f"Another program brought {listing.name}, so its files stay."
    return f"{listing.name} is not here; there is nothing to remove."


def state_of(listing: Listing, *, opened: str, chosen: str, pulling: str) -> State:
    """`opened` is what the engine has open, `chosen` what comes next, `pulling` what is on its way from the hub."""
    if is_named(listing, opened):
        return "open"
    if listing.here:
        return "chosen" if is_named(listing, chosen) else "here"
    if listing.name == pulling:
        return "pulling"
    if listing.pulled or any(part.place for part in listing.parts):
        return "incomplete"
    return "broken" if listing.warning else "not here"


def rows(
    listings: Sequence[Listing], states: Sequence[State], width: int, *, ascii_only: bool
) -> tuple[str, list[str]]:
    """The line of headings, and a row for each in its columns; what does not fit is cut at the end."""
    marks, ellipsis = (ASCII_MARKS, "...") if ascii_only else (MARKS, "\u2026")
    table = [HEADINGS, *map(_cells, listings, states)]
    widths = [min(max(map(cell_len, column)), MAX_CELL) for column in zip(*table, strict=True)]
    widths[0] = longest = min(max(cell_len(cells[0]) for cells in table), MAX_NAME)
    gap = "  " if 2 + sum(widths) + 2 * len(widths[1:]) <= width else " "
    spare = width - 2 - sum(widths[1:]) - len(gap) * len(widths[1:])
    widths[0] = min(longest, max(MIN_NAME, spare))
    before = [" ", *(marks[state] for state in states)]
    behind = ["", *(_lacks(listing, state) for listing, state in zip(listings, states, strict=True))]
    lines = []
    for mark, cells, lacks in zip(before, table, behind, strict=True):
        columns = enumerate(zip(cells, widths, strict=True))
        texts = [_cell(cell, across, ellipsis, right=place == SIZE) for place, (cell, across) in columns]
        line = f"{mark} {gap.join(texts)}"
        if lacks and width - cell_len(line) >= MIN_LACKS:
            line += f"  {lacks}"
        lines.append(shortened(line.rstrip(), width, ellipsis))
    return lines[0], lines[1:]


def _cells(listing: Listing, state: State) -> tuple[str, ...]:
    bytes_there = size(listing.nbytes) if listing.nbytes else ""
    cells = (name_of(listing), state, listing.kind, bytes_there, listing.precision, listing.layout)
    return tuple(map(printable, cells))


def _lacks(listing: Listing, state: State) -> str:
    """Where only something is missing; of what is not here that need not be said."""
    return printable(f"lacks {', '.join(listing.missing)}") if listing.missing and state == "incomplete" else ""


def title(listing: Listing, state: State) -> str:
    """A model and what is known of the whole of it, on one line."""
    facts = [state, listing.kind, size(listing.nbytes) if listing.nbytes else "", listing.precision, listing.layout]
    return printable(f"{name_of(listing)}: {', '.join(filter(None, facts))}")


def about(listing: Listing, width: int) -> str:
    """Its parts, and what else is to be known: lines of at most `width` cells."""
    lines: list[str] = []

    def say(label: str, text: str) -> None:
        for number, line in enumerate(fold(text, width - LABEL) if text else []):
            lines.append(f"{label if not number else '':<{LABEL}}{line}")

    say("lacks", ", ".join(listing.missing))
    say("warning", listing.warning)
    say("at", listing.place)
    columns = zip(*map(_facts, listing.parts), strict=True)
    widths = [max(cell_len(printable(text)) for text in column) for column in columns]
    for number, part in enumerate(listing.parts):
        lines += _part("parts" if not number else "", part, widths, listing.place, width)
    say("licence", listing.licence)
    return "\n".join(lines)


def fold(text: str, width: int) -> list[str]:
    """A text in lines of at most `width` cells, broken between words where that can be."""
    lines = [""]
    for word in printable(text).split(" "):
        room = width - cell_len(lines[-1]) - 1
        if lines[-1] and cell_len(word) <= room:
            lines[-1] += f" {word}"
        else:
            pieces = chop_cells(word, max(1, width)) if cell_len(word) > width else [word]
            lines[-1:] = [*lines[-1:], *pieces] if lines[-1] else pieces
    return lines


def _facts(part: Part) -> tuple[str, str, str, str]:
    return part.title, size(part.nbytes) if part.nbytes else "", part.precision, part.layout


def _part(label: str, part: Part, widths: Sequence[int], home: str, width: int) -> list[str]:
    """Its facts in columns and its place: behind them where it fits, else in lines of its own; then its note."""
    texts = [
        _cell(printable(text), across, "", right=place == 1)
        for place, (text, across) in enumerate(zip(_facts(part), widths, strict=True))
    ]
    line = f"{label:<{LABEL}}{'  '.join(texts)}"
    place = printable(_inside(part.place, home)) if part.place else "missing"
    if cell_len(line) + 2 + cell_len(place) <= width:
        lines = [f"{line}  {place}".rstrip()]
    else:
        lines = [line.rstrip(), *(f"{'':<{LABEL + 2}}{piece}" for piece in fold(place, width - LABEL - 2))]
    if part.note:
        lines += [f"{'':<{LABEL + 2}}{piece}" for piece in fold(part.note, width - LABEL - 2)]
    return lines


def _inside(place: str, home: str) -> str:
    """A part's place as seen from its model's folder."""
    if place == home:
        return PurePath(place).name
    try:
        return str(PurePath(place).relative_to(home)) if home else place
    except ValueError:
        return place


def _cell(text: str, width: int, ellipsis: str, *, right: bool) -> str:
    text = shortened(text, width, ellipsis)
    blank = " " * (width - cell_len(text))
    return blank + text if right else text + blank
