"""Putting a terminal back for an app that was killed: the engine's process outlives it by a moment.

The app says what it does to its terminal (`TerminalModes`) and when it has undone it; nothing happens here otherwise.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

WRITE_SECONDS = 0.3  # for a terminal that takes nothing at the moment
# The end of a sequence that was cut off, of a frame, and of everything that a full-screen program asks of a terminal:
# mouse, focus, size reports; line wrap comes back. The keyboard's stack belongs to the alternate screen.
LEAVE = b"\x1b\\\x1b[?2026l" + b"".join(
    b"\x1b[?%dl" % mode for mode in (1000, 1002, 1003, 1006, 1015, 1016, 1004, 2048)
)
LEAVE += b"\x1b[?7h\x1b[<u\x1b[m\x1b[?1049l\x1b[?25h"
NO_PASTE = b"\x1b[?2004l"


@dataclass(frozen=True, slots=True)
class TerminalModes:
    """A terminal that an app has taken: its path, termios' attributes before and since, and who may have it after.

    `groups` are the process groups of the app, of what started it, and of the session's shell.
    """

    path: str
    before: list[Any]
    since: list[Any]
    groups: frozenset[int]


def taken(descriptor: int, before: list[Any]) -> TerminalModes | None:
    """What is to be put back of the terminal that this process has just taken; None where it has none of its own."""
    import termios

    try:
        path, session = os.ttyname(descriptor), os.getsid(0)
        groups = {os.getpgrp(), session}
        with suppress(OSError):
            groups.add(os.getpgid(os.getppid()))
        return TerminalModes(path, before, termios.tcgetattr(descriptor), frozenset(groups))
    except (OSError, termios.error):
        return None


def put_back(modes: TerminalModes) -> bool:
    """Put the terminal back, unless it is gone or another program has it; whether that was done.

    Call it with SIGTTOU ignored: this process is in the background by then.
    """
    import termios

    descriptor = -1
    try:
        descriptor = os.open(modes.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        # Fails where a later terminal has this path: it is not this session's.
        if os.tcgetpgrp(descriptor) not in modes.groups:
            return False
        attributes = termios.tcgetattr(descriptor)
        if attributes == modes.since:
            termios.tcsetattr(descriptor, termios.TCSANOW, modes.before)
        edits = attributes != modes.since and not attributes[3] & termios.ICANON  # a shell that reads a line already
        return _write(descriptor, LEAVE if edits else LEAVE + NO_PASTE)
    except (OSError, termios.error):
        return False
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _write(descriptor: int, data: bytes) -> bool:
    deadline = time.monotonic() + WRITE_SECONDS
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while data and (left := deadline - time.monotonic()) > 0:
        if poll.poll(1000 * left):
            with suppress(BlockingIOError):
                data = data[os.write(descriptor, data) :]
    return not data
