"""What the screens share: the session, this terminal's ways, what the person is told, and what only the app can do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from textual.app import App
from textual.signal import Signal

from tui.bindings import Keys
from tui.card import CardWatch
from tui.profile import TerminalProfile
from tui.session import Session
from tui.settings import Settings
from tui.text import printable
from tui.thumbnails import Thumbnails
from tui.trash import Gone

if TYPE_CHECKING:
    from tui.library import Library, Pull, Scan

Severity = Literal["information", "warning", "error"]
NOTE_SECONDS, MAX_SAID = 6.0, 200


class Main(Protocol):
    """The main screen, which is always there."""

    @property
    def follows(self) -> bool: ...  # whether the highlight goes to what begins next
    def update(self, *, follow: bool = False) -> None: ...
    def update_progress(self) -> None: ...
    def update_forecast(self) -> None: ...
    def parameters_changed(self) -> None: ...


class Host(Protocol):
    """What a screen asks of the app, which alone knows all of them."""

    @property
    def main(self) -> Main: ...
    def pictures_changed(self) -> None: ...  # a star, or one has gone
    def refresh_folders(self) -> None: ...  # one was saved
    def take_prompt(self, text: str) -> None: ...  # back on the main screen
    def lend_terminal(self) -> AbstractContextManager[None]: ...  # to another program
    def open_picture(self, path: Path, neighbour: Callable[[Path, int], Path | None]) -> None: ...
    def open_comparison(self, paths: Sequence[Path]) -> None: ...
    def open_gallery(self) -> None: ...
    def open_models(self) -> None: ...


class Shared:
    """Made by the app, and given to each screen."""

    def __init__(
        self,
        app: App[None],
        host: Host,
        session: Session,
        settings: Settings,
        profile: TerminalProfile,
        keys: Keys,
        images: type[Any] | None = None,
    ) -> None:
        """`app` and `host` are the same. `images` is the widget that shows a picture by the terminal's own graphics."""
        self._app, self.host = app, host
        self.session, self.settings, self.profile, self.keys, self.images = session, settings, profile, keys, images
        self.thumbnails = Thumbnails()
        self.card = CardWatch(app, self._card_seen)
        self.marked: list[Path] = []  # pictures that the next key is for, in the order they were marked
        self.trash: list[list[Gone]] = []  # of this session, the last that went together at the end
        self.said: list[tuple[float, str]] = []  # (when, what) for the person, oldest first
        self._said_on: object = None  # the screen of the last one
        self.models_changed: Signal[object] = Signal(app, "models")  # what ended, if anything did
        self._library: Library | None = None

    def _card_seen(self) -> None:
        if self._app.screen_stack:
            self.host.main.update_progress()

    def say(self, text: str, severity: Severity = "information") -> None:
        """A sentence for the person. Never markup."""
        lines = "\n".join(printable(line) for line in text.split("\n"))
        if re.match("[a-z]+[ ,]", lines):  # a word, not a file's name
            lines = lines[:1].upper() + lines[1:]
        now = time.monotonic()
        recent = [said for when, said in self.said if now - when < NOTE_SECONDS]
        self.said = [*self.said[-MAX_SAID:], (now, lines)]
        stack = self._app.screen_stack
        before, self._said_on = self._said_on, stack[-1] if stack else None
        if recent and recent[-1] == lines and before is self._said_on:
            return  # it still stands there
        if len(recent) >= 2 and self._app.is_running:
            self._app.clear_notifications()  # a pile of them would take the room of the pictures
        seconds = 2 * NOTE_SECONDS if severity == "error" else NOTE_SECONDS
        self._app.notify(lines, severity=severity, markup=False, timeout=seconds)

    def tell_notices(self) -> None:
        """What went wrong with the history, if anything did."""
        for notice in self.session.history.take_notices():
            self.say(notice, "warning")

    def parameters_changed(self) -> None:
        """Keep and show them."""
        self.session.save_parameters()
        self.host.main.parameters_changed()

    def pause_keys(self, *, in_prompt: bool) -> str:
        """What to press to go on with the queue."""
        pause = self.keys.shown("queue.pause")
        return f"{self.keys.shown('prompt.leave')} and then {pause}" if in_prompt else pause

    # Models that are looked for and brought in the background.

    @property
    def library(self) -> Library:
        """That work; imported when the person first looks at the models."""
        if self._library is None:
            from tui.library import Library

            seconds = 1.0 if self.profile.slow else 0.5
            self._library = Library(self._app, self.say, self.models_changed.publish, seconds_between=seconds)
        return self._library

    @property
    def pull(self) -> Pull | None:
        """The model on its way from the hub."""
        return None if self._library is None else self._library.pull

    @property
    def scan(self) -> Scan | None:
        """The search for models."""
        return None if self._library is None else self._library.scan

    def close(self) -> None:
        """The app leaves."""
        if self._library is not None:
            self._library.close()
