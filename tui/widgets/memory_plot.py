"""Memory over time as a plot: the picture of a run, before, during and after it.

The first row is the budget: a line on which phases stand as labelled stretches and steps as ticks. Below it memory is
a filled curve where it was measured, and an outline where it is foreseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.segment import Segment
from textual.strip import Strip
from textual.widget import Widget

from tui.course import Course, Stretch
from tui.text import shortened

SHARE_OF_BUDGET = 0.25  # below it the scale is that of the curve, and the budget lies above it
HEADROOM = 1.25
LEGEND_WIDTH, MIN_WIDTH_FOR_LEGEND = 28, 58


@dataclass(frozen=True, slots=True)
class Marks:
    """The characters of a plot."""

    fill: str  # from one eighth to a whole cell
    outline: str  # low, in the middle, high in a cell
    budget: str
    above: str  # the line, where the budget lies above the scale
    tick: str
    edge: str


MARKS = Marks(
    "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", "\u2581\u2500\u2594", "\u2500", "\u254c", "\u252c", "\u250a"
)
ASCII_MARKS = Marks("..::##%#", "_-^", "-", "~", "+", "|")

Cell = tuple[str, str]  # a character, and what it is: used, over, foreseen, budget, tick, done, running, waiting, free


class MemoryPlot(Widget):
    """The course of a picture over the whole width; figures at its right where there is room."""

    COMPONENT_CLASSES = {
        f"plot--{kind}" for kind in ("used", "over", "foreseen", "budget", "tick", "done", "running", "waiting")
    }
    DEFAULT_CSS = """
    MemoryPlot {
        height: 3; padding: 0 1;
        & > .plot--used { color: $gauge-used; }
        & > .plot--over { color: $error; text-style: bold; }
        & > .plot--foreseen { color: $gauge-peak; }
        & > .plot--budget { color: $muted; }
        & > .plot--tick { color: $muted; }
        & > .plot--done { color: $success; }
        & > .plot--running { color: $primary; text-style: bold; }
        & > .plot--waiting { color: $muted; }
    }
    """

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.marks = ASCII_MARKS if ascii_only else MARKS
        self._ellipsis = "..." if ascii_only else "\u2026"
        self.course: Course | None = None
        self.legend: tuple[str, ...] = ()
        self._shown: list[list[Cell]] = []

    def show(self, course: Course | None, legend: Sequence[str] = ()) -> None:
        """Take over a course, and lines of figures; repaints only if anything that is seen changed."""
        self.course, self.legend = course, tuple(legend)
        self._arrange()

    def on_resize(self) -> None:
        """Fit again."""
        self._arrange()

    def notify_style_update(self) -> None:
        """Another theme."""
        super().notify_style_update()
        self.refresh()

    def _arrange(self) -> None:
        width, height = self.size
        if width < 8 or not height:
            return
        legend = LEGEND_WIDTH if width >= MIN_WIDTH_FOR_LEGEND and self.legend else 0
        rows = plot(self.course or Course(), width - legend, height, self.marks)
        if legend:
            for row, text in zip(rows, (*self.legend, *([""] * height)), strict=False):
                row += [(character, "") for character in f"  {shortened(text, legend - 2, self._ellipsis)}"]
        if rows != self._shown:
            self._shown = rows
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """One row."""
        base = self.rich_style
        if y >= len(self._shown):
            return Strip.blank(self.size.width, base)
        styles = {
            kind: base + self.get_component_rich_style(f"plot--{kind}", partial=True) if kind else base
            for kind in {kind for _, kind in self._shown[y]}
        }
        segments = [Segment(character, styles[kind]) for character, kind in self._shown[y]]
        return Strip(segments).simplify().adjust_cell_length(self.size.width, base)


def plot(course: Course, width: int, height: int, marks: Marks = MARKS) -> list[list[Cell]]:
    """A course as `height` rows of `width` cells."""
    stretches = course.stretches()
    span = max((each.ended for each in stretches), default=0.0)
    budget = course.budget_bytes
    highest = max(course.peak_bytes or 0, course.foreseen_bytes or 0)
    if span <= 0 or not highest:
        return [[(" ", "") for _ in range(width)] for _ in range(height)]
    scale = budget if highest >= SHARE_OF_BUDGET * budget > 0 else round(HEADROOM * highest)
    columns = _Columns(course, width, span)
    line = marks.budget if scale == budget else marks.above
    rows = [_top(course, stretches, columns, line, marks)]
    levels = 8 * (height - 1)

    def level(used: float) -> int:
        return min(levels, max(1, round(levels * used / scale))) if used > 0 else 0

    measured, foreseen = columns.measured(), columns.foreseen()
    edges = {columns.of(each.began) for each in stretches[1:]}
    for row in range(height - 1):
        below = 8 * (height - 2 - row)  # the level at the lower edge of this row
        cells: list[Cell] = []
        for column in range(width):
            used, expected = measured[column], foreseen[column]
            rise = level(used) - below if used is not None else 0
            if used is not None and rise > 0:
                cells.append((marks.fill[min(rise, 8) - 1], "over" if budget and used > budget else "used"))
            elif expected is not None and 0 < level(expected) - below <= 8:
                cells.append((marks.outline[min(2, (level(expected) - below - 1) // 3)], "foreseen"))
            elif column in edges:
                cells.append((marks.edge, "budget"))
            else:
                cells.append((" ", ""))
        rows.append(cells)
    return rows


class _Columns:
    """Time, cut into the columns of a plot."""

    def __init__(self, course: Course, width: int, span: float) -> None:
        self.course, self.width, self.span = course, width, span

    def of(self, seconds: float) -> int:
        """The column of a moment."""
        return min(self.width - 1, int(self.width * seconds / self.span))

    def measured(self) -> list[int | None]:
        """The most that was measured in each column, and between two measures the first of them."""
        found: list[int | None] = [None] * self.width
        for seconds, used in self.course.samples:
            column = self.of(min(seconds, self.span))
            found[column] = max(used, found[column] or 0)
        last = None
        for column in range(self.of(self.course.now) + 1):
            last = found[column] = found[column] if found[column] is not None else last
        return found

    def foreseen(self) -> list[float | None]:
        """The most that is foreseen in each column."""
        found: list[float | None] = [None] * self.width
        for slope in self.course.slopes():
            seconds = slope.ended - slope.began
            for column in range(self.of(slope.began), self.of(slope.ended) + 1):
                at = (column + 0.5) * self.span / self.width
                share = min(1.0, max(0.0, (at - slope.began) / seconds)) if seconds > 0 else 1.0
                value = slope.first_bytes + share * (slope.last_bytes - slope.first_bytes)
                found[column] = max(value, found[column] or 0.0)
        return found


def _top(course: Course, stretches: Sequence[Stretch], columns: _Columns, line: str, marks: Marks) -> list[Cell]:
    """The line of the budget, with the names of phases and a tick at the end of each step."""
    cells: list[Cell] = [(line, "budget")] * columns.width
    for column in _ticks(course, stretches, columns):
        cells[column] = (marks.tick, "tick")
    for place, stretch in enumerate(stretches):
        first = columns.of(stretch.began)
        end = columns.of(stretches[place + 1].began) if place + 1 < len(stretches) else columns.width
        name = stretch.phase if end - first > len(stretch.phase) else stretch.phase[: max(0, end - first - 1)]
        for offset, character in enumerate(name):
            cells[first + offset] = (character, stretch.state)
    return cells


def _ticks(course: Course, stretches: Sequence[Stretch], columns: _Columns) -> list[int]:
    """Where steps end, or are expected to: each, or every second, fifth, tenth ... where they are closer."""
    loop = next((each for each in stretches if each.phase == "denoise"), None)
    if loop is None or not course.steps:
        return []
    ends = list(course.step_ends)
    last = ends[-1] if ends else loop.began
    left = course.steps - len(ends)
    ends += [last + (loop.ended - last) * (number + 1) / left for number in range(left)]
    room = columns.of(loop.ended) - columns.of(loop.began)
    every = next((each for each in (1, 2, 5, 10, 20, 50, 100, 200, 500) if room >= 2 * len(ends) / each), 1000)
    return sorted({columns.of(end) for end in ends[every - 1 :: every] if end < loop.ended})
