"""One picture, as large as the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Container
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from engine.events import Preview
from engine.images.metadata import Record, read_record
from engine.request import RequestError
from tui.bindings import bindings_of
from tui.screens.gallery import Gallery
from tui.screens.pictures import PicturesScreen
from tui.text import shortened
from tui.thumbnails import read_small
from tui.widgets.picture import PictureView

MAX_SIDE = 2048  # pixels of what is handed to a terminal that shows real pictures


class Viewer(PicturesScreen):
    """A picture of the screen below, in half-blocks or, where the terminal can, as it is."""

    BINDINGS = [
        *bindings_of("pictures"),
        Binding("left,pageup", "go(-1)", show=False),
        Binding("right,pagedown", "go(1)", show=False),
        Binding("escape,q,enter", "back", show=False),
    ]
    DEFAULT_CSS = """
    Viewer {
        #frame { height: 1fr; align: center middle; }
        #frame > * { width: auto; height: auto; }
        #line { height: 1; text-align: center; text-wrap: nowrap; }
    }
    """

    @dataclass
    class Loaded(Message, bubble=False):
        """What is in the file: None and a sentence where it cannot be shown or says nothing about itself."""

        generation: int
        frame: Preview | None
        record: Record | None

    def __init__(self, path: Path, neighbour: Callable[[Path, int], Path | None]) -> None:
        """`neighbour` gives the picture before (-1) or after (1) another one, if there is one."""
        super().__init__()
        self._path_shown = path
        self._neighbour = neighbour
        self._after_delete: Path | None = None
        self._generation = 0
        self._record: Record | None = None
        # The class of a widget that shows a picture by the terminal's own graphics, where there is one.
        self._images: Callable[[], Any] | None = getattr(self.t2i, "images", None)

    def compose(self) -> ComposeResult:
        """The picture, and a line of text below it."""
        if self._images is None:
            yield PictureView(rendering=self.t2i.rendering, id="picture")
        else:
            with Container(id="frame"):
                yield self._images()
            yield Static(id="line", markup=False)
