"""The engine: opens a model and runs encode, denoise, decode, save, yielding an event for everything that happens."""

from __future__ import annotations

import platform
import re
import time
from collections import OrderedDict
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import engine
from engine.cancel import CancelFlag, CancelledError
from engine.errors_log import keep_traceback
from engine.events import (
    Cancelled,
    Encoded,
    Event,
    Failed,
    ImageSaved,
    LatentsRestored,
    LoadProgress,
    MemoryUse,
    Phase,
    PhaseFinished,
    PhaseStarted,
    StepFinished,
)
from engine.folders import cache_dir
from engine.models.catalog import open_model, prompt_hint
from engine.models.folder import ModelFolder, model_hash
from engine.request import (
    MAX_GUIDANCE,
    MAX_STEPS,
    MIN_SIDE,
    PRECISIONS,
    SIDE_MULTIPLE,
    Defaults,
    Option,
    Request,
    RequestError,
)

if TYPE_CHECKING:
    import torch

    from engine.encode import Conditioning
    from engine.flow import Schedule
    from engine.images.save import Destination
    from engine.latents import KeptLatents
    from engine.memory.components import Components
    from engine.preview import PreviewMap

CACHED_PROMPTS = 32


class Engine:
    """An open model. Not safe for use by several threads at a time, but `cancel` may be called from any."""

    def __init__(self, folder: ModelFolder, device: str = "auto", threads: int | None = None) -> None:
        self.folder = folder
        self.model = folder.name
        self.defaults: Defaults = folder.defaults
        self.max_side = folder.max_side
        self._device_name = device
        self._threads = threads
        self._cancel = CancelFlag()
        self._leaving = False
        self._runtime: _Runtime | None = None

    @classmethod
    def open(cls, model: str | Path = "demo", *, device: str = "auto", threads: int | None = None) -> Engine:
        """Open a model by name or folder. Cheap: torch and weights are loaded by the first picture.

        `threads` is the number of CPU threads, which decides the last bits of a picture; None leaves it to torch.
        Raises `RequestError` where the model is unknown, or a part of it is missing or broken.
        """
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?", device):
            raise RequestError("device", f"device must be auto, cpu, cuda or cuda:N, got {device[:40]!r}.")
        return cls(open_model(model), device, threads)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give all memory back."""
        if self._runtime is not None:
            self._runtime.components.clear()
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
        return self._device_name if self._runtime is None else str(self._runtime.device)

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
        return (*options, Option("precision", defaults.precision, choices=PRECISIONS))

    @cached_property
    def model_hash(self) -> str:
        """What the open model's pixels depend on (see `engine.models.folder.model_hash`)."""
        return model_hash(self.folder)

    def resolve(self, request: Request) -> Request:
        """The request with every choice filled in. Raises `RequestError` for what this model cannot do."""
        for name in ("width", "height"):
            side = getattr(request, name)
            if side is not None and side > self.max_side:
                raise RequestError(
                    name,
                    f"{name} {side} is too large for {self.model}: it was made for {self.folder.sample_size} "
                    f"and goes up to {self.max_side}.",
                )
        if request.guidance is not None and self.defaults.guidance is None:
            raise RequestError(
                "guidance", f"{self.model} takes no guidance (it is not guidance-distilled); leave it out."
            )
        return request.resolved(self.defaults)

    def generate(self, request: Request, destination: Destination | None = None) -> Generator[Event, None, None]:
        """Paint `request.count` pictures into `destination` (the default output folder if None).

        Raises `RequestError` at once for bad input; after that exactly one terminal event comes for each image.
        Closing the generator cancels.
        """
        from engine.images.save import plan_output

        request = self.resolve(request)
        destination = destination or plan_output(None, request.count)
        self._cancel.clear()
        return self._run(request, destination)

    def load(self) -> Generator[Event, None, None]:
        """Import torch and bring every component into memory now, so that the first picture need not wait for it.

        Ends quietly when it is cancelled; raises `RequestError` for a device or a model that cannot be used.
        """
        from engine.images.save import Destination

        self._cancel.clear()
        request = self.resolve(Request("load", seed=0))
        job = _Job(self, request, Destination(Path()), image=0, started=time.perf_counter())
        with suppress(CancelledError):
            job.open()
            for component in ("text_encoder", "text_encoder_2", "transformer", "vae"):
                yield from job.load(component)

    def _run(self, request: Request, destination: Destination) -> Generator[Event, None, None]:
        started = time.perf_counter()
        unloadable: RequestError | None = None
        for image in range(request.count):
            assert request.seed is not None
            single = replace(request, count=1, seed=request.seed + image)
            job = _Job(self, single, destination, image, started)
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

    def _open_runtime(self) -> _Runtime:
        if self._runtime is None:
            self._runtime = _Runtime.open(self.folder, self.model_hash, self._device_name, self._threads)
        return self._runtime


