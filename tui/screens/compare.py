"""Two pictures, and what they were made with where that differs."""

from __future__ import annotations

from pathlib import Path

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.geometry import Size
from textual.widgets import Static

from engine.events import Preview
from engine.images.metadata import Record, read_record
from engine.request import RequestError
from tui.bindings import bindings_of
from tui.screens.pictures import PicturesScreen, record_rows
from tui.shared import Shared
from tui.text import printable, shortened
from tui.widgets.lines import KeyBar
from tui.widgets.picture import PictureView

NAMES = ("A", "B")
MIN_COLUMNS = 60  # for two pictures side by side
NO_SETTINGS = ("took", "file", "parameters")  # rows that differ between any two pictures
MAX_VALUE = 200  # characters of a value other than the prompt


class Compare(PicturesScreen):
    """Side by side or, to see what moved, one after the other at the same place."""

    BINDINGS = [
        *bindings_of("pictures"),
        Binding("tab", "toggle_side_by_side", show=False),
        Binding("space", "flip", show=False),
        Binding("left", "choose(0)", show=False),
        Binding("right", "choose(1)", show=False),
        Binding("escape,q", "back", show=False),
    ]
    VERTICAL_BREAKPOINTS = [(0, "-tiny-height"), (12, "-roomy")]
    DEFAULT_CSS = """
    Compare {
        #pictures { height: 1fr; }
        &.-sides PictureView { margin-right: 1; }
        #differences { height: auto; max-height: 40%; padding: 0 1; scrollbar-size-vertical: 1; }
        #settings { height: auto; }
        &.-tiny-height #differences { display: none; }
    }
    """

    def __init__(self, shared: Shared, first: Path, second: Path) -> None:
        super().__init__(shared)
        self._pair = (first, second)
        self._current = 0  # the one that keys work on, and that is shown where only one is
        self._wants_both = True
        self._drawing = 0  # the number of the latest load
        self._drawn_pair: tuple[Preview | None, Preview | None] | None = None

    def compose(self) -> ComposeResult:
        """The pictures, what differs, the keys."""
        with Horizontal(id="pictures"):
            for name in NAMES:
                yield PictureView(rendering=self.shared.profile.rendering, id=name)
        with VerticalScroll(id="differences"):
            yield Static(Content("..."), id="settings")
        yield KeyBar(id="keys")

    def on_mount(self) -> None:
        """Read what the files say."""
        self.query_one("#differences").focus()
        first, second = self._pair

        def read() -> None:
            self.call_later(self._show_settings, (_read(first), _read(second)))

        self.run_worker(read, name="compare settings", thread=True, exit_on_error=False)

    def _show_settings(self, records: tuple[Record | str, Record | str]) -> None:
        """What the files say about themselves: a record, or a sentence why there is none."""
        arrow = "->" if self.shared.profile.ascii else "\u2192"
        lines = [printable(line) for line in differences(self._pair, records, arrow)]
        self.query_one("#settings", Static).update(Content("\n".join(lines)))

    # The pictures.

    @property
    def side_by_side(self) -> bool:
        """Whether both pictures are seen at once."""
        return self._wants_both and self.size.width >= MIN_COLUMNS

    def on_resize(self) -> None:
        """At first, and where the terminal gets another size: as large as they fit."""
        self._arrange()

    def _arrange(self) -> None:
        """Show one picture or two, first as they are, then at their new size."""
        both = self.side_by_side
        self.query_one("#B").display = both
        self.set_class(both, "-sides")
        for view in self.query(PictureView):  # the same for both, where the columns are an odd number
            view.limit = Size(self.size.width // 2 - 1, self.size.height) if both else Size(0, 0)
        self._show_pictures()
        keys = self.shared.keys
        self.query_one(KeyBar).show(
            (
                ("Tab", "One at a time" if both else "Side by side"),
                ("Space", "Flip"),
                *((keys.shown(name), keys[name].label) for name in ("image.use_all", "image.favourite", "image.open")),
                ("Esc", "Back"),
            )
        )
        self.call_after_refresh(self._load)

    def _show_pictures(self) -> None:
        both = self.side_by_side
        for place, view in enumerate(self.query(PictureView)):
            shown = place if both else self._current
            view.show(None if self._drawn_pair is None else self._drawn_pair[shown], self._caption(shown, both))

    def _caption(self, place: int, both: bool) -> str:
        ascii_only = self.shared.profile.ascii
        mark, star, ellipsis = (">", "+", "...") if ascii_only else ("\u25b6", "\u2605", "\u2026")
        path = self._pair[place]
        words = [mark] if both and place == self._current else []
        words += [NAMES[place], *([star] if self.shared.session.history.is_favourite(path) else []), path.name]
        if self._drawn_pair is not None and self._drawn_pair[place] is None:
            words.append("cannot be shown")
        return shortened(" ".join(words), self.size.width // 2 - 1 if both else self.size.width, ellipsis)

    def _load(self) -> None:
        self._drawing += 1
        generation, (first, second), thumbnails = self._drawing, self._pair, self.shared.thumbnails
        room: Size = self.query_one("#A", PictureView).room

        def read() -> None:
            if generation == self._drawing:
                frames = tuple(thumbnails.get(path, room.width, room.height) for path in (first, second))
                self.call_later(self._show_drawn, generation, (frames[0], frames[1]))

        self.run_worker(read, name="compare", thread=True, exit_on_error=False)

    def _show_drawn(self, generation: int, frames: tuple[Preview | None, Preview | None]) -> None:
        """The pictures at their size on the screen."""
        if generation == self._drawing:
            self._drawn_pair = frames
            self._show_pictures()

    # Keys.

    def action_toggle_side_by_side(self) -> None:
        """Both at once, or one at a time."""
        if self.size.width < MIN_COLUMNS:
            self.shared.say(f"Two pictures side by side need {MIN_COLUMNS} columns.")
            return
        self._wants_both = not self.side_by_side
        self._arrange()

    def action_flip(self) -> None:
        """The other picture at the same place."""
        self._current = 1 - self._current
        if self.side_by_side:
            self._wants_both = False
            self._arrange()
        else:
            self._show_pictures()

    def action_choose(self, place: int) -> None:
        """The picture that the other keys work on."""
        self._current = place
        self._show_pictures()

    def action_back(self) -> None:
        """To the screen below."""
        self.dismiss()

    def selected_path(self) -> Path | None:
        """The marked picture, or the one that is shown alone."""
        return self._pair[self._current]

    def neighbour(self, path: Path, step: int) -> Path | None:
        """The other one."""
        place = self._pair.index(path) + step if path in self._pair else -1
        return self._pair[place] if place in (0, 1) else None

    def pictures_changed(self) -> None:
        """A star; or one picture has gone, and with it the comparison."""
        if all(path.is_file() for path in self._pair):
            self._show_pictures()
        else:
            self.dismiss()


def differences(paths: tuple[Path, Path], records: tuple[Record | str, Record | str], arrow: str) -> list[str]:
    """Lines for reading: each setting that is not the same in both; prompts in full, one below the other."""
    first, second = records
    if isinstance(first, str) or isinstance(second, str):
        return [f"{name}: {text}" for name, text in zip(NAMES, records, strict=True) if isinstance(text, str)]
    rows = [_settings(path, record) for path, record in zip(paths, (first, second), strict=True)]
    lines = []
    for name in dict.fromkeys((*rows[0], *rows[1])):
        a, b = (row.get(name, "") for row in rows)
        if a == b:
            continue
        if name in ("prompt", "template"):
            lines += [f"{name} A: {a or 'none'}", f"{name} B: {b or 'none'}"]
        else:
            lines.append(f"{name}: {shortened(a, MAX_VALUE) or 'none'} {arrow} {shortened(b, MAX_VALUE) or 'none'}")
    return lines or ["same settings"]


def _settings(path: Path, record: Record) -> dict[str, str]:
    """All that decides what the picture looks like, by name."""
    rows = {name: text for name, text in record_rows(path, record) if name not in NO_SETTINGS}
    return rows | {name: str(value) for name, value in record.reproduce.items()}


def _read(path: Path) -> Record | str:
    try:
        return read_record(path)
    except RequestError as error:
        return str(error)
