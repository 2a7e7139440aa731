"""Rectified flow as FLUX.1 uses it: noise schedule, Euler step, latent packing, position ids.

Flow time sigma runs from 1 (noise) to 0 (picture): x = (1 - sigma) * data + sigma * noise, and the network
predicts the velocity noise - data. Sources: Liu et al., "Flow Straight and Fast" (2022); Esser et al.,
"Scaling Rectified Flow Transformers" (2024), section 3.1; diffusers' FlowMatchEulerDiscreteScheduler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VAE_SCALE = 8  # pixels a side of one latent
PATCH_SIZE = 2  # latents a side of one image token


@dataclass(frozen=True, slots=True)
class Schedule:
    """Where the steps lie: `shift` moves them towards noise, by a constant or by the number of image tokens."""

    dynamic: bool = False
    shift: float = 1.0
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """Read diffusers' scheduler_config.json. Raises ValueError for variants that FLUX.1 does not use."""
        variants = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "shift_terminal")
        unsupported = [name for name in (*variants, "stochastic_sampling") if config.get(name)]
        if config.get("time_shift_type", "exponential") != "exponential":
            unsupported.append("time_shift_type")
        if unsupported:
            raise ValueError(f"the scheduler asks for {', '.join(unsupported)}, which FLUX.1 does not use")
        return cls(
            dynamic=bool(config.get("use_dynamic_shifting", False)),
            shift=float(config.get("shift", 1.0)),
            base_shift=float(config.get("base_shift", 0.5)),
            max_shift=float(config.get("max_shift", 1.15)),
            base_tokens=int(config.get("base_image_seq_len", 256)),
            max_tokens=int(config.get("max_image_seq_len", 4096)),
        )

    def sigmas(self, steps: int, image_tokens: int) -> Tensor:
        """The flow times of `steps` steps, from 1 down to 0: float32 [steps + 1]."""
        even = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).float()
        if self.dynamic:
            slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
            factor = math.exp(self.base_shift + slope * (image_tokens - self.base_tokens))
        else:
            factor = self.shift
        shifted = factor / (factor + (1 / even - 1))  # the same as factor * s / (1 + (factor - 1) * s)
        return torch.cat([shifted, torch.zeros(1)])


def euler_step(latents: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One Euler step of dx/dsigma = velocity, in float32 whatever the network's precision. Shapes [B, L, C]."""
    return latents + (sigma_next - sigma).to(latents.device) * velocity.float()


def predicted_clean(latents: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The picture that the network expects at the end, seen from flow time sigma. Shapes [B, L, C]."""
    return latents - sigma.to(latents.device) * velocity.float()


def noise(seed: int, channels: int, width: int, height: int) -> Tensor:
    """Packed starting noise [1, L, 4 * channels], float32, drawn on the CPU so that a seed is the same everywhere."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, channels, height // VAE_SCALE, width // VAE_SCALE)
    return pack(torch.randn(shape, generator=generator, dtype=torch.float32))


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] to image tokens [B, h/2 * w/2, 4 C]; channel index = c * 4 + row * 2 + column."""
    b, c, h, w = latents.shape
    latents = latents.view(b, c, h // PATCH_SIZE, PATCH_SIZE, w // PATCH_SIZE, PATCH_SIZE)
    return latents.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // PATCH_SIZE) * (w // PATCH_SIZE), c * PATCH_SIZE**2)


def unpack(tokens: Tensor, width: int, height: int) -> Tensor:
    """Image tokens [B, L, 4 C] back to latents [B, C, height/8, width/8]; width and height in pixels."""
    b, _, channels = tokens.shape
    rows, columns = token_grid(width, height)
    c = channels // PATCH_SIZE**2
    latents = tokens.view(b, rows, columns, c, PATCH_SIZE, PATCH_SIZE).permute(0, 3, 1, 4, 2, 5)
    return latents.reshape(b, c, rows * PATCH_SIZE, columns * PATCH_SIZE)


def token_grid(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of image tokens for a picture of this size in pixels."""
    side = VAE_SCALE * PATCH_SIZE
    return height // side, width // side


def tokens_shape(channels: int, width: int, height: int) -> tuple[int, int, int]:
    """The shape [1, L, 4 * channels] of one picture's tokens."""
    rows, columns = token_grid(width, height)
    return 1, rows * columns, channels * PATCH_SIZE**2


def image_position_ids(width: int, height: int) -> Tensor:
    """[L, 3] ids (0, row, column) of the image tokens, row by row."""
    rows, columns = token_grid(width, height)
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return ids.view(-1, 3)
