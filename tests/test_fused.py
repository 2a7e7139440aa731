"""The fused W8A8 kernels: what they compute, in Triton's interpreter and on a card, and what they are compiled to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from engine.quantization import fused  # noqa: E402
from tests.launches import Driver, no_card  # noqa: E402

EPS = 1e-6
SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}  # of a block, at most
MATRIX_CARDS = [capability for capability in SHARED_BYTES if divmod(capability, 10) >= fused.CAPABILITY]


def normal(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def integers(*shape: int, device: str = "cpu", seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8).to(device)


# What the kernels compute, in torch


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every operation rounded for itself; torch's own `tensor / number` may multiply by a rounded reciprocal."""
    largest = x.abs().amax(dim=1, keepdim=True)
    largest[largest.isinf()] = torch.nan
    largest[largest == 0] = 127.0
    full = torch.full_like(largest, 127.0)
    values = (x * (full / largest)).round().clamp(-127, 127).nan_to_num(nan=0.0)
    return values.to(torch.int8), (largest / full)[:, 0]


def product(
    values: Tensor, token_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, gelu: bool
) -> Tensor:
    sums = values.double() @ weight.double().T  # integers, exact
    y = sums.float() * token_scale[:, None] * scale[None, :]
    if bias is not None:
        y += bias.float()
    return F.gelu(y, approximate="tanh") if gelu else y


# Comparisons, each run in the interpreter and on a card


