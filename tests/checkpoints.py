"""Small checkpoints in the layouts that people have, written from diffusers' own models by hand, tensor by tensor.

Nothing of the engine's mapping is used here: the names and the order of rows are those of the original programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]
HEAD = 128  # FLUX.1's own head size, so that the position encoding follows from it


def tiny_transformer(
    guided: bool = True, heads: int = 1, layers: int = 2, single_layers: int = 2, seed: int = 0
) -> FluxTransformer2DModel:
    """A random transformer of FLUX.1's head size."""
    torch.manual_seed(seed)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=layers,
        num_single_layers=single_layers,
        attention_head_dim=HEAD,
        num_attention_heads=heads,
        joint_attention_dim=48,
        pooled_projection_dim=32,
        axes_dims_rope=(16, 56, 56),
        guidance_embeds=guided,
    ).eval()


@torch.no_grad()
def velocity(transformer: Any, seed: int = 1) -> Tensor:
    """The transformer's output for random inputs: [1, 16, 16] tokens of a 4 by 4 grid."""
    generator = torch.Generator().manual_seed(seed)
    config = transformer.config

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    ids = torch.stack([torch.zeros(16), rows.flatten(), columns.flatten()], dim=1)
    result: Tensor = transformer(
        hidden_states=normal(1, 16, config["in_channels"]),
        encoder_hidden_states=normal(1, 5, config["joint_attention_dim"]),
        pooled_projections=normal(1, config["pooled_projection_dim"]),
        timestep=torch.tensor([0.7]),
        img_ids=ids,
        txt_ids=torch.zeros(5, 3),
        guidance=torch.tensor([3.5]) if config["guidance_embeds"] else None,
    ).sample
    return result


def bfl_state(transformer: FluxTransformer2DModel) -> State:
    """The transformer as Black Forest Labs' single file has it."""
    ours = transformer.state_dict()
    state: State = {}

    def copy(stored: str, name: str) -> None:
        for leaf in ("weight", "bias"):
            state[f"{stored}.{leaf}"] = ours[f"{name}.{leaf}"].clone()

    def stack(stored: str, names: list[str]) -> None:
        for leaf in ("weight", "bias"):
            state[f"{stored}.{leaf}"] = torch.cat([ours[f"{name}.{leaf}"] for name in names])

    copy("img_in", "x_embedder")
    copy("txt_in", "context_embedder")
    embedders = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}
    for stored, name in embedders.items():
        if f"time_text_embed.{name}.linear_1.weight" in ours:
            copy(f"{stored}.in_layer", f"time_text_embed.{name}.linear_1")
            copy(f"{stored}.out_layer", f"time_text_embed.{name}.linear_2")
    for index in range(len(transformer.transformer_blocks)):
        to, ours_block = f"double_blocks.{index}", f"transformer_blocks.{index}"
        attention = f"{ours_block}.attn"
        copy(f"{to}.img_mod.lin", f"{ours_block}.norm1.linear")
        copy(f"{to}.txt_mod.lin", f"{ours_block}.norm1_context.linear")
        stack(f"{to}.img_attn.qkv", [f"{attention}.{name}" for name in ("to_q", "to_k", "to_v")])
        stack(f"{to}.txt_attn.qkv", [f"{attention}.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj")])
        state[f"{to}.img_attn.norm.query_norm.scale"] = ours[f"{attention}.norm_q.weight"].clone()
        state[f"{to}.img_attn.norm.key_norm.scale"] = ours[f"{attention}.norm_k.weight"].clone()
        state[f"{to}.txt_attn.norm.query_norm.scale"] = ours[f"{attention}.norm_added_q.weight"].clone()
        state[f"{to}.txt_attn.norm.key_norm.scale"] = ours[f"{attention}.norm_added_k.weight"].clone()
        copy(f"{to}.img_attn.proj", f"{attention}.to_out.0")
        copy(f"{to}.txt_attn.proj", f"{attention}.to_add_out")
        for stream, ff in (("img", "ff"), ("txt", "ff_context")):
            copy(f"{to}.{stream}_mlp.0", f"{ours_block}.{ff}.net.0.proj")
            copy(f"{to}.{stream}_mlp.2", f"{ours_block}.{ff}.net.2")
    for index in range(len(transformer.single_transformer_blocks)):
        to, ours_block = f"single_blocks.{index}", f"single_transformer_blocks.{index}"
        attention = f"{ours_block}.attn"
        copy(f"{to}.modulation.lin", f"{ours_block}.norm.linear")
        stack(
            f"{to}.linear1",
            [*(f"{attention}.{name}" for name in ("to_q", "to_k", "to_v")), f"{ours_block}.proj_mlp"],
        )
        copy(f"{to}.linear2", f"{ours_block}.proj_out")
        state[f"{to}.norm.query_norm.scale"] = ours[f"{attention}.norm_q.weight"].clone()
        state[f"{to}.norm.key_norm.scale"] = ours[f"{attention}.norm_k.weight"].clone()
    for leaf in ("weight", "bias"):
        scale, shift = ours[f"norm_out.linear.{leaf}"].chunk(2)
        state[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
    copy("final_layer.linear", "proj_out")
    return state


def ldm_state(vae: AutoencoderKL) -> State:
    """The autoencoder as ae.safetensors has it."""
    levels = len(vae.config.block_out_channels)
    state: State = {}
    for name, tensor in vae.state_dict().items():
        half, *path = name.split(".")
        leaf = path[-1]
        match path:
            case ["down_blocks", level, "resnets", block, *rest]:
                stored = f"{half}.down.{level}.block.{block}.{'.'.join(rest)}"
            case ["down_blocks", level, "downsamplers", "0", *rest]:
                stored = f"{half}.down.{level}.downsample.{'.'.join(rest)}"
            case ["up_blocks", level, "resnets", block, *rest]:
                stored = f"{half}.up.{levels - 1 - int(level)}.block.{block}.{'.'.join(rest)}"
            case ["up_blocks", level, "upsamplers", "0", *rest]:
                stored = f"{half}.up.{levels - 1 - int(level)}.upsample.{'.'.join(rest)}"
            case ["mid_block", "resnets", block, *rest]:
                stored = f"{half}.mid.block_{int(block) + 1}.{'.'.join(rest)}"
            case ["mid_block", "attentions", "0", *rest]:
                layers = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
                stored = f"{half}.mid.attn_1.{layers[rest[0]]}.{leaf}"
                if tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]  # convolutions of one pixel there
            case ["conv_norm_out", leaf]:
                stored = f"{half}.norm_out.{leaf}"
            case _:
                stored = name
        state[stored.replace("conv_shortcut", "nin_shortcut")] = tensor.clone()
    return state


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def all_in_one(transformer: State, vae: State, clip: State, t5: State) -> State:
    """Everything in one file, as ComfyUI saves a checkpoint."""
    return {
        **prefixed("model.diffusion_model.", transformer),
        **prefixed("vae.", vae),
        **prefixed("text_encoders.clip_l.transformer.", clip),
        **prefixed("text_encoders.t5xxl.transformer.", t5),
        "text_encoders.clip_l.logit_scale": torch.tensor(4.6),
    }


