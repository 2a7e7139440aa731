"""The engine in a process of its own, and the end of the pipe that its owner holds.

A fault of the card, a kill for want of memory or a hung kernel takes this process only; video memory is truly free
when it has gone; and importing torch stalls nobody. Commands go in and messages come out over one duplex pipe. When
the owner dies the pipe closes and the process leaves. What it would print goes to a log file.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import closing, redirect_stderr, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli.terminal import TerminalModes, put_back
from engine.errors_log import keep_traceback, memory_shortage
from engine.events import Event, MemorySample, MemoryUse, Plan, TokenCount
from engine.files import is_stale, make_folder, open_own
from engine.folders import state_dir
from engine.libraries import hush_libraries
from engine.memory_watch import MemoryWatch
from engine.request import MAX_GUIDANCE, Defaults, Option, Request, RequestError
from engine.times import DEFAULT_TIMES, FlowTimes

if TYPE_CHECKING:
    from engine.engine import Engine

LEAVE_SECONDS = 1.0  # for the work at hand to stop politely when the owner has gone
END_SECONDS = 1.0  # for the process to be reaped after its pipe has closed
TERMINATE_SECONDS = 0.5  # for a process that does not listen to end, before it is killed
MAX_LOGS = 10
MAX_QUOTED_LINES, MAX_QUOTED_CHARACTERS = 3, 300


@dataclass(frozen=True, slots=True)
class OpenModel:
    """Open a model by name or folder and load it; the answer is `ModelOpened` and `ModelLoaded`, or `ModelRefused`.

    `vram` and `ram` are budgets as `engine.memory.budget.read_size` takes them. `simulate`: jobs run without weights
    and end with `Simulated`.
    """

    model: str
    device: str = "auto"
    vram: str = "auto"
    ram: str = "auto"
    simulate: bool = False


@dataclass(frozen=True, slots=True)
class Paint:
    """Make one picture with the open model, into a folder ("": the default one)."""

    job: str
    request: Request
    output: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give a job up: at once, or at the end of the running step. For a job that has not begun or has ended, too."""

    job: str
    after_step: bool = False


@dataclass(frozen=True, slots=True)
class HoldTerminal:
    """The owner has taken a terminal, which is put back when it is killed; None: it has put it back itself."""

    modes: TerminalModes | None


@dataclass(frozen=True, slots=True)
class Foresee:
    """Ask how a request would run: memory, seconds, tokens. The answer is `Foreseen`, of the last question alone, as
    soon as nothing is loaded or painted; none where no model is open.
    """

    number: int
    request: Request


Command = OpenModel | Paint | Cancel | HoldTerminal | Foresee


@dataclass(frozen=True, slots=True)
class ModelOpened:
    """The model's folder is sound: what it is, and what it lets a request choose. Its weights are not loaded yet."""

    model: str
    defaults: Defaults
    options: tuple[Option, ...]
    times: FlowTimes = DEFAULT_TIMES  # where its steps lie
    pixels_per_token: int = 256
    guidance_limits: tuple[float, float] = (1.0, MAX_GUIDANCE)  # of the distilled guidance that it was trained with


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """torch and the weights are in memory; `device` is as torch names it, `device_name` as its maker does."""

    device: str
    device_name: str
    device_uuid: str | None  # GPU-..., by which the driver knows it; None for the CPU
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelRefused:
    """The model or the device cannot be used; `message` is one sentence."""

    message: str


@dataclass(frozen=True, slots=True)
class LoadEvent:
    """What happens while a model loads ahead of the first job."""

    event: Event


@dataclass(frozen=True, slots=True)
class JobEvent:
    """What happens to a job; after the terminal event nothing more comes for it."""

    job: str
    event: Event


@dataclass(frozen=True, slots=True)
class JobRefused:
    """The job was not begun: bad input, or nowhere to save. Terminal."""

    job: str
    message: str
    field: str


