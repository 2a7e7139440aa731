"""A plan to read: does the picture fit into the card's memory, and why."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from engine.events import Plan
from engine.plan_text import plan_lines
from tui.jobs import Job
from tui.text import shortened, size

MAX_WIDTH = 100  # cells of the window, as in the stylesheet
FRAME = 5  # cells of border, padding and scrollbar


class PlanWindow(ModalScreen[None]):
    """The plan of a job, with what became of it. Fits a terminal of 80x24."""

    BINDINGS = [
        Binding("escape,q,enter", "close", "Close", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("up,k", "scroll(-1)", show=False),
    ]

    def __init__(self, plan: Plan, job: Job | None, close_keys: Sequence[str], *, ascii_only: bool = False) -> None:
        """The keys that opened it close it as well."""
        super().__init__()
        self._plan, self._job, self._close_keys, self._ascii = plan, job, close_keys, ascii_only

    def compose(self) -> ComposeResult:
        """The lines, which scroll where they do not fit."""
        with VerticalScroll(classes="window large") as window:
            title = "plan" if self._job is None else f"plan: {self._job.request.prompt}"
            window.border_title = Content(shortened(title, 60, "..." if self._ascii else "\u2026"))
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

    def on_key(self, event: events.Key) -> None:
        """The keys that opened it."""
        if event.key in self._close_keys:
            event.stop()
            self.dismiss()

    def action_scroll(self, step: int) -> None:
        """A line up or down."""
        self.query_one(VerticalScroll).scroll_relative(y=step, animate=False)

    def action_close(self) -> None:
        """Back."""
        self.dismiss()
