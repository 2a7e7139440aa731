"""Ctrl+C and SIGTERM: the first asks politely, the second insists."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Self


class Interrupts:
    """While open, the first signal calls what `ask` was given, the next one raises KeyboardInterrupt.

    Before `ask` (torch is being imported) the first one raises already.
    """

    def __init__(self) -> None:
        self.requested = False
        self._polite: tuple[Callable[[], None], ...] = ()
        self._before: dict[int, Any] = {}

    def ask(self, *polite: Callable[[], None]) -> None:
        """From now on call these first. Raises the interrupt that a library's import caught and dropped, if any."""
        if not self._polite and self.requested:
            raise KeyboardInterrupt
        self._polite = polite

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
        first, self.requested = not self.requested, True
        if not first or not self._polite:
            raise KeyboardInterrupt
        for call in self._polite:
            call()
