"""Writing a large file past the system's cache, which has better uses for its memory, and takes time to copy into."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from contextlib import suppress

from engine.files import Temporary

PAGE_BYTES = 4096  # positions, lengths and memory of such writes are multiples of it
DROP_EVERY_BYTES = 64 * 2**20  # written by way of the cache, until the system is asked to forget it


def page_aligned(nbytes: int) -> mmap.mmap:
    """New memory of this process's own that begins with a page. Raises `MemoryError` where there is none."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        return mmap.mmap(-1, max(1, nbytes), **private)
    except OSError as error:  # which would pass for a fault of a disk
        raise MemoryError(f"{nbytes} bytes: {error.strerror}") from None


class Output:
    """A file of a known size, filled at any positions by several threads; past the cache where the system can."""

    def __init__(self, temporary: Temporary, nbytes: int) -> None:
        """Raises `OSError` where the file may not be so large."""
        self._stream = temporary.stream
        self._seeking = threading.Lock()
        self._through_cache = 0
        self._stream.truncate(nbytes)  # so that others can tell what is yet to come
        self._direct: int | None = None
        if hasattr(os, "O_DIRECT"):
            with suppress(OSError):  # not every file system has it
                self._direct = os.open(temporary.path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        if self._direct is not None:
            os.close(self._direct)

    def write(self, memory: memoryview, offset: int) -> None:
        """Write `memory`, which is page-aligned, at `offset`. Raises `OSError`."""
        whole = len(memory) - len(memory) % PAGE_BYTES
        done = 0
        if self._direct is not None and offset % PAGE_BYTES == 0:
            try:
                while done < whole and done % PAGE_BYTES == 0:
                    done += os.pwrite(self._direct, memory[done:whole], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL:  # it can be opened so, but not written
                    raise
        self.write_through_cache(memory[done:], offset + done)

    def write_through_cache(self, memory: memoryview, offset: int) -> None:
        """Write memory of any alignment. Raises `OSError`."""
        done = 0
        while done < len(memory):
            if hasattr(os, "pwrite"):
                done += os.pwrite(self._stream.fileno(), memory[done:], offset + done)
            else:
                with self._seeking:  # Windows: a file has one position for all threads
                    self._stream.seek(offset + done)
                    done += self._stream.write(memory[done:])
        with self._seeking:
            self._through_cache += done
            drop = self._through_cache >= DROP_EVERY_BYTES
            if drop:
                self._through_cache = 0
        if drop and hasattr(os, "posix_fadvise"):  # begin to write to the disk, and forget what is there already
            with suppress(OSError):
                os.posix_fadvise(self._stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
