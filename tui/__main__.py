"""`t2i`: without a verb the app, and its own verbs smoke and keys; every other verb is the engine's."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Run `t2i` with the process's own arguments; returns the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # as `run` does, a moment earlier
    from engine.cli.entry import run

    return run(_run, sys.argv[1:])


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        from tui.launch import main as open_app

        return open_app(arguments)
    if arguments[0] == "smoke":
        from tui.smoke import main as smoke

        return smoke(arguments[1:])
    if arguments[0] == "keys":
        from tui.keys import main as keys

        return keys(arguments[1:])
    from engine.cli import commands as cli

    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
