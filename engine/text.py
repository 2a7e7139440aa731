"""Figures and texts for people: sizes, durations, and what came from outside, fit for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

JOINERS = "\u200c\u200d"  # invisible, harmless, and part of how several scripts and emoji are written


def printable(text: str) -> str:
    """`text` on one line, with control characters, escape sequences and direction overrides spelled out."""
    return "".join(
        character if character.isprintable() or character in JOINERS else _escaped(character) for character in text
    )


def quoted(value: object, most: int = 110) -> str:
    """A value from outside as a message may show it: on one line, in quotes where it is text, escaped, and short."""
    text = repr(value) if isinstance(value, str) else printable(str(value))
    return text if len(text) <= most else f"{text[: most - 20]}...{text[-17:]}"


def some_of(names: Iterable[str], most: int = 150) -> str:
    """As many names as a message has room for, and how many more there are."""
    names = [printable(name) for name in names]
    shown = names[:1]
    while len(shown) < len(names) and len(", ".join(names[: len(shown) + 1])) <= most:
        shown = names[: len(shown) + 1]
    more = len(names) - len(shown)
    return ", ".join(shown)[:most] + (f" and {more} more" if more else "")


def _escaped(character: str) -> str:
    if character in "\n\r\t\u00a0\u3000\u2028\u2029":
        return " "
    return character.encode("unicode_escape").decode("ascii")


def size(count: float) -> str:
    """Bytes for people: 3.1 GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds for people: 0.42 s, 9.6 s, 3:05, 1:00:00."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
