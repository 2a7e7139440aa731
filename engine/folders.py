"""Where things are kept. Every folder follows the platform's rules and can be moved by an environment variable.

Nothing is created here: whoever writes into a folder makes it first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

APP = "texttoimagetool"
MAX_SHOWN_PATH = 150  # characters


def state_dir() -> Path:
    """History, queue, rescued pictures, logs; moved by TEXTTOIMAGETOOL_STATE_DIR."""
    return _folder("TEXTTOIMAGETOOL_STATE_DIR", lambda: platformdirs.user_state_path(APP, appauthor=False))


def cache_dir() -> Path:
    """What can be made again (converted weights); moved by TEXTTOIMAGETOOL_CACHE_DIR."""
    return _folder("TEXTTOIMAGETOOL_CACHE_DIR", lambda: platformdirs.user_cache_path(APP, appauthor=False))


def config_dir() -> Path:
    """Settings and themes; moved by TEXTTOIMAGETOOL_CONFIG_DIR."""
    return _folder("TEXTTOIMAGETOOL_CONFIG_DIR", lambda: platformdirs.user_config_path(APP, appauthor=False))


def default_output_dir() -> Path:
    """Where pictures go when nobody says otherwise; moved by TEXTTOIMAGETOOL_OUTPUT_DIR."""
    return _folder("TEXTTOIMAGETOOL_OUTPUT_DIR", lambda: platformdirs.user_pictures_path() / "TextToImageTool")


def is_ours(folder: Path) -> bool:
    """Whether a folder that is there is of our making: one of the platform's for this program, or in state or cache."""
    for variable, root in (
        ("TEXTTOIMAGETOOL_STATE_DIR", state_dir()),
        ("TEXTTOIMAGETOOL_CACHE_DIR", cache_dir()),
        ("TEXTTOIMAGETOOL_CONFIG_DIR", config_dir()),
    ):
        if root in folder.parents or (root == folder and not os.environ.get(variable)):
            return True
    return False


def shown_path(path: str | os.PathLike[str]) -> str:
    """`path` in quotes, fit for a message: one line, not too long, control characters written as escapes."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in os.fspath(path))
    if len(text) > MAX_SHOWN_PATH:
        text = "..." + text[3 - MAX_SHOWN_PATH :]  # the end of a path says more than its beginning
    return f"'{text}'"


def _folder(variable: str, platform_folder: Callable[[], Path]) -> Path:
    value = os.environ.get(variable)
    return Path(os.path.expanduser(value)).absolute() if value else platform_folder()
