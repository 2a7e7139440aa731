"""The app in a real pseudo-terminal: what it writes is read, as a terminal does, and counted."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pyte

ROOT = Path(__file__).parent.parent
PATIENCE = 20  # seconds
UNPLAYED = re.compile(rb"\x1b\[\?[0-9]+\$p|\x1b\[[<>=][0-9]*u")  # what the emulator would print
TORN = re.compile(rb"\x1b(?:\[[?<>=0-9;$]*)?\Z")
MODE = re.compile(rb"\x1b\[\?([0-9]+)[hl]")


class Terminal:
    """A program in a pseudo-terminal of its own session, the way a terminal window or sshd starts it."""

    def __init__(self, command: Sequence[str], size: tuple[int, int] = (80, 24), **environment: str) -> None:
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            for number in (signal.SIGINT, signal.SIGTSTP):  # which a background job, such as a test's runner, ignores
                signal.signal(number, signal.SIG_DFL)
            os.environ.update({"TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8", **environment})
            os.execv(sys.executable, [sys.executable, *command])
        self.bytes_read = 0
        self.last_write = time.monotonic()  # when the program last wrote
        self.tail = b""
        self._lock = threading.Lock()
        self._screens = [pyte.Screen(*size), pyte.Screen(*size)]  # the usual one, and that of full-screen programs
        self._streams = [pyte.ByteStream(screen) for screen in self._screens]
        self._alternate = False
        self._set: dict[bytes, bytes] = {}  # the last that was done to each private mode
        self._torn = b""  # the beginning of a sequence whose end has not come
        self._closing = False
        self.resize(*size)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns: int, rows: int) -> None:
        with self._lock:
            for screen in self._screens:
                screen.resize(rows, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def modes(self) -> set[bytes]:
        """What every private mode was set to last: b"\\x1b[?25l" says that the cursor is hidden."""
        return set(self._set.values())

    def attributes(self) -> list[object]:
        """How the terminal treats what is typed, as termios says it."""
        return termios.tcgetattr(self._master)

    def shown(self) -> str:
        """What is on the screen, line by line."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screens[self._alternate].display)

    def wait_to_see(self, text: str) -> None:
        """Until `text` is on the screen, however it came there."""
        self.wait(lambda: text in self.shown())

    def wait_until_quiet(self) -> None:
        """Until the program has written nothing for a moment."""
        self.wait(lambda: time.monotonic() - self.last_write > 0.3)

    def write(self, data: bytes) -> None:
        os.write(self._master, data)

    def wait_for(self, text: bytes) -> None:
        """Until the program has written `text` since the last call."""
        self.wait(lambda: text in self.tail)
        self.tail = b""

    def wait(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, f"waited in vain; the last words: {self.tail[-600:]!r}"
            time.sleep(0.005)

    def close(self) -> None:
        """The window is closed, the connection drops: the program gets SIGHUP and can write no more."""
        self._closing = True
        self._reader.join(PATIENCE)
        os.close(self._master)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def exit_code(self) -> int:
        """Wait for the end; a signal's number is negative."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        raise AssertionError("the program does not end")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def _read(self) -> None:
        while not self._closing:
            if not select.select([self._master], [], [], 0.02)[0]:
                continue
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return
            self.take(data)

    def take(self, data: bytes) -> None:
        """What comes to the terminal."""
        self.bytes_read += len(data)
        self.last_write = time.monotonic()
        data = self._torn + data
        torn = TORN.search(data)
        self._torn = torn[0] if torn else b""
        data = data[: len(data) - len(self._torn)]
        for mode in MODE.finditer(data):
            self._set[mode[1]] = mode[0]
        self.tail = (self.tail + data)[-100_000:]
        self._play(data)

    def _play(self, data: bytes) -> None:
        """Show it, and answer what a terminal answers."""
        for _ in range(data.count(b"\x1b[5n")):
            with suppress(OSError):
                self.write(b"\x1b[0n")
        with self._lock:
            for part in re.split(rb"(\x1b\[\?1049[hl])", UNPLAYED.sub(b"", data)):
                if part.startswith(b"\x1b[?1049"):
                    self._alternate = part.endswith(b"h")
                    self._screens[1].reset()
                else:
                    self._streams[self._alternate].feed(part)
