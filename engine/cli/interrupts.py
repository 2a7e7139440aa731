"""Ctrl+C and SIGTERM: the first asks politely, the second ends the process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from engine.cli.console import CANCELLED


class Interrupts:
    """While open, the first signal calls what `ask` was given; before that it raises KeyboardInterrupt.

    The next one ends the process with 130: an exception that is raised in the middle of anything at all (torch's
    callbacks, the end of an import) shows its traces. Only the saving of a picture, a moment, is not cut off by it.
    """

    def __init__(self) -> None:
        self.count = 0
        self.saving = False  # a file is half written
        self._polite: tuple[Callable[[], None], ...] = ()
        self._last: tuple[Callable[[], None], ...] = ()
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether there was a signal."""
        return self.count > 0

    def ask(self, *polite: Callable[[], None]) -> None:
        """From now on call these first. Raises the interrupt that a library's import caught and dropped, if any."""
        if not self._polite and self.requested:
            raise KeyboardInterrupt
        self._polite = polite

    def at_last(self, *last: Callable[[], None]) -> None:
        """Call these before the process is ended; they may write bytes, nothing else."""
        self._last = last

    def __enter__(self) -> Self:
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            number = getattr(signal, name, None)
            # A signal that is ignored stays ignored: a shell starts background jobs that way on purpose.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        # Work that is interrupted half-way, an import above all, may end in any error at all.
        if self.requested and isinstance(error, Exception) and not isinstance(error, BrokenPipeError):
            raise KeyboardInterrupt from None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > (2 if self.saving else 1):
            self._end()
        if not self._polite:
            raise KeyboardInterrupt
        for call in self._polite if self.count == 1 else ():
            call()

    def _end(self) -> None:
        for call in self._last:
            call()
        if sys.stderr is not None:
            os.write(2, b"cancelled.\n")
        os._exit(CANCELLED)
