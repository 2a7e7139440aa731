"""The app at the near end of a line with a rate and a round trip, and a terminal at the far end. It may freeze."""

from __future__ import annotations

import os
import re
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

    @property
    def on_their_way(self) -> bool:
        """Whether keys have not arrived yet."""
        return bool(self._typed)

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


class Kitty(Linked):
    """A terminal that shows pictures by Kitty's protocol, so far that a program believes it."""

    pictures = b""  # the last of what came of them
    _half = b""

    def take(self, data: bytes) -> None:
        data = self._half + data
        begun = data.rfind(b"\x1b_G")
        whole = begun < 0 or b"\x1b\\" in data[begun:]
        self._half = b"" if whole else data[begun:]
        data = data if whole else data[:begun]
        for command in re.findall(rb"\x1b_G(.*?)\x1b\\", data, re.DOTALL):
            self.pictures = (self.pictures + command + b"\n")[-1_000_000:]
            if b"a=q" in command:
                self.write(b"\x1b_G" + re.search(rb"i=\d+", command)[0] + b";OK\x1b\\")  # type: ignore[index]
        if b"\x1b[c" in data:
            self.write(b"\x1b[?62;c")
        super().take(re.sub(rb"\x1b_G.*?\x1b\\|\x1b\[c", b"", data, flags=re.DOTALL))
