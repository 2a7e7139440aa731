"""Pictures in 256 colours: how far from the right ones, and what they cost: `python -m tests.bench.colours`.

Error: the mean distance in OKLab (times 100) after a blur, in light, over 3x3 cells, as an eye at a distance does it.
Bytes: a mean frame of eight previews, from noise to the picture. "Snapped" is Rich's own way, channel by channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.color import Color, ColorSystem, ColorType
from rich.color_triplet import ColorTriplet
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from textual.geometry import Size

from engine import Engine, Request
from engine.events import Preview
from tests.painting import painted
from tui.display.cells import Cells
from tui.display.palette import FIRST, PALETTE, dithered, nearest, oklab
from tui.widgets.picture import strips

COLUMNS, ROWS = 48, 24
FRAMES = 8


def main() -> None:
    """Print one table."""
    print("| picture | error: snapped | nearest | dithered | bytes a frame: snapped | nearest | dithered |")
    print("|---|---|---|---|---|---|---|")
    for name, picture in (("a red circle above a blue square", demo()), ("gradients", gradients())):
        small = picture.resize((COLUMNS, 2 * ROWS), Image.Resampling.BOX)
        pixels = np.asarray(small, np.float64)
        noise = np.random.default_rng(1).normal(128, 60, pixels.shape)
        frames = [
            np.clip(pixels * share + noise * (1 - share), 0, 255).astype(np.uint8).tobytes()
            for share in np.linspace(0.3, 1, FRAMES)
        ]
        ways = (snapped, matched, lambda rgb: dithered(rgb, COLUMNS))
        errors = [error(frames[-1], way(frames[-1])) for way in ways]
        costs = [cost([way(frame) for frame in frames]) for way in ways]
        print(f"| {name} | {' | '.join(f'{each:.1f}' for each in errors)} | {' | '.join(map(str, costs))} |")


def demo() -> Image.Image:
    """A picture of the demo model."""
    request = Request("a red circle above a blue square", seed=1)
    with Engine.open("demo", device="cpu") as engine:
        return Image.fromarray(painted(engine, request))


def gradients() -> Image.Image:
    """A sky, skin and dark corners: what shows bands first."""
    y, x = np.mgrid[0:192, 0:192] / 191
    sky = np.stack([90 + 120 * y, 140 + 80 * y, 235 - 30 * y], -1)
    skin = np.array([224, 172, 140]) * (0.35 + 0.65 * np.exp(-8 * ((x - 0.5) ** 2 + (y - 0.6) ** 2)))[..., None]
    inside = ((x - 0.5) ** 2 + (y - 0.6) ** 2 < 0.1)[..., None]
    dark = 1 - 0.6 * np.clip(x + y - 1, 0, 1)[..., None]
    return Image.fromarray(np.clip(np.where(inside, skin, sky) * dark, 0, 255).astype(np.uint8))


def snapped(rgb: bytes) -> bytes:
    """Every pixel as Rich makes it fit."""
    out = bytearray()
    for place in range(0, len(rgb), 3):
        color = Color("", ColorType.TRUECOLOR, None, ColorTriplet(*rgb[place : place + 3]))
        out += bytes(color.downgrade(ColorSystem.EIGHT_BIT).get_truecolor(DEFAULT_TERMINAL_THEME))
    return bytes(out)


def matched(rgb: bytes) -> bytes:
    """Every pixel as the nearest colour."""
    return b"".join(bytes(PALETTE[nearest(*rgb[place : place + 3]) - FIRST]) for place in range(0, len(rgb), 3))


def error(wanted: bytes, got: bytes) -> float:
    """The mean distance as seen from afar."""
    first, second = blurred(wanted), blurred(got)
    distances = [
        sum((a - b) ** 2 for a, b in zip(oklab(*one), oklab(*other), strict=True)) ** 0.5
        for one, other in zip(first, second, strict=True)
    ]
    return 100 * float(np.mean(distances))


def blurred(rgb: bytes) -> NDArray[np.float64]:
    """The mean light of every 3x3 cells, in sRGB; a cell is one pixel wide and two high."""
    pixels = np.frombuffer(rgb, np.uint8).reshape(2 * ROWS, COLUMNS, 3) / 255
    light = np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    mean = np.lib.stride_tricks.sliding_window_view(light, (6, 3), axis=(0, 1)).mean((-1, -2)).reshape(-1, 3)
    return np.asarray(255 * np.where(mean <= 0.0031308, 12.92 * mean, 1.055 * mean ** (1 / 2.4) - 0.055))


def cost(frames: list[bytes]) -> int:
    """Bytes of a mean frame."""
    cells = Cells(ColorSystem.EIGHT_BIT)
    cells.forget(COLUMNS, ROWS)
    size = Size(COLUMNS, ROWS)
    sent = [
        cells.update([(row, 0, line) for row, line in enumerate(strips(Preview(COLUMNS, 2 * ROWS, frame), size))])
        for frame in frames
    ]
    return sum(len(text.encode()) for text in sent) // len(sent)


if __name__ == "__main__":
    main()
