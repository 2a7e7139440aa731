"""Two pictures, and what they were made with where that differs."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
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
MAX_WORDS = 2000  # and signs between them, of prompts that are compared word by word
MAX_VALUE = 200  # characters of a value other than the prompt


class Compare(PicturesScreen):
    """Side by side or, to see what moved, one after the other at the same place."""

    BINDINGS = [
        *bindings_of("compare", "pictures"),
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

    def __init__(self, shared: Shared, first: Path, second: Path, *others: Path) -> None:
        """`others` come in the place of one of the two, in this order."""
        super().__init__(shared)
        self._pair = (first, second)
        self._others = list(others)
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
        self._read_settings()

    def _read_settings(self) -> None:
        pair, arrow = self._pair, "->" if self.shared.profile.ascii else "\u2192"

        def read() -> None:
            lines = differences(pair, (_read(pair[0]), _read(pair[1])), arrow)
            self.call_later(self._show_settings, pair, lines)

        self.run_worker(read, name="compare settings", thread=True, exit_on_error=False)

    def _show_settings(self, pair: tuple[Path, Path], lines: list[Content]) -> None:
        """What the files say about themselves, where that differs."""
        if pair == self._pair:
            self.query_one("#settings", Static).update(Content("\n").join(lines))

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
        names = ["compare.keep", *(["compare.next"] if self._others else []), "image.favourite", "image.use_all"]
        self.query_one(KeyBar).show(
            (
                ("Tab", "One at a time" if both else "Side by side"),
                ("Space", "Flip"),
                *((keys.shown(name), keys[name].label) for name in names),
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
        if self._others and place == 1:
            words.append(f"(+{len(self._others)})")
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

    def action_keep(self) -> None:
        """The other one goes to the trash folder; the next of the marked ones takes its place, if there is one."""
        self.to_trash([self._pair[1 - self._current]])

    def action_next(self) -> None:
        """The next of the marked ones in the other's place; that one comes again after them."""
        if self._others:
            place = 1 - self._current
            self._others.append(self._pair[place])
            self._replace(place, self._others.pop(0))
        else:
            self.shared.say("There are no more marked pictures.")

    def _replace(self, place: int, path: Path) -> None:
        """Another picture in the place of one."""
        self._pair = (path, self._pair[1]) if place == 0 else (self._pair[0], path)
        self._drawn_pair = None
        self._read_settings()
        self._arrange()

    def select(self, path: Path) -> None:
        """A picture that was brought back is compared again: next, or at once where it is one of the two."""
        if path not in (*self._pair, *self._others):
            self._others.insert(0, path)
            self._arrange()

    def action_back(self) -> None:
        """To the screen below."""
        self.dismiss()

    def _leave(self) -> None:
        """One picture is left: the screen below selects it."""
        kept = next((path for path in self._pair if path.is_file()), None)
        stack = self.app.screen_stack
        below = stack[max(0, stack.index(self) - 1)]
        if kept is not None and isinstance(below, PicturesScreen):
            below.select(kept)
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
        self._others = [path for path in self._others if path.is_file()]
        for place, path in enumerate(self._pair):
            if not path.is_file():
                if not self._others:
                    self._leave()
                    return
                self._replace(place, self._others.pop(0))
        self._show_pictures()


def differences(paths: tuple[Path, Path], records: tuple[Record | str, Record | str], arrow: str) -> list[Content]:
    """Lines for reading: each setting that is not the same in both; prompts in full, one below the other, and in
    reverse the words that only one of them has."""
    first, second = records
    if isinstance(first, str) or isinstance(second, str):
        texts = [f"{name}: {text}" for name, text in zip(NAMES, records, strict=True) if isinstance(text, str)]
        return [Content(printable(text)) for text in texts]
    rows = [_settings(path, record) for path, record in zip(paths, (first, second), strict=True)]
    lines: list[Content] = []
    for name in dict.fromkeys((*rows[0], *rows[1])):
        a, b = (printable(row.get(name, "")) for row in rows)
        if a == b:
            continue
        if name in ("prompt", "template"):
            lines += [
                Content(f"{name} {letter}: ") + text for letter, text in zip(NAMES, words_apart(a, b), strict=True)
            ]
        else:
            a, b = (shortened(text, MAX_VALUE) or "none" for text in (a, b))
            lines.append(Content(f"{name}: {a} {arrow} {b}"))
    return lines or [Content("same settings")]


def words_apart(a: str, b: str) -> tuple[Content, Content]:
    """Two texts, and in reverse the words of each that the other has not, or not there."""
    words = [re.findall(r"\w+|\W", text) for text in (a, b)]
    if not (a and b) or max(map(len, words)) > MAX_WORDS:
        return Content(a or "none"), Content(b or "none")
    matcher = SequenceMatcher(None, words[0], words[1], autojunk=False)
    texts: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    for kind, *ends in matcher.get_opcodes():
        for side in (0, 1):
            text = "".join(words[side][ends[2 * side] : ends[2 * side + 1]])
            texts[side].append((text, "" if kind == "equal" or not text.strip() else "reverse"))
    return Content.assemble(*texts[0]), Content.assemble(*texts[1])


def _settings(path: Path, record: Record) -> dict[str, str]:
    """All that decides what the picture looks like, by name."""
    rows = {name: text for name, text in record_rows(path, record) if name not in NO_SETTINGS}
    return rows | {name: str(value) for name, value in record.reproduce.items()}


def _read(path: Path) -> Record | str:
    try:
        return read_record(path)
    except RequestError as error:
        return str(error)
