"""How much memory may be used: sizes as people write them, and what `auto` means on this machine.

torch is imported only where a card is asked.
"""

from __future__ import annotations

import re

from engine.request import RequestError

UNITS = {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
MIN_BYTES, MAX_BYTES = 2**20, 2**40 - 1
RANGE = "from 1MiB to less than 1TiB, such as 12GiB"


def read_size(text: str, field: str, word: str = "auto") -> int | None:
    """Bytes of a size such as 12GiB, 11.5GiB or 12GB (10**9); None for `word`.

    Raises `RequestError` for `field` (vram, ram, encodings) where there is no unit, or the size is no size of a memory.
    """
    text = text.strip()
    if text.lower() == word:
        return None
    shown = repr(text[:40])
    match = re.fullmatch(r"(-?[0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{0,8})", text)
    if match is None or float(match[1]) <= 0:
        raise RequestError(field, f"{field} must be {word} or a size {RANGE}, got {shown}.")
    number, unit = float(match[1]), match[2]
    if not unit:
        raise RequestError(
            field, f"{field} {text[:40]} has no unit; write {match[1]}GiB, or {match[1]}GB for {match[1]} * 10^9 bytes."
        )
    if unit not in UNITS:
        near = next((name for name in UNITS if name.lower() == unit.lower()), None)
        hint = f"write {match[1]}{near}." if near else f"units are {', '.join(UNITS)}."
        raise RequestError(field, f"{field} {shown} has no unit that is known; {hint}")
    size = int(number * UNITS[unit])
    if not MIN_BYTES <= size <= MAX_BYTES:
        raise RequestError(field, f"{field} must be {word} or a size {RANGE}, got {shown}.")
    return size
