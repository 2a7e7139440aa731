"""A text in the person's own editor, which gets the terminal for that long."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from textual.app import SuspendNotSupported

from tui.shared import Severity

USUAL = ("nano", "vi")  # the first says on its screen how to leave it


class EditorError(Exception):
    """Nothing was written; the message is a sentence for the person."""

    def __init__(self, sentence: str, severity: Severity = "warning") -> None:
        super().__init__(sentence)
        self.severity: Severity = severity


def editor_command(env: Mapping[str, str], which: Callable[[str], str | None]) -> list[str]:
    """The person's editor and its arguments; where none is named, a usual one that is there. Raises `EditorError`."""
    for name in ("VISUAL", "EDITOR"):
        try:
            command = shlex.split(env.get(name, ""), posix=os.name != "nt")
        except ValueError:
            raise EditorError(f"${name} has a quote that does not end; correct it in your shell.") from None
        if command:
            return command
    found = next((program for program in USUAL if which(program)), None)
    if found is None:
        raise EditorError(
            f"There is neither {' nor '.join(USUAL)} here; set $EDITOR to the program that you write with."
        )
    return [found]


def edited(text: str, lent: Callable[[], AbstractContextManager[None]]) -> str:
    """What the person makes of `text` in their editor; `lent` hands the terminal over. Raises `EditorError`."""
    command = editor_command(os.environ, shutil.which)
    try:
        with tempfile.TemporaryDirectory(prefix="prompt-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "prompt.txt"
            path.write_text(text, "utf-8", errors="replace")
            with lent():
                code = subprocess.run([*command, str(path)], check=False).returncode
            if code:
                raise EditorError(f"{command[0]} ended with exit code {code}; the prompt is as it was.")
            return path.read_text("utf-8", errors="replace").rstrip("\n")
    except SuspendNotSupported:
        raise EditorError("This terminal cannot be lent to another program.") from None
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise EditorError(f"{command[0]} could not be run: {reason}.", "error") from None
