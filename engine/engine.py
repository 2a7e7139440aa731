"""The engine: opens a model and runs encode, denoise, decode, save, yielding an event for everything that happens."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cancel import CancelFlag, CancelledError
from engine.events import Cancelled, Event, Plan
from engine.files import clean_up
from engine.jobs.picture import Job
from engine.jobs.runtime import CARD_NAMES, DEFAULT_CARD, NOTHING_TO_REPEAT, Repeat, Runtime, Settings
from engine.jobs.simulation import SimulatedJob
from engine.library.catalog import open_model
from engine.memory.budget import read_size
from engine.request import (
    AUTO,
    DEFAULT_CFG,
    MAX_GUIDANCE,
    MAX_STEPS,
    MIN_CFG,
    MIN_SIDE,
    SALIENCES,
    SCHEDULES,
    SIDE_MULTIPLE,
    Defaults,
    Option,
    Request,
    RequestError,
)
from engine.weights import calibrations
from engine.weights.model import Model, model_hash

BUDGETS = ("vram", "ram")

if TYPE_CHECKING:
    from engine.images.save import Destination
    from engine.memory.planner import Layout


class Engine:
    """An open model. Not safe for use by several threads at a time, but `cancel` may be called from any."""

    def __init__(self, source: Model, settings: Settings) -> None:
        self.source = source
        self.model = source.name
        self.defaults: Defaults = source.defaults
        self.max_side = source.max_side
        self.settings = settings
        self._cancel = CancelFlag()
        self._leaving = False
        self._runtime: Runtime | None = None

    @classmethod
    def open(
        cls,
        model: str | Path = "demo",
        *,
        device: str = "auto",
        vram: str = "auto",
        ram: str = "auto",
        simulate: bool = False,
        card: str = DEFAULT_CARD,
        repeat: Repeat = NOTHING_TO_REPEAT,
    ) -> Engine:
        """Open a model by name or folder. Cheap: torch and weights are loaded by the first picture.

        `vram` and `ram` are budgets such as "12GiB", or "auto": what is free, less a reserve. On the CPU `ram` rules,
        and `vram` is a card that is simulated inside it. `simulate`: jobs run through all phases without weights, on a
        named `card`. `repeat` is what a picture's record says of how its bits came about.
        Raises `RequestError` where the model is unknown, or a part of it is missing or broken.
        """
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?", device):
            raise RequestError("device", f"device must be auto, cpu, cuda or cuda:N, got {device[:40]!r}.")
        if card not in CARD_NAMES:
            raise RequestError("card", f"card must be one of {', '.join(CARD_NAMES)}, got {card[:40]!r}.")
        vram_bytes, ram_bytes = read_size(vram, "vram"), read_size(ram, "ram")
        clean_up()
        source = open_model(model)
        return cls(source, Settings(device, vram_bytes, ram_bytes, simulate, card, repeat))

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give all memory back."""
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None

    def cancel(self, after_step: bool = False) -> None:
        """Give up the current job, inside a step too, or when its step ends; what was saved stays saved."""
        self._cancel.set(after_step)

    def leave(self) -> None:
        """Stop at once because nobody is there any more, not because the picture is not wanted: latents are kept."""
        self._leaving = True
        self._cancel.set()

    @property
    def device(self) -> str:
        """What the loaded model computes on, as torch names it; as it was asked for before it is loaded."""
        return self.settings.device if self._runtime is None else self._runtime.target.device

    @property
    def options(self) -> tuple[Option, ...]:
        """What this model lets a request choose, besides prompt, seed and count."""
        defaults, top = self.defaults, self.max_side
        options = [
            Option("steps", defaults.steps, 1, MAX_STEPS, 1),
            Option("width", defaults.width, MIN_SIDE, top, SIDE_MULTIPLE),
            Option("height", defaults.height, MIN_SIDE, top, SIDE_MULTIPLE),
        ]
        if defaults.guidance is not None:
            options.append(Option("guidance", defaults.guidance, 0, MAX_GUIDANCE, 0.5))
        options += [
            Option("cfg", defaults.cfg, MIN_CFG, MAX_GUIDANCE, 0.5, first=DEFAULT_CFG),
            Option("negative_prompt", None),
            Option("guidance_schedule", next(iter(SCHEDULES)), choices=tuple(SCHEDULES)),
            Option("cfg_zero", False, choices=(False, True)),
            Option("apg", False, choices=(False, True)),
            Option("precision", AUTO, choices=(AUTO, *self.source.precisions)),
        ]
        if self.is_calibrated:
            options.append(Option("salience", SALIENCES[-1], choices=SALIENCES))
        if self.source.distills:
            options.append(Option("distill", False, choices=(False, True)))
        return tuple(options)

    @property
    def is_calibrated(self) -> bool:
        """Whether there are balancing factors for this model."""
        return self.source.has_weights and calibrations.file_of(self.model_hash).is_file()

    @cached_property
    def model_hash(self) -> str:
        """What the open model's pixels depend on (see `engine.weights.model.model_hash`); empty without weights."""
        return model_hash(self.source) if self.source.has_weights else ""

    @cached_property
    def _distilled_hash(self) -> str:
        return model_hash(self.source, distilled=True)

    def hash_for(self, request: Request) -> str:
        """What this request's pixels depend on."""
        return self._distilled_hash if request.distill and self.source.has_weights else self.model_hash

    def resolve(self, request: Request) -> Request:
        """The request with every choice filled in, but for a precision of auto, which needs a plan: see `planned`.

        Raises `RequestError` for what this model cannot do.
        """
        for name in ("width", "height"):
            side = getattr(request, name)
            if side is not None and side > self.max_side:
                raise RequestError(
                    name,
                    f"{name} {side} is too large for {self.model}: it was made for {self.source.sample_size} "
                    f"and goes up to {self.max_side}.",
                )
        if request.guidance is not None and self.defaults.guidance is None:
            raise RequestError(
                "guidance", f"{self.model} takes no guidance (it is not guidance-distilled); leave it out."
            )
        kind, _ = request.schedule
        guided = request.is_true_cfg or self.defaults.cfg is not None or self.defaults.guidance is not None
        if kind != "constant" and not guided:
            raise RequestError(
                "guidance_schedule",
                f"{self.model} takes no guidance, so that a schedule has nothing to vary: add --negative-prompt or "
                "--cfg, or leave the schedule out.",
            )
        if request.distill and not self.source.distills:
            raise RequestError(
                "distill",
                f"there is no smaller text encoder that fits {self.model}: get it with t2i models pull distillt5, or "
                "name its folder with t2i models add, or leave --distill out.",
            )
        request = replace(request, precision=request.precision or AUTO).resolved(self.defaults)
        if request.precision not in (AUTO, *self.source.precisions):
            raise RequestError(
                "precision",
                f"{self.model} cannot be painted in {request.precision}: take "
                f"{', '.join((AUTO, *self.source.precisions[:-1]))} or {self.source.precisions[-1]}.",
            )
        if request.precision != "int8":
            if request.salience not in (None, "off"):
                raise RequestError("salience", "salience is about int8: add --precision int8, or leave --salience out.")
            return replace(request, salience=None)
        if request.salience is None:
            return replace(request, salience=SALIENCES[-1] if self.is_calibrated else SALIENCES[0])
        only_sizes = self.settings.simulate or not self.source.has_weights  # which are the same
        if request.salience != "off" and not (self.is_calibrated or only_sizes):
            raise calibrations.missing(self.model)
        return request

    def generate(self, request: Request, destination: Destination | None = None) -> Generator[Event, None, None]:
        """Paint `request.count` pictures into `destination` (the default output folder if None).

        Raises `RequestError` at once for bad input; after that exactly one terminal event comes for each image.
        Closing the generator cancels.
        """
        from engine.images.save import plan_output

        request = self.resolve(request)
        self.require_weights()
        destination = destination or plan_output(None, request.count)
        self._cancel.clear()
        return self._run(request, destination)

    def plan(self, request: Request) -> Plan:
        """How the request will use memory. Nothing is loaded; weights need not be here.

        Raises `RequestError` for a budget that cannot work, with the smallest that would and what to change.
        """
        return self.planned(self.resolve(request))[1].plan

    def planned(self, request: Request) -> tuple[Request, Layout]:
        """A resolved request, its precision chosen where that is auto, and its layout. Raises as `plan` does."""
        from engine.memory.choice import choose, levels

        runtime = self.runtime()
        if request.precision != AUTO:
            return request, runtime.plan(request)
        candidates = [
            [self.resolve(replace(request, precision=precision)) for precision in level]
            for level in levels(self.source, on_card=runtime.target.is_card)
        ]
        return choose(candidates, runtime.plan)

    def require_weights(self) -> None:
        """Raises `RequestError` where this model can be planned and simulated, not run."""
        if not (self.source.has_weights or self.settings.simulate):
            raise RequestError(
                "model",
                f"the weights of {self.model} are not here: get them with t2i models pull {self.model}, give their "
                "folder or file with --model, or see how it would run with --simulate.",
            )

    def load(self) -> Generator[Event, None, None]:
        """Import torch and bring what the plan keeps into RAM now, so that the first picture need not wait for it.

        Ends quietly when it is cancelled, and where the budget is too small for a picture as the model prefers it: the
        next one may be another. Raises `RequestError` for a device or a model that cannot be used.
        """
        from engine.images.save import Destination

        self._cancel.clear()
        self.require_weights()
        request = self.resolve(Request("load", seed=0))
        job = Job(self, request, Destination(Path()), image=0, started=time.perf_counter())
        try:
            self.planned(request)
        except RequestError as error:
            if error.field in BUDGETS and self._runtime is not None:
                return
            raise
        with suppress(CancelledError):
            yield from job.open()
            if not self.settings.simulate:
                for component in job.layout.placements:
                    yield from job.keep(component)

    def calibrate(self, prompts: Sequence[str], request: Request) -> Generator[Event, None, Path]:
        """Find the factors that balance this model's channels in int8; see `engine.jobs.calibration.calibrate`."""
        from engine.jobs.calibration import calibrate

        self._cancel.clear()
        return calibrate(self, prompts, request)

    def _run(self, request: Request, destination: Destination) -> Generator[Event, None, None]:
        started = time.perf_counter()
        unloadable: RequestError | None = None
        for image in range(request.count):
            assert request.seed is not None
            single = replace(request, count=1, seed=request.seed + image)
            kind = SimulatedJob if self.settings.simulate else Job
            job = kind(self, single, destination, image, started)
            try:
                if unloadable is not None:
                    raise unloadable
                self._cancel.check_between_steps()
                yield from job.paint()
                continue
            except CancelledError:
                last: Event = Cancelled(**job.stamp(), phase=job.phase)
            except Exception as error:
                last = job.failed(error)
                if isinstance(error, RequestError):
                    unloadable = RequestError(error.field, str(error), error.machine)  # the next would fail alike
            yield last  # out of the handler, where the error's frames no longer hold tensors

    def runtime(self) -> Runtime:
        if self._runtime is None:
            self._runtime = Runtime.open(self.source, self.model_hash, self.settings)
        return self._runtime
