"""The parts of FLUX.1, and the tokenizers that it needs."""

from __future__ import annotations

import re

from engine.families.facts import Config, Part, Tokenizer
from engine.families.flux1 import published, tokenizers
from engine.precision import FP32
from engine.text import quoted
from engine.untrusted.configs import (
    LAYERS,
    MAX_LAYERS,
    MAX_WIDTH,
    TOKEN,
    WIDTH,
    Keys,
    list_of,
    number,
    one_of,
    truth,
    whole,
)

TRANSFORMER, VAE, CLIP, T5, DISTILL_T5 = "transformer", "vae", "text_encoder", "text_encoder_2", "distill_t5"
CLIP_TOKENIZER, T5_TOKENIZER = "tokenizer", "tokenizer_2"
VAE_SCALE = 8  # pixels a side of one latent
PATCH_SIZE = 2  # latents a side of one image token
STAGES = range(1, 9)  # of an autoencoder; how many it must have is said where the parts are compared


def _wrong_transformer(config: Config) -> str:
    if config.get("out_channels", config["in_channels"]) != config["in_channels"]:
        return "out_channels must be in_channels"
    axes, head = config.get("axes_dims_rope", [16, 56, 56]), config["attention_head_dim"]
    if sum(axes) != head or any(axis % 2 for axis in axes):
        return f"axes_dims_rope {quoted(axes)} must be even and add up to attention_head_dim {head}"
    return ""


def _wrong_vae(config: Config) -> str:
    widths, groups = config["block_out_channels"], config.get("norm_num_groups", 32)
    if any(width % groups for width in widths):
        return f"norm_num_groups {groups} does not divide block_out_channels {quoted(widths)}"
    if any(len(config.get(key, widths)) != len(widths) for key in ("down_block_types", "up_block_types")):
        return "down_block_types and up_block_types must have one for each of block_out_channels"
    return ""


def _wrong_clip(config: Config) -> str:
    if config["hidden_size"] % config["num_attention_heads"]:
        return "num_attention_heads does not divide hidden_size"
    return ""


def _wrong_t5(config: Config) -> str:
    buckets = config.get("relative_attention_num_buckets", 32)
    if config.get("relative_attention_max_distance", 128) <= buckets // 4:
        return f"relative_attention_max_distance must be more than {buckets // 4}"
    return ""


