"""The main screen: prompt, phases, memory, pictures."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import psutil
from textual import on
from textual.app import ComposeResult, SuspendNotSupported
from textual.containers import Horizontal
from textual.content import Content
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import OptionList, Static, TextArea

from engine.cli.plan_text import plan_summary
from engine.events import Preview
from engine.prompts.variants import expand
from engine.request import MAX_PROMPT_CHARACTERS, RequestError
from tui.bindings import LIST_BAR, PROMPT_BAR, bindings_of
from tui.jobs import Job
from tui.parameters import LABELS
from tui.profile import PreviewSize
from tui.screens.dialogs import AskText, Confirm, ParametersWindow, SearchPrompts
from tui.screens.pictures import PicturesScreen
from tui.text import clean, counted, duration
from tui.widgets.gauge import Gauge, Level
from tui.widgets.joblist import JobList
from tui.widgets.lines import HeaderLine, KeyBar, WorkLine
from tui.widgets.parameters import ParametersPanel
from tui.widgets.picture import PictureView
from tui.widgets.prompt import PromptArea
from tui.widgets.timeline import Timeline

PREVIEWS: tuple[PreviewSize, ...] = ("off", "low", "high")
DRAFT_SECONDS = 1.0  # of what is typed, the most that a kill costs

# Parameters that the header names only where the person chose them.
UNUSUAL = ("cfg", "negative_prompt", "guidance_schedule", "cfg_zero", "apg", "salience", "distill")


class MainScreen(PicturesScreen):
    """Where the evening is spent."""

    BINDINGS = bindings_of("main", "pictures")
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny-width"), (60, "-narrow"), (100, "-normal"), (160, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-tiny-height"), (16, "-short"), (30, "-tall")]

    def compose(self) -> ComposeResult:
        """From top to bottom; the stylesheet decides what is seen at which size."""
        t2i, profile = self.t2i, self.t2i.profile
        yield HeaderLine(ascii_only=profile.ascii, id="header")
        yield PromptArea(t2i.session.history.prompts, self._to_pictures, id="prompt")
        yield Static(id="variants")
        yield Timeline(ascii_only=profile.ascii, id="timeline")
        yield Gauge(ascii_only=profile.ascii, id="gauge")
        yield Gauge(ascii_only=profile.ascii, id="ram")
        yield WorkLine(ascii_only=profile.ascii, id="work")
        with Horizontal(id="body"):
            yield JobList(ascii_only=profile.ascii, is_favourite=self._is_favourite, id="jobs")
            yield PictureView(rendering=t2i.rendering, id="picture")
            yield ParametersPanel(
                t2i.session.parameters, self._leave_parameters, ascii_only=profile.ascii, id="parameters"
            )
        yield KeyBar(id="keys")

    def on_mount(self) -> None:
        """Everything that is known already."""
        self.jobs = self.query_one(JobList)
        self.prompt = self.query_one(PromptArea)
        self.picture = self.query_one(PictureView)
        self.timeline = self.query_one(Timeline)
        self.prompt.border_title = Content("prompt")
        self.query_one(ParametersPanel).border_title = Content("parameters")
        self._limit_preview()
        # What is seen moves only while something runs: idle writes nothing.
        self._ticks = self.set_interval(1.0 if self.t2i.profile.slow else 0.5, self._tick, pause=True)
        self._ticking = False
        self._ram_bytes = psutil.virtual_memory().total
        self._draft_timer: Timer | None = None
        self._favourites: set[Path] = self.t2i.session.history.favourites()
        self._shown_path: Path | None = None
        self._variants = ""  # the line below the prompt
        self._came_from: Widget = self.prompt  # to the panel of parameters
        self.set_focus(self.prompt)
        self._show_keys()
        self.update(follow=True)
        self.t2i.models_changed.subscribe(self, lambda _: self.update_work())

    # What is shown.

    def update(self, *, follow: bool = False) -> None:
        """Take over the session's state; the highlight goes to the newest picture with `follow`."""
        if not self._is_covered:
            self._update_header()
            self.jobs.show(self.t2i.session, follow=follow)
            self.update_progress()
            self.update_work()
            self._choose_picture()
        busy = self.t2i.session.is_busy
        if busy != self._ticking:
            self._ticking = busy
            if busy:
                self.t2i.session.watch.restart()
                self._ticks.resume()
            else:
                self._ticks.pause()

    @property
    def follows(self) -> bool:
        """Whether the highlight goes to what begins next: unless the person chose another row than the newest."""
        session = self.t2i.session
        newest = [job.id for job in (*([session.running] if session.running else []), *session.results[:1])]
        return not self.jobs.has_focus or self.jobs.selected_id in (None, *newest)

    @property
    def _is_covered(self) -> bool:
        """Whether another whole screen lies on this one: Textual paints that one anew for each change of this one."""
        return not (self.is_current or isinstance(self.app.screen, ModalScreen))

    def on_screen_resume(self) -> None:
        """What changed in the meantime."""
        if self.is_mounted:
            self.pictures_changed()

    def update_work(self) -> None:
        """What goes on in the background: the pull of a model, or the search for some."""
        if not self._is_covered:
            pull, scan = self.t2i.pull, self.t2i.scan
            line = self.query_one("#work", WorkLine)
            if pull is not None:
                line.show(f"pull {pull.name}", str(pull), pull.fraction)
            elif scan is not None:
                line.show("scan", str(scan))
            else:
                line.show("", "")

    def update_progress(self) -> None:
        """Timeline, gauges and live preview."""
        if self._is_covered:
            return
        session = self.t2i.session
        self.timeline.show(
            session.progress,
            self._status(),
            silence="ending the engine ..." if session.ending else session.silence,
            skipped=session.restored,
            failed=session.ended_in,
            estimated=session.estimated,
        )
        self._update_gauges()
        self._show_live()

    def _status(self) -> str:
        session = self.t2i.session
        texts = []
        if session.cancelling:
            texts.append("cancelling ..." if session.at_once is None else "cancelling at once ...")
        last = session.results[0] if session.results else None
        ready = last.message if last is not None and last.simulated and last.state == "done" else "ready"
        if session.running is None:
            texts.append(
                {
                    "starting": "starting the engine",
                    "loading": "loading the model",
                    "ready": ready,
                    "gone": "the engine is off; the next picture starts it",
                    "refused": "no model can be used",
                }[session.engine_state]
                if not (session.paused and session.queue) and not session.held
                else f"paused, {len(session.queue) or 'nothing'} waiting: {self.t2i.pause_keys} goes on"
            )
        elif session.plan is not None and session.progress.step == 0 and not session.hint:
            texts.append(f"plan: {plan_summary(session.plan)}")
        if session.hint:
            texts = texts if texts != ["ready"] else []
            texts.append(f"hint: {session.hint}")
        return "  ".join(texts)

    def _update_header(self) -> None:
        session, profile = self.t2i.session, self.t2i.profile
        parameters = session.parameters
        left = [Path(session.model).name or session.model, *(["simulated"] if session.simulate else [])]
        first = ("seed", "count", "size", "steps")  # what does not fit is left out from the end
        names = parameters.names()
        for name in sorted(names, key=lambda name: first.index(name) if name in first else len(first)):
            text = parameters.shown(name)
            if name in UNUSUAL and parameters.is_default(name):
                continue
            if name == "size":
                left.append(text)
            elif name == "seed":
                left.append(f"seed {text}" + (" LOCK" if parameters.seed is not None else ""))
            elif name == "count":
                left.append(f"x{text}")
            else:
                left.append(f"{LABELS.get(name, name)} {text}")
        right = []
        if session.queue:
            seconds = session.waiting_seconds()
            about = f" ~{duration(seconds)}" if seconds else ""
            right.append(f"queue {len(session.queue)}{about}")
        right.append(profile.label)
        self.query_one(HeaderLine).show(tuple(left), tuple(right))

    def _update_gauges(self) -> None:
        memory, card = self._memory_level(), self._card_level()
        self.query_one("#gauge", Gauge).show(card or memory)
        ram = self.query_one("#ram", Gauge)
        ram.show(memory if card is not None else None)
        ram.set_class(card is not None, "-beside-card")

    def _memory_level(self) -> Level:
        """RAM; where no card is in use, with the peak to expect there."""
        session = self.t2i.session
        memory, plan = session.progress.memory, session.plan
        alone = self.t2i.card_sample is None and (memory is None or memory.device_bytes is None)
        return Level(
            "RAM",
            0 if memory is None else memory.ram_bytes,
            self._ram_bytes,
            session.peak_bytes if alone and memory is not None else None,
            (plan.ram_budget_bytes or None) if plan is not None else None,
            session.device if alone else "",
        )

    def _card_level(self) -> Level | None:
        """The card, or the simulated one; None where there is none."""
        session, card = self.t2i.session, self.t2i.card_sample
        plan, memory = session.plan, session.progress.memory
        if card is not None:
            parts = [f"GPU {card.utilization}%" if card.utilization is not None else ""]
            parts.append(f"{card.temperature} C" if card.temperature is not None else "")
            parts.append(f"{card.watts:.0f} W" if card.watts is not None else "")
            peak, budget = (session.peak_bytes, None) if plan is None else (plan.peak_bytes, plan.budget_bytes or None)
            return Level("VRAM", card.used_bytes, card.total_bytes, peak, budget, " ".join(filter(None, parts)))
        if plan is None or memory is None or memory.device_bytes is None:
            return None
        return Level("VRAM", memory.device_bytes, plan.budget_bytes, plan.peak_bytes, notes=plan.target)

    def _shows_live(self) -> bool:
        """The live preview is shown while the prompt has the focus, or the running job is selected."""
        if self.t2i.preview_size == "off":
            return False
        running = self.t2i.session.running
        return self.prompt.has_focus or (running is not None and self.jobs.selected_id == running.id)

    def _show_live(self) -> bool:
        """Show the live preview if there is one and it is what the person looks at; says whether it does."""
        session = self.t2i.session
        if session.running is None or session.preview is None or not self._shows_live():
            return False
        self._shown_path = None
        self.picture.show(session.preview, f"step {session.progress.step} of {session.progress.steps}")
        return True

    def _choose_picture(self) -> None:
        """The live preview, or the selected picture's thumbnail."""
        session = self.t2i.session
        if self._show_live():
            return
        job = self.selected_job()
        if job is None:
            self._shown_path = None
            self.picture.show(None, "" if session.results else "your picture will be here")
        elif job.path is None:
            if session.running is None or job.id != session.running.id:
                self._shown_path = None
                self.picture.show(None, self._told(job))
        elif job.path != self._shown_path:
            self._load_thumbnail(job)

    def _told(self, job: Job) -> str:
        """What stands where a job has no picture: what became of it; of a simulated one, its plan in short."""
        texts = [job.message or job.state]
        plan = self.t2i.session.plans.get(job.id)
        if job.simulated and plan is not None:
            texts.append(f"plan: {plan_summary(plan)}")
            if job.seconds is not None:
                texts.append(f"~{duration(job.seconds)} on {plan.target}")
            texts.append(f"{self.t2i.keys.shown('view.plan')} shows the whole plan")
        return "\n".join(texts)

    def _load_thumbnail(self, job: Job) -> None:
        path, room = job.path, self.picture.room
        assert path is not None
        self._shown_path = path
        caption = f"seed {job.request.seed}" + (f"  {duration(job.seconds)}" if job.seconds is not None else "")

        def load() -> None:
            frame = self.t2i.thumbnails.get(path, room.width, room.height)
            self.app.call_later(self._thumbnail_loaded, path, frame, caption)

        self.app.run_worker(load, name="thumbnail", thread=True, exit_on_error=False)

    def _thumbnail_loaded(self, path: Path, frame: Preview | None, caption: str) -> None:
        if path == self._shown_path:
            self.picture.show(frame, caption if frame is not None else f"{path.name} cannot be shown")

    def _tick(self) -> None:
        self.t2i.sample_card()
        self.t2i.watch_engine()
        self.update_progress()

    def _show_keys(self) -> None:
        ids = PROMPT_BAR if self.prompt.has_focus else LIST_BAR
        keys = self.t2i.keys
        letters = not self.prompt.has_focus
        self.query_one(KeyBar).show(tuple((keys.shown(name, letter=letters), keys[name].label) for name in ids))

    def _limit_preview(self) -> None:
        """How large pictures are drawn: over SSH a frame costs seconds of a slow line."""
        columns, rows = self.t2i.preview_limit
        self.picture.limit = Size(columns, rows)

    def on_resize(self) -> None:
        """The room for pictures changed: load the thumbnail anew."""
        self._shown_path = None
        self.call_after_refresh(self._choose_picture)

    def on_descendant_focus(self) -> None:
        """Other keys, perhaps another picture."""
        self._show_keys()
        self._choose_picture()

    # The prompt.

    @on(TextArea.Changed, "#prompt")
    def _prompt_changed(self) -> None:
        if self._draft_timer is None:  # one that is set stays: who types without a pause is not left out
            self._draft_timer = self.set_timer(DRAFT_SECONDS, self.save_draft)
        self._show_variants()

    def _show_variants(self) -> None:
        """Below the prompt: how many pictures it stands for, where it has variants."""
        text = self.prompt.text
        variants = ""
        if "{" in text and len(text) <= MAX_PROMPT_CHARACTERS:
            expansion = expand(text)
            count = self.t2i.session.parameters.count
            variants = expansion.summary
            if variants and count > 1:
                variants += f" x {count} = {len(expansion.prompts) * count} pictures"
        elif len(text) > MAX_PROMPT_CHARACTERS:
            variants = f"{len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed"
        line = self.query_one("#variants", Static)
        if variants != self._variants:  # an update lays the whole screen out anew: not for every letter
            self._variants = variants
            line.display = bool(variants)
            line.update(Content(variants))

    def save_draft(self) -> None:
        """For the next start."""
        if self._draft_timer is not None:
            self._draft_timer.stop()
            self._draft_timer = None
        self.t2i.session.history.save_soon("draft", self.prompt.text)  # a slow disk holds up no key
        self.t2i.tell_notices()

    # The focus moves at once, not by a message as with `focus`: the next key may be here already.

    def _to_pictures(self) -> None:
        self.set_focus(self.jobs)

    def take_prompt(self, text: str) -> None:
        """Put a text into the prompt and go there; what was there is in the history."""
        before = clean(self.prompt.text).strip()
        if before and before != clean(text).strip():
            self.t2i.session.history.add_prompt(before)
        self.prompt.put(text)
        self.set_focus(self.prompt)

    def action_toggle_focus(self) -> None:
        """Between the prompt and the pictures."""
        if self.prompt.has_focus:
            self.prompt.action_leave()
        else:
            self.set_focus(self.prompt)

    def action_edit(self) -> None:
        """The prompt in $VISUAL or $EDITOR."""
        try:
            command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "", posix=os.name != "nt")
        except ValueError:
            command = []
        if not command:
            self.t2i.say("Set $EDITOR to the program that you write with, such as vim or nano.", "warning")
            return
        path = None
        try:
            handle, name = tempfile.mkstemp(suffix=".txt", prefix="prompt-")
            path = Path(name)
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as stream:
                stream.write(self.prompt.text)
            with self.t2i.suspender.lent():
                result = subprocess.run([*command, name], check=False)
            if result.returncode:
                self.t2i.say(
                    f"{command[0]} ended with exit code {result.returncode}; the prompt is as it was.", "warning"
                )
            else:
                self.take_prompt(path.read_text("utf-8", errors="replace").rstrip("\n"))
        except SuspendNotSupported:
            self.t2i.say("This terminal cannot be lent to another program.", "warning")
        except OSError as error:
            self.t2i.say(f"{command[0]} could not be run: {(error.strerror or 'unknown reason').lower()}.", "error")
        finally:
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()

    def action_search_history(self) -> None:
        """Earlier prompts."""

        def chosen(text: str | None) -> None:
            if text is not None:
                self.take_prompt(text)

        self.app.push_screen(SearchPrompts(self.t2i.session.history.prompts()), chosen)

    # Jobs.

    def action_generate(self) -> None:
        """The prompt as it is."""
        self.prompt.submit()

    def action_generate_new_seed(self) -> None:
        """The prompt with a new seed, even if one is locked."""
        self.prompt.submit("new seed")

    def action_generate_now(self) -> None:
        """This one first: the running picture is given up at once."""
        self.prompt.submit("first")

    @on(PromptArea.Submitted)
    def _submitted(self, event: PromptArea.Submitted) -> None:
        session = self.t2i.session
        first = event.how == "first"
        try:
            jobs = session.enqueue(clean(event.text).strip(), new_seed=event.how == "new seed", first=first)
        except RequestError as error:
            self.t2i.say(str(error), "error")
            return
        self.t2i.submitted_text, self.t2i.last_cancel = event.text, None
        self.save_draft()
        # Nothing else waits for the pause to end, and it was not the person who asked for it.
        if session.running is None and len(session.queue) == len(jobs) and not session.held:
            session.paused = False
        if first and session.running is not None:
            self.t2i.cancel(after_step=False)
        if session.running is None:
            self.jobs.highlighted = None  # it is what the person wants to see
        self.t2i.go_on()

    def action_cancel(self) -> None:
        """First after this step, then at once; copies where text is selected."""
        selected = self.get_selected_text()
        if selected:
            self.app.copy_to_clipboard(selected)
            return
        session = self.t2i.session
        if session.running is None and not session.silence:
            self.t2i.say(f"Nothing runs. {self.t2i.keys.shown('app.quit')} leaves.")
            return
        self.t2i.cancel(after_step=not session.cancelling)

    def action_pause(self) -> None:
        """Hold the queue, or go on."""
        session = self.t2i.session
        session.paused = session.held = not session.paused
        if session.paused:
            self.t2i.say(f"Nothing new begins until {self.t2i.keys.shown('queue.pause')} is pressed again.")
        self.t2i.go_on()

    def action_move(self, step: int) -> None:
        """The selected job up or down the queue."""
        job = self.selected_job()
        if job is None or job.state != "queued":
            self.t2i.say("Only a waiting job can be moved.")
            return
        self.t2i.session.move(job.id, step)
        self.update()

    def action_clear_queue(self) -> None:
        """Remove every waiting job, after asking."""
        waiting = len(self.t2i.session.queue)
        if not waiting:
            self.t2i.say("The queue is empty.")
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self.t2i.say(f"{self.t2i.session.clear_queue()} removed; their prompts are in the history.")
                self.update()

        self.app.push_screen(Confirm(f"Remove {counted(waiting, 'waiting job')}?"), answered)

    def action_leave_app(self) -> None:
        """Leave, after asking where something is left undone: a letter alone may have been meant for the prompt."""
        session, text = self.t2i.session, self.prompt.text
        if session.running is not None:
            question = "Leave? The picture in work is begun anew when you come back."
        elif session.queue:
            question = "Leave? What waits is offered again when you come back."
        elif text.strip() and text != self.t2i.submitted_text:
            question = "Leave? What is typed will be there when you come back."
        else:
            self.call_later(self.t2i.action_quit)
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self.call_later(self.t2i.action_quit)

        self.app.push_screen(Confirm(question), answered)

    # Parameters.

    def action_lock_seed(self) -> None:
        """Lock the last used seed, or let go of it."""
        try:
            self.t2i.say(self.t2i.session.lock_seed())
        except RequestError as error:
            self.t2i.say(str(error), "warning")
        self.t2i.parameters_changed()

    def action_change_seed(self, step: int) -> None:
        """One more or less."""
        try:
            self.t2i.session.change_seed(step)
        except RequestError as error:
            self.t2i.say(str(error), "warning")
        self.t2i.parameters_changed()

    def action_change_count(self, step: int) -> None:
        """One more or less."""
        self.t2i.session.parameters.step("count", step)
        self.t2i.parameters_changed()

    def action_parameters(self) -> None:
        """To the panel, which is a window where the screen has no room for it."""
        panel = self.query_one(ParametersPanel)
        if panel.display and panel.has_focus:
            self._leave_parameters()
        elif panel.display:
            self._came_from = self.focused or self.prompt
            self.set_focus(panel)
        else:
            self.app.push_screen(
                ParametersWindow(
                    self.t2i.session.parameters,
                    self.t2i.keys.pressed("view.parameters"),
                    ascii_only=self.t2i.profile.ascii,
                )
            )

    def _leave_parameters(self) -> None:
        """Back to where one came from."""
        self.set_focus(self._came_from)

    def parameters_changed(self) -> None:
        """Show them."""
        self.query_one(ParametersPanel).update()
        self._update_header()
        self._show_variants()

    def action_plan(self) -> None:
        """The plan of the selected job in the list; else of the running one, or of the last."""
        from tui.screens.plan import PlanWindow

        session = self.t2i.session
        selected = self.jobs.selected_id if self.jobs.has_focus else None
        job_id = selected if selected in session.plans else session.planned
        plan, job = session.plans.get(job_id), session.find(job_id)
        if plan is None:
            self.t2i.say("There is no plan yet; it comes with the next picture, before anything is loaded.")
            return
        close_keys = self.t2i.keys.pressed("view.plan")
        self.app.push_screen(PlanWindow(plan, job, close_keys, ascii_only=self.t2i.profile.ascii))

    def action_cycle_preview(self) -> None:
        """Live preview off, low, high."""
        place = PREVIEWS.index(self.t2i.preview_size)
        self.t2i.preview_size = PREVIEWS[(place + 1) % len(PREVIEWS)]
        self._limit_preview()
        self.t2i.say(f"Live preview: {self.t2i.preview_size}.")
        self.on_resize()

    def action_change_output(self) -> None:
        """Save the next pictures elsewhere."""

        def chosen(text: str | None) -> None:
            if text is not None and text.strip():
                self.t2i.change_output(text.strip())

        self.app.push_screen(AskText("Save pictures to this folder:", self.t2i.session.output), chosen)

    def action_gallery(self) -> None:
        """All pictures of the output folder."""
        from tui.screens.gallery import Gallery

        self.app.push_screen(Gallery(self.t2i.output_folder))

    def action_models(self) -> None:
        """The models that there are."""
        from tui.screens.models import ModelsScreen

        self.app.push_screen(ModelsScreen())

    # Pictures.

    def selected_job(self) -> Job | None:
        """The highlighted row's job."""
        job_id = self.jobs.selected_id
        return None if job_id is None else self.t2i.session.find(job_id)

    def selected_path(self) -> Path | None:
        """The highlighted row's picture."""
        job = self.selected_job()
        return None if job is None else job.path

    def select(self, path: Path) -> None:
        """Highlight a picture's row, if it has one."""
        job = next((job for job in self.t2i.session.results if job.path == path), None)
        if job is not None:
            self.jobs.select(job.id)

    def neighbour(self, path: Path, step: int) -> Path | None:
        """The picture above or below in the list."""
        paths = [job.path for job in self.t2i.session.results if job.path is not None]
        place = paths.index(path) + step if path in paths else -1
        return paths[place] if 0 <= place < len(paths) else None

    def pictures_changed(self) -> None:
        """Stars, or the list itself."""
        self._favourites = self.t2i.session.history.favourites()
        self._shown_path = None
        self.update()

    def action_remix(self) -> None:
        """As everywhere; a job that failed is tried again as it was."""
        job = self.selected_job()
        if job is not None and job.state == "failed":
            self.t2i.session.retry(job)
            self.t2i.go_on()
            return
        super().action_remix()

    @on(OptionList.OptionHighlighted, "#jobs")
    def _highlighted(self) -> None:
        self._choose_picture()

    @on(OptionList.OptionSelected, "#jobs")
    def _selected(self) -> None:
        if self.selected_path() is not None:
            self.action_view()
        else:
            self.action_info()

    def _is_favourite(self, job: Job) -> bool:
        return job.path in self._favourites
