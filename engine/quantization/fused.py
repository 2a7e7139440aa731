"""W8A8 linear layers as Triton kernels: int8 weights with a scale per output row, int8 activations with one per token.

One kernel turns a row of activations into 8-bit integers and its scale, after the LayerNorm and adaLN modulation
before the layer where there are any. The other multiplies on int8 tensor cores and puts scales, bias and GELU on its
int32 sums before they leave the registers. Neither contracts a product and a sum into one rounding: but for GELU and
the LayerNorm's sums, bits are those of the same formulas in torch. Sums of integers are exact, with every tile size.
"""
# ruff: noqa: N803 - the kernels' M, N, K and BLOCK_M are named as everywhere
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import CompiledKernel

from engine.quantization.probing import card_milliseconds

CAPABILITY = (8, 0)  # Ampere: Triton has no int8 products for older cards
LARGEST_ROW = 32768  # columns that a program of the row kernels can hold
ELEMENTS_PER_THREAD = 32  # of a row: four 16-byte loads of bfloat16 in flight
TILED_ROWS = 4096  # from here on all M share one tuning: there are enough tiles for every card


def modulate(x: Tensor, multiplier: Tensor, addend: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """LayerNorm(x) * multiplier + addend as (int8 [..., M, K], scale float32 [..., M]), computed in float32.

    `x` is [M, K] or [1, M, K] of any float dtype with contiguous rows, `multiplier` (adaLN's 1 + scale) and `addend`
    (its shift) are contiguous float32 of K elements, and the LayerNorm has no parameters. Rounded as in `quantize`.
    """
    values, scale = row_outputs(x)
    arguments = (x, multiplier, addend, values, scale, x.stride(-2), eps)
    launch(modulate_kernel, scale.numel(), arguments, row_options(x.shape[-1]))
    return values, scale


def quantize(x: Tensor, inverse: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`x` [..., K], times `inverse` float32 [K] where given, as int8 [..., K] and the scale of each row, float32 [...].

    The scale is a row's largest magnitude / 127, or 1 for a row of zeros. A row with NaN or infinity has values 0 and
    scale NaN. `x` is of any float dtype; it is contiguous, or [M, K] with contiguous rows.
    """
    values, scale = row_outputs(x)
    launch(quantize_kernel, scale.numel(), (x, inverse, values, scale, x.stride(-2)), row_options(x.shape[-1]))
    return values, scale


def matmul(
    values: Tensor,
    token_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    gelu: bool,
    dtype: torch.dtype,
) -> Tensor:
    """values [..., K] @ weight [N, K].T, times token_scale [...] and scale [N], plus bias [N]: `dtype` [..., N].

    `values` and `weight` are int8, scales float32, the bias is of any float dtype or None; GELU is by its tanh
    approximation. All are contiguous; N and K are multiples of 16.
    """
    M, (N, K) = token_scale.numel(), weight.shape  # noqa: N806
    if N % 16 or K % 16 or not (values.is_contiguous() and weight.is_contiguous()):
        raise ValueError(f"sides must be multiples of 16 and rows contiguous: [{N}, {K}], strides {weight.stride()}")
    out = values.new_empty((*values.shape[:-1], N), dtype=dtype)

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(M, meta["BLOCK_M"]) * triton.cdiv(N, meta["BLOCK_N"]),)

    bucket = max(7, (min(M, TILED_ROWS) - 1).bit_length())  # so that not every length of prompt is tuned anew
    arguments = (values, token_scale, weight, scale, bias, out, M, N, K, bucket)
    launch(matmul_kernel, grid, arguments, GELU if gelu else NO_GELU)
    return out


GELU, NO_GELU = {"GELU": True}, {"GELU": False}
Grid = int | Callable[[dict[str, int]], tuple[int]]
_compiled: dict[tuple[object, ...], tuple[Callable[..., None], tuple[object, ...]]] = {}


def launch(kernel: Any, grid: Grid, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Run a kernel on the device of its first argument; `options` are its constants and how it is compiled.

    Triton's own launcher takes 30 to 100 microseconds of Python to find the compiled kernel that arguments want, longer
    than many of the kernels run. What it found is kept here by everything that it looks at (dtypes, multiples of 16,
    numbers), and launched by its handle.
    """
    first: Tensor = arguments[0]
    card = first.get_device()
    if card >= 0 and card != torch.cuda.current_device():
        with torch.cuda.device(card):
            return launch(kernel, grid, arguments, options)
    number = grid if isinstance(grid, int) else 0  # else it follows from the arguments
    key = (
        kernel,
        card,
        number,
        options.get("K"),
        options.get("GELU"),
        *[(each.dtype, each.data_ptr() % 16) if isinstance(each, Tensor) else each for each in arguments],
    )
    found = _compiled.get(key)
    if found is not None:
        run, constants = found
        run(*arguments, *constants)
        return None
    handle = kernel[grid if callable(grid) else (grid,)](*arguments, **options, enable_fp_fusion=False)
    if isinstance(handle, CompiledKernel):  # not in the interpreter
        _compiled[key] = by_handle(kernel, handle, grid, arguments, options)
    return None


def by_handle(
    kernel: Any, handle: Any, grid: Grid, arguments: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[Callable[..., None], tuple[object, ...]]:
    """What launches a compiled kernel, and the constants that it is given after its arguments."""
    known = dict(options)
    while not hasattr(kernel, "signature"):  # autotuning, then heuristics
        if hasattr(kernel, "best_config"):
            known |= kernel.best_config.all_kwargs()
        else:
            named = {**dict(zip(kernel.arg_names, arguments, strict=False)), **known}
            known |= {name: rule(named) for name, rule in kernel.values.items()}
        kernel = kernel.fn
    blocks = grid(known)[0] if callable(grid) else grid
    rest = list(kernel.signature.parameters.values())[len(arguments) :]
    return handle[blocks, 1, 1], tuple(known.get(each.name, each.default) for each in rest)


def row_outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.stride(-1) != 1 or x.shape[-1] > LARGEST_ROW:
        raise ValueError(f"rows must be contiguous, with at most {LARGEST_ROW} columns: {list(x.shape)}, {x.stride()}")
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)


@lru_cache(maxsize=64)
def row_options(width: int) -> dict[str, int]:
    """What a row kernel is compiled for: the width, the next power of two, and warps to match."""
    block = triton.next_power_of_2(width)
    warps = min(max(block // (32 * ELEMENTS_PER_THREAD), 1), 32)
    return {"K": width, "BLOCK": block, "num_warps": warps}


@triton.jit
def modulate_kernel(
    x: tl.tensor,
    multiplier: tl.tensor,
    addend: tl.tensor,
    values: tl.tensor,
    scale: tl.tensor,
    stride: tl.tensor,
    eps: tl.tensor,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < K
    numbers = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    centered = tl.where(inside, numbers - tl.sum(numbers, axis=0) / K, 0.0)
    normalized = centered * tl.rsqrt(tl.sum(centered * centered, axis=0) / K + eps)
    factors = tl.load(multiplier + columns, mask=inside, other=0.0)
    terms = tl.load(addend + columns, mask=inside, other=0.0)
    store_quantized(normalized * factors + terms, values, scale, row, columns, K)


@triton.jit
def quantize_kernel(
    x: tl.tensor,
    inverse: tl.tensor,
    values: tl.tensor,
    scale: tl.tensor,
    stride: tl.tensor,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < K
    numbers = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    if inverse is not None:
        numbers *= tl.load(inverse + columns, mask=inside, other=0.0)
    store_quantized(numbers, values, scale, row, columns, K)


@triton.jit
def store_quantized(
    numbers: tl.tensor, values: tl.tensor, scale: tl.tensor, row: tl.tensor, columns: tl.tensor, K: tl.constexpr
) -> None:
    """Store `numbers`, float32 [BLOCK] with zeros from column K on, as int8, and their scale."""
    # The bits of magnitudes are in the order of the magnitudes, with infinity and NaN above all numbers; a maximum of
    # floats would pass over NaN.
    bits = tl.max(numbers.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0)
    largest = tl.where(bits >= 0x7F800000, float("nan"), bits.to(tl.float32, bitcast=True))
    largest = tl.where(bits == 0, 127.0, largest)
    tl.store(scale + row, tl.div_rn(largest, 127.0))
    scaled = numbers * tl.div_rn(127.0, largest)
    scaled = tl.where(scaled == scaled, scaled, 0.0)
    scaled = tl.minimum(tl.maximum(scaled, -127.0), 127.0)
    # 1.5 * 2**23 leaves no bits for a fraction: the sum is rounded half to even, and its last byte is the integer. Were
    # it contracted with the product before, halves would be found in an unrounded product.
    rounded = (scaled + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
    tl.store(values + row * K + columns, rounded, mask=columns < K)


def tile(block_m: int, block_n: int, block_k: int, warps: int, stages: int) -> Any:
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
    return triton.Config(blocks, num_warps=warps, num_stages=stages)


TILES = [  # none takes more than the 99 KB of shared memory that every card since Ampere has
    tile(128, 256, 64, warps=8, stages=4),
    tile(256, 128, 64, warps=8, stages=4),
    tile(128, 128, 128, warps=8, stages=4),
    tile(128, 128, 64, warps=4, stages=4),
    tile(64, 128, 128, warps=4, stages=3),
    tile(64, 64, 128, warps=4, stages=3),
]


def time_kernel(call: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
    """Milliseconds of a launch. Triton's own benchmark takes 256 MB of the card, to clear its cache."""
    milliseconds = card_milliseconds(call, 2, 5)
    return [milliseconds[int(quantile * len(milliseconds))] for quantile in quantiles]


@triton.autotune(
    configs=TILES[-1:] if triton.knobs.runtime.interpret else TILES,  # the interpreter cannot be timed
    key=["N", "K", "bucket"],
    do_bench=time_kernel,
    cache_results=True,
)
@triton.heuristics({"EVEN_K": lambda arguments: arguments["K"] % arguments["BLOCK_K"] == 0})
@triton.jit(do_not_specialize=["M", "bucket"])
def matmul_kernel(
    values: tl.tensor,
    token_scale: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    bucket: tl.tensor,
    GELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    GROUP: tl.constexpr = 8,
) -> None:
    # Groups of 8 tiles share their weights, so that both operands come from the L2 cache.
    program, tiles_m, tiles_n = tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    first = program // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    start_m = (first + program % (GROUP * tiles_n) % height) * BLOCK_M
    start_n = program % (GROUP * tiles_n) // height * BLOCK_N

    # Starts of tiles are 64-bit; offsets inside of them are far below 2**31. Rows past the end are read as the last.
    rows, columns, depth = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    # Weights are transposed once loaded: that keeps Triton's prefetch pass away, which makes int8 loops spill.
    a = values + start_m.to(tl.int64) * K + tl.minimum(rows, M - 1 - start_m)[:, None] * K + depth[None, :]
    b = weight + start_n.to(tl.int64) * K + tl.minimum(columns, N - 1 - start_n)[:, None] * K + depth[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            sums = tl.dot(tl.load(a), tl.load(b).T, sums, out_dtype=tl.int32)
        else:
            left = tl.load(a, mask=depth[None, :] < K - start, other=0)
            right = tl.load(b, mask=depth[None, :] < K - start, other=0)
            sums = tl.dot(left, right.T, sums, out_dtype=tl.int32)
        a += BLOCK_K
        b += BLOCK_K

    inside_m, inside_n = rows < M - start_m, columns < N - start_n
    row_scale = tl.load(token_scale + start_m + rows, mask=inside_m, other=0.0)
    column_scale = tl.load(scale + start_n + columns, mask=inside_n, other=0.0)
    y = sums.to(tl.float32) * row_scale[:, None] * column_scale[None, :]
    if bias is not None:
        y += tl.load(bias + start_n + columns, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    if GELU:
        y *= tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))  # 2 * sqrt(2 / pi)
    target = out + start_m.to(tl.int64) * N + start_n + rows[:, None] * N + columns[None, :]
    tl.store(target, y.to(out.dtype.element_ty), mask=inside_m[:, None] & inside_n[None, :])
