"""Pictures onto the disk: whole or not at all, never over another picture, never lost.

`plan_output` says before anything runs whether and where pictures can be saved. `save_image` writes under a temporary
name in the same folder and then gives the finished file its name.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.files import PRIVATE, PUBLIC, Temporary, make_folder, remove_leftovers, sync_folder
from engine.folders import default_output_dir, shown_path, state_dir
from engine.images.metadata import Record, encode_png
from engine.request import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SLUG_CHARACTERS = 40
MAX_SLUG_BYTES = 100  # in UTF-8: a whole name stays below 143 bytes, the least that a file system in use allows
OTHER_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".webp", ".avif", ".jxl", ".heic", ".gif", ".bmp", ".tif", ".tiff")
NUMBERED = re.compile(r"([0-9]{6,9})_seed[0-9]+.*\.png", re.IGNORECASE)
MAX_NUMBER = 999_999_999  # nobody has so many pictures: what is numbered like this or beyond is not ours
SLASHES = tuple(mark for mark in (os.sep, os.altsep) if mark)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where pictures go: a folder that names them, or (`is_file`) the one PNG that is written or replaced."""

    path: Path  # absolute
    is_file: bool = False
    is_new: bool = False  # a folder that was made for them


def plan_output(output: Path | str | None, count: int) -> Destination:
    """Where `count` pictures will be saved, after trying that they can be. None is the default folder.

    An existing folder is used whatever its name; otherwise a path that ends in .png is one file. The default folder is
    made, and so is one whose text ends in a slash where its parent is there. Raises `RequestError("output", ...)` with
    one sentence that says what to do.
    """
    try:
        if output is None:
            default = default_output_dir()
            if default.exists() and not default.is_dir():
                raise _refused(default, "is a file, and pictures go into a folder of this name; choose another folder.")
            default.mkdir(parents=True, exist_ok=True)
            destination = Destination(default)
        else:
            path = Path(os.path.expanduser(output)).absolute()
            if str(output).endswith(SLASHES) and _mode(path) is None:
                destination = _made(path)
            else:
                destination = _named_destination(path, count, can_be_made=isinstance(output, str))
        folder = _target(destination.path).parent if destination.is_file else destination.path
        _try_writing(folder)
        remove_leftovers(folder)
    except RequestError:
        raise
    except (OSError, ValueError) as error:
        path = default_output_dir() if output is None else Path(output)
        number = getattr(error, "errno", None)
        advice = "free some space or choose another folder" if number in DISK_FULL else "choose another folder"
        machine = number in (*DISK_FULL, errno.EIO)
        raise _refused(path, f"cannot be written to ({_reason(error)}); {advice}.", machine) from None
    return destination


def save_image(image: Image, record: Record, destination: Destination, kind: str = "") -> tuple[Path, str | None]:
    """Save `image` with `record` inside, and say where it is now: (path, None), or (path, notice) if elsewhere.

    `kind`: a word before the prompt in a name that is made up. A picture that cannot be saved where it was meant to go
    is kept in `rescued` in the state folder or, failing that, in the system's temporary folder; the notice is one
    sentence with the reason and the place. Raises `OSError` only when all of them fail.
    """
    data = encode_png(image, record)
    try:
        if destination.is_file:
            return _save_as(data, destination.path), None
        return _save_in_folder(data, record, destination.path, PUBLIC, kind), None
    except (OSError, ValueError) as error:
        problem = f"The picture could not be saved to {shown_path(destination.path)} ({_reason(error)})"
    for folder in _rescue_folders():
        with suppress(OSError, ValueError):
            make_folder(folder)
            path = _save_in_folder(data, record, folder, PRIVATE, kind)  # the temporary folder is everybody's
            return path, f"{problem}, so it is kept as {shown_path(path)}."
    raise OSError(f"{problem}, nor to the state folder or the temporary folder; free some space and paint it again.")


def file_name(number: int, record: Record, kind: str = "") -> str:
    """A name that sorts by number and tells what is inside: `000123_seed42_a-red-circle.png`."""
    stem = f"{number:06d}_seed{record.request.seed}"
    name = f"{stem}_{slug}.png" if (slug := _slug(f"{kind} {record.request.prompt}")) else f"{stem}.png"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # a locale that cannot spell this prompt
        return f"{stem}.png"
    return name


