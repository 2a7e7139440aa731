"""One line of text in a dialog."""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.widgets import Input

from tui.bindings import types
from tui.text import clean, marked


class Field(Input):
    """Textual's Input: without blinking, which writes all the time, and with nothing in it that is no text."""

    def __init__(self, value: str = "", *, placeholder: str = "", id: str | None = None) -> None:
        super().__init__(clean(value), placeholder=placeholder, compact=True, id=id)
        self.cursor_blink = False

    @property
    def _value(self) -> Text:
        """The text as it is painted: what cannot be seen is a mark, or it would say something else than is read."""
        line, hidden = marked(self.value)
        text = Text(line, no_wrap=True, overflow="ignore", end="")
        for place in hidden:
            text.stylize("reverse", place, place + 1)
        return text

    def _position_to_cell(self, position: int) -> int:
        return cell_len(marked(self.value)[0][:position])

    async def _on_key(self, event: events.Key) -> None:
        if event.is_printable and not types(event):
            event.prevent_default()  # Alt and a letter is a command, or nothing
            return
        await super()._on_key(event)

    def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()  # Textual would run Input's own handler as well
        super()._on_paste(events.Paste(clean(event.text)))
