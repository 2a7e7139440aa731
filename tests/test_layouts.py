"""Every layout that people have FLUX.1 in is read exactly; the wrong thing is refused by name, never painted with."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)
from safetensors.torch import load_file

from engine.families.flux1 import naming
from engine.families.flux1 import published as flux1
from engine.request import RequestError
from engine.untrusted.headers import MAX_HEADER_BYTES, read_header
from engine.weights.layouts import recognise
from engine.weights.loading import load
from engine.weights.model import component_in
from engine.weights.reading import WeightFiles
from tests import checkpoints
from tests.checkpoints import State, bfl_state, save, tiny_transformer, velocity
from tests.tiny import FP8_FORM, tiny_pipeline

load_transformer = partial(load, part="transformer")


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer2DModel:
    return tiny_transformer()


def with_weights(transformer: FluxTransformer2DModel, state: State) -> FluxTransformer2DModel:
    """A copy of the transformer with the weights that a BFL state means, put in place by the test's own mapping."""
    guided, layers = bool(transformer.config["guidance_embeds"]), transformer.config["num_layers"]
    other, numbered = (tiny_transformer(guided, layers=layers, single_layers=layers) for _ in range(2))
    start = 0
    with torch.no_grad():  # every element has a number of its own, and is found again by it in the BFL state
        for tensor in numbered.parameters():
            tensor.copy_((torch.arange(tensor.numel(), dtype=torch.float32) + start).view(tensor.shape))
            start += tensor.numel()
    assert start < 2**24, "float32 counts no further"
    values = torch.zeros(start)
    for name, places in bfl_state(numbered).items():
        values[places.long().flatten()] = state[name].float().flatten()
    start = 0
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.copy_(values[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()
    return other


def sentence(work: Callable[[], object]) -> str:
    """The one sentence with which it is refused."""
    with pytest.raises(RequestError) as error:
        work()
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


class TestTransformerLayouts:
    @pytest.mark.parametrize("guided", [True, False], ids=["dev", "schnell"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_bfl_single_file(self, tmp_path, guided, dtype):
        original = tiny_transformer(guided)
        state = {name: tensor.to(dtype) for name, tensor in bfl_state(original).items()}
        loaded = load_transformer(save(state, tmp_path / "anything.safetensors"))
        assert loaded.config["guidance_embeds"] is guided
        assert loaded.config["num_layers"] == loaded.config["num_single_layers"] == 2
        expected = velocity(with_weights(original, {name: tensor.float() for name, tensor in state.items()}))
        assert torch.allclose(velocity(loaded), expected, atol=1e-6)
        if dtype == torch.float32:
            assert torch.allclose(expected, velocity(original), atol=1e-6)

    @pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
    def test_prefixes(self, transformer, tmp_path, prefix):
        file = save(checkpoints.prefixed(prefix, bfl_state(transformer)), tmp_path / "x.safetensors")
        assert torch.allclose(velocity(load_transformer(file)), velocity(transformer), atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
    def test_plain_fp8(self, transformer, tmp_path, dtype):
        stored, meant = checkpoints.plain_fp8(bfl_state(transformer), dtype)
        loaded = load_transformer(save(stored, tmp_path / "x.safetensors"))
        assert torch.allclose(velocity(loaded), velocity(with_weights(transformer, meant)), atol=1e-5)

    @pytest.mark.parametrize("by_row", [False, True], ids=["tensor", "row"])
    @pytest.mark.parametrize("names", ["scale_weight", "weight_scale"])
    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
    def test_scaled_fp8(self, transformer, tmp_path, by_row, names, dtype):
        stored, meant = checkpoints.scaled_fp8(bfl_state(transformer), by_row=by_row, names=names, dtype=dtype)
        loaded = load_transformer(save(stored, tmp_path / "x.safetensors"))
        expected = velocity(with_weights(transformer, meant))
        assert torch.allclose(velocity(loaded), expected, atol=1e-5)
        ignored = {name: tensor.float() for name, tensor in stored.items() if name in meant}
        assert not torch.allclose(velocity(with_weights(transformer, ignored)), expected, atol=1e-2), "scales matter"

    def test_newer_fp8_files_of_comfyui(self, transformer, tmp_path):
        stored, meant = checkpoints.scaled_fp8(bfl_state(transformer), names="weight_scale")
        note = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        layers = [name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")]
        noted = {**stored, **{f"{layer}.comfy_quant": note.clone() for layer in layers}}
        expected = velocity(with_weights(transformer, meant))
        for state, metadata in (
            (noted, None),
            (stored, {"_quantization_metadata": json.dumps({"layers": {layers[0]: {"format": "float8_e4m3fn"}}})}),
        ):
            loaded = load_transformer(save(state, tmp_path / "x.safetensors", metadata))
            assert torch.allclose(velocity(loaded), expected, atol=1e-5)
        file = tmp_path / "y.safetensors"
        for said in (b'{"format": "nvfp4"}', b'{"format": "float8_e4m3fn", "rotate": true}', b'{"format"', b"[1]"):
            noted[f"{layers[0]}.comfy_quant"] = torch.frombuffer(bytearray(said), dtype=torch.uint8)
            save(noted, file)
            assert layers[0] in sentence(lambda: load_transformer(file))

    @pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "BF16", "Q4_K", "Q6_K"])
    def test_gguf(self, tmp_path, kind):
        pytest.importorskip("gguf")
        heads = 2 if kind.endswith("K") else 1  # K blocks have 256 elements
        original = tiny_transformer(heads=heads, layers=1, single_layers=1)
        meant = checkpoints.save_gguf(bfl_state(original), tmp_path / "x.gguf", kind)
        loaded = load_transformer(tmp_path / "x.gguf")
        state = loaded.state_dict()
        width = 128 * heads
        qkv = meant["single_blocks.0.linear1.weight"]
        assert torch.equal(state["single_transformer_blocks.0.attn.to_k.weight"], qkv[width : 2 * width])
        assert torch.equal(state["single_transformer_blocks.0.proj_mlp.weight"], qkv[3 * width :])
        assert not torch.equal(qkv, bfl_state(original)["single_blocks.0.linear1.weight"])
        assert torch.isfinite(velocity(loaded)).all()
        if heads == 1:
            other = tiny_transformer(heads=heads, layers=1, single_layers=1)
            for name, tensor in state.items():
                assert tensor.shape == other.state_dict()[name].shape
            again = save(meant, tmp_path / "y.safetensors")
            assert torch.allclose(velocity(load_transformer(again)), velocity(loaded), atol=1e-6)

    def test_diffusers_folder_file_and_shards(self, transformer, tmp_path):
        whole, sharded = tmp_path / "whole" / "transformer", tmp_path / "sharded"
        transformer.save_pretrained(whole)
        transformer.save_pretrained(sharded, max_shard_size="500KB")
        assert len(list(sharded.glob("*.safetensors"))) > 2
        file = whole / "diffusion_pytorch_model.safetensors"
        bare = save(load_file(file), tmp_path / "unet.safetensors")  # no config.json beside it
        for path in (whole.parent, whole, file, bare, sharded, str(sharded)):
            assert torch.allclose(velocity(load_transformer(path)), velocity(transformer), atol=1e-6)

    def test_dtype_and_memory_of_its_own(self, transformer, tmp_path):
        file = save(bfl_state(transformer), tmp_path / "x.safetensors")
        loaded = load_transformer(file, dtype=torch.bfloat16)
        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}
        file.unlink()
        assert torch.isfinite(next(loaded.parameters())).all()

    def test_fp8_cache_of_our_own(self, transformer, tmp_path):
        from engine.weights.converted import converted_files

        file = save(bfl_state(transformer), tmp_path / "x.safetensors")
        conversion = converted_files("transformer", [file], torch.float32, [], FP8_FORM)
        try:
            while True:
                next(conversion)
        except StopIteration as end:
            cache = end.value
        (path,) = {tensor.file for tensor in cache.tensors.values()}
        cache.close()
        loaded = load_transformer(path)
        for name, tensor in transformer.state_dict().items():
            close = 0.07 if checkpoints.is_linear(name, tensor) else 1e-6
            assert torch.allclose(loaded.state_dict()[name], tensor, rtol=close, atol=close * float(tensor.abs().max()))


class TestAgainstDiffusersOwnConverters:
    """Its converters know FLUX.1's real sizes only: tensors of full size whose rows are numbered cost no memory."""

    def test_transformer(self):
        config = flux1.transformer(guided=True) | {"num_layers": 2, "num_single_layers": 2}
        state, start = {}, 0
        for rule in naming.bfl_rules(config):
            rows = torch.arange(rule.shape[0], dtype=torch.float32) + start
            state[rule.stored] = rows.view(-1, *[1] * (len(rule.shape) - 1)).expand(rule.shape)
            start += rule.shape[0]
        assert naming.BFL.config({name: tensor.shape for name, tensor in state.items()}) == config
        ours = {
            target.name: torch.cat([state[rule.stored].select(-1, 0)[first:last] for first, last in target.rows])
            if len(rule.shape) == 2
            else torch.cat([state[rule.stored][first:last] for first, last in target.rows])
            for rule in naming.bfl_rules(config)
            for target in rule.targets
        }
        theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(state))
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor if tensor.ndim == 1 else tensor.select(-1, 0)), name

    def test_autoencoder(self):
        vae = AutoencoderKL.from_config(flux1.VAE)
        state = {rule.stored: torch.empty(rule.shape) for rule in naming.ldm_rules(flux1.VAE)}
        for number, tensor in enumerate(state.values()):
            tensor.fill_(number)
        assert naming.ldm_config({name: tensor.shape for name, tensor in state.items()}) == {
            **flux1.VAE,
            "mid_block_add_attention": True,
        }
        ours = {
            target.name: float(state[rule.stored].flatten()[0])
            for rule in naming.ldm_rules(flux1.VAE)
            for target in rule.targets
        }
        theirs = convert_ldm_vae_checkpoint(dict(state), vae.config)
        assert ours == {name: float(tensor.flatten()[0]) for name, tensor in theirs.items()}
        assert ours.keys() == vae.state_dict().keys()


class TestOtherParts:
    def read(self, file: Path, component: str) -> State:
        with WeightFiles.open([file], component) as files:
            state = {}
            for name, tensor in files.tensors.items():
                state[name] = torch.empty(tensor.shape)
                files.read(name, state[name])
        return state

    def test_autoencoder(self, tmp_path):
        vae = tiny_pipeline(guided=True).vae
        file = save(checkpoints.ldm_state(vae), tmp_path / "ae.safetensors")
        found = component_in(file, "vae")
        assert found.layout == "BFL"
        assert found.config["block_out_channels"] == [8, 8, 16, 16]
        assert found.config["latent_channels"] == 4
        assert found.config["layers_per_block"] == 1
        state = self.read(file, "vae")
        assert state.keys() == vae.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in vae.state_dict().items())

    def test_clip_and_t5(self, tmp_path):
        pipeline = tiny_pipeline(guided=True)
        clip = {**checkpoints.clip_state(pipeline.text_encoder), "logit_scale": torch.tensor(1.0)}
        found = component_in(save(clip, tmp_path / "clip_l.safetensors"), "text_encoder")
        assert (found.config["hidden_size"], found.config["num_hidden_layers"]) == (32, 2)
        ours = self.read(tmp_path / "clip_l.safetensors", "text_encoder")
        assert all(torch.equal(clip[f"text_model.{name}"], tensor) for name, tensor in ours.items())
        t5 = checkpoints.t5_state(pipeline.text_encoder_2)
        for stored, meant in ((t5, t5), checkpoints.scaled_fp8(t5)):
            found = component_in(save(stored, tmp_path / "t5.safetensors"), "text_encoder_2")
            assert {key: found.config[key] for key in ("d_model", "d_kv", "num_heads", "d_ff", "num_layers")} == {
                "d_model": 48,
                "d_kv": 16,
                "num_heads": 3,
                "d_ff": 64,
                "num_layers": 2,
            }
            ours = self.read(tmp_path / "t5.safetensors", "text_encoder_2")
            assert ours.keys() == meant.keys()
            assert all(torch.allclose(ours[name], tensor.float(), atol=1e-7) for name, tensor in meant.items())

    def test_t5_in_gguf(self, tmp_path):
        pytest.importorskip("gguf")
        t5 = checkpoints.t5_state(tiny_pipeline(guided=True).text_encoder_2)
        names = {"shared.weight": "token_embd.weight", "encoder.final_layer_norm.weight": "enc.output_norm.weight"}
        layers = {
            **{f"layer.0.SelfAttention.{letter}": f"attn_{letter}" for letter in "qkvo"},
            "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
            "layer.0.layer_norm": "attn_norm",
            "layer.1.DenseReluDense.wi_0": "ffn_gate",
            "layer.1.DenseReluDense.wi_1": "ffn_up",
            "layer.1.DenseReluDense.wo": "ffn_down",
            "layer.1.layer_norm": "ffn_norm",
        }
        for block in range(2):
            for layer, theirs in layers.items():
                names[f"encoder.block.{block}.{layer}.weight"] = f"enc.blk.{block}.{theirs}.weight"
        checkpoints.save_gguf(
            {names[name]: tensor for name, tensor in t5.items()}, tmp_path / "t5.gguf", "F32", "t5enc"
        )
        ours = self.read(tmp_path / "t5.gguf", "text_encoder_2")
        assert ours.keys() == t5.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in t5.items())

    def test_all_in_one(self, transformer, tmp_path):
        pipeline = tiny_pipeline(guided=True)
        stored, meant = checkpoints.scaled_fp8(bfl_state(transformer))
        everything = checkpoints.all_in_one(
            stored,
            checkpoints.ldm_state(pipeline.vae),
            checkpoints.clip_state(pipeline.text_encoder),
            checkpoints.t5_state(pipeline.text_encoder_2),
        )
        file = save(everything, tmp_path / "all.safetensors")
        found = {part.component: part for part in recognise([read_header(file)])}
        assert found.keys() == {"transformer", "vae", "text_encoder", "text_encoder_2"}
        assert found["transformer"].precision == "fp8 e4m3, scaled"
        assert found["vae"].precision == "fp32"
        assert torch.allclose(velocity(load_transformer(file)), velocity(with_weights(transformer, meant)), atol=1e-5)
        vae = self.read(file, "vae")
        assert all(torch.equal(vae[name], tensor) for name, tensor in pipeline.vae.state_dict().items())


