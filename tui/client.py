"""Where the app and the engine's process meet: commands go out, events come in as Textual messages.

The only throttle is here: a step's event is replaced by the next one until it is due, every other goes through at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from textual.message import Message
from textual.worker import Worker

from engine import process
from engine.cli.terminal import TerminalModes, put_back
from engine.events import StepFinished
from engine.process import EngineProcess, Foresee, HoldTerminal, JobEvent, ModelOpened, OpenModel
from tui.jobs import Job
from tui.watchdog import Doing, ProcessLook


@dataclass
class FromEngine(Message, bubble=False):
    """Something from an engine's process. What comes from another than the present one is late news."""

    engine: EngineProcess


@dataclass
class Received(FromEngine):
    """What the engine says, in its order; only steps are left out."""

    content: process.Message


@dataclass
class Stepped(FromEngine):
    """The latest step of a job."""

    job: str
    event: StepFinished

    def can_replace(self, message: Message) -> bool:
        """The latest is enough."""
        return isinstance(message, Stepped)


@dataclass
class EngineEnded(FromEngine):
    """The engine's process has gone; `reason` is a sentence."""

    reason: str


class EngineClient:
    """Keeps one engine process for one open model, and starts a fresh one when the last has gone."""

    def __init__(
        self,
        post: Callable[[Message], bool],
        run_worker: Callable[..., Worker[None]],
        *,
        updates_per_second: float,
        preview_due: Callable[[], bool] = lambda: True,
    ) -> None:
        """`post` and `run_worker` are the app's. `preview_due` says, in a thread, whether the next one is drawn."""
        self._post = post
        self._run_worker = run_worker
        self.update_seconds = 1 / updates_per_second
        self._preview_due = preview_due
        self._opening: OpenModel | None = None  # what the process was started with
        self._model = ""  # what the process calls its model
        self._process: EngineProcess | None = None
        self._dying = False  # the pipe has closed, and why is being found out; or it is being ended
        self._looks = ProcessLook()
        self._terminal: TerminalModes | None = None  # that the app has taken
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the engine's process, if there is one."""
        return None if self._process is None else self._process.pid

    @property
    def is_dying(self) -> bool:
        """The process has gone, and `EngineEnded` is on its way: nothing can be begun before."""
        return self._process is not None and self._dying

    def is_current(self, message: FromEngine) -> bool:
        """Whether a message is from the present process."""
        return message.engine is self._process

    def has_open(self, opening: OpenModel) -> bool:
        """Whether the process is there, with this model, these budgets and this way to work."""
        if self._process is None or self._opening is None:
            return False
        return opening in (self._opening, replace(self._opening, model=self._model))

    def opened(self, message: ModelOpened) -> None:
        """The model is known by its full name, too."""
        self._model = message.model

    def start(self, opening: OpenModel) -> None:
        """Open a model in a fresh process; what happens comes as messages. Raises `OSError` where none can be made."""
        self.stop()
        if self._closed:
            return
        self._process, self._dying = (engine := EngineProcess()), False
        self._opening, self._model = opening, opening.model
        engine.send(HoldTerminal(self._terminal))
        engine.send(opening)
        self._run_worker(lambda: self._read(engine), name="engine", thread=True, exit_on_error=False)

    def paint(self, job: Job) -> None:
        """Make a job's picture; it waits inside the process while the model loads."""
        if self._process is not None:
            self._process.send(process.Paint(job.id, job.request, job.output))

    def ask(self, question: Foresee) -> None:
        """How a request would run; the answer comes when the engine is idle."""
        if self._process is not None:
            self._process.send(question)

    def cancel(self, job_id: str, *, after_step: bool) -> None:
        """Give a job up."""
        if self._process is not None:
            self._process.send(process.Cancel(job_id, after_step))

    def hold_terminal(self, modes: TerminalModes | None) -> None:
        """The app has taken a terminal, or has put it back (None): the process does that when the app is killed."""
        self._terminal = modes
        if self._process is not None:
            self._process.send(HoldTerminal(modes))

    def put_terminal_back(self) -> None:
        """For an app that cannot do it any more in the usual way."""
        if self._terminal is not None:
            put_back(self._terminal)
            self.hold_terminal(None)

    def doing(self) -> Doing:
        """What the process does, as far as that can be seen from outside; call it at every tick."""
        return self._looks.look(self.pid)

    def end(self, reason: str) -> bool:
        """End a process that does not listen, in a thread; `EngineEnded` follows. False where there is none to end."""
        engine = self._process
        if engine is None or self._dying:
            return False
        self._dying = True  # before the pipe closes: the reason is ours

        def work() -> None:
            told = "" if engine.end() else f" Its process ({engine.pid}) is still held by the system, or by a driver."
            self._post(EngineEnded(engine, reason + told))

        self._run_worker(work, name="ending", thread=True, exit_on_error=False)
        return True

    def stop(self) -> None:
        """End the process, whatever it does. Takes up to two seconds where it does not listen."""
        if self._process is not None:
            engine, self._process = self._process, None
            engine.stop()

    def close(self) -> None:
        """End the process, and start no other: the app leaves."""
        self._closed = True
        self.stop()

    def forget(self) -> None:
        """The process has ended by itself."""
        self._process = None

    def _read(self, engine: EngineProcess) -> None:
        """In a thread: everything that the process says, until it has gone."""
        waiting: Stepped | None = None  # the latest step, until it is due
        due = 0.0
        try:
            while engine is self._process or waiting is not None:
                message = engine.receive(1.0 if waiting is None else max(0.0, due - time.monotonic()))
                now = time.monotonic()
                if isinstance(message, JobEvent) and isinstance(message.event, StepFinished):
                    step = message.event
                    if step.preview is None or not self._preview_due():
                        step = replace(step, preview=None if waiting is None else waiting.event.preview)
                    waiting, message = Stepped(engine, message.job, step), None
                if waiting is not None and (message is not None or now >= due):
                    self._post(waiting)
                    waiting, due = None, now + self.update_seconds
                if message is not None:
                    self._post(Received(engine, message))
        except EOFError:
            if engine is self._process and not self._dying:  # else it was stopped on purpose
                self._dying = True
                self._post(EngineEnded(engine, engine.death()))
        finally:
            engine.close()
