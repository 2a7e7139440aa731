"""The picture in work, the queue, and what was made: one list, newest results first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.cells import cell_len
from rich.text import Text
from textual.content import Content
from textual.geometry import Size
from textual.strip import Strip
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from tui.excerpt import excerpt
from tui.jobs import Job, State
from tui.listing import fold
from tui.profile import Rendering
from tui.session import Session
from tui.text import duration, shortened, size
from tui.thumbnails import Thumbnails
from tui.widgets.picture import strips

MARKS: dict[State, str] = {
    "queued": "\u25cb",
    "running": "\u25b6",
    "done": "\u25cf",
    "failed": "\u2717",
    "cancelled": "\u25cc",
}
ASCII_MARKS: dict[State, str] = {"queued": ".", "running": ">", "done": "*", "failed": "x", "cancelled": "-"}
MARKED = "\u25a0"  # the person marked it
SEED_COLUMNS = 60  # of the list: with fewer the words need the room
THUMBNAIL_COLUMNS = 120  # of the terminal: with fewer there are no thumbnails
THUMBNAIL = Size(6, 3)  # cells
Row = tuple[str, tuple[str, ...], Path | None]  # the job's id, the lines, and the picture beside them


class JobList(OptionList):
    """Each row is a job, its id the job's. On a wide terminal those with a picture are three lines high."""

    DEFAULT_CSS = "JobList { text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(
        self,
        thumbnails: Thumbnails,
        *,
        rendering: Rendering = "blocks",
        ascii_only: bool = False,
        is_favourite: Callable[[Job], bool],
        is_marked: Callable[[Job], bool],
        id: str | None = None,
    ) -> None:
        super().__init__(id=id, markup=False, compact=True)
        self._marks = ASCII_MARKS if ascii_only else MARKS
        self._simulated = "~" if ascii_only else "\u25c7"
        self._star = "+" if ascii_only else "\u2605"
        self._marked = "#" if ascii_only else MARKED
        self._ellipsis = "..." if ascii_only else "\u2026"
        self._is_favourite, self._is_marked = is_favourite, is_marked
        self._rows: list[Row] = []
        self._session: Session | None = None
        self._thumbnails, self._draws = thumbnails, rendering == "blocks"
        self._small: dict[Path, list[Strip]] = {}  # as they are drawn; [] for what cannot be
        self._loading = False

    def show(self, session: Session, *, follow: bool) -> None:
        """Take over the session's jobs. The highlight stays, or goes to the newest one begun (`follow`)."""
        self._session = session
        running = [session.running] if session.running else []
        jobs = (*running, *session.queue, *session.results)
        prompts = ["", *(job.request.prompt for job in jobs), ""]
        rows = [self._row(job, (prompts[place], prompts[place + 2])) for place, job in enumerate(jobs)]
        highlighted, place = self.selected_id, self.highlighted or 0
        if follow and (running or session.results):
            highlighted = (*running, *session.results)[0].id
        if rows != self._rows:
            if [_shape(row) for row in rows] == [_shape(row) for row in self._rows]:  # only texts changed
                for index, (new, old) in enumerate(zip(rows, self._rows, strict=True)):
                    if new != old:
                        self.replace_option_prompt_at_index(index, self._drawn(new))
            else:
                self.set_options([Option(self._drawn(row), id=row[0]) for row in rows])
            self._rows = rows
            self.call_after_refresh(self._want)
        if rows and (highlighted is None or highlighted not in (row[0] for row in rows)):
            highlighted = rows[min(place, len(rows) - 1)][0]  # what took the place of the one that has gone
        if highlighted is not None and highlighted != self.selected_id:
            self.select(highlighted)
        states = ["1 running"] * len(running) + [f"{len(session.queue)} waiting"] * bool(session.queue)
        states += ["PAUSED"] * session.paused
        marked = sum(map(self._is_marked, session.results))
        states += [f"{marked} marked"] * bool(marked)
        self.border_title = Content("pictures" + (f" ({', '.join(states)})" if states else ""))

    def select(self, job_id: str) -> None:
        """Highlight a job; the first row if it is not in the list."""
        ids = (row[0] for row in self._rows)
        place = next((index for index, row_id in enumerate(ids) if row_id == job_id), 0)
        self.highlighted = place if self._rows else None

    @property
    def selected_id(self) -> str | None:
        """The highlighted job's id."""
        if self.highlighted is None or self.highlighted >= self.option_count:
            return None
        return self.get_option_at_index(self.highlighted).id

    def on_resize(self) -> None:
        """More words, or fewer."""
        if self._session is not None:
            self.show(self._session, follow=False)
        self._want()

    # Rows.

    @property
    def _has_thumbnails(self) -> bool:
        return self._draws and self.app.size.width >= THUMBNAIL_COLUMNS

    def _row(self, job: Job, neighbours: tuple[str, str]) -> Row:
        star = self._star if job.path is not None and self._is_favourite(job) else " "
        picked = self._marked if self._is_marked(job) else " "
        if job.state in ("queued", "running"):
            what = {"queued": "waits", "running": "runs"}[job.state]
        elif job.seconds is not None:
            what = ("~" if job.simulated else "") + duration(job.seconds)
        else:
            what = "stopped" if job.state == "cancelled" else job.state
        mark = self._marks[job.state]
        if job.simulated:
            mark = self._simulated if job.state == "done" else mark
        start, width = f"{mark}{star}{picked}", self.size.width - self.scrollbar_size_vertical
        facts = f"{what:<7} "
        if width >= SEED_COLUMNS or job.simulated:
            seed = "simulated" if job.simulated else "" if job.request.seed is None else str(job.request.seed)
            facts += f"{seed:>10}  "
        if job.simulated and job.peak_bytes is not None:
            facts += f"{size(job.peak_bytes)}  "
        if job.path is None or not self._has_thumbnails:
            start += facts
            text = excerpt(job.request.prompt, neighbours, max(1, width - cell_len(start)), self._ellipsis)
            return job.id, (start + text,), None
        room = width - cell_len(start) - THUMBNAIL.width - 2
        words = excerpt(
            job.request.prompt, neighbours, 2 * room - room // 4, self._ellipsis
        )  # some is lost at the fold
        lines = [*fold(words, room), ""]
        second = shortened(" ".join(lines[1:]).rstrip(), room, self._ellipsis)
        return job.id, (start, facts.rstrip(), lines[0], second), job.path

    def _drawn(self, row: Row) -> Content:
        _, lines, path = row
        if path is None:
            return Content(lines[0])
        start, *beside = lines
        picture = self._small.get(path, [])
        text = Text(no_wrap=True)
        for number, line in enumerate(beside):
            text.append("\n" if number else "")
            text.append(" " * cell_len(start) if number else start)
            place = number - (THUMBNAIL.height - len(picture)) // 2
            cells = picture[place] if 0 <= place < len(picture) else Strip([])
            left = (THUMBNAIL.width - cells.cell_length) // 2
            text.append(" " * left)
            for segment in cells:
                text.append(segment.text, segment.style)
            text.append(" " * (THUMBNAIL.width - left - cells.cell_length + 1) + line)
        return Content.from_rich_text(text)

    # Thumbnails.

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Other rows are in sight."""
        super().watch_scroll_y(old_value, new_value)
        self._want()

    def _want(self) -> None:
        """Ask for those in sight that are not there yet, in a thread; one at a time."""
        if self._loading or not self._has_thumbnails:
            return
        missing, line, top = [], 0, self.scroll_offset.y
        for _, lines, path in self._rows:
            height = 1 if path is None else len(lines) - 1
            if path is not None and path not in self._small and top < line + height and line < top + self.size.height:
                missing.append(path)
            line += height
        if not missing:
            return
        self._loading = True
        thumbnails, few = self._thumbnails, self.app.console.color_system == "256"

        def load() -> None:
            found = {path: thumbnails.get(path, *THUMBNAIL) for path in missing}
            drawn = {
                path: [] if frame is None else strips(frame, THUMBNAIL, few_colors=few) for path, frame in found.items()
            }
            self.app.call_later(self._loaded, drawn)

        self.app.run_worker(load, name="thumbnails of the list", thread=True, exit_on_error=False)

    def _loaded(self, drawn: dict[Path, list[Strip]]) -> None:
        self._loading = False
        there = {path for _, _, path in self._rows}
        self._small = {path: small for path, small in {**self._small, **drawn}.items() if path in there}
        for index, row in enumerate(self._rows):
            if row[2] in drawn:
                self.replace_option_prompt_at_index(index, self._drawn(row))
        self._want()


def _shape(row: Row) -> tuple[str, bool]:
    """What rows share where only their texts differ."""
    return row[0], row[2] is None
