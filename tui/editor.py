"""A text in the person's own editor, which gets the terminal for that long."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from textual.app import SuspendNotSupported

from tui.shared import Severity


class EditorError(Exception):
    """Nothing was written; the message is a sentence for the person."""

    def __init__(self, sentence: str, severity: Severity = "warning") -> None:
        super().__init__(sentence)
        self.severity: Severity = severity


def edited(text: str, lent: Callable[[], AbstractContextManager[None]]) -> str:
    """What the person makes of `text` in $VISUAL or $EDITOR; `lent` hands the terminal over. Raises `EditorError`."""
    try:
        command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "", posix=os.name != "nt")
    except ValueError:
        command = []
    if not command:
        raise EditorError("Set $EDITOR to the program that you write with, such as vim or nano.")
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
