"""The part of a prompt that is shown where not all of it fits: where it differs from those beside it."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import takewhile

from rich.cells import cell_len

from tui.text import printable, shortened

MAX_TEXT = 4000  # characters of a prompt that are looked at
MIN_HEAD = 6  # cells of the beginning


@lru_cache(maxsize=2048)
def excerpt(text: str, neighbours: tuple[str, ...], width: int, ellipsis: str = "\u2026") -> str:
    """`text` on one line of at most `width` cells. Where that is too little: its beginning, and then from the first
    word on that the nearest of `neighbours` has not."""
    line = printable(text[:MAX_TEXT])
    if cell_len(line) <= width:
        return line
    words = re.findall(r"\S+\s*", line)
    others = [re.findall(r"\S+\s*", printable(other[:MAX_TEXT])) for other in neighbours if other != text]
    same = max((sum(1 for _ in takewhile(_equal, zip(words, other, strict=False))) for other in others), default=0)
    tail = "".join(words[same:])
    head = "".join(words[:same])
    first = words[same].rstrip() if same < len(words) else ""
    if not first or cell_len(head) + cell_len(first) + cell_len(ellipsis) <= width:
        return shortened(line, width, ellipsis)  # the word is in sight
    room = width - max(min(cell_len(tail), 2 * width // 3), min(cell_len(first), width))
    if room < MIN_HEAD + cell_len(ellipsis) + 1:
        return ellipsis + shortened(tail, width - cell_len(ellipsis), ellipsis)
    start = f"{shortened(head, room - 1, ellipsis)} "
    return start + shortened(tail, width - cell_len(start), ellipsis)


def _equal(pair: tuple[str, str]) -> bool:
    return pair[0].strip() == pair[1].strip()
