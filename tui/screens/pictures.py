"""What can be done with a picture: the same keys on every screen that shows pictures."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import events
from textual.screen import Screen

from engine.folders import shown_path
from engine.prompts.variants import escape
from engine.request import Request, RequestError
from tui.bindings import Keys
from tui.jobs import Job
from tui.screens.dialogs import Confirm, ReadText
from tui.shared import Shared
from tui.text import counted, duration
from tui.trash import Gone, bring_back, move_to_trash

if TYPE_CHECKING:
    from engine.images.metadata import Record, Said

ENDS = {"failed": "failed", "cancelled": "was stopped"}


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
        from tui.openers import Remote, check_openable, plan_open, run_plan, this_user

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
                user=this_user(),
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
            self.app.push_screen(OpenElsewhere(rows, self.shared.keys, self.action_view))
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
        from tui.openers import Remote, plan_open, this_user

        path = self._path()
        if path is not None:
            environment = {**os.environ, "SSH_TTY": "1"}
            host, user = self.shared.settings.host, this_user()
            plan = plan_open(path.absolute(), environment, "linux", lambda _: None, host=host, user=user)
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

    # Several at once.

    def shows(self, path: Path) -> bool:
        """Whether a picture is one of those in a list here, so that what is marked may be meant."""
        return False

    @property
    def marked(self) -> list[Path]:
        """The marked pictures of this screen, in the order they were marked."""
        return [path for path in self.shared.marked if self.shows(path)]

    def action_mark(self) -> None:
        """Mark the picture, or take the mark away, and go on to the next."""
        path = self._path()
        if path is None:
            return
        if path in self.shared.marked:
            self.shared.marked.remove(path)
        else:
            self.shared.marked.append(path)
        following = self.neighbour(path, 1)
        if following is not None:
            self.select(following)
        self.shared.host.pictures_changed()

    def action_unmark(self) -> None:
        """Take all marks away."""
        self.shared.marked.clear()
        self.shared.host.pictures_changed()

    def action_favourite(self) -> None:
        """Give the picture a star, or take it; the marked ones all get one, or lose it where each has one."""
        one = None if self.marked else self._path()
        paths = self.marked or ([one] if one is not None else [])
        if paths:
            history = self.shared.session.history
            give = not all(map(history.is_favourite, paths))
            for path in paths:
                history.set_favourite(path, give)
            self.shared.tell_notices()
            self.shared.host.pictures_changed()

    def action_compare(self) -> None:
        """Show what is marked, two at a time; with nothing marked, mark this picture; with one, show it and this."""
        path = self._path()
        if path is None:
            return
        self.shared.marked = [marked for marked in self.shared.marked if marked.is_file()]
        paths = list(self.shared.marked)
        if len(paths) < 2 and path not in paths:
            paths.append(path)
        if len(paths) < 2:
            self.shared.marked = paths
            keys = self.shared.keys.shown("image.compare")
            self.shared.say(f"{path.name} is marked; choose another and press {keys} again.")
            self.shared.host.pictures_changed()
            return
        self.shared.marked = []
        self.app.clear_notifications()  # one of them says what to do next, which is done
        self.shared.host.pictures_changed()
        self.shared.host.open_comparison(paths)

    def action_delete(self) -> None:
        """The picture, or what is marked, to the trash folder; a job that waits off the queue."""
        job, path = self.selected_job(), self.selected_path()
        session = self.shared.session
        if self.marked and path is not None:
            self.to_trash(self.marked)
        elif job is not None and job.state == "queued":
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
            self.to_trash([path])
        else:
            self._nothing()

    def to_trash(self, paths: list[Path]) -> None:
        """Move pictures to the trash folder, from where they are brought back together."""
        gone: list[Gone] = []
        for path in paths:
            try:
                kept = move_to_trash(path)
            except OSError as error:
                reason = (error.strerror or "unknown reason").lower()
                self.shared.say(f"{shown_path(path)} cannot be moved to the trash folder: {reason}.", "error")
                continue
            gone.append(Gone(path, kept, self.shared.session.forget_picture(path)))
        self.shared.marked = [path for path in self.shared.marked if path not in paths]
        if gone:
            self.shared.trash.append(gone)
            key = self.shared.keys.shown("image.bring_back")
            what, it = (gone[0].path.name, "it") if len(gone) == 1 else (counted(len(gone), "picture"), "them")
            self.shared.say(f"Moved {what} to the trash folder; {key} brings {it} back.")
        self.shared.host.pictures_changed()

    def action_bring_back(self) -> None:
        """What went to the trash last: one picture, or several that went together."""
        if not self.shared.trash:
            self.shared.say("Nothing was moved to the trash folder since the start, so there is nothing to bring back.")
            return
        back: list[tuple[Path, Path]] = []
        left: list[Gone] = []
        for gone in reversed(self.shared.trash.pop()):
            try:
                path = bring_back(gone.kept, gone.path)
            except OSError as error:
                reason = (error.strerror or "unknown reason").lower()
                self.shared.say(f"{shown_path(gone.kept)} cannot be brought back: {reason}.", "error")
                if gone.kept.exists():
                    left.insert(0, gone)
                continue
            self.shared.session.remember_picture(path, gone.results)
            back.append((gone.path, path))
        if left:
            self.shared.trash.append(left)
        if back:
            renamed = [(old, new) for old, new in back if old != new]
            said = [f"{back[0][1].name} is back" if len(back) == 1 else f"{len(back)} pictures are back"]
            said += [f"{new.name} was {old.name}, a name that another file has by now" for old, new in renamed]
            self.shared.say(f"{'; '.join(said)}.")
            self.shared.host.pictures_changed()
            self.select(back[-1][1])

    def _take_over(self, *, seed: bool) -> None:
        from engine.grids import PROMPT, from_plain

        said = self._said()
        if said is None:
            return
        request, says = said
        parameters = self.shared.session.parameters
        not_offered = parameters.take(request, seed=seed)
        template, sentences = None if seed else request.template, []
        if seed and says is not None and "grid" in says.record.reproduce:  # a sheet
            try:
                axes = from_plain(says.record.reproduce["grid"])
            except RequestError as error:
                sentences.append(f"The grid of this sheet cannot be painted: {error}")
            else:
                names = [axis.name for axis in axes]
                template = request.template if PROMPT in names else None
                not_offered += parameters.take_grid([axis for axis in axes if axis.name != PROMPT])
        self.shared.host.take_prompt(escape(request.prompt) if template is None else template)
        self.shared.parameters_changed()
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
        elif job is not None and job.state in ("failed", "cancelled"):
            key = self.shared.keys.shown("image.remix", letter=True)
            again = f"{key} tries it again" if job.state == "failed" else f"{key} takes its prompt over"
            self.shared.say(f"This job {ENDS[job.state]}, so there is no picture; {again}.")
        else:
            self.shared.say("There is no picture here yet.")


class OpenElsewhere(ReadText):
    """How to see a picture where no window can be opened; the key that fills the terminal works here, too."""

    def __init__(self, rows: Sequence[tuple[str, str]], keys: Keys, view: Callable[[], None]) -> None:
        super().__init__("Open the picture", rows, keys.pressed("image.open"))
        self._view_keys, self._view = keys.pressed("image.view"), view

    def on_key(self, event: events.Key) -> None:
        """Fill the terminal."""
        if event.key in self._view_keys:
            event.stop()
            self.dismiss()
            self._view()


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
    if isinstance(value, bool):
        return "on" if value else "off"  # as in the panel
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _plain(path: Path) -> str:
    """A path as text that can be encoded."""
    return os.fsencode(path).decode("utf-8", "replace")
