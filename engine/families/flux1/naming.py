"""What other programs call the tensors of FLUX.1's parts, and the configurations that follow from their shapes.

Names on the right are diffusers' and transformers'. Facts of the layouts: Black Forest Labs' own single files (BFL),
the latent-diffusion names of the autoencoder (LDM), llama.cpp's names of T5. torch is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.families.flux1 import published
from engine.families.rules import Rule, Shapes, Target, count, linear, split, usual, whole

AXES = {128: [16, 56, 56]}  # of the position encoding, by head size: the one thing that no shape tells
HEAD_OF_CLIP = 64
MAX_GROUPS = 32


# The transformer, BFL's names.


@dataclass(frozen=True)
class Telling:
    """The tensors of one layout whose shapes tell a transformer's configuration."""

    image: str  # the matrices through which image, text, pooled text and latents go
    text: str
    pooled: str
    others: tuple[str, ...]  # matrices that there must be besides
    heads: str  # in the name of each norm of queries and keys
    first_head: str  # one of those norms
    widths: tuple[str, ...]  # the ends of vectors as long as the network is wide
    layers: str  # the starts of what is in double and in single blocks, and of what a guided one has
    single_layers: str
    guidance: str

    def config(self, shapes: Shapes) -> dict[str, Any] | str:
        """The configuration; or the name of a tensor that is missing."""
        for name in (self.image, self.text, self.pooled, *self.others):
            if len(shapes.get(name, ())) != 2:
                return name
        vectors = [(name, shape[0]) for name, shape in shapes.items() if len(shape) == 1]
        heads = [length for name, length in vectors if self.heads in name]
        widths = [length for name, length in vectors if name.endswith(self.widths)]
        if not heads or not widths:
            return self.first_head
        head, width = usual(heads), usual(widths)
        first = max(2, head // 8 * 2)  # for head sizes that FLUX.1 has not: a quarter, and two equal rests
        rest = (head - first) // 2
        return {
            "_class_name": "FluxTransformer2DModel",
            "patch_size": 1,
            "in_channels": shapes[self.image][1],
            "num_layers": count(shapes, self.layers),
            "num_single_layers": count(shapes, self.single_layers),
            "attention_head_dim": head,
            "num_attention_heads": width // head if head else 0,
            "joint_attention_dim": shapes[self.text][1],
            "pooled_projection_dim": shapes[self.pooled][1],
            "axes_dims_rope": AXES.get(head, [first, rest, rest]),
            "guidance_embeds": any(name.startswith(self.guidance) for name in shapes),
        }


BFL = Telling(
    image="img_in.weight",
    text="txt_in.weight",
    pooled="vector_in.in_layer.weight",
    others=("final_layer.linear.weight",),
    heads="_norm.scale",
    first_head="double_blocks.0.img_attn.norm.key_norm.scale",
    widths=("img_attn.proj.bias", "txt_attn.proj.bias", "linear2.bias", "img_in.bias", "txt_in.bias"),
    layers="double_blocks.",
    single_layers="single_blocks.",
    guidance="guidance_in.",
)


def bfl_rules(config: Mapping[str, Any]) -> Iterator[Rule]:
    """BFL's tensors of a transformer of this configuration."""
    head = config["attention_head_dim"]
    width = config["num_attention_heads"] * head
    wide, pooled = 4 * width, config["pooled_projection_dim"]
    yield from linear("img_in", "x_embedder", width, config["in_channels"])
    yield from linear("txt_in", "context_embedder", width, config["joint_attention_dim"])
    embedders = [("time_in", "timestep_embedder", 256), ("vector_in", "text_embedder", pooled)]
    if config["guidance_embeds"]:
        embedders.append(("guidance_in", "guidance_embedder", 256))
    for stored, name, columns in embedders:
        yield from linear(f"{stored}.in_layer", f"time_text_embed.{name}.linear_1", width, columns)
        yield from linear(f"{stored}.out_layer", f"time_text_embed.{name}.linear_2", width, width)
    for index in range(config["num_layers"]):
        block, ours = f"double_blocks.{index}", f"transformer_blocks.{index}"
        for stream, norm, to, out, added, ff in (
            ("img", "norm1", ("to_q", "to_k", "to_v"), "to_out.0", "", "ff"),
            ("txt", "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "added_", "ff_context"),
        ):
            yield from linear(f"{block}.{stream}_mod.lin", f"{ours}.{norm}.linear", 6 * width, width)
            qkv = f"{block}.{stream}_attn.qkv"
            yield split(f"{qkv}.weight", [f"{ours}.attn.{name}.weight" for name in to], [width] * 3, width)
            yield split(f"{qkv}.bias", [f"{ours}.attn.{name}.bias" for name in to], [width] * 3)
            for stored, name in (("query", "q"), ("key", "k")):
                scale = f"{block}.{stream}_attn.norm.{stored}_norm.scale"
                yield whole(scale, f"{ours}.attn.norm_{added}{name}.weight", head)
            yield from linear(f"{block}.{stream}_attn.proj", f"{ours}.attn.{out}", width, width)
            yield from linear(f"{block}.{stream}_mlp.0", f"{ours}.{ff}.net.0.proj", wide, width)
            yield from linear(f"{block}.{stream}_mlp.2", f"{ours}.{ff}.net.2", width, wide)
    for index in range(config["num_single_layers"]):
        block, ours = f"single_blocks.{index}", f"single_transformer_blocks.{index}"
        yield from linear(f"{block}.modulation.lin", f"{ours}.norm.linear", 3 * width, width)
        heights = [width, width, width, wide]
        names = [f"{ours}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
        yield split(f"{block}.linear1.weight", [f"{name}.weight" for name in names], heights, width)
        yield split(f"{block}.linear1.bias", [f"{name}.bias" for name in names], heights)
        for stored, name in (("query", "q"), ("key", "k")):
            yield whole(f"{block}.norm.{stored}_norm.scale", f"{ours}.attn.norm_{name}.weight", head)
        yield from linear(f"{block}.linear2", f"{ours}.proj_out", width, width + wide)
    # BFL's file has shift before scale, diffusers scale before shift.
    swapped = ((width, 2 * width), (0, width))
    for leaf, shape in (("weight", (2 * width, width)), ("bias", (2 * width,))):
        target = Target(f"norm_out.linear.{leaf}", shape, swapped)
        yield Rule(f"final_layer.adaLN_modulation.1.{leaf}", shape, (target,))
    yield from linear("final_layer.linear", "proj_out", config["in_channels"], width)


DIFFUSERS = Telling(
    image="x_embedder.weight",
    text="context_embedder.weight",
    pooled="time_text_embed.text_embedder.linear_1.weight",
    others=(),
    heads=".attn.norm_",
    first_head="transformer_blocks.0.attn.norm_k.weight",
    widths=("to_out.0.bias", "to_add_out.bias", "x_embedder.bias", "context_embedder.bias", "linear_2.bias"),
    layers="transformer_blocks.",
    single_layers="single_transformer_blocks.",
    guidance="time_text_embed.guidance_embedder.",
)


# The autoencoder.


def ldm_config(shapes: Shapes) -> dict[str, Any] | str:
    """AutoencoderKL's configuration from the shapes of LDM's tensors; or the name of one that is missing."""
    for name in ("decoder.conv_in.weight", "encoder.conv_in.weight"):
        if len(shapes.get(name, ())) != 4:
            return name
    widths: list[int] = []
    while (name := f"encoder.down.{len(widths)}.block.0.conv1.weight") in shapes:
        widths.append(shapes[name][0])
    if not widths:
        return "encoder.down.0.block.0.conv1.weight"
    deepest = max(count(shapes, "encoder.down."), count(shapes, "decoder.up."))
    if deepest > len(widths):
        return name
    return vae_config(
        widths,
        layers=count(shapes, "encoder.down.0.block."),
        latents=shapes["decoder.conv_in.weight"][1],
        attention=any(name.startswith("decoder.mid.attn_1.") for name in shapes),
    )


def vae_config(widths: list[int], *, layers: int, latents: int, attention: bool) -> dict[str, Any]:
    """FLUX.1's configuration with these sizes."""
    groups = math.gcd(MAX_GROUPS, *widths)
    return {
        **published.VAE,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": layers,
        "latent_channels": latents,
        "norm_num_groups": groups,
        "mid_block_add_attention": attention,
    }


def ldm_rules(config: Mapping[str, Any]) -> Iterator[Rule]:
    """LDM's tensors of an autoencoder of this configuration."""
    widths, layers, latents = config["block_out_channels"], config["layers_per_block"], config["latent_channels"]
    last = len(widths) - 1
    for half, channels, moments in (("encoder", 3, 2 * latents), ("decoder", latents, 3)):
        edge = widths[0] if half == "encoder" else widths[last]
        yield from _convolution(f"{half}.conv_in", f"{half}.conv_in", edge, channels)
        before = edge
        stages = range(last + 1) if half == "encoder" else range(last, -1, -1)
        for place, level in enumerate(stages):
            stored = f"encoder.down.{level}" if half == "encoder" else f"decoder.up.{level}"
            ours = f"encoder.down_blocks.{place}" if half == "encoder" else f"decoder.up_blocks.{place}"
            for block in range(layers if half == "encoder" else layers + 1):
                yield from _resnet(f"{stored}.block.{block}", f"{ours}.resnets.{block}", before, widths[level])
                before = widths[level]
            if place < last:
                sampled = ("downsample", "downsamplers") if half == "encoder" else ("upsample", "upsamplers")
                yield from _convolution(f"{stored}.{sampled[0]}.conv", f"{ours}.{sampled[1]}.0.conv", before, before)
        middle = widths[last]
        for block in (0, 1):
            ours = f"{half}.mid_block.resnets.{block}"
            yield from _resnet(f"{half}.mid.block_{block + 1}", ours, middle, middle)
        if config.get("mid_block_add_attention", True):
            yield from _attention(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", middle)
        edge = widths[last] if half == "encoder" else widths[0]
        yield from _norm(f"{half}.norm_out", f"{half}.conv_norm_out", edge)
        yield from _convolution(f"{half}.conv_out", f"{half}.conv_out", moments, edge)


def _convolution(stored: str, name: str, out: int, into: int, side: int = 3) -> Iterator[Rule]:
    yield whole(f"{stored}.weight", f"{name}.weight", out, into, side, side)
    yield whole(f"{stored}.bias", f"{name}.bias", out)


def _norm(stored: str, name: str, width: int) -> Iterator[Rule]:
    yield whole(f"{stored}.weight", f"{name}.weight", width)
    yield whole(f"{stored}.bias", f"{name}.bias", width)


def _resnet(stored: str, name: str, into: int, out: int) -> Iterator[Rule]:
    yield from _norm(f"{stored}.norm1", f"{name}.norm1", into)
    yield from _convolution(f"{stored}.conv1", f"{name}.conv1", out, into)
    yield from _norm(f"{stored}.norm2", f"{name}.norm2", out)
    yield from _convolution(f"{stored}.conv2", f"{name}.conv2", out, out)
    if into != out:
        yield from _convolution(f"{stored}.nin_shortcut", f"{name}.conv_shortcut", out, into, side=1)


def _attention(stored: str, name: str, width: int) -> Iterator[Rule]:
    yield from _norm(f"{stored}.norm", f"{name}.group_norm", width)
    for theirs, ours in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        # A convolution of one pixel there, a linear layer here.
        yield whole(f"{stored}.{theirs}.weight", f"{name}.{ours}.weight", width, width, 1, 1, ours=(width, width))
        yield whole(f"{stored}.{theirs}.bias", f"{name}.{ours}.bias", width)


def diffusers_vae_config(shapes: Shapes) -> dict[str, Any] | str:
    """AutoencoderKL's configuration from the shapes of diffusers' tensors; or the name of one that is missing."""
    name = "decoder.conv_in.weight"
    if len(shapes.get(name, ())) != 4:
        return name
    latents = shapes[name][1]
    widths: list[int] = []
    while (name := f"encoder.down_blocks.{len(widths)}.resnets.0.conv1.weight") in shapes:
        widths.append(shapes[name][0])
    if not widths:
        return name
    attention = any(".mid_block.attentions." in name for name in shapes)
    layers = count(shapes, "encoder.down_blocks.0.resnets.")
    return vae_config(widths, layers=layers, latents=latents, attention=attention)


# The text encoders.


def clip_config(shapes: Shapes) -> dict[str, Any] | str:
    """CLIP's configuration from the shapes of its tensors (without `text_model.`); or the name of a missing one."""
    token, position = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
    first = "encoder.layers.0.mlp.fc1.weight"
    for name in (token, position, first):
        if len(shapes.get(name, ())) != 2:
            return name
    return _clip(shapes[token], shapes[first][0], count(shapes, "encoder.layers."), shapes[position][0])


def _clip(table: tuple[int, ...], wide: int, layers: int, positions: int) -> dict[str, Any]:
    """CLIP-L's configuration with these sizes; `table` is the shape of the tokens' embedding."""
    vocabulary, width = table
    return {
        **published.CLIP_L,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_OF_CLIP),
        "max_position_embeddings": positions,
    }


def openai_clip_config(shapes: Shapes) -> dict[str, Any] | str:
    """CLIP's configuration from the shapes of OpenAI's tensors; or the name of one that is missing."""
    first = "transformer.resblocks.0.mlp.c_fc.weight"
    for name in ("token_embedding.weight", "positional_embedding", first):
        if len(shapes.get(name, ())) != 2:
            return name
    layers, positions = count(shapes, "transformer.resblocks."), shapes["positional_embedding"][0]
    return _clip(shapes["token_embedding.weight"], shapes[first][0], layers, positions)


def openai_clip_rules(config: Mapping[str, Any]) -> Iterator[Rule]:
    """OpenAI's tensors of a CLIP text encoder of this configuration (openai/CLIP, clip/model.py)."""
    width, wide = config["hidden_size"], config["intermediate_size"]
    yield whole("token_embedding.weight", "embeddings.token_embedding.weight", config["vocab_size"], width)
    positions = config["max_position_embeddings"]
    yield whole("positional_embedding", "embeddings.position_embedding.weight", positions, width)
    for index in range(config["num_hidden_layers"]):
        block, ours = f"transformer.resblocks.{index}", f"encoder.layers.{index}"
        yield from _norm(f"{block}.ln_1", f"{ours}.layer_norm1", width)
        names = [f"{ours}.self_attn.{name}_proj" for name in "qkv"]
        yield split(f"{block}.attn.in_proj_weight", [f"{name}.weight" for name in names], [width] * 3, width)
        yield split(f"{block}.attn.in_proj_bias", [f"{name}.bias" for name in names], [width] * 3)
        yield from linear(f"{block}.attn.out_proj", f"{ours}.self_attn.out_proj", width, width)
        yield from _norm(f"{block}.ln_2", f"{ours}.layer_norm2", width)
        yield from linear(f"{block}.mlp.c_fc", f"{ours}.mlp.fc1", wide, width)
        yield from linear(f"{block}.mlp.c_proj", f"{ours}.mlp.fc2", width, wide)
    yield from _norm("ln_final", "final_layer_norm", width)


def t5_config(shapes: Shapes) -> dict[str, Any] | str:
    """T5's configuration from the shapes of its tensors; or the name of a missing one."""
    table = next((name for name in ("shared.weight", "encoder.embed_tokens.weight") if name in shapes), "shared.weight")
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    query, gate = "encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    for name in (table, bias, query, gate):
        if len(shapes.get(name, ())) != 2:
            return name
    vocabulary, width = shapes[table]
    buckets, heads = shapes[bias]
    return {
        **published.T5_XXL,
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes[query][0] // max(1, heads),
        "d_ff": shapes[gate][0],
        "num_layers": count(shapes, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }


GGUF_T5 = {
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}


def t5_name(stored: str) -> str:
    """llama.cpp's name of a T5 tensor as transformers has it; any other name unchanged."""
    if stored == "token_embd.weight":
        return "shared.weight"
    if stored == "enc.output_norm.weight":
        return "encoder.final_layer_norm.weight"
    parts = stored.split(".")
    match parts:
        case ["enc", "blk", number, layer, "weight"] if layer in GGUF_T5:
            return f"encoder.block.{number}.{GGUF_T5[layer]}.weight"
    return stored
