"""Pictures in rows and columns. Only those on the screen are asked for and drawn, so ten thousand are no more work."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from engine.events import Preview
from tui.profile import Rendering
from tui.text import shortened
from tui.widgets.picture import strips

TILE = Size(18, 9)  # a picture of 16x8 cells, a column on either side of it and a line of text below
MAX_TILES = 512  # kept when they are not on the screen


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A file as it was found; another time of change is another picture."""

    path: Path
    modified_ns: int


class PictureGrid(Widget, can_focus=True):
    """Shows pictures; one is selected. What it lacks it asks for with `Wanted`, and gets by `put`."""

    COMPONENT_CLASSES = {"grid--selected", "grid--caption"}
    DEFAULT_CSS = """
    PictureGrid {
        height: 1fr; background: $background; color: $foreground;
        & > .grid--caption { color: $muted; }
        & > .grid--selected {
            color: $block-cursor-foreground; background: $block-cursor-background; text-style: $block-cursor-text-style;
        }
    }
    """
    BINDINGS = [
        Binding("left", "move(-1)", show=False),
        Binding("right", "move(1)", show=False),
        Binding("up", "move_rows(-1)", show=False),
        Binding("down", "move_rows(1)", show=False),
        Binding("pageup", "move_pages(-1)", show=False),
        Binding("pagedown", "move_pages(1)", show=False),
        Binding("home", "first", show=False),
        Binding("end", "last", show=False),
        Binding("enter", "open", show=False),
        Binding("space", "screen.mark", show=False),
    ]

    class Selected(Message):
        """Another picture is selected."""

    class Opened(Message):
        """The selected picture was chosen by Enter or a double click."""

    @dataclass
    class Wanted(Message):
        """These are on the screen and were not `put` yet."""

        files: tuple[PictureFile, ...]
        room: Size  # cells of a picture

        def can_replace(self, message: Message) -> bool:
            """The latest is enough."""
            return isinstance(message, PictureGrid.Wanted)

    def __init__(
        self,
        caption: Callable[[PictureFile], str],
        *,
        rendering: Rendering = "blocks",
        ascii_only: bool = False,
        id: str | None = None,
    ) -> None:
        super().__init__(id=id)
        self._caption = caption
        self._rendering: Rendering = rendering
        self._mark, self._ellipsis = (">", "...") if ascii_only else ("\u25b6", "\u2026")
        self._files: Sequence[PictureFile] = ()
        self._places: dict[Path, int] = {}
        self._sentence = ""
        self._place = 0  # of the selected one
        self._top = 0  # the first row of tiles on the screen
        self._room = Size(0, 0)
        self._tiles: dict[PictureFile, list[Strip] | None] = {}  # None: it cannot be shown

    # What is shown.

    def show(self, files: Sequence[PictureFile], sentence: str) -> None:
        """Show `files`, or `sentence` where there are none. The selection stays on its picture, or at its place."""
        selected = self.selected
        self._files, self._sentence = files, sentence
        self._places = {file.path: place for place, file in enumerate(files)}
        self._place = min(self._place, max(0, len(files) - 1))
        if selected is not None:
            self._place = self._places.get(selected.path, self._place)
        self._reveal()
        self.refresh()
        self._want()
        self.post_message(self.Selected())

    def put(self, frames: Mapping[PictureFile, Preview | None]) -> None:
        """Pictures of files that were `Wanted`; None where one cannot be shown."""
        if len(self._tiles) >= MAX_TILES:
            seen = {self._files[place] for place in self._visible()}
            self._tiles = {kept: tile for kept, tile in self._tiles.items() if kept in seen}
        for file, frame in frames.items():
            self._tiles[file] = (
                None
                if frame is None
                else strips(frame, self._room, self._rendering, few_colors=self.app.console.color_system == "256")
            )
        places = [self._places[file.path] for file in frames if file.path in self._places]
        if places:  # no region at all would mean all of it
            self.refresh(*map(self._region, places))

    def captions_changed(self) -> None:
        """Draw the lines under the pictures again, and no picture: those are what is dear on a slow line."""
        height = self._tile.height
        self.refresh(*[Region(0, y, self.size.width, 1) for y in range(height - 1, self.size.height, height)])

    @property
    def selected(self) -> PictureFile | None:
        """The selected picture."""
        return self._files[self._place] if self._files else None

    @property
    def caption_columns(self) -> int:
        """Cells for the text below a picture."""
        return max(1, self._tile.width - 2)

    @property
    def place(self) -> int:
        """Of the selected picture, counted from 0."""
        return self._place

    def place_of(self, path: Path) -> int | None:
        """Where a picture is, if it is shown."""
        return self._places.get(path)

    def select(self, place: int) -> None:
        """Select the picture at `place`, or the nearest that there is, and bring it onto the screen."""
        if not self._files:
            return
        before, self._place = self._place, min(max(0, place), len(self._files) - 1)
        if self._reveal():
            self.refresh()
            self._want()
        elif before != self._place:
            self.refresh(self._caption_region(before), self._caption_region(self._place))
        if before != self._place:
            self.post_message(self.Selected())

    # Where everything is.

    @property
    def _tile(self) -> Size:
        return Size(max(1, min(TILE.width, self.size.width)), max(1, min(TILE.height, self.size.height)))

    @property
    def _columns(self) -> int:
        return max(1, self.size.width // self._tile.width)

    @property
    def _whole_rows(self) -> int:
        return max(1, self.size.height // self._tile.height)

    @property
    def _last_top(self) -> int:
        """The first row on the screen where the last one is on it, too."""
        return max(0, -(-len(self._files) // self._columns) - self._whole_rows)

    @property
    def _margin(self) -> int:
        return max(0, self.size.width - self._columns * self._tile.width) // 2

    def _visible(self) -> range:
        """The places on the screen, those that are cut off at the bottom included."""
        rows = -(-self.size.height // self._tile.height)
        return range(self._top * self._columns, min((self._top + rows) * self._columns, len(self._files)))

    def _region(self, place: int) -> Region:
        """Of a tile, in the widget."""
        row, column = divmod(place, self._columns)
        tile = self._tile
        return Region(self._margin + column * tile.width, (row - self._top) * tile.height, tile.width, tile.height)

    def _caption_region(self, place: int) -> Region:
        """All of a tile that changes with the selection. (Textual sends what is left of a region along with it.)"""
        x, y, width, height = self._region(place)
        return Region(x, y + height - 1, width, 1)

    def _reveal(self) -> bool:
        """Scroll as far as the selection asks for; returns whether that was at all."""
        row, before = self._place // self._columns, self._top
        self._top = max(min(self._top, row, self._last_top), row - self._whole_rows + 1, 0)
        return self._top != before

    def _want(self) -> None:
        missing = tuple(self._files[place] for place in self._visible() if self._files[place] not in self._tiles)
        if missing:
            self.post_message(self.Wanted(missing, self._room))

    def on_resize(self) -> None:
        """Other tiles are on the screen, perhaps of another size."""
        room = Size(max(0, self._tile.width - 2), max(0, self._tile.height - 1))
        if room != self._room:
            self._room = room
            self._tiles.clear()
        self._reveal()
        self._want()

    # Keys and mouse.

    def action_move(self, step: int) -> None:
        """To the next or the previous picture."""
        self.select(self._place + step)

    def action_move_rows(self, rows: int) -> None:
        """Up or down; a last row that is not full is reached, too."""
        place = self._place + rows * self._columns
        last_row = (len(self._files) - 1) // self._columns
        if place >= 0 and place // self._columns <= last_row:
            self.select(place)

    def action_move_pages(self, pages: int) -> None:
        """By as many rows as are on the screen."""
        self.select(self._place + pages * self._columns * self._whole_rows)

    def action_first(self) -> None:
        """To the first picture."""
        self.select(0)

    def action_last(self) -> None:
        """To the last picture."""
        self.select(len(self._files) - 1)

    def action_open(self) -> None:
        """The selected picture was chosen."""
        if self._files:
            self.post_message(self.Opened())

    def on_click(self, event: events.Click) -> None:
        """Select the picture under the mouse; a double click chooses it."""
        tile, column = self._tile, event.x - self._margin
        if not 0 <= column < self._columns * tile.width:
            return
        place = (self._top + event.y // tile.height) * self._columns + column // tile.width
        if place < len(self._files):
            self.select(place)
            if event.chain == 2:
                self.action_open()

    def on_mouse_scroll_down(self) -> None:
        """A row on."""
        self._scroll(1)

    def on_mouse_scroll_up(self) -> None:
        """A row back."""
        self._scroll(-1)

    def _scroll(self, rows: int) -> None:
        top = min(max(0, self._top + rows), self._last_top)
        if top != self._top:
            self._top = top
            self.refresh()
            self._want()

    # Drawing.

    def render_line(self, y: int) -> Strip:
        """One line of the widget."""
        width, base = self.size.width, self.rich_style
        if not self._files:
            return self._sentence_line(y)
        row, line = divmod(y, self._tile.height)
        first = (self._top + row) * self._columns
        segments = [Segment(" " * self._margin, base)]
        for place in range(first, min(first + self._columns, len(self._files))):
            segments += self._tile_line(place, line, base)
        return Strip(segments).adjust_cell_length(width, base)

    def _tile_line(self, place: int, line: int, base: Style) -> list[Segment]:
        """A line of a tile; the mark of the selected one is in the column that is free beside the others' texts."""
        width, height = self._tile
        inner, file = max(0, width - 2), self._files[place]
        selected = place == self._place and line == height - 1
        style = base + self.get_component_rich_style("grid--selected", partial=True) if selected else base
        if line < height - 1:
            middle = self._picture_line(file, line, inner, base)
        else:
            muted = base + self.get_component_rich_style("grid--caption", partial=True)
            text = Segment(shortened(self._caption(file), inner, self._ellipsis), style if selected else muted)
            middle = Strip([text]).adjust_cell_length(inner, style)
        left = Segment(self._mark if selected else " ", style)
        return [*Strip([left, *middle, Segment(" ", style)]).crop(0, width)]

    def _picture_line(self, file: PictureFile, line: int, width: int, base: Style) -> Strip:
        tile = self._tiles.get(file, [])
        if tile is None:
            text = "?".center(width) if line == (self._tile.height - 1) // 2 else ""
            return Strip([Segment(text, base)]).adjust_cell_length(width, base)
        line -= (self._tile.height - 1 - len(tile)) // 2
        if not 0 <= line < len(tile):
            return Strip.blank(width, base)
        left = (width - tile[line].cell_length) // 2
        return Strip([Segment(" " * left, base), *tile[line].apply_style(base)]).adjust_cell_length(width, base)

    def _sentence_line(self, y: int) -> Strip:
        width, base = self.size.width, self.rich_style
        lines = textwrap.wrap(shortened(self._sentence, 1000), max(1, width - 4))
        place = y - max(0, self.size.height - len(lines)) // 2
        text = shortened(lines[place], width) if 0 <= place < len(lines) else ""
        left = max(0, width - cell_len(text)) // 2
        return Strip([Segment(" " * left + text, base)]).adjust_cell_length(width, base)
