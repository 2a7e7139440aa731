"""What the terminal sends, read with more care than Textual's parser takes.

Pasted text is text: what follows an escape character in a paste would be taken for keys: commands. Most terminals take
escape characters out of what is pasted; tmux and some others hand them on. And Esc with Space behind it in one packet,
or with a sign that is a command, is both: the Esc would be dropped. With a letter it may be Alt, too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from textual._xterm_parser import XTermParser
from textual.events import Key
from textual.message import Message

START, END, ESCAPE = "\x1b[200~", "\x1b[201~", "\x1b"


class PasteSafeParser(XTermParser):
    """Textual's parser, fed without escape characters between the two marks of a bracketed paste."""

    def __init__(self, debug: bool = False) -> None:
        super().__init__(debug)
        self._pasting = False
        self._held = ""  # what may be the beginning of the end mark, until the next bytes come
        self._passed = ""  # the last characters that were handed on: they may be the beginning of the start mark

    def feed(self, data: str) -> Iterable[Message]:
        """Messages for what the terminal sent; an empty text is the end of it."""
        if not data:
            return super().feed(data)
        parts: list[str] = []
        data, self._held = self._held + data, ""
        while data:
            if self._pasting:
                text, end, data = data.partition(END)
                if not end:
                    held = _beginning_of_end(text)
                    text, self._held = text[: len(text) - held], text[len(text) - held :]
                parts.append(text.replace(ESCAPE, "") + end)
                self._pasting = not end
            else:
                both = self._passed + data  # nothing is held back here: a lone escape must not wait
                place = both.find(START)
                if place >= 0:
                    after = place + len(START) - len(self._passed)
                    parts.append(data[:after])
                    data, self._passed, self._pasting = data[after:], "", True
                else:
                    parts.append(data)
                    data, self._passed = "", both[1 - len(START) :]
        return super().feed(text) if (text := "".join(parts)) else ()

    def _sequence_to_key_events(self, sequence: str, alt: bool = False) -> Iterable[Key]:
        """`alt`: an escape character came before, and it begins no sequence (`[` may be the half of one)."""
        for key in super()._sequence_to_key_events(sequence, alt):
            if alt and key.is_printable and sequence != "[" and not key.key.startswith("alt+"):
                yield Key("escape", ESCAPE)
            yield key


def make_pastes_safe() -> None:
    """Let the terminal's driver use our parser. Call it before the app runs."""
    if sys.platform == "win32":
        from textual.drivers import win32 as driver
    else:
        from textual.drivers import linux_driver as driver
    setattr(driver, "XTermParser", PasteSafeParser)  # noqa: B010 (it is not declared as theirs to set)


def _beginning_of_end(text: str) -> int:
    """How many characters at the end of `text` may begin the end mark."""
    return next((count for count in range(min(len(END) - 1, len(text)), 0, -1) if END.startswith(text[-count:])), 0)
