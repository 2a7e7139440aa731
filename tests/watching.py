"""What a process does while it reads a file: an audit hook that notes what must not happen, and its memory.

https://docs.python.org/3/library/audit_events.html; only Python's own calls are seen, not those of C libraries.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
CONNECTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind")
RUNS = ("pickle.find_class", "builtins.input", "builtins.input/result", "code.__new__", "ctypes.dlopen")
REMOVES = ("os.remove", "os.rmdir", "os.rename", "os.truncate", "os.chmod", "os.link", "os.symlink", "shutil.rmtree")
# Of the machine, beside Python's and the program's own files.
SYSTEM = (
    "/proc/",
    "/sys/",
    "/dev/null",
    "/dev/urandom",
    "/etc/localtime",
    "/usr/share/zoneinfo/",
    "/usr/lib/",
    "/lib/",
)
SYSTEM_FILES = ("/etc/os-release", "/etc/ld.so.cache", "/etc/mime.types", "/usr/share/locale", "/etc/passwd")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass
class Watch:
    """What happened while it was on. `place`: where the input lies; `own`: folders that the program may write to."""

    place: str
    own: tuple[str, ...]
    seen: list[str] = field(default_factory=list)
    busy: bool = False

    def note(self, what: str) -> None:
        if len(self.seen) < 20 and what not in self.seen:
            self.seen.append(what)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            self._opened(*arguments)
        elif event.startswith(STARTS):
            self.note(f"started a process ({event})")
        elif event.startswith(CONNECTS):
            self.note(f"went to the network ({event}: {arguments[1:]!r})"[:200])
        elif event == "exec":
            name = getattr(arguments[0], "co_filename", "")
            if isinstance(name, str) and name.startswith(self.place):
                self.note(f"ran code of the folder ({name.removeprefix(self.place)})")
        elif event in RUNS:
            if event != "ctypes.dlopen" or str(arguments[0]).startswith(self.place):
                self.note(f"ran what it should not ({event} {arguments[:2]!r})"[:200])
        elif event in REMOVES:
            self._changed(event, arguments)

    def _opened(self, path: object, mode: object, flags: object) -> None:
        if not isinstance(path, (str, bytes)):
            return  # a descriptor: it was opened before
        name = os.path.abspath(os.fsdecode(path))
        writes = isinstance(flags, int) and bool(flags & WRITES) if mode is None else str(mode)[:1] not in ("r", "N")
        if writes:
            real = os.path.realpath(name)
            if name != "/dev/null" and not real.startswith(self.own):
                self.note(f"wrote to {name} ({real})" if real != name else f"wrote to {name}")
        elif not name.startswith((self.place, *READABLE)) and name not in SYSTEM_FILES:
            self.note(f"opened {name}")
        elif name.startswith(self.place + "/outside"):
            self.note(f"opened {name.removeprefix(self.place)}, which is not the input's")

    def _changed(self, event: str, arguments: tuple[Any, ...]) -> None:
        for path in arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]:
            if isinstance(path, (str, bytes)):
                name = os.path.abspath(os.fsdecode(path))
                real = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
                if not real.startswith(self.own):
                    self.note(f"{event} {name}")


def _readable() -> tuple[str, ...]:
    paths = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(ROOT), *sysconfig.get_paths().values(), *sys.path}
    paths |= {os.path.realpath(path) for path in paths}
    return (*SYSTEM, *sorted(path.rstrip("/") + "/" for path in paths if len(path) > 1), *sorted(paths - {"", "/"}))


READABLE = _readable()
_watch: Watch | None = None
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    watch = _watch
    if watch is not None and not watch.busy:
        watch.busy = True
        try:
            watch.audit(event, arguments)
        finally:
            watch.busy = False


@contextmanager
def watching(place: Path, own: tuple[Path, ...]) -> Iterator[Watch]:
    """Note what happens inside; for one thing at a time. A hook cannot be taken out again: this is for children."""
    global _installed, _watch
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    watch = _watch = Watch(str(place), tuple(f"{path}/" for path in own))
    try:
        yield watch
    finally:
        _watch = None


def restart_peak() -> None:
    """Forget the highest resident memory so far."""
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")


def memory(name: str = "VmHWM") -> int:
    """A figure of this process's memory in bytes: the highest resident since `restart_peak`."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
        line = next(line for line in stream if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024
