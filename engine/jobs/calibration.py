"""Calibration: some prompts are painted as far as latents, and the largest activation of every channel is remembered.

From these come the factors that balance salient channels in int8; see `engine.quantization.salience`.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cancel import CancelledError
from engine.events import Event
from engine.jobs.context import Context
from engine.jobs.picture import Job
from engine.precision import MODES
from engine.request import AUTO, Request, RequestError, Resolved
from engine.weights import calibrations

if TYPE_CHECKING:
    from engine.images.save import Destination
    from engine.quantization.salience import Calibration, Maxima


class CalibrationJob(Job):
    """One prompt through encode and denoise, under observation; nothing is decoded or saved."""

    def __init__(
        self, context: Context, request: Resolved, destination: Destination, image: int, maxima: Maxima
    ) -> None:
        super().__init__(context, request, destination, image, time.perf_counter())
        self.maxima = maxima

    def paint(self) -> Generator[Event, None, None]:
        yield from self.open()
        conditionings = yield from self._encode()
        yield from self._denoise(conditionings)

    def find_factors(self, model_hash: str, prompts: int) -> Generator[Event, None, Calibration]:
        """The factors that follow from all prompts: one pass over the weights in their files."""
        from engine.quantization.salience import Calibration, balancing

        with self._lend(self._core) as loan:
            yield from self._progress(loan.read())
            factors: dict[str, dict[str, Any]] = {mode: {} for mode in MODES}
            for each in self.maxima.inputs:
                self._check()
                weights = loan.column_maxima([f"{layer}.weight" for layer in each.layers])
                weights = weights[each.channels[0] : each.channels[1]]
                for mode in MODES:
                    factors[mode][each.name] = balancing(self.maxima.of(each), weights, mode).float()
        return Calibration(model_hash, self.request.steps, prompts, str(self.precision), factors)

    def _observing(self, transformer: Any) -> AbstractContextManager[None]:
        return self.maxima.observing(transformer)


def calibrate(context: Context, prompts: Sequence[str], request: Request) -> Generator[Event, None, Path]:
    """Calibrate an open model on `prompts`, each painted as `request` says, with a seed of its own; returns the file.

    Raises `RequestError` for what cannot be painted, `CancelledError` when the engine was told to cancel; whatever it
    raises, an older calibration stays as it was.
    """
    from engine.images.save import Destination
    from engine.quantization.salience import Maxima

    context.require_weights()
    if context.settings.simulate:
        raise RequestError("simulate", "a simulated run has no activations to measure; leave --simulate out.")
    if request.precision in (None, AUTO):
        request = replace(request, precision=context.source.defaults.precision)
    resolved = context.resolve(request)
    if resolved.form.is_int8:
        raise RequestError(
            "precision", "activations are measured before they are rounded: take --precision bf16, fp32 or fp8."
        )
    maxima = Maxima(context.source.inputs, resolved.steps)
    kernels = context.runtime().kernels
    known = dict(kernels)
    kernels["fp8"] = "dequantize"  # with it, every layer is called with activations that are not rounded
    try:
        for number, prompt in enumerate(prompts):
            single = replace(resolved, prompt=prompt, seed=resolved.seed + number)
            job = CalibrationJob(context, single, Destination(Path()), number, maxima)
            try:
                yield from job.paint()
            except (RequestError, CancelledError):
                raise
            except Exception as error:  # in the words that a picture's failure has
                raise RequestError("salience", job.failed(error).message, machine=True) from error
        calibration = yield from job.find_factors(context.model_hash, len(prompts))
    finally:
        kernels.pop("fp8")
        kernels.update(known)
    return calibrations.write(calibration)
