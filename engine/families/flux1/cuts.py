"""How FLUX.1's networks are cut: what moves on its own, what follows from the step alone, what is balanced together."""

from __future__ import annotations

from typing import Any

from engine.families.facts import Config
from engine.families.flux1.parts import DISTILL_T5, T5, TRANSFORMER, VAE
from engine.families.networks import Cut
from engine.quantization.salience import Input

LAYERS = {T5: "encoder.block", DISTILL_T5: "encoder.encoder.block"}  # of the text encoders that are streamed
EMBEDDER = "time_text_embed"


def cut(part: str, module: Any) -> Cut:
    """Of a part's network."""
    if part == TRANSFORMER:
        double, single = len(module.transformer_blocks), len(module.single_transformer_blocks)
        units = [f"transformer_blocks.{i}.{each}" for i in range(double) for each in ("attn", "ff", "ff_context")]
        units += [f"single_transformer_blocks.{i}" for i in range(single)]
        step_only = (EMBEDDER, *(name for name, _ in module.named_modules() if _is_modulation(name)))
        blocks = ("transformer_blocks", "single_transformer_blocks")
        return Cut(tuple(units), step_only, read_by_library=("norm_out.linear",), repeats=blocks)
    if part in LAYERS:
        path = LAYERS[part]
        layers = range(len(module.get_submodule(path)))
        units = [f"{path}.{index}.layer.{each}" for index in layers for each in (0, 1)]
        tables = {
            T5: ("shared.weight", "encoder.embed_tokens.weight"),
            DISTILL_T5: ("encoder.shared.weight", "encoder.encoder.embed_tokens.weight"),
        }
        return Cut(tuple(units), host_tables=tables[part], repeats=(path,))
    if part == VAE:
        return Cut(unused=("encoder.", "quant_conv."))  # to decode
    return Cut()


def _is_modulation(name: str) -> bool:
    """Whether the module of this path in a `FluxTransformer2DModel` is an adaLN linear."""
    parent, _, leaf = name.rpartition(".")
    return leaf == "linear" and parent.rpartition(".")[2] in ("norm", "norm1", "norm1_context", "norm_out")


def inputs(config: Config) -> list[Input]:
    """The distinct inputs of the linear layers in a transformer's blocks. `config` is the transformer's."""
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    narrow, wide = (0, width), (0, 4 * width)
    found = []
    for index in range(int(config["num_layers"])):
        block = f"transformer_blocks.{index}"
        attn = f"{block}.attn"
        found += [
            Input(f"{attn}.to_q", _all(attn, "to_q", "to_k", "to_v"), narrow, (f"{block}.norm1.linear", 6, 0, 1)),
            Input(
                f"{attn}.add_q_proj",
                _all(attn, "add_q_proj", "add_k_proj", "add_v_proj"),
                narrow,
                (f"{block}.norm1_context.linear", 6, 0, 1),
            ),
            Input(
                f"{attn}.to_out.0",
                _all(attn, "to_out.0", "to_add_out"),
                narrow,
                values=_all(attn, "to_v", "add_v_proj"),
            ),
        ]
        for net, norm in (("ff", "norm1"), ("ff_context", "norm1_context")):
            inner, outer = f"{block}.{net}.net.0.proj", f"{block}.{net}.net.2"
            found += [
                Input(inner, (inner,), narrow, (f"{block}.{norm}.linear", 6, 3, 4)),
                Input(outer, (outer,), wide),
            ]
    for index in range(int(config["num_single_layers"])):
        block = f"single_transformer_blocks.{index}"
        layers = _all(block, "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        out = f"{block}.proj_out"
        found += [
            Input(layers[0], layers, narrow, (f"{block}.norm.linear", 3, 0, 1)),
            Input(out, (out,), narrow, values=(f"{block}.attn.to_v",)),
            Input(f"{out}.mlp", (out,), (width, 5 * width)),
        ]
    return found


def _all(parent: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{parent}.{name}" for name in names)