def rows_with_all_kinds(m: int, k: int, dtype: torch.dtype, device: str, padding: int = 0) -> Tensor:
    """[m, k] of normal numbers, from the fifth row on also ties, tiny numbers, zeros, NaN and infinities."""
    x = normal(m, k + padding, dtype=dtype)[:, :k]
    if m > 10:
        x[5], x[5, :6] = 0, torch.tensor([127, 0.5, 1.5, 2.5, -0.5, -126.5])  # scale 1: halves are rounded to even
        x[6], x[6, 3] = 0, 2.0**-126  # 127 / 2**-126 is infinite
        x[7] = 0
        x[8, k - 1] = torch.nan
        x[9, 0] = torch.inf
        x[10, k // 2] = -torch.inf
    padded = torch.empty(m, k + padding, dtype=dtype, device=device)[:, :k]
    return padded.copy_(x)


def compare_quantize(m, k, dtype=torch.bfloat16, padding=0, balanced=False, device="cpu") -> None:
    x = rows_with_all_kinds(m, k, dtype, device, padding)
    inverse = normal(k, device=device, seed=1).abs() if balanced else None
    values, scale = fused.quantize(x, inverse)
    expected, expected_scale = quantized(x.float() if inverse is None else x.float() * inverse)
    assert torch.equal(scale.isnan(), expected_scale.isnan())
    assert torch.equal(scale.nan_to_num(), expected_scale.nan_to_num())
    assert torch.equal(values, expected)
    if m > 10:
        assert scale[7] == 1
        assert scale[8:11].isnan().all()
        assert not values[7:11].any()


def compare_modulate(m, k, dtype=torch.bfloat16, padding=0, device="cpu") -> None:
    x = rows_with_all_kinds(m, k, dtype, device, padding)
    multiplier, addend = 1 + 0.2 * normal(k, device=device, seed=1), 0.2 * normal(k, device=device, seed=2)
    values, scale = fused.modulate(x, multiplier, addend, EPS)
    expected, expected_scale = quantized(F.layer_norm(x.float(), (k,), eps=EPS) * multiplier + addend)
    torch.testing.assert_close(scale, expected_scale, rtol=1e-5, atol=0, equal_nan=True)
    difference = (values.int() - expected.int()).abs()
    assert difference.max() <= 1  # sums in another order
    assert difference.float().mean() < 1e-3


def compare_matmul(m, n, k, gelu=False, bias=torch.bfloat16, dtype=torch.bfloat16, device="cpu") -> None:
    values, weight = integers(m, k, device=device), integers(n, k, device=device, seed=1)
    token_scale, scale = (0.01 + normal(size, device=device, seed=2).abs() / 100 / k**0.5 for size in (m, n))
    token_scale[m // 2] = torch.nan  # a row that was not finite
    offset = normal(n, device=device, dtype=bias, seed=3) if bias else None
    y = fused.matmul(values, token_scale, weight, scale, offset, gelu, dtype)
    expected = product(values, token_scale, weight, scale, offset, gelu)
    assert y.dtype == dtype
    if device == "cuda" and not gelu:
        assert torch.equal(y.nan_to_num(), expected.to(dtype).nan_to_num())
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-5 if gelu else 0  # the interpreter truncates to bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=1e-5 if gelu else 0, equal_nan=True)


def compare_tile(index, m, n, k, device="cpu") -> None:
    """One of the tiles by itself. With scales of 1 the numbers are the sums, all below 2**24."""
    values, weight = integers(m, k, device=device), integers(n, k, device=device, seed=1)
    ones = torch.ones(max(m, n), device=device)
    y = torch.full((m, n), torch.nan, device=device)
    kernel, tile = fused.matmul_kernel.fn, fused.TILES[index]
    blocks = triton.cdiv(m, tile.kwargs["BLOCK_M"]) * triton.cdiv(n, tile.kwargs["BLOCK_N"])
    kernel[(blocks,)](values, ones, weight, ones, None, y, m, n, k, 0, GELU=False, **tile.all_kwargs())
    assert torch.equal(y, product(values, ones[:m], weight, ones[:n], None, gelu=False))


INTERPRETED = {
    "quantize one row": partial(compare_quantize, 1, 128),
    "quantize 640 columns": partial(compare_quantize, 37, 640),
    "quantize float32": partial(compare_quantize, 37, 640, torch.float32),
    "quantize float16, padded": partial(compare_quantize, 5, 96, torch.float16, padding=40),
    "quantize 3072 columns, padded": partial(compare_quantize, 11, 3072, padding=1024),
    "quantize 15360 columns": partial(compare_quantize, 11, 15360),
    "quantize balanced": partial(compare_quantize, 37, 640, balanced=True),
    "quantize balanced float32, padded": partial(compare_quantize, 37, 96, torch.float32, 7, balanced=True),
    "modulate one row": partial(compare_modulate, 1, 128),
    "modulate 640 columns": partial(compare_modulate, 37, 640),
    "modulate float32, padded": partial(compare_modulate, 37, 96, torch.float32, padding=32),
    "modulate 3072 columns": partial(compare_modulate, 11, 3072),
    "matmul one row": partial(compare_matmul, 1, 128, 128),
    "matmul 5 rows, GELU": partial(compare_matmul, 5, 48, 96, gelu=True),
    "matmul 37 rows": partial(compare_matmul, 37, 144, 640),
    "matmul float32": partial(compare_matmul, 37, 144, 640, bias=torch.float32, dtype=torch.float32),
    "matmul float32, GELU": partial(compare_matmul, 37, 144, 640, True, torch.float16, torch.float32),
    "matmul without bias": partial(compare_matmul, 37, 144, 3072, bias=None, dtype=torch.float32),
    "matmul in two groups": partial(compare_matmul, 640, 144, 128, bias=None, dtype=torch.float32),
    **{f"tile {index}": partial(compare_tile, index, 300, 272, 144) for index in range(len(fused.TILES))},
}


def report_interpreted() -> None:
    """Print what failed, by name: this runs in a process of its own, where Triton interprets its kernels."""
    failures = {}
    for name, compare in INTERPRETED.items():
        try:
            compare()
        except Exception:
            failures[name] = traceback.format_exc()
    print(json.dumps(failures))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "from tests.test_fused import report_interpreted; report_interpreted()"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreted_kernels_compute_what_torch_does(interpreted, name):
    assert not interpreted.get(name), interpreted[name]


def test_matmul_refuses_sides_that_are_no_multiples_of_16():
    with pytest.raises(ValueError, match="multiples of 16"):
        fused.matmul(integers(4, 40), torch.ones(4), integers(16, 40), torch.ones(16), None, False, torch.float32)


def test_rows_must_be_contiguous():
    with pytest.raises(ValueError, match="contiguous"):
        fused.quantize(normal(8, 4).T)


# How they are launched


@pytest.mark.parametrize("rows", [64, 65])
def test_a_kept_kernel_is_launched_as_triton_launched_it(rows: int) -> None:
    x, weight, scale = normal(1, rows, 64, dtype=torch.bfloat16), integers(48, 64), normal(48).abs()
    with no_card(Driver()) as driver:
        for _ in range(2):
            values, token_scale = fused.modulate(x, normal(64), normal(64), EPS)
            fused.quantize(x, None)
            fused.quantize(x, normal(64))
            for bias, gelu in ((None, False), (normal(48).bfloat16(), True)):
                fused.matmul(values, token_scale, weight, scale, bias, gelu, torch.bfloat16)
        assert driver.launches is not None
        assert len(driver.launches) == 10
        assert driver.loaded == 5
    for ours, theirs in zip(driver.launches[5:], driver.launches[:5], strict=True):
        assert (ours.grid, ours.function) == (theirs.grid, theirs.function)
        assert [described(each) for each in ours.arguments] == [described(each) for each in theirs.arguments]


def test_other_arguments_are_launched_by_a_kernel_of_their_own() -> None:
    x = normal(33, 64)
    with no_card(Driver()) as driver:
        for given in (x, x, x[:20], x.bfloat16(), x[:, :48], normal(33 * 64 + 1)[1:].view(33, 64)):
            fused.quantize(given)
        assert driver.launches is not None
        functions = [launch.function for launch in driver.launches]
        assert [launch.grid[0] for launch in driver.launches] == [33, 33, 20, 33, 33, 33]
    assert functions == [1, 1, 1, 2, 3, 4]  # another count of rows, type, width, alignment


def described(argument: object) -> object:
    return (argument.shape, argument.dtype) if isinstance(argument, Tensor) else argument


# What the kernels are compiled to: no card is needed for that


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(kernel, capability: int, types: dict[str, str], constants: dict[str, object], **options):
    """The kernel for a card of that capability; pointers and integers are multiples of 16, as they are in FLUX.1."""
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = [name for name, kind in types.items() if kind.startswith("*") or name in ("N", "K", "stride")]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    options["enable_fp_fusion"] = False
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def compiled_rows(name: str, capability: int, k: int):
    constants: dict[str, object] = dict(fused.row_options(k))
    warps = constants.pop("num_warps")
    types = {"x": "*bf16", "values": "*i8", "scale": "*fp32", "stride": "i32"}
    if name == "modulate":
        types |= {"multiplier": "*fp32", "addend": "*fp32", "eps": "fp32"}
        return compiled(fused.modulate_kernel, capability, types, constants, num_warps=warps)
    if name == "balanced":
        types["inverse"] = "*fp32"
    else:
        constants["inverse"] = None
    return compiled(fused.quantize_kernel, capability, types, constants, num_warps=warps)


def compiled_matmul(tile, capability: int, gelu: bool):
    pointers = {"*i8": ("values", "weight"), "*fp32": ("token_scale", "scale"), "*bf16": ("bias", "out")}
    types = {name: kind for kind, names in pointers.items() for name in names}
    types |= dict.fromkeys(("M", "N", "K", "bucket"), "i32")
    constants = {"GELU": gelu, "EVEN_K": True, "GROUP": 8, **tile.kwargs}
    kernel = fused.matmul_kernel.fn.fn
    return compiled(kernel, capability, types, constants, num_warps=tile.num_warps, num_stages=tile.num_stages)


def spilled_bytes(kernel) -> int:
    """Bytes of a thread's registers that had to go to memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(int(number) for number in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))


@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize(("name", "k"), [("modulate", 3072), ("quantize", 12288), ("balanced", 15360)])
def test_row_kernels_move_16_bytes_at_once(name, k, capability):
    kernel = compiled_rows(name, capability, k)
    assert kernel.metadata.shared <= SHARED_BYTES[capability]
    assert spilled_bytes(kernel) == 0
    moves = re.findall(r"(?:ld|st)\.global\S*", kernel.asm["ptx"])
    assert {move for move in moves if move.endswith(".v4.b32")} == {"ld.global.v4.b32", "st.global.v4.b32"}
    assert len([move for move in moves if not move.endswith(".v4.b32")]) == 1  # the scale
    assert "fma" not in kernel.asm["ptx"]


@pytest.mark.parametrize(
    ("capability", "gelu", "index"),
    [
        *((86, True, index) for index in range(len(fused.TILES))),
        *((capability, False, 0) for capability in MATRIX_CARDS),
    ],
)
def test_matmul_is_compiled_to_int8_tensor_cores_without_spills(capability, gelu, index):
    kernel = compiled_matmul(fused.TILES[index], capability, gelu)
    instruction = r"wgmma\.mma_async\S*\.s32\.s8\.s8" if capability == 90 else r"mma\.sync\S*\.s32\.s8\.s8\.s32"
    assert re.search(instruction, kernel.asm["ptx"])
    assert re.search(r"cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 0x10", kernel.asm["ptx"])  # 16 bytes
    assert kernel.metadata.shared <= SHARED_BYTES[capability]
    assert spilled_bytes(kernel) == 0


# On a card


@pytest.mark.cuda
@pytest.mark.parametrize("k", [3072, 12288, 15360])
@pytest.mark.parametrize("balanced", [False, True])
def test_rows_are_quantized_on_the_card_as_in_torch(k, balanced):
    compare_quantize(4608, k, padding=6144, balanced=balanced, device="cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("m", [1, 333, 4608])
def test_rows_are_modulated_on_the_card_as_in_torch(m):
    compare_modulate(m, 3072, device="cuda")


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("m", "n", "k", "gelu"),
    [
        (4608, 3072, 3072, False),
        (4608, 12288, 3072, True),
        (4608, 3072, 15360, False),
        (333, 3072, 12288, False),
        (1, 3072, 3072, False),
    ],
)
def test_products_on_the_card_are_those_of_torch(m, n, k, gelu):
    compare_matmul(m, n, k, gelu=gelu, device="cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("index", range(len(fused.TILES)))
@pytest.mark.parametrize("k", [640, 528])
def test_every_tile_gives_the_exact_sums_on_the_card(index, k):
    compare_tile(index, 1111, 3072, k, device="cuda")