@dataclass(frozen=True, slots=True)
class MemorySampled:
    """What a job used of memory since the last word about it."""

    job: str
    samples: tuple[MemorySample, ...]


@dataclass(frozen=True, slots=True)
class Foreseen:
    """How a request would run, or the sentence with which it would be refused."""

    number: int
    plan: Plan | None
    tokens: TokenCount | None
    refusal: str = ""


Message = ModelOpened | ModelLoaded | ModelRefused | LoadEvent | JobEvent | JobRefused | MemorySampled | Foreseen


class EngineProcess:
    """The running process, seen by its owner. `send` and `receive` may be called from different threads."""

    def __init__(self) -> None:
        """Start it. Raises OSError where no process or log file can be made."""
        self.log = _new_log()
        self._oom_kills = _oom_kills()
        context = multiprocessing.get_context("spawn")
        self._connection, remote = context.Pipe(duplex=True)
        self._process = context.Process(
            target=serve, args=(remote, self.log), name="texttoimagetool-engine", daemon=True
        )
        # A terminal app puts something without a file descriptor in place of stderr, which multiprocessing hands on.
        with self.log.open("a") as stream, redirect_stderr(stream):
            self._process.start()
        remote.close()  # or the pipe would stay open when the process has gone

    @property
    def pid(self) -> int:
        """The process's number, also when it has gone."""
        assert self._process.pid is not None
        return self._process.pid

    def send(self, command: Command) -> None:
        """Hand a command over. A process that has gone is no error here: `receive` says so."""
        with suppress(OSError):
            self._connection.send(command)

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None after `timeout` seconds without one. Raises EOFError when the process has gone."""
        try:
            if not self._connection.poll(timeout):
                return None
            message: Message = self._connection.recv()
        except OSError:
            raise EOFError from None
        return message

    def stop(self) -> None:
        """End it, and whatever it is doing, now. Its last message may be lost, a file that it saves may not."""
        with suppress(OSError):
            self._connection.send(None)
        self._reap(LEAVE_SECONDS)

    def end(self) -> bool:
        """End it though it does not listen, without a word to it; False where the system does not let go of it."""
        self._process.terminate()
        self._reap(TERMINATE_SECONDS)  # one that is stopped takes no other signal than the last
        return not self._process.is_alive()

    def close(self) -> None:
        """Give the pipe back; the process has gone."""
        self._connection.close()

    def death(self) -> str:
        """Why it has gone, as one sentence; call it after `EOFError`."""
        self._reap(END_SECONDS)
        reason = _ending(self._process.exitcode, _oom_kills() > self._oom_kills)
        quoted = _last_lines(self.log)
        words = f" Its last words: {quoted} (all of them in {self.log})" if quoted else ""
        return f"the engine ended: {reason}.{words}"

    def _reap(self, seconds: float) -> None:
        """Wait for its end, and kill it where it does not come."""
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(END_SECONDS)


def serve(connection: Connection, log: Path) -> None:
    """The process's main function: carry out commands until the pipe closes."""
    _redirect_output(log)
    for name in ("SIGINT", "SIGHUP", "SIGTSTP", "SIGTTOU"):  # the terminal's; the owner decides what they mean
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, signal.SIG_IGN)
    hush_libraries()
    gc.disable()  # until torch is imported, which takes a fifth longer with the collector
    _Server(connection).run()