def _named_destination(path: Path, count: int, *, can_be_made: bool) -> Destination:
    mode = _mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        return Destination(path)
    suffix = path.suffix.lower()
    if suffix in OTHER_PICTURE_SUFFIXES:
        raise _refused(path, "does not end in .png, and pictures are saved as PNG; end the name with .png.")
    if suffix != ".png":
        if mode is not None:
            raise _refused(path, "is a file; give a folder, or a name that ends in .png.")
        advice = "end it with a slash to have it made" if can_be_made else "create the folder first"
        or_else = ", or give a name that ends in .png" if count == 1 else ""
        raise _refused(path, f"does not exist; {advice}{or_else}.")
    if count > 1:
        raise _refused(path, f"is one file and {count} pictures were asked for; give a folder.")
    if mode is not None and not stat.S_ISREG(mode):
        raise _refused(path, "is not an ordinary file; choose another name.")
    parent = _mode(path.parent)
    if parent is None:
        raise _refused(path, f"cannot be saved: the folder {shown_path(path.parent)} does not exist; create it first.")
    if not stat.S_ISDIR(parent):
        raise _refused(path, f"cannot be saved: {shown_path(path.parent)} is not a folder; choose another.")
    return Destination(path, is_file=True)


def _made(path: Path) -> Destination:
    """A new folder. Raises `OSError`, and `RequestError` where there is nothing to make it in."""
    if not path.parent.is_dir():
        raise _refused(path, f"cannot be made: there is no folder {shown_path(path.parent)}; create that first.")
    path.mkdir()
    return Destination(path, is_new=True)


def _mode(path: Path) -> int | None:
    """The file mode of what is at `path`, or None if nothing is. Raises `OSError` where nobody can tell."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _try_writing(folder: Path) -> None:
    """Raise `OSError` if no file can be written in `folder`: permission bits alone do not tell, least of all root."""
    with Temporary(folder, PUBLIC) as temporary:
        temporary.write(b"\0")


def _save_as(data: bytes, path: Path) -> Path:
    """Write `data` to exactly `path`, replacing what is there in one step; a link stays one, and leads to it."""
    target = _target(path)
    with Temporary(target.parent, PUBLIC) as temporary:
        temporary.write(data)
        temporary.replace(target)
    return path


def _target(path: Path) -> Path:
    """The file itself, where `path` is a link to it."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _save_in_folder(data: bytes, record: Record, folder: Path, mode: int, kind: str) -> Path:
    """Write `data` to the next numbered name in `folder`, safe against every other process that does the same.

    The temporary file's name holds the number, so that only one process can be at work on a number. Another may have
    finished it between our look at the folder and our temporary file; hence the second look.
    """
    for number in itertools.count(_highest_number(folder) + 1):
        path = folder / file_name(number, record, kind)
        try:
            with Temporary(folder, mode, f"{number:06d}") as temporary:
                if _highest_number(folder) >= number:
                    continue
                temporary.write(data)
                _place_new(temporary, path, mode)
        except FileExistsError:
            continue
        sync_folder(folder)
        return path
    raise AssertionError("unreachable: numbers do not end")


def _highest_number(folder: Path) -> int:
    with os.scandir(folder) as entries:
        numbers = (int(match[1]) for entry in entries if (match := NUMBERED.fullmatch(entry.name)))
        return max((number for number in numbers if number < MAX_NUMBER), default=0)


def _place_new(temporary: Temporary, path: Path, mode: int) -> None:
    """Give a finished file its name. Raises `FileExistsError` instead of replacing another file."""
    try:
        os.link(temporary.path, path)  # unlike a rename, a link never replaces anything
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links (exFAT, some network shares): take the name, then replace that
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        try:
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise


def _rescue_folders() -> Iterator[Path]:
    yield state_dir() / "rescued"
    with suppress(OSError):  # there may be no temporary folder that can be written to
        yield Path(tempfile.gettempdir())


def _slug(prompt: str) -> str:
    """The prompt as part of a file name: letters and digits of any script in lower case, hyphens between."""
    text = unicodedata.normalize("NFKC", prompt[: 20 * MAX_SLUG_CHARACTERS]).lower()
    spelled = "".join(c if unicodedata.category(c)[0] in "LMN" else "-" for c in text)
    slug = re.sub("-+", "-", spelled).strip("-")[:MAX_SLUG_CHARACTERS]
    return slug.encode("utf-8")[:MAX_SLUG_BYTES].decode("utf-8", "ignore").strip("-")


def _reason(error: Exception) -> str:
    """Why it failed, in the system's words: `no space left on device`."""
    if isinstance(error, OSError):
        return (error.strerror or "unknown reason").lower()
    return "not a path that this system knows"


def _refused(path: Path, problem: str, machine: bool = False) -> RequestError:
    return RequestError("output", f"{shown_path(path)} {problem}", machine)
