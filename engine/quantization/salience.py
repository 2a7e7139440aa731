"""Salient channels: balancing factors that share out between activations and weights what is hard to round.

PTQ4DiT (arXiv:2405.16005), section 4. A channel of a layer's input that is much larger than the
others spoils the rounding of a whole token; dividing it by a factor b, and multiplying the weight's column by it,
changes nothing but the rounding. b = sqrt(s_rho(X) / s(W)) makes both sides equally salient (CSB, eq. 5 to 7), where
s is the largest number of a channel and s_rho its mean over steps (SSC, eq. 9 to 11), weighted by how little the
salience of activations and weights have to do with each other in that step.

Nothing is divided at run time that could be divided before: after a layer norm b goes into the modulation tables,
before an attention's output layer into the rows of the values' layer. GELU is in between for the rest, whose input is
multiplied by 1 / b while it is quantized.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SMALLEST_FACTOR, LARGEST_FACTOR = 1e-2, 1e2
SMALLEST_SALIENCE = 1e-12  # of what is not zero


@dataclass(frozen=True, slots=True)
class Input:
    """What several layers of a transformer are given, and where it comes from.

    `name` is the first of its layers, with a suffix for a part of their input. `tables` is the adaLN linear, how many
    parts its output has, and which of them are shift and scale; `values` are layers whose rows become the input's
    channels through an attention. Without either it is balanced at run time.
    """

    name: str
    layers: tuple[str, ...]
    channels: tuple[int, int] = (0, 0)  # of the layers' input, from and to
    tables: tuple[str, int, int, int] | None = None
    values: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many channels."""
        return self.channels[1] - self.channels[0]


# Factors.


def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two vectors, equal numbers sharing a rank; 0 where one of them is constant."""
    ranks = torch.stack([_ranks(first), _ranks(second)])
    ranks -= ranks.mean(dim=1, keepdim=True)
    lengths = torch.linalg.vector_norm(ranks, dim=1)
    return float(ranks[0] @ ranks[1] / (lengths[0] * lengths[1])) if bool((lengths > 0).all()) else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Ranks in float64 from 0, the mean rank where numbers are equal."""
    _, places, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts.double() + 1) / 2)[places]
    return ranks


def mean_salience(maxima: Tensor, weight_maxima: Tensor) -> Tensor:
    """s_rho(X) [in]: the mean of `maxima` [steps, in] over steps with SSC's weights, softmax(-rho) (eq. 9 to 11)."""
    rho = torch.tensor([spearman(step, weight_maxima) for step in maxima], dtype=torch.float64)
    mean: Tensor = torch.softmax(-rho, dim=0) @ maxima.double()
    return mean


