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
LEFTOVER = re.compile(r"(\.t2i-[0-9a-f]{6,18}|tmp[0-9a-z_]{8})\.tmp")  # the second: of older versions
LEFTOVER_SECONDS = 3600  # a living process needs seconds
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
    """A new file under a temporary name, gone at the end of the `with` unless it got another one."""

    def __init__(self, folder: Path, mode: int = PRIVATE, name: str = "") -> None:
        """`name`: in place of a random number. Raises `FileExistsError` where that is taken."""
        self.path = folder / f".t2i-{name or os.urandom(8).hex()}.tmp"
        self._placed = False
        descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | _FLAGS, mode)
        self.stream = io.FileIO(descriptor, "r+b")

    def __enter__(self) -> Self:
        return self

    def write(self, data: bytes) -> None:
        """Put all of `data` on the disk, not only into the system's memory, and close the file."""
        rest = memoryview(data)
        while rest:
            rest = rest[self.stream.write(rest) :]
        self.finish()

    def finish(self) -> None:
        """What was written to `stream` is on the disk from now on; it is closed."""
        os.fsync(self.stream.fileno())
        self.stream.close()

    def replace(self, path: Path) -> None:
        """Give the finished file its name, in place of what is there, be it a link."""
        os.replace(self.path, path)
        self._placed = True  # the temporary name may be another process's by now
        sync_folder(path.parent)

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        if not self._placed:
            with suppress(OSError):
                self.path.unlink()


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock that a file stands for. Raises `TimeoutError` where another has it for so long, and `OSError`."""
    descriptor = open_own(path, os.O_CREAT | os.O_RDWR)
    try:
        deadline = time.monotonic() + seconds
        while not _lock(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)  # which lets go of it


def _lock(descriptor: int) -> bool:
    """Whether the lock is ours now; also where the file system has none."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def sync_file(path: Path) -> None:
    """Bring what was written to a file to the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDWR)  # which Windows wants for it
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
            if LEFTOVER.fullmatch(entry.name) and is_stale(Path(entry.path)):
                with suppress(OSError):
                    os.unlink(entry.path)


def is_stale(path: Path) -> bool:
    """Whether an ordinary file is this person's, and so old that no living process is at work on it."""
    try:
        about = path.lstat()
    except OSError:
        return False
    mine = not hasattr(os, "geteuid") or about.st_uid == os.geteuid()
    return mine and stat.S_ISREG(about.st_mode) and time.time() - about.st_mtime > LEFTOVER_SECONDS
