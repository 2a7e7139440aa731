"""What the app knows: queue, picture in work, results, model, parameters. No widget is touched here.

Every change that must outlive the app is written to the history at once.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.cli.plan_text import part_of
from engine.cli.progress import PictureProgress
from engine.events import (
    Cancelled,
    Encoded,
    Event,
    Failed,
    ImageSaved,
    LatentsRestored,
    Phase,
    PhaseFinished,
    Plan,
    Planned,
    Preview,
    Simulated,
    StepFinished,
)
from engine.process import (
    Foreseen,
    JobEvent,
    JobRefused,
    LoadEvent,
    MemorySampled,
    Message,
    ModelLoaded,
    ModelOpened,
    ModelRefused,
)
from engine.prompts.variants import expand
from engine.request import MAX_SEED, Request, RequestError
from tui.course import Course
from tui.forecast import Forecast
from tui.history import GRID, History
from tui.jobs import Job, State
from tui.orders import Order, order
from tui.parameters import Parameters
from tui.sheets import Sheet
from tui.trash import Result
from tui.watchdog import Watchdog, Work

NO_PROMPT = "a picture"  # foreseen where nothing is written yet
SHOWN_RESULTS = 200
MAX_DEATHS = 2  # of the engine in a row, before the queue waits for the person


class Session:
    """One evening. Methods that the person asks for raise `RequestError` with one sentence."""

    def __init__(self, history: History, model: str, output: str, *, simulate: bool = False) -> None:
        """`simulate`: new jobs are only simulated."""
        self.history = history
        self.simulate = simulate
        self.model = model  # of new jobs
        self.opening = model  # what the engine was told to open; another one where a job waits for that
        self.opened = ""  # what it has open
        self.output = output  # "": the default folder
        self.parameters = Parameters()
        self.queue: list[Job] = []  # waiting, the next one first
        self.sheets: dict[str, Sheet] = {}  # of grids that are on their way, by their ids
        self.running: Job | None = None
        self.results: list[Job] = history.results(SHOWN_RESULTS)  # newest first
        self.paused = False
        self.held = False  # paused, and by the person
        self.cancelling = False  # the person gave the running job up
        self.watch = Watchdog()
        self.last_seed: int | None = next((job.request.seed for job in self.results), None)
        self.progress = PictureProgress()
        self.preview: Preview | None = None
        self.engine_state = "starting"  # starting, loading, ready, gone, refused
        self.device = ""
        self.hint = ""
        self.ended_in: Phase | None = None  # where the last job was cancelled or failed
        self.restored = False  # the running picture was denoised by an earlier run
        self.estimated: set[Phase] = set()  # phases of the picture in work whose seconds nobody measured
        self.plans: dict[str, Plan] = {}  # of this session's jobs, by their ids; the running or last one is last
        self.course = Course()  # of the picture in work, or of the last one
        self.forecast = Forecast()  # of what is set now
        self.slowness = 1.0  # how much longer the last picture took than was planned
        self._was_planned = False  # whether there was one
        self._courses: dict[str, Course] = {}  # of simulated pictures, which the history does not keep
        self.peak_bytes: int | None = None  # that the last picture took, which the next one will take, too
        self._told: set[str] = set()  # what the engine noticed
        self._highest_bytes = 0
        self._deaths = 0  # of the engine, without anything done in between

    # What the person does.

    def adopt(self) -> tuple[str, dict[str, Any]]:
        """Take over what the last session left; returns the draft and the values kept with it.

        Its jobs wait until the person goes on.
        """
        left = self.history.adopt()
        if left is None:
            return "", {}
        self.parameters.restore(left.values.get("parameters"))
        self.queue = [replace(job, state="queued") for job in left.jobs]
        self.paused = bool(self.queue)
        self._adopt_grids(left.values)
        self.history.put_all(self.queue)
        return left.draft, left.values

    def _adopt_grids(self, values: dict[str, Any]) -> None:
        """Go on with the grids of earlier sessions; a cell whose job is gone stays empty."""
        here = {(job.grid, job.cell) for job in self.queue}
        for key in [key for key in values if key.startswith(GRID)]:
            try:
                sheet = Sheet.from_dict(values.pop(key))
            except (ValueError, TypeError, KeyError, RecursionError):  # RequestError is a ValueError
                self.history.forget(key)
                continue
            grid = key.removeprefix(GRID)
            for cell, picture in enumerate(sheet.cells):
                if picture is None and (grid, cell) not in here:
                    sheet.place(cell, "")
            self.sheets[grid] = sheet

    def order(self, text: str, *, new_seed: bool = False) -> Callable[[], Order]:
        """What `text` asks for as all is set now: a call for any thread, which raises `RequestError`."""
        parameters, count = self.parameters, self.parameters.count
        if not parameters.axes:
            parameters.check_together()
        locked = None if new_seed else parameters.seed
        seed = random.SystemRandom().randrange(2**32) if locked is None else locked
        seed = min(seed, MAX_SEED - count + 1)
        axes = tuple(parameters.axes.values())
        if axes and not parameters.options:
            raise RequestError("grid", "a grid begins when the model is open; wait for it, or give each row one value.")
        choices, shape = parameters.requested(), replace(parameters).shape
        return partial(order, text, choices, range(seed, seed + count), axes, shape)

    def enqueue(
        self, text: str, *, new_seed: bool = False, first: bool = False, ordered: Order | None = None
    ) -> list[Job]:
        """A job for each variant of the prompt and each of the count, or for each cell of a grid; `ordered` is what
        `order` gave. Raises `RequestError`; then nothing changed."""
        ordered = ordered or self.order(text, new_seed=new_seed)()
        grid = uuid.uuid4().hex if ordered.axes and not self.simulate else ""
        jobs = [
            Job(request, self.model, self.output, simulated=self.simulate, grid=grid, cell=cell if grid else 0)
            for cell, request in enumerate(ordered.requests)
        ]
        kept = {}
        if grid:
            self.sheets[grid] = sheet = Sheet(ordered.axes, [None] * len(jobs))
            kept[f"{GRID}{grid}"] = sheet.to_dict()
        if new_seed and self.parameters.seed is not None:
            self.parameters.seed = ordered.requests[0].seed
        self.queue = jobs + self.queue if first else self.queue + jobs
        self.history.put_all(jobs, self._order(), text, values=kept)
        return jobs

    def complete_sheets(self) -> dict[str, Sheet]:
        """The grids of which nothing is on its way any more, by their ids; each is given once."""
        complete = {grid: sheet for grid, sheet in self.sheets.items() if sheet.is_complete}
        self.sheets = {grid: sheet for grid, sheet in self.sheets.items() if grid not in complete}
        return complete

    def forget_sheet(self, grid: str) -> None:
        """It is saved."""
        self.history.forget(f"{GRID}{grid}")

    def _placed(self, *jobs: Job) -> dict[str, Any]:
        """Tell their grids what became of jobs; returns what the history is to keep of these."""
        kept = {}
        for job in jobs:
            if (sheet := self.sheets.get(job.grid)) is not None:
                sheet.place(job.cell, "" if job.path is None else str(job.path))
                kept[f"{GRID}{job.grid}"] = sheet
        return {key: sheet.to_dict() for key, sheet in kept.items()}

    def begin_next(self) -> Job | None:
        """Take the next job off the queue as the running one, if nothing runs and the queue is not paused."""
        if self.running is not None or self.paused or not self.queue:
            return None
        self.running = job = replace(self.queue.pop(0), state="running")
        self.history.put(job)
        self.last_seed = job.request.seed
        self._new_progress()
        self.preview, self.hint, self.ended_in = None, "", None
        self.cancelling = self.restored = False
        self._highest_bytes = 0
        self.course = Course(simulated=job.simulated)
        self.progress.start("load")  # until the engine says otherwise
        self.watch.begin()
        return job

    def move(self, job_id: str, step: int) -> None:
        """Move a waiting job up (-1) or down (1)."""
        place = self._place(job_id)
        target = place + step
        if 0 <= target < len(self.queue):
            self.queue.insert(target, self.queue.pop(place))
            self.save_order()

    def remove(self, job_id: str) -> Job:
        """Take a waiting job off the queue; its prompt stays in the history."""
        job = self.queue.pop(self._place(job_id))
        self.history.put_all([], values=self._placed(job))
        self.history.remove(job_id)
        return job

    def clear_queue(self) -> int:
        """Remove every waiting job; returns how many."""
        removed = len(self.queue)
        self.history.put_all([], values=self._placed(*self.queue))
        self.history.remove(*(job.id for job in self.queue))
        self.queue = []
        return removed

    def retry(self, job: Job) -> Job:
        """The same request as a new job at the head of the queue."""
        again = Job(job.request, self.model, self.output, simulated=self.simulate)
        values = {}
        if (sheet := self.sheets.get(job.grid)) is not None:
            again = replace(again, grid=job.grid, cell=job.cell)
            sheet.place(job.cell, None)
            values[f"{GRID}{job.grid}"] = sheet.to_dict()
        self.queue.insert(0, again)
        self.history.put(again, values=values)
        self.save_order()
        return again

    def forget_picture(self, path: Path) -> list[Result]:
        """Its file is in the trash: take it off the results; returns what was there."""
        gone = []
        for job in [job for job in self.results if job.path == path]:
            gone.append(Result(self.results.index(job), job, self.history.course(job.id)))
            self.results.remove(job)
            self.history.remove(job.id)
        return gone

    def remember_picture(self, path: Path, results: Sequence[Result]) -> None:
        """Its file is back, at `path`: put what `forget_picture` gave on the list again."""
        for result in reversed(results):  # the places are those of one after the other
            job = replace(result.job, path=path)
            self.results.insert(result.place, job)
            self.history.put(job, result.course if isinstance(result.course, dict) else None)

    def forget_result(self, job_id: str) -> None:
        """Take a result without a picture off the list."""
        self.results = [job for job in self.results if job.id != job_id]
        self.history.remove(job_id)

    def waiting_seconds(self) -> float | None:
        """How long queue and running job will take, by the last picture that was made; None before there is one.

        A picture whose plan is known takes as much longer than that as the last one took. Simulated ones count for
        nothing: their seconds are a card's, not ours.
        """
        work = self.parameters.work
        last = next((job for job in self.results if job.seconds is not None and not job.simulated), None)
        waiting = [job for job in self.queue if not job.simulated]
        if last is None or last.seconds is None or not work(last.request) or not waiting:
            return None
        each = last.seconds / work(last.request)

        def seconds(job: Job) -> float:
            plan = self.forecast.plan_of(job.request) if self._was_planned and job.model == self.opened else None
            return each * work(job.request) if plan is None else plan.new_prompt.seconds * self.slowness

        total = sum(map(seconds, waiting))
        if self.running is not None and not self.running.simulated:
            total += self.progress.remaining_seconds or seconds(self.running)
        return total

    @property
    def planned(self) -> str:
        """The id of the job whose plan counts: the running one, or the last one; "" before there is one."""
        return self.running.id if self.running is not None else next(reversed(self.plans), "")

    @property
    def plan(self) -> Plan | None:
        """Of the running job, or of the last one; None before it is known."""
        return self.plans.get(self.planned)

    def course_of(self, job: Job) -> Course | None:
        """The course of a job, which may be of an earlier evening; None where nothing was kept of it."""
        if job is self.running or (self.results and job is self.results[0] and not self.course.is_empty):
            return self.course
        if job.id in self._courses:
            return self._courses[job.id]
        with suppress(ValueError):
            return Course.from_dict(self.history.course(job.id))
        return None

    def foresee(self, text: str) -> None:
        """Another prompt or another choice: what is known about the next picture."""
        try:
            self.parameters.check_together()
            prompt = expand(text).prompts[0] if text.strip() else NO_PROMPT
            self.forecast.want(Request(prompt, **self.parameters.requested()))
        except RequestError as error:
            self.forecast.refuse(str(error))

    def is_news(self, sentence: str) -> bool:
        """Whether something that the engine noticed was not told yet; from now on it was."""
        news = sentence not in self._told
        self._told.add(sentence)
        return news

    def find(self, job_id: str) -> Job | None:
        """The job of this id, wherever it is."""
        everywhere: Iterable[Job] = (*self.queue, *([self.running] if self.running else []), *self.results)
        return next((job for job in everywhere if job.id == job_id), None)

    def change_output(self, folder: str) -> None:
        """Where the next pictures go, those that wait included."""
        self.output = folder
        self.history.save("output", folder)
        self.queue = [replace(job, output=folder) for job in self.queue]
        self.history.put_all(self.queue, self._order())

    def starts(self, model: str) -> None:
        """A fresh engine is told to open this model."""
        self.engine_state, self.opening, self.opened = "starting", model, ""
        self.watch.forget()

    def save_parameters(self) -> None:
        """For the next start."""
        self.history.save("parameters", self.parameters.to_dict())

    def save_order(self) -> None:
        """For the next start."""
        self.history.set_order(self._order())

    def _order(self) -> list[str]:
        return [job.id for job in self.queue]

    # What the engine says.

    def receive(self, message: Message) -> str:
        """Take a message over; returns a sentence for the person, or "" where the screen says enough."""
        self.watch.heard(self.work)
        match message:
            case ModelOpened(model=model, options=options) as opened:
                self.engine_state, self.opened = "loading", model
                if self.opening == self.model:
                    self.opening = self.model = model  # by its full name
                    self.parameters.announce(options)
                    self.parameters.times, self.parameters.limits = opened.times, opened.guidance_limits
                    self.parameters.pixels_per_token = opened.pixels_per_token
                    if not self.simulate:  # which needs no files of the model
                        self.history.save("model", model)
                if self.running is None:
                    self.progress.start("load")
            case ModelLoaded(device_name=name, seconds=seconds):
                self.engine_state, self.device = "ready", name
                if self.running is None:
                    self._new_progress()
                    self.progress.seconds["load"] = seconds
            case ModelRefused(message=text):
                self.engine_state, self.opened = "refused", ""
                self.paused = True
                self._back_to_queue()
                self._new_progress()  # of loading, where no job ran
                return text
            case LoadEvent(event=event):
                if isinstance(event, Planned):
                    self._chose(event.plan)
                if self.running is None:
                    self.progress.apply(event)
            case JobEvent(job=job_id, event=event) if self._runs(job_id):
                return self._apply(event)
            case MemorySampled(job=job_id, samples=samples) if self._runs(job_id):
                self.course.sampled(samples)
            case Foreseen() as answer:
                self.forecast.answered(answer)
            case JobRefused(job=job_id, message=text, field=field) if self._runs(job_id):
                if field in ("model", "output"):  # the next ones would be refused as well
                    self.paused = True
                    self._back_to_queue()
                    return text if field == "output" else ""  # ModelRefused said why
                self._finish("failed", text)
                self._new_progress()
                return text
        return ""

    def step(self, job_id: str, event: StepFinished) -> None:
        """The latest of the running job's steps."""
        self.watch.heard(self.work)
        if self._runs(job_id):
            self._apply(event)

    def engine_ended(self, reason: str, retry_key: str) -> str:
        """The engine's process has gone: say what that means. A picture that only had to be decoded gets another go."""
        self.engine_state, self.opened = "gone", ""
        self._deaths += 1
        job, self.preview = self.running, None
        ending = self.watch.ended()
        self.progress.memory = None
        if job is None:
            self.progress = PictureProgress()
            return f"{reason} The next picture starts a fresh one."
        if self.cancelling:
            phase = self.progress.running or "save"
            self._ended_in(phase)
            self._finish("cancelled", f"cancelled at {phase}")
            return reason
        if "denoise" in self.progress.seconds and not job.message:
            self.running = None
            self.queue.insert(0, again := replace(job, state="queued", message="decoded after a crash"))
            self.history.put(again)
            self.save_order()
            self.progress = PictureProgress()
            return f"{reason} The finished latents are kept: a fresh engine decodes them."
        if ending:  # no fault of this picture's, and nobody gave it up
            self._back_to_queue()
            self.progress = PictureProgress()
            if self._deaths < MAX_DEATHS:
                return f"{reason} A fresh one begins this picture anew."
            self.paused = True
            return f"{reason} It is the second time in a row, so this picture and the queue wait."
        phase = self.progress.running or "save"
        self._ended_in(phase)
        self._finish("failed", f"in {phase}: {reason}")
        told = f"{reason} This picture stopped in {phase}; press {retry_key} on it to try again."
        if self._deaths >= MAX_DEATHS and self.queue:  # the others would end the same way
            self.paused = True
            told += " It is the second time in a row, so the queue waits."
        return told

    @property
    def is_busy(self) -> bool:
        """Whether the engine has something to do, so that it may be waited for."""
        return self.running is not None or self.engine_state in ("starting", "loading")

    @property
    def work(self) -> Work:
        """What the engine is at."""
        pixels = 0.0 if self.running is None else self.parameters.pixels(self.running.request)
        on_card = self.device not in ("", "CPU")
        return Work(self.progress, self.plan, pixels, on_card, self.running is not None, self.cancelling)

    def _apply(self, event: Event) -> str:
        job = self.running
        assert job is not None
        self.progress.apply(event)
        self.course.take(event)
        used = event.memory.device_peak_bytes or event.memory.ram_bytes
        self._highest_bytes = max(self._highest_bytes, used)
        match event:
            case Planned(plan=plan):
                self._chose(plan)
                self.plans.pop(job.id, None)
                self.plans[job.id] = plan
                while len(self.plans) > SHOWN_RESULTS:
                    del self.plans[next(iter(self.plans))]
            case PhaseFinished(phase=phase, estimated=True):
                self.estimated.add(phase)
            case StepFinished(preview=preview, estimated=estimated):
                self.preview = preview or self.preview
                if estimated:
                    self.estimated.add("denoise")
            case Encoded(hint=str(hint)):
                self.hint = hint
            case LatentsRestored():
                self.restored = True
            case ImageSaved(path=path, seconds_by_phase=seconds, notice=notice, measured_peak_bytes=measured):
                self._deaths = 0
                self.peak_bytes = self._highest_bytes
                if self.plan is not None and not self.restored:
                    self._learn_slowness(self.plan, seconds)
                self.forecast.painted(job.request.prompt)
                self._finish("done", notice or job.message, path, sum(seconds.values()), measured)
                return notice or ""
            case Simulated(seconds_by_phase=seconds, peak_bytes=held):
                self._deaths = 0
                self._finish("done", _summary(event), None, sum(seconds.values()), held)
            case Failed(message=text, phase=phase):
                self._ended_in(phase)
                self._finish("failed", f"in {phase}: {text}")
                return text
            case Cancelled(phase=phase):
                self._deaths = 0
                self._ended_in(phase)
                place = f"{self.progress.step}/{self.progress.steps}" if phase == "denoise" else phase
                self._finish("cancelled", f"cancelled at {place}")
        return ""

    def _learn_slowness(self, plan: Plan, seconds: Mapping[str, float]) -> None:
        """By what every picture does: weights are read once, and many prompts are encoded already."""
        planned = plan.new_prompt.seconds_by_phase
        phases = [phase for phase in ("denoise", "decode") if phase in seconds and planned.get(phase)]
        if phases:
            self.slowness = sum(seconds[phase] for phase in phases) / sum(planned[phase] for phase in phases)
            self._was_planned = True

    def _chose(self, plan: Plan) -> None:
        """The precision, where that was auto."""
        if plan.precision_reason:
            self.parameters.auto = plan

    def _finish(
        self,
        state: State,
        message: str = "",
        path: Path | None = None,
        seconds: float | None = None,
        peak_bytes: int | None = None,
    ) -> None:
        assert self.running is not None
        job = replace(self.running, state=state, message=message, path=path, seconds=seconds, peak_bytes=peak_bytes)
        self.running, self.cancelling, self.watch.at_once = None, False, None
        self.results.insert(0, job)
        del self.results[SHOWN_RESULTS:]
        if job.simulated:  # no picture: nothing of it is kept but its prompt
            self.history.remove(job.id)
            self._courses[job.id] = self.course
            while len(self._courses) > SHOWN_RESULTS:
                del self._courses[next(iter(self._courses))]
        else:
            course = None if self.course.is_empty else self.course.to_dict()
            self.history.put(job, course, self._placed(job))

    def _back_to_queue(self) -> None:
        if self.running is not None:
            self.queue.insert(0, replace(self.running, state="queued"))
            self.history.put(self.queue[0])
            self.save_order()
            self.running = None
            self._new_progress()

    def _ended_in(self, phase: Phase) -> None:
        self.ended_in, self.progress.running = phase, None

    def _new_progress(self) -> None:
        """Nothing runs; memory is as it was."""
        memory, self.progress = self.progress.memory, PictureProgress()
        self.progress.memory = memory
        self.estimated = set()

    def _runs(self, job_id: str) -> bool:
        return self.running is not None and self.running.id == job_id

    def _place(self, job_id: str) -> int:
        for place, job in enumerate(self.queue):
            if job.id == job_id:
                return place
        raise RequestError("queue", "this job does not wait any more.")


def _summary(event: Simulated) -> str:
    """What a simulated job ended with: simulated: peak 9.1 of 12.0 GiB, denoise."""
    phase = max(event.peak_bytes_by_phase, key=lambda name: event.peak_bytes_by_phase[name], default="")
    return f"simulated: peak {part_of(event.peak_bytes, event.budget_bytes)}" + (f", {phase}" if phase else "")
