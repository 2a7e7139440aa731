"""Pictures in 256 colours, way by way: `python -m tests.bench.colours [--sheet FILE]`.

Error: the mean distance in OKLab (times 100) after a blur, in light, over 2x2 cells, as an eye at a distance does it.
The pictures are grays, a sky, skin, and one of the demo model. Changed: cells and bytes from one preview to the next,
of the 12 last in a run of 20 steps. `--sheet` draws it all, at 8x16 pixels a cell, to be looked at.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.color import Color, ColorSystem, ColorType
from rich.color_triplet import ColorTriplet
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from textual.geometry import Size

from engine import Engine, ImageSaved, Request
from engine.events import Preview, StepFinished
from engine.images.save import plan_output
from tui.display.cells import Cells
from tui.display.mixes import light_of, oklab_of_light
from tui.display.palette import FIRST, PALETTE, dithered, nearest
from tui.widgets.picture import strips

Pixels = NDArray[np.uint8]  # [H, W, 3]
COLORS = np.array(PALETTE, np.uint8)
LIGHT = light_of(COLORS.astype(float))
OKLAB = oklab_of_light(LIGHT)
SIZES = (48, 96)  # columns of a square of half-blocks
STRENGTH = 0.7  # of the error that is diffused
LATE = 12  # previews


def main() -> None:
    """Print one table for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheet", type=Path, help="PNG file for the pictures; the size is put before its ending")
    sheet = parser.parse_args().sheet
    previews, painted = a_run()
    ways: dict[str, Callable[[Pixels], Pixels]] = {
        "Rich's own": snapped,
        "nearest in OKLab": matched,
        "Pillow's diffusion": by_pillow,
        "diffusion in light": diffused,
        "pairs (the app's)": paired,
    }
    for columns in SIZES:
        shown = pictures(columns, painted)
        frames = [
            np.asarray(Image.frombytes("RGB", (each.width, each.height), each.rgb).resize((columns, columns), 0))
            for each in previews[-LATE - 1 :]
        ]
        print(f"\n{columns}x{columns // 2} cells\n\n| way | {' | '.join(shown)} | changed cells | bytes |")
        print(f"|{'---|' * (len(shown) + 3)}")
        rows = [list(shown.values())]
        for name, way in ways.items():
            rows.append([way(picture) for picture in shown.values()])
            errors = [error(*pair) for pair in zip(shown.values(), rows[-1], strict=True)]
            cells, count = cost(way, frames)
            print(f"| {name} | {' | '.join(f'{each:.1f}' for each in errors)} | {cells} | {count} |", flush=True)
        if sheet is not None:
            whole = np.concatenate([np.concatenate(row, 1) for row in rows])
            large = whole.repeat(8, 0).repeat(8, 1)
            Image.fromarray(large).save(sheet.with_stem(f"{sheet.stem}-{columns}"))


def a_run() -> tuple[list[Preview], Pixels]:
    """The previews and the picture of a run of the demo model."""
    request = Request("a large red circle above a small blue square on a white background", seed=7, steps=20)
    with Engine.open("demo", device="cpu") as engine, tempfile.TemporaryDirectory() as folder:
        events = list(engine.generate(request, plan_output(Path(folder), 1)))
        saved = events[-1]
        assert isinstance(saved, ImageSaved), saved
        with Image.open(saved.path) as image:
            picture = np.asarray(image.convert("RGB"))
    return [each.preview for each in events if isinstance(each, StepFinished) and each.preview], picture


def pictures(side: int, painted: Pixels) -> dict[str, Pixels]:
    """What shows patterns and bands first, as squares of pixels."""
    y, x = np.mgrid[0:side, 0:side] / (side - 1)
    grays = np.select([x < 0.25, y < 0.25, y < 0.5], [200, 250, 238], 222)[..., None] + np.array([0, 0, 2])
    sky = np.stack([70 + 140 * y, 130 + 95 * y, 225 + 20 * y], -1)
    skin = np.array([224, 172, 140]) * (0.35 + 0.65 * np.exp(-5 * ((x - 0.45) ** 2 + (y - 0.4) ** 2)))[..., None]
    demo = np.asarray(Image.fromarray(painted).resize((side, side), Image.Resampling.BOX))
    found = {"grays": grays, "sky": sky, "skin": skin, "demo": demo}
    return {name: np.rint(pixels).astype(np.uint8) for name, pixels in found.items()}


