"""Linear layers in 8-bit whole numbers, weights and activations (W8A8).

A weight has one scale for each output row, found once; activations have one for each token, found at run time. Their
products are summed in 32 bits, and scales, bias and GELU are applied to the sum. Signed and symmetric: 0 is 0, and the
largest number of a row becomes 127.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.quantization.fp8 import LARGEST_WEIGHT, linears
from engine.quantization.kernels import EPS, ROWS, Kernel, Tokens, over_tokens
from engine.quantization.probing import numbers, worst_error

INT8_MAX = 127
WIDE_ROWS, COLUMNS = 2048, 1024  # of a product that are in 32 bits at a time
MIN_CUDA_ROWS, CUDA_MULTIPLE = 17, 8  # what torch._int_mm asks for there
FUSED_MULTIPLE = 16  # of the sides of a product
WEIGHTS = ("quantized", "scale", "bias")  # looked up without a module's search for attributes, as slow as a launch
MAX_KERNEL_ERROR = 0.01  # of a row or a column; bfloat16 alone costs 0.002
PROBE_TOKENS, MAX_PROBE_WIDTH = {"cuda": 4096, "cpu": 128}, {"cuda": 3072, "cpu": 1024}
DOUBT = 1.25  # how much faster weights dequantized must be, which save nothing
HOPELESS = 3.0  # times the best so far: not timed again


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight` [out, in] of any float dtype as (int8 [out, in], scale float32 [out]); weight ~= int8 * scale[:, None].

    Raises `ValueError` where a weight is not finite (or larger than 2**120).
    """
    weight = weight.float()
    largest = weight.abs().amax(dim=1) if weight.numel() else weight.new_zeros(len(weight))
    if not bool((largest <= LARGEST_WEIGHT).all()):  # false for NaN as well
        raise ValueError("the weight holds numbers that are not finite")
    return _rounded(weight.clone(), largest)


