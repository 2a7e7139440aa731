"""`t2i`: without a verb a short explanation, with one the verb."""

from __future__ import annotations

import sys

EXPLANATION = """\
TextToImageTool makes pictures from text, on this machine.

    {example}

makes one with the small model that comes along, and prints where it was saved. More:

    t2i generate --help    size, seed, number of pictures, prompts from a file, JSON
    t2i doctor             what this machine has, and what to do if something is missing
"""


def main() -> int:
    """Run `t2i` with the process's own arguments; returns the exit code."""
    try:
        if len(sys.argv) < 2:
            from engine.cli import EXAMPLE

            print(EXPLANATION.format(example=EXAMPLE), end="")
            return 0
        from engine import cli

        return cli.main(sys.argv[1:])
    except BrokenPipeError:
        sys.stdout = None  # nobody reads; keep the interpreter's last flush quiet
        return 130
    except KeyboardInterrupt:  # while the imports above were running
        print("cancelled.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
