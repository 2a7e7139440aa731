"""One job, one picture: what was asked for, and what became of it. A simulated one ends without a picture."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

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


def job_to_dict(job: Job) -> dict[str, Any]:
    """All of a job but its id and state, as JSON takes it."""
    values = {field.name: getattr(job, field.name) for field in fields(job) if field.name not in ("id", "state")}
    values["request"] = job.request.to_dict()
    values["path"] = None if job.path is None else str(job.path)
    return values


def job_from_dict(id: Any, state: Any, values: Any) -> Job:
    """The job of what `job_to_dict` gave, whoever wrote it.

    Raises `ValueError`, `TypeError`, `KeyError` or `RecursionError` for what is none.
    """
    values["request"] = Request.from_dict(values["request"])
    values["path"] = None if values["path"] is None else Path(values["path"])
    job = Job(id=id, state=state, **values)
    texts = (job.id, job.model, job.output, job.message)
    if job.state not in STATES or not all(isinstance(value, str) for value in texts):
        raise ValueError
    if "\0" in job.output or b"\0" in os.fsencode(job.path or "") or type(job.simulated) is not bool:
        raise ValueError  # as `os.fsencode` does for what no path can hold
    if type(job.peak_bytes) is float:
        raise ValueError
    measured = [value for value in (job.seconds, job.peak_bytes) if value is not None]
    if not all(map(_is_number, (job.created, *measured))):
        raise ValueError
    return job


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 2**63  # type: ignore[operator]
