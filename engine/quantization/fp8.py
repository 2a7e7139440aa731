"""Linear layers whose weights are 8-bit floats (E4M3, FP8 Formats for Deep Learning, arXiv:2209.05433).

Every output row has a scale of its own, and a scale that is made here is a power of two. Multiplying by it changes no
digit, so the weights are dequantized to bfloat16 without a second rounding. Against free scales this costs 0.5 % of the
error on normally distributed rows of FLUX.1's width. Weights that are 8-bit floats in a file keep its scales.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Callable
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.quantization.kernels import Kernel, Plain, Tokens
from engine.quantization.probing import card_milliseconds, numbers, worst_error

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # 0.875 * 2**9
LARGEST_WEIGHT = 2.0**120  # so that no rounding up can pass float32's largest number
SMALLEST_SCALE = 2.0**-110  # so that no product is a subnormal number, which some processors take for zero
FP8_CAPABILITY = (8, 9)  # Ada Lovelace: the first cards with FP8 arithmetic
FP8_MULTIPLE = 16  # of the sides of such a product
MAX_SCALED_MM_ERROR = 0.05  # rounding the activations to 8 bits alone costs 0.027

WIDENED_ELEMENTS = 2**18  # at a time, so that they stay in the processor's cache
SCALE_SUFFIX = "_scale"  # "X.weight" is stored with "X.weight_scale"
_scratch = threading.local()


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight` [out, in] of any float dtype as (FP8 [out, in], scale float32 [out]); weight ~= FP8 * scale[:, None].

    The scale is the smallest power of two with which the row's largest weight stays in FP8's range; 1 for a row of
    zeros. Raises `ValueError` where a weight is not finite (or larger than 2**120).
    """
    if weight.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        weight = weight.float()  # 1 / scale may be too large for float16
    largest = weight.abs().amax(dim=1).float() if weight.numel() else weight.new_zeros(len(weight)).float()
    if not bool((largest <= LARGEST_WEIGHT).all()):  # false for NaN as well
        raise ValueError("the weight holds numbers that are not finite")
    mantissa, exponent = torch.frexp(largest)
    exponent = exponent - torch.where(mantissa <= 0.875, 9, 8)
    scale = torch.ldexp(torch.ones_like(largest), exponent).clamp_(min=SMALLEST_SCALE)
    scale[largest == 0] = 1.0
    return (weight * (1 / scale).to(weight.dtype)[:, None]).to(FP8), scale


