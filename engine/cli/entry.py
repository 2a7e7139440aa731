"""The door of every command: what a process may find wrong when it starts, and how it ends.

Ctrl+C before anybody listens for it ends the process at once with 130 and without a word; after the work is done it no
longer changes how that went. Streams that were closed are opened on nothing, or a file would take their place.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

from engine.cli.console import CANCELLED, FAILED, UNREAD, OutputError, abandon_output, say

Main = Callable[[list[str]], int]
NEEDS_NO_OUTPUT = ("generate",)  # pictures are what it is for


def run(main: Main, arguments: list[str]) -> int:
    """Do what `main` does, and return its exit code. Never raises."""
    _on_ctrl_c(lambda *_: os._exit(CANCELLED))
    try:
        if problem := _problem(arguments):
            say(f"error: {problem}")
            return FAILED
        return main(arguments)
    except OutputError as error:
        abandon_output()
        say(f"error: {error}")
        return FAILED
    except BrokenPipeError:
        abandon_output()
        return UNREAD
    except KeyboardInterrupt:
        say("cancelled.")
        return CANCELLED
    finally:
        _on_ctrl_c(signal.SIG_IGN)


def _on_ctrl_c(handler: Callable[..., object] | signal.Handlers) -> None:
    """Where it is ignored (a shell starts background jobs that way) it stays so."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        with suppress(ValueError):  # not the main thread: not a command
            signal.signal(signal.SIGINT, handler)


def _problem(arguments: list[str]) -> str:
    """Why nothing can be done here, as a sentence; "" if something can."""
    closed = [name for number, name in enumerate(("stdin", "stdout", "stderr")) if _is_closed(number)]
    for name in closed:  # in their order: each takes the lowest number that is free
        stream = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if "stdout" in closed and not (arguments and arguments[0] in NEEDS_NO_OUTPUT and not _writes_there(arguments)):
        return "standard output is closed, so that there is nowhere to print to."
    try:
        os.getcwd()
    except OSError:
        return "the folder that this was started in does not exist any more; change to another one first."
    return ""


def _writes_there(arguments: list[str]) -> bool:
    """Whether the picture itself goes to standard output."""
    pairs = [*pairwise(arguments), *(tuple(argument.split("=", 1)) for argument in arguments)]
    return ("--output", "-") in pairs or ("-o", "-") in pairs or "-o-" in arguments


def _is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False
