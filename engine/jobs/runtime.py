"""What an open engine keeps between pictures: device, components, plans, prompts that were encoded."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import psutil

from engine.events import MemoryUse
from engine.folders import cache_dir
from engine.library.catalog import guidance_limits
from engine.precision import Precision
from engine.request import RequestError, Resolved
from engine.sampling.guidance import Steering, steering
from engine.version import library_versions
from engine.weights.model import Model

if TYPE_CHECKING:
    from torch import Tensor

    from engine.families.networks import Conditioning, Tokens
    from engine.memory.components import Components
    from engine.memory.enforce import CardMemory
    from engine.memory.layout import Layout
    from engine.memory.planner import Planner
    from engine.memory.target import Target
    from engine.quantization.int8 import Choice
    from engine.sampling.modulation import Tables
    from engine.sampling.preview import PreviewMap
    from engine.times import FlowTimes

CARD_NAMES = ("rtx-3060", "rtx-3090", "rtx-4090", "h100")  # whose figures a simulated run can have
DEFAULT_CARD = CARD_NAMES[0]
CONTEXT_PIECE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Repeat:
    """What else decides a picture's last bits, from the record of one that is to be made again; None: as fits now."""

    threads: int | None = None  # of the CPU
    tile: int | None = None  # pixels a side that are decoded at a time; 0: whole
    kernel: str | None = None  # of the 8-bit layers
    salience: str | None = None  # digest of the balancing factors
    batch: int | None = None  # prompts that the transformer is given at a time
    decoder: str | None = None  # "cpu" where a card had no room for it


