"""Which version of this program runs, and on which libraries."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def engine_version() -> str:
    """This program's."""
    try:
        return version("texttoimagetool")
    except PackageNotFoundError:  # run from its source folder
        return "0+unknown"


def library_versions() -> dict[str, str]:
    """The versions of everything that decides pixels, as a picture's record keeps them."""
    libraries = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"engine": engine_version(), "python": platform.python_version(), **libraries}
