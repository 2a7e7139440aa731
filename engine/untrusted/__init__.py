"""The one door for files that strangers wrote: configurations, indexes, vocabularies, headers. torch is not imported.

What comes through is from an ordinary file of a size that it may have. JSON has no key twice, no endless nesting, no
more values than there can be, and only finite numbers and valid text. What the values mean is for the reader to check.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from engine.folders import shown_path
from engine.request import RequestError

MAX_CONFIG_BYTES = 2**20  # FLUX.1's largest has 1 KiB
MAX_INDEX_BYTES = 8 * 2**20  # FLUX.1's largest has 122 KB
MAX_VALUES = 500_000  # in one file; T5's vocabulary has 32,000 entries of two
MAX_NAME = 255  # bytes; no file system has longer names

_FLAGS = os.O_RDONLY
for _name in ("O_BINARY", "O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK"):  # a pipe would wait for its writer
    _FLAGS |= getattr(os, _name, 0)


class MalformedError(ValueError):
    """A file that is not accepted; the message goes on from the file's name ("is not valid JSON")."""


def open_file(path: Path) -> io.BufferedReader:
    """Open an ordinary file, or a link to one. Raises `OSError` for a device, a pipe or a folder, without waiting."""
    return io.BufferedReader(open_unbuffered(path))


def open_unbuffered(path: Path) -> io.FileIO:
    """As `open_file`, for reads at given positions."""

    def opener(name: str, _: int) -> int:
        _check_ordinary(os.stat(name).st_mode, path)  # before: opening a device can already do something
        descriptor = os.open(name, _FLAGS)
        try:
            _check_ordinary(os.fstat(descriptor).st_mode, path)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    return io.FileIO(str(path), "rb", opener=opener)


def _check_ordinary(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))


def read_file(path: Path, most: int) -> bytes:
    """All of an ordinary file. Raises `OSError`, and `MalformedError` where it has more than `most` bytes."""
    with open_file(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise MalformedError(f"is larger than {most // 2**20} MiB")
    return data


def parse_json(data: bytes, most_values: int = MAX_VALUES, *, is_json: bool = True) -> Any:
    """The value that UTF-8 text holds. Raises `MalformedError`.

    Python's own writer puts NaN where JSON has no word; unless the text must be JSON, that and infinity are None.
    """
    if data.count(b"[") + data.count(b"{") + data.count(b",") > most_values:  # of more there is no time and no memory
        raise MalformedError("holds more values than it can need")
    constant = _finite if is_json else _no_number
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=constant)
        if "\\u" in text:  # half of a pair cannot be written anywhere
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except MalformedError:
        raise
    except UnicodeEncodeError:
        raise MalformedError("holds text that is not valid Unicode") from None
    except RecursionError:
        raise MalformedError("is nested without end") from None
    except ValueError:
        raise MalformedError("is not valid JSON") from None
    return value


def read_object(path: Path, most: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Raises `RequestError` that names the file and what is wrong with it."""
    try:
        value = parse_json(read_file(path, most))
    except FileNotFoundError:
        raise RequestError("model", f"{shown_path(path)} is missing; download the model again.") from None
    except OSError as error:
        raise RequestError("model", f"{shown_path(path)} cannot be read: {error.strerror}.") from None
    except MalformedError as error:
        raise RequestError("model", f"{shown_path(path)} {error}; download the model again.") from None
    if not isinstance(value, dict):
        raise RequestError("model", f"{shown_path(path)} is not a JSON object; download the model again.")
    return value


def is_plain_name(name: str) -> bool:
    """Whether this is a file's name and nothing else: no path, no drive, and not longer than one can be."""
    if name in ("", ".", "..") or not name.isprintable() or any(mark in name for mark in "/\\:"):
        return False
    return len(name.encode("utf-8", "replace")) <= MAX_NAME


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise MalformedError(f"has {twice[:80]!r} twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise MalformedError("holds a number that is not finite")
    return number


def _no_number(_text: str) -> None:
    return None
