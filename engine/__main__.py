"""`python -m engine generate ...`: the headless verbs without the terminal app."""

import sys


def _run() -> int:
    try:
        from engine.cli import main

        return main(prog="python -m engine")
    except KeyboardInterrupt:  # while the imports above were running
        print("cancelled.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(_run())
