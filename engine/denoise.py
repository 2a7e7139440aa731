"""Noise and conditioning to latents, a step at a time: the sampler loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from engine import flow
from engine.cancel import cancellable
from engine.encode import Conditioning


@dataclass(frozen=True, slots=True)
class Step:
    """The state after a step (counted from 1) that began at flow time `sigma`."""

    number: int
    sigma: float
    latents: Tensor  # [1, L, C] float32
    clean: Tensor  # [1, L, C] float32: the predicted picture
    seconds: float


@torch.no_grad()
def denoise(
    transformer: Any,
    conditioning: Conditioning,
    latents: Tensor,
    sigmas: Tensor,
    width: int,
    height: int,
    guidance: float | None,
    check: Callable[[], None],
) -> Generator[Step, None, None]:
    """Integrate the flow from noise `latents` [1, L, C] along `sigmas` [N + 1]; yields after each of the N steps.

    `guidance` is the embedded guidance input of a guidance-distilled model, None for a model without one.
    `check` is called before every transformer block; an exception that it raises ends the loop.
    """
    device, dtype = transformer.device, transformer.dtype
    latents = latents.to(device, torch.float32)
    sequence, pooled = conditioning.sequence.to(device, dtype), conditioning.pooled.to(device, dtype)
    image_ids = flow.image_position_ids(width, height).to(device, dtype)
    text_ids = torch.zeros(sequence.shape[1], 3, device=device, dtype=dtype)
    scale = None if guidance is None else torch.full((1,), guidance, device=device, dtype=torch.float32)
    with cancellable(transformer, check):
        for number, (sigma, sigma_next) in enumerate(pairwise(sigmas), start=1):
            check()
            start = time.perf_counter()
            velocity = transformer(
                hidden_states=latents.to(dtype),
                encoder_hidden_states=sequence,
                pooled_projections=pooled,
                timestep=sigma.to(device, dtype).expand(1),
                guidance=scale,
                img_ids=image_ids,
                txt_ids=text_ids,
                return_dict=False,
            )[0]
            clean = flow.predicted_clean(latents, velocity, sigma)
            latents = flow.euler_step(latents, velocity, sigma, sigma_next)
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()  # an honest time a step; copies elsewhere go on
            yield Step(number, float(sigma), latents, clean, time.perf_counter() - start)
