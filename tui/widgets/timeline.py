"""The phases of the picture in work, each with its state and time, and the line that says how far it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from engine.cli.progress import PictureProgress
from engine.events import LoadProgress, Phase
from tui.text import duration, shortened, size

PHASES: tuple[Phase, ...] = ("encode", "denoise", "decode", "save")
MARKS = {"done": "\u25cf", "running": "\u25b6", "waiting": "\u25cb", "failed": "\u2717", "skipped": "\u25cc"}
ASCII_MARKS = {"done": "*", "running": ">", "waiting": ".", "failed": "x", "skipped": "-"}
BAR = ("\u2501", "\u2500")
ASCII_BAR = ("#", "-")
SPEED_SECONDS = 10.0  # the speed of reading is that of the last ten seconds
MIN_SPEED_SECONDS = 1.0  # before that it says nothing


class Timeline(Widget):
    """Two lines, or one in a tiny terminal."""

    COMPONENT_CLASSES = {
        "timeline--done",
        "timeline--running",
        "timeline--waiting",
        "timeline--failed",
        "timeline--bar",
    }
    DEFAULT_CSS = """
    Timeline {
        height: 2; padding: 0 1;
        & > .timeline--done { color: $success; }
        & > .timeline--running { color: $primary; text-style: bold; }
        & > .timeline--waiting { color: $muted; }
        & > .timeline--failed { color: $error; }
        & > .timeline--bar { color: $accent; }
    }
    """

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.marks = ASCII_MARKS if ascii_only else MARKS
        self.bar = ASCII_BAR if ascii_only else BAR
        self.joint = " -- " if ascii_only else " \u2500\u2500 "
        self.ellipsis = "..." if ascii_only else "\u2026"
        self.progress = PictureProgress()
        self.status = ""  # what is said in the last line when nothing runs, and before the rest when something does
        self.silence = ""  # of the engine, where it is longer than it may be: said instead of how far it is
        self.skipped = False  # encode and denoise were done by an earlier run
        self.failed: Phase | None = None
        self.estimated: Collection[Phase] = ()  # whose seconds nobody measured
        self._speed = Speed()
        self._lines: list[Strip] = []
        self._shown: tuple[object, ...] = ()

    def show(
        self,
        progress: PictureProgress,
        status: str = "",
        *,
        silence: str = "",
        skipped: bool = False,
        failed: Phase | None = None,
        estimated: Collection[Phase] = (),
    ) -> None:
        """Take over the state; repaints only if anything that is seen changed."""
        self.progress, self.status, self.skipped, self.failed = progress, status, skipped, failed
        self.silence, self.estimated = silence, estimated
        if progress.running == "load" and progress.loading is not None:
            self._speed.take(progress.clock(), progress.loading)
        self._arrange()

    def on_resize(self) -> None:
        """Fit again."""
        self._arrange()

    def notify_style_update(self) -> None:
        """Another theme."""
        super().notify_style_update()
        self._shown = ()
        self._arrange()

    def _arrange(self) -> None:
        width, height = self.size
        if not height or not width:
            return
        texts = [self._one_line(width)] if height == 1 else [self._compact(width), [(self._detail(width), "")]]
        shown = (width, height, *(tuple(line) for line in texts))
        if shown == self._shown:
            return
        self._shown = shown
        base = self.rich_style
        self._lines = [
            Strip(
                [Segment(text, base + self._style(kind) if kind else base) for text, kind in line if text]
            ).adjust_cell_length(width, base)
            for line in texts[:height]
        ]
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """One line of the widget."""
        if y < len(self._lines):
            return self._lines[y]
        return Strip.blank(self.size.width, self.rich_style)

    def _style(self, kind: str) -> Style:
        return self.get_component_rich_style(f"timeline--{kind}", partial=True)

    def _state(self, phase: Phase) -> str:
        if phase == self.failed:
            return "failed"
        if phase == self.progress.running:
            return "running"
        if self.skipped and phase in ("encode", "denoise"):
            return "skipped"
        return "done" if phase in self.progress.seconds else "waiting"

    def _phase(self, phase: Phase) -> tuple[str, str]:
        """(`● encode 0.4 s`, its kind)."""
        state = self._state(phase)
        text = f"{self.marks[state]} {phase}"
        if phase == "denoise" and state == "running" and self.progress.steps:
            text += f" {self.progress.step}/{self.progress.steps}"
        elif phase in self.progress.seconds:
            text += f" {self._about(phase)}{duration(self.progress.seconds[phase])}"
        return text, "waiting" if state == "skipped" else state

    def _about(self, phase: Phase) -> str:
        """What stands before estimated seconds."""
        return "~" if phase in self.estimated else ""

    def _phases(self) -> list[Phase]:
        loads = self.progress.running == "load" or self.progress.seconds.get("load", 0) >= 0.1
        return ["load", *PHASES] if loads else list(PHASES)

    def _one_line(self, width: int) -> list[tuple[str, str]]:
        running = self.progress.running
        if running is None:
            return [(shortened(self.silence or self.status or "ready", width, self.ellipsis), "")]
        text = f"{self.marks['running']} {running}"
        detail = self._detail(max(0, width - len(text) - 2))
        return [(text, "running"), ("  " + detail, "")]

    def _compact(self, width: int) -> list[tuple[str, str]]:
        phases = [self._phase(phase) for phase in self._phases()]
        length = sum(len(text) for text, _ in phases)
        if length + 2 * (len(phases) - 1) > width and self.progress.running != "load":
            phases = phases[-len(PHASES) :]  # how long the loading took matters least
            length = sum(len(text) for text, _ in phases)
        joint = self.joint if length + len(self.joint) * (len(phases) - 1) <= width else "  "
        parts = phases[:1]
        for part in phases[1:]:
            parts += [(joint, "waiting"), part]
        room = width - sum(len(text) for text, _ in parts)
        if self.progress.running == "denoise" and self.progress.steps and room >= 8:
            place = next(i for i, (text, _) in enumerate(parts) if " denoise" in text)
            parts[place + 1 : place + 1] = [(" ", ""), *self._bar(min(24, room - 1))]
        return parts

    def _bar(self, width: int) -> list[tuple[str, str]]:
        done = width * self.progress.step // max(1, self.progress.steps)
        return [(self.bar[0] * done, "bar"), (self.bar[1] * (width - done), "waiting")]

    def _steps(self) -> str:
        progress = self.progress
        each, left = progress.seconds_per_step, progress.remaining_seconds
        if each is None or left is None:
            return f"{progress.step}/{progress.steps}"
        about = self._about("denoise")
        runs = progress.running == "denoise" and not self.silence
        remaining = f", {about}{duration(left)} left" if runs else ""
        return f"{progress.step}/{progress.steps}  {about}{each:.3g} s/step{remaining}"

    def _detail(self, width: int) -> str:
        """How far the running phase is; the status where none runs."""
        progress = self.progress
        texts = []
        if self.silence:
            return shortened(self.silence, width, self.ellipsis)
        if progress.running == "load":
            texts.append(_load(progress.loading, self._speed))
        elif progress.running == "denoise" and progress.steps:
            texts.append(f"step {self._steps()}")
        elif progress.running is not None:
            texts.append(f"{progress.running} {duration(progress.clock() - progress.started)}")
        if self.status:
            texts.append(self.status)
        return shortened("  ".join(texts), width, self.ellipsis)


class Speed:
    """How fast a component is read, or converted, and how long the rest of it takes."""

    def __init__(self) -> None:
        self._of: tuple[str, int] = ("", 0)  # component and size: converting it and reading it are two things
        self._samples: deque[tuple[float, int]] = deque()  # (when, bytes done)

    def take(self, now: float, loading: LoadProgress) -> None:
        """How far it is."""
        of = loading.component, loading.total_bytes
        if of != self._of or (self._samples and loading.done_bytes < self._samples[-1][1]):
            self._of = of
            self._samples.clear()
        self._samples.append((now, loading.done_bytes))
        while len(self._samples) > 2 and now - self._samples[1][0] >= SPEED_SECONDS:
            self._samples.popleft()

    @property
    def bytes_per_second(self) -> float | None:
        """None until it is known."""
        if not self._samples:
            return None
        (began, before), (now, done) = self._samples[0], self._samples[-1]
        return (done - before) / (now - began) if now - began >= MIN_SPEED_SECONDS and done > before else None


def _load(loading: LoadProgress | None, speed: Speed) -> str:
    if loading is None:
        return "importing torch"
    done, total = loading.done_bytes, loading.total_bytes
    text = f"reading {loading.component.replace('_', ' ')} {size(done)} of {size(total)}"
    rate = speed.bytes_per_second
    return text if rate is None else f"{text}  {size(rate)}/s, {duration((total - done) / rate)} left"
