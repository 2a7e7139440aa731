"""The app: holds what the screens share, and passes on what the engine says."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.app import App, SystemCommand
from textual.driver import Driver
from textual.screen import Screen
from textual.scrollbar import ScrollBar, ScrollBarRender
from textual.signal import Signal

from engine import folders
from engine.cli.terminal import TerminalModes
from engine.events import ImageSaved, Noticed, Planned
from engine.process import JobEvent, JobRefused, LoadEvent, Message, ModelLoaded, ModelOpened, ModelRefused, OpenModel
from engine.request import RequestError
from tui.bindings import Keys, bindings_of
from tui.card import Card, CardSample
from tui.client import EngineClient, EngineEnded, Received, Stepped
from tui.display import Display
from tui.display.pace import Pace
from tui.history import History
from tui.profile import TerminalProfile
from tui.screens.dialogs import ReadText
from tui.screens.main import MainScreen
from tui.screens.pictures import PicturesScreen
from tui.session import LISTEN_SECONDS, Session
from tui.settings import Settings
from tui.suspend import CAN_STOP, Suspender
from tui.text import counted, duration, printable
from tui.theme_loader import DEFAULT_THEME, VARIABLE_DEFAULTS, load_themes
from tui.thumbnails import Thumbnails
from tui.widgets.lines import AsciiScrollBar
from tui.widgets.picture import Rendering

if TYPE_CHECKING:
    from tui.library import Library, Pull, PullEnded, PullMoved, Scan, ScanEnded, ScanMoved

Severity = Literal["information", "warning", "error"]
DEFAULT_MODEL = "demo"
SECOND_PRESS_SECONDS = 1.5  # a key pressed twice
SECONDS_TO_END = 1.8  # until the process ends without its loop, when it is told to end; the engine follows in one more
SLOW_LINE = (
    "The line to this terminal is slow. What helps: ssh -C, tmux on the computer that paints, or --preview off --fps 1."
)
CATCH_UP_SECONDS = 0.05
NOTE_SECONDS, MAX_SAID = 6.0, 200


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
        self.images = images
        self.thumbnails = Thumbnails()
        self.marked: Path | None = None  # the first picture of a comparison
        self.preview_size = profile.preview
        self.card_sample: CardSample | None = None
        self._card: Card | None = None
        self._sampling = False
        self.terminal: Display | None = None  # our driver, where it is one
        self._told_slow = False
        self.submitted_text = ""  # of the prompt, when Enter was pressed last
        self.last_cancel: tuple[str, float] | None = None  # (job, when), since the last prompt was sent
        self.said: list[tuple[float, str]] = []  # (when, what) for the person, oldest first
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
        self.suspender = Suspender(self)
        self._library: Library | None = None
        self.models_changed: Signal[object] = Signal(self, "models")  # what ended, if anything did
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
    def pause_keys(self) -> str:
        """What to press in the prompt to go on with the queue."""
        return f"{self.keys.shown('prompt.leave')} and then {self.keys.shown('queue.pause')}"

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
        self._start_engine(self.opening(self.session.model, self.settings.simulate))
        self.main.update(follow=True)
        if self.session.queue:
            waiting = counted(len(self.session.queue), "picture")
            self._notices.append(f"From last time, {waiting} still to make; {self.pause_keys} goes on.")
        notices = [*self._notices, *self.session.history.take_notices()]
        for notice in notices:
            self.say(notice, "warning")
        if len(notices) > 2:
            self.action_messages()  # all of them, to be read in peace

    def say(self, text: str, severity: Severity = "information") -> None:
        """A sentence for the person. Never markup."""
        lines = "\n".join(printable(line) for line in text.split("\n"))
        if re.match("[a-z]+[ ,]", lines):  # a word, not a file's name
            lines = lines[:1].upper() + lines[1:]
        now = time.monotonic()
        recent = [said for when, said in self.said if now - when < NOTE_SECONDS]
        self.said = [*self.said[-MAX_SAID:], (now, lines)]
        if recent and recent[-1] == lines:
            return  # it still stands there
        if len(recent) >= 2 and self.is_running:
            self.clear_notifications()  # a pile of them would cover the pictures
        self.notify(
            lines, severity=severity, markup=False, timeout=2 * NOTE_SECONDS if severity == "error" else NOTE_SECONDS
        )

    def action_messages(self) -> None:
        """What was said, the latest first."""
        now = time.monotonic()
        rows = [(f"{duration(now - when)} ago", text) for when, text in reversed(self.said)]
        self.push_screen(
            ReadText("messages", rows or [("", "Nothing was said yet.")], self.keys.pressed("app.messages"))
        )

    def tell_notices(self) -> None:
        """What went wrong with the history, if anything did."""
        for notice in self.session.history.take_notices():
            self.say(notice, "warning")

    # The engine.

    def on_received(self, received: Received) -> None:
        """What the engine says."""
        if not self.client.is_current(received) or not self.screen_stack:
            return
        was_running, follow = self.session.running, self.main.follows
        sentence = self.session.receive(received.content)
        if sentence:
            self.say(sentence, "error")
        self._tell_noticed(received.content)
        match received.content:
            case ModelLoaded(device_uuid=uuid):
                self._card, self.card_sample = Card(uuid) if uuid else None, None
                self.sample_card()
            case ModelRefused():
                self.models_changed.publish(None)
                self.client.stop()  # the next job tries again, in a fresh process: the folder may be there by then
            case ModelOpened() as opened:
                self.client.opened(opened)
                self.main.parameters_changed()
                self.models_changed.publish(None)
            case JobRefused(field="output") if was_running is not None:
                self._offer_another_place()
            case LoadEvent(event=Planned()) | JobEvent(event=Planned()):
                self.main.parameters_changed()  # auto may have chosen a precision
            case LoadEvent():
                self.main.update_progress()
                return
            case JobEvent(event=ImageSaved(notice=str())):
                self._offer_another_place()
        self.tell_notices()
        finished = was_running is not None and self.session.running is None
        self.main.update(follow=follow and finished)
        if finished:
            for screen in self.screen_stack:
                if isinstance(screen, PicturesScreen):
                    screen.refresh_folder()
            self.go_on()

    def _tell_noticed(self, message: Message) -> None:
        """What the engine noticed, where it is news."""
        match message:
            case JobEvent(event=Noticed(message=text)) | LoadEvent(event=Noticed(message=text)):
                if self.session.is_news(text):
                    self.say(text, "warning")

    def on_stepped(self, stepped: Stepped) -> None:
        """The latest step."""
        if not self.client.is_current(stepped) or not self.screen_stack:
            return
        self.session.step(stepped.job, stepped.event)
        self.main.update_progress()
        self._tell_if_slow()

    def on_engine_ended(self, ended: EngineEnded) -> None:
        """The engine's process has gone; the next job starts a fresh one."""
        if not self.client.is_current(ended) or not self.screen_stack:
            return
        self.client.forget()
        self.say(self.session.engine_ended(ended.reason, self.remix_key), "error")
        self.models_changed.publish(None)
        self.main.update(follow=True)
        self.go_on()

    def _offer_another_place(self) -> None:
        """Where the output folder cannot be used. Not over what is being typed."""
        if self.main.prompt.has_focus and self.main.is_current and self.main.prompt.text != self.submitted_text:
            key = self.keys.shown("output.change")
            self.say(f"{self.keys.shown('prompt.leave')} and then {key} chooses another folder.", "warning")
        elif self.main.is_current:
            self.main.action_change_output()

    def go_on(self) -> None:
        """Begin the next job if there is one and nothing runs."""
        if self.client.is_dying:
            return  # its end comes first, and then goes on here
        follow = self.main.follows
        job = self.session.begin_next()
        if job is not None:
            opening = self.opening(job.model, job.simulated)
            if not self.client.has_open(opening):
                self._start_engine(opening)
            self.client.paint(job)
        elif self.session.running is None and self.client.pid is not None:
            chosen = self.opening(self.session.model, self.settings.simulate)
            if not self.client.has_open(chosen):  # what was in work or waited was another model's
                self._start_engine(chosen)
        self.main.update(follow=follow and job is not None)

    def open_model(self, name: str) -> None:
        """Make the next pictures with this model: now, or when the picture in work is done.

        What waits keeps its own model.
        """
        session = self.session
        session.model = name
        if session.running is not None and session.opened != name:
            self.say(f"{name} comes next: the picture in work is finished first.")
        elif session.running is None and not self.client.has_open(self.opening(name, session.simulate)):
            self._start_engine(self.opening(name, session.simulate))
        waiting = sum(job.model != name for job in session.queue)
        if waiting:
            self.say(f"The model is for new pictures; {counted(waiting, 'waiting picture')} will be made as asked for.")
        self.main.update()

    def opening(self, model: str, simulate: bool) -> OpenModel:
        """How a model is opened: with the budgets of this session."""
        return OpenModel(model, vram=self.settings.vram, ram=self.settings.ram, simulate=simulate)

    def _start_engine(self, opening: OpenModel) -> None:
        """A fresh process. Where none can be made, that is how it ended."""
        self.session.starts(opening.model)
        self.models_changed.publish(None)
        try:
            self.client.start(opening)
        except OSError as error:
            reason = f"the engine could not be started: {(error.strerror or 'unknown reason').lower()}."
            self.session.paused = bool(self.session.queue)
            self.say(self.session.engine_ended(reason, self.remix_key), "error")
            self.main.update()

    def cancel(self, *, after_step: bool) -> None:
        """Give the running job up; where the engine does not listen, end it, and keep the job that nobody gave up.

        A second press that comes late is not meant for the job that began since.
        """
        session, job, now = self.session, self.session.running, time.monotonic()
        if self.last_cancel is not None and now - self.last_cancel[1] < SECOND_PRESS_SECONDS:
            cancelled, _ = self.last_cancel
            if job is None or job.id != cancelled:
                return
        deaf = session.at_once is not None and session.at_once >= LISTEN_SECONDS
        if session.silence or deaf:
            self._end_engine()
        elif job is not None:
            self.last_cancel = job.id, now
            session.cancelling = True
            if not after_step and session.at_once is None:
                session.at_once = 0.0
            self.client.cancel(job.id, after_step=after_step)
            self.watch_engine()
        self.main.update_progress()

    def watch_engine(self) -> None:
        """Once a tick while the engine has something to do: whether it still says anything, or is to be ended."""
        session = self.session
        if session.is_busy and not self.client.is_dying:
            sentence = session.look(self.client.doing(), self.client.pid, self.keys.shown("job.cancel"))
            if sentence:
                self.say(sentence, "warning")
            if session.must_end:
                self._end_engine()

    def _end_engine(self) -> None:
        """The engine does not listen. `EngineEnded` follows, and then the next job, in a fresh process."""
        session = self.session
        if self.client.end(f"the engine did not listen, said nothing for {session.watch.said} and was ended."):
            session.ending, session.silence = True, ""
            self.last_cancel = "", time.monotonic()  # one press more is not meant for the picture that begins next

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
        if not self.screen_stack:
            return
        if sample is None:
            self._card = None
        self.card_sample = sample
        self.main.update_progress()

    # Models that are looked for and brought in the background.

    @property
    def library(self) -> Library:
        """That work; imported when the person first looks at the models."""
        if self._library is None:
            from tui.library import Library

            seconds = 1.0 if self.profile.slow else 0.5
            self._library = Library(self.post_message, self.run_worker, seconds_between=seconds)
        return self._library

    @property
    def pull(self) -> Pull | None:
        """The model on its way from the hub."""
        return None if self._library is None else self._library.pull

    @property
    def scan(self) -> Scan | None:
        """The search for models."""
        return None if self._library is None else self._library.scan

    def on_pull_moved(self, moved: PullMoved) -> None:
        """How far the pull is."""
        self.library.take(moved)
        self.models_changed.publish(None)

    def on_scan_moved(self, moved: ScanMoved) -> None:
        """How far the search is."""
        self.library.take(moved)
        self.models_changed.publish(None)

    def on_pull_ended(self, ended: PullEnded) -> None:
        """The model is here, or it is said why not."""
        self.library.take(ended)
        self.say(ended.sentence, "error" if ended.failed else "information")
        self.models_changed.publish(ended)

    def on_scan_ended(self, ended: ScanEnded) -> None:
        """What was found."""
        from tui.library import summary

        self.library.take(ended)
        self.say(ended.problem or summary(ended.scan), "error" if ended.problem else "information")
        self.models_changed.publish(ended)

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
        from engine.images.save import plan_output

        try:
            destination = plan_output(Path(text), 2)
        except RequestError as error:
            self.say(str(error), "error")
            return
        self.session.change_output(str(destination.path))
        self.session.paused = self.session.held = False
        self.say(f"Pictures go to {destination.path} from now on.")
        self.go_on()

    def action_help(self) -> None:
        """All keys."""
        from tui.bindings import table
        from tui.keys import HEADINGS, LETTERS

        rows: list[tuple[str, str]] = []
        for scope in ("app", "prompt", "main", "pictures", "gallery", "models"):  # how to quit comes first
            rows += [("", ""), ("", HEADINGS[scope])] if rows else [("", HEADINGS[scope])]
            commands = tuple(command for command in self.keys.commands if command.scope == scope)
            rows += [(keys, text) for keys, _, text in table(Keys(commands))]
        self.push_screen(ReadText("keys", [("", LETTERS), ("", ""), *rows], self.keys.pressed("app.help")))

    def action_redraw(self) -> None:
        """After another program wrote over the screen."""
        self.repaint()

    def action_help_quit(self) -> None:
        """Textual's meaning of Ctrl+C where it has none of ours: an engine that is silent it ends everywhere."""
        if self.session.silence:
            self.cancel(after_step=False)
        else:
            super().action_help_quit()

    def action_suspend(self) -> None:
        """Back to the shell; its `fg` comes back here."""
        if CAN_STOP and self.is_headless is False:
            self.suspender.ask()
        else:
            self.say("This terminal has no shell to go back to.", "warning")

    async def action_quit(self) -> None:
        """Leave: what runs and what waits is offered at the next start."""
        self.leave()
        self.exit()

    def leave(self) -> None:
        """Keep everything, end the engine. May be called twice."""
        if self.screen_stack and self.main.is_mounted:
            self.main.save_draft()
        self.session.save_parameters()
        if self._library is not None:
            self._library.close()
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
            self.say(SLOW_LINE, "warning")

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
