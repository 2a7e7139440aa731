"""Rectified flow: noise schedule, Euler step.

Flow time sigma runs from 1 (noise) to 0 (picture): x = (1 - sigma) * data + sigma * noise, and the network
predicts the velocity noise - data. Sources: Liu et al., "Flow Straight and Fast" (2022); Esser et al.,
"Scaling Rectified Flow Transformers" (2024), section 3.1; diffusers' FlowMatchEulerDiscreteScheduler.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.times import FlowTimes


def sigmas(times: FlowTimes, steps: int, image_tokens: int) -> Tensor:
    """The flow times of `steps` steps as the sampler takes them, from 1 down to 0: float32 [steps + 1]."""
    even = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).float()
    factor = times.factor(steps, image_tokens)
    shifted = factor / (factor + (1 / even - 1))  # the same as factor * s / (1 + (factor - 1) * s)
    return torch.cat([shifted, torch.zeros(1)])


def euler_step(latents: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One Euler step of dx/dsigma = velocity, in float32 whatever the network's precision. Shapes [B, L, C]."""
    return latents + (sigma_next - sigma).to(latents.device) * velocity.float()


def predicted_clean(latents: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The picture that the network expects at the end, seen from flow time sigma. Shapes [B, L, C]."""
    return latents - sigma.to(latents.device) * velocity.float()
