"""The session in words and numbers: the header, the plan line under the prompt, the line of state, the gauges."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli.plan_text import part_of, plan_summary
from engine.request import MAX_PROMPT_CHARACTERS, RequestError
from tui.card import CardSample
from tui.jobs import Job
from tui.orders import expanded
from tui.parameters import LABELS
from tui.session import Session
from tui.text import duration, size
from tui.widgets.gauge import Level

if TYPE_CHECKING:
    from engine.grids import Axis

# Parameters that the header names only where the person chose them.
UNUSUAL = ("cfg", "negative_prompt", "guidance_schedule", "cfg_zero", "apg", "salience", "distill")
FIRST = ("seed", "count", "size", "steps")  # what does not fit is left out from the end


def next_picture(session: Session) -> tuple[str, ...]:
    """What the next picture will be like."""
    parameters = session.parameters
    parts = [Path(session.model).name or session.model, *(["simulated"] if session.simulate else [])]
    for name in sorted(parameters.names(), key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST)):
        text, lock = parameters.shown(name), " LOCK" if parameters.seed is not None else ""
        if not (name in UNUSUAL and parameters.is_default(name)):
            known = {"size": text, "seed": f"seed {text}{lock}", "count": f"x{text}"}
            parts.append(known.get(name, f"{LABELS.get(name, name)} {text}"))
    return tuple(parts)


def pictures(text: str, count: int, axes: Collection[Axis]) -> str:
    """For the line below the prompt: how many pictures it stands for, where it has variants or the panel a grid.

    Or what is wrong with it: too long, or a file of wildcards that is not there. Files are read for these.
    """
    if len(text) > MAX_PROMPT_CHARACTERS:
        return f"{len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed"
    if "{" not in text and "__" not in text and not axes:
        return ""
    try:
        found = expanded(text)
    except RequestError as error:
        return str(error)
    prompts = len(found.prompts)
    if axes:
        factors = [f"{len(axis.values)} {LABELS.get(axis.name, axis.name)}" for axis in axes]
        cells = math.prod(len(axis.values) for axis in axes)
        variants = f" x {found.summary}" if found.summary else ""
        return f"grid of {cells * prompts} pictures: {' x '.join(factors)}{variants}"
    every = f" x {count} = {prompts * count} pictures" if found.summary and count > 1 else ""
    return found.summary + every


def waiting(session: Session) -> tuple[str, ...]:
    """How much waits, and about how long that takes."""
    if not session.queue:
        return ()
    seconds = session.waiting_seconds()
    return (f"queue {len(session.queue)}" + (f" ~{duration(seconds)}" if seconds else ""),)


def state(session: Session, pause_keys: str) -> str:
    """What goes on, where the phases do not say it; `pause_keys` go on with a queue that is paused."""
    texts = []
    if session.cancelling:
        texts.append("cancelling ..." if session.watch.at_once is None else "cancelling at once ...")
    last = session.results[0] if session.results else None
    ready = last.message if last is not None and last.simulated and last.state == "done" else "ready"
    if session.running is None:
        texts.append(
            {
                "starting": "starting the engine",
                "loading": "loading the model",
                "ready": ready,
                "gone": "the engine is off; the next picture starts it",
                "refused": "no model can be used",
            }[session.engine_state]
            if not (session.paused and session.queue) and not session.held
            else f"paused, {len(session.queue) or 'nothing'} waiting: {pause_keys} goes on"
        )
    elif session.plan is not None and session.progress.step == 0 and not session.hint:
        texts.append(f"plan: {plan_summary(session.plan)}")
    if session.hint:
        texts = texts if texts != ["ready"] else []
        texts.append(f"hint: {session.hint}")
    return "  ".join(texts)


def forecast(session: Session, *, has_prompt: bool) -> tuple[tuple[str, ...], str]:
    """How the next picture would run: short texts, the weightiest first, and what kind of news that is."""
    known, kind = session.forecast, ""
    texts: list[str] = []
    tokens = known.tokens if has_prompt else None
    if tokens is not None and tokens.cut:
        texts.append(f"{tokens.count} of {tokens.limit} tokens, cut off: {tokens.cut}")
        kind = "warning"
    if known.refusal:
        return (known.refusal, *texts), "error"
    plan = known.plan
    if plan is not None:
        fits = "does not fit" if plan.peak_bytes > plan.budget_bytes > 0 else "fits"
        chosen = f"{plan.precision} {fits}" if plan.precision_reason else fits
        texts.insert(0, f"{chosen}, peak {part_of(plan.peak_bytes, plan.budget_bytes)}")
        turn = plan.same_prompt if known.is_encoded else plan.new_prompt
        encoded = ", encode kept" if known.is_encoded else ""
        texts.append(f"~{duration(turn.seconds * session.slowness)} a picture{encoded}")
        if streamed := max((phase.streamed_bytes_per_step for phase in plan.phases), default=0):
            texts.append(f"{size(streamed)} streamed a step")
    if tokens is not None and not tokens.cut:
        texts.append(f"{tokens.count} of {tokens.limit} tokens")
    if known.is_stale and session.engine_state not in ("gone", "refused"):
        busy = session.running is not None
        if busy:
            texts.insert(0, "before the last change" if plan is not None else "planned when the engine is idle")
        kind = kind or "stale"
    return tuple(texts), kind


def legend(session: Session, card: CardSample | None, total_bytes: int) -> list[str]:
    """Figures beside the plot of memory: what is used, the peaks, the budget, then what else is known of the device."""
    course, level = session.course, card_level(session, card)
    memory = session.progress.memory
    used, of, label = (
        (level.used_bytes, level.total_bytes, level.label)
        if level is not None
        else (0 if memory is None else memory.ram_bytes, total_bytes, "RAM")
    )
    if memory is None and level is None:
        return []
    lines = [f"{label} {part_of(used, of)}"]
    measured, planned = course.peak_bytes, course.foreseen_bytes
    peaks = [f"peak {size(measured)}"] if measured else []
    peaks += [f"plan {size(planned)}"] if planned else []
    if peaks:
        lines.append(", ".join(peaks))
    if course.budget_bytes and course.budget_bytes != of:
        lines.append(f"budget {size(course.budget_bytes)}")
    if level is not None:
        lines += [level.notes] if level.notes else []
        lines += [f"RAM {part_of(memory.ram_bytes, total_bytes)}"] if memory is not None else []
    elif session.device:
        lines.append(session.device)
    return lines


def outcome(session: Session, job: Job, plan_key: str) -> str:
    """What stands where a job has no picture: what became of it; of a simulated one, its plan in short."""
    texts = [job.message or job.state]
    plan = session.plans.get(job.id)
    if job.simulated and plan is not None:
        texts.append(f"plan: {plan_summary(plan)}")
        if job.seconds is not None:
            texts.append(f"~{duration(job.seconds)} on {plan.target}")
        texts.append(f"{plan_key} shows the whole plan")
    return "\n".join(texts)


def ram_level(session: Session, card: CardSample | None, total_bytes: int) -> Level:
    """RAM; where no card is in use, with the peak to expect there."""
    memory, plan = session.progress.memory, session.plan
    alone = card is None and (memory is None or memory.device_bytes is None)
    return Level(
        "RAM",
        0 if memory is None else memory.ram_bytes,
        total_bytes,
        session.peak_bytes if alone and memory is not None else None,
        (plan.ram_budget_bytes or None) if plan is not None else None,
        session.device if alone else "",
    )


def card_level(session: Session, card: CardSample | None) -> Level | None:
    """The card, or the simulated one; None where there is none."""
    plan, memory = session.plan, session.progress.memory
    if card is not None:
        parts = [f"GPU {card.utilization}%" if card.utilization is not None else ""]
        parts.append(f"{card.temperature} C" if card.temperature is not None else "")
        parts.append(f"{card.watts:.0f} W" if card.watts is not None else "")
        peak, budget = (session.peak_bytes, None) if plan is None else (plan.peak_bytes, plan.budget_bytes or None)
        return Level("VRAM", card.used_bytes, card.total_bytes, peak, budget, " ".join(filter(None, parts)))
    if plan is None or memory is None or memory.device_bytes is None:
        return None
    return Level("VRAM", memory.device_bytes, plan.budget_bytes, plan.peak_bytes, notes=plan.target)