def balancing(maxima: Tensor, weight_maxima: Tensor, mode: str) -> Tensor:
    """Factors b [in], float64, to divide activations by: CSB of the middle step, or of the mean over steps with SSC.

    `maxima` [steps, in] are the largest activations of each channel, `weight_maxima` [in] the largest weights. 1 where
    one of them is zero. Factors are relative to their geometric mean, because what all channels share changes nothing,
    and clamped to [1e-2, 1e2].
    """
    salience = mean_salience(maxima, weight_maxima) if mode == "csb+ssc" else maxima[len(maxima) // 2].double()
    weights = weight_maxima.double()
    usable = (salience > SMALLEST_SALIENCE) & (weights > SMALLEST_SALIENCE)
    factors = torch.ones_like(salience)
    if bool(usable.any()):
        log = (salience[usable].log() - weights[usable].log()) / 2
        factors[usable] = (log - log.mean()).exp().clamp(SMALLEST_FACTOR, LARGEST_FACTOR)
    return factors


class Folds:
    """Balancing factors where they belong: in weights, in modulation tables, in what is quantized at run time."""

    def __init__(self, inputs: Sequence[Input], factors: Mapping[str, Tensor]) -> None:
        """`factors` are b [in] by the name of the input, none for what is not balanced."""
        self.columns: dict[str, Tensor] = {}  # by layer: b [in]
        self.rows: dict[str, Tensor] = {}  # by layer: b [out]
        self.inverse: dict[str, Tensor] = {}  # by layer: 1 / b [in]
        self._tables: list[tuple[str, int, int, int, Tensor | None]] = []
        for each in inputs:
            factor = factors.get(each.name)
            if each.tables is not None:
                self._tables.append((*each.tables, factor))
            if factor is None:
                continue
            for layer in each.layers:
                self.columns[layer] = torch.cat([self.columns.get(layer, factor.new_empty(0)), factor])
            for layer in each.values:
                self.rows[layer] = factor
            if each.tables is None and not each.values:
                (layer,) = each.layers
                self.inverse[layer] = torch.cat([factor.new_ones(each.channels[0]), 1 / factor])

    def weight(self, layer: str, rows: Tensor, start: int = 0) -> Tensor:
        """Rows of a layer's weight from `start` on, [n, in], balanced."""
        if (columns := self.columns.get(layer)) is not None:
            rows = rows * columns.to(torch.promote_types(rows.dtype, torch.float32))
        return self._divided(layer, rows, start)

    def bias(self, layer: str, bias: Tensor, start: int = 0) -> Tensor:
        """A layer's bias from element `start` on, balanced."""
        return self._divided(layer, bias[:, None], start)[:, 0]

    def tables(self, rows: Tensor, places: Mapping[str, tuple[int, int]]) -> Tensor:
        """Modulation tables [steps, total] with factors (1 + scale) / b and addends shift / b in the place of scale and
        shift, as int8 blocks take them; float32 or better. `places` gives start and width of each adaLN linear."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32), copy=True)
        for linear, count, shift, scale, factor in self._tables:
            start, width = places[linear]
            parts = rows[:, start : start + width].unflatten(1, (count, -1))
            parts[:, scale] += 1
            if factor is not None:
                parts[:, [shift, scale]] /= factor.to(rows.dtype)
        return rows

    def _divided(self, layer: str, rows: Tensor, start: int) -> Tensor:
        divisors = self.rows.get(layer)
        if divisors is None:
            return rows
        return rows / divisors[start : start + len(rows), None].to(torch.promote_types(rows.dtype, torch.float32))


def balanced_at_run_time(inputs: Sequence[Input]) -> set[str]:
    """The layers whose input is balanced while it is quantized."""
    return {layer for each in inputs if each.tables is None and not each.values for layer in each.layers}


class Maxima:
    """The largest activations of every channel, by step, over any number of runs: nothing else is kept of them."""

    def __init__(self, inputs: Sequence[Input], steps: int) -> None:
        """`steps` are what a run has."""
        self.inputs, self.steps = inputs, steps
        self._passes = 0
        self._values: dict[str, Tensor] = {}  # on the CPU
        self._step: dict[str, Tensor] = {}  # of the running pass, on the device: 5.8 MB of FLUX.1

    def of(self, each: Input) -> Tensor:
        """[steps, in] float32, on the CPU. Raises `ValueError` where nothing was seen."""
        if each.name not in self._values:
            raise ValueError(f"{each.name} was given nothing")
        return self._values[each.name]

    @contextmanager
    def observing(self, transformer: Any) -> Iterator[None]:
        """While open, every pass of a transformer (diffusers' own, not in int8) is one step."""
        handles = [transformer.register_forward_hook(self._count)]
        for each in self.inputs:
            seen = each.layers if each.values else each.layers[:1]  # the others are given the same tensor
            handles += [transformer.get_submodule(layer).register_forward_pre_hook(self._watch(each)) for layer in seen]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._passes = 0  # a run that was given up is no part of the next one
            self._step = {}

    def _watch(self, each: Input) -> Callable[..., None]:
        def see(_: object, args: tuple[Tensor, ...]) -> None:
            first, last = each.channels
            tokens = args[0].flatten(0, -2)[:, first:last]
            largest = torch.linalg.vector_norm(tokens, ord=math.inf, dim=0).float()
            known = self._step.get(each.name)
            self._step[each.name] = largest if known is None else torch.maximum(known, largest)

        return see

    def _count(self, *_: object) -> None:
        """A pass has ended."""
        for each in self.inputs:
            if (largest := self._step.pop(each.name, None)) is not None:
                values = self._values.setdefault(each.name, torch.zeros(self.steps, each.width))
                step = values[self._passes % self.steps]
                torch.maximum(step, largest.cpu(), out=step)
        self._passes += 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """Balancing factors of one model, and what they were found with."""

    model_hash: str
    steps: int
    prompts: int
    precision: str  # that the activations were measured in
    factors: Mapping[str, Mapping[str, Tensor]]  # by mode and input: float32 [in]

    def digest(self, mode: str) -> str:
        """Of the factors of a mode: what a cache of weights was made with."""
        digest = hashlib.sha256()
        for name, factor in sorted(self.factors[mode].items()):
            digest.update(name.encode() + factor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]
