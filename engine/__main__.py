"""`python -m engine generate ...`: the headless verbs without the terminal app."""

import sys

from engine.cli.entry import run


def _run(arguments: list[str]) -> int:
    from engine.cli.commands import main

    return main(arguments, prog="python -m engine")


if __name__ == "__main__":
    sys.exit(run(_run, sys.argv[1:]))
