"""Terminals with 256 colours: the nearest by eye, and pictures dithered so that areas have the right colour on average.

Distances are those of OKLab (B. Ottosson, 2020). Only 16 to 255 are used, since the first 16 are the theme's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FIRST = 16
LEVELS = (0, 95, 135, 175, 215, 255)  # of each channel in the cube
PALETTE = [(r, g, b) for r in LEVELS for g in LEVELS for b in LEVELS] + [(v, v, v) for v in range(8, 239, 10)]
BITS = 5  # of each channel in the table of nearest colours
ORDER = ((0, 2), (3, 1))  # Bayer's matrix: larger ones have patterns that are seen in so few pixels
ROUNDS = 4  # colours that one area is mixed of
STRENGTH = 0.5  # how much of an error is made up for: more costs bytes and is no nearer

Triplet = tuple[int, int, int]
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


def nearest(red: int, green: int, blue: int) -> int:
    """The number (16 to 255) of the colour that looks most like this one."""
    x, y, z = oklab(red, green, blue)
    distances = [(x - p) ** 2 + (y - q) ** 2 + (z - r) ** 2 for p, q, r in _palette_lab()]
    return FIRST + distances.index(min(distances))


def dithered(rgb: bytes, width: int) -> bytes:
    """A picture (RGB, rows of `width` pixels) in colours of the palette.

    What a pixel becomes depends on its colour and its place alone: where a picture does not change, nor does this.
    After T. Knoll's pattern dithering: each colour is mixed of `ROUNDS` others, which lie in a fixed order.
    """
    import numpy as np

    table, palette = _table()
    pixels = np.frombuffer(rgb, np.uint8).reshape(-1, 3)
    colors, where = np.unique(pixels.astype(np.int32) @ np.array([65536, 256, 1], np.int32), return_inverse=True)
    wanted = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], 1).astype(np.float32)
    error = np.zeros_like(wanted)
    mixes = np.empty((len(wanted), ROUNDS), np.uint8)
    top = (1 << BITS) - 1
    for turn in range(ROUNDS):
        cell = np.rint(np.clip(wanted + STRENGTH * error, 0, 255) * (top / 255)).astype(np.int32)
        mixes[:, turn] = table[(cell[:, 0] << 2 * BITS) | (cell[:, 1] << BITS) | cell[:, 2]]
        error += wanted - palette[mixes[:, turn]]
    brightness = (palette @ np.array([0.299, 0.587, 0.114], np.float32))[mixes]
    mixes = np.take_along_axis(mixes, np.argsort(brightness, axis=1, kind="stable"), 1)
    rows = len(pixels) // width
    side = len(ORDER)
    places = np.tile(np.array(ORDER), (rows // side + 1, width // side + 1))[:rows, :width].ravel()
    return bytes(palette.astype(np.uint8)[mixes[where.ravel(), places]])


@lru_cache(1)
def _table() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The nearest palette entry of each colour of a coarse grid, and the palette."""
    import numpy as np

    def lab(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
        x = rgb / 255
        linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        cones = np.cbrt(linear @ np.array(
            [[0.4122214708, 0.2119034982, 0.0883024619], [0.5363325363, 0.6806995451, 0.2817188376],
             [0.0514459929, 0.1073969566, 0.6299787005]], np.float32))  # fmt: skip
        return np.asarray(cones @ np.array(
            [[0.2104542553, 1.9779984951, 0.0259040371], [0.7936177850, -2.4285922050, 0.7827717662],
             [-0.0040720468, 0.4505937099, -0.8086757660]], np.float32), np.float32)  # fmt: skip

    palette = np.array(PALETTE, np.float32)
    steps = np.linspace(0, 255, 1 << BITS, dtype=np.float32)
    grid = lab(np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3))
    known = lab(palette)
    # The square of the grid's own colour is the same for all.
    table = np.argmin((known**2).sum(1) - 2 * (grid @ known.T), axis=1).astype(np.uint8)
    return table, palette
