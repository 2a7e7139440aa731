"""What can be done with a picture: the same keys on every screen that shows pictures."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.screen import Screen

from engine.folders import shown_path
from engine.prompts.variants import escape
from engine.request import Request, RequestError
from tui.jobs import Job
from tui.screens.dialogs import Confirm, ReadText
from tui.shared import Shared
from tui.text import duration

if TYPE_CHECKING:
    from engine.images.metadata import Record, Said

TRASH = ".trash"


class PicturesScreen(Screen[None]):
    """A screen with a selected picture or job."""

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.shared = shared

    def selected_path(self) -> Path | None:
        """The selected picture's file, if there is one."""
        raise NotImplementedError

    def selected_job(self) -> Job | None:
        """The selected job, if a job is selected."""
        return None

    def select(self, path: Path) -> None:
        """Make this the selected picture, if it is shown here."""

    def pictures_changed(self) -> None:
        """A picture was deleted, or its star changed; on this screen, or on one that lies on it."""
        raise NotImplementedError

    def refresh_folder(self) -> None:
        """A picture was saved."""

    def neighbour(self, path: Path, step: int) -> Path | None:
        """The picture before or after another in the order of this screen."""
        raise NotImplementedError

    def ask(self, question: str, then: Callable[[], None]) -> None:
        """Do it where the person says yes."""
        self.app.push_screen(Confirm(question), lambda yes: then() if yes else None)

    def action_view(self) -> None:
        """Fill the terminal with the picture."""
        path = self._path()
        if path is not None:
            self.shared.host.open_picture(path, self.neighbour)

    def action_open(self) -> None:
        """Open the picture in the system's viewer, or say how to see it where there can be none."""
        from tui.openers import Remote, check_openable, plan_open, run_plan

        path = self._path()
        if path is None:
            return
        settings = self.shared.settings
        try:
            plan = plan_open(
                check_openable(path),
                os.environ,
                sys.platform,
                shutil.which,
                release=platform.uname().release,
                user_command=settings.opener,
                use_forwarded_display=settings.open_forwarded,
                host=settings.host,
            )
        except RequestError as error:
            self.shared.say(str(error), "error")
            return
        if isinstance(plan, Remote):
            self.app.copy_to_clipboard(_plain(plan.path))
            rows = [
                ("", plan.reason),
                ("", ""),
                ("path", f"{_plain(plan.path)}"),
                ("", "(sent to the terminal's clipboard as well)"),
                ("fetch it", ""),
                ("", plan.scp),  # on a line of its own, to be copied
                *([("show it", plan.hint)] if plan.hint else []),
                ("here", f"{self.shared.keys.shown('image.view')} fills the terminal with the picture"),
            ]
            self.app.push_screen(ReadText("Open the picture", rows))
            return

        def start() -> None:
            problem = run_plan(plan)
            if problem is not None:
                self.app.call_later(self.shared.say, problem, "error")

        self.app.run_worker(start, name="open", thread=True, exit_on_error=False)
        self.shared.say(f"Opening {path.name} ...")

    def action_copy_path(self) -> None:
        """The path to the clipboard, and on the screen: not every terminal takes it."""
        path = self._path()
        if path is not None:
            self.app.copy_to_clipboard(_plain(path))
            self.shared.say(f"Sent to the terminal's clipboard: {_plain(path)}")

    def action_copy_scp(self) -> None:
        """A line that fetches the picture over SSH, to the clipboard and on the screen."""
        from tui.openers import Remote, plan_open

        path = self._path()
        if path is not None:
            environment = {**os.environ, "SSH_TTY": "1"}
            plan = plan_open(path.absolute(), environment, "linux", lambda _: None, host=self.shared.settings.host)
            assert isinstance(plan, Remote)
            self.app.copy_to_clipboard(plan.scp)
            self.shared.say(f"Sent to the terminal's clipboard: {plan.scp}")

    def action_info(self) -> None:
        """The settings in the file; of a job without one, its request."""
        from engine.images.metadata import read_settings

        job, path = self.selected_job(), self.selected_path()
        keys = self.shared.keys.pressed("image.info")
        if path is not None:
            try:
                said = read_settings(path, lenient=True)
                rows = [*record_rows(path, said.record), *foreign_rows(said)]
                self.app.push_screen(ReadText(path.name, rows, keys))
            except RequestError as error:
                self.shared.say(str(error), "error")
        elif job is not None:
            title = "a simulated job" if job.simulated else "a job without a picture"
            self.app.push_screen(ReadText(title, job_rows(job), keys))
        else:
            self._nothing()

    def action_remix(self) -> None:
        """Everything but the seed into prompt and parameters."""
        self._take_over(seed=False)

    def action_use_all(self) -> None:
        """Everything into prompt and parameters, the seed too."""
        self._take_over(seed=True)

    def action_use_seed(self) -> None:
        """Only the seed, locked."""
        said = self._said()
        if said is None:
            return
        request, _ = said
        if request.seed is None:
            self.shared.say("This picture does not say its seed.", "warning")
        else:
            self.shared.session.parameters.seed = request.seed
            self.shared.parameters_changed()
            self.shared.say(f"The seed stays {request.seed}.")

    def action_favourite(self) -> None:
        """Give the picture a star, or take it."""
        path = self._path()
        if path is not None:
            history = self.shared.session.history
            history.set_favourite(path, not history.is_favourite(path))
            self.shared.tell_notices()
            self.shared.host.pictures_changed()

    def action_compare(self) -> None:
        """Mark a picture; with one marked, show the two side by side."""
        path = self._path()
        if path is None:
            return
        marked = self.shared.marked
        if marked is None or marked == path or not marked.is_file():
            self.shared.marked = path
            self.shared.say(
                f"{path.name} is marked; choose another and press {self.shared.keys.shown('image.compare')} again."
            )
            return
        self.shared.marked = None
        self.app.clear_notifications()  # one of them says what to do next, which is done
        self.shared.host.open_pair(marked, path)

    def action_delete(self) -> None:
        """The picture to the trash folder, after asking; a job that waits off the queue."""
        job, path = self.selected_job(), self.selected_path()
        session = self.shared.session
        if job is not None and job.state == "queued":
            try:
                session.remove(job.id)
            except RequestError as error:
                self.shared.say(str(error), "error")
            self.shared.host.pictures_changed()
        elif job is not None and (job.state in ("failed", "cancelled") or (job.simulated and job.state == "done")):
            session.forget_result(job.id)
            self.shared.host.pictures_changed()
            if job.state == "done":
                self.shared.say("There was no picture to delete; the simulated job is off the list.")
        elif path is not None:
            self.ask(f"Move {path.name} to the trash folder?", partial(self._to_trash, path))
        else:
            self._nothing()

    def _to_trash(self, path: Path) -> None:
        try:
            kept = move_to_trash(path)
        except OSError as error:
            reason = (error.strerror or "unknown reason").lower()
            self.shared.say(f"{shown_path(path)} cannot be moved to the trash folder: {reason}.", "error")
            return
        self.shared.session.forget_picture(path)
        self.shared.say(f"Moved to {shown_path(kept)}.")
        self.shared.host.pictures_changed()

    def _take_over(self, *, seed: bool) -> None:
        said = self._said()
        if said is None:
            return
        request, says = said
        not_offered = self.shared.session.parameters.take(request, seed=seed)
        self.shared.host.take_prompt(escape(request.prompt) if seed or request.template is None else request.template)
        self.shared.parameters_changed()
        sentences = []
        if not_offered:
            sentences.append(f"This model does not take {', '.join(not_offered)} as they were; its own choice holds.")
        if says is not None:
            left_out = [*says.left_out, *([f"model {says.model}"] if says.model else [])]
            not_taken = {*not_offered} if seed else {*not_offered, "seed"}
            if account := says.account(left_out, without=not_taken):
                sentences.append(f"{account[0].upper()}{account[1:]}.")
        if sentences:
            self.shared.say(" ".join(sentences), "warning")

    def _said(self) -> tuple[Request, Said | None] | None:
        """What the selected picture's file says; without a file, what its job asked for."""
        from engine.images.metadata import read_settings

        job, path = self.selected_job(), self.selected_path()
        if path is not None:
            try:
                said = read_settings(path, lenient=True)
                return said.record.request, said
            except RequestError as error:
                if job is None:
                    self.shared.say(str(error), "error")
                    return None
        if job is not None:
            return job.request, None
        self._nothing()
        return None

    def _path(self) -> Path | None:
        path = self.selected_path()
        if path is None:
            self._nothing()
        elif not path.is_file():
            self.shared.say(f"{shown_path(path)} is not there any more.", "warning")
            return None
        return path

    def _nothing(self) -> None:
        job = self.selected_job()
        if job is not None and job.simulated:
            key = self.shared.keys.shown("image.remix", letter=True)
            self.shared.say(f"This job is simulated, so there is no picture; {key} takes its prompt over.")
        else:
            self.shared.say("There is no picture here yet.")


