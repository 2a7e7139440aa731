"""DistillT5's files load in every form that is in use, give the published mathematics, and fail with a sentence."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.families.flux1.distill_names import T5_BASE, canonical_name, config_from_shapes
from engine.families.flux1.distill_t5 import DistillT5, empty
from engine.request import RequestError
from engine.weights import loading

Weights = dict[str, Tensor]
load = partial(loading.load, part="distill_t5")
TIED = "encoder.encoder.embed_tokens.weight"


@dataclass(frozen=True)
class Size:
    """Dimensions of a DistillT5."""

    vocabulary: int = 50
    width: int = 24
    heads: int = 3
    head: int = 7  # 21 numbers: no multiple of the four heads that a bias one column too wide would mean
    ff: int = 40
    layers: int = 2
    out: int = 32
    buckets: int = 32


SMALL = Size()
SIZES = {
    "small": SMALL,
    "twelve layers": Size(layers=12, ff=64),
    "as of T5-XL": Size(width=32, heads=4, head=8, ff=80, layers=24, out=64),
    "attention narrower than the model": Size(width=32, heads=3, head=4, ff=32),
    "other buckets": Size(buckets=16),
}


def checkpoint(size: Size = SMALL, seed: int = 0) -> Weights:
    """The tensors of a random DistillT5 as they are published; outputs are near 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float | None = None) -> Tensor:
        return torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if scale is None else scale)

    attention = size.heads * size.head
    weights = {"encoder.shared.weight": normal(size.vocabulary, size.width, scale=1.0)}
    for index in range(size.layers):
        block = f"encoder.encoder.block.{index}.layer"
        weights |= {f"{block}.0.SelfAttention.{name}.weight": normal(attention, size.width) for name in "qkv"}
        weights[f"{block}.0.SelfAttention.o.weight"] = normal(size.width, attention, scale=0.5 * attention**-0.5)
        weights[f"{block}.0.layer_norm.weight"] = 1 + normal(size.width, scale=0.1)
        weights |= {f"{block}.1.DenseReluDense.{name}.weight": normal(size.ff, size.width) for name in ("wi_0", "wi_1")}
        weights[f"{block}.1.DenseReluDense.wo.weight"] = normal(size.width, size.ff, scale=0.5 * size.ff**-0.5)
        weights[f"{block}.1.layer_norm.weight"] = 1 + normal(size.width, scale=0.1)
    bias = "encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    weights[bias] = normal(size.buckets, size.heads, scale=1.0)
    weights["encoder.encoder.final_layer_norm.weight"] = 1 + normal(size.width, scale=0.1)
    weights["final_projection.0.weight"] = normal(size.out, size.width)
    weights["final_projection.3.weight"] = normal(size.out, size.out)
    return weights


def comfy(weights: Weights) -> Weights:
    """ComfyUI's names."""
    return {name.removeprefix("encoder."): tensor for name, tensor in weights.items()}


def with_both_tables(weights: Weights) -> Weights:
    return {**weights, TIED: weights["encoder.shared.weight"].clone()}


def with_the_other_table(weights: Weights) -> Weights:
    others = dict(weights)
    others[TIED] = others.pop("encoder.shared.weight")
    return others


FORMS: dict[str, Callable[[Weights], Weights]] = {
    "published": dict,
    "both tables": with_both_tables,
    "the tied table alone": with_the_other_table,
    "ComfyUI's": comfy,
    "ComfyUI's, both tables": lambda weights: comfy(with_both_tables(weights)),
    "ComfyUI's, the tied table alone": lambda weights: comfy(with_the_other_table(weights)),
}


