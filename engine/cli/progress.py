"""Progress on stderr: a live display on a terminal, plain lines elsewhere, nothing when quiet.

Rich is imported only where a live display is shown. Text that came from outside (prompts, paths, messages)
passes through `printable` before it reaches a terminal, and is never parsed as markup.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, TYPE_CHECKING, Protocol

from engine.cli.console import tell
from engine.cli.plan_text import part_of, plan_summary
from engine.events import (
    TERMINAL,
    Encoded,
    Event,
    ImageSaved,
    LatentsRestored,
    LoadProgress,
    MemoryUse,
    Noticed,
    Phase,
    PhaseFinished,
    PhaseStarted,
    Planned,
    Simulated,
    StepFinished,
)
from engine.text import duration, printable, size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

PHASES: tuple[Phase, ...] = ("load", "encode", "denoise", "decode", "save")
SECONDS_PER_LINE = 2.0  # without a line in a log, before a step or a part of a file gets one
RESTORED = "denoised by a run that ended before it was saved; decoding what it kept"
SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"
LIVE_LINES = len(PHASES) + 2  # title, phases, memory
REFRESHES_PER_SECOND, SLOW_REFRESHES = 4, 1  # the latter over SSH, where each is 700 bytes on perhaps a slow line


@dataclass(slots=True)
class PictureProgress:
    """What is known about the picture in work; `apply` folds the next event in."""

    clock: Callable[[], float] = time.monotonic
    running: Phase | None = None
    started: float = 0.0  # by `clock`: when the running phase began
    seconds: dict[Phase, float] = field(default_factory=dict)  # of finished phases
    step: int = 0
    steps: int = 0
    step_seconds: list[float] = field(default_factory=list)
    stepped: float = 0.0  # by `clock`: when the last step ended
    loading: LoadProgress | None = None
    memory: MemoryUse | None = None
    encoding_kept: bool = False  # from an earlier picture of the same prompt

    def start(self, phase: Phase) -> None:
        """Begin `phase` now. Loading, which goes on in pieces between the other phases, adds up."""
        now = self.clock()
        if self.running == "load":
            self.seconds["load"] = self.seconds.get("load", 0.0) + now - self.started
        self.running, self.started = phase, now

    def apply(self, event: Event) -> None:
        """Take over what `event` says."""
        self.memory = event.memory
        match event:
            case PhaseStarted(phase=phase):
                self.start(phase)
            case PhaseFinished(phase=phase, seconds=seconds):
                self.seconds[phase] = seconds
                self.running = None
            case Encoded(cached=cached):
                self.encoding_kept = cached
            case LoadProgress():
                self.loading = event
                if self.running != "load":
                    self.start("load")
            case StepFinished(step=step, steps=steps, seconds=seconds):
                self.step, self.steps = step, steps
                self.step_seconds.append(seconds)
                self.stepped = self.clock()

    @property
    def seconds_per_step(self) -> float | None:
        """Mean of the last eight steps. The first is left out where there are others: it warms caches up."""
        recent = self._recent_steps
        return sum(recent) / len(recent) if recent else None

    @property
    def remaining_seconds(self) -> float | None:
        """Of the step loop; None before its first step. It goes down during a step, and up while one is overdue."""
        each, steps = self.seconds_per_step, self.steps - self.step
        if each is None or steps <= 0:
            return each if each is None else 0.0
        running = self.clock() - self.stepped
        if running <= each:
            return each * steps - running
        recent = [*self._recent_steps, running]  # the mean will be that at least
        return sum(recent) / len(recent) * (steps - 1)

    @property
    def _recent_steps(self) -> list[float]:
        return self.step_seconds[1:][-8:] or self.step_seconds


class Display(Protocol):
    """Shows the events of one picture after another."""

    def begin(self, title: str, count: int = 1) -> None:
        """A job of `count` pictures begins; `title` is its prompt."""

    def show(self, event: Event) -> None:
        """One event; after a terminal one nothing of the display is left moving, so others may print."""

    def note(self, sentence: str) -> None:
        """A sentence for the person that is no error."""

    def cancelling(self) -> None:
        """Called inside a signal handler: may set flags and write bytes, nothing else."""

    def abandon(self) -> None:
        """Called where the process is ended, inside a signal handler: give the terminal back by writing bytes."""

    def close(self) -> None:
        """Leave the terminal as it was found; may be called twice."""


def open_display(*, quiet: bool, stdout_shared: bool = False) -> Display:
    """The display that fits stderr. `stdout_shared`: JSON goes to the same terminal, where lines mix better."""
    if quiet or sys.stderr is None:
        return QuietDisplay()
    if sys.stderr.isatty() and not stdout_shared and os.environ.get("TERM") != "dumb":
        return LiveDisplay()
    return LineDisplay(sys.stderr)


class QuietDisplay:
    """Shows nothing."""

    def begin(self, title: str, count: int = 1) -> None:
        """Nothing."""

    def show(self, event: Event) -> None:
        """Nothing."""

    def note(self, sentence: str) -> None:
        """Nothing."""

    def cancelling(self) -> None:
        """Nothing."""

    def abandon(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class LineDisplay:
    """One plain line for each thing worth a line in a log; no escape codes."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._last_line = clock()
        self._progress = PictureProgress()
        self._count = 1

    def begin(self, title: str, count: int = 1) -> None:
        """The title, as a line."""
        self._count = count
        self.note(title)

    def show(self, event: Event) -> None:
        """A line for a finished phase, a hint and a picture; steps and loading get one where nothing else is said."""
        if self._progress.memory is None:  # its first event, after seconds of importing perhaps
            self._last_line = self._clock()
        self._progress.apply(event)
        match event:
            case Planned(image=0, plan=plan):
                self.note(f"plan: {plan_summary(plan)}")
            case Noticed(message=message):
                self.note(message)
            case PhaseFinished(phase=phase, seconds=seconds, estimated=estimated):
                self.note(f"{phase} {'~' if estimated else ''}{seconds:.2f} s")
            case PhaseStarted():
                self._last_line = self._clock()
            case LoadProgress() if self._clock() - self._last_line >= SECONDS_PER_LINE:
                self.note(f"load {_load_line(event)}")
            case StepFinished() if self._clock() - self._last_line >= SECONDS_PER_LINE:
                self.note(f"step {_step_line(self._progress)}")
            case Encoded(image=0, hint=str(hint)):
                self.note(f"hint: {hint}")
            case LatentsRestored():
                self.note(RESTORED)
            case ImageSaved():
                self.note(_summary(event, self._count))
            case Simulated():
                self.note(_simulated(event))
        if isinstance(event, TERMINAL):
            self._progress = PictureProgress()

    def note(self, sentence: str) -> None:
        """The sentence, as a line."""
        self._last_line = self._clock()
        tell(sentence, self._stream)

    def cancelling(self) -> None:
        """Straight to the file descriptor: the stream may be in the middle of a write."""
        with suppress(OSError):
            os.write(self._stream.fileno(), b"cancelling... (again to stop at once)\n")

    def abandon(self) -> None:
        """A line is whole."""

    def close(self) -> None:
        """Nothing is left open."""


