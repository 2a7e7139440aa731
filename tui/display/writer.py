"""Bytes to the terminal by a thread of their own: whoever writes never waits, however long the terminal takes.

What is not yet written is counted, and so is what the terminal has not yet confirmed; a frame is made only when there
is room for one (`has_room`), and no larger than the line carries in a moment (`frame_bytes`). A terminal confirms by
answering a question that follows a frame (DSR, ECMA-48 8.3.35), and by how long that takes the line is measured; until
one has answered, bytes a second are bounded instead.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

QUESTION = b"\x1b[5n"  # "how are you?"
ANSWER = b"\x1b[0n"  # "well"
MAX_PENDING = 1024  # bytes on their way beyond which no frame is begun
LARGE_FRAME = 200  # bytes from which on a frame is followed by a question
PIECE = 1024  # bytes of one write that may be waited for: little, so that the thread can be ended between two
MOST = 65_536  # bytes of one that never is
FRAME_SECONDS = 0.25  # that one frame may take on its way
LEAST_FRAME = 1024  # bytes of one that is cut
LEAD_SECONDS = 0.05  # before the line has carried all: then the next frame may follow
MEASURED_FRAME = 600  # bytes from which on a frame says how fast the line is
FRAME_COMES = 0.1  # seconds that the app may take to make a frame, once there is room
LATE_SECONDS = 0.25  # after which an answer is later than was to be expected
MOST_BUSY = 2.0  # seconds that count of one frame: the line may have been frozen
FADING = 0.7  # what a frame counts when the next has been measured
SILENT_RATE = 24_000  # bytes a second to a terminal that answers nothing
SILENCE = 5.0  # seconds after which a terminal that never answered is not asked again
PATIENCE = 3.0, 30.0  # seconds that one which did answer is waited for: an answer is lost; its line is frozen
MAX_SETTLE = 1.0  # seconds that are waited for answers before another program has the terminal
SLOW_SECONDS, SLOW_ANSWERS = 0.4, 3  # a terminal is slow where so many take longer than that beyond the quickest one


class Question(NamedTuple):
    """What a terminal was asked behind a frame."""

    end: int  # bytes written until then
    size: int  # of the frame
    asked: float  # when
    late: float  # when an answer would be later than the line lets expect


class Writer:
    """Writes to a terminal in a thread. Only `drain`, `settle` and `close` wait; any thread may call it."""

    def __init__(
        self,
        descriptor: int,
        *,
        room: Callable[[], None],
        gone: Callable[[], None],
        rest: Callable[[int], bytes] = lambda size: b"",
    ) -> None:
        """`room` is called, in the thread, when a frame can be made again; `gone` when the terminal takes no more.

        `rest` gives about so many bytes of what can wait for frames; `wake` says that it has some.
        """
        self._descriptor, self._owned = own_descriptor(descriptor)
        self._rest, self._has_rest = rest, False
        self._rest_is_next = False  # a frame went before it: they take turns
        self._room, self._gone = room, gone
        self._lock = threading.Condition()
        self._waiting = bytearray()  # what is not written
        self._asked: deque[Question] = deque()  # those without an answer
        self._written = self._answered = 0  # bytes
        self._answered_at = 0.0
        self._carried = self._busy = 0.0  # bytes that were measured, and seconds that the line had for them
        self._line_free = 0.0  # when it will have carried all that was written, by what is known of it
        self._answers = self._silent = False  # whether the terminal has answered at all, whether it never will
        self._refused = False  # whether somebody waits for room
        self._allowance, self._since = float(SILENT_RATE), time.monotonic()
        self._closing = self.is_gone = False
        self._patience = PATIENCE[0]
        self._given_up = 0  # questions whose answer may come all the same, in the place of another's
        self._late = 0  # answers in a row that were
        self.quickest = self.latest = 0.0  # seconds until an answer
        self._thread = threading.Thread(target=self._run, name="terminal-output", daemon=True)
        self._thread.start()

    @property
    def is_slow(self) -> bool:
        """Whether the terminal takes frames late, again and again: once a laptop may have slept."""
        return self._late >= SLOW_ANSWERS

    @property
    def bytes_per_second(self) -> float | None:
        """What the line carries; None where that is not known, or more than was ever sent."""
        if self._silent:
            return SILENT_RATE
        return self._carried / self._busy if self._busy else None

    @property
    def frame_bytes(self) -> int | None:
        """The most that a frame is to have; None: as much as there is."""
        rate = self.bytes_per_second
        return None if rate is None else max(LEAST_FRAME, int(rate * FRAME_SECONDS))

    def write(self, data: bytes) -> None:
        """Add bytes; nothing is ever left out of what was added."""
        with self._lock:
            if data and not self.is_gone and not self._closing:
                self._waiting += data
                self._lock.notify_all()

    def ask(self, size: int) -> None:
        """Ask the terminal to confirm, after a frame of this size; small ones are confirmed by the next question."""
        with self._lock:
            if (
                self.is_gone
                or self._closing
                or self._silent
                or (size < LARGE_FRAME and self._unconfirmed() < MAX_PENDING)
            ):
                return
            self._waiting += QUESTION
            now, rate = time.monotonic(), self.bytes_per_second
            due = max(now, self._line_free) + (len(self._waiting) / rate if rate else 0.0) + self.quickest
            self._asked.append(Question(self._written + len(self._waiting), size, now, due + LATE_SECONDS))
            self._lock.notify_all()

    def is_clear(self) -> bool:
        """Whether nothing waits that is not confirmed; nobody is called later."""
        with self._lock:
            return self._has_room()

    def has_room(self) -> bool:
        """Whether the next frame would not wait behind others. Where it would, `room` is called later."""
        with self._lock:
            room = self._has_room()
            self._refused = self._refused or not room
            return room

    def want_room(self) -> None:
        """Have `room` called when there is some for one more frame."""
        with self._lock:
            self._refused = True
            self._lock.notify_all()

    def answered(self) -> None:
        """The terminal has answered a question."""
        with self._lock:
            self._answers, self._patience = True, PATIENCE[0]
            if self._asked:
                question, now = self._asked.popleft(), time.monotonic()
                self.latest = now - question.asked
                if self._given_up:
                    self._given_up -= 1  # nobody knows whose it is
                else:
                    if self.quickest and question.size >= MEASURED_FRAME:
                        self._measure(question, now)
                    self.quickest = min(self.quickest or self.latest, self.latest)
                self._late = self._late + 1 if self.latest - self.quickest > SLOW_SECONDS else 0
                self._answered, self._answered_at = question.end, now
                if not self._unconfirmed():
                    self._line_free = now
            self._lock.notify_all()

    def _measure(self, question: Question, now: float) -> None:
        """A frame has arrived: how long the line had only it to carry."""
        busy = now - max(question.asked + self.quickest, self._answered_at)
        self._carried = FADING * self._carried + question.size
        self._busy = FADING * self._busy + min(MOST_BUSY, max(0.001, busy))

    def wake(self) -> None:
        """There is something that can wait for frames."""
        with self._lock:
            self._has_rest = True
            self._lock.notify_all()

    def drain(self, seconds: float) -> bool:
        """Wait until all is written, no longer than that; whether it is."""
        deadline = time.monotonic() + seconds
        with self._lock:
            while self._waiting and not self.is_gone and (left := deadline - time.monotonic()) > 0:
                self._lock.wait(left)
            return not self._waiting

    def settle(self) -> None:
        """Ask no more, and wait for the answers under way, not much longer than the last took."""
        with self._lock:
            self._silent = True
            deadline = time.monotonic() + min(MAX_SETTLE, 0.2 + 2 * self.latest)
            while self._answers and self._asked and not self.is_gone and (left := deadline - time.monotonic()) > 0:
                self._lock.wait(left)

    def close(self, seconds: float = 1.0) -> None:
        """Write what is left, as far as the terminal takes it in this time, and end the thread."""
        self.drain(seconds)
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        self._thread.join(0.5)
        if self._owned and not self._thread.is_alive():
            with suppress(OSError):
                os.close(self._descriptor)

    def _unconfirmed(self) -> int:
        return len(self._waiting) + self._written - self._answered

    def _has_room(self) -> bool:
        now = time.monotonic()
        if self._asked and now - self._asked[0].asked > (self._patience if self._answers else SILENCE):
            self._given_up += len(self._asked) if self._answers else 0
            self._asked.clear()
            self._patience = min(2 * self._patience, PATIENCE[1])
            self._answered = self._written
            self._silent = self._silent or not self._answers
        if self._answers:
            return self._unconfirmed() <= MAX_PENDING or not (self._asked or self._waiting) or self._is_carried(now)
        self._allowance = min(SILENT_RATE, self._allowance + (now - self._since) * SILENT_RATE)
        self._since = now
        return len(self._waiting) <= MAX_PENDING and self._allowance > 0

    def _is_carried(self, now: float) -> bool:
        """Whether the line has carried nearly all, though no answer can be here yet; none is late."""
        if self._waiting or not self._busy or (self._asked and now > self._asked[0].late):
            return False
        return self._line_free - now <= LEAD_SECONDS

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._closing:
                    wanted = self._refused or self._has_rest
                    if wanted and self._has_room():
                        break
                    left = self._line_free - LEAD_SECONDS - time.monotonic()
                    self._lock.wait((left if 0 < left < 0.05 else 0.05) if wanted else None)
                if self._closing:
                    return
                call = self._refused and not self._rest_is_next and self._has_room()
                if call:
                    self._refused, self._rest_is_next = False, self._has_rest
                send_rest = self._has_rest and not self._waiting
                data = bytes(self._waiting[: MOST if self._owned else PIECE])
            if call:
                self._room()
                with self._lock:  # the frame that is asked for goes before what can wait for it
                    self._lock.wait_for(lambda: self._waiting or self._closing, FRAME_COMES if self._has_rest else 0)
                continue
            if send_rest:
                self._send_rest()
                continue
            try:
                count = self._write_some(data)
            except OSError:
                with self._lock:
                    self.is_gone = True
                    self._waiting.clear()
                    self._lock.notify_all()
                self._gone()
                return
            with self._lock:
                if rate := self.bytes_per_second:
                    self._line_free = max(self._line_free, time.monotonic()) + count / rate
                self._written += count
                self._allowance -= count
                del self._waiting[:count]
                self._lock.notify_all()

    def _send_rest(self) -> None:
        """What waited for frames, as a frame of its own; when there is no more, frames may show it."""
        with self._lock:
            self._has_rest = self._rest_is_next = False
        rest = self._rest(self.frame_bytes or MOST)
        if rest:
            self.write(rest)
            self.ask(len(rest))
            self.wake()
        else:
            self._room()

    def _write_some(self, data: bytes) -> int:
        """As much of it as the terminal takes now; 0 where it takes nothing for a moment. Raises OSError."""
        if not data or not (self._owned or self._takes_some()):
            return 0
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            self._takes_some()
            return 0

    def _takes_some(self) -> bool:
        """Wait a moment for the terminal to take more; whether it does. Raises OSError."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        found = poll.poll(100)
        if found and found[0][1] & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            raise OSError("the terminal is gone")
        return bool(found)


def own_descriptor(descriptor: int) -> tuple[int, bool]:
    """The same terminal opened once more, so that not waiting for it is nobody else's affair; whether that could be."""
    with suppress(OSError):
        return os.open(os.ttyname(descriptor), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC), True
    return descriptor, False
