"""Terminals with 256 colours: the nearest by eye, and pictures mixed of pairs, so that areas keep their hue.

Distances are those of OKLab (B. Ottosson, 2020). Only 16 to 255 are used, since the first 16 are the theme's.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path

FIRST = 16
LEVELS = (0, 95, 135, 175, 215, 255)  # of each channel in the cube
PALETTE = [(r, g, b) for r in LEVELS for g in LEVELS for b in LEVELS] + [(v, v, v) for v in range(8, 239, 10)]
MIXES = Path(__file__).with_name("mixes.bin")  # made by `tui.display.mixes`: in the app numpy would cost 0.2 s
LEVELS_OF_MIXES = 32  # of each channel in that table

Lab = tuple[float, float, float]


def oklab(red: float, green: float, blue: float) -> Lab:
    """A colour of sRGB (0 to 255) in OKLab."""
    r, g, b = (
        x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in (red / 255, green / 255, blue / 255)
    )
    long = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    medium = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    short = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )


@lru_cache(1)
def _palette_lab() -> list[Lab]:
    return [oklab(*color) for color in PALETTE]


@lru_cache(1)
def _numbers() -> dict[tuple[int, int, int], int]:
    return {color: number for number, color in enumerate(PALETTE, FIRST)}


def nearest(red: int, green: int, blue: int) -> int:
    """The number (16 to 255) of the colour that looks most like this one."""
    if (number := _numbers().get((red, green, blue))) is not None:  # all that a mixed picture has
        return number
    x, y, z = oklab(red, green, blue)
    distances = [(x - p) ** 2 + (y - q) ** 2 + (z - r) ** 2 for p, q, r in _palette_lab()]
    return FIRST + distances.index(min(distances))


def dithered(rgb: bytes, width: int) -> bytes:
    """A picture (RGB, rows of `width` pixels) in colours of the palette: a chessboard of two where one is not enough.

    What a pixel becomes depends on its colour and its place alone: where a picture does not change, nor does this.
    Diffusing the error is nearer to the picture, but changes twice as many cells from one preview to the next.
    """
    pairs, reds, greens, blues = _table()
    row = bytes(place % 2 for place in range(width + 1))
    squares = (row[:width] + row[1:]) * (len(rgb) // 3 // width // 2 + 1)
    return b"".join(
        pairs[reds[red] + greens[green] + blues[blue] + square]
        for red, green, blue, square in zip(rgb[::3], rgb[1::3], rgb[2::3], squares, strict=False)
    )


@lru_cache(1)
def _table() -> tuple[list[bytes], list[int], list[int], list[int]]:
    """The pairs of colours, and what each channel's value adds to the place of a pair."""
    top = LEVELS_OF_MIXES - 1
    colors = [bytes(color) for color in PALETTE]
    places = [2 * ((value * top + 127) // 255) for value in range(256)]
    return (
        [colors[number - FIRST] for number in zlib.decompress(MIXES.read_bytes())],
        [place * LEVELS_OF_MIXES**2 for place in places],
        [place * LEVELS_OF_MIXES for place in places],
        places,
    )
