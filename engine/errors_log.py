"""Errors that nobody foresaw: the traceback goes to a file in the state folder, a sentence goes to the person."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

from engine.files import write_whole
from engine.folders import state_dir


def keep_traceback(error: BaseException) -> Path | None:
    """Write the error's traceback to `error.log` in the state folder; None where even that fails. Never raises."""
    try:
        log = state_dir() / "error.log"
        text = time.strftime("%Y-%m-%d %H:%M:%S\n") + "".join(traceback.format_exception(error))
        write_whole(log, text.encode("utf-8", "backslashreplace"))
    except Exception:
        return None
    return log