def saved(folder: Path, weights: Weights, config: Mapping[str, Any] | None = None) -> Path:
    """The folder with these tensors in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def some_ids(size: Size = SMALL, length: int = 40) -> Tensor:
    """[2, S]: a prompt, and a short one that is mostly pads."""
    ids = torch.randint(2, size.vocabulary, (2, length), generator=torch.Generator().manual_seed(1))
    ids[1, 5], ids[1, 6:] = 1, 0
    return ids


def by_the_book(weights: Weights, ids: Tensor, heads: int, max_distance: int = 128, eps: float = 1e-6) -> Tensor:
    """T5's encoder (Raffel et al., 2020, and v1.1's gated GELU) and DistillT5's projection, without a library."""
    weights = {name: tensor.float() for name, tensor in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weights[name]

    def split(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # [B, heads, S, head]

    table = weights["encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    length = ids.shape[1]
    buckets = [[bucket(key - query, len(table), max_distance) for key in range(length)] for query in range(length)]
    bias = table[torch.tensor(buckets)].permute(2, 0, 1)  # [heads, S, S]
    x = weights["encoder.shared.weight"][ids]
    for index in range(sum(name.endswith(".q.weight") for name in weights)):
        layer = f"encoder.encoder.block.{index}.layer"
        y = norm(x, f"{layer}.0.layer_norm.weight")
        q, k, v = (split(y @ weights[f"{layer}.0.SelfAttention.{name}.weight"].T) for name in "qkv")
        attended = ((q @ k.transpose(-1, -2) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + attended @ weights[f"{layer}.0.SelfAttention.o.weight"].T
        y = norm(x, f"{layer}.1.layer_norm.weight")
        gate, up = (y @ weights[f"{layer}.1.DenseReluDense.{name}.weight"].T for name in ("wi_0", "wi_1"))
        gelu = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        x = x + (gelu * up) @ weights[f"{layer}.1.DenseReluDense.wo.weight"].T
    x = norm(x, "encoder.encoder.final_layer_norm.weight")
    return F.relu(x @ weights["final_projection.0.weight"].T) @ weights["final_projection.3.weight"].T


def bucket(distance: int, buckets: int, max_distance: int) -> int:
    """Half of the buckets for what comes after; of each half, half for single distances, the others logarithmic."""
    half = buckets // 2
    single = half // 2
    far = abs(distance)
    if far >= single:
        far = single + int(math.log(far / single) / math.log(max_distance / single) * (half - single))
    return (half if distance > 0 else 0) + min(far, half - 1)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_its_output_is_the_published_mathematics(tmp_path: Path, size: Size) -> None:
    weights, ids = checkpoint(size), some_ids(size)
    sequence = load(saved(tmp_path, weights))(ids)
    assert sequence.shape == (2, 40, size.out)
    assert 0.1 < float(sequence.std()) < 10
    assert torch.allclose(sequence, by_the_book(weights, ids, size.heads), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_every_form_and_type_loads_as_itself(tmp_path: Path, form: Callable[[Weights], Weights], dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in checkpoint().items()}
    module, ids = load(saved(tmp_path, form(weights))), some_ids()
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert torch.allclose(module(ids), by_the_book(weights, ids, SMALL.heads), rtol=0, atol=1e-5)


def test_fp8_with_scales_loads_as_what_it_stands_for(tmp_path: Path) -> None:
    weights = checkpoint()
    stored, exact = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}, dict(weights)
    for name, tensor in weights.items():
        if ".block." not in name or tensor.ndim == 1 or "relative" in name:
            stored[name] = tensor
            continue
        scale = tensor.abs().max() / 448
        stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
        stored[name.removesuffix("weight") + "scale_weight"] = scale
        exact[name] = stored[name].float() * scale
    module, ids = load(saved(tmp_path, comfy(stored))), some_ids()
    assert torch.allclose(module(ids), by_the_book(exact, ids, SMALL.heads), rtol=0, atol=1e-5)


def test_it_loads_from_its_file_from_a_models_folder_and_from_shards(tmp_path: Path) -> None:
    weights, ids = checkpoint(), some_ids()
    folder = saved(tmp_path / "model" / "distill_t5", weights)
    names = sorted(weights)
    shards = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    (tmp_path / "shards").mkdir()
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, tmp_path / "shards" / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    index = tmp_path / "shards" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    expected = load(folder)(ids)
    for place in (str(folder), folder / "model.safetensors", tmp_path / "model", tmp_path / "shards"):
        assert torch.equal(load(place)(ids), expected)


def test_it_holds_what_is_published(tmp_path: Path) -> None:
    size = SIZES["twelve layers"]
    module = load(saved(tmp_path, checkpoint(size)))
    assert isinstance(module, DistillT5)
    assert len(list(module.parameters())) == 113
    assert {*module.state_dict()} == {*checkpoint(size), TIED}
    assert module.encoder.encoder.embed_tokens.weight is module.encoder.shared.weight
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in module.parameters())


def test_published_dimensions_have_the_published_number_of_parameters() -> None:
    module = empty(config_from_shapes({}) | {"num_layers": 12})
    assert all(parameter.is_meta for parameter in module.parameters())
    assert len(list(module.parameters())) == 113
    assert sum(parameter.numel() for parameter in module.parameters()) == 129_551_488


def test_embedded_ids_give_what_ids_give_twice(tmp_path: Path) -> None:
    module, ids = load(saved(tmp_path, checkpoint())), some_ids()
    assert not module.training
    first = module(ids)
    assert torch.equal(module(ids), first)
    assert torch.equal(module(inputs_embeds=F.embedding(ids, module.encoder.shared.weight)), first)


def test_pads_are_read(tmp_path: Path) -> None:
    module, ids = load(saved(tmp_path, checkpoint())), some_ids()
    assert not torch.allclose(module(ids[1:])[:, :6], module(ids[1:, :6]), atol=1e-3)


def test_it_computes_in_the_type_that_is_asked_for(tmp_path: Path) -> None:
    folder, ids = saved(tmp_path, checkpoint()), some_ids()
    exact, rounded = load(folder)(ids), load(folder, dtype=torch.bfloat16)(ids)
    assert rounded.dtype == torch.bfloat16
    assert 0 < float((rounded.float() - exact).norm() / exact.norm()) < 0.05


def test_a_configuration_that_lies_about_dimensions_changes_nothing(tmp_path: Path) -> None:
    weights, ids = checkpoint(), some_ids()
    lies = {"d_model": 768, "d_kv": 64, "num_heads": 12, "num_layers": 12, "d_ff": 1, "vocab_size": "many"}
    folder = saved(tmp_path, weights, {**lies, "out_dim": 4096, "project_out_dim": 1})
    assert torch.equal(load(folder)(ids), load(saved(tmp_path / "plain", weights))(ids))


def test_what_no_shape_tells_comes_from_the_configuration(tmp_path: Path) -> None:
    weights, ids = checkpoint(), some_ids()
    config = {"relative_attention_max_distance": 20, "layer_norm_epsilon": 0.1}
    sequence = load(saved(tmp_path, weights, config))(ids)
    assert torch.allclose(sequence, by_the_book(weights, ids, SMALL.heads, 20, 0.1), rtol=0, atol=1e-5)
    assert not torch.allclose(sequence, by_the_book(weights, ids, SMALL.heads), rtol=0, atol=1e-2)


def refusal(place: Path) -> str:
    """The sentence with which a place is refused."""
    with pytest.raises(RequestError) as caught:
        load(place)
    assert caught.value.field == "model"
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def plain_t5(size: Size) -> Weights:
    """A T5 encoder as transformers saves it."""
    return {name: tensor for name, tensor in comfy(checkpoint(size)).items() if not name.startswith("final_projection")}


def test_t5_xxl_and_a_plain_t5_are_told_from_it(tmp_path: Path) -> None:
    xxl = saved(tmp_path / "xxl", plain_t5(Size(vocabulary=4, width=4096, heads=1, head=4, ff=4, layers=1)))
    said = f"{str(xxl / 'model.safetensors')!r} holds T5-XXL, not the DistillT5 that is needed there."
    assert refusal(xxl) == said
    base = saved(tmp_path / "base", plain_t5(Size(width=768, heads=12, head=64, ff=16, layers=1)))
    assert refusal(base) == said.replace(str(xxl), str(base))


def test_both_forms_at_once_are_refused(tmp_path: Path) -> None:
    weights = checkpoint()
    name = "encoder.encoder.block.1.layer.1.DenseReluDense.wo.weight"
    sentence = refusal(saved(tmp_path, {**weights, name.removeprefix("encoder."): weights[name].clone()}))
    assert str(tmp_path / "model.safetensors") in sentence
    assert name in sentence
    assert "second time" in sentence


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["encoder.shared.weight", "final_projection.3.weight"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, name: str, number: float) -> None:
    weights = checkpoint()
    weights[name][-1, -1] = number
    sentence = refusal(saved(tmp_path, weights))
    assert str(tmp_path / "model.safetensors") in sentence
    assert repr(name) in sentence
    assert "not finite" in sentence


def test_a_projection_of_another_width_is_refused(tmp_path: Path) -> None:
    weights = checkpoint()
    weights["final_projection.0.weight"] = torch.zeros(SMALL.out, 768)
    sentence = refusal(saved(tmp_path, weights))
    assert str(tmp_path / "model.safetensors") in sentence
    assert "'final_projection.0.weight'" in sentence
    assert "[32, 768]" in sentence
    assert "[32, 24]" in sentence


def test_whole_numbers_are_refused(tmp_path: Path) -> None:
    weights = checkpoint()
    weights["final_projection.3.weight"] = torch.zeros(SMALL.out, SMALL.out, dtype=torch.int32)
    sentence = refusal(saved(tmp_path, weights))
    assert str(tmp_path / "model.safetensors") in sentence
    assert "'final_projection.3.weight'" in sentence


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_pickles_are_refused_unread(tmp_path: Path, name: str) -> None:
    torch.save(checkpoint(), tmp_path / name)
    for place in (tmp_path, tmp_path / name):
        assert "pickled weights, which are never loaded" in refusal(place)


def test_places_without_weights_are_named(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere.safetensors"):
        assert str(place) in refusal(place)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"encoder.shared.weight": "lost.safetensors"}}), "utf-8")
    assert "lost.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("relative_attention_max_distance", "far"),
        ("relative_attention_max_distance", 8),  # all buckets are for single distances
        ("relative_attention_max_distance", 128.5),
        ("relative_attention_max_distance", True),
        ("layer_norm_epsilon", -1e-6),
        ("layer_norm_epsilon", 1.5),
        ("layer_norm_epsilon", None),
        ("layer_norm_epsilon", [1e-6]),
    ],
)
def test_nonsense_in_the_configuration_is_named(tmp_path: Path, name: str, value: object) -> None:
    sentence = refusal(saved(tmp_path, checkpoint(), {name: value}))
    assert "config.json" in sentence
    assert name in sentence


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    saved(tmp_path, checkpoint())
    (tmp_path / "config.json").write_text("{", "utf-8")
    assert str(tmp_path / "config.json") in refusal(tmp_path)


