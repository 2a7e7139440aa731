"""The app: holds what the screens share, and passes on what the engine says."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from textual.app import App, SystemCommand
from textual.screen import Screen

from engine import folders
from engine.images.save import plan_output
from engine.process import JobRefused, ModelLoaded, ModelOpened, ModelRefused
from engine.request import RequestError
from tui.bindings import Keys, bindings_of
from tui.card import Card, CardSample
from tui.client import EngineClient, EngineEnded, Received, Stepped
from tui.history import History
from tui.profile import TerminalProfile
from tui.screens.dialogs import ReadText
from tui.screens.main import MainScreen
from tui.screens.pictures import PicturesScreen
from tui.session import Session
from tui.settings import Settings
from tui.text import printable
from tui.theme_loader import VARIABLE_DEFAULTS, load_themes
from tui.thumbnails import Thumbnails
from tui.widgets.picture import Rendering

Severity = Literal["information", "warning", "error"]
DEFAULT_MODEL = "demo"


class T2IApp(App[None]):
    """TextToImageTool's terminal app."""

    TITLE = "TextToImageTool"
    CSS_PATH = "app.tcss"
    BINDINGS = bindings_of("app")
    COMMAND_PALETTE_BINDING = "f24"  # ours is in the table, with the other keys
    NOTIFICATION_TIMEOUT = 6

    def __init__(
        self,
        settings: Settings,
        profile: TerminalProfile,
        *,
        keys: Keys | None = None,
        theme_is_chosen: bool = True,
        images: type[Any] | None = None,
        notices: Iterable[str] = (),
    ) -> None:
        """`notices` are sentences for the person from before the start; `theme_is_chosen`: not just the default.

        `images` is the widget that shows a picture by the terminal's own graphics, where it has some.
        """
        super().__init__()
        self.settings, self.profile, self.keys = settings, profile, keys or Keys()
        self.images = images
        self.thumbnails = Thumbnails()
        self.marked: Path | None = None  # the first picture of a comparison
        self.preview_size = profile.preview
        self.card_sample: CardSample | None = None
        self._card: Card | None = None
        self._sampling = False
        self._notices = list(notices)
        themes = load_themes(folders.config_dir() / "themes")
        for theme in themes.themes:
            self.register_theme(theme)
        if themes.problem:
            self._notices.append(themes.problem)
        history = History.open(folders.state_dir())
        self.session = Session(history, settings.model or DEFAULT_MODEL, str(settings.output or ""))
        self._draft, values = self.session.adopt()
        if settings.model is None:
            self.session.model = str(values.get("model") or DEFAULT_MODEL)
        if settings.output is None:
            self.session.output = str(values.get("output") or "")
        remembered = values.get("theme")
        self._theme_name = settings.theme if theme_is_chosen or not isinstance(remembered, str) else remembered
        self.client = EngineClient(
            self.post_message,
            self.run_worker,
            updates_per_second=profile.fps,
            previews_per_second=profile.previews_per_second,
        )
        self.set_keymap(self.keys.keymap())
        self.set_class(profile.ascii, "-ascii")

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Of the variables that our stylesheets use and Textual's own themes do not have."""
        return VARIABLE_DEFAULTS

    def get_default_screen(self) -> Screen[None]:
        """The main screen."""
        return MainScreen()

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

    @property
    def remix_key(self) -> str:
        """Tries a job that failed again."""
        return self.keys.shown("image.remix", letter=True)

    @property
    def rendering(self) -> Rendering:
        """How pictures are drawn where there are no colours, or no half-blocks."""
        return "letters" if self.profile.ascii or self.profile.color == "none" else "blocks"

    @property
    def preview_limit(self) -> tuple[int, int]:
        """Most columns and rows of a picture."""
        size = self.preview_size if self.preview_size != "off" else "low" if self.profile.slow else "high"
        profile = replace(self.profile, preview=size)
        return profile.preview_columns, profile.preview_rows

    def on_mount(self) -> None:
        """Theme, signals, what the last session left; the engine starts behind the first paint."""
        if self._theme_name not in self.available_themes:
            self._notices.append(
                f"There is no theme {self._theme_name[:40]!r}; there are {', '.join(sorted(self.available_themes))}."
            )
            self._theme_name = "dark"
        self.theme = self._theme_name
        self.theme_changed_signal.subscribe(self, lambda theme: self.session.history.save("theme", theme.name))
        if self.is_headless is False:
            loop = asyncio.get_running_loop()
            for name, handler in (("SIGHUP", self._hang_up), ("SIGTERM", self.exit)):
                if hasattr(signal, name):
                    with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows; not the main thread
                        loop.add_signal_handler(getattr(signal, name), handler)

    def on_ready(self) -> None:
        """Painted for the first time."""
        gc.freeze()
        gc.enable()
        if self._draft:
            self.main.prompt.put(self._draft)
        self.client.start(self.session.model)
        if self.session.queue:
            key = self.keys.shown("queue.pause")
            self._notices.append(
                f"{len(self.session.queue)} pictures of last time still wait; {key} goes on with them."
            )
        for notice in self._notices:
            self.say(notice, "warning")
        self._notices = []
        self.tell_notices()
        self.main.update(follow=True)

    def say(self, text: str, severity: Severity = "information") -> None:
        """A sentence for the person; from any thread. Never markup."""
        lines = "\n".join(printable(line) for line in text.split("\n"))
        self.notify(lines, severity=severity, markup=False, timeout=12 if severity == "error" else 6)

    def tell_notices(self) -> None:
        """What went wrong with the history, if anything did."""
        for notice in self.session.history.take_notices():
            self.say(notice, "warning")

    # The engine.

    def on_received(self, received: Received) -> None:
        """What the engine says."""
        was_running = self.session.running
        sentence = self.session.receive(received.content)
        if sentence:
            self.say(sentence, "error")
        match received.content:
            case ModelLoaded(device_uuid=uuid) if uuid:
                self._card = Card(uuid)
                self.sample_card()
            case ModelRefused():
                self.client.stop()  # the next job tries again, in a fresh process: the folder may be there by then
            case ModelOpened():
                self.main.parameters_changed()
            case JobRefused(field="output") if was_running is not None:
                self.main.action_change_output()
        self.tell_notices()
        finished = was_running is not None and self.session.running is None
        self.main.update(follow=finished and self.main.prompt.has_focus)
        if finished:
            for screen in self.screen_stack:
                if isinstance(screen, PicturesScreen):
                    screen.refresh_folder()
            self.go_on()

    def on_stepped(self, stepped: Stepped) -> None:
        """The latest step."""
        self.session.step(stepped.job, stepped.event)
        self.main.update_progress()

    def on_engine_ended(self, ended: EngineEnded) -> None:
        """The engine's process has gone; the next job starts a fresh one."""
        self.say(self.session.engine_ended(ended.reason, self.remix_key), "error")
        self.main.update(follow=True)
        self.go_on()

    def go_on(self) -> None:
        """Begin the next job if there is one and nothing runs."""
        job = self.session.begin_next()
        if job is not None:
            if self.client.pid is None:
                self.session.engine_state = "starting"
                self.client.start(self.session.model)
            self.client.paint(job)
        self.main.update(follow=job is not None and self.main.prompt.has_focus)

    def cancel(self, *, after_step: bool) -> None:
        """Give the running job up."""
        job = self.session.running
        if job is not None:
            self.session.cancelling = True
            self.client.cancel(job.id, after_step=after_step)
            self.main.update_progress()

    def sample_card(self) -> None:
        """Ask the graphics card how it is, in a thread; nothing where there is none."""
        if self._card is None or self._sampling:
            return
        self._sampling, card = True, self._card

        def ask() -> None:
            sample = card.sample()
            self.call_later(self._sampled, sample)

        self.run_worker(ask, name="card", thread=True, exit_on_error=False)

    def _sampled(self, sample: CardSample | None) -> None:
        self._sampling = False
        if sample is None:
            self._card = None
        self.card_sample = sample
        self.main.update_progress()

    # What screens ask for.

    def on_parameters_panel_changed(self) -> None:
        """From the panel, wherever it is."""
        self.parameters_changed()

    def parameters_changed(self) -> None:
        """Keep and show them."""
        self.session.save_parameters()
        self.main.parameters_changed()

    def take_prompt(self, text: str) -> None:
        """Put a text into the prompt, back on the main screen."""
        while len(self.screen_stack) > 1:
            self.pop_screen()
        self.main.take_prompt(text)

    def change_output(self, text: str) -> None:
        """Save the next pictures in this folder, if that can be."""
        try:
            destination = plan_output(Path(text), 2)
        except RequestError as error:
            self.say(str(error), "error")
            return
        self.session.change_output(str(destination.path))
        self.say(
            f"Pictures go to {destination.path} from now on; press {self.remix_key} on one that failed to try it again."
        )

    def action_help(self) -> None:
        """All keys."""
        from tui.bindings import table
        from tui.keys import LETTERS

        commands = sorted(self.keys.commands, key=lambda command: command.scope != "app")  # how to quit comes first
        rows = [(keys, text) for keys, _, text in table(Keys(tuple(commands)))]
        self.push_screen(ReadText("keys", [*rows, ("", ""), ("", LETTERS)], self.keys.pressed("app.help")))

    def action_redraw(self) -> None:
        """After another program wrote over the screen."""
        self.refresh(repaint=True, layout=True)
        self.screen.refresh(repaint=True, layout=True)

    async def action_quit(self) -> None:
        """Leave: what runs and what waits is offered at the next start."""
        self.leave()
        self.exit()

    def leave(self) -> None:
        """Keep everything, end the engine. May be called twice."""
        with suppress(Exception):  # before the first paint there is no prompt
            self.main.save_draft()
        self.session.save_parameters()
        self.client.stop()

    def on_unmount(self) -> None:
        """However the app ends."""
        self.leave()
        self.session.history.close()

    def _hang_up(self) -> None:
        """The terminal has gone: nothing can be painted any more, so keep everything and end."""
        with suppress(Exception):
            self.main.save_draft()
            self.session.save_parameters()
            self.session.history.close()
        os._exit(129)  # the engine sees the pipe close

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
        for name in sorted(self.available_themes):

            def choose(name: str = name) -> None:
                self.theme = name

            yield SystemCommand(f"Theme: {name}", "Change the colours", choose)
