"""A plan to read: does the picture fit into the card's memory, and why."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from engine.cli.plan_text import plan_lines
from engine.events import Plan
from tui.jobs import Job
from tui.screens.dialogs import ReadText
from tui.text import printable, shortened, size

MAX_WIDTH = 100  # cells of the window, as in the stylesheet
FRAME = 5  # cells of border, padding and scrollbar


class PlanWindow(ReadText):
    """The plan of a job, with what became of it. Fits a terminal of 80x24."""

    def __init__(self, plan: Plan, job: Job | None, close_keys: Sequence[str], *, ascii_only: bool = False) -> None:
        title = "plan" if job is None else f"plan: {job.request.prompt}"
        super().__init__(shortened(title, 60, "..." if ascii_only else "\u2026"), (), close_keys)
        self._plan, self._job, self._ascii = plan, job, ascii_only

    def compose(self) -> ComposeResult:
        """The lines, which scroll where they do not fit."""
        with VerticalScroll(classes="window large") as window:
            window.border_title = Content(printable(self._title))
            window.border_subtitle = Content(f"{self._outcome()}Esc closes")
            yield Static()

    def on_resize(self, event: events.Resize) -> None:
        """The lines are made for the room that there is."""
        width = min(event.size.width, MAX_WIDTH) - FRAME
        self.query_one(Static).update(Content("\n".join(plan_lines(self._plan, width, self._ascii))))

    def _outcome(self) -> str:
        """What was predicted beside what came of it, once that is known."""
        if self._job is None or self._job.peak_bytes is None:
            return ""
        how = "held in the simulation" if self._job.simulated else "measured"
        rule = "--" if self._ascii else "\u2500\u2500"
        return f"peak predicted {size(self._plan.peak_bytes)}, {how} {size(self._job.peak_bytes)} {rule} "