def damaged(random: Random, weights: Weights) -> tuple[Weights, str]:
    """Weights of which one tensor is lost, renamed or misshapen, and this tensor's name."""
    name = random.choice(sorted(weights))
    others = dict(weights)
    tensor = others.pop(name)
    kind = random.choice(["lost", "renamed", "flat", "deeper", "longer", "empty"])
    if kind == "renamed":
        index = random.randrange(len(name))
        other = name[:index] + "X" + name[index + 1 :]
        return {**others, other: tensor}, other
    if kind == "flat":
        others[name] = tensor.reshape(-1) if tensor.ndim == 2 else tensor.reshape(1, -1)
    elif kind == "deeper":
        others[name] = tensor[None]
    elif kind == "longer":
        axis = tensor.ndim - 1  # how many rows the embedding and the bias have follows from nothing else
        others[name] = torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)
    elif kind == "empty":
        others[name] = tensor[:0]
    return others, name


@pytest.mark.parametrize("seed", range(80))
def test_damage_ends_in_one_sentence_that_names_file_and_tensor(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    form = random.choice(["published", "ComfyUI's"])
    weights, name = damaged(random, FORMS[form](checkpoint()))
    sentence = refusal(saved(tmp_path, weights))
    assert str(tmp_path / "model.safetensors") in sentence
    assert repr(name) in sentence or repr(canonical_name(name)) in sentence


@pytest.mark.parametrize("seed", range(20))
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, seed: int) -> None:
    file = saved(tmp_path, checkpoint()) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: Random(seed).randrange(len(content))])
    assert str(file) in refusal(file)


