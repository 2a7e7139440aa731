"""Bytes from the model hub into its cache: several files at a time, resumed, counted and checked.

They are received here, over plain HTTP with ranges, and not by the hub's library: since its version 1.18 it keeps no
partial file (each try begins at zero, under a name of its own), so that a 10 GB file over a line that breaks now and
then might never end. Counting is exact in this way, too: the library tells of 10 MB at a time over HTTP, and of what
its other protocol (Xet) has put together at a pace of its own. What lies where follows the library's layout: blobs are
named by their content, snapshots by their commit, and a lock that the library takes as well guards each blob.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import IO, Any

from engine.families.sources import Repository
from engine.files import PUBLIC, open_own, sync_folder
from engine.folders import APP
from engine.request import RequestError
from engine.text import printable, size

WORKERS = 4  # files at a time: one connection alone seldom fills a fast line
RATE_SECONDS = 10.0  # the speed is that of the last ten seconds
PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)  # before another try, as long as nothing arrives
LEAVE_SECONDS = 1.0  # how long threads are waited for that are to stop
READ_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the hub lists it. `etag` names its blob: its sha256, or git's sha1 of a small one."""

    path: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit, and what is needed of it; without files, `snapshot` is known to be complete."""

    repository: Repository
    snapshot: Path
    files: tuple[HubFile, ...] = ()

    @property
    def blobs(self) -> Path:
        return self.snapshot.parent.parent / "blobs"


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a pull is. `done_bytes` counts what was here before; the speed does not."""

    done_bytes: int
    total_bytes: int
    bytes_per_second: float
    seconds_left: float | None  # None: nothing arrives
    file: str


def present_bytes(listing: Listing, file: HubFile) -> int:
    """How much of a file is here, in a partial file too."""
    blob = listing.blobs / file.etag
    if file.size in (length(blob), length(listing.snapshot / file.path)):
        return file.size
    partial = length(_partial(blob)) or 0
    return partial if partial <= file.size else 0


def length(path: Path) -> int | None:
    """A file's size in bytes; None where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def reason(error: BaseException) -> str:
    """What an error says, on one line, not too long."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def connection_errors() -> tuple[type[Exception], ...]:
    """What the library's HTTP client raises; it is another client since version 2 of the library."""
    from huggingface_hub.errors import HfHubHTTPError

    client_error: type[Exception] = HfHubHTTPError.__bases__[0]
    return (client_error, ConnectionError, TimeoutError)


