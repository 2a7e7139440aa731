"""Folders of wildcard files in the ComfyUI, Forge or A1111 that models were found in."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from engine.library import registry

PLACES = ("wildcards", "custom_nodes/*/wildcards", "custom_nodes/*/custom_wildcards", "extensions/*/wildcards")


def wildcard_folders() -> tuple[Path, ...]:
    """Those of programs that `t2i models scan` has been shown: what is beside a folder `models` with a known file."""
    known = registry.known()
    files = [*(path for model in known.models.values() for path in (model.path, *model.parts.values())), *known.loose]
    programs = {folder.parent for file in files for folder in file.parents if folder.name.lower() == "models"}
    found: list[Path] = []
    for program in sorted(programs):
        for place in PLACES:
            with suppress(OSError):
                found += sorted(folder for folder in program.glob(place) if folder.is_dir())
    return tuple(found)
