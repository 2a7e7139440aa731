"""The trash folder beside the pictures, and the way back out of it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tui.jobs import Job

TRASH = ".trash"


@dataclass(frozen=True, slots=True)
class Result:
    """A job that was on the list of results, and its place there."""

    place: int
    job: Job
    course: object  # JSON values, as the history keeps them; None where it keeps nothing


@dataclass(frozen=True, slots=True)
class Gone:
    """A picture in the trash folder: where it was, where it is, and what was on the list for it."""

    path: Path
    kept: Path
    results: list[Result] = field(default_factory=list)


def move_to_trash(path: Path) -> Path:
    """Move a picture to `.trash` beside it, never over another file; returns its new place. Raises OSError."""
    folder = path.parent / TRASH
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "the trash folder is a link to elsewhere")
    folder.mkdir(exist_ok=True)
    for name in (path.name, f"{path.stem}-{time.time_ns()}{path.suffix}"):
        target = folder / name
        if not os.path.lexists(target):
            break
    os.rename(path, target)
    return target


def bring_back(kept: Path, path: Path) -> Path:
    """Move a picture from the trash folder to `path`, or beside it where another file is there by now; returns its
    new place. Raises OSError."""
    for target in _names(path):
        if os.path.lexists(target):
            continue
        try:
            os.link(kept, target, follow_symlinks=False)  # unlike a rename, a link never replaces anything
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                raise
            os.rename(kept, target)  # a disk without links
        else:
            with suppress(OSError):  # then it is in both places
                kept.unlink()
        return target
    raise AssertionError  # the names do not end


def _names(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