class TestRefusals:
    @pytest.mark.parametrize(
        ("state", "what"),
        [
            ({"double_blocks.0.img_attn.qkv.weight.absmax": torch.zeros(4)}, "NF4"),
            ({"transformer_blocks.0.attn.to_q.qweight": torch.zeros(4)}, "SVDQuant"),
            ({"double_blocks.0.img_attn.qkv.weight_scale_2": torch.zeros(1)}, "NVFP4"),
            ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(4, 4)}, "LoRA"),
            ({"double_stream_modulation_img.lin.weight": torch.zeros(4, 4)}, "FLUX.2"),
            ({"distilled_guidance_layer.layers.0.in_layer.weight": torch.zeros(4, 4)}, "Chroma"),
            ({"controlnet_x_embedder.weight": torch.zeros(4, 4)}, "ControlNet"),
            ({"img_in.weight": torch.zeros(8, 384), "double_blocks.0.x": torch.zeros(1)}, "Fill"),
            ({"img_in.weight": torch.zeros(8, 128), "double_blocks.0.x": torch.zeros(1)}, "Canny or Depth"),
            ({"x_embedder.weight": torch.zeros(8, 384), "transformer_blocks.0.x": torch.zeros(1)}, "Fill"),
            ({"model.diffusion_model.joint_blocks.0.x": torch.zeros(1)}, "Stable Diffusion 3"),
            ({"conditioner.embedders.1.model.x": torch.zeros(1)}, "Stable Diffusion XL"),
            ({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}, "Stable Diffusion"),
            ({"transformer.resblocks.0.x": torch.zeros(1)}, "lacks the tensor 'token_embedding.weight'"),
            ({"something.else": torch.zeros(1)}, "nothing of FLUX.1"),
            ({}, "no tensors"),
        ],
    )
    def test_other_models_are_refused_by_name(self, tmp_path, state, what):
        file = save(state, tmp_path / "flux1-dev.safetensors")
        said = sentence(lambda: load_transformer(file))
        assert what in said
        assert str(file) in said

    def test_kontext_is_known_by_what_the_file_says_and_a_warning_by_its_name(self, transformer, tmp_path):
        state = bfl_state(transformer)
        file = save(state, tmp_path / "x.safetensors", {"modelspec.title": "Flux.1 Kontext dev"})
        assert "Kontext" in sentence(lambda: load_transformer(file))
        (found,) = recognise([read_header(save(state, tmp_path / "flux1-kontext-dev.safetensors"))])
        assert "run as [dev]" in found.warning
        (found,) = recognise([read_header(save(state, tmp_path / "flux1-dev.safetensors"))])
        assert not found.warning

    @pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.safetensors"])
    def test_pickles_are_never_loaded(self, tmp_path, name):
        file = tmp_path / name
        torch.save({"double_blocks.0.img_attn.qkv.weight": torch.zeros(4)}, file)
        assert "pickled weights, which are never loaded" in sentence(lambda: load_transformer(file))

    def test_an_autoencoder_is_no_transformer(self, tmp_path):
        file = save(checkpoints.ldm_state(tiny_pipeline(guided=True).vae), tmp_path / "x.safetensors")
        assert "holds autoencoder, not the FLUX.1 transformer" in sentence(lambda: load_transformer(file))

    def test_gguf_without_its_package(self, tmp_path, monkeypatch, transformer):
        import sys

        pytest.importorskip("gguf")
        checkpoints.save_gguf(bfl_state(transformer), tmp_path / "x.gguf", "Q8_0")
        monkeypatch.setitem(sys.modules, "gguf", None)
        assert "pip install 'texttoimagetool[gguf]'" in sentence(lambda: load_transformer(tmp_path / "x.gguf"))


