"""What every way to multiply has in common, and the plain one: as many bits as the network computes in."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6  # of FLUX.1's layer norms
ROWS = 1024  # of activations that are widened at a time


class Tokens(NamedTuple):
    """Activations that are ready to be multiplied: in 8 bits with a scale for each token, or as they were."""

    values: Tensor  # [B, S, in]: int8, FP8, or of the compute dtype
    scale: Tensor | None  # [B, S] float32; NaN where an int8 token is not finite

    def split(self, sizes: list[int]) -> list[Tokens]:
        """Parts of the sequence."""
        values = self.values.split(sizes, dim=1)
        scales = self.scale.split(sizes, dim=1) if self.scale is not None else [None] * len(sizes)
        return [Tokens(*part) for part in zip(values, scales, strict=True)]

    def total(self) -> Tensor:
        """A number that is finite only where all activations are: float32, no dimensions."""
        if self.scale is not None:
            return self.scale.sum()
        return torch.stack([part.sum(dtype=torch.float32) for part in self.values.split(ROWS, 1)]).sum()


class Kernel(Protocol):
    """A way to multiply; some round activations to 8 bits, once for all layers that are given them."""

    def modulate(self, x: Tensor, multiplier: Tensor, addend: Tensor) -> Tokens:
        """Layer norm of `x` [B, S, in], times and plus what is given for each channel ([B, in])."""

    def quantize(self, x: Tensor, inverse: Tensor | None = None) -> Tokens:
        """`x` [B, S, in], times `inverse` [in] where that is given."""

    def linear(self, tokens: Tokens, layer: Any, gelu: bool = False) -> Tensor:
        """The layer's output [B, S, out], and of that the GELU (tanh form)."""

    def added(self, x: Tensor, gate: Tensor, out: Tensor) -> Tensor:
        """x + gate * out; `gate` is [B, in] of their dtype, and `out` may be overwritten."""


class Plain:
    """diffusers' own computation, operation by operation: every layer is called with what comes in."""

    def modulate(self, x: Tensor, multiplier: Tensor, addend: Tensor) -> Tokens:
        normed = F.layer_norm(x, x.shape[-1:], eps=EPS)
        return Tokens(normed.mul_(over_tokens(multiplier)).add_(over_tokens(addend)), None)

    def quantize(self, x: Tensor, inverse: Tensor | None = None) -> Tokens:
        return Tokens(x, None)

    def linear(self, tokens: Tokens, layer: Any, gelu: bool = False) -> Tensor:
        product: Tensor = layer(tokens.values.contiguous())
        return F.gelu(product, approximate="tanh") if gelu else product

    def added(self, x: Tensor, gate: Tensor, out: Tensor) -> Tensor:
        return out.mul_(over_tokens(gate)).add_(x)


class Block(nn.Module):
    """A module that multiplies in the way of a kernel."""

    kernel: Kernel


def set_kernel(network: Any, kernel: str) -> None:
    """How all blocks of a network multiply; a kernel that is not among its `kernels` means "dequantize"."""
    chosen = network.kernels.get(kernel, network.kernels["dequantize"])
    for module in network.modules():
        if isinstance(module, Block):
            module.kernel = chosen


def over_tokens(channels: Tensor) -> Tensor:
    """What is given for each channel, [B, in], so that it goes with every token of [B, S, in]."""
    return channels if channels.shape[0] == 1 else channels[:, None]