def test_names_of_either_form_mean_the_same() -> None:
    for name in checkpoint(SIZES["as of T5-XL"]):
        assert canonical_name(name) == name
        assert canonical_name(name.removeprefix("encoder.")) == name
    for other in (
        "",
        "encoder.final_projection.0.weight",
        "final_projection.1.weight",
        "encoder.encoder.encoder.final_layer_norm.weight",
        "encoder.block.01.layer.0.layer_norm.weight",
        "encoder.block.99999.layer.0.layer_norm.weight",
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi.weight",
        "decoder.block.0.layer.0.layer_norm.weight",
        "shared.weight\n",
    ):
        assert canonical_name(other) is None


def test_shapes_alone_tell_the_dimensions() -> None:
    for size in SIZES.values():
        shapes = {name: tuple(tensor.shape) for name, tensor in comfy(checkpoint(size)).items()}
        config = config_from_shapes(shapes)
        told = (config["vocab_size"], config["d_model"], config["num_heads"], config["d_kv"], config["d_ff"])
        assert told == (size.vocabulary, size.width, size.heads, size.head, size.ff)
        assert (config["num_layers"], config["project_in_dim"]) == (size.layers, size.width)
        assert (config["project_out_dim"], config["relative_attention_num_buckets"]) == (size.out, size.buckets)
        assert config["layer_norm_epsilon"] == T5_BASE["layer_norm_epsilon"]


def test_names_and_shapes_need_no_torch() -> None:
    code = "import sys, engine.families.all; sys.exit(bool({'torch', 'transformers'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_file_is_read_once_and_left_alone(tmp_path: Path) -> None:
    file = saved(tmp_path, checkpoint()) / "model.safetensors"
    before = file.read_bytes()
    module = load(file)
    module.encoder.shared.weight.zero_()
    assert file.read_bytes() == before
    assert torch.equal(load_file(file)["encoder.shared.weight"], checkpoint()["encoder.shared.weight"])
