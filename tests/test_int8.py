"""Layers, kernels and blocks in int8: what they round, what they sum, and which kernel a machine runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine import Engine, Request, RequestError
from engine.cli.commands import main
from engine.cli.repeat import to_repeat
from engine.events import Event, Failed, ImageSaved, Noticed, Planned
from engine.families.flux1 import FLUX1, blocks
from engine.families.flux1.cuts import cut, inputs
from engine.images.metadata import read_record
from engine.images.save import plan_output
from engine.jobs.runtime import Repeat
from engine.memory.loan import set_kernel
from engine.quantization import fp8, int8
from engine.quantization.int8 import KERNELS, Choice, Int8Linear, probe_kernel, quantize_rows
from engine.quantization.kernels import Kernel, Tokens
from engine.quantization.salience import Folds
from engine.sampling.modulation import detach
from tests.tiny import save_tiny, tiny_pipeline

CPU = torch.device("cpu")
WHOLE = ("int_mm", "float32")  # kernels whose products are of whole numbers
SMALL = Request("a large red circle above a small blue square", seed=3, steps=2, width=64, height=64, precision="int8")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layer_of(weight: Tensor, bias: Tensor | None = None, inverse: Tensor | None = None) -> Int8Linear:
    layer = Int8Linear(weight.shape[1], len(weight), bias is not None, torch.bfloat16, balanced=inverse is not None)
    quantized, scale = quantize_rows(weight)
    for name, value in {"quantized": quantized, "scale": scale, "bias": bias, "inverse": inverse}.items():
        layer._parameters[name] = nn.Parameter(value, requires_grad=False) if value is not None else None
    return layer


def rounded(x: Tensor) -> Tensor:
    """Every token to 255 steps, in float64."""
    largest = x.double().abs().amax(dim=-1, keepdim=True)
    return (x.double() * 127 / largest).round() * largest / 127


class TestRounding:
    def test_a_weight_is_off_by_half_a_step_at_most(self):
        weight = normal(64, 200) * normal(64, 1, seed=1).exp()
        quantized, scale = quantize_rows(weight)
        assert quantized.dtype == torch.int8
        assert scale.dtype == torch.float32
        error = (quantized.float() * scale[:, None] - weight).abs().amax(dim=1)
        assert bool((error <= scale * 0.5001).all())
        assert torch.equal(quantized.abs().amax(dim=1), torch.full((64,), 127, dtype=torch.int8))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_every_float_dtype_is_taken(self, dtype):
        weight = normal(8, 16).to(dtype)
        for mine, expected in zip(quantize_rows(weight), quantize_rows(weight.float()), strict=True):
            assert torch.equal(mine, expected)

    def test_zeros_stay_zeros_and_the_weight_stays_as_it_was(self):
        weight = normal(4, 8)
        weight[2] = 0
        weight[:, 5] = 0  # a channel that nothing uses
        before = weight.clone()
        quantized, scale = quantize_rows(weight)
        assert torch.equal(weight, before)
        assert not quantized[2].any()
        assert not quantized[:, 5].any()
        assert scale[2] == 1
        assert quantize_rows(torch.zeros(0, 8))[0].shape == (0, 8)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38])
    def test_what_is_not_finite_is_refused(self, value):
        weight = normal(4, 8)
        weight[1, 3] = value
        with pytest.raises(ValueError, match="not finite"):
            quantize_rows(weight)


class TestKernels:
    @pytest.mark.parametrize("kernel", WHOLE)
    @pytest.mark.parametrize(("tokens", "width", "out"), [(1, 16, 8), (7, 96, 40), (40, 640, 48)])
    @pytest.mark.parametrize("gelu", [False, True])
    def test_products_are_those_of_rounded_numbers(self, kernel, tokens, width, out, gelu):
        bias, inverse = normal(out, seed=2).bfloat16(), normal(width, seed=3).exp()
        layer = layer_of(normal(out, width), bias, inverse)
        x = normal(2, tokens, width, seed=4, dtype=torch.bfloat16)
        run = KERNELS[kernel]
        got = run.linear(run.quantize(x, layer.inverse), layer, gelu=gelu)
        weight = layer.quantized.double() * layer.scale.double()[:, None]
        expected = rounded(x.float() * inverse) @ weight.t() + bias.double()
        expected = F.gelu(expected, approximate="tanh") if gelu else expected
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=2e-3)

    def test_sums_are_the_same_to_the_last_bit(self):
        layer, x = layer_of(normal(96, 640)), normal(1, 50, 640, seed=1)
        first, second = (run.linear(run.quantize(x), layer) for run in (KERNELS[name] for name in WHOLE))
        assert torch.equal(first, second)

    @pytest.mark.parametrize("kernel", WHOLE)
    def test_pieces_change_no_bit(self, kernel, monkeypatch):
        layer, x = layer_of(normal(96, 64), normal(96).bfloat16()), normal(1, 50, 64, seed=1)
        run = KERNELS[kernel]
        factors = normal(1, 64, seed=2), normal(1, 64, seed=3)
        whole = run.linear(run.modulate(x, *factors), layer)
        monkeypatch.setattr(type(run), "rows", 7)
        monkeypatch.setattr(type(run), "columns", 11)
        assert torch.equal(run.linear(run.modulate(x, *factors), layer), whole)

    @pytest.mark.parametrize("kernel", [*WHOLE, "dequantize"])
    def test_modulation_is_a_layer_norm_times_and_plus(self, kernel):
        x = normal(2, 30, 64, dtype=torch.bfloat16)
        factor, addend = normal(2, 64, seed=1), normal(2, 64, seed=2)
        tokens = KERNELS[kernel].modulate(x, factor, addend)
        expected = F.layer_norm(x.double(), (64,), eps=1e-6) * factor[:, None] + addend[:, None]
        if tokens.scale is None:
            torch.testing.assert_close(tokens.values.double(), expected, rtol=2**-8, atol=1e-3)
        else:
            error = (tokens.values.double() * tokens.scale.double()[..., None] - expected).abs()
            assert bool((error <= tokens.scale[..., None] * 0.501).all())

    @pytest.mark.parametrize("kernel", [*WHOLE, "dequantize"])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_token_that_is_not_finite_stays_so_and_spoils_no_other(self, kernel, value):
        layer, x = layer_of(normal(8, 32)), normal(1, 5, 32)
        run = KERNELS[kernel]
        good = run.linear(run.quantize(x.bfloat16()), layer)
        x[0, 3, 7] = value
        tokens = run.quantize(x.bfloat16())
        assert not tokens.total().isfinite()
        got = run.linear(tokens, layer)
        assert not got[0, 3].isfinite().any()
        rows = [0, 1, 2, 4]
        assert torch.equal(got[0, rows], good[0, rows])

    def test_parts_of_a_sequence(self):
        run = KERNELS["float32"]
        tokens = run.quantize(normal(1, 10, 16))
        first, last = tokens.split([4, 6])
        assert torch.equal(torch.cat([first.values, last.values], 1), tokens.values)
        scales = [part.scale for part in (first, last, tokens) if part.scale is not None]
        assert torch.equal(torch.cat(scales[:2], 1), scales[2])
        plain = Tokens(normal(1, 10, 16), None).split([4, 6])
        assert [part.values.shape[1] for part in plain] == [4, 6]
        assert all(part.scale is None for part in plain)


class TestChoice:
    def test_the_fastest_kernel_that_is_right(self, monkeypatch):
        seconds = {"int_mm": 3.0, "float32": 1.0, "dequantize": 2.0}
        pretend(monkeypatch, seconds, plain=2.0)
        assert probe_kernel(CPU, 64) == Choice("float32", 0.5)
        seconds["float32"] = 2.1
        assert probe_kernel(CPU, 64) == Choice("float32", 1.05)  # weights dequantized would have to be much faster
        seconds["float32"] = 9.0
        assert probe_kernel(CPU, 64) == Choice("dequantize", 1.0)

    def test_speed_does_not_excuse_wrong_numbers(self, monkeypatch):
        class Wrong(int8.FloatMatmul):
            def product(self, rows: Tensor, weight: Tensor) -> Tensor:
                return super().product(rows, weight).roll(1, dims=0)  # right numbers in the wrong rows

        monkeypatch.setitem(KERNELS, "float32", Wrong())
        pretend(monkeypatch, {"int_mm": 1.5, "float32": 0.1, "dequantize": 2.0}, plain=2.0)
        choice = probe_kernel(CPU, 64)
        assert choice.kernel == "int_mm"
        assert choice.refused == ("integer products on the float32 units: gives wrong numbers",)

    def test_a_kernel_that_does_not_run_is_told_with_its_reason(self, monkeypatch):
        class Missing(int8.IntMatmul):
            def product(self, rows: Tensor, weight: Tensor) -> Tensor:
                raise RuntimeError("no kernel image\nand a long trace")

        for name in WHOLE:
            monkeypatch.setitem(KERNELS, name, Missing())
        choice = probe_kernel(CPU, 64)
        assert choice.kernel == "dequantize"
        assert choice.is_bad_news
        assert "no kernel image" in choice.sentence()
        assert "long trace" not in choice.sentence()

    def test_slower_than_16_bits_is_said(self):
        assert "--precision bf16 is faster here" in Choice("float32", 1.4).sentence()
        assert Choice("float32", 1.4).is_bad_news
        assert "faster" not in Choice("float32", 0.4).sentence()
        assert not Choice("float32", 0.4).is_bad_news

    def test_a_real_probe_finds_a_kernel(self):
        choice = probe_kernel(CPU, 64)
        assert choice.kernel in int8.candidates(CPU)
        assert choice.ratio is not None
        assert choice.ratio > 0
        assert choice.refused == ()


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], plain: float) -> None:
    """Times without a clock: first of 16 bits, then of each kernel that is right."""
    calls: list[str] = []

    def timed(work: Any, device: torch.device, hopeless: float) -> float:
        kernel = (work.__defaults__ or (None,))[0]
        name = next((name for name, known in KERNELS.items() if known is kernel), "")
        calls.append(name)
        return seconds[name] if name else plain

    monkeypatch.setattr(int8, "_seconds", timed)


def transformer_inputs(config: Any, dtype: torch.dtype) -> dict[str, Any]:
    positions = torch.zeros(16, 3, dtype=dtype)
    positions[:, 1], positions[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    given = {
        "hidden_states": normal(1, 16, config.in_channels),
        "encoder_hidden_states": normal(1, 5, config.joint_attention_dim, seed=1),
        "pooled_projections": normal(1, config.pooled_projection_dim, seed=2),
        "timestep": torch.tensor([0.7]),
        "guidance": torch.tensor([2.5]),
        "img_ids": positions,
        "txt_ids": torch.zeros(5, 3),
    }
    return {name: value.to(dtype) for name, value in given.items()} | {"return_dict": False}


def in_blocks(transformer: Any, factors: dict[str, Tensor], given: dict[str, Any]) -> Any:
    """A copy over our blocks with balanced weights, nothing rounded, standing at the step of `given`."""
    folds = Folds(inputs(transformer.config), factors)
    ours = copy.deepcopy(transformer)
    for name, layer in ours.named_modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data, layer.bias.data = folds.weight(name, layer.weight), folds.bias(name, layer.bias)
    for name, inverse in folds.inverse.items():
        ours.get_submodule(name).inverse = inverse
    cuts = cut("transformer", ours)
    blocks.install(ours, KERNELS, folded=True)
    reader = detach(ours, cuts, given["hidden_states"].dtype)
    embedding = reader.embedder[0](given["timestep"] * 1000, given["guidance"] * 1000, given["pooled_projections"])
    row = torch.cat([reader.linears[name][0](F.silu(embedding)) for name in reader.places], dim=1)
    reader.set_row(folds.tables(row, reader.places))
    return ours


def in_plain_blocks(transformer: Any, kernels: Mapping[str, Kernel], given: dict[str, Any]) -> Any:
    """A copy over our blocks as other precisions than int8 have them, standing at the step of `given`."""
    ours = copy.deepcopy(transformer)
    cuts = cut("transformer", ours)
    blocks.install(ours, kernels, folded=False)
    dtype = given["hidden_states"].dtype
    reader = detach(ours, cuts, dtype)
    embedding = reader.embedder[0](given["timestep"] * 1000, given["guidance"] * 1000, given["pooled_projections"])
    reader.set_row(torch.cat([reader.linears[name][0](F.silu(embedding)) for name in reader.places], dim=1))
    return ours


class TestBlocks:
    @torch.no_grad()
    @pytest.mark.parametrize("spread", [None, 0.5, 2.0])
    def test_balanced_or_not_they_compute_what_diffusers_does(self, spread):
        """In float64, where nothing is rounded; the folds alone must be exact."""
        transformer = tiny_pipeline(guided=True).transformer.double()
        given = transformer_inputs(transformer.config, torch.float64)
        expected = transformer(**given)[0]
        factors = {
            each.name: (normal(each.width, seed=number).double() * (spread or 0)).exp().clamp(1e-2, 1e2)
            for number, each in enumerate(inputs(transformer.config))
        }
        ours = in_blocks(transformer, factors if spread else {}, given)
        got = ours(**given)[0]
        assert float((got - expected).norm() / expected.norm()) <= 1e-6  # diffusers rotates in float32, we do not
        plain = in_blocks(transformer, {}, given)(**given)[0]
        assert float((got - plain).norm() / plain.norm()) <= 1e-12
        assert ours.watch.first_bad() is None

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("batch", [1, 2])
    def test_without_8_bits_they_give_the_bits_of_diffusers(self, dtype, batch):
        transformer = tiny_pipeline(guided=True).transformer.to(dtype)
        given = transformer_inputs(transformer.config, dtype)
        for name in ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance"):
            value = given[name]
            given[name] = torch.cat([value, value.flip(-1) * 0.7])[:batch]
        expected = transformer(**given)[0]
        ours = in_plain_blocks(transformer, fp8.kernels(transformer.inner_dim, dtype), given)
        assert torch.equal(ours(**given)[0], expected)

    @torch.no_grad()
    def test_tokens_are_rounded_to_fp8_once_for_all_layers_with_the_same_bits(self):
        transformer = tiny_pipeline(guided=True).transformer.bfloat16()
        given = transformer_inputs(transformer.config, torch.bfloat16)
        fp8.replace_linears(transformer, partial(FLUX1.eight_bit, "transformer"), torch.bfloat16)
        for number, layer in enumerate(each for each in transformer.modules() if isinstance(each, fp8.Fp8Linear)):
            values, scale = fp8.quantize_rows(normal(layer.out_features, layer.in_features, seed=number) * 0.1)
            for leaf, value in {"quantized": values, "scale": scale, "bias": normal(len(scale)).bfloat16()}.items():
                layer._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        ways = fp8.kernels(transformer.inner_dim, torch.bfloat16)
        assert "scaled_mm" in ways
        for kernel in ways:
            set_kernel(transformer, kernel)
            expected = transformer(**given)[0]  # each layer by itself
            ours = in_plain_blocks(transformer, ways, given)
            set_kernel(ours, kernel)
            assert torch.equal(ours(**given)[0], expected), kernel

    @torch.no_grad()
    def test_every_linear_layer_of_the_blocks_is_balanced_somewhere(self):
        config = tiny_pipeline(guided=True).transformer
        layers = {
            name
            for name, layer in config.named_modules()
            if isinstance(layer, nn.Linear) and "transformer_blocks." in name and ".norm" not in name
        }
        assert {layer for each in inputs(config.config) for layer in each.layers} == layers

    @torch.no_grad()
    def test_the_first_layers_with_bad_input_are_named(self):
        transformer = tiny_pipeline(guided=True).transformer.double()
        given = transformer_inputs(transformer.config, torch.float64)
        ours = in_blocks(transformer, {}, given)
        ours.single_transformer_blocks[1].proj_mlp.bias.data[3] = math.nan
        assert not ours(**given)[0].isfinite().all()
        assert ours.watch.first_bad() == "single_transformer_blocks.1.proj_out"
        assert ours.watch.first_bad() is None  # of the next step nothing is known


def events_of(engine: Engine, request: Request, folder: Path) -> list[Event]:
    return list(engine.generate(request, plan_output(folder, 1)))


def path_of(event: Event) -> Path:
    assert isinstance(event, ImageSaved), event
    return event.path


def pixels(event: Event) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path_of(event)))


class TestPictures:
    def test_int8_paints_nearly_the_picture_of_bf16(self, tmp_path):
        request = replace(SMALL, steps=4, width=128, height=128)
        with Engine.open("demo", device="cpu", repeat=Repeat(kernel="float32")) as engine:
            plain = pixels(events_of(engine, replace(request, precision="bf16"), tmp_path)[-1]).astype(float)
            saved = events_of(engine, request, tmp_path)[-1]
        mean = float(((pixels(saved) - plain) ** 2).mean())
        assert 0 < mean < 255**2 / 10**3.5  # 35 dB
        record = read_record(path_of(saved))
        assert (record.request.precision, record.request.salience) == ("int8", "off")
        assert record.reproduce["kernel"] == "float32"

    def test_a_picture_is_made_again_with_its_own_kernel(self, tmp_path, capsys):
        with Engine.open("demo", device="cpu", repeat=Repeat(kernel="int_mm")) as engine:
            saved = events_of(engine, SMALL, tmp_path)[-1]
        with Engine.open("demo", device="cpu", repeat=Repeat(kernel="float32")) as engine:
            other = events_of(engine, SMALL, tmp_path)[-1]
        assert np.array_equal(pixels(saved), pixels(other))  # the same sums
        again = tmp_path / "again.png"
        assert main(["generate", "--from", str(path_of(saved)), "-o", str(again), "-q"]) == 0
        assert read_record(again).reproduce == read_record(path_of(saved)).reproduce
        assert np.array_equal(np.asarray(Image.open(again)), pixels(saved))

    def test_the_kernel_of_another_precision_is_not_taken_over(self, tmp_path):
        with Engine.open("demo", device="cpu") as engine:
            saved = events_of(engine, replace(SMALL, precision="fp8"), tmp_path)[-1]
        record = read_record(path_of(saved))
        assert record.reproduce["kernel"] == "dequantize"
        same = to_repeat(record, record.request, (None, False))
        other = to_repeat(record, replace(record.request, precision="int8"), (None, False))
        guided = to_repeat(record, replace(record.request, negative_prompt=""), (None, False))
        assert (same.kernel, other.kernel) == ("dequantize", None)
        assert (same.batch, guided.batch) == (1, None)

    def test_a_recorded_kernel_that_does_not_run_here_is_replaced(self, monkeypatch, tmp_path):
        class Missing(int8.IntMatmul):
            def product(self, rows: Tensor, weight: Tensor) -> Tensor:
                raise RuntimeError("no such kernel")

        monkeypatch.setitem(KERNELS, "int_mm", Missing())
        with Engine.open("demo", device="cpu", repeat=Repeat(kernel="int_mm")) as engine:
            saved = events_of(engine, SMALL, tmp_path)[-1]
        assert read_record(path_of(saved)).reproduce["kernel"] in ("float32", "dequantize")

    def test_the_cache_changes_no_bit(self, own_folders, tmp_path, monkeypatch):
        with Engine.open("demo", device="cpu", repeat=Repeat(kernel="float32")) as engine:
            first, second = (pixels(events_of(engine, SMALL, tmp_path)[-1]) for _ in range(2))
        caches = list((own_folders / "cache" / "weights").glob("*-int8.safetensors"))
        assert len(caches) == 1
        from engine.weights import converted

        monkeypatch.setattr(converted, "SPARE_BYTES", 2**60)
        caches[0].unlink()
        with Engine.open("demo", device="cpu", repeat=Repeat(kernel="float32")) as engine:
            events = events_of(engine, SMALL, tmp_path)
        assert any("no room for INT8 weights" in event.message for event in events if isinstance(event, Noticed))
        assert np.array_equal(first, second)
        assert np.array_equal(first, pixels(events[-1]))

    def test_the_kernel_is_in_the_plan_and_bad_news_is_said_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(int8, "choose", lambda *_: Choice("dequantize", 1.1, ("torch's integer products: gone",)))
        with Engine.open("demo", device="cpu") as engine:
            first, second = events_of(engine, SMALL, tmp_path), events_of(engine, SMALL, tmp_path)
        (plan,) = (event.plan for event in first if isinstance(event, Planned))
        assert any("torch's integer products: gone" in note for note in plan.notes)
        said = [event.message for event in (*first, *second) if isinstance(event, Noticed)]
        assert [text for text in said if "weights dequantized" in text] == [
            "int8 runs on weights dequantized to 16 bits, 1.10 times the time of bf16 "
            "(torch's integer products: gone); --precision bf16 is faster here."
        ]
        assert isinstance(second[-1], ImageSaved)

    @pytest.mark.parametrize(
        ("layer", "named"),
        [
            ("transformer_blocks.0.ff.net.2", "transformer_blocks.1.attn.to_q"),
            ("transformer_blocks.1.attn.to_add_out", "transformer_blocks.1.ff_context.net.0.proj"),
            ("single_transformer_blocks.0.proj_out", "single_transformer_blocks.1.attn.to_q"),
            ("single_transformer_blocks.1.proj_out", "in the predicted velocity"),
        ],
    )
    def test_activations_that_are_not_finite_fail_with_the_layers_name(self, layer, named, tmp_path):
        """Finite weights whose sums are not: infinite minus infinite is no number in the layer norm that follows."""
        save_tiny(tmp_path / "model", guided=False)
        file = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        weights[f"{layer}.bias"].fill_(3e38)
        weights[f"{layer}.weight"].fill_(1e36)
        save_file(weights, file)
        out = tmp_path / "out"
        out.mkdir()
        request = replace(SMALL, prompt="a star")
        with Engine.open(tmp_path / "model", device="cpu", repeat=Repeat(kernel="float32")) as engine:
            failed = events_of(engine, request, out)[-1]
        assert isinstance(failed, Failed)
        assert failed.phase == "denoise"
        assert "not finite" in failed.message
        assert named in failed.message
        assert not list(out.iterdir())

    def test_salience_without_int8_or_without_a_calibration_is_refused(self):
        with Engine.open("demo", device="cpu") as engine:
            assert engine.resolve(SMALL).salience == "off"
            with pytest.raises(RequestError, match="add --precision int8"):
                engine.resolve(replace(SMALL, precision="bf16", salience="csb"))
            with pytest.raises(RequestError, match="t2i models calibrate demo"):
                engine.resolve(replace(SMALL, salience="csb+ssc"))
            assert "salience" not in {option.name for option in engine.options}
        with pytest.raises(RequestError, match="must be one of off, csb"):
            replace(SMALL, salience="all")

    def test_our_cache_is_no_model(self, own_folders, tmp_path):
        with Engine.open("demo", device="cpu", repeat=Repeat(kernel="float32")) as engine:
            events_of(engine, SMALL, tmp_path)
        (cache,) = (own_folders / "cache" / "weights").glob("*-int8.safetensors")
        with pytest.raises(RequestError, match="this program's own cache"):
            Engine.open(cache)
