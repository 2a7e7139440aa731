"""Terminals with 256 colours: the nearest by eye, and pictures mixed of pairs."""

from __future__ import annotations

import subprocess
import sys
import zlib
from itertools import product

import numpy as np
import pyte
import pytest
from rich.color import ColorSystem
from textual.geometry import Size

from engine.events import Preview
from tui.display.cells import Cells
from tui.display.mixes import light_of, mixes, oklab_of, oklab_of_light
from tui.display.palette import FIRST, LEVELS_OF_MIXES, MIXES, PALETTE, dithered, nearest, oklab
from tui.widgets.picture import strips


@pytest.mark.parametrize(
    ("color", "number"),
    [((255, 0, 0), 196), ((0, 0, 255), 21), ((0, 255, 0), 46), ((0, 0, 0), 16), ((255, 255, 255), 231)],
)
def test_colours_of_the_palette_are_themselves(color: tuple[int, int, int], number: int) -> None:
    assert nearest(*color) == number
    assert all(PALETTE[nearest(*each) - FIRST] == each for each in PALETTE)


def test_the_nearest_is_the_one_of_the_smallest_distance() -> None:
    red, green, blue = PALETTE[nearest(217, 35, 45) - FIRST]
    assert red > 200
    assert max(green, blue) < 100  # Rich makes (215, 0, 95) of some reds
    chance = np.random.default_rng(1)
    known = oklab_of(np.array(PALETTE, float))
    for color in chance.integers(0, 256, (50, 3)):
        lab = oklab_of(color[None].astype(float))
        assert np.allclose(lab, oklab(*color))
        assert nearest(*color.tolist()) - FIRST == ((known - lab) ** 2).sum(1).argmin()


def test_the_table_is_what_its_command_makes() -> None:
    table = np.frombuffer(zlib.decompress(MIXES.read_bytes()), np.uint8).reshape(-1, 2)
    assert len(table) == LEVELS_OF_MIXES**3
    assert table.min() >= FIRST
    every = 41
    assert (table[::every] == mixes(every)).all()


def test_greys_are_flat_and_grey() -> None:
    for value in range(256):
        shown = np.frombuffer(dithered(bytes([value] * 3) * 64, 8), np.uint8).reshape(-1, 3)
        assert (shown == shown[0, 0]).all()
        assert tuple(shown[0].tolist()) in PALETTE
        assert abs(int(shown[0, 0]) - value) <= (50 if value < 8 else 14)
    for white in ((250, 250, 252), (252, 250, 248), (222, 222, 224)):
        assert len({*zip(*[iter(dithered(bytes(white) * 64, 8))] * 3, strict=True)}) == 1


def test_an_area_is_nearer_on_average_than_its_nearest_colour_and_a_chessboard() -> None:
    for color in ((90, 150, 240), (210, 155, 122), (225, 55, 60)):
        shown = np.frombuffer(dithered(bytes(color) * 55, 11), np.uint8).reshape(5, 11, 3)
        assert (shown[0, :-1] == shown[1, 1:]).all()
        assert (shown[0, 0] != shown[0, 1]).any()
        wanted, plain = oklab_of(np.array([color, PALETTE[nearest(*color) - FIRST]], float))
        mean = oklab_of_light(light_of(shown[:, :10].astype(float)).mean((0, 1)))
        assert ((mean - wanted) ** 2).sum() < ((plain - wanted) ** 2).sum()


def test_a_chessboard_is_one_change_of_colours() -> None:
    cells = Cells(ColorSystem.EIGHT_BIT)
    cells.forget(24, 12)
    screen = pyte.Screen(24, 12)
    lines = strips(Preview(24, 24, bytes((90, 150, 240)) * 24 * 24), Size(24, 12), few_colors=True)
    sent = cells.update([(row, 0, line) for row, line in enumerate(lines)])
    assert sent.count("m") == 1
    pyte.Stream(screen).feed(sent)
    wanted = dithered(bytes((90, 150, 240)) * 24 * 24, 24)
    for y, x in product(range(12), range(24)):
        cell = screen.buffer[y][x]
        pair = (cell.fg, cell.bg) if cell.data == "\u2580" else (cell.bg, cell.fg)
        assert pair == tuple(wanted[3 * (row * 24 + x) :][:3].hex() for row in (2 * y, 2 * y + 1))


def test_where_a_picture_does_not_change_nothing_is_sent() -> None:
    chance = np.random.default_rng(1)
    before = chance.integers(0, 256, (32, 32, 3), np.uint8)
    after = before.copy()
    after[12:14, 20:22] = 255 - after[12:14, 20:22]
    shown = [np.frombuffer(dithered(each.tobytes(), 32), np.uint8).reshape(before.shape) for each in (before, after)]
    rows, columns = np.nonzero((shown[0] != shown[1]).any(-1))
    assert {*rows.tolist()} <= {12, 13}
    assert {*columns.tolist()} <= {20, 21}
    cells = Cells(ColorSystem.EIGHT_BIT)
    cells.forget(32, 16)
    sent = []
    for each in (before, before.copy(), after):
        lines = strips(Preview(32, 32, each.tobytes()), Size(32, 16), few_colors=True)
        sent.append(cells.update([(row, 0, line) for row, line in enumerate(lines)]))
    assert sent[1] == ""
    assert 0 < len(sent[2]) < 80


def test_a_picture_needs_no_numpy() -> None:
    program = (
        "import sys; from tui.display.palette import dithered; dithered(bytes(12), 2); sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
