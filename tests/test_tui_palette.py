"""Terminals with 256 colours: the nearest by eye, and dithered pictures."""

from __future__ import annotations

import numpy as np
import pytest
from rich.color import ColorSystem
from textual.geometry import Size

from engine.events import Preview
from tui.display.cells import Cells
from tui.display.palette import FIRST, PALETTE, dithered, nearest
from tui.widgets.picture import strips


@pytest.mark.parametrize(
    ("color", "number"),
    [((255, 0, 0), 196), ((0, 0, 255), 21), ((0, 255, 0), 46), ((0, 0, 0), 16), ((255, 255, 255), 231)],
)
def test_colours_of_the_palette_are_themselves(color: tuple[int, int, int], number: int) -> None:
    assert nearest(*color) == number
    assert all(PALETTE[nearest(*each) - FIRST] == each for each in PALETTE)


def test_a_red_stays_red_and_grey_stays_grey() -> None:
    red, green, blue = PALETTE[nearest(217, 35, 45) - FIRST]
    assert red > 200
    assert max(green, blue) < 100  # Rich makes (215, 0, 95) of some reds
    ramp = np.repeat(np.arange(256, dtype=np.uint8), 3 * 4).tobytes()
    shown = np.frombuffer(dithered(ramp, 32), np.uint8).reshape(-1, 3)
    assert (shown == shown[:, :1]).all()
    assert all((r, g, b) in PALETTE for r, g, b in shown.tolist())


def test_an_area_has_the_right_colour_on_average() -> None:
    for color in ((100, 120, 200), (224, 172, 140), (60, 60, 64)):
        shown = np.frombuffer(dithered(bytes(color) * 256, 16), np.uint8).reshape(-1, 3)
        plain = np.array(PALETTE[nearest(*color) - FIRST])
        assert np.abs(shown.mean(0) - color).sum() < np.abs(plain - color).sum()


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
