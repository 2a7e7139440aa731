"""Single lines: what is at the top and at the bottom of the screen."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from textual.scrollbar import ScrollBarRender
from textual.strip import Strip
from textual.widget import Widget

from tui.text import printable, shortened


class AsciiScrollBar(ScrollBarRender):
    """A scroll bar in whole cells: its ends are no block glyphs."""

    VERTICAL_BARS = HORIZONTAL_BARS = [" "] * 8


KEPT = 5  # of the header's left: model, seed, count, size, steps


class HeaderLine(Widget):
    """What the next picture will be like on the left, the terminal's profile on the right."""

    DEFAULT_CSS = "HeaderLine { height: 1; padding: 0 1; background: $panel; color: $foreground; }"

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self._separator = " | " if ascii_only else " \u2502 "
        self._ellipsis = "..." if ascii_only else "\u2026"
        self._left: tuple[str, ...] = ()
        self._right: tuple[str, ...] = ()

    def show(self, left: tuple[str, ...], right: tuple[str, ...]) -> None:
        """Take over the parts; repaints only if they changed.

        Where room is short those on the left go first, from the end, down to the first `KEPT`; then the last one on the
        right; then the rest on the left.
        """
        if (left, right) != (self._left, self._right):
            self._left, self._right = left, right
            self.refresh()

    def _length(self, parts: list[str]) -> int:
        return cell_len(self._separator.join(parts))

    def render_line(self, y: int) -> Strip:
        """The line."""
        width, base = self.size.width, self.rich_style
        parts, right = list(self._left), list(self._right)
        while len(parts) > 1 and self._length(parts) + self._length(right) + 2 > width:
            (right if len(parts) <= KEPT and len(right) == len(self._right) > 0 else parts).pop()
        end = self._separator.join(right)
        left = self._separator.join(parts)
        left = shortened(left, width - cell_len(end) - (2 if end else 0), self._ellipsis)
        start = Strip([Segment(left, base)]).adjust_cell_length(max(0, width - cell_len(end)), base)
        return Strip([*start, Segment(end, base)]).adjust_cell_length(width, base)


class KeyBar(Widget):
    """The keys of what has the focus: at most seven."""

    COMPONENT_CLASSES = {"keybar--key"}
    DEFAULT_CSS = """
    KeyBar {
        height: 1; padding: 0 1; background: $panel; color: $foreground;
        & > .keybar--key { color: $accent; text-style: bold; }
    }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._keys: tuple[tuple[str, str], ...] = ()

    def show(self, keys: tuple[tuple[str, str], ...]) -> None:
        """(key, label) pairs."""
        if keys != self._keys:
            self._keys = keys
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """The line; pairs that do not fit are left out whole."""
        width, base = self.size.width, self.rich_style
        style = base + self.get_component_rich_style("keybar--key", partial=True)
        segments, room = [], width
        for key, label in self._keys:
            if len(key) + len(label) + 3 > room:
                break
            room -= len(key) + len(label) + 3
            segments += [Segment(key, style), Segment(f" {label}  ", base)]
        return Strip(segments).adjust_cell_length(width, base)


class WorkLine(Widget):
    """Something that goes on in the background: what it is, a bar where it has an end, and how far it is."""

    COMPONENT_CLASSES = {"workline--done", "workline--rest"}
    DEFAULT_CSS = """
    WorkLine {
        height: 1; padding: 0 1; display: none;
        &.-on { display: block; }
        & > .workline--done { color: $accent; }
        & > .workline--rest { color: $muted; }
    }
    """

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self._bar = "#-" if ascii_only else "\u2501\u2500"
        self._ellipsis = "..." if ascii_only else "\u2026"
        self._shown: tuple[str, str, float | None] = ("", "", None)

    def show(self, label: str, text: str, fraction: float | None = None) -> None:
        """Take over the texts; without a label nothing goes on, and the line gives way."""
        if (printable(label), text, fraction) != self._shown:
            self._shown = printable(label), text, fraction
            self.set_class(bool(label), "-on")
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """The line; the bar takes what room the texts leave."""
        width, base = self.size.width, self.rich_style
        label, text, fraction = self._shown
        if fraction is not None:
            text = f"{int(100 * fraction)} %  {text}"
        text = shortened(f"  {text}", width - cell_len(label), self._ellipsis)
        segments = [Segment(label, base)]
        room = min(30, width - cell_len(label) - cell_len(text) - 1)
        if fraction is not None and room >= 6:
            done = min(room, int(room * fraction))
            for cells, kind in ((self._bar[0] * done, "done"), (self._bar[1] * (room - done), "rest")):
                style = base + self.get_component_rich_style(f"workline--{kind}", partial=True)
                segments.append(Segment(f" {cells}" if kind == "done" else cells, style))
        return Strip([*segments, Segment(text, base)]).adjust_cell_length(width, base)


class ForecastLine(Widget):
    """How the next picture would run, in a line."""

    COMPONENT_CLASSES = {"forecast--warning", "forecast--error", "forecast--stale"}
    DEFAULT_CSS = """
    ForecastLine {
        height: 1; padding: 0 2;
        & > .forecast--warning { color: $warning; }
        & > .forecast--error { color: $error; }
        & > .forecast--stale { color: $muted; }
    }
    """

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self._joint = " | " if ascii_only else " \u00b7 "
        self._ellipsis = "..." if ascii_only else "\u2026"
        self._shown: tuple[tuple[str, ...], str] = ((), "")

    def show(self, texts: tuple[str, ...], kind: str = "") -> None:
        """What there is to say, the weightiest first; `kind` is warning, error or stale."""
        if (texts, kind) != self._shown:
            self._shown = texts, kind
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """The line."""
        base, (texts, kind) = self.rich_style, self._shown
        style = base + self.get_component_rich_style(f"forecast--{kind}", partial=True) if kind else base
        text = shortened(self._joint.join(texts), self.size.width, self._ellipsis)
        return Strip([Segment(text, style)]).adjust_cell_length(self.size.width, base)
