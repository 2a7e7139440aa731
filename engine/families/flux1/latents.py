"""FLUX.1's latents: noise, packing into image tokens, position ids."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.families.flux1.parts import PATCH_SIZE, VAE_SCALE


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


def image_position_ids(width: int, height: int) -> Tensor:
    """[L, 3] ids (0, row, column) of the image tokens, row by row."""
    rows, columns = token_grid(width, height)
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return ids.view(-1, 3)
