"""The command line's two streams: results on stdout, everything else on stderr; and its exit codes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from engine.folders import shown_path
from engine.request import RequestError
from engine.text import printable

DONE, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 130
UNREAD = 141  # nobody reads what is written any more: as a shell says that SIGPIPE ended a program
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
SECONDS_PER_LINE = 10.0  # in a log


class OutputError(Exception):
    """Standard output cannot be written; the message is a sentence, and says what it did not get."""


def say(sentence: str) -> None:
    """A line on stderr, fit for a terminal."""
    tell(sentence, sys.stderr)


def tell(sentence: str, stream: IO[str] | None) -> None:
    """A line of progress, or of what went wrong. Where it cannot be written (a full disk) the work goes on."""
    if stream is None:
        return
    try:
        print(printable(sentence), file=stream, flush=True)
    except OSError:
        _abandon(stream)


def write(line: str) -> None:
    """A line on stdout, at once. Raises `OutputError`, or `BrokenPipeError` where nobody reads any more."""
    with _writing("what was to be printed is lost."):
        print(line, flush=True)


def write_path(path: Path) -> None:
    """A path on stdout: safe to look at on a terminal, byte for byte for `$(t2i generate ...)`."""
    with _writing(f"the picture is {shown_path(path)}."):
        if sys.stdout is None or sys.stdout.isatty():
            print(printable(str(path)), flush=True)
        else:
            sys.stdout.buffer.write(os.fsencode(path) + b"\n")
            sys.stdout.flush()


def write_picture(path: Path) -> None:
    """The file itself on stdout. Where that is not possible it stays, and what is raised or said names it."""
    data = path.read_bytes()
    try:
        with _writing(f"the picture is {shown_path(path)}."):
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
    except BrokenPipeError:
        say(f"nobody read the picture; it is {shown_path(path)}.")
        raise


@contextmanager
def _writing(instead: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EINVAL):  # Windows' way to say that the reader went away
            raise BrokenPipeError from None
        raise OutputError(
            f"standard output cannot be written to ({(error.strerror or 'unknown reason').lower()}); {instead}"
        ) from None


def complain(field: str | None, message: str, *, as_json: bool, code: int = BAD_INPUT) -> int:
    """The error on stderr, and on stdout too where JSON is read; returns `code`."""
    say(f"error: {message}")
    if as_json:
        write(json.dumps({"event": "error", "field": field, "message": message}))
    return code


def refuse(error: RequestError, *, as_json: bool) -> int:
    """As `complain`, with the exit code for bad input or for a machine at fault."""
    return complain(error.field, str(error), as_json=as_json, code=FAILED if error.machine else BAD_INPUT)


def is_terminal() -> bool:
    """Whether somebody sits at stdin and sees stderr."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def abandon_output() -> None:
    """Point what can no longer be written at nothing, so that the interpreter's own last flush is quiet."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            _abandon(stream)


def _abandon(stream: IO[str]) -> None:
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
