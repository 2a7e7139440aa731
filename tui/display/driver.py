"""Textual's driver for POSIX terminals with output that never blocks and sends only what changed.

Frames come as strips (`show`), are compared with what the terminal shows, and are left out while it is behind, and in
part where they would take a slow line too long; when there is room again the app is asked for one whole frame, of which
again only the difference is sent. Answers to questions are taken out of what is typed. A terminal that is gone is told
to the app once.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

from rich.color import ColorSystem
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual._parser import ParseError
from textual.drivers import linux_driver
from textual.drivers.linux_driver import LinuxDriver
from textual.events import Resize
from textual.geometry import Size

from engine.cli.terminal import TerminalModes, taken
from tui.display.cells import Cells, Piece
from tui.display.graphics import Graphics
from tui.display.writer import ANSWER, LARGE_FRAME, Writer
from tui.paste import PasteSafeParser

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from types import FrameType

    from textual.app import App
    from textual.message import Message

SYNCHRONIZED = 600  # bytes from which on a frame is shown at once rather than as it comes
RESIZED_SECONDS = 0.05  # in which Textual paints a new size; then all is sent again, if that was not all
BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"
FOCUS_EVENTS, NO_FOCUS_EVENTS = "\x1b[?1004h", "\x1b[?1004l"  # a program before us may have left them on
# Answers of terminals to questions, of ours or of a program before us: device attributes, status, version, colours,
# graphics, the keyboard's mode, the window's size (48 is the news of it, and no answer). Cursor positions are left to
# Textual: a key looks like one.
ANSWERS = re.compile(
    rb"\x1b\[[?>=]?[\d;]*c|\x1b\[\??[\d;]*n|\x1b\[\?\d+u|\x1b\[(?!48;)\d[\d;]*t|\x1b\[[\d;]*x"
    rb"|\x1b\](?:\d+;)[^\x07\x1b]{0,2000}(?:\x07|\x1b\\)|\x1b[P_][^\x1b]{0,2000}\x1b\\"
)
# What may become one, or a key, when more arrives.
BEGUN = re.compile(rb"\x1b(?:\[[?>=]?[\d;]*\$?|\](?:\d*(?:;[^\x07\x1b]{0,2000}\x1b?)?)|[P_][^\x1b]{0,2000}\x1b?)?\Z")
LOOK_SECONDS = 0.1  # between two looks at whether the driver is to end


class Watched(Protocol):
    """What the driver asks of the app."""

    def catch_up(self) -> None: ...
    def terminal_gone(self, loop: AbstractEventLoop) -> None: ...
    def holds_terminal(self, modes: TerminalModes | None) -> None: ...


class TerminalDriver(LinuxDriver):
    """Writes differences to the terminal, and never waits for it."""

    # Seconds in which the rest of a sequence may come after an escape character that is not the key. Slow lines part
    # them; Textual's own wait (`tui.profile`) is short.
    rest_seconds = 0.1
    sent_bytes = 0  # of all frames

    def __init__(self, app: App[Any], **options: Any) -> None:
        super().__init__(app, **options)
        self.cells = Cells(ColorSystem.TRUECOLOR)
        self.writer: Writer | None = None
        self.graphics = Graphics(self._wake)
        self._reported_size: Size | None = None

    def show(self, update: LayoutUpdate | ChopsUpdate, cursor: tuple[int, int], size: tuple[int, int]) -> None:
        """Send what of a frame the terminal does not show; nothing while it is behind, and all of it afterwards.

        On a slow line a part of it, and the rest with the next frames.
        """
        if self.writer is None or self.writer.is_gone or not self.writer.has_room():
            return
        app = self._app
        if (self.cells.width, self.cells.height) != size:
            self.cells.color_system = app.console._color_system or ColorSystem.TRUECOLOR
            self.cells.forget(*size)
        was_cut = not self.cells.is_complete
        text = self.cells.update(
            pieces_of(update), cursor, limit=self.writer.frame_bytes, pictures_wait=not self.graphics.is_empty
        )
        if not self.cells.is_complete:
            self.writer.want_room()
        if not text:
            return
        is_cut = was_cut or not self.cells.is_complete  # then what comes first is to be seen first
        if app._sync_available and len(text) >= SYNCHRONIZED and not is_cut:
            text = f"{BEGIN}{text}{END}"
        data = self._encoded(text)
        self.sent_bytes += len(data)
        self.writer.write(data)
        self.writer.ask(len(data))

    @property
    def bytes_per_second(self) -> float | None:
        """What the line carries; None where nobody knows."""
        return None if self.writer is None else self.writer.bytes_per_second

    @property
    def has_room(self) -> bool:
        """Whether a frame would not wait behind others, or their rest."""
        return self.writer is not None and self.cells.is_complete and self.writer.is_clear()

    @property
    def is_slow(self) -> bool:
        """Whether the terminal takes frames late."""
        return self.writer is not None and self.writer.is_slow

    def forget(self) -> None:
        """Something else has written to the terminal: the next frame is sent whole."""
        self.cells.forget(self.cells.width, self.cells.height)

    def write(self, data: str) -> None:
        """Control sequences and the like; never left out, so nothing large belongs here."""
        if self.writer is not None:
            self.writer.write(self._encoded(data.replace(FOCUS_EVENTS, NO_FOCUS_EVENTS)))

    def start_application_mode(self) -> None:
        """As Textual does, but with our writer."""
        setattr(linux_driver, "WriterThread", self._start_writer)  # noqa: B010 (not declared as ours to set)
        super().start_application_mode()  # type: ignore[no-untyped-call]
        self.graphics.start()
        self.forget()
        if self.writer is not None:
            self.writer.ask(LARGE_FRAME)  # how long the way is: the first frame says how fast the line is
        resized = signal.getsignal(signal.SIGWINCH)

        def on_resize(number: int, frame: FrameType | None) -> None:
            self._loop.call_soon_threadsafe(self._resized)
            if callable(resized):
                resized(number, frame)

        signal.signal(signal.SIGWINCH, on_resize)
        if self.attrs_before is not None:
            cast("Watched", self._app).holds_terminal(taken(self.fileno, self.attrs_before))

    def process_message(self, message: Message) -> None:
        """Pass on what the terminal said; news of another size (in band) makes what it shows unknown."""
        if isinstance(message, Resize):
            if self._reported_size not in (None, message.size):
                self._loop.call_soon_threadsafe(self._resized)
            self._reported_size = message.size
        super().process_message(message)

    def _resized(self) -> None:
        """A terminal cuts its lines, even if it has the old size again before the app has heard of another."""
        self.forget()
        # After Textual's own frame of another size, if there is one: then nothing is left to be sent.
        self._app.call_later(self._app.set_timer, RESIZED_SECONDS, cast("Watched", self._app).catch_up)

    def stop_application_mode(self) -> None:
        """Leave the terminal as it was found."""
        self.write(self.graphics.stop().decode() + "\x1b[m")
        super().stop_application_mode()
        cast("Watched", self._app).holds_terminal(None)

    def disable_input(self) -> None:
        """Read no more, when the terminal has said what it was asked: whoever reads next would get the answer."""
        if self.writer is not None:
            self.writer.settle()
        super().disable_input()

    def close(self) -> None:
        """Write what is left, and end the writer; a terminal that takes nothing is given up after a second."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _start_writer(self, file: Any) -> _Started:
        loop, app = self._loop, cast("Watched", self._app)
        self.writer = Writer(
            file.fileno(), room=self._can_paint, gone=lambda: app.terminal_gone(loop), rest=self.graphics.take
        )
        return _Started()

    def _can_paint(self) -> None:
        """From any thread: by the app's own messages, in whose context widgets can be painted."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._app.call_later, cast("Watched", self._app).catch_up)

    def _wake(self) -> None:
        if self.writer is not None:
            self.writer.wake()

    def _encoded(self, text: str) -> bytes:
        return text.encode(getattr(sys.__stderr__, "encoding", None) or "utf-8", "replace")

    def run_input_thread(self) -> None:
        """Read what is typed, until the driver is to end or the terminal is gone."""
        parser = PasteSafeParser(self._debug)
        decode = getincrementaldecoder("utf-8")("replace").decode
        held = b""  # the beginning of what may be an answer
        try:
            while not self.exit_event.is_set():
                ready = select.select([self.fileno], [], [], self.rest_seconds if held else LOOK_SECONDS)[0]
                data = os.read(self.fileno, 4096) if ready else b""
                if ready and not data:
                    raise OSError("end of file")
                typed, held = self._without_answers(held + data, final=not ready)
                if typed:
                    for message in parser.feed(decode(typed)):
                        self.process_message(message)
                for message in parser.tick():
                    self.process_message(message)
        except OSError:
            cast("Watched", self._app).terminal_gone(self._loop)
        finally:
            with suppress(EOFError, ParseError):
                list(parser.feed(""))

    def _without_answers(self, data: bytes, *, final: bool) -> tuple[bytes, bytes]:
        """What was typed, and what may become an answer; `final`: nothing more came."""
        if b"\x1b" not in data:
            return data, b""
        if self.writer is not None:
            for _ in range(data.count(ANSWER)):
                self.writer.answered()
        data = ANSWERS.sub(b"", data)
        begun = None if final else BEGUN.search(data)
        return (data[: begun.start()], data[begun.start() :]) if begun else (data, b"")


class _Started:
    """What Textual's driver calls of its own writer."""

    def start(self) -> None: ...


def pieces_of(update: LayoutUpdate | ChopsUpdate) -> Iterator[Piece]:
    """A frame of Textual's compositor as pieces of rows."""
    if isinstance(update, LayoutUpdate):
        for row, line in enumerate(update.strips, update.region.y):
            column = update.region.x
            for strip in line:
                yield row, column, strip
                column += strip.cell_length
        return
    for row, first, last in update.spans:
        for end, (column, whole) in zip(update.chop_ends[row], update.chops[row].items(), strict=False):
            if whole is not None and column <= last and end > first:
                yield row, column, whole if end <= last else whole.crop(0, last - column)
