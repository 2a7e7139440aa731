"""`t2i keys`: the keys in effect, as a table for the terminal or for the page of the app (tui/README.md)."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from engine import folders
from engine.cli.console import say, write
from tui.bindings import Keys, Scope, display, read_keymap

HEADINGS: dict[Scope, str] = {
    "prompt": "In the prompt",
    "main": "On the main screen",
    "pictures": "With a picture, there and in the gallery",
    "compare": "Where pictures are compared",
    "gallery": "In the gallery",
    "models": "In the list of models",
    "app": "Everywhere",
}
LETTERS = "Letters work where no text is being typed (Tab or Esc leaves the prompt); all but f with Alt in it, too."
USAGE = """\
usage: t2i keys [--markdown]

Prints every key of the app, after your keymap.toml. A line there gives a command other keys: "job.cancel" = "f8 x"

  --markdown  print the table as it is in tui/README.md
"""


def main(argv: Sequence[str]) -> int:
    """Print the table; returns 0, 1 after a message about `keymap.toml`, or 2 after one about `argv`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a key's character gets its number
        sys.stdout.reconfigure(errors="backslashreplace")
    if any(word in ("-h", "--help") for word in argv):
        write(USAGE.rstrip("\n"))
        return 0
    if any(word != "--markdown" for word in argv):
        say("error: t2i keys takes nothing but --markdown; see t2i keys --help.")
        return 2
    path = folders.config_dir() / "keymap.toml"
    keys, problem = read_keymap(path)
    if argv:
        text = markdown_table(keys)
    else:
        text = f"{plain_table(keys)}\n{LETTERS}\nYour own keys go into {folders.shown_path(path)}.\n"
    write(text.rstrip("\n"))
    if problem is not None:
        say(f"error: {problem}")
        return 1
    return 0


def plain_table(keys: Keys) -> str:
    """Keys, id and purpose of every command, under a heading for each place where they work."""
    rows = {command: " ".join(map(display, command.key_list)) for command in keys.commands}
    across, along = max(map(len, rows.values())), max(len(command.id) for command in rows)
    lines: list[str] = []
    for scope, heading in HEADINGS.items():
        lines += ["", heading] if lines else [heading]
        lines += [
            f"  {shown:<{across}}  {command.id:<{along}}  {command.tooltip}"
            for command, shown in rows.items()
            if command.scope == scope
        ]
    return "\n".join(lines) + "\n"


def markdown_table(keys: Keys) -> str:
    """The same table as tui/README.md shows it."""
    lines = ["| keys | what it does | id in `keymap.toml` |", "|---|---|---|"]
    for scope, heading in HEADINGS.items():
        lines.append(f"| **{heading}** | | |")
        for command in keys.commands:
            if command.scope == scope:
                shown = " ".join(_code(display(key)) for key in command.key_list)
                lines.append(f"| {shown} | {command.tooltip} | `{command.id}` |")
    return "\n".join(lines) + "\n"


def _code(key: str) -> str:
    """A key as Markdown code inside a table."""
    return "`` ` ``" if key == "`" else f"`{key}`".replace("|", "\\|")
