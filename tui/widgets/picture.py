"""A small picture in half-blocks: two pixels a cell, no terminal extension needed."""

from __future__ import annotations

from functools import lru_cache
from textwrap import wrap

from rich.color import Color, ColorType
from rich.color_triplet import ColorTriplet
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from engine.events import Preview
from tui.display.palette import dithered
from tui.profile import Rendering
from tui.text import printable, shortened

RAMP = " .:-=+*#%@"  # from dark to bright, where there are no colours


class PictureView(Widget):
    """Shows a `Preview` as large as it fits, in the middle, with a line of text below."""

    DEFAULT_CSS = "PictureView { height: 1fr; width: 1fr; }"

    def __init__(self, *, rendering: Rendering = "blocks", id: str | None = None) -> None:
        super().__init__(id=id)
        self.rendering: Rendering = rendering
        self._ellipsis = "\u2026" if rendering == "blocks" else "..."
        self.limit = Size(0, 0)  # most columns and rows of the picture; 0: as many as there are
        self._frame: Preview | None = None
        self._caption = ""
        self._strips: list[Strip] = []
        self._offset = (0, 0)

    def show(self, frame: Preview | None, caption: str = "") -> None:
        """Show `frame` (None: nothing) over `caption`; costs nothing when both are shown already.

        Without a frame the caption may have several lines.
        """
        if frame is not self._frame:
            self._frame, self._caption = frame, caption
            self._arrange()
            self.refresh()
        elif caption != self._caption:
            self._caption = caption
            # The picture itself is 20 kB.
            self.refresh(*([Region(0, self._caption_row, self.size.width, 1)] if self._strips else []))

    @property
    def room(self) -> Size:
        """Columns and rows for the picture itself."""
        columns, rows = self.size.width, max(0, self.size.height - 1)
        if self.limit.width:
            columns, rows = min(columns, self.limit.width), min(rows, self.limit.height)
        return Size(columns, rows)

    def on_resize(self) -> None:
        """Fit again."""
        self._arrange()

    def _arrange(self) -> None:
        self._strips = []
        if self._frame is not None:
            few = self.app.console.color_system == "256"
            self._strips = strips(self._frame, self.room, self.rendering, few_colors=few)
            width = self._strips[0].cell_length if self._strips else 0
            self._offset = (
                max(0, (self.size.width - width) // 2),
                max(0, (self.size.height - 1 - len(self._strips)) // 2),
            )

    @property
    def _caption_row(self) -> int:
        return min(self.size.height - 1, self._offset[1] + len(self._strips))

    def render_line(self, y: int) -> Strip:
        """One line of the widget."""
        width = self.size.width
        background = self.rich_style
        left, top = self._offset
        if not self._strips:
            texts = self._caption.split("\n")
            lines = [line for text in texts for line in wrap(printable(text), max(1, width - 2)) or [""]]
            del lines[self.size.height :]
            row = y - (self.size.height - len(lines)) // 2
            return _centred(lines[row] if 0 <= row < len(lines) else "", width, background)
        if y == self._caption_row:
            return _centred(shortened(self._caption, width, self._ellipsis), width, background)
        if 0 <= y - top < len(self._strips):
            line = self._strips[y - top]
            if self.rendering == "letters":  # blocks have colours of their own
                line = line.apply_style(background)
            return Strip([Segment(" " * left, background), *line]).adjust_cell_length(width, background)
        return Strip.blank(width, background)


def strips(frame: Preview, room: Size, rendering: Rendering = "blocks", *, few_colors: bool = False) -> list[Strip]:
    """`frame` as large as it fits into `room` (cells), its proportions kept: a cell is one pixel wide and two high.

    With `few_colors` in those of a terminal that has 256.
    """
    tall = 2 if rendering == "blocks" else 1
    width, height = fitted(frame, room)
    if not width:
        return []
    from PIL import Image

    picture = Image.frombytes("RGB", (frame.width, frame.height), frame.rgb)
    rows = height * tall
    if (width, rows) != picture.size:
        larger = width >= frame.width and rows >= frame.height
        # Nearest: equal neighbours are sent as one, which halves the bytes of an enlarged preview.
        picture = picture.resize((width, rows), Image.Resampling.NEAREST if larger else Image.Resampling.BOX)
    pixels = picture.tobytes()
    if few_colors and rendering == "blocks":
        pixels = dithered(pixels, width)
    line = 3 * width
    if rendering == "letters":
        return [_letters(pixels[row * line : (row + 1) * line]) for row in range(height)]
    return [
        _half_blocks(
            pixels[2 * row * line : (2 * row + 1) * line],
            pixels[(2 * row + 1) * line : (2 * row + 2) * line],
            few_colors=few_colors,
        )
        for row in range(height)
    ]


def fitted(frame: Preview, room: Size) -> tuple[int, int]:
    """Columns and rows that a picture of these proportions takes in `room`."""
    if min(frame.width, frame.height, room.width, room.height) < 1:
        return 0, 0
    scale = min(room.width / frame.width, 2 * room.height / frame.height)
    return max(1, int(frame.width * scale)), max(1, int(frame.height * scale / 2))


def _half_blocks(upper: bytes, lower: bytes, *, few_colors: bool) -> Strip:
    """A line of cells from two rows of RGB; neighbours of the same colours become one segment.

    With `few_colors` the colour of the lower values is in front, so that a chessboard of two is one segment, too.
    """
    segments: list[Segment] = []
    text, before = "", b""
    for column in range(0, len(upper), 3):
        block, front, behind = "\u2580", upper[column : column + 3], lower[column : column + 3]
        if few_colors and behind < front:
            block, front, behind = "\u2584", behind, front
        if front + behind != before and text:
            segments.append(Segment(text, _style(before)))
            text = ""
        before = front + behind
        text += block
    segments.append(Segment(text, _style(before)))
    return Strip(segments, len(upper) // 3)


def _letters(row: bytes) -> Strip:
    """A line of letters as bright as the pixels."""
    text = "".join(
        RAMP[(299 * row[i] + 587 * row[i + 1] + 114 * row[i + 2]) * len(RAMP) // 255_001] for i in range(0, len(row), 3)
    )
    return Strip([Segment(text, Style.null())], len(text))


@lru_cache(maxsize=16384)
def _style(colours: bytes) -> Style:
    # `Color.from_rgb` spends most of its time on a name that nobody reads.
    red, green, blue, *lower = colours
    return Style.from_color(
        Color("", ColorType.TRUECOLOR, None, ColorTriplet(red, green, blue)),
        Color("", ColorType.TRUECOLOR, None, ColorTriplet(*lower)),
    )


def _centred(text: str, width: int, style: Style) -> Strip:
    from rich.cells import cell_len

    left = max(0, (width - cell_len(text)) // 2)
    return Strip([Segment(" " * left + text, style)]).adjust_cell_length(width, style)
