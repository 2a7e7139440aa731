"""The app at the near end of a line with a rate and a round trip, and a terminal at the far end. It may freeze."""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Mapping, Sequence

from tests.terminals import Terminal

SERVER_BUFFER = 1_000_000  # bytes that sshd takes before it stops reading
PIECE = 256  # bytes that travel together
TICK = 0.004  # seconds


class Linked(Terminal):
    """A terminal behind a line: `rate` in bits a second (0: no limit), `round_trip` in seconds, `buffer` in bytes."""

    def __init__(
        self,
        command: Sequence[str],
        size: tuple[int, int] = (80, 24),
        *,
        rate: int = 0,
        round_trip: float = 0.0,
        buffer: int = SERVER_BUFFER,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.rate, self.delay = rate / 8, round_trip / 2
        self.frozen, self._buffer = False, buffer
        self.behind = 0.0  # seconds: the most that something was old when it was shown
        self._out: deque[tuple[float, bytes]] = deque()  # (when the program wrote it, what), not yet on the line
        self._travels: deque[tuple[float, float, bytes]] = deque()  # (arrives, written, what)
        self._typed: deque[tuple[float, bytes]] = deque()  # (arrives, what)
        self._buffered = 0
        self._free = 0.0  # when the line has taken all that was given to it
        super().__init__(command, size, **(environment or {}))

    def write(self, data: bytes) -> None:
        self._typed.append((time.monotonic() + self.delay, data))

    def _read(self) -> None:
        while not self._closing:
            room = self._buffered < self._buffer
            if select.select([self._master] if room else [], [], [], TICK)[0]:
                try:
                    data = os.read(self._master, 65536)
                except OSError:
                    return
                self._buffered += len(data)
                now = time.monotonic()
                self._out += [(now, data[start : start + PIECE]) for start in range(0, len(data), PIECE)]
            if not self.frozen:
                self._carry(time.monotonic())

    def _carry(self, now: float) -> None:
        while self._typed and self._typed[0][0] <= now:
            os.write(self._master, self._typed.popleft()[1])
        while self._out and self._free <= now:
            written, data = self._out.popleft()
            self._buffered -= len(data)
            self._free = max(self._free, now - TICK) + (len(data) / self.rate if self.rate else 0.0)
            self._travels.append((self._free + self.delay, written, data))
        while self._travels and self._travels[0][0] <= now:
            _, written, data = self._travels.popleft()
            self.behind = max(self.behind, now - written)
            self.take(data)
