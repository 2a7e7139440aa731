"""FP8 weights: how they are rounded, what a layer computes with them, which layers have them."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.families.flux1 import FLUX1
from engine.library.catalog import DEMO_FOLDER
from engine.quantization import fp8
from engine.quantization.fp8 import (
    FP8,
    Fp8Linear,
    dequantize,
    probe_kernel,
    quantize_rows,
    replace_linears,
    scaled_mm_error,
)
from tests.tiny import tiny_pipeline

DEMO_FILES = {
    "transformer": DEMO_FOLDER / "transformer" / "diffusion_pytorch_model.safetensors",
    "text_encoder_2": DEMO_FOLDER / "text_encoder_2" / "model.safetensors",
}


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative_error(approximate: Tensor, exact: Tensor) -> float:
    return float((approximate.double() - exact.double()).norm() / exact.double().norm())


def install(layer: Fp8Linear, linear: nn.Linear) -> None:
    """What the memory manager does: tensors in the place of the empty parameters."""
    quantized, scale = quantize_rows(linear.weight.detach())
    layer._parameters["quantized"] = nn.Parameter(quantized, requires_grad=False)
    layer._parameters["scale"] = nn.Parameter(scale, requires_grad=False)
    if linear.bias is not None:
        layer._parameters["bias"] = nn.Parameter(linear.bias.detach().to(layer.dtype), requires_grad=False)


def quantized_copy(module: nn.Module, component: str, dtype: torch.dtype) -> nn.Module:
    """The module with FP8 linears that hold its weights."""
    result = copy.deepcopy(module)
    replace_linears(result, partial(FLUX1.eight_bit, component), dtype)
    for name, layer in result.named_modules():
        if isinstance(layer, Fp8Linear):
            linear = module.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            install(layer, linear)
    return result.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_widening_gives_every_number_that_torch_gives(dtype, kind):
    copies = fp8.WIDENED_ELEMENTS // 256 + 3
    values = torch.arange(256, dtype=torch.uint8).view(kind).repeat(copies)
    expected = values.to(dtype)
    got = fp8.widen(values.view(copies, 256), torch.empty(copies, 256, dtype=dtype)).view(-1)
    finite = expected.isfinite()
    assert torch.equal(got[finite], expected[finite])
    assert int(finite.sum()) == copies * (254 if kind == torch.float8_e4m3fn else 248)


class TestRounding:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_normal_rows_lose_less_than_three_percent(self, dtype):
        weight = (normal(64, 3072, dtype=torch.float32) * 0.02 * normal(64, 1, seed=1).exp()).to(dtype)
        quantized, scale = quantize_rows(weight)
        assert quantized.dtype == FP8
        assert scale.dtype == torch.float32
        assert relative_error(quantized.float() * scale[:, None], weight) < 0.028

    def test_scales_are_the_smallest_powers_of_two_that_keep_the_range(self):
        largest = torch.cat([torch.tensor([1.0, 448.0, 449.0, 464.0, 1e-30, 1e30]), normal(1000).float().exp()])
        quantized, scale = quantize_rows(largest[:, None] * torch.tensor([[1.0, -0.5, 0.0]]))
        assert torch.equal(scale, torch.exp2(scale.log2().round()))
        assert bool((largest / scale <= 448).all())
        assert bool((largest / scale > 224).all())
        assert not bool(quantized.float().isnan().any())

    def test_dequantizing_to_bfloat16_rounds_nothing(self):
        quantized, scale = quantize_rows(normal(100, 100) * normal(100, 1, seed=1).exp())
        assert torch.equal(
            dequantize(quantized, scale, torch.bfloat16).double(), quantized.double() * scale.double()[:, None]
        )

    def test_weights_that_were_8_bit_floats_come_back_exactly(self):
        weight = normal(50, 50, dtype=FP8)
        for stored_as in (FP8, torch.bfloat16, torch.float32):
            again = dequantize(*quantize_rows(weight.to(stored_as)), torch.bfloat16)
            assert torch.equal(again.float(), weight.float())

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_every_dtype_gives_the_same_bits(self, dtype):
        weight = normal(20, 30, dtype=FP8).to(dtype) / 512
        quantized, scale = quantize_rows(weight)
        expected, expected_scale = quantize_rows(weight.double())
        assert torch.equal(quantized.view(torch.uint8), expected.view(torch.uint8))
        assert torch.equal(scale, expected_scale)

    def test_rows_of_zeros_stay_zeros_with_scale_one(self):
        weight = normal(3, 8)
        weight[1] = 0
        quantized, scale = quantize_rows(weight)
        assert scale[1] == 1
        assert not quantized[1].float().any()

    @pytest.mark.parametrize("size", [2.0**-149, 1e-38, 2.0**-118, 2.0**119])
    def test_tiny_and_huge_rows_give_finite_numbers(self, size):
        weight = torch.tensor([[size, -size / 2, 0.0]])
        result = dequantize(*quantize_rows(weight), torch.bfloat16).float()
        assert torch.allclose(result, weight, rtol=0.07, atol=2**-119)

    def test_a_layer_without_inputs_is_quantized(self):
        quantized, scale = quantize_rows(torch.empty(3, 0))
        assert quantized.shape == (3, 0)
        assert torch.equal(scale, torch.ones(3))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**121])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    def test_weights_that_are_not_finite_are_refused(self, bad, dtype):
        weight = normal(4, 4, dtype=dtype)
        weight[2, 3] = bad
        with pytest.raises(ValueError, match="the weight holds numbers that are not finite"):
            quantize_rows(weight)

    def test_fp8_weights_that_are_not_numbers_are_refused(self):
        with pytest.raises(ValueError, match="not finite"):
            quantize_rows(torch.tensor([[1.0, float("nan")]]).to(FP8))

    def test_powers_of_two_cost_little_against_free_scales(self):
        """The reason for them; with free scales, dequantizing to bfloat16 would round again."""

        def free(weight: Tensor) -> Tensor:
            scale = weight.float().abs().amax(dim=1, keepdim=True) / 448
            return ((weight.float() / scale).to(FP8).float() * scale).bfloat16()

        wide = normal(512, 3072)
        ratio = relative_error(dequantize(*quantize_rows(wide), torch.bfloat16), wide) / relative_error(
            free(wide), wide
        )
        assert ratio < 1.01
        for component, file in DEMO_FILES.items():
            demo = [tensor for name, tensor in load_file(file).items() if FLUX1.eight_bit(component, name)]
            rounded = [dequantize(*quantize_rows(weight), torch.bfloat16).flatten() for weight in demo]
            exact = torch.cat([weight.flatten() for weight in demo])
            freely = torch.cat([free(weight).flatten() for weight in demo])
            ratio = relative_error(torch.cat(rounded), exact) / relative_error(freely, exact)
            print(f"{component}: {ratio:.4f}")
            assert ratio < 1.04


class TestLayer:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
    def test_a_layer_computes_what_its_dequantized_weight_does(self, dtype, bias, leading):
        linear = nn.Linear(48, 20, bias=bias, dtype=dtype)
        layer = Fp8Linear(48, 20, bias, dtype)
        install(layer, linear)
        x = normal(*leading, 48, dtype=dtype)
        weight = dequantize(*quantize_rows(linear.weight.detach()), dtype)
        assert torch.equal(layer(x), F.linear(x, weight, layer.bias))
        assert relative_error(layer(x).detach(), linear(x).detach()) < 0.06
        assert layer(x).dtype == dtype

    def test_an_empty_layer_holds_no_memory_and_runs_on_the_meta_device(self):
        layer = Fp8Linear(3072, 12288)
        assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
        assert not any(parameter.requires_grad for parameter in layer.parameters())
        assert layer(torch.empty(1, 7, 3072, dtype=torch.bfloat16, device="meta")).shape == (1, 7, 12288)
        layer.kernel = "scaled_mm"
        assert layer(torch.empty(1, 7, 3072, dtype=torch.bfloat16, device="meta")).shape == (1, 7, 12288)

    def test_the_parameters_are_fp8_scales_and_bias(self):
        layer = Fp8Linear(32, 16, bias=True, dtype=torch.bfloat16)
        shapes = {name: (tuple(p.shape), p.dtype) for name, p in layer.named_parameters()}
        assert shapes == {
            "quantized": ((16, 32), FP8),
            "scale": ((16,), torch.float32),
            "bias": ((16,), torch.bfloat16),
        }
        assert Fp8Linear(32, 16, bias=False).bias is None

    def test_its_weight_tells_the_compute_dtype_and_nothing_else(self):
        layer = Fp8Linear(32, 16, dtype=torch.float32)
        assert layer.weight.dtype == torch.float32
        assert layer.weight.numel() == 0
        assert layer.weight.device.type == "meta"
        install(layer, nn.Linear(32, 16))
        assert layer.weight.device.type == "cpu"


class TestChoice:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("transformer_blocks.3.attn.to_q.weight", True),
            ("transformer_blocks.3.attn.to_out.0.weight", True),
            ("transformer_blocks.3.attn.add_k_proj.weight", True),
            ("transformer_blocks.3.ff_context.net.0.proj.weight", True),
            ("transformer_blocks.3.norm1.linear.weight", True),
            ("transformer_blocks.3.norm1_context.linear.weight", True),
            ("single_transformer_blocks.12.norm.linear.weight", True),
            ("single_transformer_blocks.12.proj_out.weight", True),
            ("transformer_blocks.3.attn.norm_q.weight", False),
            ("transformer_blocks.3.attn.norm_added_k.weight", False),
            ("transformer_blocks.3.attn.to_q.bias", False),
            ("x_embedder.weight", False),
            ("context_embedder.weight", False),
            ("time_text_embed.timestep_embedder.linear_1.weight", False),
            ("norm_out.linear.weight", False),
            ("proj_out.weight", False),
        ],
    )
    def test_the_blocks_linears_of_the_transformer_are_fp8(self, name, expected):
        assert FLUX1.eight_bit("transformer", name) is expected

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("encoder.block.0.layer.0.SelfAttention.q.weight", True),
            ("encoder.block.0.layer.1.DenseReluDense.wo.weight", True),
            ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", False),
            ("encoder.block.0.layer.0.layer_norm.weight", False),
            ("encoder.final_layer_norm.weight", False),
            ("shared.weight", False),
            ("encoder.embed_tokens.weight", False),
        ],
    )
    def test_the_blocks_linears_of_t5_are_fp8(self, name, expected):
        assert FLUX1.eight_bit("text_encoder_2", name) is expected

    def test_nothing_of_clip_and_the_vae_is_eight_bit(self):
        pipeline = tiny_pipeline(guided=True)
        for component in ("text_encoder", "vae"):
            module = getattr(pipeline, component)
            assert not any(FLUX1.eight_bit(component, name) for name, _ in module.named_parameters())
            replace_linears(module, partial(FLUX1.eight_bit, component), torch.bfloat16)
            assert not any(isinstance(layer, Fp8Linear) for layer in module.modules())

    @pytest.mark.parametrize("component", ["transformer", "text_encoder_2"])
    def test_names_agree_with_the_modules(self, component):
        module = getattr(tiny_pipeline(guided=True), component)
        linears = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
        chosen = {name for name, _ in module.named_parameters() if FLUX1.eight_bit(component, name)}
        assert chosen
        assert chosen <= linears
        replace_linears(module, partial(FLUX1.eight_bit, component), torch.float32)
        replaced = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, Fp8Linear)}
        assert replaced == chosen


class TestModels:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_t5_runs_with_fp8_layers_in_its_compute_dtype(self, dtype):
        t5 = tiny_pipeline(guided=True).text_encoder_2.to(dtype)
        tokens = torch.arange(2, 12)[None]
        with torch.no_grad():
            exact = t5(tokens)[0]
            rounded = quantized_copy(t5, "text_encoder_2", dtype)(tokens)[0]
        assert rounded.dtype == dtype
        assert 0 < relative_error(rounded, exact) < 0.1

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_the_transformer_runs_with_fp8_layers(self, dtype):
        transformer = tiny_pipeline(guided=True).transformer.to(dtype)
        inputs = {
            "hidden_states": normal(1, 16, 16, dtype=dtype),
            "encoder_hidden_states": normal(1, 5, 48, dtype=dtype, seed=1),
            "pooled_projections": normal(1, 32, dtype=dtype, seed=2),
            "timestep": torch.tensor([0.5], dtype=dtype),
            "guidance": torch.tensor([3.5]),
            "img_ids": torch.zeros(16, 3),
            "txt_ids": torch.zeros(5, 3),
            "return_dict": False,
        }
        with torch.no_grad():
            exact = transformer(**inputs)[0]
            rounded = quantized_copy(transformer, "transformer", dtype)(**inputs)[0]
        assert rounded.dtype == dtype
        assert 0 < relative_error(rounded, exact) < 0.1


class TestScaledMm:
    def test_fp8_arithmetic_costs_what_rounding_the_activations_costs(self):
        layer, x = fp8._probe_layer(256, 320, 256, torch.device("cpu"))
        assert 0 < scaled_mm_error(layer, x) < fp8.MAX_SCALED_MM_ERROR
        assert layer.kernel == "dequantize"

    def test_scales_of_the_wrong_rows_are_noticed(self, monkeypatch):
        layer, x = fp8._probe_layer(256, 320, 256, torch.device("cpu"))
        right = fp8.scaled_mm

        def wrong_in_one_row(x: Tensor, quantized: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
            scale = scale.clone()
            scale[7] *= 2
            return right(x, quantized, scale, bias)

        monkeypatch.setattr(fp8, "scaled_mm", wrong_in_one_row)
        assert scaled_mm_error(layer, x) > fp8.MAX_SCALED_MM_ERROR

    def test_results_that_are_not_numbers_are_noticed(self, monkeypatch):
        layer, x = fp8._probe_layer(32, 32, 16, torch.device("cpu"))
        monkeypatch.setattr(fp8, "scaled_mm", lambda x, *weights: x * float("nan"))
        assert scaled_mm_error(layer, x) == float("inf")

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
    def test_shapes_and_tokens_of_zeros_are_kept(self, bias, leading):
        linear = nn.Linear(64, 32, bias=bias, dtype=torch.bfloat16)
        layer = Fp8Linear(64, 32, bias)
        install(layer, linear)
        layer.kernel = "scaled_mm"
        x = normal(*leading, 64)
        with torch.no_grad():
            assert layer(x).shape == (*leading, 32)
            assert layer(x).dtype == torch.bfloat16
            expected = linear.bias.detach() if bias else torch.zeros(32)
            assert torch.equal(layer(torch.zeros_like(x)).float(), expected.float().expand(*leading, 32))

    def test_what_fp8_arithmetic_cannot_do_is_dequantized(self, monkeypatch):
        monkeypatch.setattr(fp8, "scaled_mm", None)
        narrow = Fp8Linear(40, 16)
        install(narrow, nn.Linear(40, 16))
        wide = Fp8Linear(32, 16, dtype=torch.float32)
        install(wide, nn.Linear(32, 16))
        narrow.kernel = wide.kernel = "scaled_mm"
        assert narrow(normal(2, 40)).shape == (2, 16)
        assert wide(normal(2, 32, dtype=torch.float32)).shape == (2, 16)

    def test_without_a_card_weights_are_dequantized(self, monkeypatch):
        assert probe_kernel(torch.device("cpu"), torch.bfloat16) == "dequantize"
        assert probe_kernel(torch.device("cuda", 9), torch.float32) == "dequantize"
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
        assert probe_kernel(torch.device("cuda"), torch.bfloat16) == "dequantize"

    def test_a_card_that_fails_the_trial_dequantizes(self, monkeypatch):
        def fail(*args: object) -> None:
            raise RuntimeError("no kernel image is available for execution on the device")

        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
        monkeypatch.setattr(fp8, "_probe_layer", fail)
        assert probe_kernel(torch.device("cuda"), torch.bfloat16) == "dequantize"

    @pytest.fixture
    def trial(self, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
        """A pretended card with FP8 arithmetic; the CPU computes."""
        layer, x = fp8._probe_layer(256, 256, 256, torch.device("cpu"))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
        monkeypatch.setattr(torch.cuda, "device", nullcontext)
        monkeypatch.setattr(fp8, "_probe_layer", lambda *args: (layer, x))
        return monkeypatch

    @pytest.mark.parametrize(
        ("milliseconds", "kernel"), [((2.0, 1.0), "scaled_mm"), ((1.0, 2.0), "dequantize"), ((1.0, 1.0), "dequantize")]
    )
    def test_the_faster_kernel_is_taken(self, trial, milliseconds, kernel):
        times = iter(milliseconds)
        trial.setattr(fp8, "card_milliseconds", lambda work, *_: (work(), [next(times)])[1])
        assert probe_kernel(torch.device("cuda:0"), torch.bfloat16) == kernel

    def test_a_wrong_kernel_is_never_timed(self, trial):
        timed: list[object] = []
        trial.setattr(fp8, "scaled_mm", lambda x, *weights: torch.zeros(*x.shape[:-1], 256))
        trial.setattr(fp8, "card_milliseconds", lambda *args: timed.append(args))
        assert probe_kernel(torch.device("cuda:0"), torch.bfloat16) == "dequantize"
        assert timed == []

    @pytest.mark.cuda
    def test_the_kernel_of_this_card_is_right(self):
        device = torch.device("cuda")
        kernel = probe_kernel(device, torch.bfloat16)
        assert kernel in ("dequantize", "scaled_mm")
        if kernel == "scaled_mm":
            with torch.no_grad():
                layer, x = fp8._probe_layer(4096, 10240, 512, device)
                assert scaled_mm_error(layer, x) < fp8.MAX_SCALED_MM_ERROR
