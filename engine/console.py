"""The command line's two streams: results on stdout, everything else on stderr; and its exit codes."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from engine.text import printable

DONE, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 130
SECONDS_PER_LINE = 10.0  # in a log


def say(sentence: str) -> None:
    """A line on stderr, fit for a terminal."""
    if sys.stderr is not None:
        print(printable(sentence), file=sys.stderr, flush=True)


def write(line: str) -> None:
    """A line on stdout, at once."""
    if sys.stdout is None:
        return
    try:
        print(line, flush=True)
    except OSError as error:
        if error.errno == errno.EINVAL:  # how Windows says that the reader went away
            raise BrokenPipeError from None
        raise


def write_path(path: Path) -> None:
    """A path on stdout: safe to look at on a terminal, byte for byte for `$(t2i generate ...)`."""
    if sys.stdout is None or sys.stdout.isatty():
        write(printable(str(path)))
    else:
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        sys.stdout.flush()


def is_terminal() -> bool:
    """Whether somebody sits at stdin and sees stderr."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def abandon_output() -> None:
    """Point what can no longer be written at nothing, so that the interpreter's own last flush is quiet."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class StatusLine:
    """What is going on, on one line of stderr: redrawn on a terminal, elsewhere a line now and then."""

    def __init__(self) -> None:
        self._live = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = 0  # characters of the line that stands there
        self._last = time.monotonic()

    def show(self, text: str) -> None:
        if self._live:
            self._draw(printable(text)[: shutil.get_terminal_size().columns - 1])
        elif time.monotonic() - self._last >= SECONDS_PER_LINE:
            self._last = time.monotonic()
            say(text)

    def close(self) -> None:
        """Leave no trace of it; may be called twice."""
        if self._shown:
            self._draw("")

    def _draw(self, text: str) -> None:
        print("\r" + text.ljust(self._shown), end="\r", file=sys.stderr, flush=True)
        self._shown = len(text)
