"""`t2i`: without a verb the app, and its own verbs smoke and keys; every other verb is the engine's."""

from __future__ import annotations

import sys


def main() -> int:
    """Run `t2i` with the process's own arguments; returns the exit code."""
    arguments = sys.argv[1:]
    try:
        if not arguments or arguments[0].startswith("-"):
            from tui.launch import main as open_app

            return open_app(arguments)
        if arguments[0] == "smoke":
            from tui.smoke import main as smoke

            return smoke(arguments[1:])
        if arguments[0] == "keys":
            from tui.keys import main as keys

            return keys(arguments[1:])
        from engine import cli

        return cli.main(arguments)
    except BrokenPipeError:
        sys.stdout = None  # nobody reads; keep the interpreter's last flush quiet
        return 130
    except KeyboardInterrupt:  # while the imports above were running
        print("cancelled.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
