"""The panel of parameters: choose a row, change it with the arrows, or type a value and press Enter."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from engine.request import RequestError
from tui.bindings import behind_escape, types
from tui.parameters import LABELS, Parameters
from tui.text import shortened

MAX_TYPED = 1000
MAX_PROBLEM_LINES = 6
KEYS = "arrows change, digits or Enter type; 4,8: a grid"
BARS, ASCII_BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", "_.-=+*%#"


class ParametersPanel(Widget, can_focus=True):
    """One row for each option that the model announces, then seed and count."""

    COMPONENT_CLASSES = {"parameters--cursor", "parameters--changed", "parameters--muted", "parameters--error"}
    DEFAULT_CSS = """
    ParametersPanel {
        height: auto; width: 1fr; min-height: 3;
        & > .parameters--cursor { background: $primary; color: $background; }
        & > .parameters--changed { text-style: bold; color: $accent; }
        & > .parameters--muted { color: $muted; }
        & > .parameters--error { color: $error; }
    }
    """

    @dataclass
    class Changed(Message):
        """The person changed a value."""

    def __init__(
        self,
        parameters: Parameters,
        leave: Callable[[], None] | None = None,
        *,
        ascii_only: bool = False,
        id: str | None = None,
    ) -> None:
        """`leave` is what Escape does, where it does not close a window."""
        super().__init__(id=id)
        self._leave = leave
        self.parameters = parameters
        self._bars = ASCII_BARS if ascii_only else BARS
        self._row = 0
        self._typed: str | None = None  # while a value is typed
        self._problem = ""
        self._conflict = parameters.conflict

    def update(self) -> None:
        """The parameters changed."""
        self._conflict = self.parameters.conflict
        self._row = min(self._row, max(0, len(self.parameters.names()) - 1))
        self.refresh(layout=True)

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """A row each, and what stands below them."""
        return len(self.parameters.names()) + len(self._foot(width))

    def on_key(self, event: events.Key) -> None:
        """Arrows move and change, digits type, Enter takes over, Escape or Delete goes back."""
        names = self.parameters.names()
        if not names:
            return
        self._row = min(self._row, len(names) - 1)
        name, handled, problem = names[self._row], True, self._problem
        if self._problem and event.key in ("up", "down", "left", "right", "tab", "shift+tab"):
            self._typed = None  # what could not be taken over is given up
        if self._typed is not None and event.key == "enter":
            self._write(name)
        elif self._typed is not None and (event.key == "escape" or behind_escape(event.key)):
            self._typed, self._problem = None, ""
        elif self._leave is not None and event.key == "escape":
            self._leave()
        elif self._typed is not None and event.key == "backspace":
            self._typed = self._typed[:-1]
        elif event.key in ("up", "down", "tab", "shift+tab") and self._typed is None and len(names) > 1:
            step = -1 if event.key in ("up", "shift+tab") else 1
            if not 0 <= self._row + step < len(names) and event.key.endswith("tab"):
                handled = False
            else:
                self._row, self._problem = (self._row + step) % len(names), ""
        elif event.key in ("left", "right") and self._typed is None:
            self._change(lambda: self.parameters.step(name, 1 if event.key == "right" else -1))
        elif event.key in ("backspace", "delete") and self._typed is None:
            self._change(lambda: self.parameters.reset(name))
        elif event.key == "enter" and self._typed is None:
            self._typed = ""
        elif event.character and types(event) and self._may_type(event):
            self._typed = ((self._typed or "") + event.character)[:MAX_TYPED]
        else:
            handled = False
        if handled:
            event.stop()
            event.prevent_default()
            self.refresh(layout=self._problem != problem)

    def on_click(self, event: events.Click) -> None:
        """Choose a row."""
        place = event.get_content_offset(self)
        first, rows = self._shown_rows
        if place is not None and 0 <= place.y < rows:
            self._row, self._typed = first + place.y, None
            self.refresh()

    def on_blur(self) -> None:
        """What was being typed is given up."""
        self._typed, self._problem = None, ""
        self.refresh()

    def on_focus(self) -> None:
        """Show the cursor."""
        self.refresh()

    def _may_type(self, event: events.Key) -> bool:
        """A digit begins to type; letters do after Enter only, for alone they are commands."""
        return self._typed is not None or bool(event.character and event.character in "0123456789.-")

    def _write(self, name: str) -> None:
        typed, self._typed = self._typed or "", None
        self._change(lambda: self.parameters.write(name, typed))
        if self._problem:
            self._typed = typed  # to be corrected

    def _change(self, change: object) -> None:
        assert callable(change)
        try:
            change()
            self._problem = ""
        except RequestError as error:
            self._problem = str(error)
        self.update()
        self.post_message(self.Changed())

    def render_line(self, y: int) -> Strip:
        """A row."""
        names, width, base = self.parameters.names(), self.size.width, self.rich_style
        row = min(self._row, len(names) - 1)  # another model may have fewer
        first, rows = self._shown_rows
        if y < rows:
            name = names[first + y]
            chosen = first + y == row and self.has_focus
            style = base
            if chosen:
                style = base + self._style("cursor")
            elif not self.parameters.is_default(name):
                style = base + self._style("changed")
            value = self.parameters.shown(name)
            if chosen and self._typed is not None:
                value = (self._typed + "_")[-max(1, width - 13) :]
            elif name == "guidance_schedule" and (weights := self.parameters.weights()) is not None:
                value = f"{value} {plot(weights, self._bars, max(8, width - 13 - len(value)))}"
            text = shortened(f" {LABELS.get(name, name):<10} {value}", width)
            return Strip([Segment(text, style)]).adjust_cell_length(width, style)
        foot = self._foot(width)
        if y - rows < len(foot):
            text, kind = foot[y - rows]
            return self._line(text, base + self._style(kind))
        return Strip.blank(width, base)

    @property
    def _shown_rows(self) -> tuple[int, int]:
        """The first row that is shown, and how many: where there is no room for all, those around the chosen one."""
        count = len(self.parameters.names())
        rows = min(count, max(1, self.size.height - len(self._foot(self.size.width))))
        return min(max(0, min(self._row, count - 1) - rows // 2), count - rows), rows

    def _foot(self, width: int) -> list[tuple[str, str]]:
        """Below the rows: what is wrong with what was typed, or the row's range and the keys; then why all of this
        cannot be painted."""
        names, room = self.parameters.names(), max(1, width - 2)
        if self._problem:
            lines = textwrap.wrap(self._problem, room, max_lines=MAX_PROBLEM_LINES, placeholder="...")
            foot = [(line, "error") for line in lines]
        elif names:
            name = names[min(self._row, len(names) - 1)]
            shapes = "; square, portrait, landscape, 16:9" if name == "size" else ""
            allowed = f"{LABELS.get(name, name)}: {self.parameters.allowed(name)}{shapes}"
            lines = textwrap.wrap(allowed, room, max_lines=2, placeholder="...")
            foot = [(line, "muted") for line in (*lines, *([KEYS] if len(lines) == 1 and self.has_focus else []))]
        else:
            foot = []
        foot += [("", "muted")] * (2 - len(foot))
        return foot + [(line, "error") for line in textwrap.wrap(self._conflict, room)]

    def _line(self, text: str, style: Style) -> Strip:
        width = self.size.width
        return Strip([Segment(shortened(" " + text, width), style)]).adjust_cell_length(width, self.rich_style)

    def _style(self, kind: str) -> Style:
        return self.get_component_rich_style(f"parameters--{kind}", partial=True)


def plot(weights: Sequence[float], bars: str, width: int) -> str:
    """Weights over steps in so many cells, a bar each or for some of them, and their range."""
    low, high = min(weights), max(weights)
    span = max(high - min(low, 1.0), 1e-9)
    extent = f"{low:.3g} to {high:.3g}"
    room = max(4, width - len(extent) - 1)
    count = min(len(weights), room)
    shown = [weights[round(place * (len(weights) - 1) / max(1, count - 1))] for place in range(count)]
    heights = (round((weight - min(low, 1.0)) / span * (len(bars) - 1)) for weight in shown)
    return f"{''.join(bars[height] for height in heights)} {extent}"