class _Inbox:
    """What is to be done, in its order; then the last question, which others have replaced."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._commands: deque[OpenModel | Paint | None] = deque()
        self._question: Foresee | None = None

    def put(self, command: OpenModel | Paint | Foresee | None) -> None:
        with self._changed:
            if isinstance(command, Foresee):
                self._question = command
            else:
                self._commands.append(command)
            self._changed.notify()

    def get(self) -> OpenModel | Paint | Foresee | None:
        with self._changed:
            self._changed.wait_for(lambda: self._commands or self._question)
            if self._commands:
                return self._commands.popleft()
            question, self._question = self._question, None
            return question

    @property
    def has_work(self) -> bool:
        """Whether a command waits; a question is none."""
        return bool(self._commands)


class _Server:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._commands = _Inbox()
        self._engine: Engine | None = None
        self._job: str | None = None  # that is being painted
        self._cancelled: dict[str, Cancel] = {}
        self._left = threading.Event()
        self._terminal: TerminalModes | None = None  # that the owner has

    def run(self) -> None:
        listener = threading.Thread(target=self._listen, name="commands", daemon=True)
        listener.start()
        try:
            while (command := self._commands.get()) is not None:
                match command:
                    case OpenModel():
                        self._open(command)
                    case Paint():
                        self._paint(command)
                    case Foresee():
                        self._foresee(command)
        except (BrokenPipeError, ConnectionError):
            self._left.set()
            listener.join()  # nobody listens any more: it sees that, too, and ends the process
        finally:
            self._left.set()

    def _listen(self) -> None:
        """Take commands in, so that cancelling reaches a job that is running; leave when the owner does."""
        command: Command | None = None
        with suppress(EOFError, OSError):
            while (command := self._connection.recv()) is not None:
                match command:
                    case Cancel(job=job, after_step=after_step):
                        self._cancelled[job] = command  # before the look at the running job; `_paint` looks after
                        if job == self._job and self._engine is not None:
                            self._engine.cancel(after_step)
                    case HoldTerminal(modes=modes):
                        self._terminal = modes
                    case _:
                        self._commands.put(command)
        if self._engine is not None:
            self._engine.leave()
        if command is not None and self._terminal is not None:  # not told to leave: the owner was killed
            put_back(self._terminal)
        self._commands.put(None)
        self._left.wait(LEAVE_SECONDS)
        os._exit(0)  # also out of a kernel that hangs

    def _open(self, command: OpenModel) -> None:
        from engine.engine import Engine
        from engine.library.catalog import guidance_limits

        began = time.perf_counter()
        try:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            self._engine = engine = Engine.open(
                command.model, device=command.device, vram=command.vram, ram=command.ram, simulate=command.simulate
            )
            times = DEFAULT_TIMES
            with suppress(ValueError, TypeError):  # refused when it is loaded
                times = engine.source.family.times(engine.source.configs["scheduler"])
            source, defaults = engine.source, engine.defaults
            side = source.family.size(source.configs, source.limits, defaults.width, defaults.height)
            area = defaults.width * defaults.height // side.tokens
            limits = guidance_limits(source)
            self._send(ModelOpened(engine.model, defaults, engine.options, times, area, limits))
            with closing(engine.load()) as events:
                for event in events:
                    self._send(LoadEvent(event))
                    if self._commands.has_work:  # a job: it loads what it needs, and says so
                        break
            name, uuid = _device_name(engine)
            self._send(ModelLoaded(engine.device, name, uuid, time.perf_counter() - began))
        except RequestError as error:
            self._engine = None
            self._send(ModelRefused(str(error)))
        except (BrokenPipeError, ConnectionError):
            raise
        except Exception as error:  # torch that cannot be imported, for want of memory above all
            self._engine = None
            why = memory_shortage(error) or " ".join(str(error).split())[:200] or type(error).__name__
            log = keep_traceback(error)
            details = f" (details in {log})" if log is not None else ""
            self._send(ModelRefused(f"{command.model} could not be opened: {why}{details}."))
        finally:
            gc.freeze()
            gc.enable()

    def _paint(self, command: Paint) -> None:
        from engine.images.save import plan_output

        job, engine = command.job, self._engine
        if engine is None:
            self._send(JobRefused(job, "no model is open; choose one that can be used.", "model"))
            return
        self._job = job
        try:
            destination = plan_output(Path(command.output) if command.output else None, 1)
            events = engine.generate(command.request, destination)
            with closing(events), MemoryWatch(self._memory, lambda samples: self._send(MemorySampled(job, samples))):
                cancel = self._cancelled.get(job)  # it came before `generate` cleared the engine's flag
                if cancel is not None:
                    engine.cancel(cancel.after_step)
                for event in events:
                    self._send(JobEvent(job, event))
        except RequestError as error:
            self._send(JobRefused(job, str(error), error.field))
        finally:
            self._job = None
            self._cancelled.pop(job, None)

    def _foresee(self, question: Foresee) -> None:
        engine = self._engine
        if engine is None:
            return
        plan = tokens = None
        refusal = ""
        try:
            tokens = engine.count_tokens(question.request.prompt)
            plan = engine.plan(question.request)
        except RequestError as error:
            refusal = str(error)
        except Exception as error:  # a tokenizer or a configuration that nobody looked at before
            keep_traceback(error)
            refusal = f"no plan can be made: {memory_shortage(error) or ' '.join(str(error).split())[:200]}."
        self._send(Foreseen(question.number, plan, tokens, refusal))

    def _memory(self) -> MemoryUse:
        from engine.jobs.runtime import resident_set_bytes

        context = None if self._engine is None else self._engine.context
        return context.runtime().memory_use() if context and context.is_loaded else MemoryUse(resident_set_bytes())

    def _send(self, message: Message) -> None:
        with self._sending:
            self._connection.send(message)


def _redirect_output(log: Path) -> None:
    """Point standard output and error at the log, for C libraries too, and standard input at nothing."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(
            sys, name, os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
        )
    faulthandler.enable(file=2, all_threads=False)