def clip_state(text_encoder: nn.Module) -> State:
    """CLIP with the prefix that its files have, whatever the installed transformers calls its tensors."""
    return {
        f"text_model.{name.removeprefix('text_model.')}": tensor.clone()
        for name, tensor in text_encoder.state_dict().items()
        if not name.endswith("position_ids")
    }


def t5_state(text_encoder_2: nn.Module) -> State:
    """T5's encoder as t5xxl files have it, its embedding once."""
    return {
        name: tensor.clone()
        for name, tensor in text_encoder_2.state_dict().items()
        if name != "encoder.embed_tokens.weight"
    }


def is_linear(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and tensor.ndim == 2 and "block" in name and "relative_att" not in name


def plain_fp8(state: Mapping[str, Tensor], dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[State, State]:
    """Every tensor cast to FP8 without scales; and what it means in float32."""
    stored = {name: tensor.to(dtype) for name, tensor in state.items()}
    return stored, {name: tensor.float() for name, tensor in stored.items()}


def scaled_fp8(
    state: Mapping[str, Tensor], *, by_row: bool = False, names: str = "scale_weight", dtype: torch.dtype | None = None
) -> tuple[State, State]:
    """Linear layers in FP8 with scales (`names`: scale_weight or weight_scale); and what they mean in float32."""
    dtype = dtype or torch.float8_e4m3fn
    limit = torch.finfo(dtype).max
    stored: State = {}
    meant: State = {}
    for name, tensor in state.items():
        if not is_linear(name, tensor):
            stored[name] = tensor.to(torch.bfloat16)
            meant[name] = stored[name].float()
            continue
        largest = tensor.abs().amax(dim=1) if by_row else tensor.abs().max()
        scale = largest.float() / limit
        column = scale[:, None] if by_row else scale
        stored[name] = (tensor / column).clamp(-limit, limit).to(dtype)
        path = name.removesuffix(".weight")
        stored[f"{path}.{names}"] = scale
        meant[name] = stored[name].float() * column
        if names == "scale_weight":
            stored[f"{path}.scale_input"] = torch.tensor(1.0)
    if names == "scale_weight":
        stored["scaled_fp8"] = torch.empty(2, dtype=dtype)
    return stored, meant


def save_gguf(state: Mapping[str, Tensor], file: Path, kind: str, architecture: str = "flux") -> State:
    """Block linears quantized as `kind` ("Q8_0", "Q4_K", ...), all else in float32; and what it means in float32."""
    import gguf

    quantization = gguf.GGMLQuantizationType[kind]
    elements, nbytes = gguf.GGML_QUANT_SIZES[quantization]
    writer = gguf.GGUFWriter(str(file), architecture)
    meant: State = {}
    for name, tensor in state.items():
        values = tensor.float().numpy()
        if is_linear(name, tensor) and tensor.shape[1] % elements == 0:
            try:
                data = gguf.quants.quantize(values, quantization)
            except NotImplementedError:  # the package only reads this one: random blocks are as good
                rng = np.random.default_rng(0)
                data = rng.integers(0, 256, (values.shape[0], values.shape[1] // elements * nbytes), dtype=np.uint8)
                data = finite_blocks(data, quantization)
            writer.add_tensor(name, data, raw_dtype=quantization)
            meant[name] = torch.from_numpy(gguf.quants.dequantize(data, quantization).copy()).view(tensor.shape)
        else:
            writer.add_tensor(name, values)
            meant[name] = tensor.float()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def finite_blocks(data: np.ndarray, quantization: Any) -> np.ndarray:
    """Random blocks of ggml with small scales: a K block's two float16 numbers lie at its beginning."""
    import gguf

    _, nbytes = gguf.GGML_QUANT_SIZES[quantization]
    blocks = data.reshape(-1, nbytes)
    name = quantization.name
    scale = np.array([0.001, 0.001], dtype=np.float16).view(np.uint8)
    if name in ("Q4_K", "Q5_K"):
        blocks[:, :4] = scale
    elif name == "Q6_K":
        blocks[:, -2:] = scale[:2]
    else:
        raise ValueError(f"where {name} has its scales is not known here")
    return data


def save(state: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file, metadata=metadata)
    return file
