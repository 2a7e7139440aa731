"""Presets in the app: what is set is kept under a name, and taken over from one. The folder is read in a thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from engine import presets
from engine.request import RequestError
from engine.text import quoted
from tui.screens.dialogs import Confirm, Window, found
from tui.shared import Shared
from tui.text import printable, shortened
from tui.widgets.field import Field
from tui.widgets.parameters import ParametersPanel

MAX_ROW = 400  # characters; the list cuts what does not fit


class NamePreset(Window[str]):
    """A name for what is set; those that there are can be chosen by the arrows, and it is said what is replaced."""

    BINDINGS = [Binding("down", "move(1)", show=False), Binding("up", "move(-1)", show=False)]

    def __init__(self, values: Mapping[str, Any], known: Mapping[str, str]) -> None:
        """`known`: of each name what it says, in words."""
        super().__init__()
        self._values, self._known = values, known
        self._names: list[str] = []

    def compose(self) -> ComposeResult:
        """The field, what will happen, and the names."""
        with Vertical(classes="window large") as window:
            window.border_title = Content("keep as a preset")
            window.border_subtitle = Content("Enter keeps  Esc closes")
            yield Static(Content(printable(presets.described(self._values))), classes="muted")
            yield Field(placeholder="a name, such as sketch")
            yield Static(id="note")
            yield OptionList(markup=False, compact=True)

    def on_mount(self) -> None:
        """All names."""
        self.query_one(OptionList).can_focus = False
        self._show("")

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        self._show(event.value.strip())

    def _show(self, name: str) -> None:
        self._names = found(name, [*self._known])
        options = self.query_one(OptionList)
        options.set_options([Option(Content(row(each, self._known[each]))) for each in self._names])
        options.highlighted = None
        self._note(name)

    def _note(self, name: str, problem: str = "") -> None:
        replaced = f"replaces {name}: {self._known[name]}" if name in self._known else ""
        self.query_one("#note", Static).update(Content(printable(problem or replaced)))

    def action_move(self, step: int) -> None:
        """Another of the names, into the field."""
        options = self.query_one(OptionList)
        if self._names:
            before = options.highlighted if options.highlighted is not None else -1 if step > 0 else 0
            options.highlighted = place = (before + step) % len(self._names)
            field = self.query_one(Field)
            with self.prevent(Input.Changed):
                field.value = self._names[place]
            field.cursor_position = len(field.value)
            self._note(field.value)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        name = event.value.strip()
        try:
            presets.check_name(name)
        except RequestError as error:
            self._note(name, str(error))
        else:
            self.dismiss(name)

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.query_one(Field).value = self._names[event.option_index]


class ChoosePreset(Window[str]):
    """The presets; Enter takes one over, Delete removes one after asking."""

    BINDINGS = [
        Binding("delete,d", "remove", "Remove", show=False),
        Binding("q", "close", "Close", show=False),
    ]

    def __init__(self, known: Mapping[str, str], remove: Callable[[str], bool]) -> None:
        """`remove` tells whether it is gone."""
        super().__init__()
        self._known, self._remove = dict(known), remove

    def compose(self) -> ComposeResult:
        """The list."""
        with Vertical(classes="window large") as window:
            window.border_title = Content("presets")
            window.border_subtitle = Content("Enter takes over  Del removes  Esc closes")
            yield OptionList(markup=False, compact=True)

    def on_mount(self) -> None:
        """All of them."""
        self._show()

    def _show(self) -> None:
        options = self.query_one(OptionList)
        before = options.highlighted or 0
        options.set_options([Option(Content(row(name, text))) for name, text in self._known.items()])
        options.highlighted = min(before, len(self._known) - 1)

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss([*self._known][event.option_index])

    def action_remove(self) -> None:
        """The file, after asking."""
        place = self.query_one(OptionList).highlighted
        if place is None:
            return
        name = [*self._known][place]

        def answered(yes: bool | None) -> None:
            if yes and self._remove(name):
                del self._known[name]
                if self._known:
                    self._show()
                else:
                    self.dismiss()

        self.app.push_screen(Confirm(f"Remove the preset {name}?"), answered)


def row(name: str, text: str) -> str:
    """A preset in a list."""
    return shortened(f"{name}  {text}", MAX_ROW)


def save_preset(app: App[None], shared: Shared) -> None:
    """Keep what is set under a name."""
    parameters = shared.session.parameters
    values = parameters.to_preset()
    if not values:
        shared.say("Nothing is set but the model's own choices, so there is nothing to keep as a preset.", "warning")
        return

    def named(name: str | None) -> None:
        if name is None:
            return
        try:
            presets.write(name, values)
        except RequestError as error:
            shared.say(str(error), "error")
            return
        left_out = f" A grid is not kept: {', '.join(parameters.axes)}." if parameters.axes else ""
        shared.say(f"Kept as the preset {quoted(name)}: {presets.described(values)}.{left_out}")

    _with_known(app, lambda known: app.push_screen(NamePreset(values, known), named))


def choose_preset(app: App[None], shared: Shared) -> None:
    """Take a preset over."""
    if not shared.session.parameters.options:
        shared.say("A preset is taken over when the model is open; wait for it.", "warning")
        return

    def remove(name: str) -> bool:
        try:
            presets.remove(name)
        except RequestError as error:
            shared.say(str(error), "error")
            return False
        shared.say(f"The preset {quoted(name)} is removed.")
        return True

    def chosen(name: str | None) -> None:
        if name is None:
            return
        try:
            values = presets.read(name)
        except RequestError as error:
            shared.say(str(error), "error")
            return
        shared.say(taken_over(shared, name, values))
        for screen in app.screen_stack:
            for panel in screen.query(ParametersPanel):
                panel.update()

    def show(known: Mapping[str, str]) -> None:
        if known:
            app.push_screen(ChoosePreset(known, remove), chosen)
        else:
            shared.say(f"There are no presets; {shared.keys.shown('preset.save')} keeps what is set as one.")

    _with_known(app, show)


def taken_over(shared: Shared, name: str, values: Mapping[str, Any]) -> str:
    """Choose what a preset does; returns what is to be said."""
    session = shared.session
    left_out = session.parameters.take_preset(values)
    shared.parameters_changed()
    said = f"Preset {quoted(name)}: {presets.described(values)}."
    if left_out:
        said += f" This model does not take {', '.join(left_out)} as they were; its own choice holds."
    if values.get("model", session.model) != session.model:
        said += f" Its model is not opened; {shared.keys.shown('view.models')} does that."
    return said


def _with_known(app: App[None], then: Callable[[Mapping[str, str]], object]) -> None:
    """Read all presets in a thread, and go on with what each says, or with what is wrong with it."""

    def read() -> None:
        known = {}
        for name in presets.names():
            try:
                known[name] = presets.described(presets.read(name)) or "nothing"
            except RequestError as error:
                known[name] = str(error)
        app.call_later(then, known)

    app.run_worker(read, name="presets", thread=True, exit_on_error=False)
