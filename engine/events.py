"""What the engine says back: frozen, picklable, no tensors, no torch.

Every event carries the seconds since its job began and the memory in use. `ImageSaved`, `Cancelled`, `Failed`
and `Simulated` are terminal: exactly one of them comes for each image of a request.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

Phase = Literal["load", "encode", "denoise", "decode", "save"]


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes in use: this process's resident set, and the device's current and highest allocation (None on CPU)."""

    ram_bytes: int
    device_bytes: int | None = None
    device_peak_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Memory at one moment: seconds since the job began, bytes as `MemoryUse` has them."""

    seconds: float
    ram_bytes: int
    device_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class TokenCount:
    """How long a prompt is for the text encoder that takes most of it; `cut` is the text beyond the limit."""

    count: int
    limit: int
    cut: str = ""


@dataclass(frozen=True, slots=True)
class Preview:
    """A small picture: `width * height * 3` bytes of RGB, row by row."""

    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """What one phase is predicted to need on the card, in bytes; `peak_bytes` is the sum of the other places."""

    name: Phase
    resident_bytes: int  # weights that lie there through the phase, the slots of the streaming ring among them
    streamed_bytes_per_step: int  # that cross to the card in every denoise step; 0 elsewhere
    loaded_bytes: int  # that cross once
    activation_bytes: int  # highest sum of live tensors that are no weights
    allowance_bytes: int  # what no ledger sees: context, workspaces, convolution scratch, rounding
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Turnaround:
    """What the next picture moves and reads, and an estimate of how long it takes, up to saving."""

    moved_bytes: int  # to the card, streaming in all steps included
    disk_bytes: int
    seconds_by_phase: dict[str, float]  # load, encode, denoise, decode; of a prompt that is known no encode

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return sum(self.seconds_by_phase.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request will use memory, known before anything is loaded. All sizes are in bytes."""

    model: str
    size: str  # "1024x1024"
    steps: int
    precision: str
    target: str  # what it is for, in words: "cuda:0", "cpu", "RTX 3060 (simulated)"
    budget_bytes: int  # of the card
    peak_bytes: int  # of the card, the highest of all phases
    ram_budget_bytes: int
    host_bytes: int  # anonymous memory of this process, pinned memory included
    pinned_bytes: int
    phases: tuple[PhasePlan, ...]  # encode, denoise, decode
    text_encoder: str  # "T5, 4.8 billion parameters, fp8, streamed"
    tile: int  # pixels a side of a decoded tile; 0: the picture is decoded whole
    same_prompt: Turnaround
    new_prompt: Turnaround
    precision_reason: str = ""  # why auto chose it: "fp8: bf16 would stream 5.8 GiB a step"; "" where it was named
    notes: tuple[str, ...] = ()  # sentences for the person
    elsewhere: tuple[str, ...] = ()  # sentences about parts that are not beside the model


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`image` counts from 0 within the request's `count`; `elapsed_seconds` from the start of the job."""

    image: int
    elapsed_seconds: float
    memory: MemoryUse

    @property
    def name(self) -> str:
        """The event's name in snake_case: `StepFinished` is `step_finished`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, first of all `event`."""
        return {"event": self.name, **{field.name: _plain(getattr(self, field.name)) for field in fields(self)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned(Event):
    """How this picture will use memory; comes before anything is loaded."""

    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed(Event):
    """Something that the person should know and that stops nothing: `message` is one sentence."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress(Event):
    """Bytes of a component's weights read so far; a component that is in memory already sends none."""

    component: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseStarted(Event):
    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseFinished(Event):
    phase: Phase
    seconds: float
    estimated: bool = False  # True: no time was measured, a card's profile gives it


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded(Event):
    """The prompt is conditioning now. `hint` is a sentence for the person (truncated, unknown words), if any."""

    tokens: int
    token_limit: int
    cached: bool
    hint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished(Event):
    """`step` counts from 1; `sigma` is the flow time that the step began at; `seconds` is the step's own time."""

    step: int
    steps: int
    sigma: float
    seconds: float
    preview: Preview | None
    estimated: bool = False  # True: no time was measured, a card's profile gives it


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentsRestored(Event):
    """This very picture was denoised before, by a run that ended too early to save it; only decode and save remain."""

    steps: int  # that need not be done again


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSaved(Event):
    """The picture is on disk. `notice` says why it is not where it was asked for, if it is not.

    `measured_peak_bytes` is the process's share of the card, None where nobody measures it (on the CPU).
    """

    path: Path
    seed: int
    width: int
    height: int
    seconds_by_phase: dict[str, float]
    notice: str | None = None
    predicted_peak_bytes: int | None = None
    measured_peak_bytes: int | None = None
    moved_bytes: int = 0  # to the card
    disk_bytes: int = 0  # read from files


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(Event):
    """The image was given up on request, in this phase."""

    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """The image could not be made: `message` is one sentence for the person."""

    phase: Phase
    message: str
    bad_input: bool = False  # True: the request is at fault, False: the machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated(Event):
    """A simulated run is complete; nothing was painted. Peaks are what the run held, seconds are estimates."""

    peak_bytes: int
    peak_bytes_by_phase: dict[str, int]
    budget_bytes: int
    seconds_by_phase: dict[str, float]
    card: str  # whose profile gave the seconds


TERMINAL = (ImageSaved, Cancelled, Failed, Simulated)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
