"""Importing torch and its company: quickly, and without a word."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection while torch and its company are imported: it takes a fifth of that time, to no use.

    What was imported by the first event is frozen there, which spares the collections at the end, too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def hush_libraries() -> None:
    """Keep the libraries' warnings, logs and progress bars off stderr. A value already set by the person stays."""
    quiet = {
        "DIFFUSERS_VERBOSITY": "critical",
        "TRANSFORMERS_VERBOSITY": "critical",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        logging.captureWarnings(True)  # some libraries put filters of their own in front of ours
    logging.getLogger().addHandler(logging.NullHandler())
