"""True classifier-free guidance: the velocity with the prompt and the one with the negative prompt become one.

Plain: `v_neg + w (v_pos - v_neg)` (Ho and Salimans, arXiv:2207.12598). CFG-Zero* (arXiv:2503.18886) first scales
v_neg to its best fit, and does not move in a first step that is guided and a small part of the way. APG
(arXiv:2410.02416) works on predicted pictures: what points along the prediction with the prompt, and oversaturates, is
left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ZERO_SHARE = 0.04  # of all steps that CFG-Zero* does not move in
APG_NORM, APG_NORM_ELEMENTS = 15.0, 4 * 128 * 128  # the largest difference, for latents of SDXL's size
APG_MOMENTUM = -0.5


class TrueGuidance:
    """The rule for all steps of one picture; step i is guided by `weights[i]`."""

    def __init__(self, weights: Sequence[float], method: str = "plain") -> None:
        """`method` is "plain", "zero" or "apg"."""
        self.weights, self.method = weights, method
        self._zero_steps = int(ZERO_SHARE * len(weights))
        self._difference: Tensor | None = None

    def wants_negative(self, step: int) -> bool:
        """Whether a step needs the pass with the negative prompt."""
        return self.weights[step] != 1

    def velocity(self, step: int, latents: Tensor, sigma: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The guided velocity of a step, from those with either prompt; all [B, L, C], computed in float32."""
        weight, positive, negative = self.weights[step], positive.float(), negative.float()
        if self.method == "zero":
            return self._zero(step, weight, positive, negative)
        if self.method == "apg":
            return self._projected(weight, latents, sigma, positive, negative)
        return negative + weight * (positive - negative)

    def _zero(self, step: int, weight: float, positive: Tensor, negative: Tensor) -> Tensor:
        if step < self._zero_steps:
            return torch.zeros_like(positive)
        length = _dot(negative, negative).clamp(min=torch.finfo(torch.float32).tiny)
        negative = _dot(positive, negative) / length * negative
        return negative + weight * (positive - negative)

    def _projected(self, weight: float, latents: Tensor, sigma: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        difference = float(sigma) * (negative - positive)  # of the predicted pictures, latents - sigma * velocity
        if self._difference is not None:
            difference = difference + APG_MOMENTUM * self._difference
        self._difference = difference
        most = APG_NORM * math.sqrt(difference[0].numel() / APG_NORM_ELEMENTS)
        difference = difference * (most / _dot(difference, difference).sqrt()).clamp(max=1.0)
        clean = latents - float(sigma) * positive
        along = _dot(difference, clean) / _dot(clean, clean).clamp(min=torch.finfo(torch.float32).tiny)
        clean = clean + (weight - 1) * (difference - along * clean)
        return (latents - clean) / float(sigma)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Of each picture: [B, 1, 1]."""
    return (first * second).sum(dim=(1, 2), keepdim=True)
