"""Pictures on their way to a terminal that shows them itself (Kitty's protocol): before each piece goes a frame.

A package that draws them writes to standard output, past our writer: a terminal that takes nothing would stop the app.
While the app has the terminal, `sys.__stdout__` is what is here. Each write is one control sequence, which waits until
the line has nothing better to carry. A picture that is taken back before it was sent whole is not sent.
"""

from __future__ import annotations

import re
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

COMMAND = re.compile(rb"\x1b_G([^;\x1b]*)")  # its keys, in tmux's envelope too


class Graphics:
    """In the place of standard output; any thread may call it."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is called when something waits to be taken."""
        self._wake = wake
        self._lock = threading.Lock()
        self._waiting: deque[tuple[dict[bytes, bytes], bytes]] = deque()  # (keys, the sequence)
        self._begun: bytes | None = None  # the picture of which a part is sent
        self._is_taken = False  # by who has not come back for more
        self._stream: Any = None  # standard output

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked of standard output."""
        return getattr(self._stream, name)

    def start(self) -> None:
        """Take the place of standard output."""
        self._stream, sys.__stdout__ = sys.__stdout__, self  # type: ignore[assignment, misc]

    def stop(self) -> bytes:
        """Give the place back; returns what ends a picture that is half sent."""
        if self._stream is not None:
            sys.__stdout__, self._stream = self._stream, None  # type: ignore[misc]
        with self._lock:
            ends = [data for keys, data in self._waiting if is_end(keys) and keys.get(b"i") == self._begun]
            self._waiting.clear()
            self._begun, self._is_taken = None, False
        return b"".join(ends[:1])

    @property
    def is_empty(self) -> bool:
        """Whether all has been taken and sent: what stands for a picture may follow."""
        with self._lock:
            return not (self._waiting or self._is_taken)

    def write(self, text: str) -> int:
        """A control sequence; it is sent later."""
        data = text.encode()
        found = COMMAND.search(data.replace(b"\x1b\x1b", b"\x1b"))
        keys = dict(each.split(b"=", 1) for each in found[1].split(b",") if b"=" in each) if found else {}
        with self._lock:
            if keys.get(b"a") == b"d":
                self._take_back(keys.get(b"I") or keys.get(b"i") or b"")
            self._waiting.append((keys, data))
        self._wake()
        return len(text)

    def flush(self) -> None:
        """Nothing is waited for."""

    def _take_back(self, picture: bytes) -> None:
        """Leave out what is not sent of a picture, but for the sequence that ends it where it is begun."""
        self._waiting = deque(
            (keys, data)
            for keys, data in self._waiting
            if keys.get(b"i") != picture or (picture == self._begun and is_end(keys))
        )

    def take(self, limit: int) -> bytes:
        """What is to be sent next: sequences of about so many bytes together, at least one if there is any.

        Who takes has sent what it took before.
        """
        taken: list[bytes] = []
        with self._lock:
            while self._waiting and sum(map(len, taken)) < limit:
                keys, data = self._waiting.popleft()
                taken.append(data)
                if b"m" in keys:
                    self._begun = None if is_end(keys) else keys.get(b"i")
            self._is_taken = bool(taken)
        return b"".join(taken)


def is_end(keys: dict[bytes, bytes]) -> bool:
    """Whether a sequence is the last of a picture's data."""
    return keys.get(b"m") == b"0"
