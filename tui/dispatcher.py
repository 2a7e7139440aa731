"""Gives the engine its jobs, one after the other, and takes what it says; a fresh engine where the last has gone."""

from __future__ import annotations

import time
from pathlib import Path

from engine.events import ImageSaved, Noticed, Planned
from engine.process import (
    Foreseen,
    JobEvent,
    JobRefused,
    LoadEvent,
    MemorySampled,
    ModelLoaded,
    ModelOpened,
    ModelRefused,
    OpenModel,
)
from engine.request import RequestError
from tui.client import EngineClient, EngineEnded, Received, Stepped
from tui.shared import Shared
from tui.text import counted

SECOND_PRESS_SECONDS = 1.5  # a key pressed twice


class Dispatcher:
    """Between the session, which knows what is to be done, and the engine's process, which does it."""

    def __init__(self, shared: Shared, client: EngineClient) -> None:
        self.shared, self.session, self.client, self.host = shared, shared.session, client, shared.host
        self.last_cancel: tuple[str, float] | None = None  # (job, when), since the last prompt was sent

    # What the engine says.

    def receive(self, received: Received) -> bool:
        """Take it over; whether the output folder could not be used."""
        if not self.client.is_current(received):
            return False
        session, host, message = self.session, self.host, received.content
        was_running, follow, refused = session.running, host.main.follows, False
        sentence = session.receive(message)
        if sentence:
            self.shared.say(sentence, "error")
        event = getattr(message, "event", None)
        if isinstance(event, Noticed) and session.is_news(event.message):
            self.shared.say(event.message, "warning")
        match message:
            case ModelLoaded(device_uuid=uuid):
                self.shared.card.use(uuid)
                self._ask()
            case ModelRefused():
                self.shared.models_changed.publish(None)
                self.client.stop()  # the next job tries again, in a fresh process: the folder may be there by then
            case ModelOpened() as opened:
                self.client.opened(opened)
                host.main.parameters_changed()
                self.shared.models_changed.publish(None)
            case JobRefused(field="output"):
                refused = was_running is not None
            case LoadEvent(event=Planned()) | JobEvent(event=Planned()):
                host.main.parameters_changed()  # auto may have chosen a precision
            case Foreseen():
                self._ask()
                host.main.update_forecast()
                return False
            case LoadEvent() | MemorySampled():
                host.main.update_progress()
                return False
            case JobEvent(event=ImageSaved(notice=str())):
                refused = True
        self.shared.tell_notices()
        finished = was_running is not None and session.running is None
        host.main.update(follow=follow and finished)
        if finished:
            host.refresh_folders()
            self.go_on()
        return refused

    def step(self, stepped: Stepped) -> None:
        """The latest step."""
        if self.client.is_current(stepped):
            self.session.step(stepped.job, stepped.event)
            self.host.main.update_progress()

    def ended(self, ended: EngineEnded) -> None:
        """The engine's process has gone; the next job starts a fresh one."""
        if not self.client.is_current(ended):
            return
        self.client.forget()
        self._tell_ended(ended.reason)
        self.shared.models_changed.publish(None)
        self.host.main.update(follow=True)
        self.go_on()

    def _tell_ended(self, reason: str) -> None:
        remix_key = self.shared.keys.shown("image.remix", letter=True)  # tries a job that failed again
        self.shared.say(self.session.engine_ended(reason, remix_key), "error")

    # What it is told.

    def go_on(self) -> None:
        """Begin the next job if there is one and nothing runs."""
        if self.client.is_dying:
            return  # its end comes first, and then goes on here
        session, follow = self.session, self.host.main.follows
        job = session.begin_next()
        if job is not None:
            self.open(job.model, job.simulated)
            self.client.paint(job)
        elif session.running is None and self.client.pid is not None:
            self.open(session.model, session.simulate)  # the last job's was another one
        self.host.main.update(follow=follow and job is not None)

    def foresee(self, text: str) -> None:
        """The prompt or a choice was changed: how would the next picture run?"""
        self.session.foresee(text)
        self._ask()
        self.host.main.update_forecast()

    def _ask(self) -> None:
        """The engine, where it has the model of the next picture open; else when it has."""
        if self.session.opened == self.session.model:
            question = self.session.forecast.question()
            if question is not None:
                self.client.ask(question)

    def open_model(self, name: str) -> None:
        """Make the next pictures with this model: now, or when the picture in work is done.

        What waits keeps its own model.
        """
        session = self.session
        session.model = name
        if session.running is None:
            self.open(name, session.simulate)
        elif session.opened != name:
            self.shared.say(f"{name} comes next: the picture in work is finished first.")
        waiting = sum(job.model != name for job in session.queue)
        if waiting:
            pictures = counted(waiting, "waiting picture")
            self.shared.say(f"The model is for new pictures; {pictures} will be made as asked for.")
        self.host.main.update()

    def change_output(self, folder: Path) -> None:
        """Save the next pictures there, if that can be."""
        from engine.images.save import plan_output

        try:
            destination = plan_output(folder, 2)
        except RequestError as error:
            self.shared.say(str(error), "error")
            return
        self.session.change_output(str(destination.path))
        self.session.paused = self.session.held = False
        self.shared.say(f"Pictures go to {destination.path} from now on.")
        self.go_on()

    def open(self, model: str, simulate: bool) -> None:
        """In a fresh process, with the budgets of this session. Where none can be made, that is how it ended."""
        session, settings = self.session, self.shared.settings
        opening = OpenModel(model, vram=settings.vram, ram=settings.ram, simulate=simulate)
        if self.client.has_open(opening):
            return
        session.starts(model)
        session.forecast.forget()
        self.shared.models_changed.publish(None)
        try:
            self.client.start(opening)
        except OSError as error:
            session.paused = bool(session.queue)
            self._tell_ended(f"the engine could not be started: {(error.strerror or 'unknown reason').lower()}.")
            self.host.main.update()

    def cancel(self, *, after_step: bool) -> None:
        """Give the running job up; where the engine does not listen, end it, and keep the job that nobody gave up.

        A second press that comes late is not meant for the job that began since.
        """
        session, job, now = self.session, self.session.running, time.monotonic()
        if self.last_cancel is not None and now - self.last_cancel[1] < SECOND_PRESS_SECONDS:
            cancelled, _ = self.last_cancel
            if job is None or job.id != cancelled:
                return
        if session.watch.silence or session.watch.is_deaf:
            self._end_engine()
        elif job is not None:
            self.last_cancel = job.id, now
            session.cancelling = True
            if not after_step and session.watch.at_once is None:
                session.watch.at_once = 0.0
            self.client.cancel(job.id, after_step=after_step)
            self.watch()
        self.host.main.update_progress()

    def watch(self) -> None:
        """Once a tick while the engine has something to do: whether it still says anything, or is to be ended."""
        session = self.session
        if session.is_busy and not self.client.is_dying:
            key = self.shared.keys.shown("job.cancel")
            sentence = session.watch.look(session.work, self.client.doing(), self.client.pid, key)
            if sentence:
                self.shared.say(sentence, "warning")
            if session.watch.must_end(session.work):
                self._end_engine()

    def _end_engine(self) -> None:
        """The engine does not listen. `EngineEnded` follows, and then the next job, in a fresh process."""
        watch = self.session.watch
        if self.client.end(f"the engine did not listen, said nothing for {watch.said} and was ended."):
            watch.ending, watch.silence = True, ""
            self.last_cancel = "", time.monotonic()  # one press more is not meant for the picture that begins next
