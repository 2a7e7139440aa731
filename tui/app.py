"""The app: holds what the screens share, and passes on what the engine says."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.app import App, SystemCommand
from textual.css.query import NoMatches
from textual.driver import Driver
from textual.events import Key
from textual.notifications import Notification, Notify, SeverityLevel
from textual.screen import Screen
from textual.scrollbar import ScrollBar, ScrollBarRender
from textual.widgets._toast import ToastRack

from engine import folders
from engine.cli.terminal import TerminalModes
from tui.bindings import Keys, behind_escape, bindings_of
from tui.client import EngineClient, EngineEnded, Received, Stepped
from tui.dispatcher import Dispatcher
from tui.display import Display
from tui.display.pace import Pace
from tui.history import History
from tui.profile import TerminalProfile
from tui.screens.dialogs import ReadText
from tui.screens.main import MainScreen
from tui.screens.pictures import PicturesScreen
from tui.session import Session
from tui.settings import Settings
from tui.shared import Shared
from tui.suspend import CAN_STOP, Suspender
from tui.text import duration
from tui.theme_loader import DEFAULT_THEME, VARIABLE_DEFAULTS, load_themes
from tui.widgets.lines import AsciiScrollBar

DEFAULT_MODEL = "demo"
SECONDS_TO_END = 1.8  # until the process ends without its loop, when it is told to end; the engine follows in one more
SLOW_LINE = (
    "The line to this terminal is slow. What helps: ssh -C, tmux on the computer that paints, or --preview off --fps 1."
)
CATCH_UP_SECONDS = 0.05


@dataclass
class Note(Notification):
    """A sentence for the person, and the screen on which it was said."""

    place: Screen[Any] | None = None


class T2IApp(App[None]):
    """TextToImageTool's terminal app."""

    TITLE = "TextToImageTool"
    CSS_PATH = "app.tcss"
    BINDINGS = bindings_of("app")
    COMMAND_PALETTE_BINDING = "f24"  # ours is in the table, with the other keys

    def __init__(
        self,
        settings: Settings,
        profile: TerminalProfile,
        *,
        keys: Keys | None = None,
        theme_is_chosen: bool = True,
        images: type[Any] | None = None,
        notices: Iterable[str] = (),
        driver: type[Driver] | None = None,
    ) -> None:
        """`notices` are sentences for the person from before the start; `theme_is_chosen`: not just the default.

        `images` is the widget that shows a picture by the terminal's own graphics, where it has some. `driver` is the
        way to the terminal, where it is not Textual's.
        """
        super().__init__(driver_class=driver)
        self.settings, self.profile, self.keys = settings, profile, keys or Keys()
        self.terminal: Display | None = None  # our driver, where it is one
        self._told_slow = False
        self._notices = list(notices)
        themes = load_themes(folders.config_dir() / "themes")
        for theme in themes.themes:
            self.register_theme(theme)
        self._own_themes = {theme.name for theme in themes.themes}
        if themes.problem:
            self._notices.append(themes.problem)
        history = History.open(folders.state_dir())
        model, output = settings.model or DEFAULT_MODEL, str(settings.output or "")
        self.session = Session(history, model, output, simulate=settings.simulate)
        self._draft, values = self.session.adopt()
        if settings.model is None:
            self.session.model = str(values.get("model") or DEFAULT_MODEL)
        if settings.output is None:
            self.session.output = str(values.get("output") or "")
        remembered = values.get("theme")
        self._choose_theme(settings.theme if theme_is_chosen or not isinstance(remembered, str) else remembered)
        self._pace = Pace(profile.previews_per_second, profile.preview_bytes_per_second)
        self.client = EngineClient(
            self.post_message,
            self.run_worker,
            updates_per_second=profile.fps,
            preview_due=self._preview_due,
        )
        self.suspender = Suspender(self, self.repaint)
        self.shared = Shared(self, self, self.session, settings, profile, self.keys, images)
        self.dispatcher = Dispatcher(self.shared, self.client)
        self.set_keymap(self.keys.keymap())
        self.set_class(profile.ascii, "-ascii")
        ScrollBar.renderer = AsciiScrollBar if profile.ascii else ScrollBarRender

    def _choose_theme(self, name: str) -> None:
        """Before the first paint: a theme that is set later styles every widget twice."""
        if name not in self.available_themes:
            ours = ", ".join(sorted(self._own_themes))
            self._notices.append(f"There is no theme {name[:40]!r}; there are {ours}, and Textual's.")
            name = DEFAULT_THEME
        self.theme = name

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Of the variables that our stylesheets use and Textual's own themes do not have."""
        return VARIABLE_DEFAULTS

    def get_default_screen(self) -> Screen[None]:
        """The main screen."""
        return MainScreen(self.shared, self.dispatcher)

    @property
    def main(self) -> MainScreen:
        """The main screen, whatever lies over it."""
        screen = self.screen_stack[0]
        assert isinstance(screen, MainScreen)
        return screen

    @property
    def output_folder(self) -> Path:
        """Where pictures go."""
        return Path(self.session.output).expanduser() if self.session.output else folders.default_output_dir()

    def on_mount(self) -> None:
        """Remember the theme that is chosen; end well when the terminal or the system says so."""
        self.theme_changed_signal.subscribe(self, lambda theme: self.session.history.save("theme", theme.name))
        self.terminal = self._driver if isinstance(self._driver, Display) else None
        if self.is_headless is False:
            self.suspender.watch()
            loop = asyncio.get_running_loop()
            for name, handler in (("SIGHUP", self._hang_up), ("SIGTERM", self._terminate)):
                if hasattr(signal, name):
                    self._end_at(getattr(signal, name), handler, loop)

    def _end_at(self, number: signal.Signals, handler: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        def end(signalled: int, frame: object) -> None:
            self._end(handler, 128 + signalled, loop)

        with suppress(ValueError):  # not the main thread
            signal.signal(number, end)

    def _end(self, handler: Callable[[], None], code: int, loop: asyncio.AbstractEventLoop) -> None:
        """Call `handler`, which ends the app, in its loop, and end without it where that is stuck. From any thread."""
        timer = threading.Timer(SECONDS_TO_END, self._end_without_the_loop, (code,))
        timer.daemon = True
        timer.start()
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(handler)

    def _end_without_the_loop(self, code: int) -> None:
        with suppress(Exception):
            self.client.put_terminal_back()
        os._exit(code)  # the engine sees the pipe close

    def on_ready(self) -> None:
        """Painted for the first time."""
        gc.freeze()
        gc.enable()
        if self._draft:
            self.main.prompt.put(self._draft)
        self.dispatcher.open(self.session.model, self.session.simulate)
        self.main.update(follow=True)
        notices = [*self._notices, *self.session.history.take_notices()]
        for notice in notices:
            self.shared.say(notice, "warning")
        if len(notices) > 2:
            self.action_messages()  # all of them, to be read in peace

    def action_messages(self) -> None:
        """What was said, the latest first."""
        now = time.monotonic()
        rows = [(f"{duration(now - when)} ago", text) for when, text in reversed(self.shared.said)]
        self.push_screen(
            ReadText("messages", rows or [("", "Nothing was said yet.")], self.keys.pressed("app.messages"))
        )

    # The engine.

    def on_received(self, received: Received) -> None:
        """What the engine says."""
        if self.screen_stack and self.dispatcher.receive(received):
            self.main.offer_another_place()

    def on_stepped(self, stepped: Stepped) -> None:
        """The latest step."""
        if self.screen_stack:
            self.dispatcher.step(stepped)
            self._tell_if_slow()

    def on_engine_ended(self, ended: EngineEnded) -> None:
        """The engine's process has gone."""
        if self.screen_stack:
            self.dispatcher.ended(ended)

    # What screens ask for: `Host`.

    def on_parameters_panel_changed(self) -> None:
        """From the panel, wherever it is."""
        self.shared.parameters_changed()

    def _pictures_screens(self) -> list[PicturesScreen]:
        return [screen for screen in self.screen_stack if isinstance(screen, PicturesScreen)]

    def pictures_changed(self) -> None:
        """A star, or a picture has gone: every screen that shows some."""
        for screen in self._pictures_screens():
            screen.pictures_changed()

    def refresh_folders(self) -> None:
        """A picture was saved."""
        for screen in self._pictures_screens():
            screen.refresh_folder()

    def open_picture(self, path: Path, neighbour: Callable[[Path, int], Path | None]) -> None:
        """One picture, as large as the terminal."""
        from tui.screens.viewer import Viewer

        self.push_screen(Viewer(self.shared, path, neighbour))

    def open_comparison(self, paths: Sequence[Path]) -> None:
        """Two pictures side by side; the others come in their place, one by one."""
        from tui.screens.compare import Compare

        self.push_screen(Compare(self.shared, *paths))

    def open_gallery(self) -> None:
        """All pictures of the output folder."""
        from tui.screens.gallery import Gallery

        self.push_screen(Gallery(self.shared, self.output_folder))

    def open_models(self) -> None:
        """The models that there are."""
        from tui.screens.models import ModelsScreen

        self.push_screen(ModelsScreen(self.shared, self.dispatcher.open_model))

    def lend_terminal(self) -> AbstractContextManager[None]:
        """To another program, until the block ends."""
        return self.suspender.lent()

    def take_prompt(self, text: str) -> None:
        """Put a text into the prompt, back on the main screen."""
        while len(self.screen_stack) > 1:
            self.pop_screen()
        self.main.take_prompt(text)

    def action_help(self) -> None:
        """All keys."""
        from tui.bindings import table
        from tui.keys import HEADINGS, LETTERS

        rows: list[tuple[str, str]] = []
        for scope in ("app", "prompt", "main", "pictures", "compare", "gallery", "models"):  # how to quit comes first
            rows += [("", ""), ("", HEADINGS[scope])] if rows else [("", HEADINGS[scope])]
            commands = tuple(command for command in self.keys.commands if command.scope == scope)
            rows += [(keys, text) for keys, _, text in table(Keys(commands))]
        self.push_screen(ReadText("keys", [("", LETTERS), ("", ""), *rows], self.keys.pressed("app.help")))

    async def on_key(self, event: Key) -> None:
        """Esc and a letter in one packet, where no command has Alt and that letter: as if one came after the other.

        The main screen has all letters. What closes a window is done at once, so the letter is for what lies below.
        """
        letter = behind_escape(event.key)
        if letter is not None and self.screen is not self.main and not await self._check_bindings(event.key):
            event.prevent_default()
            if await self._check_bindings("escape"):
                self.post_message(Key(letter, letter))

    def action_redraw(self) -> None:
        """After another program wrote over the screen."""
        self.repaint()

    def action_help_quit(self) -> None:
        """Textual's meaning of Ctrl+C where it has none of ours: an engine that is silent it ends everywhere."""
        if self.session.watch.silence:
            self.dispatcher.cancel(after_step=False)
        else:
            super().action_help_quit()

    def action_suspend(self) -> None:
        """Back to the shell; its `fg` comes back here."""
        if CAN_STOP and self.is_headless is False:
            self.suspender.ask()
        else:
            self.shared.say("This terminal has no shell to go back to.", "warning")

    async def action_quit(self) -> None:
        """Leave: what runs and what waits is offered at the next start."""
        self.leave()
        self.exit()

    def leave(self) -> None:
        """Keep everything, end the engine. May be called twice."""
        if self.screen_stack and self.main.is_mounted:
            self.main.save_draft()
        self.session.save_parameters()
        self.shared.close()
        self.client.close()

    def on_unmount(self) -> None:
        """However the app ends."""
        self.leave()
        self.session.history.close()

    def _terminate(self) -> None:
        self.leave()
        self.exit(return_code=128 + signal.SIGTERM)

    def terminal_gone(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nothing can be painted any more. From any thread."""
        self._end(self._hang_up, 128 + 1, loop)  # as SIGHUP, which is 1 everywhere, would

    def _hang_up(self) -> None:
        """Keep everything and end. A terminal that is there after all is put back."""
        with suppress(Exception):
            self.main.save_draft()
            self.session.save_parameters()
            self.session.history.close()
        with suppress(Exception):
            if self._driver is not None:
                self._driver.stop_application_mode()
                self._driver.close()
        os._exit(129)  # the engine sees the pipe close

    def _preview_due(self) -> bool:
        """From any thread."""
        terminal = self.terminal
        if terminal is None:
            return self._pace.is_due(time.monotonic(), 0, room=True)
        line = terminal.bytes_per_second
        return self._pace.is_due(time.monotonic(), terminal.sent_bytes, room=terminal.has_room, line=line)

    def _tell_if_slow(self) -> None:
        """Once: what would help on this line."""
        terminal = self.terminal
        if not self._told_slow and terminal is not None and terminal.is_slow:
            self._told_slow = True
            self.shared.say(SLOW_LINE, "warning")

    def holds_terminal(self, modes: TerminalModes | None) -> None:
        """The driver has taken the terminal, or put it back (None)."""
        self.client.hold_terminal(modes)

    def _display(self, screen: Screen[object], renderable: Any) -> None:
        """Send a frame by our driver, which compares it with what the terminal shows."""
        terminal = self.terminal
        if terminal is None or self._batch_count or not self._running or self._closed:
            super()._display(screen, renderable)
            return
        try:
            if isinstance(renderable, LayoutUpdate | ChopsUpdate):
                cursor = self.screen.outer_size.clamp_offset(self.cursor_position)
                terminal.show(renderable, (cursor.x, cursor.y), self.size)
            elif renderable is not None:
                super()._display(screen, renderable)
                terminal.forget()
        except Exception as error:
            self._handle_exception(error)
        finally:
            self.post_display_hook()

    def catch_up(self) -> None:
        """The terminal takes frames again, after some were left out: show it what there is now."""
        if self._batch_count:
            self.set_timer(CATCH_UP_SECONDS, self.catch_up)  # nothing is painted now
        elif self._running and not self._closed:
            below = self._background_screens  # what is seen around a dialog
            self._display(self.screen, self.screen._compositor.render_update(full=True, screen_stack=below))

    # Notes for the person: in place of the line of keys, so that they cover nothing else, and only on the screen on
    # which they were said.

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = True,
    ) -> None:
        """As Textual does, and remember where."""
        seconds = self.NOTIFICATION_TIMEOUT if timeout is None else timeout
        note = Note(
            message, title, severity, seconds, markup, place=self.screen_stack[-1] if self.screen_stack else None
        )
        self.post_message(Notify(note))

    def _refresh_notifications(self) -> None:
        if self.screen_stack:
            here = self._mark_noted()
            with suppress(NoMatches):
                self.call_later(self.screen.get_child_by_type(ToastRack).show, here)

    def _unnotify(self, notification: Notification, refresh: bool = True) -> None:
        super()._unnotify(notification, refresh)
        self._mark_noted()

    def _mark_noted(self) -> list[Notification]:
        """The notes of the present screen, whose line of keys gives way to them."""
        here = [note for note in self._notifications if getattr(note, "place", None) is self.screen]
        self.screen.set_class(bool(here), "-noted")
        return here

    def repaint(self) -> None:
        """Another program wrote over the screen: all of it is sent again."""
        if self.terminal is not None:
            self.terminal.forget()
        self.catch_up()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Every command of the table that works on this screen, with its key; then the themes."""
        for command in self.keys.commands:
            key = self.keys.shown(command.id)
            namespace = self if command.scope == "app" else screen
            if not hasattr(namespace, f"action_{command.action.partition('(')[0]}"):
                continue  # not on this screen

            def run(action: str = command.action, namespace: App[None] | Screen[object] = namespace) -> None:
                self.call_later(self.run_action, action, namespace)

            yield SystemCommand(command.label, f"{command.tooltip} ({key})", run)
        for name in sorted(self.available_themes, key=lambda name: (name not in self._own_themes, name)):

            def choose(name: str = name) -> None:
                self.theme = name

            yield SystemCommand(f"Theme: {name}", "Change the colours", choose)
