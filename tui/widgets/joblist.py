"""The picture in work, the queue, and what was made: one list, newest results first."""

from __future__ import annotations

from collections.abc import Callable

from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from tui.jobs import Job, State
from tui.session import Session
from tui.text import duration, shortened, size

MARKS: dict[State, str] = {
    "queued": "\u25cb",
    "running": "\u25b6",
    "done": "\u25cf",
    "failed": "\u2717",
    "cancelled": "\u25cc",
}
ASCII_MARKS: dict[State, str] = {"queued": ".", "running": ">", "done": "*", "failed": "x", "cancelled": "-"}
MARKED = "\u25a0"  # the person marked it
MAX_PROMPT = 400  # characters of a row; the widget cuts what does not fit


class JobList(OptionList):
    """Each row is a job, its id the job's."""

    DEFAULT_CSS = "JobList { text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(
        self,
        *,
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
        self._is_favourite, self._is_marked = is_favourite, is_marked
        self._rows: list[tuple[str, str]] = []

    def show(self, session: Session, *, follow: bool) -> None:
        """Take over the session's jobs. The highlight stays, or goes to the newest one begun (`follow`)."""
        running = [session.running] if session.running else []
        rows = [(job.id, self._row(job)) for job in (*running, *session.queue, *session.results)]
        highlighted, place = self.selected_id, self.highlighted or 0
        if follow and (running or session.results):
            highlighted = (*running, *session.results)[0].id
        if rows != self._rows:
            ids = [job_id for job_id, _ in rows]
            if ids == [job_id for job_id, _ in self._rows]:  # only texts changed
                for index, (new, old) in enumerate(zip(rows, self._rows, strict=True)):
                    if new != old:
                        self.replace_option_prompt_at_index(index, Content(new[1]))
            else:
                self.set_options([Option(Content(text), id=job_id) for job_id, text in rows])
            self._rows = rows
        if rows and (highlighted is None or highlighted not in (job_id for job_id, _ in rows)):
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
        place = next((index for index, (row_id, _) in enumerate(self._rows) if row_id == job_id), 0)
        self.highlighted = place if self._rows else None

    @property
    def selected_id(self) -> str | None:
        """The highlighted job's id."""
        if self.highlighted is None or self.highlighted >= self.option_count:
            return None
        return self.get_option_at_index(self.highlighted).id

    def _row(self, job: Job) -> str:
        star = self._star if job.path is not None and self._is_favourite(job) else " "
        if job.state in ("queued", "running"):
            what = {"queued": "waits", "running": "runs"}[job.state]
        elif job.seconds is not None:
            what = ("~" if job.simulated else "") + duration(job.seconds)
        else:
            what = "stopped" if job.state == "cancelled" else job.state
        seed = "" if job.request.seed is None else str(job.request.seed)
        prompt = shortened(job.request.prompt, MAX_PROMPT)
        mark = self._marks[job.state]
        if job.simulated:
            mark = self._simulated if job.state == "done" else mark
            seed = "simulated"
            prompt = f"{size(job.peak_bytes)}  {prompt}" if job.peak_bytes is not None else prompt
        picked = self._marked if self._is_marked(job) else " "
        return f"{mark}{star}{picked}{what:<7} {seed:>10}  {prompt}"