def move_to_trash(path: Path) -> Path:
    """Move a picture to `.trash` beside it, never over another file; returns its new place. Raises OSError."""
    folder = path.parent / TRASH
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "the trash folder is a link to elsewhere")
    folder.mkdir(exist_ok=True)
    for name in (path.name, f"{path.stem}-{time.time_ns()}{path.suffix}"):
        target = folder / name
        if not os.path.lexists(target):
            break
    os.rename(path, target)
    return target


def record_rows(path: Path, record: Record) -> list[tuple[str, str]]:
    """What a picture's file says about itself, for reading."""
    from engine.images.metadata import read_parameters

    request = record.request
    rows = [("prompt", request.prompt)]
    if request.template is not None:
        rows.append(("template", request.template))
    rows += [(name, _shown(value)) for name, value in _choices(request)]
    rows += [("model", record.model), ("model hash", record.model_hash[:16]), ("device", record.device)]
    times = ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in record.seconds_by_phase.items())
    rows += [("took", times), ("versions", ", ".join(f"{name} {text}" for name, text in record.versions.items()))]
    rows += [("file", str(path)), ("parameters", read_parameters(path))]
    return [(name, text) for name, text in rows if text]


def foreign_rows(said: Said) -> list[tuple[str, str]]:
    """What is to be known of another program's picture."""
    rows = [("made by", said.program), ("its model", said.model), ("not repeated", ", ".join(said.left_out))]
    return [(name, text) for name, text in rows if text]


def job_rows(job: Job) -> list[tuple[str, str]]:
    """What a job asked for and what became of it, for reading."""
    state = f"{job.state}, simulated" if job.simulated else job.state
    rows = [("state", state), ("message", job.message), ("prompt", job.request.prompt)]
    rows += [("template", job.request.template or "")]
    rows += [(name, _shown(value)) for name, value in _choices(job.request)]
    took = duration(job.seconds) if job.seconds is not None else ""
    rows += [("model", job.model), ("would take", f"~{took}" if took and job.simulated else "")]
    return [(name, text) for name, text in rows if text]


def _choices(request: Request) -> list[tuple[str, Any]]:
    values = request.to_dict()
    return [(name, values[name]) for name in values if name not in ("prompt", "template", "count")]


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _plain(path: Path) -> str:
    """A path as text that can be encoded."""
    return os.fsencode(path).decode("utf-8", "replace")
