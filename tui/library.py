"""What goes on with models beside the pictures: one pull from the hub and one search of a folder at a time.

Both go on whatever screen is shown, and stop when the app leaves. What is known of them comes to the app as messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from textual.message import Message
from textual.worker import Worker

from engine.cancel import CancelFlag, CancelledError
from engine.cli.plan_text import part_of
from engine.folders import shown_path
from engine.request import RequestError
from tui.text import counted, duration, size

MAX_NAMES = 5  # in a sentence

if TYPE_CHECKING:
    from engine.library.hub import Prepared, PullProgress
    from engine.library.inventory import Scanned


@dataclass(frozen=True, slots=True)
class Pull:
    """A model on its way from the hub."""

    name: str
    progress: PullProgress | None = None  # None: nothing is known yet
    stopping: bool = False

    @property
    def fraction(self) -> float:
        """How much of it is here."""
        return self.progress.done_bytes / max(1, self.progress.total_bytes) if self.progress is not None else 0.0

    def __str__(self) -> str:
        progress = self.progress
        if progress is None:
            return "beginning ..."
        amount = part_of(progress.done_bytes, progress.total_bytes)
        if self.stopping:
            return f"{amount}  stopping ..."
        if progress.seconds_left is None:
            return f"{amount}  nothing arrives"
        return f"{amount}  {size(progress.bytes_per_second)}/s, {duration(progress.seconds_left)} left"


@dataclass(frozen=True, slots=True)
class Scan:
    """A search for models."""

    folder: Path
    found: Scanned | None = None  # so far
    stopping: bool = False

    def __str__(self) -> str:
        if self.stopping:
            return "stopping ..."
        if self.found is None:
            return "beginning ..."
        found = self.found
        finds = [(len(found.added) + len(found.known), "model"), (len(found.loose), "part")]
        texts = [counted(count, what) for count, what in finds if count]
        looked = f"{counted(found.folders, 'folder')}, {counted(found.files, 'file')}"
        return f"{': '.join(filter(None, (looked, ', '.join(texts))))}  in {shown_path(self.folder)}"


@dataclass
class PullMoved(Message, bubble=False):
    """How far the pull is."""

    pull: Pull

    def can_replace(self, message: Message) -> bool:
        """The latest is enough."""
        return isinstance(message, PullMoved)


@dataclass
class PullEnded(Message, bubble=False):
    """The pull is over; `sentence` says how."""

    sentence: str
    failed: bool = False


@dataclass
class ScanMoved(Message, bubble=False):
    """How far the search is."""

    scan: Scan

    def can_replace(self, message: Message) -> bool:
        """The latest is enough."""
        return isinstance(message, ScanMoved)


@dataclass
class ScanEnded(Message, bubble=False):
    """The search is over; `problem` is a sentence."""

    scan: Scan
    problem: str = ""


class Library:
    """The work that is going on. Its methods and `take` are called by the app alone, in its own thread."""

    def __init__(
        self, post: Callable[[Message], bool], run_worker: Callable[..., Worker[None]], *, seconds_between: float
    ) -> None:
        """`post` and `run_worker` are the app's; messages of progress are `seconds_between` apart."""
        self._post, self._run_worker, self._seconds = post, run_worker, seconds_between
        self.pull: Pull | None = None
        self.scan: Scan | None = None
        self._pull_flag, self._scan_flag = CancelFlag(), CancelFlag()

    def bring(self, name: str, prepared: Prepared) -> None:
        """Begin a pull; there is none yet."""
        self.pull, self._pull_flag = Pull(name), CancelFlag()
        # No worker of Textual's: leaving the app would wait for it, and a connection may hang for long.
        Thread(target=self._bring, args=(name, prepared, self._pull_flag), name="pull", daemon=True).start()

    def look(self, folder: Path) -> None:
        """Begin a search; there is none yet."""
        self.scan, self._scan_flag = Scan(folder), CancelFlag()
        flag = self._scan_flag
        self._run_worker(lambda: self._look(folder, flag), name="scan", thread=True, exit_on_error=False)

    def stop_pull(self) -> None:
        """Ask it to end; what came is kept."""
        if self.pull is not None:
            self._pull_flag.set()
            self.pull = replace(self.pull, stopping=True)

    def stop_scan(self) -> None:
        """Ask it to end."""
        if self.scan is not None:
            self._scan_flag.set()
            self.scan = replace(self.scan, stopping=True)

    def close(self) -> None:
        """The app leaves."""
        self._pull_flag.set()
        self._scan_flag.set()

    def take(self, message: PullMoved | PullEnded | ScanMoved | ScanEnded) -> None:
        """Take a message over."""
        match message:
            case PullMoved(pull=pull) if self.pull is not None:
                self.pull = replace(pull, stopping=self.pull.stopping)
            case ScanMoved(scan=scan) if self.scan is not None:
                self.scan = replace(scan, stopping=self.scan.stopping)
            case PullEnded():
                self.pull = None
            case ScanEnded():
                self.scan = None

    # In threads.

    def _bring(self, name: str, prepared: Prepared, flag: CancelFlag) -> None:
        pull = Pull(name)
        try:
            from engine.library import hub, inventory

            inventory.pulling(name, prepared.folder)
            due = 0.0
            with closing(hub.pull(prepared, check=flag.check)) as steps:
                while True:
                    try:
                        pull = Pull(name, next(steps))
                    except StopIteration as end:
                        where = end.value
                        break
                    if time.monotonic() >= due:
                        due = time.monotonic() + self._seconds
                        self._post(PullMoved(pull))
            inventory.pulled(name, where)
            self._post(PullEnded(f"{name} is here."))
        except CancelledError:
            came = f" at {part_of(pull.progress.done_bytes, pull.progress.total_bytes)}" if pull.progress else ""
            self._post(PullEnded(f"The pull of {name} was stopped{came}; what came is kept for the next one."))
        except RequestError as error:
            self._post(PullEnded(str(error), failed=True))
        except Exception as error:  # nobody else would hear of it
            self._post(PullEnded(f"{name} could not be pulled: {_words(error)}.", failed=True))

    def _look(self, folder: Path, flag: CancelFlag) -> None:
        scan = Scan(folder)
        try:
            from engine.library import inventory

            due = 0.0
            for found in inventory.scan(folder, flag.check):
                scan = Scan(folder, found)
                if time.monotonic() >= due:
                    due = time.monotonic() + self._seconds
                    self._post(ScanMoved(scan))
            self._post(ScanEnded(scan))
        except CancelledError:
            self._post(ScanEnded(replace(scan, stopping=True)))
        except RequestError as error:
            self._post(ScanEnded(scan, str(error)))
        except Exception as error:
            self._post(ScanEnded(scan, f"the search ended: {_words(error)}."))


def summary(scan: Scan) -> str:
    """What a search found, as a sentence."""
    found = scan.found
    if scan.stopping or found is None:
        return f"The search of {shown_path(scan.folder)} was stopped; nothing was added."
    names = [listing.name for listing in found.added]
    news = f"{counted(len(names), 'new model')}: {', '.join(names[:MAX_NAMES])}" if names else "No new model"
    if len(names) > MAX_NAMES:
        news += f" and {len(names) - MAX_NAMES} more"
    others = [f"{len(found.known)} known already"] if found.known else []
    others += [f"{len(found.loose)} that may complete others"] if found.loose else []
    others += [f"{len(found.refused)} that cannot be used"] if found.refused else []
    return f"{'; '.join([news, *others])}."


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
