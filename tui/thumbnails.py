"""Pictures from disk at the size of a few cells, made in a thread; the files are not trusted."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from engine.events import Preview

MAX_PIXELS = 64 * 2**20  # of a file that is opened at all
MAX_KEPT = 256


class Thumbnails:
    """Small versions of PNG files, the latest ones kept. Safe for several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, int, int, int], Preview] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, columns: int, rows: int) -> Preview | None:
        """The picture at `path` within `columns` x `rows` cells of two pixels each; None for what is no sound PNG."""
        try:
            changed = path.stat().st_mtime_ns
        except (OSError, ValueError):
            return None
        key = (path, changed, columns, rows)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        frame = read_small(path, columns, 2 * rows)
        if frame is not None:
            with self._lock:
                self._kept[key] = frame
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
        return frame


def read_small(path: Path, width: int, height: int) -> Preview | None:
    """The PNG at `path` within `width` x `height` pixels; None for anything else, however broken or huge."""
    import warnings

    from PIL import Image

    try:
        if not path.is_file():  # a pipe would never end
            return None
        with warnings.catch_warnings(), path.open("rb") as stream:
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=["PNG"]) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    return None
                small = picture.convert("RGB")
                small.thumbnail((max(1, width), max(1, height)), Image.Resampling.BOX)
                return Preview(small.width, small.height, small.tobytes())
    except Exception:  # whatever a broken file makes Pillow raise
        return None