def library_versions() -> dict[str, str]:
    """The versions of everything that decides pixels, as a picture's record keeps them."""
    libraries = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"engine": engine.__version__, "python": platform.python_version(), **libraries}


@dataclass
class _Runtime:
    """What needs torch: the device, the components, and what is kept between pictures."""

    device: torch.device
    schedule: Schedule
    components: Components
    preview: PreviewMap
    preview_file: Path
    versions: dict[str, str]
    tokenizers: tuple[Any, Any] | None = None
    conditionings: OrderedDict[tuple[str, str], Conditioning] = field(default_factory=OrderedDict)

    @classmethod
    def open(cls, folder: ModelFolder, digest: str, device_name: str, threads: int | None) -> _Runtime:
        import torch

        from engine.flow import Schedule
        from engine.memory.components import Components
        from engine.preview import PreviewMap

        if device_name == "auto":
            device_name = "cuda" if torch.cuda.is_available() else "cpu"
        elif device_name.startswith("cuda") and not torch.cuda.is_available():
            raise RequestError("device", "torch sees no CUDA card; run `t2i doctor` to learn why, or use --device cpu.")
        device = torch.device(device_name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise RequestError("device", f"there is no {device_name}; torch sees {torch.cuda.device_count()} card(s).")
        try:
            schedule = Schedule.from_config(folder.configs["scheduler"])
        except (ValueError, TypeError) as error:
            raise RequestError("model", f"the scheduler of {folder.name!r} cannot be used: {error}.") from None
        if threads is not None:
            torch.set_num_threads(threads)
        channels = int(folder.configs["vae"]["latent_channels"])
        shipped, learned = folder.path / "preview.json", cache_dir() / "previews" / f"{digest[:16]}.json"
        preview_file = shipped if shipped.is_file() else learned
        return cls(
            device=device,
            schedule=schedule,
            components=Components(folder, device),
            preview=PreviewMap.read(preview_file, channels),
            preview_file=preview_file,
            versions=library_versions(),
        )


class _Job:
    """One picture on its way through the phases."""

    def __init__(self, engine: Engine, request: Request, destination: Destination, image: int, started: float) -> None:
        self.engine = engine
        self.request = request
        self.destination = destination
        self.image = image
        self.phase: Phase = "load"
        self.started = started  # of the whole job, on the performance counter
        self.seconds: dict[str, float] = {}
        self.dtype: torch.dtype
        self._runtime: _Runtime | None = None

    @property
    def runtime(self) -> _Runtime:
        assert self._runtime is not None, "opened by the first phase"
        return self._runtime

    def open(self) -> None:
        """Import torch and open the device, if no job before did."""
        import torch

        self._runtime = self.engine._open_runtime()
        self.dtype = torch.bfloat16 if self.request.precision == "bf16" else torch.float32

    def paint(self) -> Generator[Event, None, None]:
        """Encode, denoise, decode, save. Finished latents stay on disk until their picture does."""
        self.open()
        kept = self._kept_latents()
        latents = kept.find(self._latents_shape)
        if latents is None:
            conditioning = yield from self._encode()
            latents = yield from self._denoise(conditioning, kept)
        else:
            assert self.request.steps
            yield LatentsRestored(**self.stamp(), steps=self.request.steps)
        try:
            pixels = yield from self._decode(latents)
            saved = yield from self._save(pixels)
        except CancelledError:
            if not self.engine._leaving:
                kept.forget()
            raise
        kept.forget()
        self._learn_preview(latents, pixels)
        yield saved

    def _kept_latents(self) -> KeptLatents:
        import torch

        from engine.latents import KeptLatents

        return KeptLatents(
            self.request,
            model_hash=self.engine.model_hash,
            versions=self.runtime.versions,
            device=str(self.runtime.device),
            threads=torch.get_num_threads(),
        )

    @property
    def _latents_shape(self) -> tuple[int, int, int]:
        from engine import flow

        assert self.request.width and self.request.height
        channels = int(self.engine.folder.configs["vae"]["latent_channels"])
        return flow.tokens_shape(channels, self.request.width, self.request.height)

    def _encode(self) -> Generator[Event, None, Conditioning]:
        from engine import encode
        from engine.models.loading import load_tokenizer

        folder, runtime, request = self.engine.folder, self.runtime, self.request
        if runtime.tokenizers is None:
            runtime.tokenizers = (
                load_tokenizer(folder.path / "tokenizer"),
                load_tokenizer(folder.path / "tokenizer_2"),
            )
        tokenizer, tokenizer_2 = runtime.tokenizers
        limit = min(folder.token_limit, tokenizer_2.model_max_length)
        clip_limit = min(tokenizer.model_max_length, int(folder.configs["text_encoder"]["max_position_embeddings"]))
        tokens = encode.tokenize(request.prompt, tokenizer, tokenizer_2, clip_limit, limit)
        key = (request.prompt, str(self.dtype))
        cached = key in runtime.conditionings
        if not cached:
            yield from self.load("text_encoder")
            yield from self.load("text_encoder_2")
        began = yield from self._begin("encode")
        if not cached:
            check = self.engine._cancel.check
            with runtime.components.lend("text_encoder", self.dtype) as text_encoder:
                pooled = encode.pooled_embedding(text_encoder, tokens, check)
            with runtime.components.lend("text_encoder_2", self.dtype) as text_encoder_2:
                sequence = encode.sequence_embedding(text_encoder_2, tokens, check)
            runtime.conditionings[key] = encode.Conditioning(sequence, pooled)
            while len(runtime.conditionings) > CACHED_PROMPTS:
                runtime.conditionings.popitem(last=False)
        runtime.conditionings.move_to_end(key)
        hints = [prompt_hint(folder, request.prompt)]
        if tokens.count > tokens.limit:
            hints.append(f"the prompt has {tokens.count} tokens; the first {tokens.limit} are used.")
        hint = " ".join(text for text in hints if text) or None
        yield Encoded(
            **self.stamp(), tokens=min(tokens.count, tokens.limit), token_limit=tokens.limit, cached=cached, hint=hint
        )
        yield self._end("encode", began)
        return runtime.conditionings[key]

    def _denoise(self, conditioning: Conditioning, kept: KeptLatents) -> Generator[Event, None, torch.Tensor]:
        from engine import flow
        from engine.denoise import denoise

        request, runtime, folder = self.request, self.runtime, self.engine.folder
        assert request.seed is not None and request.steps and request.width and request.height
        yield from self.load("transformer")
        began = yield from self._begin("denoise")
        channels = int(folder.configs["vae"]["latent_channels"])
        latents = flow.noise(request.seed, channels, request.width, request.height)
        sigmas = runtime.schedule.sigmas(request.steps, latents.shape[1])
        check = self.engine._cancel.check
        with runtime.components.lend("transformer", self.dtype) as transformer:
            steps = denoise(
                transformer, conditioning, latents, sigmas, request.width, request.height, request.guidance, check
            )
            with closing(steps):  # hooks and tensors go before the component does
                for step in steps:
                    latents = step.latents
                    yield StepFinished(
                        **self.stamp(),
                        step=step.number,
                        steps=request.steps,
                        sigma=step.sigma,
                        seconds=step.seconds,
                        preview=runtime.preview.frame(step.clean, request.width, request.height),
                    )
                    self.engine._cancel.check_between_steps()
            latents = latents.cpu()
        kept.keep(latents)
        yield self._end("denoise", began)
        return latents

    def _decode(self, latents: torch.Tensor) -> Generator[Event, None, torch.Tensor]:
        from engine.decode import decode

        request, runtime = self.request, self.runtime
        assert request.width and request.height
        yield from self.load("vae")
        began = yield from self._begin("decode")
        with runtime.components.lend("vae", self.dtype) as vae:
            pixels = decode(vae, latents.to(runtime.device), request.width, request.height, self.engine._cancel.check)
        yield self._end("decode", began)
        return pixels

    def _save(self, pixels: torch.Tensor) -> Generator[Event, None, ImageSaved]:
        import torch
        from PIL import Image

        from engine.images.metadata import Record
        from engine.images.save import save_image

        request, runtime = self.request, self.runtime
        assert request.seed is not None and request.width and request.height
        began = yield from self._begin("save")
        record = Record(
            request=request,
            model=self.engine.model,
            model_hash=self.engine.model_hash,
            versions=runtime.versions,
            seconds_by_phase=dict(self.seconds),
            device=str(runtime.device),
            reproduce={"batch": 1, "threads": torch.get_num_threads()},
        )
        path, notice = save_image(Image.fromarray(pixels.numpy()), record, self.destination)
        yield self._end("save", began)
        return ImageSaved(
            **self.stamp(),
            path=path,
            seed=request.seed,
            width=request.width,
            height=request.height,
            seconds_by_phase=dict(self.seconds),
            notice=notice,
        )

    def _learn_preview(self, latents: torch.Tensor, pixels: torch.Tensor) -> None:
        """Add this picture to the preview's fit, unless the model brought its own."""
        from engine import flow

        runtime, request = self.runtime, self.request
        assert request.width and request.height
        if runtime.preview_file.parent != self.engine.folder.path:
            with suppress(Exception):  # a preview is worth no failure
                runtime.preview.add(flow.unpack(latents, request.width, request.height), pixels)
                runtime.preview.save(runtime.preview_file, f"fitted on {runtime.preview.pictures} decoded pictures")

    def failed(self, error: Exception) -> Failed:
        """The event for an error; what nobody foresaw leaves its traceback in the state folder."""
        message = _reason(error, self.phase)
        if not isinstance(error, RequestError) and (log := keep_traceback(error)) is not None:
            message = f"{message} (details in {log})"
        bad_input = isinstance(error, RequestError) and not error.machine
        return Failed(**self.stamp(), phase=self.phase, message=message, bad_input=bad_input)

    def load(self, component: str) -> Generator[Event, None, None]:
        """Bring a component's weights into memory, if they are not there already."""
        self.phase = "load"
        began = time.perf_counter()
        for progress in self.runtime.components.load(component, self.dtype):
            yield LoadProgress(
                **self.stamp(), component=component, done_bytes=progress.done_bytes, total_bytes=progress.total_bytes
            )
            self.engine._cancel.check_between_steps()
        self.seconds["load"] = self.seconds.get("load", 0.0) + time.perf_counter() - began

    def _begin(self, phase: Phase) -> Generator[Event, None, float]:
        self.engine._cancel.check_between_steps()
        self.phase = phase
        yield PhaseStarted(**self.stamp(), phase=phase)
        return time.perf_counter()

    def _end(self, phase: Phase, began: float) -> PhaseFinished:
        self.seconds[phase] = time.perf_counter() - began
        return PhaseFinished(**self.stamp(), phase=phase, seconds=self.seconds[phase])

    def stamp(self) -> dict[str, Any]:
        """What every event carries."""
        return {
            "image": self.image,
            "elapsed_seconds": time.perf_counter() - self.started,
            "memory": _memory_use(self._runtime),
        }


def _memory_use(runtime: _Runtime | None) -> MemoryUse:
    ram = int(psutil.Process().memory_info().rss)
    if runtime is None or runtime.device.type != "cuda":
        return MemoryUse(ram)
    import torch

    return MemoryUse(ram, torch.cuda.memory_allocated(runtime.device), torch.cuda.max_memory_allocated(runtime.device))


def _reason(error: Exception, phase: Phase) -> str:
    """One sentence for the person."""
    if isinstance(error, RequestError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return f"the card ran out of memory in {phase}; take a smaller size, or run on the CPU with --device cpu."
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return f"the machine ran out of memory in {phase}; take a smaller size or close other programs."
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return f"{phase} failed: {text}"
