"""Text from people and files, made fit for the screen: never markup, never an escape sequence."""

from __future__ import annotations

import re
import time

from engine.text import duration, printable, size, unseen

__all__ = ["clean", "counted", "duration", "marked", "printable", "shortened", "size", "unseen"]

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def clean(text: str) -> str:
    """Text for the prompt: without control characters and halves of characters; line ends are newlines."""
    return CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " "))


def marked(text: str) -> tuple[str, list[int]]:
    """`text` as it is painted where it is written: a mark of one cell for each character that cannot be seen, and the
    places of those, to be painted in reverse."""
    places = unseen(text)
    if not places:
        return text, places
    characters = list(text)
    for place in places:
        characters[place] = "?"
    return "".join(characters), places


def shortened(text: str, width: int, ellipsis: str = "\u2026") -> str:
    """`text` on one line of at most `width` terminal cells."""
    from rich.cells import cell_len, set_cell_size

    line = printable(text[: 4 * width + 16])
    if width <= 0 or (cell_len(line) <= width and len(text) <= 4 * width + 16):
        return line if width > 0 else ""
    return set_cell_size(line, max(0, width - cell_len(ellipsis))).rstrip() + ellipsis


def moment(seconds: float) -> str:
    """A time since the epoch as the clock and calendar here had it: 2026-11-27 17:31."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):  # a file may claim any
        return "at some time"


def counted(count: int, thing: str) -> str:
    """A number of things: 1 picture, 2 pictures."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
