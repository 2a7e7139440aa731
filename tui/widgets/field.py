"""One line of text in a dialog."""

from __future__ import annotations

from textual import events
from textual.widgets import Input

from tui.bindings import types
from tui.text import clean


class Field(Input):
    """Textual's Input: without blinking, which writes all the time, and with nothing in it that is no text."""

    def __init__(self, value: str = "", *, placeholder: str = "", id: str | None = None) -> None:
        super().__init__(clean(value), placeholder=placeholder, compact=True, id=id)
        self.cursor_blink = False

    async def _on_key(self, event: events.Key) -> None:
        if event.is_printable and not types(event):
            event.prevent_default()  # Alt and a letter is a command, or nothing
            return
        await super()._on_key(event)

    def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()  # Textual would run Input's own handler as well
        super()._on_paste(events.Paste(clean(event.text)))
