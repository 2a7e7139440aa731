"""Small windows over the screen: a question, a line of text, a list to search, a text to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from tui.listing import fold
from tui.parameters import Parameters
from tui.text import printable, shortened
from tui.widgets.field import Field
from tui.widgets.lines import ForecastLine
from tui.widgets.parameters import ParametersPanel

T = TypeVar("T")
MAX_MATCHES = 200
NAME = 13  # cells before the text of a row that has a name


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


class Rows(Widget):
    """Rows of name and text; what is longer than a line goes on below its beginning."""

    DEFAULT_CSS = "Rows { height: auto; }"

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._rows = rows
        self._folded: tuple[int, list[str]] = (-1, [])  # the width, and the lines that fit it

    def _lines(self, width: int) -> list[str]:
        if self._folded[0] != width:
            lines: list[str] = []
            for name, text in self._rows:
                room = width - NAME if name and width >= 3 * NAME else width
                folded = [line for part in text.split("\n") for line in fold(part, room)] or [""]
                if name and room == width:
                    lines.append(name)
                elif name:
                    folded = [f"{name if not number else '':<{NAME}}{line}" for number, line in enumerate(folded)]
                lines += [line.rstrip() for line in folded]
            self._folded = width, lines
        return self._folded[1]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many lines as it takes."""
        return len(self._lines(width))

    def render(self) -> Content:
        """The lines."""
        return Content("\n".join(self._lines(self.size.width)))


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
            yield Rows(self._rows)

    def action_scroll(self, step: int) -> None:
        """A line up or down."""
        self.query_one(VerticalScroll).scroll_relative(y=step, animate=False)


class ParametersWindow(Window[None]):
    """The parameters where the screen has no room for their panel."""

    BINDINGS = [Binding("q", "close", "Close", show=False)]

    def __init__(
        self,
        parameters: Parameters,
        close_keys: Sequence[str],
        commands: Mapping[str, Callable[[], None]] | None = None,
        hint: str = "",
        *,
        ascii_only: bool = False,
    ) -> None:
        """`commands`: keys of the main screen that work here, too, and a `hint` at them."""
        super().__init__(close_keys)
        self._parameters, self._commands, self._ascii_only = parameters, commands or {}, ascii_only
        self._hint = hint

    def on_key(self, event: events.Key) -> None:
        """Those of the main screen that concern what is set."""
        if event.key in self._commands:
            event.stop()
            self._commands[event.key]()
            self.query_one(ParametersPanel).update()

    def compose(self) -> ComposeResult:
        """The panel in a window."""
        with Vertical(classes="window small") as window:
            window.border_title = Content("parameters")
            window.border_subtitle = Content(f"{self._hint}Esc closes")
            yield ParametersPanel(self._parameters, ascii_only=self._ascii_only)
            yield ForecastLine(ascii_only=self._ascii_only)  # the main screen's may lie below this window