def _new_log() -> Path:
    """A new file for what the process prints: in the state folder, the temporary folder, or nowhere."""
    name = f"engine-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    folder = state_dir() / "logs"
    try:
        make_folder(folder)
        os.close(open_own(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except OSError:
        try:
            handle, temporary = tempfile.mkstemp(suffix=f"-{name}")
        except OSError:
            return Path(os.devnull)
        os.close(handle)
        _remove_empty_logs(Path(temporary).parent)
        return Path(temporary)
    old = sorted(folder.glob("engine-*.log"), key=lambda path: path.name)
    for path in old[: max(0, len(old) - MAX_LOGS)]:
        with suppress(OSError):
            path.unlink()
    return folder / name


def _remove_empty_logs(folder: Path) -> None:
    """Of the temporary folder, where processes that have gone wrote nothing."""
    for path in folder.glob("tmp*-engine-*.log"):
        owner = path.stem.rpartition("-")[2]
        with suppress(OSError):
            if is_stale(path) and path.stat().st_size == 0 and owner.isdecimal() and not _is_running(int(owner)):
                path.unlink()


def _is_running(pid: int) -> bool:
    import psutil

    try:
        return psutil.pid_exists(pid)
    except (ValueError, OverflowError):
        return False


def _last_lines(log: Path) -> str:
    """The end of the log, on one line."""
    try:
        with log.open("rb") as stream:
            stream.seek(-min(log.stat().st_size, 8192), os.SEEK_END)
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    # Of a traceback what was wrong, not the lines of code.
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith((" ", "Traceback"))]
    return " / ".join(lines[-MAX_QUOTED_LINES:])[-MAX_QUOTED_CHARACTERS:]


def _ending(code: int | None, oom: bool) -> str:
    if code is None:
        return "it does not answer any more"
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name == "SIGKILL" and oom:
        return "killed by the kernel: out of memory"
    return f"killed by {name}"


def _oom_kills() -> int:
    """How many processes the kernel killed for want of memory since it started; 0 where it does not tell."""
    try:
        for line in Path("/proc/vmstat").read_text("ascii").splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    except (OSError, ValueError):
        pass
    return 0


def _device_name(engine: Engine) -> tuple[str, str | None]:
    """The name that a device's maker gave it, and the driver's identifier of a card."""
    if engine.context.settings.simulate:
        return engine.runtime().target.name, None
    if not engine.device.startswith("cuda"):
        return "CPU", None
    import torch

    properties = torch.cuda.get_device_properties(engine.device)
    return properties.name, f"GPU-{properties.uuid}"
