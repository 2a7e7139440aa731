"""Noise and conditioning to latents, a step at a time: the sampler loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from engine.cancel import cancellable
from engine.families.facts import Size
from engine.families.networks import Conditioning, Networks
from engine.quantization.watch import NotFiniteError, Watch
from engine.sampling import flow
from engine.sampling.modulation import TableReader, Tables, enter
from engine.sampling.true_cfg import TrueGuidance


@dataclass(frozen=True, slots=True)
class Step:
    """The state after a step (counted from 1) that began at flow time `sigma`."""

    number: int
    sigma: float
    latents: Tensor  # [1, L, C] float32
    clean: Tensor  # [1, L, C] float32: the predicted picture
    seconds: float


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the transformer is given of a prompt."""

    tables: Tables  # of its modulation
    conditioning: Conditioning


@torch.no_grad()
def denoise(
    networks: Networks,
    transformer: Any,
    reader: TableReader,
    prompts: Sequence[Prompt],
    latents: Tensor,
    sigmas: Tensor,
    size: Size,
    check: Callable[[], None],
    device: torch.device,
    dtype: torch.dtype,
    guidance: TrueGuidance | None = None,
    *,
    batched: bool = False,
) -> Generator[Step, None, None]:
    """Integrate the flow from noise `latents` [1, L, C] along `sigmas` [N + 1]; yields after each of the N steps.

    What follows from the step alone is in the prompts' tables, which `reader` hands to the blocks. With a second, the
    negative prompt, true `guidance` says how both velocities become one; its passes come second, or in one batch with
    the others (`batched`). `check` is called before every transformer block; an exception that it raises ends the
    loop. Raises `NotFiniteError` where a step gives numbers that are not finite, with the name of the first layers that
    were given such numbers, if they are in int8.
    """
    latents = latents.to(device, torch.float32)
    ready = networks.prepare([prompt.conditioning for prompt in prompts], size, device, dtype)

    def predicted(latents: Tensor, step: int, first: int, last: int) -> Tensor:
        """The velocities with some of the prompts, as one batch."""
        enter(reader, [prompt.tables for prompt in prompts[first:last]], step, device)
        return networks.velocity(transformer, latents, ready, slice(first, last))

    with cancellable(transformer, check), networks.running(transformer), _watched(transformer) as watch:
        for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            check()
            start = time.perf_counter()
            if guidance is None or not guidance.wants_negative(index):
                velocity = predicted(latents, index, 0, 1)
            else:
                if batched:
                    both = predicted(latents, index, 0, 2).split(1)
                else:
                    both = predicted(latents, index, 0, 1), predicted(latents, index, 1, 2)
                velocity = guidance.velocity(index, latents, sigma, *both)
                del both
            clean = flow.predicted_clean(latents, velocity, sigma)
            latents = flow.euler_step(latents, velocity, sigma, sigma_next)
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()  # an honest time a step; copies elsewhere go on
            _check_finite(watch, latents, index + 1)
            yield Step(index + 1, float(sigma), latents, clean, time.perf_counter() - start)


@contextmanager
def _watched(transformer: Any) -> Iterator[Watch | None]:
    """The check for numbers that are not finite, where there is one; nothing of it is left on the device."""
    watch: Watch | None = getattr(transformer, "watch", None)
    try:
        yield watch
    finally:
        if watch is not None:
            watch.forget()


def _check_finite(watch: Watch | None, latents: Tensor, step: int) -> None:
    layers = watch.first_bad() if watch is not None else None
    if layers is None and (latents.device.type == "meta" or bool(latents.isfinite().all())):
        return
    place = f"first in what goes into {layers}" if layers is not None else "in the predicted velocity"
    raise NotFiniteError(
        f"step {step} gave numbers that are not finite, {place}; the picture is not saved. Try another --precision, "
        "and see whether the model is whole with t2i models check."
    )
