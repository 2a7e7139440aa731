"""A plan to read: does the picture fit into the card's memory, and why; and two courses to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import events
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from engine.cli.plan_text import plan_lines
from engine.events import Plan
from tui.course import Course
from tui.jobs import Job
from tui.screens.dialogs import ReadText
from tui.text import duration, printable, shortened, size
from tui.widgets.memory_plot import MemoryPlot

MAX_WIDTH = 100  # cells of the window, as in the stylesheet
FRAME = 5  # cells of border, padding and scrollbar


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture in the plan's window: what is set now (no job), or one that was asked for."""

    job: Job | None
    plan: Plan | None
    course: Course | None
    refusal: str = ""  # why it cannot be painted

    @property
    def name(self) -> str:
        """What is above its plot."""
        return "what is set now" if self.job is None else self.job.request.prompt

    @property
    def outcome(self) -> str:
        """What was predicted beside what came of it, as far as that is known; "" where nothing is."""
        told = []
        if self.job is not None and self.job.peak_bytes is not None and self.plan is not None:
            how = "held in the simulation" if self.job.simulated else "measured"
            told.append(f"peak predicted {size(self.plan.peak_bytes)}, {how} {size(self.job.peak_bytes)}")
        elif self.course is not None:
            foreseen, measured = self.course.foreseen_bytes, self.course.peak_bytes
            told += [f"peak predicted {size(foreseen)}"] if foreseen else []
            told += [f"measured {size(measured)}"] if measured else []
        if self.job is not None and self.job.seconds is not None:
            told.append(f"{'~' if self.job.simulated else ''}{duration(self.job.seconds)}")
        elif self.job is None and self.plan is not None:
            told.append(f"~{duration(self.plan.new_prompt.seconds)}")
        return ", ".join(told)


class PlanWindow(ReadText):
    """The plan of one picture, its course, and another's beside it. Fits a terminal of 80x24, and scrolls there."""

    DEFAULT_CSS = "PlanWindow MemoryPlot { height: 8; padding: 0; margin: 0 0 1 0; }"

    def __init__(
        self, first: Shown, second: Shown | None, close_keys: Sequence[str], *, ascii_only: bool = False
    ) -> None:
        """The keys that opened it close it as well."""
        self._ellipsis = "..." if ascii_only else "\u2026"
        super().__init__(shortened(f"plan: {first.name}", 60, self._ellipsis), (), close_keys)
        self._first, self._ascii = first, ascii_only
        self._courses = [each for each in (first, second) if each is not None and each.course is not None]

    def compose(self) -> ComposeResult:
        """The lines and the plots, which scroll where they do not fit."""
        with VerticalScroll(classes="window large") as window:
            window.border_title = Content(printable(self._title))
            outcome, rule = self._first.outcome, "--" if self._ascii else "\u2500\u2500"
            seen = f"{outcome} {rule} " if self._first.job is not None and outcome else ""
            window.border_subtitle = Content(f"{seen}Esc closes")
            yield Static(id="lines")
            for _ in self._courses:
                yield Static(classes="above muted")
                yield MemoryPlot(ascii_only=self._ascii)

    def on_mount(self) -> None:
        """The plots; they fit themselves."""
        super().on_mount()
        for plot, each in zip(self.query(MemoryPlot), self._courses, strict=True):
            plot.show(each.course)

    def on_resize(self, event: events.Resize) -> None:
        """The lines are made for the room that there is."""
        width = min(event.size.width, MAX_WIDTH) - FRAME
        lines = [self._first.refusal] if self._first.refusal else []
        if self._first.plan is not None:
            lines += plan_lines(self._first.plan, width, self._ascii)
        text = Content("\n".join(map(printable, lines)))
        self.query_one("#lines", Static).update(text)
        for title, each in zip(self.query(".above").results(Static), self._courses, strict=True):
            name = f"{each.name}: {each.outcome}" if each.outcome else each.name
            title.update(Content(shortened(name, max(1, width), self._ellipsis)))
