"""Rectified flow as FLUX.1 uses it: noise schedule, Euler step, latent packing, position ids.

Flow time sigma runs from 1 (noise) to 0 (picture): x = (1 - sigma) * data + sigma * noise, and the network
predicts the velocity noise - data. Sources: Liu et al., "Flow Straight and Fast" (2022); Esser et al.,
"Scaling Rectified Flow Transformers" (2024), section 3.1; diffusers' FlowMatchEulerDiscreteScheduler.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.times import FlowTimes

VAE_SCALE = 8  # pixels a side of one latent
PATCH_SIZE = 2  # latents a side of one image token


class Schedule(FlowTimes):
    """Flow times as the sampler takes them."""

    __slots__ = ()

    def sigmas(self, steps: int, image_tokens: int) -> Tensor:
        """The flow times of `steps` steps, from 1 down to 0: float32 [steps + 1]."""
        even = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).float()
        factor = self.factor(image_tokens)
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
