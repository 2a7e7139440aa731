"""Files as other programs and people leave them: read as what they are, or called what they are."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from engine import Engine, Noticed, Request
from engine.library import catalog, finding, inventory, pairing, registry
from engine.library.catalog import DEMO_FOLDER
from engine.request import RequestError
from engine.untrusted.headers import read_header
from engine.weights.model import component_in, open_folder, weight_files
from engine.weights.reading import WeightFiles
from tests import checkpoints
from tests.checkpoints import State, save
from tests.models import Kit, copy_tokenizers, small_kit
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as diffusers saves it."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder, guided=True)
    return folder


@pytest.fixture(scope="module")
def kit() -> Kit:
    return small_kit()


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "model")
    return tmp_path / "model"


def sentence(refused: Callable[[], object]) -> str:
    with pytest.raises(RequestError) as error:
        refused()
    assert len(str(error.value)) <= 400
    return str(error.value)


def tensors(files: tuple[Path, ...], component: str) -> State:
    """All tensors of a component, read by our names."""
    with WeightFiles.open(files, component) as opened:
        found: State = {}
        for name, tensor in opened.tensors.items():
            found[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            opened.read(name, found[name])
    return found


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Which parts belong to a model.


def test_the_parts_of_the_models_own_folder_come_first(model: Path, kit: Kit, tmp_path: Path) -> None:
    """Elsewhere lies another autoencoder with a better name: it is another model's."""
    (model / "model_index.json").unlink()
    other = save(kit.vae, tmp_path / "downloads" / "ae.safetensors")
    registry.write(registry.Registry(loose=(other,)))
    opened = catalog.open_model(str(model / "transformer"))
    assert opened.files["vae"][0].parent == model / "vae"
    assert opened.elsewhere == ()


def test_what_lies_elsewhere_is_named_before_the_first_step(kit: Kit, tmp_path: Path) -> None:
    file = save(kit.transformer, tmp_path / "mine" / "flux.safetensors")
    other = save(kit.vae, tmp_path / "theirs" / "ae.safetensors")
    for name, state in (("clip_l", kit.clip), ("t5xxl", kit.t5)):
        save(state, file.parent / f"{name}.safetensors")
    copy_tokenizers(file.parent)
    registry.write(registry.Registry(loose=(other,)))
    with Engine.open(file, device="cpu") as engine:
        (said,) = engine.plan(Request("a circle", width=64, height=64)).elsewhere
        assert str(other) in said
        assert "not beside the model" in said
        notices = []
        for event in engine.generate(Request("a circle", steps=1, width=64, height=64)):
            notices += [event.message] if isinstance(event, Noticed) else []
            if event.name == "step_finished":
                break
        assert said in notices


def test_a_part_that_was_named_is_nobodys_surprise(kit: Kit, tmp_path: Path) -> None:
    file = save(kit.transformer, tmp_path / "mine" / "flux.safetensors")
    other = save(kit.vae, tmp_path / "theirs" / "ae.safetensors")
    for name, state in (("clip_l", kit.clip), ("t5xxl", kit.t5)):
        save(state, file.parent / f"{name}.safetensors")
    copy_tokenizers(file.parent)
    assert pairing.paired(file, {"vae": other}, registry.Registry()).elsewhere == ()


# Variants and shards.


