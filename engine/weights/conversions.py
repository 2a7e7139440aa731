"""Where the 8-bit form of which weights lies in the cache; `engine.weights.converted` makes it. torch is not imported.

A file's name has 32 digits that are called its content. What has the same content is kept once, for all families: one
that calls a part as another does, and rounds the same of its layers, finds what was made for that.

What a set of files contains is known without reading them whole, from an index, by the files' names, sizes, times and
samples of their content.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

from engine.files import LEFTOVER, write_whole
from engine.folders import cache_dir
from engine.precision import EIGHT_BITS, MODES, Precision
from engine.request import RequestError
from engine.untrusted import open_file, parse_json, read_file
from engine.untrusted.headers import unreadable
from engine.weights.model import SAMPLE_BYTES, SAMPLES, add_samples

MAX_INDEX_BYTES = 1024
FORMAT = "3"  # to be raised when the same weights would give another file
CACHE_FILE = re.compile(rf"(?P<content>[0-9a-f]{{32}})-(?P<kind>{'|'.join(EIGHT_BITS)})\.safetensors")
FORMS = (*map(Precision, EIGHT_BITS), *(Precision("int8", mode) for mode in MODES))
DTYPES = ("torch.bfloat16", "torch.float32", "torch.float16")  # that the rest of a component may be stored in


def weights_folder() -> Path:
    """The cache's files; the index is a folder in it."""
    return cache_dir() / "weights"


def index_file(files: Sequence[Path], component: str, dtype: str, form: Precision) -> Path:
    """Where the index tells the content of a component's files, converted to `form` with the rest in `dtype`.

    Raises `RequestError` where a file cannot be read.
    """
    return weights_folder() / "index" / f"{_quick_key(files, component, dtype, form)}.json"


def content_name(index: Path, salience: str) -> str:
    """What a conversion is called that these files are the first to need: 32 digits, as every content has.

    Files that hold the same share one all the same: what was made is compared with what is there before it is kept.
    """
    return hashlib.sha256(f"{index.stem}\0{salience}".encode()).hexdigest()[:32]


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


def write_index(index: Path, content: str, salience: str, source: Path) -> None:
    """Note which content a component's files have, the first of which is `source`. Raises `OSError`."""
    found = {"content": content, "salience": salience}
    for about in ({**found, "file": str(source.absolute())}, found):
        data = json.dumps(about).encode()
        if len(data) <= MAX_INDEX_BYTES:
            break
    write_whole(index, data)


def indexed_source(index: Path) -> str:
    """Where the first of the files lay that an index file is about, "" where that is unknown."""
    with suppress(OSError, ValueError, AttributeError):
        return str(parse_json(read_file(index, MAX_INDEX_BYTES)).get("file", ""))
    return ""


def indexed() -> Iterator[tuple[Path, str, str]]:
    """Every entry of the index: its file, the content, the first of the files that have it, "" where it is unknown."""
    with suppress(OSError):
        for index in sorted((weights_folder() / "index").glob("*.json")):
            if (found := indexed_content(index)) is not None:
                yield index, found[0], indexed_source(index)


def cache_file(content: str, kind: str) -> Path:
    """This content in fp8 or int8."""
    return weights_folder() / f"{content}-{kind}.safetensors"


def cache_files(kind: str = "") -> list[Path]:
    """The cache's files, of one kind or of all; nothing that is not ours, no links."""
    found = []
    with suppress(OSError), os.scandir(weights_folder()) as entries:
        for entry in entries:
            match = CACHE_FILE.fullmatch(entry.name)
            if match and match["kind"].startswith(kind) and entry.is_file(follow_symlinks=False):
                found.append(Path(entry.path))
    return sorted(found)


def being_filled() -> int:
    """Bytes of the disk that conversions which run now have yet to fill."""
    missing = 0
    with suppress(OSError), os.scandir(weights_folder()) as entries:
        for entry in entries:
            if LEFTOVER.fullmatch(entry.name):
                with suppress(OSError):
                    about = entry.stat(follow_symlinks=False)
                    missing += max(0, about.st_size - getattr(about, "st_blocks", 0) * 512)
    return missing


def forget(files: Sequence[Path], component: str) -> int:
    """Delete the 8-bit forms that were made of a component's files; the bytes that this freed."""
    freed = 0
    for form, dtype in product(FORMS, DTYPES):
        with suppress(RequestError, OSError):
            index = index_file(files, component, dtype, form)
            indexed = indexed_content(index)
            if indexed is not None:
                index.unlink()
                cache = cache_file(indexed[0], form.kind)
                size = cache.stat().st_size
                cache.unlink()
                freed += size
    return freed


def _quick_key(files: Sequence[Path], component: str, dtype: str, form: Precision) -> str:
    """A hash that is as good as the content's: names, sizes, times and samples of the files."""
    digest = hashlib.sha256(json.dumps([FORMAT, component, dtype, str(form)]).encode())
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
