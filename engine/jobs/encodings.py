"""Encoded prompts on disk: one that was ever painted is painted again without reading or running the text encoders.

A file is found by all that its numbers depend on: the encoders' content and form, the tokens, where they ran. The least
recently used go where the folder grows beyond its limit. What the disk refuses costs nothing but the time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from engine.families.networks import Conditioning
from engine.files import write_whole
from engine.folders import cache_dir
from engine.library.caches import ENCODINGS
from engine.untrusted import read_file

FORMAT = 1  # to be raised when the same prompt would be encoded differently
MAX_BYTES = 2**27  # of a file; FLUX.1's have 4 MB


class KeptEncodings:
    """The folder, of at most `limit_bytes`; with 0 nothing is kept or found."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes

    def find(self, key: str, like: Conditioning) -> Conditioning | None:
        """What was kept under `key`, if it is whole and has the names and shapes of `like`."""
        if not self._limit_bytes:
            return None
        path = _path(key)
        try:
            found: Conditioning = safetensors.torch.load(read_file(path, MAX_BYTES))
        except (OSError, ValueError, SafetensorError):
            return None
        right = found.keys() == like.keys() and all(found[name].shape == like[name].shape for name in found)
        if not right or not all(bool(tensor.isfinite().all()) for tensor in found.values()):
            return None
        with suppress(OSError):
            os.utime(path)  # used just now
        return found

    def has(self, key: str) -> bool:
        """Whether there is something under `key`; whether it is whole shows when it is read."""
        return bool(self._limit_bytes) and _path(key).is_file()

    def keep(self, key: str, conditioning: Conditioning) -> None:
        """Write it, and make room for it."""
        data = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in conditioning.items()})
        if len(data) > min(self._limit_bytes, MAX_BYTES):
            return
        with suppress(OSError):
            _make_room(self._limit_bytes - len(data))
            write_whole(_path(key), data)


def key_of(conditions: Mapping[str, Any]) -> str:
    """A file's name, of everything that an encoding depends on (JSON values)."""
    return hashlib.sha256(json.dumps([FORMAT, conditions], sort_keys=True).encode()).hexdigest()[:32]


def _path(key: str) -> Path:
    return cache_dir() / ENCODINGS / f"{key}.safetensors"


def _make_room(limit_bytes: int) -> None:
    """Let the least recently used go, until what is left has no more than this."""
    files = []
    for path in (cache_dir() / ENCODINGS).glob("*.safetensors"):
        with suppress(OSError):  # another process was faster
            about = path.stat()
            files.append((about.st_mtime_ns, about.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size