def dequantize(quantized: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """FP8 [out, in] times its scales [out] as `dtype` (bfloat16 or float32); exact where scales are powers of two."""
    if quantized.device.type == "cpu":
        wide = widen(quantized, torch.empty(quantized.shape, dtype=dtype))
    else:
        wide = quantized.to(dtype)
    return wide.mul_(scale.to(dtype)[:, None])


def widen(values: Tensor, out: Tensor) -> Tensor:
    """Fill `out` (bfloat16, float16 or float32) with 8-bit floats of either kind, both contiguous and on the CPU.

    Their bits are moved to where float16 has them, which is five times as fast as torch's conversion. Exact for all
    finite numbers; E4M3's NaN comes out as 480.
    """
    bits, wide = values.view(-1).view(torch.int8), out.view(-1)
    e4m3 = values.dtype == FP8
    scratch = widening_scratch()
    for piece, target in zip(bits.split(WIDENED_ELEMENTS), wide.split(WIDENED_ELEMENTS), strict=True):
        moved = scratch[: len(piece)].copy_(piece)
        if e4m3:  # sign, 4 of 5 bits of the exponent, 3 of 10 bits of the mantissa
            moved.bitwise_left_shift_(7).bitwise_and_(~0x4000)
        else:
            moved.bitwise_left_shift_(8)
        target.copy_(moved.view(torch.float16))
    return out.mul_(2.0**8) if e4m3 else out  # exponents count from 7 in E4M3, from 15 in float16


def widening_scratch() -> Tensor:
    """What `widen` works in, in this thread: kept, so that no plan need count it (512 KiB)."""
    if not hasattr(_scratch, "bits"):
        _scratch.bits = torch.empty(WIDENED_ELEMENTS, dtype=torch.int16)
    bits: Tensor = _scratch.bits
    return bits


class Fp8Linear(nn.Module):
    """`nn.Linear` with its weight in FP8. Its parameters hold nothing until somebody puts tensors in their place.

    There is no `weight` among them: T5 casts its activations to `wo.weight.dtype`, which must be the dtype that is
    computed in. `kernel` says how to multiply: "dequantize" (exact, anywhere), or "scaled_mm" (FP8 arithmetic, which
    rounds the activations to 8 bits too; see `probe_kernel`). Never cast the module: `to(dtype)` would cast the FP8.
    """

    quantized: nn.Parameter  # [out, in] FP8
    scale: nn.Parameter  # [out] float32
    bias: nn.Parameter | None  # [out] of the compute dtype

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "meta",
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.dtype = dtype
        self.kernel = "dequantize"

        def empty(*shape: int, dtype: torch.dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)

        self.quantized = empty(out_features, in_features, dtype=FP8)
        self.scale = empty(out_features, dtype=torch.float32)
        self.register_parameter("bias", empty(out_features, dtype=dtype) if bias else None)

    @property
    def weight(self) -> Tensor:
        """No elements: it only tells the compute dtype and the device."""
        return torch.empty(0, dtype=self.dtype, device=self.quantized.device)

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        fits = not (self.in_features % FP8_MULTIPLE or self.out_features % FP8_MULTIPLE) and x.dtype == torch.bfloat16
        if self.kernel == "scaled_mm" and fits:
            return scaled_mm(x, self.quantized, self.scale, self.bias)
        return F.linear(x, dequantize(self.quantized, self.scale, self.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, dtype={self.dtype}"


def replace_linears(module: nn.Module, is_eight_bit: Callable[[str], bool], dtype: torch.dtype) -> None:
    """Put an empty `Fp8Linear` in the place of every linear layer whose weight, by its name, is to have 8 bits."""
    for name, layer in linears(module, is_eight_bit):
        module.set_submodule(name, Fp8Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype))


def linears(module: nn.Module, is_eight_bit: Callable[[str], bool]) -> list[tuple[str, nn.Linear]]:
    """The linear layers whose weights, by their names, are to have 8 bits."""
    return [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and is_eight_bit(f"{name}.weight")
    ]


def scaled_mm(x: Tensor, quantized: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] bfloat16 times the weight, in FP8 arithmetic: every token is rounded to FP8 with its own scale."""
    return scaled_product(rounded(x), quantized, scale, bias)


def rounded(x: Tensor) -> Tokens:
    """x [..., in] bfloat16 as (FP8 [..., in], scale float32 [..., 1])."""
    largest = torch.linalg.vector_norm(x, ord=math.inf, dim=-1, keepdim=True)
    token_scale = (largest / FP8_MAX).clamp_(min=SMALLEST_SCALE)
    return Tokens((x / token_scale).to(FP8), token_scale.float())


def scaled_product(tokens: Tokens, quantized: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Rounded tokens [..., in] times the weight: bfloat16 [..., out]."""
    assert tokens.scale is not None
    product = torch._scaled_mm(
        tokens.values.reshape(-1, tokens.values.shape[-1]),  # [M, in]
        quantized.t(),
        scale_a=tokens.scale.reshape(-1, 1),
        scale_b=scale[None],
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,  # Ada multiplies twice as fast with it
    )
    return product.view(*tokens.values.shape[:-1], -1)


class ScaledMm(Plain):
    """FP8 arithmetic in a transformer's blocks: what several layers are given is rounded once for all of them."""

    def modulate(self, x: Tensor, multiplier: Tensor, addend: Tensor) -> Tokens:
        return rounded(super().modulate(x, multiplier, addend).values)

    def quantize(self, x: Tensor, inverse: Tensor | None = None) -> Tokens:
        return rounded(x)

    def linear(self, tokens: Tokens, layer: Fp8Linear, gelu: bool = False) -> Tensor:
        product = scaled_product(tokens, layer.quantized, layer.scale, layer.bias)
        return F.gelu(product, approximate="tanh") if gelu else product


def kernels(width: int, dtype: torch.dtype) -> dict[str, Kernel]:
    """The ways to multiply of blocks of this width; sides that are no multiples of 16 are always dequantized."""
    known: dict[str, Kernel] = {"dequantize": Plain()}
    if width % FP8_MULTIPLE == 0 and dtype == torch.bfloat16:
        known["scaled_mm"] = ScaledMm()
    return known


def has_fp8_arithmetic(device: torch.device) -> bool:
    """Whether the device multiplies FP8 numbers."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def probe_kernel(device: torch.device, dtype: torch.dtype) -> str:
    """The kernel for `Fp8Linear` on this device: "scaled_mm" where it was seen to be right and faster.

    It is tried on the largest layer of FLUX.1; whatever goes wrong means "dequantize". Takes under 1 GiB of the card
    for less than a second.
    """
    kernel = "dequantize"
    if device.type == "cuda" and dtype == torch.bfloat16:
        with suppress(Exception):  # an old driver, a card without memory, a torch built without these kernels
            kernel = _tried_kernel(device)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    return kernel


def _tried_kernel(device: torch.device) -> str:
    if not has_fp8_arithmetic(device):
        return "dequantize"
    with torch.no_grad(), torch.cuda.device(device):
        layer, x = _probe_layer(3072, 12288, 4096, device)
        if scaled_mm_error(layer, x[:512]) > MAX_SCALED_MM_ERROR:
            return "dequantize"
        milliseconds = {}
        for layer.kernel in ("dequantize", "scaled_mm"):
            milliseconds[layer.kernel] = statistics.median(card_milliseconds(lambda: layer(x), 3, 9))
    return min(milliseconds, key=milliseconds.__getitem__)


def scaled_mm_error(layer: Fp8Linear, x: Tensor) -> float:
    """The largest relative error of "scaled_mm" against "dequantize" over the rows and the columns of the product."""
    kernel = layer.kernel
    try:
        layer.kernel = "dequantize"
        exact = layer(x).float().flatten(0, -2)
        layer.kernel = "scaled_mm"
        got = layer(x).float().flatten(0, -2)
    finally:
        layer.kernel = kernel
    return worst_error(got, exact)


def _probe_layer(in_features: int, out_features: int, tokens: int, device: torch.device) -> tuple[Fp8Linear, Tensor]:
    """A layer and activations [tokens, in]."""
    weight, bias, x = numbers(in_features, out_features, tokens, device)
    layer = Fp8Linear(in_features, out_features, device=device)
    layer.quantized.data, layer.scale.data = quantize_rows(weight)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer, x