class Transfer:
    """The threads that bring files, what has arrived so far, and the first error.

    `explained` turns an error into the one to raise. `other_bytes` are counted as done.
    """

    def __init__(
        self,
        listings: tuple[Listing, ...],
        other_bytes: int,
        explained: Callable[[Exception, Repository], Exception],
    ) -> None:
        self.finished = Event()  # with or without an error
        self._explained = explained
        self._stop = Event()
        self._lock = Lock()
        self._error: BaseException | None = None
        work = [(listing, file) for listing in listings for file in listing.files]
        self._waiting = deque(sorted(work, key=lambda entry: -entry[1].size))
        self._other = other_bytes
        self._total = other_bytes + sum(file.size for _, file in work)
        self._have = {listing.snapshot / file.path: present_bytes(listing, file) for listing, file in work}
        self._arrived = 0
        self._samples = deque([(time.monotonic(), 0)])
        self._in_work: dict[Path, str] = {}
        self._running = min(WORKERS, len(work))
        self._threads = [Thread(target=self._work, name="pull", daemon=True) for _ in range(self._running)]
        if not self._threads:
            self.finished.set()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Stop what still runs. A thread that hangs in the network ends by itself, with its next bytes or time-out."""
        self._stop.set()
        deadline = time.monotonic() + LEAVE_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def progress(self) -> PullProgress:
        now = time.monotonic()
        with self._lock:
            done = self._other + sum(self._have.values())
            arrived = self._arrived
            file = next(iter(self._in_work.values()), "")  # the largest one
        self._samples.append((now, arrived))
        while len(self._samples) > 2 and now - self._samples[1][0] >= RATE_SECONDS:
            self._samples.popleft()
        began, before = self._samples[0]
        rate = (arrived - before) / (now - began) if now > began else 0.0
        return PullProgress(done, self._total, rate, (self._total - done) / rate if rate else None, file)

    def _work(self) -> None:
        try:
            while not self._stop.is_set() and self._waiting:
                try:
                    listing, file = self._waiting.popleft()
                except IndexError:  # another thread was faster
                    return
                try:
                    self._fetch(listing, file)
                except _Stopped:
                    return
                except Exception as error:
                    raise self._explained(error, listing.repository) from None
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            self._stop.set()
            self.finished.set()
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self.finished.set()

    def _fetch(self, listing: Listing, file: HubFile) -> None:
        """Bring one file, unless another program does so at the same time: then that one's is taken."""
        blob, pointer = listing.blobs / file.etag, listing.snapshot / file.path
        local = listing.blobs.parent
        lock = local.parent / ".locks" / local.name / f"{file.etag}.lock"
        for folder in (blob.parent, lock.parent, pointer.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if lock.is_symlink():  # older versions of the lock's library would empty what it leads to
            raise OSError(errno.ELOOP, "it is a link, and nothing is written through one", str(lock))
        with self._lock:
            self._in_work[pointer] = file.path
        with self._locked(lock):
            if length(pointer) != file.size:
                if length(blob) != file.size:
                    self._receive(listing, file, _partial(blob), pointer)
                    os.replace(_partial(blob), blob)
                    sync_folder(blob.parent)
                _point(blob, pointer)
        with self._lock:
            self._have[pointer] = file.size
            del self._in_work[pointer]

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        with ExitStack() as stack:
            while True:
                self._raise_if_stopped()
                with suppress(TimeoutError):  # as which the lock's time-out counts
                    stack.enter_context(WeakFileLock(path, timeout=0.5))
                    break
            yield

    def _receive(self, listing: Listing, file: HubFile, partial: Path, key: Path) -> None:
        """Go on with a partial file until it is whole, and right."""
        from huggingface_hub import constants, hf_hub_url

        commit = listing.snapshot.name
        url = hf_hub_url(listing.repository.id, file.path, revision=commit, endpoint=constants.ENDPOINT)
        with open(open_own(partial, os.O_CREAT | os.O_RDWR | os.O_APPEND, PUBLIC), "a+b") as stream:
            arriving = _Arriving(file, stream)
            for _ in arriving.resume():
                self._raise_if_stopped()
            for _ in range(2):
                self._receive_rest(url, arriving, key)
                if arriving.is_right():
                    stream.flush()
                    os.fsync(stream.fileno())  # a blob is taken for whole by its length, after a power cut too
                    return
                arriving.restart()
        raise RequestError(
            "model",
            f"{file.path} of {listing.repository.page} came damaged twice: its content is not what the hub lists; "
            "a proxy, the memory or the disk changes it.",
            machine=True,
        )

    def _receive_rest(self, url: str, arriving: _Arriving, key: Path) -> None:
        """Until all bytes are here; where a connection breaks off, the next one goes on."""
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        failures, total = 0, arriving.file.size
        while arriving.have < total:
            before, said = arriving.have, "it ended too early"
            try:
                self._receive_some(url, arriving, key)
            except _Interrupted as error:
                said = str(error)
            except (HfHubHTTPError, OfflineModeIsEnabled):
                raise
            except connection_errors() as error:
                said = reason(error)
            if arriving.have > before:
                failures = 0
            if arriving.have < total:
                if failures == len(PAUSES_SECONDS):
                    raise RequestError(
                        "model",
                        f"the connection broke off {failures + 1} times in {arriving.file.path} ({said}); what arrived "
                        f"of it, {size(arriving.have)} of {size(total)}, is kept: pull again to go on.",
                        machine=True,
                    )
                if self._stop.wait(PAUSES_SECONDS[failures]):
                    raise _Stopped
                failures += 1

    def _receive_some(self, url: str, arriving: _Arriving, key: Path) -> None:
        """One request for the rest of a file, at the hub itself: where it forwards to is valid for a while only."""
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        # Packed for the way, a file's length would be unknown, and the rest of it could not be asked for.
        headers = {**build_hf_headers(library_name=APP), "Accept-Encoding": "identity"}
        if arriving.have:
            headers["Range"] = f"bytes={arriving.have}-"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            status = response.status_code
            if status in (408, 416, 429) or status >= 500:
                if status == 416:  # what is here is no beginning of it
                    arriving.restart()
                raise _Interrupted(f"HTTP {status}")
            hf_raise_for_status(response)
            first, total = _range(status, response.headers)
            if first == 0 and arriving.have:  # the whole file, though the rest was asked for
                arriving.restart()
            if first != arriving.have:
                raise _Interrupted(f"the answer begins at byte {first}, not {arriving.have}")
            if total is not None and total != arriving.file.size:
                raise _wrong_size(arriving.file, str(total))
            self._count(arriving, key, 0)
            for piece in response.iter_bytes():
                if arriving.have + len(piece) > arriving.file.size:
                    arriving.restart()
                    raise _wrong_size(arriving.file, "more")
                arriving.append(piece)
                self._count(arriving, key, len(piece))
                self._raise_if_stopped()

    def _count(self, arriving: _Arriving, key: Path, count: int) -> None:
        with self._lock:
            self._have[key] = arriving.have
            self._arrived += count

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise _Stopped


class _Stopped(Exception):
    """The pull was given up."""


class _Interrupted(Exception):
    """The hub's answer ends in a way that is worth another try."""


class _Arriving:
    """A file on its way: how much of it is on the disk, and the hash of that much."""

    def __init__(self, file: HubFile, stream: IO[bytes]) -> None:
        self.file = file
        self.have = 0
        self._stream = stream  # appends
        self._digest = _digest(file)

    def resume(self) -> Iterator[None]:
        """Take over what an earlier pull left, a piece at a time."""
        there = os.fstat(self._stream.fileno()).st_size
        self._stream.seek(0)
        while piece := self._stream.read(min(READ_BYTES, there - self.have)):
            self._digest.update(piece)
            self.have += len(piece)
            yield

    def restart(self) -> None:
        self._stream.truncate(0)
        self.have = 0
        self._digest = _digest(self.file)

    def append(self, piece: bytes) -> None:
        self._stream.write(piece)
        self._digest.update(piece)
        self.have += len(piece)

    def is_right(self) -> bool:
        return self._digest.hexdigest() == self.file.etag


def _digest(file: HubFile) -> hashlib._Hash:
    if len(file.etag) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)  # git's name of a content


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")  # so older versions of the library have it: theirs go on here


def _point(blob: Path, pointer: Path) -> None:
    """Put a blob into a snapshot: as a link, or itself where there are no links (Windows without the right to)."""
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        os.replace(blob, pointer)


def _range(status: int, headers: Any) -> tuple[int, int | None]:
    """The first byte that an answer has, and the whole file's length if it says so."""
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if match is None:
            raise _Interrupted("a part of the file that is not named")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    said = headers.get("Content-Length", "")
    packed = headers.get("Content-Encoding", "identity") != "identity"
    return 0, int(said) if said.isdigit() and not packed else None


def _wrong_size(file: HubFile, got: str) -> RequestError:
    return RequestError(
        "model",
        f"{file.path} has {file.size} bytes in the hub's list, and {got} came; something on the way to the hub (a "
        "proxy?) answers in its place.",
        machine=True,
    )
