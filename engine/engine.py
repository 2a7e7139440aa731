"""The engine: opens a model and runs encode, denoise, decode, save, yielding an event for everything that happens."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cancel import CancelledError
from engine.events import Cancelled, Event, Plan, TokenCount
from engine.files import clean_up
from engine.jobs.context import Context
from engine.jobs.picture import Job
from engine.jobs.runtime import CARD_NAMES, DEFAULT_CARD, NOTHING_TO_REPEAT, Repeat, Runtime, Settings
from engine.jobs.simulation import SimulatedJob
from engine.library.catalog import open_model
from engine.memory.budget import read_size
from engine.request import Defaults, Option, Request, RequestError, Resolved
from engine.weights.model import Model

BUDGETS = ("vram", "ram")

if TYPE_CHECKING:
    from engine.images.save import Destination


class Engine:
    """An open model. Not safe for use by several threads at a time, but `cancel` may be called from any."""

    def __init__(self, context: Context) -> None:
        self.context = context

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
        settings = Settings(device, vram_bytes, ram_bytes, simulate, card, repeat)
        return cls(Context(open_model(model), settings))

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give all memory back."""
        self.context.close()

    def cancel(self, after_step: bool = False) -> None:
        """Give up the current job, inside a step too, or when its step ends; what was saved stays saved."""
        self.context.cancel.set(after_step)

    def leave(self) -> None:
        """Stop at once because nobody is there any more, not because the picture is not wanted: latents are kept."""
        self.context.cancel.leave()

    @property
    def model(self) -> str:
        """The open model's name."""
        return self.context.source.name

    @property
    def source(self) -> Model:
        """The open model: its configurations and files."""
        return self.context.source

    @property
    def defaults(self) -> Defaults:
        """What the model fills in where a request leaves a choice open."""
        return self.context.source.defaults

    @property
    def options(self) -> tuple[Option, ...]:
        """What the model lets a request choose, besides prompt, seed and count."""
        return self.context.options

    @property
    def device(self) -> str:
        """What the loaded model computes on, as torch names it; as it was asked for before it is loaded."""
        return self.runtime().target.device if self.context.is_loaded else self.context.settings.device

    def runtime(self) -> Runtime:
        """What needs torch; see `Context.runtime`."""
        return self.context.runtime()

    def resolve(self, request: Request) -> Resolved:
        """The request with every choice filled in; see `Context.resolve`."""
        return self.context.resolve(request)

    def generate(self, request: Request, destination: Destination | None = None) -> Generator[Event, None, None]:
        """Paint `request.count` pictures into `destination` (the default output folder if None).

        Raises `RequestError` at once for bad input; after that exactly one terminal event comes for each image.
        Closing the generator cancels.
        """
        from engine.images.save import plan_output

        resolved = self.resolve(request)
        self.context.require_weights()
        destination = destination or plan_output(None, resolved.count)
        self.context.cancel.clear()
        return self._run(resolved, destination)

    def plan(self, request: Request) -> Plan:
        """How the request will use memory. Nothing is loaded; weights need not be here.

        Raises `RequestError` for a budget that cannot work, with the smallest that would and what to change.
        """
        return self.context.planned(self.resolve(request))[1].plan

    def count_tokens(self, prompt: str) -> TokenCount | None:
        """How much of the text encoders' limit a prompt takes, and what of it is cut off; see `Context`."""
        return self.context.count_tokens(prompt)

    def load(self) -> Generator[Event, None, None]:
        """Import torch and bring what the plan keeps into RAM now, so that the first picture need not wait for it.

        Ends quietly when it is cancelled, and where the budget is too small for a picture as the model prefers it: the
        next one may be another. Raises `RequestError` for a device or a model that cannot be used.
        """
        from engine.images.save import Destination

        self.context.cancel.clear()
        self.context.require_weights()
        request = self.resolve(Request("load", seed=0))
        job = Job(self.context, request, Destination(Path()), image=0, started=time.perf_counter())
        try:
            self.context.planned(request)
        except RequestError as error:
            if error.field in BUDGETS and self.context.is_loaded:
                return
            raise
        with suppress(CancelledError):
            yield from job.open()
            if not self.context.settings.simulate:
                for component in job.layout.placements:
                    yield from job.keep(component)

    def calibrate(self, prompts: Sequence[str], request: Request) -> Generator[Event, None, Path]:
        """Find the factors that balance this model's channels in int8; see `engine.jobs.calibration.calibrate`."""
        from engine.jobs.calibration import calibrate

        self.context.cancel.clear()
        return calibrate(self.context, prompts, request)

    def _run(self, request: Resolved, destination: Destination) -> Generator[Event, None, None]:
        started = time.perf_counter()
        unloadable: RequestError | None = None
        for image in range(request.count):
            single = replace(request, count=1, seed=request.seed + image)
            kind = SimulatedJob if self.context.settings.simulate else Job
            job = kind(self.context, single, destination, image, started)
            try:
                if unloadable is not None:
                    raise unloadable
                self.context.cancel.check_between_steps()
                yield from job.paint()
                continue
            except CancelledError:
                last: Event = Cancelled(**job.stamp(), phase=job.phase)
            except Exception as error:
                last = job.failed(error)
                if isinstance(error, RequestError):
                    unloadable = RequestError(error.field, str(error), error.machine)  # the next would fail alike
            yield last  # out of the handler, where the error's frames no longer hold tensors