def _rounded(rows: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """float32 rows, which are overwritten, and the largest magnitude of each, as (int8, scale).

    The bits are those of the Triton kernels: torch divides a number by a tensor with its rounded reciprocal.
    """
    largest = torch.where(largest == 0, float(INT8_MAX), largest)
    limit = torch.full_like(largest, INT8_MAX)
    values = rows.mul_((limit / largest)[:, None]).round_().clamp_(-INT8_MAX, INT8_MAX)
    scale = torch.where(largest.isfinite(), largest / limit, math.nan)
    return values.to(torch.int8), scale


def dequantize(quantized: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 [out, in] times its scales [out] as `dtype`."""
    return quantized.to(dtype).mul_(scale.to(dtype)[:, None])


class Int8Linear(nn.Module):
    """`nn.Linear` with its weight in int8. Its parameters hold nothing until somebody puts tensors in their place.

    `inverse` is there where the layer's input is balanced while it is quantized: it is multiplied by it. Called as
    a module it computes with its weight dequantized; blocks multiply in int8 through a `Kernel`.
    """

    quantized: nn.Parameter  # [out, in] int8
    scale: nn.Parameter  # [out] float32
    bias: nn.Parameter | None  # [out] of the compute dtype
    inverse: nn.Parameter | None  # [in] float32

    def __init__(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, *, balanced: bool = False
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype

        def empty(*shape: int, dtype: torch.dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)

        self.quantized = empty(out_features, in_features, dtype=torch.int8)
        self.scale = empty(out_features, dtype=torch.float32)
        self.register_parameter("bias", empty(out_features, dtype=dtype) if bias else None)
        self.register_parameter("inverse", empty(in_features, dtype=torch.float32) if balanced else None)

    @property
    def weight(self) -> Tensor:
        """Dequantized, of the compute dtype: [out, in]."""
        return dequantize(self.quantized, self.scale, self.dtype)

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, dtype={self.dtype}"


def replace_linears(
    transformer: nn.Module, is_eight_bit: Callable[[str], bool], dtype: torch.dtype, balanced: Collection[str]
) -> None:
    """Put an empty `Int8Linear` in the place of every linear layer of a transformer's blocks.

    `balanced` names those whose input is balanced while it is quantized.
    """
    for name, layer in linears(transformer, is_eight_bit):
        bias = layer.bias is not None
        ours = Int8Linear(layer.in_features, layer.out_features, bias, dtype, balanced=name in balanced)
        transformer.set_submodule(name, ours)


class Gated:
    """What all kernels of int8 blocks have in common."""

    def added(self, x: Tensor, gate: Tensor, out: Tensor) -> Tensor:
        return torch.addcmul(x, over_tokens(gate), out)


class Dequantize(Gated):
    """Weights are dequantized, activations are not rounded: right everywhere, and no faster than 16 bits are."""

    def modulate(self, x: Tensor, multiplier: Tensor, addend: Tensor) -> Tokens:
        return Tokens(
            torch.cat([_modulated(part, multiplier, addend).to(x.dtype) for part in x.split(ROWS, 1)], 1), None
        )

    def quantize(self, x: Tensor, inverse: Tensor | None = None) -> Tokens:
        return Tokens(x if inverse is None else x * inverse.to(x.dtype), None)

    def linear(self, tokens: Tokens, layer: Int8Linear, gelu: bool = False) -> Tensor:
        product = F.linear(tokens.values, layer.weight, layer.bias)
        return F.gelu(product, approximate="tanh") if gelu else product


class WholeNumbers(Gated, ABC):
    """Quantized and multiplied by torch's own operations, some rows at a time, so that nothing wide is ever whole."""

    rows, columns = ROWS, 2**30

    def modulate(self, x: Tensor, multiplier: Tensor, addend: Tensor) -> Tokens:
        return self._gathered(x, lambda part: _modulated(part, multiplier, addend))

    def quantize(self, x: Tensor, inverse: Tensor | None = None) -> Tokens:
        return self._gathered(x, lambda part: part.float() * inverse if inverse is not None else _own(part))

    def linear(self, tokens: Tokens, layer: Int8Linear, gelu: bool = False) -> Tensor:
        assert tokens.scale is not None
        values, scale = tokens.values.flatten(0, -2), tokens.scale.flatten()
        out = torch.empty(len(values), layer.out_features, dtype=layer.dtype, device=values.device)
        for first, last in _pieces(len(values), self.rows):
            rows = self.widened(values[first:last])
            for start, stop in _pieces(layer.out_features, self.columns):
                product = self.product(rows, layer.quantized[start:stop]).mul_(scale[first:last, None])
                product.mul_(layer.scale[start:stop])
                if layer.bias is not None:
                    product.add_(layer.bias[start:stop])
                out[first:last, start:stop] = F.gelu(product, approximate="tanh") if gelu else product
        return out.view(*tokens.values.shape[:-1], -1)

    def _gathered(self, x: Tensor, work: Callable[[Tensor], Tensor]) -> Tokens:
        values = torch.empty(x.shape, dtype=torch.int8, device=x.device)
        scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
        for first, last in _pieces(x.shape[1], self.rows):
            part = work(x[:, first:last])
            largest = torch.linalg.vector_norm(part, ord=math.inf, dim=-1)
            rounded, scales = _rounded(part.flatten(0, -2), largest.flatten())
            values[:, first:last] = rounded.view(part.shape)
            scale[:, first:last] = scales.view(largest.shape)
        return Tokens(values, scale)

    def widened(self, values: Tensor) -> Tensor:
        """Activations as `product` takes them."""
        return values

    @abstractmethod
    def product(self, rows: Tensor, weight: Tensor) -> Tensor:
        """[m, in] times [n, in]: the sums as float32 [m, n], in memory of its own."""


class IntMatmul(WholeNumbers):
    """torch._int_mm: the 8-bit units of a card, or of a processor that has them."""

    def product(self, rows: Tensor, weight: Tensor) -> Tensor:
        if rows.device.type != "cuda":
            return torch._int_mm(rows, weight.t()).float()
        if rows.shape[1] % CUDA_MULTIPLE or len(weight) % CUDA_MULTIPLE:
            return torch.mm(rows.float(), weight.float().t())
        missing = max(0, MIN_CUDA_ROWS - len(rows))
        padded = F.pad(rows, (0, 0, 0, missing)) if missing else rows
        return torch._int_mm(padded, weight.t())[: len(rows)].float()


class FloatMatmul(WholeNumbers):
    """The same sums from the float32 units, for processors that multiply floats much faster than 8-bit numbers.

    Whole numbers are exact in float32 up to 2**24, which sums of a layer's products do not reach in practice; beyond it
    they are rounded by 2**-24.
    """

    rows, columns = WIDE_ROWS, COLUMNS

    def widened(self, values: Tensor) -> Tensor:
        return values.float()

    def product(self, rows: Tensor, weight: Tensor) -> Tensor:
        return torch.mm(rows, weight.float().t())


class Fused(Gated):
    """Triton: one kernel normalizes, modulates and quantizes, another multiplies, scales and applies bias and GELU."""

    def modulate(self, x: Tensor, multiplier: Tensor, addend: Tensor) -> Tokens:
        if x.device.type == "meta":
            return self._quantized(x)
        from engine.quantization import fused

        if len(x) == 1:
            return Tokens(*fused.modulate(x, multiplier, addend, EPS))
        parts = [fused.modulate(*part, EPS) for part in zip(x, multiplier, addend, strict=True)]
        return Tokens(torch.stack([values for values, _ in parts]), torch.stack([scale for _, scale in parts]))

    def quantize(self, x: Tensor, inverse: Tensor | None = None) -> Tokens:
        if x.device.type == "meta":
            return self._quantized(x)
        from engine.quantization import fused

        return Tokens(*fused.quantize(x.contiguous(), inverse))

    def linear(self, tokens: Tokens, layer: Int8Linear, gelu: bool = False) -> Tensor:
        if layer.in_features % FUSED_MULTIPLE or layer.out_features % FUSED_MULTIPLE:
            return KERNELS["int_mm"].linear(tokens, layer, gelu)
        values, scale = tokens
        assert scale is not None
        if values.device.type == "meta":
            return torch.empty((*values.shape[:-1], layer.out_features), dtype=layer.dtype, device="meta")
        from engine.quantization import fused

        weight, weight_scale, bias = (layer._parameters[name] for name in WEIGHTS)
        assert weight is not None and weight_scale is not None
        return fused.matmul(values.contiguous(), scale.contiguous(), weight, weight_scale, bias, gelu, layer.dtype)

    @staticmethod
    def _quantized(x: Tensor) -> Tokens:
        """What a plan counts."""
        return Tokens(x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32))


KERNELS: dict[str, Kernel] = {
    "triton": Fused(),
    "int_mm": IntMatmul(),
    "float32": FloatMatmul(),
    "dequantize": Dequantize(),
}
TITLES = {
    "triton": "fused Triton kernels",
    "int_mm": "torch's integer products",
    "float32": "integer products on the float32 units",
    "dequantize": "weights dequantized to 16 bits",
}


def _modulated(x: Tensor, multiplier: Tensor, addend: Tensor) -> Tensor:
    """Layer norm, times and plus, in float32 or better; memory of its own."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.layer_norm(wide, wide.shape[-1:], eps=EPS).mul_(over_tokens(multiplier)).add_(over_tokens(addend))


def _own(part: Tensor) -> Tensor:
    return part.to(torch.float32, copy=True)


def _pieces(count: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of nearly the same length."""
    parts = max(1, -(-count // most))
    for index in range(parts):
        yield count * index // parts, count * (index + 1) // parts


# Which kernel a machine runs best.


@dataclass(frozen=True, slots=True)
class Choice:
    """The kernel for a machine, and how long a layer takes with it, relative to bfloat16 (None: not measured)."""

    kernel: str
    ratio: float | None = None
    refused: tuple[str, ...] = ()  # why better ones do not run here, in words

    def sentence(self) -> str:
        """For the person."""
        slow = self.ratio is not None and self.ratio > 1
        times = f", {self.ratio:.2f} times the time of bf16" if self.ratio is not None else ""
        why = f" ({'; '.join(self.refused)})" if self.refused else ""
        advice = "; --precision bf16 is faster here" if slow else ""
        return f"int8 runs on {TITLES[self.kernel]}{times}{why}{advice}."

    @property
    def is_bad_news(self) -> bool:
        """Whether a person should hear of it unasked."""
        return self.kernel == "dequantize" or (self.ratio is not None and self.ratio > 1)


def candidates(device: torch.device) -> tuple[str, ...]:
    """Kernels that may run on a kind of device, the best first."""
    return ("triton", "int_mm", "dequantize") if device.type == "cuda" else ("int_mm", "float32", "dequantize")


def probe_kernel(device: torch.device, width: int) -> Choice:
    """The fastest kernel that was seen to be right on this device, for a model of this width.

    Rightness comes first, on a small layer; then a layer of [4 * width, width] is timed beside bfloat16. Takes about
    a second of a CPU, or under 1 GiB of a card.
    """
    width = min(width, MAX_PROBE_WIDTH[device.type])
    refused: list[str] = []
    right = []
    with torch.no_grad():
        for name in candidates(device):
            wrong = what_is_wrong(name, device)
            if wrong is None:
                right.append(name)
            else:
                refused.append(f"{TITLES[name]}: {wrong}")
        try:
            choice = _fastest(right, device, width)
        except RuntimeError as error:  # no memory for it
            refused.append(_first_line(error))
            choice = Choice(right[0] if right else "dequantize")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Choice(choice.kernel, choice.ratio, tuple(refused))


@torch.no_grad()
def what_is_wrong(name: str, device: torch.device) -> str | None:
    """Why a kernel does not run here; None where it gives what it should."""
    layer, x = _probe_layer(512, 256, 48, device)
    exact = F.gelu(_reference(layer, x), approximate="tanh")
    try:
        if name == "triton":
            from engine.quantization import fused

            if torch.cuda.get_device_capability(device) < fused.CAPABILITY:
                return "the card is older than Ampere"
        kernel = KERNELS[name]
        got = kernel.linear(kernel.quantize(x[None]), layer, gelu=True)[0].double()
        kernel.modulate(x[None], layer.scale.new_ones(1, 512), layer.scale.new_zeros(1, 512))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as failure:  # an old driver, a card that it was not built for, no compiler, no Triton
        return "not installed" if isinstance(failure, ImportError) else _first_line(failure)
    allowed = 0.05 if name == "dequantize" else MAX_KERNEL_ERROR  # activations that are not rounded differ by that
    return None if worst_error(got, exact) <= allowed else "gives wrong numbers"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def _reference(layer: Int8Linear, x: Tensor) -> Tensor:
    """What a kernel should give for `x` [tokens, in], in float64."""
    x = x.double()
    largest = x.abs().amax(dim=1, keepdim=True)
    rounded = (x * INT8_MAX / largest).round() * largest / INT8_MAX
    assert layer.bias is not None
    return rounded @ (layer.quantized.double() * layer.scale.double()[:, None]).t() + layer.bias.double()


def _fastest(names: list[str], device: torch.device, width: int) -> Choice:
    layer, x = _probe_layer(width, 4 * width, PROBE_TOKENS[device.type], device)
    weight = layer.weight
    plain = best = _seconds(lambda: F.linear(x, weight, layer.bias), device, math.inf)
    seconds = {}
    for name in names:
        kernel = KERNELS[name]

        def work(kernel: Kernel = kernel) -> Tensor:
            return kernel.linear(kernel.quantize(x[None]), layer)

        seconds[name] = _seconds(work, device, HOPELESS * best)
        best = min(best, seconds[name])
    fastest = min(seconds, key=lambda name: seconds[name] * (DOUBT if name == "dequantize" else 1))
    return Choice(fastest, seconds[fastest] / plain)


def _probe_layer(in_features: int, out_features: int, tokens: int, device: torch.device) -> tuple[Int8Linear, Tensor]:
    """A layer and activations [tokens, in]."""
    weight, bias, x = numbers(in_features, out_features, tokens, device)
    layer = Int8Linear(in_features, out_features, True, torch.bfloat16)
    quantized, scale = quantize_rows(weight)
    for name, value in (("quantized", quantized), ("scale", scale), ("bias", bias)):
        layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return layer, x


def _seconds(work: Callable[[], Tensor], device: torch.device, hopeless: float) -> float:
    """The shortest time of as many as fit a tenth of a second, at least three; of the first if that is `hopeless`."""

    def once() -> float:
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    once()  # compiles, allocates
    times = [once()]
    while times[0] <= hopeless and (len(times) < 3 or sum(times) < 0.1):
        times.append(once())
    return min(times)


@lru_cache(maxsize=8)
def choose(device: str, width: int) -> Choice:
    """`probe_kernel`, once in a process."""
    return probe_kernel(torch.device(device), width)
