"""The prompt: several lines, Enter generates, Up and Down at the edges walk through earlier prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from rich.cells import cell_len
from rich.text import Text
from textual import events, on
from textual._cells import cell_width_to_column_index
from textual.binding import BindingsMap
from textual.content import Content
from textual.document._document import DocumentBase
from textual.document._document_navigator import DocumentNavigator
from textual.document._wrapped_document import WrappedDocument
from textual.geometry import Size
from textual.message import Message
from textual.widgets import TextArea

from tui.bindings import bindings_of, types
from tui.text import clean, counted, marked, unseen

PLACEHOLDER = "what the picture shows"  # short: the first letter takes it away, on slow lines too
How = Literal["as usual", "new seed", "first"]

EDITING = BindingsMap(TextArea.BINDINGS).key_to_bindings
MAX_UNDONE = 1000  # steps: words, mostly


MAX_NAMED = 3  # of the characters that cannot be seen


class _Painted:
    """A document as it is painted, for all that counts cells: each character that cannot be seen is a mark."""

    def __init__(self, document: DocumentBase) -> None:
        self._document = document

    def __getattr__(self, name: str) -> Any:
        return getattr(self._document, name)

    @property
    def lines(self) -> list[str]:
        return [marked(line)[0] for line in self._document.lines]

    def get_line(self, index: int) -> str:
        return marked(self._document.get_line(index))[0]

    __getitem__ = get_line


class PromptArea(TextArea):
    """What the person writes. Nothing typed is lost: walking through the history keeps the draft."""

    BINDINGS = bindings_of("prompt")

    @dataclass
    class Submitted(Message):
        """The person wants a picture of the prompt as it was when the key was pressed; `how` is the key's meaning."""

        text: str
        how: How

    def __init__(self, history: Callable[[], Sequence[str]], leave: Callable[[], None], *, id: str) -> None:
        """`history` gives the earlier prompts, newest first; `leave` moves the focus to the pictures, at once."""
        super().__init__(
            id=id,
            soft_wrap=True,
            tab_behavior="focus",
            highlight_cursor_line=False,
            compact=True,
            max_checkpoints=MAX_UNDONE,
        )
        self.placeholder = PLACEHOLDER
        self.cursor_blink = False  # a blinking cursor writes all the time
        self._history = history
        self._leave = leave
        self._left = False  # until the focus comes back
        self._earlier: Sequence[str] = ()  # while walking
        self._place = -1  # in the history; -1: the draft
        self._draft = ""

    # What cannot be seen (overrides of the direction, zero-width characters) is painted as a mark and counted, or a
    # prompt would say something else than what is read. The text itself stays as it is.

    def _set_document(self, text: str, language: str | None) -> None:
        super()._set_document(text, language)
        self.wrapped_document.document = cast("DocumentBase", _Painted(self.document))
        self.navigator = DocumentNavigator(self.wrapped_document)
        self._rewrap_and_refresh_virtual_size()

    def get_line(self, line_index: int) -> Text:
        """A line as it is painted."""
        line, hidden = marked(self.document.get_line(line_index))
        text = Text(line, end="", no_wrap=True)
        for place in hidden:
            text.stylize("reverse", place, place + 1)
        return text

    def get_column_width(self, row: int, column: int) -> int:
        """The cells before a column."""
        return cell_len(self.get_line(row).plain[:column])

    def cell_width_to_column_index(self, cell_width: int, row_index: int) -> int:
        """The column at so many cells."""
        return cell_width_to_column_index(self.get_line(row_index).plain, cell_width, self.indent_width)

    # Textual measures and paints a new width before it wraps the lines for it.

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The lines that the text takes at this width."""
        wrapped, columns = self.wrapped_document, width - 1  # one for the cursor
        if columns - wrapped._width in (0, self.scrollbar_size_vertical):
            return wrapped.height
        return WrappedDocument(wrapped.document, columns, self.indent_width).height

    def on_resize(self) -> None:
        """Paint again, for it may be as many lines."""
        self.refresh()

    @on(TextArea.Changed)
    def _count_hidden(self) -> None:
        hidden = [line[place] for line in self.document.lines for place in unseen(line)]
        names = [f"U+{ord(character):04X}" for character in dict.fromkeys(hidden)]
        listed = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
        self.border_subtitle = Content(f"{counted(len(hidden), 'hidden character')}: {listed}" if hidden else "")

    def put(self, text: str) -> None:
        """Replace the whole text, which becomes the draft; the cursor goes to its end."""
        self._place = -1
        self._replace(clean(text))

    def _replace(self, text: str) -> None:
        # An edit, not `load_text`: undo brings back what was there.
        self.replace(text, self.document.start, self.document.end)
        self.move_cursor(self.document.end)

    # The app runs a key's action at once, while letters that were typed before it may still wait in this widget's
    # queue, as they do when both arrive in one packet: every action here queues behind them.

    def submit(self, how: How = "as usual") -> None:
        """Post `Submitted` with all that was typed until now."""
        self.call_later(lambda: self.post_message(self.Submitted(self.text, how)))

    def action_submit(self) -> None:
        """Generate."""
        self.submit()

    def action_newline(self) -> None:
        """A new line."""
        self.call_later(self._break_line)

    def _break_line(self) -> None:
        self.replace("\n", *self.selection, maintain_selection_offset=False)

    def action_leave(self) -> None:
        """To the pictures."""
        self.call_later(self._go)

    def _go(self) -> None:
        self._left = True
        self._leave()

    def on_focus(self) -> None:
        """What is typed from now on is text again."""
        self._left = False

    def action_history(self, step: int) -> None:
        """An earlier (-1) or later (1) prompt, from the first or the last line only."""
        self.call_later(self._walk, step)

    def _walk(self, step: int) -> None:
        row = self.wrapped_document.location_to_offset(self.cursor_location).y
        edge = 0 if step < 0 else self.wrapped_document.height - 1
        if row != edge or not self.selection.is_empty:
            self._move(step)
            return
        if self._place >= 0 and self.text != clean(self._earlier[self._place]):
            self._place = -1  # an earlier prompt that was changed is the draft now
        if self._place < 0:
            if step > 0:
                self._move(step)
                return
            self._draft, self._earlier = self.text, [text for text in self._history() if text != self.text]
        place = self._place - step
        if place >= len(self._earlier):
            return
        self._place = max(-1, place)
        self._replace(self._draft if self._place < 0 else clean(self._earlier[self._place]))
        if step < 0:
            self.move_cursor(self.document.start)

    def _move(self, step: int) -> None:
        """As the keys would that history took: Textual does not ask the base class after an action was skipped."""
        if step < 0:
            self.action_cursor_up()
        else:
            self.action_cursor_down()

    def action_undo(self) -> None:
        """One word, or one change of another kind."""
        self.call_later(self.undo)

    def action_clear(self) -> None:
        """All of it away."""
        self.call_later(self.put, "")

    def action_redo(self) -> None:
        """What was undone."""
        self.call_later(self.redo)

    async def _on_key(self, event: events.Key) -> None:
        if self._left:  # it came behind the key that left, while the app was busy
            event.stop()
            event.prevent_default()
            self.app.post_message(events.Key(event.key, event.character))
            return
        if event.is_printable and not types(event):
            event.prevent_default()  # it goes on to the bindings
            return
        for binding in EDITING.get(event.key, ()):
            # Here and not by way of the app, or the Enter behind a Backspace in one packet would overtake it.
            if await self.app.run_action(binding.action, self):
                event.stop()
                event.prevent_default()
                return
        await super()._on_key(event)
        if event.key == "space":
            self.history.checkpoint()  # a word is what undo takes back: a long text would be gone at once

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()  # Textual would run TextArea's own handler as well
        await super()._on_paste(events.Paste(clean(event.text)))
