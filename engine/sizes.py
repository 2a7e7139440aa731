"""Sizes as people write them: 512x384, 512, square, portrait, 16:9. A picture's sides are multiples of 16 pixels.

What is no multiple can be painted larger and cropped; a shape gets the pixels that a model was made for.
"""

from __future__ import annotations

import difflib
import math
import re
from fractions import Fraction

from engine.request import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE, RequestError

SHAPES = {"square": Fraction(1), "portrait": Fraction(2, 3), "landscape": Fraction(3, 2)}  # width to height
ALLOWED = f"512x384 in pixels, 512 for a square, {', '.join(SHAPES)}, or a ratio such as 16:9"


def read_size(text: str) -> tuple[int, int] | Fraction:
    """Width and height in pixels, or the ratio of both. Raises `RequestError`; pixels may still be any number."""
    words = text.strip().lower()
    if words in SHAPES:
        return SHAPES[words]
    if sides := re.fullmatch(r"([0-9]{1,9})(?:\s*[x\u00d7*]\s*([0-9]{1,9}))?", words):
        return int(sides[1]), int(sides[2] or sides[1])
    if (ratio := re.fullmatch(r"([0-9]{1,4})\s*:\s*([0-9]{1,4})", words)) and int(ratio[1]) and int(ratio[2]):
        return Fraction(int(ratio[1]), int(ratio[2]))
    near = difflib.get_close_matches(words[:40], SHAPES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"write {ALLOWED}."
    raise RequestError("size", f"there is no size {text[:40]!r}; {hint}")


def shaped(ratio: Fraction, width: int, height: int, most: int) -> tuple[int, int]:
    """Sides with about this ratio and about the area of `width` x `height`. Raises where a side is more than `most`."""
    wide = math.sqrt(width * height * ratio)
    sides = tuple(max(1, round(side / SIDE_MULTIPLE)) * SIDE_MULTIPLE for side in (wide, wide / ratio))
    if not all(MIN_SIDE <= side <= most for side in sides):
        shown = f"{ratio.numerator}:{ratio.denominator}"
        raise RequestError(
            "size",
            f"size {shown} would be {sides[0]}x{sides[1]} with this model, whose sides go from {MIN_SIDE} to {most}; "
            "take a ratio nearer to a square, or say the pixels.",
        )
    return sides[0], sides[1]


def fitted(width: int, height: int) -> tuple[int, int, str | None]:
    """The smallest sides in multiples that hold these, and what to crop them to (None where they are the same)."""
    sides = [side + -side % SIDE_MULTIPLE if _is_possible(side) else side for side in (width, height)]
    return sides[0], sides[1], f"{width}x{height}" if sides != [width, height] else None


def check_multiples(width: int, height: int) -> None:
    """Raises `RequestError` that says which sizes are near, and that the larger can be cropped."""
    larger = fitted(width, height)
    if larger[2] is None:
        return
    smaller = [side - side % SIDE_MULTIPLE if _is_possible(side) else side for side in (width, height)]
    large = f"{larger[0]}x{larger[1]}"
    raise RequestError(
        "size",
        f"size {width}x{height} is not in multiples of {SIDE_MULTIPLE}; the nearest are {smaller[0]}x{smaller[1]} and "
        f"{large}: take one of them, or add --fit, which paints {large} and crops it.",
    )


def _is_possible(side: int) -> bool:
    return MIN_SIDE <= side <= MAX_SIDE
