"""What goes on with models beside the pictures: one pull from the hub and one search of a folder at a time.

Both go on whatever screen is shown, and stop when the app leaves. The app's thread hears of them by calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from textual.app import App

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
    failed: bool = False

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
    failed: bool = False

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


class Library:
    """The work that is going on. Its public methods are for the app's own thread alone."""

    def __init__(
        self, app: App[None], say: Callable[..., None], changed: Callable[[object], None], *, seconds_between: float
    ) -> None:
        """`say` tells the person a sentence; `changed` is called with what ended, or with None where it only moved.

        News of progress is `seconds_between` apart.
        """
        self._app, self._say, self._changed, self._seconds = app, say, changed, seconds_between
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
        self._app.run_worker(lambda: self._look(folder, flag), name="scan", thread=True, exit_on_error=False)

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

    def _moved(self, work: Pull | Scan) -> None:
        """How far it is."""
        if isinstance(work, Pull) and self.pull is not None:
            self.pull = replace(work, stopping=self.pull.stopping)
        elif isinstance(work, Scan) and self.scan is not None:
            self.scan = replace(work, stopping=self.scan.stopping)
        self._changed(None)

    def _ended(self, work: Pull | Scan, sentence: str) -> None:
        """It is over, and the sentence says how."""
        if isinstance(work, Pull):
            self.pull = None
        else:
            self.scan = None
        self._say(sentence, "error" if work.failed else "information")
        self._changed(work)

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
                        self._app.call_later(self._moved, pull)
            inventory.pulled(name, where)
            self._app.call_later(self._ended, pull, f"{name} is here.")
        except CancelledError:
            came = f" at {part_of(pull.progress.done_bytes, pull.progress.total_bytes)}" if pull.progress else ""
            sentence = f"The pull of {name} was stopped{came}; what came is kept for the next one."
            self._app.call_later(self._ended, pull, sentence)
        except RequestError as error:
            self._app.call_later(self._ended, replace(pull, failed=True), str(error))
        except Exception as error:  # nobody else would hear of it
            sentence = f"{name} could not be pulled: {_words(error)}."
            self._app.call_later(self._ended, replace(pull, failed=True), sentence)

    def _look(self, folder: Path, flag: CancelFlag) -> None:
        scan = Scan(folder)
        try:
            from engine.library import inventory

            due = 0.0
            for found in inventory.scan(folder, flag.check):
                scan = Scan(folder, found)
                if time.monotonic() >= due:
                    due = time.monotonic() + self._seconds
                    self._app.call_later(self._moved, scan)
            self._app.call_later(self._ended, scan, summary(scan))
        except CancelledError:
            stopped = replace(scan, stopping=True)
            self._app.call_later(self._ended, stopped, summary(stopped))
        except RequestError as error:
            self._app.call_later(self._ended, replace(scan, failed=True), str(error))
        except Exception as error:
            self._app.call_later(self._ended, replace(scan, failed=True), f"the search ended: {_words(error)}.")


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


def found_rows(scan: Scan) -> list[tuple[str, str]]:
    """What was found, one by one, for reading; nothing where the summary says it all."""
    found = scan.found
    if found is None or scan.failed or scan.stopping or not (found.loose or found.refused):
        return []
    unreadable = f"; {found.unreadable} could not be read" if found.unreadable else ""
    looked = f"{counted(found.folders, 'folder')} and {counted(found.files, 'file')} were looked at{unreadable}."
    lines = [("", looked), ("", "")]
    lines += [("new", f"{listing.name}: {listing.place}") for listing in found.added]
    lines += [("known", f"{listing.name}: {listing.place}") for listing in found.known]
    lines += [("a part", f"{part.title}: {part.place}") for part in found.loose]
    return lines + [("not usable", sentence) for sentence in found.refused]


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
