"""One picture, as large as the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Container
from textual.content import Content
from textual.widgets import Static

from engine.events import Preview
from engine.images.metadata import Record, read_record
from engine.request import RequestError
from tui.bindings import bindings_of
from tui.screens.pictures import PicturesScreen
from tui.shared import Shared
from tui.text import shortened
from tui.thumbnails import read_small
from tui.widgets.picture import PictureView

MAX_SIDE = 2048  # pixels of what is handed to a terminal that shows real pictures


class Viewer(PicturesScreen):
    """A picture of the screen below: in half-blocks, or as it is where the app found that the terminal can."""

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

    def __init__(self, shared: Shared, path: Path, neighbour: Callable[[Path, int], Path | None]) -> None:
        """`neighbour` gives the picture before (-1) or after (1) another one, if there is one."""
        super().__init__(shared)
        self._file = path
        self._neighbour = neighbour
        self._next_file: Path | None = None  # where a deleted picture leaves a gap
        self._image: Any = None  # the widget that shows a picture by the terminal's own graphics, where there is one
        self._loading = 0  # the number of the latest load
        self._loaded: tuple[Preview | None, Record | None] | None = None  # what the file gave

    def compose(self) -> ComposeResult:
        """The picture, and a line of text below it."""
        images = self.shared.images
        if images is None:
            yield PictureView(rendering=self.shared.profile.rendering, id="picture")
        else:
            self._image = images()
            with Container(id="frame"):
                yield self._image
            yield Static(id="line", markup=False)

    def on_resize(self) -> None:
        """At first, and where the terminal gets another size: as large as it fits."""
        self.call_after_refresh(self._load)

    def on_unmount(self) -> None:
        """The terminal keeps pictures that it was sent until it is told not to."""
        if self._image is not None:
            self._image.image = None

    def _load(self) -> None:
        self._loading += 1
        generation, path, thumbnails = self._loading, self._file, self.shared.thumbnails
        room = None if self._image is not None else self.query_one(PictureView).room

        def read() -> None:
            if generation != self._loading:  # the arrow is held down
                return
            try:
                record = read_record(path)
            except RequestError:
                record = None
            if room is None:
                frame = read_small(path, MAX_SIDE, MAX_SIDE)
            else:
                frame = thumbnails.get(path, room.width, room.height)
            self.call_later(self._show, generation, frame, record)

        if self._loaded is None:  # else the picture before stays until the next is there
            self._show_line(f"{path.name} ...")
        self.run_worker(read, name="viewer", thread=True, exit_on_error=False)

    def _show(self, generation: int, frame: Preview | None, record: Record | None) -> None:
        """What is in the file; None for what it cannot give."""
        if generation != self._loading:
            return
        self._loaded = frame, record
        if self._image is not None:
            from PIL import Image

            picture = None if frame is None else Image.frombytes("RGB", (frame.width, frame.height), frame.rgb)
            self._image.image = picture
        self._show_line(self._description())

    def _show_line(self, text: str) -> None:
        text = shortened(text, self.size.width, "..." if self.shared.profile.ascii else "\u2026")
        if self._image is not None:
            self.query_one("#line", Static).update(Content(text), layout=False)
        else:
            self.query_one(PictureView).show(None if self._loaded is None else self._loaded[0], text)

    def _description(self) -> str:
        name, (frame, record) = self._file.name, self._loaded or (None, None)
        if frame is None:
            return f"{name} cannot be shown"
        star = ("+ " if self.shared.profile.ascii else "\u2605 ") * self.shared.session.history.is_favourite(self._file)
        if record is None:
            return f"{star}{name}"
        request = record.request
        parts = [f"seed {request.seed}"] if request.seed is not None else []  # other programs may leave it out
        parts += [f"{request.width}x{request.height}"] if request.width is not None else []
        return "  ".join((f"{star}{name}", *parts, request.prompt))

    def action_go(self, step: int) -> None:
        """To the picture before or after."""
        path = self._neighbour(self._file, step)
        if path is not None:
            self._go_to(path)

    def _go_to(self, path: Path) -> None:
        self._file = path
        self._load()

    def action_view(self) -> None:
        """The key that came here leads back."""
        self.action_back()

    def action_back(self) -> None:
        """To the screen below, where the gallery follows. (Not before: Textual paints this screen for it, too.)"""
        stack = self.app.screen_stack
        below = stack[max(0, stack.index(self) - 1)]
        if isinstance(below, PicturesScreen):
            below.select(self._file)
        self.dismiss()

    def selected_path(self) -> Path | None:
        """The picture."""
        return self._file

    def neighbour(self, path: Path, step: int) -> Path | None:
        """As on the screen below."""
        return self._neighbour(path, step)

    def action_delete(self) -> None:
        """As everywhere; the next picture, or the one before, takes the place."""
        self._next_file = self._neighbour(self._file, 1) or self._neighbour(self._file, -1)
        super().action_delete()

    def pictures_changed(self) -> None:
        """A star, or the picture has gone."""
        if self._file.is_file():
            self._show_line(self._description())
        elif self._next_file is not None:
            self._go_to(self._next_file)
        else:
            self.dismiss()
