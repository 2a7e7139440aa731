"""One picture on its way through the phases: load, encode, denoise, decode, save."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from engine.cancel import CancelledError
from engine.errors_log import keep_traceback, memory_shortage
from engine.events import (
    Encoded,
    Event,
    Failed,
    ImageSaved,
    LatentsRestored,
    LoadProgress,
    MemoryUse,
    Noticed,
    Phase,
    PhaseFinished,
    PhaseStarted,
    Planned,
    StepFinished,
)
from engine.folders import shown_path
from engine.jobs.context import Context
from engine.jobs.runtime import resident_set_bytes
from engine.library.catalog import prompt_hint
from engine.precision import Precision
from engine.request import RequestError, Resolved
from engine.text import size

if TYPE_CHECKING:
    import torch

    from engine.families.facts import Part, Size
    from engine.families.networks import Conditioning, Tokens
    from engine.images.save import Destination
    from engine.jobs.latents import KeptLatents
    from engine.jobs.runtime import Runtime
    from engine.memory.layout import Layout
    from engine.memory.loan import Loan
    from engine.memory.placement import Progress
    from engine.sampling.guidance import Steering
    from engine.sampling.modulation import Tables

CACHED_PROMPTS = 32
CACHED_TABLE_BYTES = 256 * 2**20  # 2.1 MB a step of FLUX.1


class Job:
    """One picture on its way through the phases."""

    def __init__(
        self, context: Context, request: Resolved, destination: Destination, image: int, started: float
    ) -> None:
        self.context = context
        self.request = request
        self.destination = destination
        self.image = image
        self.phase: Phase = "load"
        self.started = started  # of the whole job, on the performance counter
        self.seconds: dict[str, float] = {}
        self.layout: Layout  # from `open` on
        self.steering: Steering  # the guidance of every step, from `open` on
        self.decoded: dict[str, Any] = {}  # how, for the record
        self._runtime: Runtime | None = None

    @property
    def runtime(self) -> Runtime:
        assert self._runtime is not None, "opened by the first phase"
        return self._runtime

    def open(self) -> Generator[Event, None, None]:
        """Import torch and open the device, if no job before did; plan this picture's memory, and say how."""
        self._runtime = runtime = self.context.runtime()
        self.steering = runtime.steering(self.request)
        self.request, self.layout = self.context.planned(self.request)
        runtime.components.arrange(self.precision, self.layout.placements)
        runtime.begin_job(self.precision)
        yield Planned(**self.stamp(), plan=self.layout.plan)
        recorded = runtime.repeat.salience
        if recorded is not None and recorded != self._salience_digest:
            yield Noticed(
                **self.stamp(), message="the model was calibrated anew since this picture was made; it may differ."
            )

    def paint(self) -> Generator[Event, None, None]:
        """Encode, denoise, decode, save. Finished latents stay on disk until their picture does."""
        yield from self.open()
        if self.image == 0 and (note := self.context.source.size_note(self.request)):
            yield Noticed(**self.stamp(), message=note)
        kept = self._kept_latents()
        latents = kept.find(self.size.shape)
        if latents is None:
            conditionings = yield from self._encode()
            latents = yield from self._denoise(conditionings)
            kept.keep(latents)
        else:
            yield LatentsRestored(**self.stamp(), steps=self.request.steps)
        try:
            pixels = yield from self._decode(latents)
            saved = yield from self._save(pixels)
        except CancelledError:
            if not self.context.cancel.is_leaving:
                kept.forget()
            raise
        kept.forget()
        self._learn_preview(latents, pixels)
        yield saved

    @property
    def size(self) -> Size:
        """The geometry of this picture."""
        return self.context.source.size(self.request)

    @property
    def encoders(self) -> tuple[Part, ...]:
        """The parts that read the prompt, in order."""
        return self.context.source.family.encoders(distill=self.request.distill)

    def _check_tokens(self, tokens: Tokens) -> None:
        """Raises `RequestError` for a token that a text encoder does not have: its tokenizer is another model's."""
        model = self.context.source
        for part in self.encoders:
            tokenizer = model.family.tokenizer_of(part.name).name
            highest, rows = int(tokens.ids[tokenizer].max()), model.configs[part.name]["vocab_size"]
            if highest >= rows:
                raise RequestError(
                    "model",
                    f"the tokenizer in {shown_path(model.tokenizers[tokenizer])} gives the token {highest}, "
                    f"{part.name} knows {rows}: they do not belong together; get the original model.",
                )

    def _kept_latents(self) -> KeptLatents:
        import torch

        from engine.jobs.latents import KeptLatents

        return KeptLatents(
            self.request,
            model_hash=self.context.hash_for(self.request),
            versions=self.runtime.versions,
            device=self.runtime.target.device,
            threads=torch.get_num_threads(),
            kernel=self.runtime.choose_kernel(self.precision),
            salience=self._salience_digest,
            batch=self.layout.batch,
        )

    @property
    def _salience_digest(self) -> str:
        """Of the balancing factors that decide this picture's bits; empty where nothing is painted."""
        if self.runtime.components.simulated:
            return ""
        form = self.runtime.components.form(self._core, self.request.form)
        return form.digest if form is not None else ""

    @property
    def _core(self) -> str:
        return self.context.source.family.core.name

    def _encode(self) -> Generator[Event, None, list[Conditioning]]:
        """What the transformer reads of the prompt, and of the negative prompt where that is needed."""
        from engine.cancel import cancellable

        model, runtime, request = self.context.source, self.runtime, self.request
        networks = model.family.networks
        prompts = self._prompts
        tokens = {text: runtime.tokenize(text) for text in prompts}
        for text in prompts:
            self._check_tokens(tokens[text])
        known, parts = runtime.conditionings, self.encoders
        keys = {text: (text, self.precision.kind, parts[-1].name) for text in prompts}
        missing = [text for text in tokens if keys[text] not in known]
        for text in tokens.keys() - missing:
            known.move_to_end(keys[text])  # the last to be forgotten
        began = None
        told: dict[str, Conditioning] = {text: {} for text in missing}
        for part in parts if missing else ():
            device = "cpu" if part.beside_card and self.layout.reads_on_host else None
            with self._lend(part.name, passes=len(missing), device=device) as loan:
                yield from self._progress(loan.load())
                if began is None:
                    began = yield from self._begin("encode")
                for text in missing:
                    with cancellable(loan.module, self._check):
                        found = networks.encode(part.name, loan.module, tokens[text], loan.embedded, loan.device)
                    told[text] = {**told[text], **found}
        known.update({keys[text]: conditioning for text, conditioning in told.items()})
        while len(known) > max(CACHED_PROMPTS, len(keys)):
            known.popitem(last=False)
        if began is None:
            began = yield from self._begin("encode")
        main = tokens[request.prompt]
        hints = [prompt_hint(model, request.prompt)]
        for what, text in zip(("prompt", "negative prompt"), prompts, strict=False):
            if tokens[text].count > tokens[text].limit:
                hints.append(f"the {what} has {tokens[text].count} tokens; the first {tokens[text].limit} are used.")
        yield Encoded(
            **self.stamp(),
            tokens=min(main.count, main.limit),
            token_limit=main.limit,
            cached=request.prompt not in missing,
            hint=" ".join(text for text in hints if text) or None,
        )
        yield self._end("encode", began)
        return [known[keys[text]] for text in prompts]

    @property
    def _prompts(self) -> list[str]:
        """The prompt, and the negative prompt where a step needs it."""
        negative = self.request.negative_prompt
        if negative is None or not self.steering.negative_passes:
            return [self.request.prompt]
        return [self.request.prompt, negative]

    def _denoise(self, conditionings: Sequence[Conditioning]) -> Generator[Event, None, torch.Tensor]:
        from engine.sampling.denoise import Prompt, denoise
        from engine.sampling.true_cfg import TrueGuidance

        request, runtime, model, steering = self.request, self.runtime, self.context.source, self.steering
        networks, size = model.family.networks, self.size
        latents = networks.noise(request.seed, size)
        sigmas = runtime.sigmas(request)
        if steering.notice:
            yield Noticed(**self.stamp(), message=steering.notice)
        passes = request.steps + (steering.negative_passes if self.layout.batch == 1 else 0)
        with self._lend(self._core, passes=passes) as loan:
            tables = yield from self._modulate(loan, conditionings, sigmas)
            prompts = [Prompt(table, each) for table, each in zip(tables, conditionings, strict=True)]
            yield from self._progress(loan.load())
            began = yield from self._begin("denoise")
            reader = loan.component.reader
            assert reader is not None
            steps = denoise(
                networks,
                loan.module,
                reader,
                prompts,
                latents,
                sigmas,
                size,
                self._check,
                loan.device,
                loan.dtype,
                TrueGuidance(steering.cfg, request.cfg_method) if len(prompts) > 1 and steering.cfg else None,
                batched=self.layout.batch > 1,
            )
            with closing(steps), self._observing(loan.module):  # hooks and tensors go before the component does
                for step in steps:
                    latents = step.latents
                    yield StepFinished(
                        **self.stamp(),
                        step=step.number,
                        steps=request.steps,
                        sigma=step.sigma,
                        seconds=step.seconds,
                        preview=runtime.preview.frame(networks.unpacked(step.clean.float().cpu(), size)),
                    )
                    self.context.cancel.check_between_steps()
            latents = latents.cpu()
        yield self._end("denoise", began)
        return latents

    def _observing(self, transformer: Any) -> AbstractContextManager[None]:
        """Open while the transformer runs its steps."""
        return nullcontext()

    def _modulate(
        self, loan: Loan, conditionings: Sequence[Conditioning], sigmas: torch.Tensor
    ) -> Generator[Event, None, list[Tables]]:
        """The modulation tables of all steps, for each prompt: computed in one pass over their weights, or kept."""
        from engine.sampling import modulation

        reader, known = loan.component.reader, self.runtime.tables
        assert reader is not None
        told, family = self.steering.distilled, self.context.source.family
        texts = [text if family.step_reads_prompt else "" for text in self._prompts]
        keys = [(text, told, self.precision, tuple(sigmas.tolist())) for text in texts]
        missing = {key: each for key, each in zip(keys, conditionings, strict=True) if key not in known}
        if missing:
            yield from self._progress(loan.read())
            made = modulation.compute(
                reader,
                loan.visit,
                [*missing.values()],
                sigmas,
                told,
                family.networks,
                loan.device,
                loan.dtype,
                self._check,
            )
            known.update(zip(missing, map(loan.folded, made), strict=True))
        for key in keys:
            known.move_to_end(key)
        while sum(kept.rows.nbytes for kept in known.values()) > CACHED_TABLE_BYTES and len(known) > len(keys):
            known.popitem(last=False)
        return [known[key] for key in keys]

    def _decode(self, latents: torch.Tensor) -> Generator[Event, None, torch.Tensor]:
        """Pixels, whole or in the tiles that the plan chose. Out of memory: smaller tiles, at last the CPU."""
        from engine.memory.enforce import card_is_full, empty_cache, host_is_full
        from engine.sampling.decode import decode

        family, size, rungs = self.context.source.family, self.size, self._rungs()
        began = None
        for number, (tile, device) in enumerate(rungs):
            try:
                with self._lend(family.decoder.name, device=device) as loan:
                    yield from self._progress(loan.load())
                    if began is None:
                        began = yield from self._begin("decode")
                    self.phase = "decode"
                    pixels = decode(
                        family.networks,
                        loan.module,
                        latents.to(loan.device),
                        size,
                        self._check,
                        tile=tile,
                        device=loan.device,
                        dtype=loan.dtype,
                    )
                    self.decoded = {"tile": tile, "decoder_device": str(loan.device)}
                    break
            except Exception as error:
                if not (card_is_full(error) or host_is_full(error)) or number == len(rungs) - 1:
                    raise
            empty_cache(self.runtime.target)  # now that the error's frames hold nothing any more
            if rungs[number + 1][1] == "cpu":
                self.runtime.components.drop_host_copies()
            yield Noticed(**self.stamp(), message=f"{self._out_of_memory()}; trying {_rung(*rungs[number + 1])}.")
        assert began is not None
        yield self._end("decode", began)
        return pixels

    def _rungs(self) -> list[tuple[int, str | None]]:
        """Tile sizes and devices to try, one after the other; None is the device that the plan is for."""
        from engine.sampling.decode import smaller_tiles

        planned = self.layout.tile
        if self.runtime.target.is_card and self.runtime.repeat.decoder == "cpu":
            return [(planned, "cpu")]
        smaller = smaller_tiles(planned, self.size)
        rungs: list[tuple[int, str | None]] = [(planned, None), *((tile, None) for tile in smaller)]
        if self.runtime.target.is_card:
            rungs.append((smaller[0] if smaller else planned, "cpu"))
        return rungs

    def _out_of_memory(self) -> str:
        """What a refused allocation inside the budget is: a fault of ours, told with both figures."""
        plan, measured = self.layout.plan, self.runtime.card.peak_bytes
        figures = f"predicted {size(plan.peak_bytes)}" + (f", measured {size(measured)}" if measured else "")
        return (
            f"{self.phase} ran out of memory inside a budget of {size(plan.budget_bytes)} ({figures}), which is a "
            "fault of this program: please report it"
        )

    def _save(self, pixels: torch.Tensor) -> Generator[Event, None, ImageSaved]:
        import torch
        from PIL import Image

        from engine.images.metadata import Record
        from engine.images.save import save_image

        request, runtime = self.request, self.runtime
        began = yield from self._begin("save")
        record = Record(
            request=request,
            model=self.context.name,
            model_hash=self.context.hash_for(self.request),
            versions=runtime.versions,
            seconds_by_phase=dict(self.seconds),
            device=runtime.target.device,
            reproduce={
                "batch": self.layout.batch,
                "threads": torch.get_num_threads(),
                "kernel": runtime.choose_kernel(self.precision),
                "encoder_device": "cpu" if self.layout.reads_on_host else runtime.target.device,
                **({"salience": digest} if (digest := self._salience_digest) else {}),
                **self.decoded,
            },
        )
        left, top, right, bottom = request.picture_box
        image = Image.fromarray(pixels[top:bottom, left:right].numpy())
        path, notice = save_image(image, record, self.destination)
        yield self._end("save", began)
        return ImageSaved(
            **self.stamp(),
            path=path,
            seed=request.seed,
            width=image.width,
            height=image.height,
            seconds_by_phase=dict(self.seconds),
            notice=notice,
            predicted_peak_bytes=self.layout.plan.peak_bytes,
            measured_peak_bytes=runtime.card.peak_bytes,
            moved_bytes=runtime.components.traffic.moved_bytes,
            disk_bytes=runtime.components.traffic.disk_bytes,
        )

    def _learn_preview(self, latents: torch.Tensor, pixels: torch.Tensor) -> None:
        """Add this picture to the preview's fit, unless the model brought its own."""
        runtime, model = self.runtime, self.context.source
        if runtime.preview_file.parent != model.path:
            with suppress(Exception):  # a preview is worth no failure
                runtime.preview.add(model.family.networks.unpacked(latents, self.size), pixels)
                runtime.preview.save(runtime.preview_file, f"fitted on {runtime.preview.pictures} decoded pictures")

    def failed(self, error: Exception) -> Failed:
        """The event for an error; what nobody foresaw leaves its traceback in the state folder."""
        message = self._reason(error)
        if not isinstance(error, RequestError) and (log := keep_traceback(error)) is not None:
            message = f"{message} (details in {log})"
        bad_input = isinstance(error, RequestError) and not error.machine
        return Failed(**self.stamp(), phase=self.phase, message=message, bad_input=bad_input)

    @property
    def precision(self) -> Precision:
        """What everything is stored and computed in."""
        return self.request.form

    def _check(self) -> None:
        self.context.cancel.check()

    def _lend(self, component: str, passes: int = 1, device: str | None = None) -> AbstractContextManager[Loan]:
        """The device for this component; its 8-bit layers multiply as was found best here."""
        self.phase = "load"
        self.runtime.card.hold()
        return self.runtime.components.lend(
            component,
            self.precision,
            self.layout.placements[component],
            self._check,
            passes=passes,
            kernel=self.runtime.choose_kernel(self.precision),
            device=device,
        )

    def _reason(self, error: Exception) -> str:
        """One sentence for the person."""
        if isinstance(error, RequestError):
            return str(error)
        if self._runtime is not None:
            from engine.memory.enforce import card_is_full

            if card_is_full(error):
                return f"{self._out_of_memory()}; until then take a smaller size, or allow less with --vram."
        if shortage := memory_shortage(error):
            return f"{shortage} in {self.phase}; take a smaller size or close other programs."
        text = " ".join(str(error).split())[:300] or type(error).__name__
        return f"{self.phase} failed: {text}"

    def keep(self, component: str) -> Generator[Event, None, None]:
        """Bring what the plan keeps of a component into RAM, if it is not there already."""
        placement = self.layout.placements[component]
        yield from self._progress(self.runtime.components.keep(component, self.precision, placement, self._check))

    def _progress(self, work: Iterator[Progress]) -> Generator[Event, None, None]:
        """Bytes that come in, told as they do; and what there is to say about them."""
        self.phase = "load"
        began = time.perf_counter()
        for progress in work:
            yield LoadProgress(
                **self.stamp(),
                component=progress.component,
                done_bytes=progress.done_bytes,
                total_bytes=progress.total_bytes,
            )
            self.context.cancel.check_between_steps()
        self.seconds["load"] = self.seconds.get("load", 0.0) + time.perf_counter() - began
        yield from self._notices()

    def _notices(self) -> Generator[Event, None, None]:
        notices = self.runtime.components.notices
        while notices:
            yield Noticed(**self.stamp(), message=notices.pop(0))

    def _begin(self, phase: Phase) -> Generator[Event, None, float]:
        self.context.cancel.check_between_steps()
        self.phase = phase
        yield PhaseStarted(**self.stamp(), phase=phase)
        return time.perf_counter()

    def _end(self, phase: Phase, began: float) -> PhaseFinished:
        self.seconds[phase] = time.perf_counter() - began
        self.runtime.card.look()
        return PhaseFinished(**self.stamp(), phase=phase, seconds=self.seconds[phase])

    def stamp(self) -> dict[str, Any]:
        """What every event carries."""
        return {
            "image": self.image,
            "elapsed_seconds": time.perf_counter() - self.started,
            "memory": self._runtime.memory_use() if self._runtime else MemoryUse(resident_set_bytes()),
        }


def _rung(tile: int, device: str | None) -> str:
    """One way to decode, in words."""
    tiles = f"tiles of {tile} pixels" if tile else "the whole picture"
    return tiles if device is None else f"{tiles} on the CPU"