def as_variant(folder: Path, variant: str, *, shards: int = 0, keep: bool = False) -> State:
    """A component's weights as `save_pretrained(variant=...)` leaves them; plain files are kept, or not."""
    (plain,) = (file for file in folder.glob("*.safetensors") if file.name.count(".") == 1)
    state = load_file(plain)
    other = {name: (tensor * 1.5).contiguous() for name, tensor in state.items()}
    stem = plain.name.removesuffix(".safetensors")
    if shards:
        names = sorted(other)
        weight_map: dict[str, str] = {}
        for number in range(shards):
            file = f"{stem}.{variant}-{number + 1:05}-of-{shards:05}.safetensors"
            part = {name: other[name] for name in names[number::shards]}
            save_file(part, folder / file)
            weight_map |= dict.fromkeys(part, file)
        (folder / f"{stem}.safetensors.index.{variant}.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        save_file(other, folder / f"{stem}.{variant}.safetensors")
    if not keep:
        plain.unlink()
    return other if not keep else state


@pytest.mark.parametrize("shards", [0, 3])
@pytest.mark.parametrize("keep", [True, False], ids=["beside plain files", "alone"])
def test_a_variant_is_read_where_there_is_no_plain_file(model: Path, shards: int, keep: bool) -> None:
    wanted = as_variant(model / "transformer", "fp16", shards=shards, keep=keep)
    opened = open_folder(model, "mine")
    assert same(tensors(opened.files["transformer"], "transformer"), wanted)


def test_of_several_variants_the_best_is_taken_and_broken_ones_are_passed_over(model: Path) -> None:
    folder = model / "transformer"
    as_variant(folder, "fp16", keep=True)
    as_variant(folder, "bf16", shards=2)
    assert ".bf16-" in weight_files(folder)[0].name
    weight_files(folder)[0].unlink()
    assert weight_files(folder)[0].name.endswith(".fp16.safetensors")


def test_two_whole_files_of_one_kind_are_no_choice(model: Path) -> None:
    (file,) = (model / "vae").glob("*.safetensors")
    shutil.copy(file, file.with_name("ae.safetensors"))
    assert "holds 2 whole files of weights; keep one" in sentence(lambda: open_folder(model, "mine"))


@pytest.mark.parametrize("open_it", [catalog.open_model, inventory.add, lambda file: component_in(file, "transformer")])
def test_one_of_several_shards_is_called_that(model: Path, open_it: Callable[[Any], object]) -> None:
    as_variant(model / "transformer", "fp16", shards=3)
    shard = next((model / "transformer").glob("*-00002-of-00003.safetensors"))
    assert "is one of 3 shards; give the folder" in sentence(lambda: open_it(shard))


def test_an_index_stands_for_its_shards(model: Path) -> None:
    as_variant(model / "transformer", "fp16", shards=3)
    (index,) = (model / "transformer").glob("*.index.fp16.json")
    assert len(catalog.open_model(str(index)).files["transformer"]) == 3


# Text encoders of other programs.


def openai_state(clip: State) -> State:
    """CLIP's text encoder with the names of OpenAI's program, and what else its files hold."""
    state: State = {
        "logit_scale": torch.tensor(4.6),
        "text_projection": torch.zeros(32, 32),
        "visual.conv1.weight": torch.zeros(2, 3, 4, 4),
        "visual.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(6, 2),
        "token_embedding.weight": clip["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": clip["text_model.embeddings.position_embedding.weight"],
    }
    for leaf in ("weight", "bias"):
        state[f"ln_final.{leaf}"] = clip[f"text_model.final_layer_norm.{leaf}"]
    layers = {int(match[1]) for name in clip if (match := re.match(r"text_model\.encoder\.layers\.(\d+)\.", name))}
    for index in layers:
        to, ours = f"transformer.resblocks.{index}", f"text_model.encoder.layers.{index}"
        for leaf in ("weight", "bias"):
            state[f"{to}.attn.in_proj_{leaf}"] = torch.cat(
                [clip[f"{ours}.self_attn.{name}_proj.{leaf}"] for name in ("q", "k", "v")]
            )
            for stored, name in (
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("attn.out_proj", "self_attn.out_proj"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                state[f"{to}.{stored}.{leaf}"] = clip[f"{ours}.{name}.{leaf}"]
    return {name: tensor.clone() for name, tensor in state.items()}


def test_clip_in_openais_layout_gives_the_same_bits(kit: Kit, tmp_path: Path) -> None:
    plain = save(kit.clip, tmp_path / "plain.safetensors")
    theirs = save(openai_state(kit.clip), tmp_path / "ViT-L-14-TEXT.safetensors")
    assert same(tensors((theirs,), "text_encoder"), tensors((plain,), "text_encoder"))
    first, second = component_in(plain, "text_encoder"), component_in(theirs, "text_encoder")
    assert first.config == second.config
    assert (first.nbytes, second.layout) == (second.nbytes, "OpenAI")


def test_clip_in_openais_layout_is_found_beside_a_transformer(kit: Kit, tmp_path: Path) -> None:
    file = save(kit.transformer, tmp_path / "flux.safetensors")
    theirs = save(openai_state(kit.clip), tmp_path / "ViT-L-14-TEXT.safetensors")
    assert pairing.paired(file, {}, registry.Registry()).found["text_encoder"].files == (theirs,)


@pytest.mark.parametrize("name", ["transformer.resblocks.1.attn.in_proj_bias", "ln_final.weight"])
def test_a_part_of_openais_clip_that_is_missing_is_named(kit: Kit, tmp_path: Path, name: str) -> None:
    state = openai_state(kit.clip)
    del state[name]
    file = save(state, tmp_path / "clip.safetensors")
    assert f"lacks the tensor {name!r}" in sentence(lambda: tensors((file,), "text_encoder"))


GGUF_NAMES = {
    "shared.weight": "token_embd.weight",
    "encoder.final_layer_norm.weight": "enc.output_norm.weight",
    "SelfAttention.relative_attention_bias": "attn_rel_b",
    **{f"SelfAttention.{name}": f"attn_{name}" for name in "qkvo"},
    "layer.0.layer_norm": "attn_norm",
    "layer.1.layer_norm": "ffn_norm",
    "DenseReluDense.wi_0": "ffn_gate",
    "DenseReluDense.wi_1": "ffn_up",
    "DenseReluDense.wo": "ffn_down",
}


def gguf_t5(state: State, prefix: str = "enc") -> State:
    """T5 with llama.cpp's names."""
    found: State = {}
    for name, tensor in state.items():
        match = re.match(r"encoder\.block\.(\d+)\.(.*)\.weight", name)
        if match:
            rest = re.sub(r"^layer\.[01]\.(?!layer_norm)", "", match[2])
            found[f"{prefix}.blk.{match[1]}.{GGUF_NAMES[rest]}.weight"] = tensor
        else:
            found[GGUF_NAMES[name]] = tensor
    return found


def test_t5_in_gguf_is_read_without_its_decoder(kit: Kit, tmp_path: Path) -> None:
    encoder = gguf_t5(kit.t5)
    decoder = {name: tensor for name, tensor in gguf_t5(kit.t5, "dec").items() if name.startswith("dec.")}
    decoder |= {"output.weight": kit.t5["shared.weight"], "dec.output_norm.weight": torch.ones(48)}
    decoder |= {f"dec.blk.0.cross_attn_{name}.weight": torch.zeros(48, 48) for name in "qkvo"}
    plain, whole = tmp_path / "plain.gguf", tmp_path / "whole.gguf"
    checkpoints.save_gguf(encoder, plain, "Q8_0", "t5encoder")
    checkpoints.save_gguf({**encoder, **decoder}, whole, "Q8_0", "t5")
    assert same(tensors((plain,), "text_encoder_2"), tensors((whole,), "text_encoder_2"))
    assert component_in(plain, "text_encoder_2").nbytes == component_in(whole, "text_encoder_2").nbytes


# A model is its tensors.


@pytest.mark.parametrize("pipeline", ["FluxImg2ImgPipeline", "FluxInpaintPipeline", "MyTrainersFluxPipeline"])
def test_a_folder_with_flux_tensors_is_flux_whatever_saved_it(model: Path, pipeline: str) -> None:
    for file, key, name in (
        ("model_index.json", "_class_name", pipeline),
        ("transformer/config.json", "_class_name", "TrainersFluxTransformer"),
        ("vae/config.json", "_class_name", "AutoencoderKLWithMore"),
        ("text_encoder/config.json", "architectures", ["CLIPTextModelWithProjection"]),
        ("text_encoder_2/config.json", "architectures", ["T5ForConditionalGeneration"]),
    ):
        value = json.loads((model / file).read_text("utf-8")) | {key: name}
        (model / file).write_text(json.dumps(value))
    assert open_folder(model, "mine").has_weights
    *_, last = finding.scan(model.parent)
    assert [Path(listing.place) for listing in last.added] == [model]
    assert last.refused == ()


def test_the_text_encoder_of_a_whole_clip_has_its_own_configuration(model: Path) -> None:
    file = model / "text_encoder" / "config.json"
    inner = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({"architectures": ["CLIPModel"], "text_config": inner, "vision_config": {}}))
    before = open_folder(model, "mine").configs["text_encoder"]
    assert before["num_attention_heads"] == inner["num_attention_heads"]


def test_another_models_pipeline_is_called_by_its_name(model: Path) -> None:
    (model / "model_index.json").write_text(json.dumps({"_class_name": "SomethingPipeline"}))
    shutil.rmtree(model / "transformer")
    assert "holds a 'SomethingPipeline'; only FLUX.1" in sentence(lambda: open_folder(model, "mine"))


# What is no model.


def picture(file: Path, kind: str) -> None:
    Image.new("RGB", (8, 8)).save(file, kind)


NO_MODELS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("empty", lambda file: file.write_bytes(b""), "is empty"),
    ("text", lambda file: file.write_text("Entry not found"), "is a text file"),
    ("long text", lambda file: file.write_text("Grüße, " * 300), "is a text file"),
    ("json", lambda file: file.write_text('{"error": "Repository not found"}'), "is a text file"),
    ("web page", lambda file: file.write_text("\n<!DOCTYPE html><html>login</html>"), "is a web page"),
    ("xml", lambda file: file.write_text("<?xml version='1.0'?><Error>AccessDenied</Error>"), "is a web page"),
    (
        "pointer",
        lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 23802932552\n"),
        "is a Git LFS pointer",
    ),
    ("gzip", lambda file: file.write_bytes(gzip.compress(b"x" * 1000)), "is a packed archive; unpack it"),
    ("zip", lambda file: shutil.make_archive(str(file), "zip", DEMO_FOLDER / "scheduler"), "is a packed archive"),
    ("png", lambda file: picture(file, "PNG"), "is a picture"),
    ("jpeg", lambda file: picture(file, "JPEG"), "is a picture"),
    ("webp", lambda file: picture(file, "WEBP"), "is a picture"),
    ("pdf", lambda file: file.write_bytes(b"%PDF-1.7\n\0"), "is a document"),
    ("pickle", lambda file: torch.save({"x": torch.zeros(1)}, file), "pickled weights, which are never loaded"),
    ("old pickle", lambda file: torch.save([1], file, _use_new_zipfile_serialization=False), "pickled weights"),
]


@pytest.mark.parametrize(("make", "said"), [case[1:] for case in NO_MODELS], ids=[case[0] for case in NO_MODELS])
def test_a_file_that_is_no_model_is_called_what_it_is(tmp_path: Path, make: Callable[[Path], Any], said: str) -> None:
    file = tmp_path / "flux1-dev.safetensors"
    make(file)
    if not file.exists():  # an archive's name ends as it likes
        next(tmp_path.glob("*.zip")).rename(file)
    for open_it in (catalog.open_model, inventory.add):
        assert said in sentence(lambda: open_it(file))  # noqa: B023 (called at once)


@pytest.mark.parametrize("length", [0x8B1F, 0x688B1F, 0x687A42, 0x0A3C])
def test_a_header_of_any_length_is_a_header(tmp_path: Path, length: int) -> None:
    """Its length's bytes may be those with which an archive or a page begins."""
    text = b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    file = tmp_path / "x.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + text.ljust(length) + b"1")
    assert [*read_header(file).tensors] == ["x"]


# What trainers and other programs put around a model.


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "model.", "transformer.", "module._orig_mod."])
@pytest.mark.parametrize("layout", ["BFL", "diffusers"])
def test_names_may_stand_behind_what_a_trainer_puts_before_them(
    kit: Kit, tmp_path: Path, wrapper: str, layout: str
) -> None:
    state = kit.transformer if layout == "BFL" else {**kit.pipeline.transformer.state_dict()}
    plain = save(state, tmp_path / "plain.safetensors")
    wrapped = save(checkpoints.prefixed(wrapper, state), tmp_path / "wrapped.safetensors")
    (found,) = pairing.recognised(wrapped)
    assert (found.component, found.layout) == ("transformer", layout)
    assert same(tensors((wrapped,), "transformer"), tensors((plain,), "transformer"))


def test_a_tiny_autoencoder_is_called_that(tmp_path: Path) -> None:
    state = {
        "decoder.layers.3.conv.0.weight": torch.zeros(4, 4, 3, 3),
        "encoder.layers.0.weight": torch.zeros(4, 3, 3, 3),
    }
    assert "a tiny autoencoder" in sentence(lambda: inventory.add(save(state, tmp_path / "taef1.safetensors")))
