"""All pictures of a folder. What takes time is done in threads; results that came too late are dropped."""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.content import Content
from textual.widgets import Input, Static
from textual.worker import get_current_worker

from engine.events import Preview
from engine.folders import shown_path
from engine.images.metadata import read_record
from engine.images.save import NUMBERED
from engine.request import RequestError
from tui.bindings import GALLERY_BAR, bindings_of
from tui.excerpt import excerpt
from tui.screens.pictures import PicturesScreen
from tui.shared import Shared
from tui.text import moment, shortened
from tui.widgets.field import Field
from tui.widgets.grid import PictureFile, PictureGrid
from tui.widgets.joblist import MARKED
from tui.widgets.lines import HeaderLine, KeyBar

DATED = 60  # columns from which on the line of state says when a picture was made
ELLIPSIS = "\u2026"
BATCH_SECONDS = 0.1  # of reading, between two looks at what was found


@dataclass(frozen=True, slots=True)
class Facts:
    """What a picture's file says, as far as the gallery shows and searches it."""

    prompt: str = ""
    seed: int | None = None
    searched: str = ""  # the prompt, case-folded


class Gallery(PicturesScreen):
    """Thumbnails of all pictures in a folder, newest first."""

    BINDINGS = [*bindings_of("gallery", "pictures"), Binding("down", "keep_filter", show=False)]
    VERTICAL_BREAKPOINTS = [(0, "-tiny-height"), (8, "-roomy")]
    DEFAULT_CSS = """
    Gallery {
        #status { height: 1; padding: 0 1; color: $foreground; text-wrap: nowrap; }
        #filter { display: none; background: $panel; }
        &.-tiny-height #status { display: none; }
    }
    """

    def __init__(self, shared: Shared, folder: Path) -> None:
        super().__init__(shared)
        self._folder = folder.expanduser().absolute()  # as the engine spells its pictures: stars go by the path
        self._files: list[PictureFile] = []  # all of them
        self._shown: list[PictureFile] = []  # those that pass the filters
        self._facts: dict[PictureFile, Facts] = {}
        self._favourites: set[Path] = set()
        self._favourites_only = False
        self._problem: str | None = ""  # a sentence; "" until the folder was read, None where that went well
        self._searching = False  # a thread reads the files that a filter waits for
        self._listing = 0  # generations: the number of the latest listing and of the latest tiles
        self._drawing = 0
        self._to_select: Path | None = None

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        shared = self.shared
        yield HeaderLine(ascii_only=shared.profile.ascii, id="header")
        yield PictureGrid(self._caption, rendering=shared.profile.rendering, ascii_only=shared.profile.ascii, id="grid")
        yield Static(id="status", markup=False)
        yield Field(placeholder="words of the prompt", id="filter")
        yield KeyBar(id="keys")

    def on_mount(self) -> None:
        """Nothing is known yet."""
        self.grid = self.query_one(PictureGrid)
        self.filter = self.query_one(Input)
        self.filter.cursor_blink = False
        self._show_keys()
        self.grid.focus()
        self._favourites = self.shared.session.history.favourites()
        self._show()
        self.refresh_folder()

    # The folder.

    def refresh_folder(self) -> None:
        """Look for new pictures; returns at once."""
        self._listing += 1
        generation, folder, keys = self._listing, self._folder, self.shared.keys

        def read() -> None:
            files: list[PictureFile] = []
            problem = ""
            try:
                files = pictures_in(folder)
            except FileNotFoundError:
                problem = f"There is no folder {shown_path(folder)}, so there are no pictures to show."
            except (OSError, ValueError) as error:
                reason = (getattr(error, "strerror", None) or "it is no path that this system knows").lower()
                problem = f"{shown_path(folder)} cannot be read ({reason})"
                problem += f"; {keys.shown('output.change')} on the main screen chooses another folder."
            self.call_later(self._listed, generation, files, problem)

        self.run_worker(read, name="gallery folder", thread=True, exit_on_error=False)

    def _listed(self, generation: int, files: list[PictureFile], problem: str) -> None:
        """What is in the folder; `problem` is a sentence."""
        if generation != self._listing:
            return
        self._files, self._problem = files, problem or None
        self._facts = {file: self._facts[file] for file in files if file in self._facts}
        self._show()
        if self._to_select is not None:
            self.select(self._to_select)
            self._to_select = None

    @on(PictureGrid.Wanted)
    def _wanted(self, event: PictureGrid.Wanted) -> None:
        """What is on the screen: texts first, then the thumbnails, a few at a time."""
        self._drawing += 1
        generation, thumbnails = self._drawing, self.shared.thumbnails
        unknown = [file for file in event.files if file not in self._facts]

        def read() -> None:
            worker = get_current_worker()
            if unknown:
                self.call_later(self._described, {file: read_facts(file.path) for file in unknown})
            frames: dict[PictureFile, Preview | None] = {}
            due = time.monotonic() + BATCH_SECONDS
            for file in event.files if event.room.area else ():
                if worker.is_cancelled or generation != self._drawing:
                    return
                frames[file] = thumbnails.get(file.path, event.room.width, event.room.height)
                if time.monotonic() >= due:
                    self.call_later(self._drawn, generation, frames)
                    frames, due = {}, time.monotonic() + BATCH_SECONDS
            self.call_later(self._drawn, generation, frames)

        self.run_worker(read, name="gallery thumbnails", thread=True, exit_on_error=False)

    def _drawn(self, generation: int, frames: dict[PictureFile, Preview | None]) -> None:
        """Thumbnails; None where there can be none."""
        if generation == self._drawing:
            self.grid.put(frames)

    def _search(self) -> None:
        """Read what no filter can do without: the prompts of all files."""
        unknown = [file for file in self._files if file not in self._facts]
        if self._searching or not unknown or not self._words:
            return
        self._searching = True

        def read() -> None:
            worker = get_current_worker()
            found: dict[PictureFile, Facts] = {}
            due = time.monotonic() + BATCH_SECONDS
            for file in unknown:
                if worker.is_cancelled:
                    return
                found[file] = read_facts(file.path)
                if time.monotonic() >= due:
                    self.call_later(self._described, found)
                    found, due = {}, time.monotonic() + BATCH_SECONDS
            self.call_later(self._described, found, searched_all=True)

        self.run_worker(read, name="gallery search", thread=True, exit_on_error=False)

    def _described(self, facts: dict[PictureFile, Facts], *, searched_all: bool = False) -> None:
        """What some files say; `searched_all`: the last of those that a filter waits for."""
        self._facts |= facts
        if searched_all:
            self._searching = False
        if self._words:
            self._show()
        else:
            self.grid.captions_changed()
            self._update_lines()

    # What is shown.

    @property
    def _words(self) -> list[str]:
        return self.filter.value.casefold().split()

    def _show(self) -> None:
        """Those that pass the filters."""
        self._search()
        words = self._words
        files = [file for file in self._files if not self._favourites_only or file.path in self._favourites]
        if words:
            files = [file for file in files if self._has_words(file, words)]
        self._shown = files
        self.grid.show(files, self._sentence())

    def _has_words(self, file: PictureFile, words: list[str]) -> bool:
        facts = self._facts.get(file)
        return facts is not None and all(word in facts.searched for word in words)

    def _sentence(self) -> str:
        """Why there is no picture, where there is none."""
        keys = self.shared.keys
        if self._problem is not None:
            return self._problem
        if not self._files:
            return f"There are no pictures in {shown_path(self._folder)} yet."
        if self._searching:
            return "reading the prompts ..."
        if self._words:
            stars = " and a star" if self._favourites_only else ""
            return f"No picture has these words in its prompt{stars}."
        give, leave = keys.shown("image.favourite"), keys.shown("gallery.favourites")
        return f"No picture here has a star: {give} gives one, {leave} shows all pictures again."

    @on(PictureGrid.Selected)
    def _update_lines(self) -> None:
        """What is above the pictures and below."""
        count, everything = len(self._shown), len(self._files)
        left = [f"{count} of {everything}" if count != everything else f"{count}"]
        left[0] += " picture" if everything == 1 else " pictures"
        if self._words:
            left.append(f"with {self.filter.value.strip()!r}" + (" (reading)" if self._searching else ""))
        if self._favourites_only:
            left.append("with a star")
        if self.marked:
            left.append(f"{len(self.marked)} marked")
        self.query_one(HeaderLine).show(tuple(left), (shown_path(self._folder)[1:-1],))
        self.query_one("#status", Static).update(Content(self._status()), layout=False)

    def _status(self) -> str:
        file = self.grid.selected
        if file is None:
            return ""
        place = f"{self.grid.place + 1}/{len(self._shown)}"
        if self.size.width >= DATED:
            place += f"  {moment(file.modified_ns / 1e9)}"
        prompt, name = self._facts.get(file, Facts()).prompt, file.path.name
        ellipsis = "..." if self.shared.profile.ascii else "\u2026"
        room = self.size.width - 2 - len(place) - 4
        name = shortened(name, max(room - cell_len(prompt), room // 3), ellipsis)
        return f"{place}  {shortened(prompt, room - cell_len(name), ellipsis)}  {name}"

    def _caption(self, file: PictureFile) -> str:
        facts = self._facts.get(file)
        if facts is None:
            return ""
        mark, star = ("#", "+ ") if self.shared.profile.ascii else (MARKED, "\u2605 ")
        star = star if file.path in self._favourites else ""
        star = f"{mark}{star or ' '}" if file.path in self.shared.marked else star
        room = self.grid.caption_columns - cell_len(star)
        if not facts.prompt:
            return f"{star}{file.path.name}"
        place = self.grid.place_of(file.path) or 0
        beside = [self._facts.get(other, Facts()).prompt for other in self._shown[max(0, place - 1) : place + 2]]
        return f"{star}{excerpt(facts.prompt, tuple(beside), room, '...' if self.shared.profile.ascii else ELLIPSIS)}"

    def _show_keys(self) -> None:
        keys = self.shared.keys
        bar = tuple((keys.shown(name), keys[name].label) for name in GALLERY_BAR)
        self.query_one(KeyBar).show((("Enter", "Keep"), ("Esc", "All pictures")) if self.filter.display else bar)

    def on_resize(self) -> None:
        """The lines are as long as the screen is wide."""
        self.call_after_refresh(self._update_lines)

    # The filters.

    def action_filter(self) -> None:
        """Ask for words."""
        self.filter.display = True
        self.filter.focus()
        self._show_keys()

    @on(Input.Changed)
    def _filter_changed(self) -> None:
        self._show()

    @on(Input.Submitted)
    def action_keep_filter(self) -> None:
        """Back to the pictures; the words stay."""
        self.grid.focus()
        self.filter.display = False
        self._show_keys()

    def action_favourites_only(self) -> None:
        """Only pictures with a star, or all."""
        self._favourites_only = not self._favourites_only
        self._show()

    def action_back(self) -> None:
        """From the filter to all pictures; from the pictures to the prompt."""
        if self.filter.display:
            self.filter.value = ""
            self.action_keep_filter()
        else:
            self.dismiss()

    # Pictures.

    @on(PictureGrid.Opened)
    def _opened(self) -> None:
        self.action_view()

    def selected_path(self) -> Path | None:
        """The selected thumbnail's file."""
        file = self.grid.selected
        return None if file is None else file.path

    def select(self, path: Path) -> None:
        """Select a picture, if it is shown; one that is not is selected when it is found."""
        place = self.grid.place_of(path)
        self._to_select = path if place is None else None
        if place is not None:
            self.grid.select(place)

    def shows(self, path: Path) -> bool:
        """Whether it is one of those that pass the filters."""
        return self.grid.place_of(path) is not None

    def neighbour(self, path: Path, step: int) -> Path | None:
        """The picture before or after in the order that is shown."""
        place = self.grid.place_of(path)
        if place is None or not 0 <= place + step < len(self._shown):
            return None
        return self._shown[place + step].path

    def pictures_changed(self) -> None:
        """Stars, or the folder."""
        self._favourites = self.shared.session.history.favourites()
        self._show()
        self.refresh_folder()


def pictures_in(folder: Path) -> list[PictureFile]:
    """The PNG files in `folder`, newest first: by the number in the name, where there is none by the time of change.

    Raises `OSError` or, for what is no path, `ValueError`.
    """
    numbered: list[tuple[int, PictureFile]] = []
    others: list[PictureFile] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(".png"):
                continue
            try:
                if not entry.is_file():  # a folder; a pipe would block whoever opens it
                    continue
                file = PictureFile(folder / entry.name, entry.stat().st_mtime_ns)
            except OSError:  # gone by now, or a link in a circle
                continue
            if match := NUMBERED.fullmatch(entry.name):
                numbered.append((int(match[1]), file))
            else:
                others.append(file)
    numbered.sort(key=lambda pair: (pair[0], pair[1].path.name), reverse=True)
    others.sort(key=_by_time, reverse=True)
    # Numbers keep their order whatever the clock did when they were written; files of other names go between them.
    in_order: Iterable[PictureFile] = (file for _, file in numbered)
    return list(heapq.merge(in_order, others, key=_by_time, reverse=True))


def read_facts(path: Path) -> Facts:
    """What the file at `path` says; nothing where it says nothing that can be read."""
    try:
        request = read_record(path).request
    except RequestError:
        return Facts()
    return Facts(request.prompt, request.seed, request.prompt.casefold())


def _by_time(file: PictureFile) -> int:
    return file.modified_ns
