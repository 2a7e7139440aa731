"""One job, one picture: what was asked for, and what became of it. A simulated one ends without a picture."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.request import Request

State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Job:
    """A request for one picture, on its way. Changed by `dataclasses.replace`."""

    request: Request  # count 1, its seed drawn
    model: str  # a name or a folder, as `Engine.open` takes it
    output: str  # the folder that the picture goes into; "" for the default
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: State = "queued"
    created: float = field(default_factory=time.time)  # seconds since the epoch
    message: str = ""  # why it failed, where it was cancelled, or a notice
    path: Path | None = None  # of the finished picture
    seconds: float | None = None  # that it took, loading included; of a simulated one an estimate
    simulated: bool = False  # only its plan, memory and time are played through
    peak_bytes: int | None = None  # of the card, measured; of a simulated one what it held