STATES: dict[str, Callable[[FluxTransformer2DModel], State]] = {
    "bfl": lambda model: bfl_state(model),
    "diffusers": lambda model: {name: tensor.clone() for name, tensor in model.state_dict().items()},
    "scaled": lambda model: checkpoints.scaled_fp8(bfl_state(model))[0],
    "all in one": lambda model: checkpoints.prefixed("model.diffusion_model.", bfl_state(model)),
}


class TestDamagedCheckpoints:
    """Whatever happens to one tensor ends in a sentence with the file and the tensor, never in a wrong picture."""

    @pytest.mark.parametrize("layout", STATES)
    @pytest.mark.parametrize("damage", ["dropped", "renamed", "reshaped", "cut", "whole numbers", "NaN", "infinite"])
    def test_one_damaged_tensor(self, tmp_path, layout, damage):
        whole = STATES[layout](tiny_transformer(layers=1, single_layers=1))
        chance = random.Random(f"{layout} {damage}")
        file = tmp_path / "damaged.safetensors"
        harmless = ("scale_input", "scaled_fp8")  # say nothing about the weights
        names = [name for name in whole if not name.endswith(harmless)]
        for name in chance.sample(names, 6):
            state, tensor = dict(whole), whole[name]
            if damage in ("reshaped", "cut") and not tensor.ndim:
                continue  # a scale is a number, or a list of one
            match damage:
                case "dropped":
                    del state[name]
                case "renamed":
                    state[f"{name}x"] = state.pop(name)
                case "reshaped":
                    state[name] = tensor.t().contiguous() if tensor.ndim == 2 else tensor.reshape(-1, 1)
                    if state[name].shape == tensor.shape:
                        continue  # a square stays one
                case "cut":
                    state[name] = tensor[:-1].contiguous()
                case "whole numbers":
                    state[name] = torch.zeros(tensor.shape, dtype=torch.int32)
                case "NaN" | "infinite":
                    value = float("nan" if damage == "NaN" else "inf")
                    if damage == "infinite" and tensor.dtype == torch.float8_e4m3fn:
                        continue  # has no infinity
                    broken = tensor.float().reshape(-1).clone()
                    broken[-1] = value
                    state[name] = broken.view(tensor.shape).to(tensor.dtype)
            save(state, file)
            said = sentence(lambda: load_transformer(file))
            assert str(file) in said, name
            if damage == "renamed":
                assert name in said or name.rpartition(".")[0] in said, (name, said)
            elif layout != "diffusers" or damage != "dropped":
                assert name in said or name.removesuffix(".weight") in said, (name, said)

    def test_truncated_files(self, transformer, tmp_path):
        file = save(bfl_state(transformer), tmp_path / "x.safetensors")
        size = file.stat().st_size
        for left in (size - 1, size // 2, 1000, 8, 7, 0):
            os.truncate(file, left)
            said = sentence(lambda: load_transformer(file))
            assert "broken" in said
            assert str(file) in said

    def test_truncated_gguf(self, transformer, tmp_path):
        pytest.importorskip("gguf")
        checkpoints.save_gguf(bfl_state(transformer), tmp_path / "x.gguf", "Q8_0")
        data = (tmp_path / "x.gguf").read_bytes()
        for left in (len(data) - 40_000, len(data) // 2, 300, 24, 11, 4):
            (tmp_path / "y.gguf").write_bytes(data[:left])
            assert "y.gguf" in sentence(lambda: load_transformer(tmp_path / "y.gguf"))

    @pytest.mark.parametrize(
        "header",
        [
            b"GGUF" + (3).to_bytes(4, "little") + (2**63).to_bytes(8, "little") * 2,
            b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
            + (2**60).to_bytes(8, "little"),
            b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
            + (1).to_bytes(8, "little") + b"a" + (9).to_bytes(4, "little") + (0).to_bytes(4, "little")
            + (2**60).to_bytes(8, "little"),
            b"GGUF" + (1).to_bytes(4, "little"),
            b"GGUF",
        ],
        ids=["counts", "text", "array", "version", "nothing"],
    )  # fmt: skip
    def test_gguf_headers_that_lie(self, tmp_path, header):
        (tmp_path / "x.gguf").write_bytes(header)
        assert "x.gguf" in sentence(lambda: load_transformer(tmp_path / "x.gguf"))

    def test_safetensors_headers_that_lie(self, tmp_path):
        file = tmp_path / "x.safetensors"
        huge = json.dumps({"img_in.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
        twice = (
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
        )
        for text in (huge, twice, b" " * 1000, b"[" * 50_000):
            file.write_bytes(len(text).to_bytes(8, "little") + text + b"1")
            assert str(file) in sentence(lambda: load_transformer(file))
        file.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        assert "its header is too long" in sentence(lambda: load_transformer(file))
        with file.open("wb") as stream:  # megabytes of JSON that is not there
            stream.write(MAX_HEADER_BYTES.to_bytes(8, "little"))
            stream.truncate(1000)
        assert "it ends too early" in sentence(lambda: load_transformer(file))

    def test_blocks_of_any_number_are_no_work(self, transformer, tmp_path):
        state = bfl_state(transformer)
        state["double_blocks.999999.img_attn.qkv.weight"] = torch.zeros(3, 1)
        file = save(state, tmp_path / "x.safetensors")
        assert "double_blocks." in sentence(lambda: load_transformer(file))

    def test_paths(self, transformer, tmp_path):
        odd = save(bfl_state(transformer), tmp_path / "Ünïcode mit Leerzeichen" / "modèle [1].safetensors")
        assert torch.isfinite(velocity(load_transformer(odd))).all()
        loop = tmp_path / "loop.safetensors"
        loop.symlink_to(loop)
        for path in (loop, tmp_path / "nothing", Path("a" * 5000), Path("a\0b")):
            with pytest.raises(RequestError, match="is not there"):
                load_transformer(path)
        empty = tmp_path / "shards"
        transformer.save_pretrained(empty, max_shard_size="500KB")
        shard = sorted(empty.glob("*.safetensors"))[1]
        shard.write_bytes(b"")
        assert "it is empty" in sentence(lambda: load_transformer(empty))
        shard.unlink()
        assert shard.name in sentence(lambda: load_transformer(empty))
        if os.geteuid():
            odd.chmod(0)
            assert "cannot be read" in sentence(lambda: load_transformer(odd))
