"""FLUX.1 as Black Forest Labs published it: the configurations of its parts, for planning without the weights.

Facts from the configuration files of the published models; the parameter counts that follow from them are tested.
"""

from __future__ import annotations

from typing import Any

SCHNELL, DEV = "flux.1-schnell", "flux.1-dev"
NAMES = (SCHNELL, DEV)
TRANSFORMER_BYTES = {SCHNELL: 23_782_357_120, DEV: 23_802_816_640}  # in bf16, as all of them
OTHER_BYTES = {
    "text_encoder": 246_120_960,
    "text_encoder_2": 9_524_621_312,
    "vae": 167_639_366,
}

CLIP_L: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
T5_XXL: dict[str, Any] = {
    "architectures": ["T5EncoderModel"],
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
DISTILL_T5: dict[str, Any] = {
    **T5_XXL,
    "architectures": ["T5EncoderWithProjection"],
    "d_model": 768,
    "d_ff": 2048,
    "num_layers": 12,
    "num_heads": 12,
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "project_in_dim": 768,
    "project_out_dim": 4096,
}
DISTILL_T5_BYTES = 518_205_952  # in fp32
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "force_upcast": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def transformer(guided: bool) -> dict[str, Any]:
    """The transformer's configuration; `guided` is [dev]'s."""
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": [16, 56, 56],
        "guidance_embeds": guided,
    }


def scheduler(guided: bool) -> dict[str, Any]:
    """The noise schedule's configuration; `guided` is [dev]'s."""
    return {
        "shift": 3.0 if guided else 1.0,
        "use_dynamic_shifting": guided,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    }
