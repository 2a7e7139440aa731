"""Where the 8-bit form of which weights lies in the cache; `engine.models.converted` makes it. torch is not imported.

What a set of files contains is known without reading them whole, from an index, by the files' names, sizes, times and
samples of their content.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

from engine.folders import cache_dir
from engine.models.model import SAMPLE_BYTES, SAMPLES, add_samples
from engine.request import RequestError
from engine.untrusted import open_file, parse_json, read_file
from engine.untrusted.headers import unreadable

MAX_INDEX_BYTES = 1024
FORMAT = "3"  # to be raised when the same weights would give another file
FORMS = ("fp8", "int8", "int8+csb", "int8+csb+ssc")
DTYPES = ("torch.bfloat16", "torch.float32", "torch.float16")  # that the rest of a component may be stored in


def weights_folder() -> Path:
    """The cache's files; the index is a folder in it."""
    return cache_dir() / "weights"


def index_file(files: Sequence[Path], component: str, dtype: str, form: str = FORMS[0]) -> Path:
    """Where the index tells the content of a component's files, converted to `form` with the rest in `dtype`.

    Raises `RequestError` where a file cannot be read.
    """
    return weights_folder() / "index" / f"{_quick_key(files, component, dtype, form)}.json"


def indexed_content(index: Path) -> tuple[str, str] | None:
    """The content that an index file names, and the digest of the balancing factors in it; None where there is none
    that can be believed."""
    try:
        found = parse_json(read_file(index, MAX_INDEX_BYTES))
        content, salience = found["content"], found["salience"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(content, str) or not re.fullmatch("[0-9a-f]{32}", content) or not isinstance(salience, str):
        return None
    return content, salience


def cache_file(content: str, kind: str = FORMS[0]) -> Path:
    """This content in fp8 or int8."""
    return weights_folder() / f"{content}-{kind}.safetensors"


def forget(files: Sequence[Path], component: str) -> int:
    """Delete the 8-bit forms that were made of a component's files; the bytes that this freed."""
    freed = 0
    for form, dtype in product(FORMS, DTYPES):
        with suppress(RequestError, OSError):
            index = index_file(files, component, dtype, form)
            indexed = indexed_content(index)
            if indexed is not None:
                index.unlink()
                cache = cache_file(indexed[0], form.partition("+")[0])
                size = cache.stat().st_size
                cache.unlink()
                freed += size
    return freed


def _quick_key(files: Sequence[Path], component: str, dtype: str, form: str) -> str:
    """A hash that is as good as the content's: names, sizes, times and samples of the files."""
    digest = hashlib.sha256(json.dumps([FORMAT, component, dtype, form]).encode())
    for file in files:
        try:
            with open_file(file) as stream:
                status = os.fstat(stream.fileno())
                digest.update(
                    f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape")
                )
                if status.st_size <= SAMPLES * SAMPLE_BYTES:
                    digest.update(stream.read(SAMPLES * SAMPLE_BYTES))
                    continue
                add_samples(digest, stream, status.st_size)
        except OSError as error:
            raise unreadable(file, error) from None
    return digest.hexdigest()[:32]
