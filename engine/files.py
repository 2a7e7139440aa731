"""Files of our own: the person's alone, whole or not there, on the disk when told, never through a link."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from engine.folders import cache_dir, config_dir, is_ours, state_dir

PUBLIC, PRIVATE = 0o666, 0o600  # modes of files, before the umask
PRIVATE_FOLDER = 0o700
LOCK_TRIES, LOCK_SECONDS = 20, 0.2
LEFTOVER = re.compile(r"\.t2i-[0-9a-f]{6,32}\.tmp")
OLD_LEFTOVER = re.compile(r"tmp[0-9a-z_]{8}\.tmp")  # of older versions, which held no lock, and of other programs
LEFTOVER_SECONDS = 3600  # where there are no locks: a living process needs seconds
RENAMING_SECONDS = 5  # far more than Windows has a finished file closed before it gets its name
_FLAGS = 0
for _name in ("O_BINARY", "O_CLOEXEC", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK"):  # a pipe would wait for its reader
    _FLAGS |= getattr(os, _name, 0)


def make_folder(folder: Path) -> None:
    """Make a folder, and what is missing above it, for the person alone. Raises `OSError`.

    One that is there already keeps its mode, unless it is of our making. A link to a folder is as good as one.
    """
    for place in reversed((folder, *folder.parents)):
        if not place.is_dir():
            with suppress(FileExistsError):  # another process was faster
                place.mkdir(PRIVATE_FOLDER)
                sync_folder(place.parent)
        elif os.name == "posix" and is_ours(place) and not place.is_symlink():
            about = place.stat()
            if about.st_mode & 0o077 and about.st_uid == os.geteuid():
                place.chmod(PRIVATE_FOLDER)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(folder))


def open_own(path: Path, flags: int, mode: int = PRIVATE) -> int:
    """The descriptor of an ordinary file that is written to. Raises `OSError` for a link, a device or a pipe."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, and nothing is written through one", str(path))
    descriptor = os.open(path, flags | _FLAGS, mode)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
        if mode == PRIVATE and hasattr(os, "fchmod"):
            os.fchmod(descriptor, PRIVATE)  # it may be older than this rule
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_whole(path: Path, data: bytes, *, mode: int = PRIVATE) -> None:
    """Put `data` at `path` in one step; it is on the disk when this returns. Raises `OSError`."""
    if mode == PRIVATE:
        make_folder(path.parent)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    with Temporary(path.parent, mode) as temporary:
        temporary.write(data)
        temporary.replace(path)


class Temporary:
    """A new file under a temporary name, gone at the end of the `with` unless it got another one.

    It is locked as long as it is open, so that what a killed process leaves is known for that by everybody. (Windows
    deletes no file that is open.)
    """

    def __init__(self, folder: Path, mode: int = PRIVATE, name: str = "") -> None:
        """`name`: in place of a random number. Raises `FileExistsError` where that is taken."""
        self._placed = False
        self.path = folder / f".t2i-{name or os.urandom(8).hex()}.tmp"
        for _ in range(LOCK_TRIES):
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | _FLAGS, mode)
            self.stream = io.FileIO(descriptor, "r+b")
            deadline = time.monotonic() + LOCK_SECONDS
            while _lock(descriptor) is False and time.monotonic() < deadline:
                time.sleep(0.01)  # somebody who cleans up looks at it
            if sys.platform == "win32" or os.fstat(descriptor).st_nlink:
                return
            self.stream.close()  # who cleans up was faster than the lock
        raise OSError(errno.EAGAIN, "what is written there is removed at once", str(self.path))

    def __enter__(self) -> Self:
        return self

    def write(self, data: bytes) -> None:
        """Put all of `data` on the disk, not only into the system's memory, and finish the file."""
        rest = memoryview(data)
        while rest:
            rest = rest[self.stream.write(rest) :]
        self.finish()

    def finish(self) -> None:
        """What was written to `stream` is on the disk from now on; nothing more is written."""
        os.fsync(self.stream.fileno())
        if sys.platform == "win32":  # which renames no file that is open
            self.stream.close()

    def replace(self, path: Path) -> None:
        """Give the finished file its name, in place of what is there, be it a link."""
        os.replace(self.path, path)
        self._placed = True  # the temporary name may be another process's by now
        sync_folder(path.parent)

    def __exit__(self, *_: object) -> None:
        if sys.platform == "win32":
            self._close()
        if not self._placed:
            with suppress(OSError):
                self.path.unlink()
        self._close()  # last: as long as it is locked nobody else takes the name

    def _close(self) -> None:
        with suppress(OSError):  # a disk that has gone; what had to be written was synced
            self.stream.close()


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock that a file stands for. Raises `TimeoutError` where another has it for so long, and `OSError`."""
    descriptor = open_own(path, os.O_CREAT | os.O_RDWR)
    try:
        deadline = time.monotonic() + seconds
        while _lock(descriptor) is False:
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)  # which lets go of it


def _lock(descriptor: int) -> bool | None:
    """Whether the lock is ours now; None where the file system has none."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK) else None
    return True


def sync_file(path: Path) -> None:
    """Bring what was written to a file to the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDWR)  # which Windows wants for it
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether this open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def sync_folder(folder: Path) -> None:
    """Make names in a folder last through a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def clean_up() -> None:
    """Remove what killed processes left in the folders of state, cache and settings. Never raises."""
    for root in (state_dir(), cache_dir(), config_dir()):
        with suppress(OSError):
            remove_leftovers(root)
            for folder in [path for path in root.iterdir() if path.is_dir()]:
                remove_leftovers(folder)
    remove_leftovers(cache_dir() / "weights" / "index")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of our processes that were killed while they wrote. Never raises."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                if LEFTOVER.fullmatch(entry.name):
                    remove_abandoned(Path(entry.path))
                elif OLD_LEFTOVER.fullmatch(entry.name) and is_stale(Path(entry.path)):
                    os.unlink(entry.path)


def remove_abandoned(path: Path) -> None:
    """Remove a temporary file that nobody holds open any more; one that somebody does stays.

    Raises `OSError` where it cannot be removed: it is another person's, no file, or on a disk that is read-only.
    """
    about = path.lstat()
    if not _is_mine(about):
        raise PermissionError(errno.EPERM, "a temporary file there is not yours", str(path))
    if sys.platform == "win32":
        if time.time() - about.st_mtime > RENAMING_SECONDS:
            with suppress(PermissionError):  # as long as somebody has it open
                path.unlink()
        return
    descriptor = os.open(path, os.O_RDWR | _FLAGS)
    try:
        free = _lock(descriptor)
        if free is None:  # the file system has no locks
            free = is_stale(path)
        if free and _is_at(descriptor, path):
            path.unlink()
    finally:
        os.close(descriptor)


def is_stale(path: Path) -> bool:
    """Whether an ordinary file is this person's, and so old that no living process is at work on it."""
    try:
        about = path.lstat()
    except OSError:
        return False
    return _is_mine(about) and time.time() - about.st_mtime > LEFTOVER_SECONDS


def _is_mine(about: os.stat_result) -> bool:
    """Whether this is an ordinary file of this person's."""
    return (not hasattr(os, "geteuid") or about.st_uid == os.geteuid()) and stat.S_ISREG(about.st_mode)
