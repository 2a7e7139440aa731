"""Small windows over the screen: a question, a line of text, a list to search, a text to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from tui.parameters import Parameters
from tui.text import printable, shortened
from tui.widgets.field import Field
from tui.widgets.parameters import ParametersPanel

T = TypeVar("T")
MAX_MATCHES = 200


class Window(ModalScreen[T | None]):
    """Closed without an answer (None) by Esc, and by the keys that opened it."""

    BINDINGS = [Binding("escape", "close", "Close", show=False)]

    def __init__(self, close_keys: Sequence[str] = ()) -> None:
        super().__init__()
        self._close_keys = close_keys

    def on_key(self, event: events.Key) -> None:
        """The keys that opened it."""
        if event.key in self._close_keys:
            event.stop()
            self.dismiss()

    def action_close(self) -> None:
        """Without an answer."""
        self.dismiss()


class Confirm(ModalScreen[bool]):
    """A question; y or Enter says yes, anything else no."""

    BINDINGS = [
        Binding("y,enter", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """The question and the keys."""
        with Vertical(classes="window small"):
            yield Static(Content(printable(self._question)))
            yield Static(Content("y  yes     n  no"), classes="muted")

    def action_answer(self, yes: bool) -> None:
        """Close with the answer."""
        self.dismiss(yes)


class AskText(Window[str]):
    """One line of text."""

    def __init__(self, question: str, text: str = "") -> None:
        super().__init__()
        self._question, self._text = question, text

    def compose(self) -> ComposeResult:
        """The question and the field."""
        with Vertical(classes="window small"):
            yield Static(Content(printable(self._question)))
            yield Field(self._text)

    @on(Input.Submitted)
    def _done(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)


class SearchPrompts(Window[str]):
    """Earlier prompts, searched by letters in order; Enter takes one over."""

    BINDINGS = [Binding("down", "move(1)", show=False), Binding("up", "move(-1)", show=False)]

    def __init__(self, prompts: Sequence[str]) -> None:
        super().__init__()
        self._prompts = prompts
        self._found: list[str] = []

    def compose(self) -> ComposeResult:
        """The field and the list."""
        with Vertical(classes="window large"):
            yield Field(placeholder="search earlier prompts")
            yield OptionList(markup=False, compact=True)

    def on_mount(self) -> None:
        """Everything, newest first."""
        self.query_one(OptionList).can_focus = False
        self._show("")

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        self._show(event.value.strip())

    def _show(self, query: str) -> None:
        self._found = found(query, self._prompts)
        del self._found[MAX_MATCHES:]
        options = self.query_one(OptionList)
        options.set_options([Option(Content(shortened(prompt, 400))) for prompt in self._found])
        options.highlighted = 0 if self._found else None

    def action_move(self, step: int) -> None:
        """The list follows the arrows while the field has the focus."""
        options = self.query_one(OptionList)
        if step > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

    @on(Input.Submitted)
    def _submitted(self) -> None:
        place = self.query_one(OptionList).highlighted
        self.dismiss(self._found[place] if place is not None and self._found else None)

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._found[event.option_index])


def found(query: str, prompts: Sequence[str]) -> list[str]:
    """The prompts that match, in their order: first those with all words of the query, then those with its letters.

    Its letters must come in their order, with anything between them. The work grows with the prompts' length only.
    """
    words, letters = query.casefold().split(), "".join(query.casefold().split())
    with_words, with_letters = [], []
    for prompt in prompts:
        text = prompt.casefold()
        if all(word in text for word in words):
            with_words.append(prompt)
        elif _in_order(letters, text):
            with_letters.append(prompt)
    return with_words + with_letters


def _in_order(letters: str, text: str) -> bool:
    place = -1
    for letter in letters:
        place = text.find(letter, place + 1)
        if place < 0:
            return False
    return True


class ReadText(Window[None]):
    """Something to read: rows of name and text. The texts come from files, too: they are shown as they are."""

    BINDINGS = [
        Binding("q,enter", "close", "Close", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("up,k", "scroll(-1)", show=False),
    ]

    def __init__(self, title: str, rows: Sequence[tuple[str, str]], close_keys: Sequence[str] = ()) -> None:
        super().__init__(close_keys)
        self._title, self._rows = title, rows

    def compose(self) -> ComposeResult:
        """The rows, which scroll."""
        with VerticalScroll(classes="window large") as window:
            window.border_title = Content(printable(self._title))
            window.border_subtitle = Content("Esc closes")
            lines = []
            for name, text in self._rows:
                head, *rest = [printable(line) for line in text.split("\n")] or [""]
                lines.append(f"{name:<12} {head}" if name else head)
                lines += [" " * 13 * bool(name) + line for line in rest]
            yield Static(Content("\n".join(lines)))

    def on_mount(self) -> None:
        """No note lies over the text."""
        self.app.clear_notifications()

    def action_scroll(self, step: int) -> None:
        """A line up or down."""
        self.query_one(VerticalScroll).scroll_relative(y=step, animate=False)


class ParametersWindow(Window[None]):
    """The parameters where the screen has no room for their panel."""

    BINDINGS = [Binding("q", "close", "Close", show=False)]

    def __init__(self, parameters: Parameters, close_keys: Sequence[str], *, ascii_only: bool = False) -> None:
        super().__init__(close_keys)
        self._parameters, self._ascii_only = parameters, ascii_only

    def compose(self) -> ComposeResult:
        """The panel in a window."""
        with Vertical(classes="window small") as window:
            window.border_title = Content("parameters")
            window.border_subtitle = Content("Esc closes")
            yield ParametersPanel(self._parameters, ascii_only=self._ascii_only)
