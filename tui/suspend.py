"""Handing the terminal back for a while: to the shell (Ctrl+Z, SIGTSTP), or to a program that the app runs.

Everything happens in the app's own loop, never inside a signal handler. Of a stop that no program is told of (SIGSTOP)
the app learns when it goes on (SIGCONT), and takes the terminal anew then, for the shell wrote on it. The engine is not
stopped: the picture in work goes on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from textual.app import App

CAN_STOP = hasattr(signal, "SIGTSTP")


class Suspender:
    """What the app does when it is stopped and goes on. `watch` once, in the app's loop."""

    def __init__(self, app: App[None], repaint: Callable[[], None]) -> None:
        self._app, self._repaint = app, repaint
        self._watching = False

    def watch(self) -> None:
        """From now on stopping and going on is noticed."""
        self._watching = self._handle(True)

    def ask(self) -> None:
        """Stop the app and whatever it was started with: a script that waits for it would leave no shell to type in."""
        os.killpg(os.getpgrp(), signal.SIGTSTP)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The terminal is as it was before the app, until the block ends; then the whole screen is painted."""
        # A program that is run here stops with the app, by the signal's own effect.
        self._handle(False)
        try:
            with self._app.suspend():
                yield
        finally:
            self._handle(self._watching)
            self._app.call_later(self._repaint)  # behind the news of the terminal's size

    def _stop(self) -> None:
        """SIGTSTP: stop here, and go on here. Where no shell could bring the app back, the system does not stop it."""
        with self.lent():
            signal.raise_signal(signal.SIGTSTP)
            self._wait_for_the_foreground()

    def _went_on(self) -> None:
        """SIGCONT, after a stop of which nothing was known."""
        self._wait_for_the_foreground()
        with self.lent():
            pass

    def _wait_for_the_foreground(self) -> None:
        """`bg` continues a program that may not use the terminal: stop again until `fg`."""
        with suppress(OSError):  # no terminal, or not ours
            while os.tcgetpgrp(sys.__stdin__.fileno()) != os.getpgrp():  # type: ignore[union-attr]
                os.kill(os.getpid(), signal.SIGSTOP)

    def _handle(self, wanted: bool) -> bool:
        """Notice both signals, or leave them to the system."""
        if not CAN_STOP or not (wanted or self._watching):
            return False
        loop = asyncio.get_running_loop()
        for number, handler in ((signal.SIGTSTP, self._stop), (signal.SIGCONT, self._went_on)):
            if wanted:
                loop.add_signal_handler(number, handler)
            else:
                loop.remove_signal_handler(number)
        return wanted
