"""Finished latents on disk while they are decoded: a crash in decode or save costs seconds, not the picture.

A file is found again by what it depends on, so that asking for the same picture again goes on where the last run ended.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from engine.files import write_whole
from engine.folders import state_dir
from engine.request import Request
from engine.untrusted import read_file

MAX_KEPT = 64  # files; what runs that crashed left behind and nobody asked for again
MAX_BYTES = 2**26


class KeptLatents:
    """The place on disk of one picture's finished latents [1, L, C] float32."""

    def __init__(self, request: Request, **conditions: Any) -> None:
        """`request` is for one picture, with no open choice; `conditions` is all else that its bits depend on."""
        values = replace(request, template=None).to_dict()
        del values["crop"]  # of the pixels
        key = json.dumps([values, conditions], sort_keys=True)
        self.path = _folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def keep(self, latents: Tensor) -> None:
        """Write the latents; does nothing where the disk refuses: then a crash costs the picture, as it used to."""
        with suppress(OSError):
            for stale in sorted([*_folder().glob("*.safetensors"), *_folder().glob("*.tmp")], key=_age)[MAX_KEPT - 1 :]:
                stale.unlink(missing_ok=True)
            write_whole(self.path, safetensors.torch.save({"latents": latents.contiguous()}))

    def find(self, shape: tuple[int, ...]) -> Tensor | None:
        """The latents, if they are there, of this shape, and whole."""
        try:
            latents = safetensors.torch.load(read_file(self.path, MAX_BYTES))["latents"]
        except (OSError, KeyError, ValueError, SafetensorError):
            return None
        right = latents.shape == shape and latents.dtype == torch.float32 and bool(latents.isfinite().all())
        return latents if right else None

    def forget(self) -> None:
        """The picture is saved, or no longer wanted."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def _folder() -> Path:
    return state_dir() / "latents"


def _age(path: Path) -> float:
    """Sorts the newest first."""
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0