NOTHING_TO_REPEAT = Repeat()


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine was opened."""

    device: str
    vram_bytes: int | None
    ram_bytes: int | None
    simulate: bool
    card: str
    repeat: Repeat


@dataclass
class Runtime:
    """What needs torch."""

    target: Target
    card: CardMemory
    times: FlowTimes
    components: Components
    planner: Planner
    preview: PreviewMap
    preview_file: Any
    versions: dict[str, str]
    repeat: Repeat
    tokenizers: dict[str, Any] = field(default_factory=dict)  # once a prompt was read
    conditionings: OrderedDict[tuple[str, str, str], Conditioning] = field(default_factory=OrderedDict)
    tables: OrderedDict[tuple[Any, ...], Tables] = field(default_factory=OrderedDict)
    kernels: dict[str, str] = field(default_factory=dict)  # of 8-bit layers by kind, once they were probed
    kernel_note: str = ""  # a sentence about the int8 kernel
    kernel_warning: str = ""  # the same, where the first picture in int8 is to say so

    @classmethod
    def open(cls, model: Model, digest: str, settings: Settings) -> Runtime:
        """Import torch and look at the device. Raises `RequestError` for one that is not here.

        `digest` is the model's hash, under which a preview for it is learned.
        """
        import torch

        from engine.memory.cards import CARDS
        from engine.memory.components import Components
        from engine.memory.enforce import CardMemory
        from engine.memory.planner import Planner
        from engine.memory.target import resolve
        from engine.sampling.preview import PreviewMap

        # A model whose weights are not here is planned for the kind of card that it needs.
        simulated = settings.simulate or (not model.has_weights and settings.device != "cpu")
        target = resolve(
            settings.device, settings.vram_bytes, settings.ram_bytes, simulated=simulated, card=CARDS[settings.card]
        )
        try:
            times = model.family.times(model.configs["scheduler"])
        except (ValueError, TypeError) as error:
            raise RequestError("model", f"the scheduler of {model.name!r} cannot be used: {error}.") from None
        if settings.repeat.threads is not None:
            torch.set_num_threads(settings.repeat.threads)
        defaults = model.defaults
        size = model.family.size(model.configs, model.limits, defaults.width, defaults.height)
        shipped = model.path / "preview.json"
        preview_file = shipped if shipped.is_file() else cache_dir() / "previews" / f"{digest[:16]}.json"
        components = Components(model, torch.device(target.device), model_hash=digest, simulated=target.simulated)
        components.notices += model.elsewhere
        card = CardMemory(target)
        card.hold()
        return cls(
            target=target,
            card=card,
            times=times,
            components=components,
            planner=Planner(components, target),
            preview=PreviewMap.read(preview_file, size.latent_channels),
            preview_file=preview_file,
            versions=library_versions(),
            repeat=settings.repeat,
        )

    def close(self) -> None:
        """Give all memory back."""
        self.components.clear()
        self.card.release()

    def begin_job(self, precision: Precision) -> None:
        """Count traffic and peaks from here, of a picture in this precision."""
        if precision.is_int8 and self.kernel_warning:
            self.components.notices.append(self.kernel_warning)
            self.kernel_warning = ""
        self.components.begin_job()
        self.card.restart()

    def tokenize(self, text: str) -> Tokens:
        """A prompt as the text encoders read it; the first call reads their tokenizers."""
        model, networks = self.components.model, self.components.model.family.networks
        if not self.tokenizers:
            self.tokenizers = {name: networks.load_tokenizer(name, folder) for name, folder in model.tokenizers.items()}
        return networks.tokenize(text, self.tokenizers, model.limits)

    def sigmas(self, request: Resolved) -> Tensor:
        """The flow times of a complete request: [N + 1]."""
        from engine.sampling import flow

        return flow.sigmas(self.times, request.steps, self.components.model.size(request).tokens)

    def steering(self, request: Resolved) -> Steering:
        """The guidance of every step of a complete request."""
        return steering(request, self.sigmas(request).tolist(), guidance_limits(self.components.model))

    def plan(self, request: Resolved) -> Layout:
        """The layout of a complete request. Raises `RequestError` where the budget cannot work."""
        negative, kernel = self.steering(request).negative_passes, self.choose_kernel(request.form)
        self._heed_the_context()
        layout = self.planner.plan(request, self.repeat.tile, kernel, negative, self.repeat.batch)
        if not request.form.is_int8 or not self.kernel_note:
            return layout
        return replace(layout, plan=replace(layout.plan, notes=(*layout.plan.notes, self.kernel_note)))

    def _heed_the_context(self) -> None:
        """Plan with what CUDA and its libraries take by now, where that is more than was expected of them."""
        growth = self.card.look() - self.target.context_bytes
        if growth > 0:
            pieces = -(-growth // CONTEXT_PIECE_BYTES)  # so that not each byte more makes all plans anew
            context = self.target.context_bytes + pieces * CONTEXT_PIECE_BYTES
            self._plan_for(replace(self.target, context_bytes=context))

    def _plan_for(self, target: Target) -> None:
        """From now on, with what is known better of the target; what was measured of the model holds."""
        from engine.memory.planner import Planner

        self.target = target
        self.planner = Planner(self.components, target, self.planner.needs.activations)

    def choose_kernel(self, precision: Precision) -> str | None:
        """How 8-bit layers multiply here; None where there are none."""
        if not precision.is_8_bits:
            return None
        kind, is_int8 = precision.kind, precision.is_int8
        if self.target.simulated:  # a card that is there would have Triton
            fp8 = "scaled_mm" if self.target.profile.fp8_flops else "dequantize"
            return "triton" if is_int8 else fp8
        if kind not in self.kernels:
            self.kernels[kind] = self._int8_kernel() if is_int8 else self._fp8_kernel()
        return self.kernels[kind]

    def _fp8_kernel(self) -> str:
        import torch

        from engine.quantization.fp8 import has_fp8_arithmetic, probe_kernel

        device, asked = self.components.device.device, self.repeat.kernel
        if asked == "dequantize" or (asked == "scaled_mm" and has_fp8_arithmetic(device)):
            return asked
        return probe_kernel(device, torch.bfloat16)

    def _int8_kernel(self) -> str:
        from engine.quantization.int8 import candidates, choose, what_is_wrong

        device, asked = self.components.device.device, self.repeat.kernel
        if asked in candidates(device) and what_is_wrong(asked, device) is None:
            return asked
        model = self.components.model
        choice = choose(str(device), model.family.width(model.configs[model.family.core.name]))
        self.heed(choice)
        return choice.kernel

    def heed(self, choice: Choice) -> None:
        """Plan int8 with what was measured of it here, which is better than a data sheet; keep what to say of it."""
        self.kernel_note = choice.sentence()
        if choice.is_bad_news:
            self.kernel_warning = self.kernel_note
        self._plan_for(replace(self.target, profile=replace(self.target.profile, int8_ratio=choice.ratio)))

    def memory_use(self) -> MemoryUse:
        """Bytes in use now."""
        ram = resident_set_bytes()
        if self.target.device == "cpu":
            placed = self.components.device
            as_card = self.target.budget_bytes < self.target.ram_budget_bytes
            return MemoryUse(ram, placed.placed_bytes, placed.peak_placed_bytes) if as_card else MemoryUse(ram)
        if self.target.simulated:
            placed = self.components.device
            return MemoryUse(ram, placed.placed_bytes, placed.peak_placed_bytes)
        return MemoryUse(ram, self.card.used_bytes, self.card.peak_bytes)


def resident_set_bytes() -> int:
    """This process's resident set."""
    return int(psutil.Process().memory_info().rss)