TRANSFORMER_KEYS = Keys(
    {
        "patch_size": whole(1, 1),
        "in_channels": WIDTH,
        "out_channels": whole(1, MAX_WIDTH),
        "num_layers": LAYERS,
        "num_single_layers": LAYERS,
        "attention_head_dim": WIDTH,
        "num_attention_heads": WIDTH,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "guidance_embeds": truth(told=True),
        "axes_dims_rope": list_of(whole(2, MAX_WIDTH), range(3, 4)),
    },
    _wrong_transformer,
)
VAE_KEYS = Keys(
    {
        "in_channels": whole(3, 3),
        "out_channels": whole(3, 3),
        "down_block_types": list_of(one_of("DownEncoderBlock2D"), STAGES, needed=True),
        "up_block_types": list_of(one_of("UpDecoderBlock2D"), STAGES, needed=True),
        "block_out_channels": list_of(whole(1, MAX_WIDTH), STAGES, needed=True, told=True),
        "layers_per_block": whole(1, MAX_LAYERS, needed=True, told=True),
        "act_fn": one_of("silu"),
        "latent_channels": WIDTH,
        "norm_num_groups": whole(1, MAX_WIDTH),
        "sample_size": whole(1, 2**14),
        "scaling_factor": number(1e-3, 1e3),
        "shift_factor": number(-1e3, 1e3, needed=True),
        "force_upcast": truth(),
        "use_quant_conv": truth(),
        "use_post_quant_conv": truth(),
        "mid_block_add_attention": truth(told=True),
    },
    _wrong_vae,
)
CLIP_KEYS = Keys(
    {
        "vocab_size": WIDTH,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "projection_dim": whole(1, MAX_WIDTH),
        "num_hidden_layers": LAYERS,
        "num_attention_heads": whole(1, MAX_WIDTH, needed=True),
        "max_position_embeddings": WIDTH,
        "hidden_act": one_of("quick_gelu", "gelu"),
        "layer_norm_eps": number(0, 1),
        "bos_token_id": TOKEN,
        "eos_token_id": TOKEN,
        "pad_token_id": TOKEN,
    },
    _wrong_clip,
)
T5_KEYS = Keys(
    {
        "vocab_size": WIDTH,
        "d_model": WIDTH,
        "d_kv": WIDTH,
        "d_ff": WIDTH,
        "num_layers": LAYERS,
        "num_heads": WIDTH,
        "relative_attention_num_buckets": whole(4, MAX_WIDTH, told=True),
        "relative_attention_max_distance": whole(2, MAX_WIDTH),
        "layer_norm_epsilon": number(0, 1),
        "feed_forward_proj": one_of("gated-gelu"),
        "decoder_start_token_id": TOKEN,
        "eos_token_id": TOKEN,
        "pad_token_id": TOKEN,
    },
    _wrong_t5,
)
PARTS = (
    Part(
        TRANSFORMER,
        "FLUX.1 transformer",
        "transformer",
        "denoise",
        TRANSFORMER_KEYS,
        network="FluxTransformer2DModel",
        forms=frozenset({"fp8", "int8"}),
        prefixes=("model.diffusion_model.", "diffusion_model."),
    ),
    Part(
        VAE,
        "autoencoder",
        "autoencoder",
        "decode",
        VAE_KEYS,
        network="AutoencoderKL",
        alone="autoencoder",
        flag="--vae",
        fits="its latents have as many channels as the transformer takes",
        folders=("vae", "VAE"),
        prefixes=("vae.", "first_stage_model."),
        spare=re.compile(r"loss\..*|model_ema\..*"),
        usual_names=("flux", "ae"),
    ),
    Part(
        CLIP,
        "CLIP-L",
        "CLIP",
        "encode",
        CLIP_KEYS,
        network="CLIPTextModel",
        flag="--clip",
        fits="it gives as many numbers a prompt as the transformer takes",
        folders=("clip", "text_encoders", "text_encoder"),
        prefixes=("text_encoders.clip_l.transformer.", "cond_stage_model.clip_l.transformer."),
        spare=re.compile(r".*position_ids|logit_scale|text_projection(\.weight)?|vision_model\..*|visual.*"),
        usual_names=("clip_l", "clip-l"),
    ),
    Part(
        T5,
        "T5-XXL",
        "T5",
        "encode",
        T5_KEYS,
        network="T5EncoderModel",
        forms=frozenset({"fp8"}),
        flag="--t5",
        fits="it gives as many numbers a token as the transformer takes",
        folders=("clip", "text_encoders", "text_encoder", "text_encoder_2"),
        prefixes=("text_encoders.t5xxl.transformer.", "cond_stage_model.t5xxl.transformer."),
        spare=re.compile(r"decoder\..*|lm_head\.weight|logit_scale|dec\..*|output\.weight|spiece_model"),
    ),
    Part(
        DISTILL_T5,
        "DistillT5",
        "DistillT5",
        "encode",
        Keys({}),
        beside_card=True,
        fixed=FP32,  # it is too small for less
        takes_place_of=T5,
        flag="--distill",
        fits="it gives as many numbers a token as the transformer takes",
        folders=("clip", "text_encoders", DISTILL_T5),
    ),
)
TOKENIZERS = (
    Tokenizer(
        CLIP_TOKENIZER,
        "CLIP's tokenizer",
        CLIP,
        published.CLIP_L["vocab_size"],
        tokenizers.check_clip,
        tokenizers.vocabulary_size,
        "comfy/sd1_tokenizer",
        ("tokenizer", "sd1_tokenizer"),
    ),
    Tokenizer(
        T5_TOKENIZER,
        "T5's tokenizer",
        T5,
        published.T5_XXL["vocab_size"],
        tokenizers.check_t5,
        tokenizers.vocabulary_size,
        "comfy/text_encoders/t5_tokenizer",
        ("tokenizer_2", "t5_tokenizer"),
    ),
)
