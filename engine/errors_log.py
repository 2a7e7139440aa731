"""Errors that nobody foresaw: the traceback goes to a file in the state folder, a sentence goes to the person."""

from __future__ import annotations

import errno
import time
import traceback
from pathlib import Path

from engine.files import write_whole
from engine.folders import state_dir
from engine.text import size


def keep_traceback(error: BaseException) -> Path | None:
    """Write the error's traceback to `error.log` in the state folder; None where even that fails. Never raises."""
    try:
        log = state_dir() / "error.log"
        text = time.strftime("%Y-%m-%d %H:%M:%S\n") + "".join(traceback.format_exception(error))
        write_whole(log, text.encode("utf-8", "backslashreplace"))
    except Exception:
        return None
    return log


def memory_shortage(error: BaseException) -> str:
    """Which memory is too small, where an error comes of that; else ""."""
    limit = _memory_limit()
    refused = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    # Python itself breaks in many ways when an import gets no memory.
    if limit and (refused or isinstance(error, (ImportError, SystemError))):
        return f"the {size(limit)} that this process may have (ulimit -v) are too little"
    if refused or "DefaultCPUAllocator" in str(error):
        return "the machine ran out of memory"
    return ""


def _memory_limit() -> int:
    """Bytes; 0 where there is no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return 0 if limit == resource.RLIM_INFINITY else limit
