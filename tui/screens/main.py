"""The main screen: prompt, phases, memory, pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import OptionList, Static, TextArea

from engine.request import RequestError
from tui import sheets, status
from tui.bindings import LIST_BAR, PROMPT_BAR, bindings_of
from tui.course import Course
from tui.dispatcher import Dispatcher
from tui.jobs import Job
from tui.orders import Order
from tui.screens.dialogs import AskText, ParametersWindow, SearchPrompts
from tui.screens.pictures import PicturesScreen
from tui.shared import Shared
from tui.text import clean, counted
from tui.widgets.gauge import Gauge
from tui.widgets.job_picture import JobPicture
from tui.widgets.joblist import JobList
from tui.widgets.lines import ForecastLine, HeaderLine, KeyBar, WorkLine
from tui.widgets.memory_plot import MemoryPlot
from tui.widgets.parameters import ParametersPanel
from tui.widgets.prompt import PromptArea
from tui.widgets.timeline import Timeline

DRAFT_SECONDS = 1.0  # of what is typed, the most that a kill costs


class MainScreen(PicturesScreen):
    """Where the evening is spent."""

    BINDINGS = bindings_of("main", "pictures")
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny-width"), (60, "-narrow"), (100, "-normal"), (160, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-tiny-height"), (16, "-short"), (22, "-medium"), (30, "-tall")]

    def __init__(self, shared: Shared, dispatcher: Dispatcher) -> None:
        super().__init__(shared)
        self.session, self.dispatcher = shared.session, dispatcher
        self.submitted_text = ""  # of the prompt, when Enter was pressed last

    def compose(self) -> ComposeResult:
        """From top to bottom; the stylesheet decides what is seen at which size."""
        profile, session = self.shared.profile, self.session
        yield HeaderLine(ascii_only=profile.ascii, id="header")
        yield PromptArea(session.history.prompts, self._to_pictures, id="prompt")
        yield Static(id="variants")
        yield ForecastLine(ascii_only=profile.ascii, id="forecast")
        yield Timeline(ascii_only=profile.ascii, id="timeline")
        yield MemoryPlot(ascii_only=profile.ascii, id="plot")
        yield Gauge(ascii_only=profile.ascii, id="gauge")
        yield WorkLine(ascii_only=profile.ascii, id="work")
        with Horizontal(id="body"):
            yield JobList(
                self.shared.thumbnails,
                rendering=profile.rendering,
                ascii_only=profile.ascii,
                is_favourite=self._is_favourite,
                is_marked=self._is_marked,
                id="jobs",
            )
            yield JobPicture(self.shared, id="picture")
            yield ParametersPanel(session.parameters, self._leave_parameters, ascii_only=profile.ascii, id="parameters")
        yield KeyBar(id="keys")

    def on_mount(self) -> None:
        """Everything that is known already."""
        self.jobs = self.query_one(JobList)
        self.prompt = self.query_one(PromptArea)
        self.picture = self.query_one(JobPicture)
        self.timeline = self.query_one(Timeline)
        self.forecast = self.query_one(ForecastLine)
        self.plot = self.query_one(MemoryPlot)
        self.gauge = self.query_one(Gauge)
        self.prompt.border_title = Content("prompt")
        panel = self.query_one(ParametersPanel)
        panel.border_title, panel.border_subtitle = Content("parameters"), Content(self._preset_keys)
        # What is seen moves only while something runs: idle writes nothing.
        self._ticks = self.set_interval(1.0 if self.shared.profile.slow else 0.5, self._tick, pause=True)
        self._ticking = False
        self._ram_bytes = psutil.virtual_memory().total
        self._draft_timer: Timer | None = None
        self._favourites: set[Path] = self.session.history.favourites()
        self._variants = ""  # the line below the prompt
        self._reads_wildcards = False  # for it
        self._came_from: Widget = self.prompt  # to the panel of parameters
        self.set_focus(self.prompt)
        self._show_keys()
        self.update(follow=True)
        self.shared.models_changed.subscribe(self, lambda _: self.update_work())

    # What is shown.

    def update(self, *, follow: bool = False) -> None:
        """Take over the session's state; the highlight goes to the newest picture with `follow`."""
        if not self._is_covered:
            self._update_header()
            self.jobs.show(self.session, follow=follow)
            self.update_progress()
            self.update_forecast()
            self.update_work()
            self._choose_picture()
        busy = self.session.is_busy
        if busy != self._ticking:
            self._ticking = busy
            if busy:
                self.session.watch.restart()
                self._ticks.resume()
            else:
                self._ticks.pause()
        self._save_sheets()

    @property
    def follows(self) -> bool:
        """Whether the highlight goes to what begins next: unless the person chose another row than the newest."""
        session = self.session
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
            pull, scan = self.shared.pull, self.shared.scan
            line = self.query_one("#work", WorkLine)
            if pull is not None:
                line.show(f"pull {pull.name}", str(pull), pull.fraction)
            elif scan is not None:
                line.show("scan", str(scan))
            else:
                line.show("", "")

    def update_progress(self) -> None:
        """Timeline, memory and live preview."""
        if self._is_covered:
            return
        session = self.session
        self.timeline.show(
            session.progress,
            status.state(session, self.shared.pause_keys(in_prompt=self.prompt.has_focus)),
            silence="ending the engine ..." if session.watch.ending else session.watch.silence,
            skipped=session.restored,
            failed=session.ended_in,
            estimated=session.estimated,
        )
        self._update_gauge()
        self._update_plot()
        self._show_live()

    def _update_header(self) -> None:
        right = (*status.waiting(self.session), self.shared.profile.label)
        self.query_one(HeaderLine).show(status.next_picture(self.session), right)

    def _update_gauge(self) -> None:
        """Memory in one line, where there is no room for its course."""
        sample = self.shared.card.sample
        card = status.card_level(self.session, sample)
        self.gauge.show(card or status.ram_level(self.session, sample, self._ram_bytes))

    def _update_plot(self) -> None:
        session = self.session
        course = session.course
        if course.is_empty and session.running is None:  # nothing ran yet: the next picture, as it is foreseen
            course = Course(session.forecast.plan)
        legend = status.legend(session, self.shared.card.sample, self._ram_bytes)
        self.plot.show(course, legend)

    def update_forecast(self) -> None:
        """How the next picture would run."""
        if not self._is_covered:
            texts, kind = status.forecast(self.session, has_prompt=bool(self.prompt.text.strip()))
            self.forecast.show(texts, kind)
            if self.app.screen is not self:  # the parameters' window, which says itself what does not go together
                for line in self.app.screen.query(ForecastLine):
                    line.show(() if self.session.parameters.conflict else texts, kind)
            self._update_plot()

    def _show_live(self) -> bool:
        """The live preview, while the prompt has the focus or the running job is selected; whether there is one."""
        running = self.session.running
        looks = self.prompt.has_focus or (running is not None and self.jobs.selected_id == running.id)
        return looks and self.picture.show_live()

    def _choose_picture(self) -> None:
        """The live preview, or the selected job's picture."""
        session, job = self.session, self.selected_job()
        if self._show_live():
            return
        if job is None:
            self.picture.show_text("" if session.results else "your picture will be here")
        elif job.path is not None:
            self.picture.show_file(job, job.path)
        elif job is session.running:
            self.picture.clear_text()  # of the job before; its picture may stay until there is another
        else:
            self.picture.show_text(status.outcome(session, job, self.shared.keys.shown("view.plan")))

    def _tick(self) -> None:
        self.shared.card.look()
        self.dispatcher.watch()
        self.update_progress()

    def _show_keys(self) -> None:
        ids = PROMPT_BAR if self.prompt.has_focus else LIST_BAR
        keys = self.shared.keys
        letters = not self.prompt.has_focus
        self.query_one(KeyBar).show(tuple((keys.shown(name, letter=letters), keys[name].label) for name in ids))

    def on_resize(self) -> None:
        """The room for pictures changed: load the thumbnail anew."""
        self.picture.forget()
        self.call_after_refresh(self._choose_picture)

    def on_descendant_focus(self) -> None:
        """Other keys, perhaps another picture."""
        self._show_keys()
        self.update_progress()  # its line of state names keys, too
        self._choose_picture()

    # The prompt.

    @on(TextArea.Changed, "#prompt")
    def _prompt_changed(self) -> None:
        if self._draft_timer is None:  # one that is set stays: who types without a pause is not left out
            self._draft_timer = self.set_timer(DRAFT_SECONDS, self.save_draft)
        self._show_variants()
        self.dispatcher.foresee(clean(self.prompt.text).strip())

    def _show_variants(self) -> None:
        """Below the prompt: how many pictures it stands for, where it has variants or the panel a grid."""
        text, parameters = self.prompt.text, self.session.parameters
        if "__" not in text:
            self._show_line(status.pictures(text, parameters.count, parameters.axes.values()))
        elif not self._reads_wildcards:  # one thread at a time, which may take longer than a key
            self._reads_wildcards = True
            asked = text, parameters.count, tuple(parameters.axes.values())

            def read() -> None:
                self.app.call_later(told, status.pictures(*asked))

            def told(line: str) -> None:
                self._reads_wildcards = False
                if asked == (self.prompt.text, parameters.count, tuple(parameters.axes.values())):
                    self._show_line(line)
                else:
                    self._show_variants()

            self.run_worker(read, name="wildcards", thread=True, exit_on_error=False)

    def _show_line(self, variants: str) -> None:
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
        self.session.history.save_soon("draft", self.prompt.text)  # a slow disk holds up no key
        self.shared.tell_notices()

    def set_focus(self, widget: Widget | None, scroll_visible: bool = True, from_app_focus: bool = False) -> None:
        """Something always has the focus: the prompt, where what had it was hidden because the terminal is small."""
        if widget is None and self.app.app_focus:
            before = self.focused
            seen = before is not None and all(node.display for node in before.ancestors_with_self)
            widget = before if seen else self.prompt
        super().set_focus(widget, scroll_visible, from_app_focus)

    # The focus moves at once, not by a message as with `focus`: the next key may be here already.

    def _to_pictures(self) -> None:
        self.set_focus(self.jobs)

    def take_prompt(self, text: str) -> None:
        """Put a text into the prompt and go there; what was there is in the history."""
        before = clean(self.prompt.text).strip()
        if before and before != clean(text).strip():
            self.session.history.add_prompt(before)
        self.prompt.put(text)
        self.set_focus(self.prompt)

    def action_focus_prompt(self) -> None:
        """To the prompt, where one is there already, too: what is typed next is no command."""
        self.set_focus(self.prompt)

    def action_edit(self) -> None:
        """The prompt in the person's own editor."""
        from tui.editor import EditorError, edited

        try:
            self.take_prompt(edited(self.prompt.text, self.shared.host.lend_terminal))
        except EditorError as error:
            self.shared.say(str(error), error.severity)

    def action_search_history(self) -> None:
        """Earlier prompts."""

        def chosen(text: str | None) -> None:
            if text is not None:
                self.take_prompt(text)

        self.app.push_screen(SearchPrompts(self.session.history.prompts()), chosen)

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
        text = clean(event.text).strip()
        try:
            order = self.session.order(text, new_seed=event.how == "new seed")
        except RequestError as error:
            self.shared.say(str(error), "error")
            return
        if "__" in text:  # files are read

            def read() -> None:
                try:
                    ordered = order()
                except RequestError as error:
                    self.app.call_later(self.shared.say, str(error), "error")
                else:
                    self.app.call_later(self._enqueue, event, lambda: ordered)

            self.run_worker(read, name="wildcards", thread=True, exit_on_error=False)
        else:
            self._enqueue(event, order)

    def _enqueue(self, event: PromptArea.Submitted, order: Callable[[], Order]) -> None:
        session, text = self.session, clean(event.text).strip()
        first, new_seed = event.how == "first", event.how == "new seed"
        try:
            jobs = session.enqueue(text, new_seed=new_seed, first=first, ordered=order())
        except RequestError as error:
            self.shared.say(str(error), "error")
            return
        self.submitted_text, self.dispatcher.last_cancel = event.text, None
        self.save_draft()
        # Nothing else waits for the pause to end, and it was not the person who asked for it.
        if session.running is None and len(session.queue) == len(jobs) and not session.held:
            session.paused = False
        if first and session.running is not None:
            self.dispatcher.cancel(after_step=False)
        if session.running is None:
            self.jobs.highlighted = None  # it is what the person wants to see
        self.dispatcher.go_on()

    def _save_sheets(self) -> None:
        """Of grids that are done."""
        for grid, sheet in self.session.complete_sheets().items():
            self.run_worker(partial(self._save_sheet, grid, sheet), name="sheet", thread=True, exit_on_error=False)

    def _save_sheet(self, grid: str, sheet: sheets.Sheet) -> None:
        """In a thread."""
        self.app.call_later(self._sheet_saved, grid, *sheets.save(sheet.axes, sheet.cells))

    def _sheet_saved(self, grid: str, sentence: str, good: bool) -> None:
        self.session.forget_sheet(grid)
        if sentence:
            self.shared.say(sentence, "information" if good else "error")
            self.shared.host.refresh_folders()

    def action_cancel(self) -> None:
        """First after this step, then at once; copies where text is selected."""
        selected = self.get_selected_text()
        if selected:
            self.app.copy_to_clipboard(selected)
            return
        session = self.session
        if session.running is None and not session.watch.silence:
            self.shared.say(f"Nothing runs. {self.shared.keys.shown('app.quit')} leaves.")
            return
        self.dispatcher.cancel(after_step=not session.cancelling)

    def action_pause(self) -> None:
        """Hold the queue, or go on."""
        session = self.session
        session.paused = session.held = not session.paused
        if session.paused:
            self.shared.say(f"Nothing new begins until {self.shared.keys.shown('queue.pause')} is pressed again.")
        self.dispatcher.go_on()

    def action_move(self, step: int) -> None:
        """The selected job up or down the queue."""
        job = self.selected_job()
        if job is None or job.state != "queued":
            self.shared.say("Only a waiting job can be moved.")
            return
        self.session.move(job.id, step)
        self.update()

    def action_clear_queue(self) -> None:
        """Remove every waiting job, after asking."""
        waiting = len(self.session.queue)
        if not waiting:
            self.shared.say("The queue is empty.")
            return

        def clear() -> None:
            self.shared.say(f"{self.session.clear_queue()} removed; their prompts are in the history.")
            self.update()

        self.ask(f"Remove {counted(waiting, 'waiting job')}?", clear)

    def action_leave_app(self) -> None:
        """Leave, after asking where something is left undone: a letter alone may have been meant for the prompt."""
        session, text = self.session, self.prompt.text
        if session.running is not None:
            left = "The picture in work is begun anew when you come back."
        elif session.queue:
            left = "What waits is offered again when you come back."
        elif text.strip() and text != self.submitted_text:
            left = "What is typed will be there when you come back."
        else:
            self._quit()
            return
        self.ask(f"Leave? {left}", self._quit)

    def _quit(self) -> None:
        self.call_later(self.app.action_quit)

    # Parameters.

    def action_lock_seed(self) -> None:
        """Lock the last used seed, or let go of it."""
        try:
            self.shared.say(self.session.parameters.lock_seed(self.session.last_seed))
        except RequestError as error:
            self.shared.say(str(error), "warning")
        self.shared.parameters_changed()

    def action_change_seed(self, step: int) -> None:
        """One more or less."""
        try:
            self.session.parameters.change_seed(self.session.last_seed, step)
        except RequestError as error:
            self.shared.say(str(error), "warning")
        self.shared.parameters_changed()

    def action_change_count(self, step: int) -> None:
        """One more or less."""
        self.session.parameters.step("count", step)
        self.shared.parameters_changed()

    def action_reset_parameters(self) -> None:
        """All of them as the model prefers."""
        self.session.parameters.reset_all()
        self.shared.parameters_changed()
        self.shared.say("All parameters are as the model prefers them.")

    def action_parameters(self) -> None:
        """To the panel, which is a window where the screen has no room for it."""
        panel = self.query_one(ParametersPanel)
        if panel.display and panel.has_focus:
            self._leave_parameters()
        elif panel.display:
            self._came_from = self.focused or self.prompt
            self.set_focus(panel)
        else:
            keys, ascii_only = self.shared.keys, self.shared.profile.ascii
            actions = {
                "preset.choose": self.action_choose_preset,
                "preset.save": self.action_save_preset,
                "parameters.reset": self.action_reset_parameters,
            }
            commands = {key: action for command, action in actions.items() for key in keys.pressed(command)}
            close_keys = keys.pressed("view.parameters")
            self.app.push_screen(
                ParametersWindow(
                    self.session.parameters, close_keys, commands, f"{self._preset_keys}  ", ascii_only=ascii_only
                )
            )
            self.call_after_refresh(self.update_forecast)

    @property
    def _preset_keys(self) -> str:
        keys = self.shared.keys
        return f"{keys.shown('preset.save', letter=True)} keeps  {keys.shown('preset.choose', letter=True)} presets"

    def action_save_preset(self) -> None:
        """What is set, under a name."""
        from tui.screens.preset_dialogs import save_preset

        save_preset(self.app, self.shared)

    def action_choose_preset(self) -> None:
        """Take over what has a name."""
        from tui.screens.preset_dialogs import choose_preset

        choose_preset(self.app, self.shared)

    def _leave_parameters(self) -> None:
        """Back to where one came from."""
        self.set_focus(self._came_from)

    def parameters_changed(self) -> None:
        """Show them."""
        self.query_one(ParametersPanel).update()
        self._update_header()
        self._show_variants()
        self.dispatcher.foresee(clean(self.prompt.text).strip())

    def action_plan(self) -> None:
        """What is set now, beside the picture in work or the last one; in the list the selected one comes first."""
        from tui.screens.plan import PlanWindow, Shown

        session, known = self.session, self.session.forecast
        now = Shown(None, known.plan, Course(known.plan) if known.plan is not None else None, known.refusal)
        selected = self.selected_job() if self.jobs.has_focus else None
        last = selected or session.running or next(iter(session.results), None)
        then = Shown(last, session.plans.get(last.id), session.course_of(last)) if last is not None else None
        order = (then, now) if selected is not None and then is not None and then.plan is not None else (now, then)
        told = [each for each in order if each is not None and (each.plan or each.course or each.refusal)]
        if not told:
            self.shared.say("There is no plan yet; it comes as soon as a model is open.")
            return
        close_keys = self.shared.keys.pressed("view.plan")
        second = told[1] if len(told) > 1 else None
        self.app.push_screen(PlanWindow(told[0], second, close_keys, ascii_only=self.shared.profile.ascii))

    def action_cycle_preview(self) -> None:
        """Live preview off, low, high."""
        self.shared.say(f"Live preview: {self.picture.cycle_preview()}.")
        self.on_resize()

    def offer_another_place(self) -> None:
        """Where the output folder cannot be used. Not over what is being typed."""
        if self.prompt.has_focus and self.is_current and self.prompt.text != self.submitted_text:
            leave, change = map(self.shared.keys.shown, ("prompt.leave", "output.change"))
            self.shared.say(f"{leave} and then {change} chooses another folder.", "warning")
        elif self.is_current:
            self.action_change_output()

    def action_change_output(self) -> None:
        """Save the next pictures elsewhere."""

        def chosen(text: str | None) -> None:
            if text is not None and text.strip():
                self.dispatcher.change_output(Path(text.strip()))

        self.app.push_screen(AskText("Save pictures to this folder:", self.session.output), chosen)

    def action_gallery(self) -> None:
        """All pictures of the output folder."""
        self.shared.host.open_gallery()

    def action_models(self) -> None:
        """The models that there are."""
        self.shared.host.open_models()

    # Pictures.

    def selected_job(self) -> Job | None:
        """The highlighted row's job."""
        job_id = self.jobs.selected_id
        return None if job_id is None else self.session.find(job_id)

    def selected_path(self) -> Path | None:
        """The highlighted row's picture."""
        job = self.selected_job()
        return None if job is None else job.path

    def select(self, path: Path) -> None:
        """Highlight a picture's row, if it has one."""
        job = next((job for job in self.session.results if job.path == path), None)
        if job is not None:
            self.jobs.select(job.id)

    def shows(self, path: Path) -> bool:
        """Whether it has a row."""
        return any(job.path == path for job in self.session.results)

    def neighbour(self, path: Path, step: int) -> Path | None:
        """The picture above or below in the list."""
        paths = [job.path for job in self.session.results if job.path is not None]
        place = paths.index(path) + step if path in paths else -1
        return paths[place] if 0 <= place < len(paths) else None

    def pictures_changed(self) -> None:
        """Stars, or the list itself."""
        self._favourites = self.session.history.favourites()
        self.picture.forget()
        self.update()

    def action_remix(self) -> None:
        """As everywhere; a job that failed is tried again as it was."""
        job = self.selected_job()
        if job is not None and job.state == "failed":
            self.session.retry(job)
            self.dispatcher.go_on()
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

    def _is_marked(self, job: Job) -> bool:
        return job.path in self.shared.marked
