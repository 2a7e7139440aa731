"""Latents to pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine import flow
from engine.cancel import cancellable


@torch.no_grad()
def decode(vae: Any, tokens: Tensor, width: int, height: int, check: Callable[[], None]) -> Tensor:
    """Finished image tokens [1, L, 4 C] to uint8 RGB [height, width, 3] on the CPU.

    Raises ValueError where the pixels are not finite (a broken model must not pass for a picture).
    """
    latents = flow.unpack(tokens, width, height)
    latents = latents / vae.config.scaling_factor + vae.config.shift_factor
    with cancellable(vae, check):
        pixels: Tensor = vae.decode(latents.to(vae.device, vae.dtype), return_dict=False)[0]
    if not torch.isfinite(pixels).all():
        raise ValueError("the decoded picture holds values that are not finite")
    pixels = (pixels[0].float() / 2 + 0.5).clamp(0, 1)
    return (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
