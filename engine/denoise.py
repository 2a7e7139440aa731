"""Noise and conditioning to latents, a step at a time: the sampler loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from engine import flow
from engine.cancel import cancellable
from engine.modulation import TableReader, Tables, enter
from engine.quantization.watch import NotFiniteError, Watch
from engine.true_cfg import TrueGuidance


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
    sequence: Tensor  # T5's, [1, S, joint_attention_dim]


@torch.no_grad()
def denoise(
    transformer: Any,
    reader: TableReader,
    prompt: Prompt,
    latents: Tensor,
    sigmas: Tensor,
    width: int,
    height: int,
    check: Callable[[], None],
    device: torch.device,
    dtype: torch.dtype,
    negative: Prompt | None = None,
    guidance: TrueGuidance | None = None,
    *,
    batched: bool = False,
) -> Generator[Step, None, None]:
    """Integrate the flow from noise `latents` [1, L, C] along `sigmas` [N + 1]; yields after each of the N steps.

    Timestep, distilled guidance and pooled prompt are in the prompt's tables, which `reader` hands to the blocks. With
    a `negative` prompt, true `guidance` says how both velocities become one; its passes come second, or in one batch
    with the others (`batched`). `check` is called before every transformer block; an exception that it raises ends the
    loop. Raises `NotFiniteError` where a step gives numbers that are not finite, with the name of the first layers that
    were given such numbers, if they are in int8.
    """
    latents = latents.to(device, torch.float32)
    prompts = [prompt] if negative is None else [prompt, negative]
    sequences = torch.cat([each.sequence.to(device, dtype) for each in prompts])
    image_ids = flow.image_position_ids(width, height).to(device, dtype)
    text_ids = torch.zeros(sequences.shape[1], 3, device=device, dtype=dtype)
    not_used = torch.zeros(1, device=device, dtype=dtype)

    def predicted(latents: Tensor, step: int, first: int, last: int) -> Tensor:
        """The velocities with some of the prompts, as one batch."""
        enter(reader, [each.tables for each in prompts[first:last]], step, device)
        velocities: Tensor = transformer(
            hidden_states=latents.to(dtype).expand(last - first, -1, -1),
            encoder_hidden_states=sequences[first:last],
            timestep=not_used,
            img_ids=image_ids,
            txt_ids=text_ids,
            return_dict=False,
        )[0]
        return velocities

    with cancellable(transformer, check), _watched(transformer) as watch:
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
    """Who watches the transformer's activations, if anybody does. What is the same in every step is kept meanwhile;
    nothing is left on the device."""
    watch: Watch | None = transformer.watch
    try:
        with transformer.pos_embed.kept():
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