class LiveDisplay:
    """A few lines that repaint in place while a picture is in work, then one line that stays."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._progress = PictureProgress()
        self._title = ""
        self._image = 0
        self._count = 1
        self._cancelling = False
        self._live: Live | None = None
        self._may_paint = threading.Event()
        self._may_paint.set()

    def begin(self, title: str, count: int = 1) -> None:
        """Show the title and count the load phase from now: importing torch is most of it."""
        self._title, self._image, self._count = title, 0, count
        if self._live is None:
            self._start()
            self._progress.start("load")

    def show(self, event: Event) -> None:
        """Repaint at the next refresh; a terminal event ends the live lines."""
        if self._live is None:
            self._start()
        self._image = event.image
        self._progress.apply(event)
        if isinstance(event, Encoded) and event.image == 0 and event.hint:
            self.note(f"hint: {event.hint}")
        match event:
            case Planned(image=0, plan=plan):
                self.note(f"plan: {plan_summary(plan)}")
            case Noticed(message=message):
                self.note(message)
            case LatentsRestored():
                self.note(RESTORED)
        if isinstance(event, TERMINAL):
            self.close()
        if isinstance(event, ImageSaved):
            self.note(_summary(event, self._count))
        elif isinstance(event, Simulated):
            self.note(_simulated(event))

    def note(self, sentence: str) -> None:
        """The sentence, above the live lines."""
        from rich.text import Text

        self._console.print(Text(printable(sentence)), soft_wrap=True)

    def cancelling(self) -> None:
        """Say so at the next refresh."""
        self._cancelling = True

    def abandon(self) -> None:
        """The live lines stay; what follows begins a line."""
        if self._live is not None:
            self._put(SHOW_CURSOR + b"\r\n")

    def close(self) -> None:
        """Wipe the live lines and give the cursor back."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
            self._watch_stops(False)

    def _watch_stops(self, wanted: bool) -> None:
        """Ctrl+Z gives the cursor back to the shell, and `fg` takes it again."""
        for name, handler in (("SIGTSTP", self._stop), ("SIGCONT", self._go_on)):
            number = getattr(signal, name, None)
            if number is None or threading.current_thread() is not threading.main_thread():
                continue
            if signal.getsignal(number) in (signal.SIG_DFL, handler):  # ignored on purpose otherwise
                signal.signal(number, handler if wanted else signal.SIG_DFL)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._may_paint.clear()  # or it would go up over the shell's lines, before any handler is called
        self._put(SHOW_CURSOR + b"\r\n")
        self._watch_stops(False)
        signal.raise_signal(number)  # stops here, and goes on here
        self._watch_stops(True)
        self._go_on(number, frame)
        self._may_paint.set()

    def _go_on(self, number: int, frame: FrameType | None) -> None:
        # The next refresh goes up as many lines as stand there: these, not the shell's.
        self._put(HIDE_CURSOR + b"\r\n" * LIVE_LINES)

    def _put(self, data: bytes) -> None:
        """Bytes alone: a signal may come in the middle of a refresh."""
        with suppress(OSError):
            os.write(2, data)

    def _start(self) -> None:
        from rich.live import Live

        self._progress = PictureProgress()
        self._live = Live(
            get_renderable=self._picture,
            console=self._console,
            refresh_per_second=SLOW_REFRESHES if os.environ.get("SSH_CONNECTION") else REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        self._watch_stops(True)

    def _picture(self) -> RenderableType:
        self._may_paint.wait()
        title = self._title if self._count == 1 else f"{self._title} ({self._image + 1} of {self._count})"
        return render(self._progress, title, cancelling=self._cancelling)


def render(progress: PictureProgress, title: str, *, cancelling: bool = False) -> RenderableType:
    """The live lines: title, one line a phase with its state and seconds, memory."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def cell(text: str, style: str = "") -> Text:
        return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")

    lines = Table.grid(expand=True)
    lines.add_row(cell(title, "bold"))
    phases = Table.grid(padding=(0, 2))
    for width in (max(map(len, PHASES)), len("running"), len("1:00:00")):
        phases.add_column(width=width)  # fixed, or they would give way to a long detail
    phases.add_column(no_wrap=True)
    for phase in PHASES:
        if phase == progress.running:
            row = [cell("running", "bold"), cell(duration(progress.clock() - progress.started))]
        elif phase in progress.seconds:
            row = [cell("done"), cell(duration(progress.seconds[phase]))]
        else:
            row = [cell("waiting", "dim"), cell("")]
        detail: RenderableType = cell("")
        if phase == "load" and progress.loading is not None:
            detail = cell(_load_line(progress.loading))
        elif phase == "denoise" and progress.steps:
            detail = Table.grid(padding=(0, 2))
            detail.add_row(
                ProgressBar(total=progress.steps, completed=progress.step, width=10), cell(_step_line(progress))
            )
        phases.add_row(cell(phase), *row, detail)
    lines.add_row(phases)
    lines.add_row(cell("cancelling... (Ctrl+C again to stop at once)" if cancelling else _memory_line(progress)))
    return lines


def _load_line(load: LoadProgress) -> str:
    return f"{load.component} {size(load.done_bytes)} of {size(load.total_bytes)}"


def _step_line(progress: PictureProgress) -> str:
    each, remaining = progress.seconds_per_step or 0.0, progress.remaining_seconds or 0.0
    return f"{progress.step} of {progress.steps}, {each:.2f} s/step, {duration(remaining)} left"


def _memory_line(progress: PictureProgress) -> str:
    memory = progress.memory
    if memory is None:
        return ""
    line = f"memory {size(memory.ram_bytes)} RAM"
    if memory.device_bytes is not None:
        line += f", {size(memory.device_bytes)} VRAM"
    if memory.device_peak_bytes is not None:
        line += f" (peak {size(memory.device_peak_bytes)})"
    return line


def _summary(saved: ImageSaved, count: int) -> str:
    phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in saved.seconds_by_phase.items())
    total = sum(saved.seconds_by_phase.values())
    place = f"picture {saved.image + 1} of {count}: " if count > 1 else ""
    return f"{place}seed {saved.seed}, {saved.width}x{saved.height}, {total:.2f} s ({phases}){_memory_of(saved)}"


def _memory_of(saved: ImageSaved) -> str:
    """What the picture took, where weights crossed to a card or came from files."""
    texts = []
    if saved.measured_peak_bytes is not None and saved.predicted_peak_bytes is not None:
        texts.append(f"peak {size(saved.measured_peak_bytes)}, predicted {size(saved.predicted_peak_bytes)}")
    if saved.moved_bytes and saved.memory.device_bytes is not None:
        texts.append(f"{size(saved.moved_bytes)} to the card")
    if saved.disk_bytes:
        texts.append(f"{size(saved.disk_bytes)} from disk")
    return "".join(f", {text}" for text in texts)


def _simulated(event: Simulated) -> str:
    peaks = ", ".join(f"{phase} {size(peak)}" for phase, peak in event.peak_bytes_by_phase.items())
    total = sum(event.seconds_by_phase.values())
    return (
        f"simulated on {event.card.removesuffix(' (simulated)')}: peak {part_of(event.peak_bytes, event.budget_bytes)} "
        f"({peaks}), ~{duration(total)} (an estimate)"
    )
