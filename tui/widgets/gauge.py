"""Memory as a bar: used, the peak to expect as a tick, and what there is."""

from __future__ import annotations

from dataclasses import dataclass

from rich.segment import Segment
from textual.strip import Strip
from textual.widget import Widget

from tui.text import shortened, size


@dataclass(frozen=True, slots=True)
class Level:
    """What a gauge shows. Bytes; None where it is not known."""

    label: str  # VRAM or RAM
    used_bytes: int
    total_bytes: int
    peak_bytes: int | None = None  # to expect
    budget_bytes: int | None = None  # never to exceed
    notes: str = ""  # utilization, temperature, power


class Gauge(Widget):
    """One line; beyond the budget the bar is hatched."""

    COMPONENT_CLASSES = {"gauge--used", "gauge--free", "gauge--peak"}
    DEFAULT_CSS = """
    Gauge {
        height: 1; padding: 0 1;
        & > .gauge--used { color: $gauge-used; }
        & > .gauge--free { color: $gauge-free; }
        & > .gauge--peak { color: $gauge-peak; text-style: bold; }
    }
    """

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.used, self.free, self.tick, self.beyond = "#.|x" if ascii_only else "\u2593\u2591\u2503\u254d"
        self._ellipsis = "..." if ascii_only else "\u2026"
        self.level: Level | None = None
        self._shown: tuple[object, ...] = ()

    def show(self, level: Level | None) -> None:
        """Take over a level; repaints only if anything that is seen changed."""
        self.level = level
        shown = self._texts(self.size.width)
        if shown != self._shown:
            self._shown = shown
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """The line."""
        base, width = self.rich_style, self.size.width
        if y or self.level is None:
            return Strip.blank(width, base)
        label, bar, text = self._texts(width)
        styles = {
            character: base + self.get_component_rich_style(f"gauge--{kind}", partial=True)
            for character, kind in (
                (self.used, "used"),
                (self.free, "free"),
                (self.tick, "peak"),
                (self.beyond, "free"),
            )
        }
        segments = [Segment(label, base), *(Segment(cell, styles[cell]) for cell in bar), Segment(text, base)]
        return Strip(segments).simplify().adjust_cell_length(width, base)

    def _texts(self, width: int) -> tuple[str, str, str]:
        """Label, bar and figures, together at most `width` cells."""
        level = self.level
        if level is None or level.total_bytes <= 0 or width < 8:
            return "", "", ""
        text = f" {size(level.used_bytes)} of {size(level.total_bytes)}"
        if level.budget_bytes is not None:
            text += f"  budget {size(level.budget_bytes)}"
        if level.peak_bytes is not None:
            text += f"  {self.tick} peak {size(level.peak_bytes)}"
        label = f"{level.label} "
        if level.notes and width - len(label) - len(text) - len(level.notes) >= 12:
            text += f"  {level.notes}"  # the bar comes first
        cells = min(40, max(0, width - len(label) - len(text)), max(10, width // 3))
        if cells < 6:
            return label, "", shortened(text, width - len(label), self._ellipsis)
        return label, self._bar(level, cells), text

    def _bar(self, level: Level, cells: int) -> str:
        def place(count: int) -> int:
            return min(cells, round(cells * count / level.total_bytes))

        used = max(1, place(level.used_bytes)) if level.used_bytes else 0
        bar = [self.used] * used + [self.free] * (cells - used)
        if level.budget_bytes is not None:
            edge = place(level.budget_bytes)
            bar[edge:] = [self.beyond if cell == self.free else cell for cell in bar[edge:]]
        if level.peak_bytes is not None:
            bar[min(cells - 1, max(0, place(level.peak_bytes) - 1))] = self.tick
        return "".join(bar)