def snapped(picture: Pixels) -> Pixels:
    """Every pixel as Rich makes it fit, channel by channel."""

    def shown(pixel: list[int]) -> tuple[int, int, int]:
        color = Color("", ColorType.TRUECOLOR, None, ColorTriplet(*pixel))
        return color.downgrade(ColorSystem.EIGHT_BIT).get_truecolor(DEFAULT_TERMINAL_THEME)

    return np.array([[shown(pixel) for pixel in row] for row in picture.tolist()], np.uint8)


def matched(picture: Pixels) -> Pixels:
    """Every pixel as the nearest colour."""
    return np.array([[PALETTE[nearest(*pixel) - FIRST] for pixel in row] for row in picture.tolist()], np.uint8)


def by_pillow(picture: Pixels) -> Pixels:
    """Floyd and Steinberg's diffusion as Pillow has it, in sRGB."""
    palette = Image.new("P", (1, 1))
    palette.putpalette([*COLORS.ravel().tolist(), *[0] * 48])
    return np.asarray(Image.fromarray(picture).quantize(palette=palette).convert("RGB"))


def diffused(picture: Pixels) -> Pixels:
    """The same in light, row by row to and fro, with a part of the error; nearest in OKLab."""
    light = light_of(picture.astype(float))
    height, width, _ = picture.shape
    shown = np.empty((height, width), int)
    for y in range(height):
        step = 1 if y % 2 == 0 else -1
        for x in range(width)[::step]:
            wanted = oklab_of_light(np.clip(light[y, x], 0, 1))
            shown[y, x] = number = ((OKLAB - wanted) ** 2).sum(1).argmin()
            lost = STRENGTH * (light[y, x] - LIGHT[number])
            for down, across, share in ((0, step, 7), (1, -step, 3), (1, 0, 5), (1, step, 1)):
                if y + down < height and 0 <= x + across < width:
                    light[y + down, x + across] += lost * share / 16
    return np.asarray(COLORS[shown])


def paired(picture: Pixels) -> Pixels:
    """As the app does it."""
    return np.frombuffer(dithered(picture.tobytes(), picture.shape[1]), np.uint8).reshape(picture.shape)


def error(wanted: Pixels, got: Pixels) -> float:
    """The mean distance as seen from afar."""
    return 100 * float(np.linalg.norm(blurred(wanted) - blurred(got), axis=-1).mean())


def blurred(picture: Pixels) -> NDArray[np.float64]:
    """The mean light of every 2x2 cells, in OKLab."""
    light = light_of(picture.astype(float))
    return oklab_of_light(np.lib.stride_tricks.sliding_window_view(light, (4, 2), axis=(0, 1)).mean((-1, -2)))


def cost(way: Callable[[Pixels], Pixels], frames: list[Pixels]) -> tuple[int, int]:
    """Cells that change from one frame to the next, and the bytes that this takes."""
    height, width, _ = frames[0].shape
    shown = [way(frame) for frame in frames]
    changed = [(one != other).any(-1).reshape(-1, 2, width).any(1).sum() for one, other in pairwise(shown)]
    cells = Cells(ColorSystem.EIGHT_BIT)
    cells.forget(width, height // 2)
    sent = []
    few_colors = way is paired
    for frame in frames if few_colors else shown:
        preview = Preview(width, height, frame.tobytes())
        lines = strips(preview, Size(width, height // 2), few_colors=few_colors)
        sent.append(cells.update([(row, 0, line) for row, line in enumerate(lines)]))
    return round(float(np.mean(changed))), round(float(np.mean([len(text.encode()) for text in sent[1:]])))


if __name__ == "__main__":
    main()
