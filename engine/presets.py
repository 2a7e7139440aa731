"""Presets: choices of a request under a name, a TOML file each in `presets` in the configuration folder.

    steps = 8                  # presets/sketch.toml
    size = "landscape"

Keys are those of the command line's flags, and so are the values and what is said about wrong ones. Files are the
person's own to write, so that nothing in them is trusted.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from engine.files import write_whole
from engine.folders import config_dir, shown_path
from engine.request import Request, RequestError
from engine.sizes import read_size
from engine.text import quoted, some_of
from engine.untrusted import MalformedError, is_plain_name, read_file

MAX_BYTES = 64 * 2**10
MAX_NAME = 64  # characters
NAME = re.compile(r"\w(?:[\w .+-]{0,62}[\w+-])?")
NOT_CHOSEN = ("prompt", "template", "crop")  # of a request, what a preset does not say
KEYS = ("model", "size", "fit", *(each.name for each in fields(Request) if each.name not in NOT_CHOSEN))


def names() -> list[str]:
    """The presets that there are."""
    try:
        found = [path.stem for path in _folder().iterdir() if path.suffix == ".toml"]
    except OSError:
        return []
    return sorted(name for name in found if NAME.fullmatch(name))


def read(name: str) -> dict[str, Any]:
    """What a preset chooses, by the flags' names. Raises `RequestError` for one that is not there or is wrong."""
    path = _path(name)
    try:
        values = _toml(read_file(path, MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError("preset", f"there is no preset {quoted(name, 60)}; {_hint(name)}") from None
    except OSError as error:
        raise RequestError("preset", f"{shown_path(path)} cannot be read ({error.strerror}).") from None
    except (MalformedError, ValueError) as error:
        raise RequestError("preset", f"{shown_path(path)} is not used: {error}.") from None
    return _checked(name, values)


def write(name: str, values: Mapping[str, Any]) -> Path:
    """Keep what is chosen under a name, in place of what was there. Raises `RequestError` for what is no choice."""
    path = _path(name)
    lines = [f"{key} = {_written(value)}\n" for key, value in _checked(name, values).items()]
    try:
        write_whole(path, "".join(lines).encode())
    except OSError as error:
        raise RequestError(
            "preset", f"{shown_path(path)} cannot be written ({error.strerror}); nothing was kept.", machine=True
        ) from None
    return path


def how() -> str:
    """How to make one, in words."""
    return f"one is a file such as {shown_path(_folder() / 'sketch.toml')}, with lines such as steps = 8."


def _folder() -> Path:
    return config_dir() / "presets"


def _path(name: str) -> Path:
    if not NAME.fullmatch(name) or not is_plain_name(name):
        raise RequestError(
            "preset",
            f"a preset's name has letters, digits, spaces and . + - _, at most {MAX_NAME}; got {quoted(name, 60)}.",
        )
    return _folder() / f"{name}.toml"


def _toml(data: bytes) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not TOML: {str(error)[:200]}") from None
    except (RecursionError, ValueError):  # brackets without end, thousands of digits
        raise ValueError("it holds a value that is nested too deep or has too many digits") from None


def _checked(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, where every one may be chosen."""
    checked = dict(values)
    try:
        for key in checked:
            if key not in KEYS:
                near = difflib.get_close_matches(key, KEYS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KEYS)}."
                raise RequestError("preset", f"there is no option {quoted(key, 60)}; {hint}")
        if type(checked.get("size")) is int:  # a square
            checked["size"] = str(checked["size"])
        for key in ("guidance", "cfg"):
            if type(checked.get(key)) is int and abs(checked[key]) < 10**6:
                checked[key] = float(checked[key])
        for key, kind, words in (("model", str, "text"), ("size", str, "text"), ("fit", bool, "true or false")):
            if key in checked and (not isinstance(checked[key], kind) or not str(checked[key]).strip()):
                raise RequestError(key, f"{key} must be {words}, got {quoted(checked[key], 60)}.")
        if "size" in checked:
            read_size(checked["size"])
        of_request = {key: value for key, value in checked.items() if key not in ("model", "size", "fit")}
        if of_request.get("seed") == -1:  # a random one
            del of_request["seed"]
        Request("to be read", **of_request)
    except RequestError as error:
        raise RequestError("preset", f"preset {quoted(name)}: {error}") from None
    return checked


def _written(value: object) -> str:
    """A value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _hint(name: str) -> str:
    known = names()
    if near := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {quoted(near[0])}?"
    if known:
        return f"there are {some_of(known)}."
    return how()
