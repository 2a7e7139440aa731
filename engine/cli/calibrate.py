"""`t2i models calibrate`: find out which channels are hard to round, or take what was found elsewhere."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cancel import CancelledError
from engine.cli.console import CANCELLED, DONE, StatusLine, write
from engine.cli.interrupts import Interrupts
from engine.cli.model_text import count_of
from engine.cli.prompts import read_prompts
from engine.folders import shown_path
from engine.libraries import hush_libraries
from engine.request import Request, RequestError
from engine.text import duration, printable, size

if TYPE_CHECKING:
    from engine.engine import Engine


def run(name: str, file: str, request: Request, opening: dict[str, Any], *, as_json: bool) -> int:
    """Paint prompts as far as latents, and keep what was measured; the exit code."""
    from engine.engine import Engine
    from engine.events import LoadProgress, StepFinished

    prompts = [replace(request, prompt=text).prompt for _, text in read_prompts(file)]
    hush_libraries()
    begun = time.monotonic()
    with closing(StatusLine()) as line, Interrupts() as interrupts, Engine.open(name, **opening) as engine:
        events = engine.calibrate(prompts, request)
        interrupts.ask(engine.cancel)
        try:
            while True:
                event = next(events)
                if isinstance(event, LoadProgress):
                    line.show(f"load {event.component} {size(event.done_bytes)} of {size(event.total_bytes)}")
                elif isinstance(event, StepFinished):
                    done = event.image + event.step / event.steps
                    left = (len(prompts) - done) * (time.monotonic() - begun) / done
                    place = f"prompt {event.image + 1} of {len(prompts)}, step {event.step} of {event.steps}"
                    line.show(f"{place}, {duration(left)} left")
                    if as_json:
                        counts = {"prompt": event.image + 1, "prompts": len(prompts)}
                        steps = {"step": event.step, "steps": event.steps}
                        write(json.dumps({"event": "calibrating", **counts, **steps}))
        except StopIteration as end:
            made: Path = end.value
        except CancelledError:
            return CANCELLED
        line.close()
        _say(engine, made, as_json=as_json)
    return DONE


def use(name: str, file: Path, *, as_json: bool) -> int:
    """Keep a calibration that was made elsewhere; the exit code."""
    from engine.engine import Engine
    from engine.weights import calibrations

    hush_libraries()
    with Engine.open(name) as engine:
        engine.context.require_weights()
        if not file.is_file():
            raise RequestError("use", f"there is no file {shown_path(file)}.")
        known = calibrations.read(engine.model, engine.context.model_hash, engine.source.inputs, file)
        _say(engine, calibrations.write(known), as_json=as_json)
    return DONE


def _say(engine: Engine, file: Path, *, as_json: bool) -> None:
    from engine.weights import calibrations

    known = calibrations.read(engine.model, engine.context.model_hash, engine.source.inputs)
    factors = known.factors["csb+ssc"]
    largest = max(float(factor.max()) for factor in factors.values())
    if as_json:
        about = {"prompts": known.prompts, "steps": known.steps, "precision": known.precision}
        found = {"inputs": len(factors), "largest_factor": largest}
        write(json.dumps({"event": "calibrated", "model": engine.model, "file": str(file), **about, **found}))
        return
    write(
        printable(
            f"{engine.model} is calibrated with {count_of(known.prompts, 'prompt')} "
            f"at {count_of(known.steps, 'step')}: factors for {len(factors)} inputs, up to "
            f"{largest:.1f}, in {shown_path(file)}. --precision int8 uses them from now on (--salience off does not)."
        )
    )
