"""What the probes of both 8-bit forms share: a layer's numbers as FLUX.1 has them, errors, and a card's own clock."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def numbers(in_features: int, out_features: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [out, in], a bias [out] and activations [tokens, in] in bfloat16, always the same ones.

    Rows and tokens are of different sizes, so that scales which go to the wrong ones show.
    """
    generator = torch.Generator(device).manual_seed(0)  # the global one decides pictures

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    weight = normal(out_features, in_features).mul_(0.02).mul_(normal(out_features, 1).mul_(0.5).exp_())
    bias = normal(out_features).mul_(0.01)
    x = normal(tokens, in_features).mul_(normal(tokens, 1).mul_(0.5).exp_())
    return weight.bfloat16(), bias.bfloat16(), x.bfloat16()


def worst_error(got: Tensor, exact: Tensor) -> float:
    """The largest relative error over the rows and the columns of a product; infinite where it is no number.

    Scales that are applied to the wrong rows show here even where they hide in the error of the whole.
    """
    error, norm = got - exact, torch.linalg.vector_norm
    errors = torch.stack([(norm(error, dim=dim) / norm(exact, dim=dim)).max() for dim in (0, 1)])
    return float(errors.nan_to_num(nan=math.inf).max())


def card_milliseconds(work: Callable[[], object], warm_ups: int, repeats: int) -> list[float]:
    """How long a card takes for `work`, each time, by its own clock; the shortest first."""
    for _ in range(warm_ups):
        work()
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)
