"""Figures and texts for people: sizes, durations, and what came from outside, fit for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Painted as nothing, or changes how others are painted, though Python calls some of them printable: Unicode's default
# ignorable characters, https://www.unicode.org/reports/tr44/#Default_Ignorable_Code_Point.
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Where one of them is part of how a script, an emoji or an ideograph is written.
_JOINED = (  # scripts whose letters join or stack: Arabic and its neighbours, those of India, Tibet, Burma, Mongolia
    "\u0620-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u17b3\u17b6-\u18aa\ua840-\ua877\ua8e0-\ua9ff\uaa60-\uaa7f"
    "\ufb50-\ufdff\ufe70-\ufefc\U00010ac0-\U00010aff\U00011000-\U0001137f\U0001e900-\U0001e95f"
)
# Emoji, arrows, signs.
_PICTURE = "\u00a9\u00ae\u203c\u2049\u2100-\u27bf\u2900-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_IDEOGRAPH = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
NEEDED = (  # compiled by the first text that has one: that takes longer than most imports
    f"(?<=[{_JOINED}])[\u200c\u200d]"
    f"|(?<=[{_PICTURE}\ufe0f])\u200d(?=[{_PICTURE}])"
    f"|(?<=[{_PICTURE}0-9#*])[\ufe0e\ufe0f]"
    f"|(?<=[{_IDEOGRAPH}\u1000-\u109f\u2200-\u22ff\ua840-\ua877])[\ufe00-\ufe0d\U000e0100-\U000e01ef]"
    "|(?<=[\u1820-\u18aa])[\u180b-\u180f]"
    "|(?<=\U0001f3f4)[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f"  # the flag of a part of a country
)
# Formats, too, that have a shape of their own.
SIGNS = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"


def unseen(text: str) -> list[int]:
    """The places of characters that are painted as nothing, turn the reading order around, or are no characters.

    Line ends count; joiners, variation selectors and tags do not where a script or an emoji needs them.
    """
    if text.isprintable() and not INVISIBLE.search(text):
        return []
    needed = {place for match in re.finditer(NEEDED, text) for place in range(*match.span())}
    return [
        place
        for place, character in enumerate(text)
        if place not in needed and (INVISIBLE.match(character) or not (character.isprintable() or character in SIGNS))
    ]


def printable(text: str) -> str:
    """`text` on one line, with all that cannot be seen spelled out: control and zero-width characters, escape sequences
    and direction overrides."""
    hidden = unseen(text)
    if not hidden:
        return text
    characters = list(text)
    for place in hidden:
        characters[place] = _escaped(characters[place])
    return "".join(characters)


def quoted(value: object, most: int = 110) -> str:
    """A value from outside as a message may show it: on one line, in quotes where it is text, escaped, and short."""
    text = printable(repr(value) if isinstance(value, str) else str(value))
    return text if len(text) <= most else f"{text[: most - 20]}...{text[-17:]}"


def some_of(names: Iterable[str], most: int = 150, separator: str = ", ") -> str:
    """As many names (or clauses) as a message has room for, and how many more there are."""
    names = [printable(name) for name in names]
    shown = names[:1]
    while len(shown) < len(names) and len(separator.join(names[: len(shown) + 1])) <= most:
        shown = names[: len(shown) + 1]
    more = len(names) - len(shown)
    return separator.join(shown)[:most] + (f" and {more} more" if more else "")


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
