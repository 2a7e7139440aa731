"""FLUX.1 as Black Forest Labs published it: the configurations of its parts, for planning without the weights.

Facts from the configuration files of the published models; the parameter counts that follow from them are tested.
"""

from __future__ import annotations

from typing import Any

from engine.families.facts import Published, Variant
from engine.families.flux1.tokenizers import check_clip, check_t5
from engine.families.sources import HUB, Repository, Source

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


def published(name: str) -> Published:
    """What is known of a published model without its weights."""
    guided = name == DEV
    return Published(
        name,
        {
            "transformer": transformer(guided),
            "vae": VAE,
            "text_encoder": CLIP_L,
            "text_encoder_2": T5_XXL,
            "distill_t5": DISTILL_T5,
            "scheduler": scheduler(guided),
        },
        {"transformer": TRANSFORMER_BYTES[name], **OTHER_BYTES, "distill_t5": DISTILL_T5_BYTES},
    )


SCHNELL_KIND = Variant(
    "schnell",
    "FLUX.1 [schnell]",
    SCHNELL,
    "As its author says; FLUX.1 [schnell] itself is under the Apache License 2.0.",
)
DEV_KIND = Variant(
    "dev",
    "FLUX.1 [dev]",
    DEV,
    "As its author says; what is made from FLUX.1 [dev] is under the FLUX.1 [dev] Non-Commercial License.",
)
VARIANTS = (SCHNELL_KIND, DEV_KIND)

# Diffusers' layout only: not the same weights again as one file at the top (flux1-dev.safetensors, ae.safetensors).
FLUX_FILES = (
    "model_index.json",
    "scheduler/*.json",
    *(f"{part}/*.{kind}" for part in ("tokenizer", "tokenizer_2") for kind in ("json", "txt", "model")),
    *(f"{part}/*.json" for part in ("text_encoder", "text_encoder_2", "transformer", "vae")),
    *(f"{part}/*.safetensors" for part in ("text_encoder", "text_encoder_2", "transformer", "vae")),
)
FLUX_NEEDED = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json|tokenizer/tokenizer.json",
    "tokenizer/merges.txt|tokenizer/tokenizer.json",
    "tokenizer_2/tokenizer.json|tokenizer_2/spiece.model",
    *(f"{part}/config.json" for part in ("text_encoder", "text_encoder_2", "transformer", "vae")),
    *(f"{part}/model.safetensors|{part}/model.safetensors.index.json" for part in ("text_encoder", "text_encoder_2")),
    "transformer/diffusion_pytorch_model.safetensors.index.json|transformer/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)
CLIP_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
T5_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
DISTILLT5_FILES = ("config.json", "model.safetensors")


def _flux(name: str, repository: str, licence: str, restricted: bool = False) -> Source:
    folder = Repository(
        repository, FLUX_FILES, FLUX_NEEDED, checks=(("tokenizer", check_clip), ("tokenizer_2", check_t5))
    )
    size = TRANSFORMER_BYTES[name] + sum(OTHER_BYTES.values())
    return Source(name, (folder,), licence, size, gated=True, restricted=restricted)


SCHNELL_SOURCE = _flux(
    SCHNELL,
    "black-forest-labs/FLUX.1-schnell",
    "FLUX.1 [schnell] is Black Forest Labs', under the Apache License 2.0; the hub gives it to accounts that agreed to "
    f"its terms: {HUB}/black-forest-labs/FLUX.1-schnell",
)
DEV_SOURCE = _flux(
    DEV,
    "black-forest-labs/FLUX.1-dev",
    "FLUX.1 [dev] is Black Forest Labs', under the FLUX.1 [dev] Non-Commercial License, which you accept by using it; "
    f"the hub gives it to accounts that accepted the licence: {HUB}/black-forest-labs/FLUX.1-dev",
    restricted=True,
)
DISTILLT5_SOURCE = Source(
    "distillt5",
    (Repository("LifuWang/DistillT5", DISTILLT5_FILES, DISTILLT5_FILES),),
    "DistillT5 is its authors' (arXiv 2503.19897). We know of no licence of its weights; see whether one is stated at "
    f"{HUB}/LifuWang/DistillT5 before you use it.",
    518_250_000,
    restricted=True,
    brings="distill_t5",
)
# CLIP's are the four files in which FLUX.1 has them, so that they are read in the same way. T5's are Flan-T5's, of
# which DistillT5 was made: its spiece.model is byte for byte that of T5 v1.1 XXL, whose own repository has no
# tokenizer.json.
TOKENIZERS_SOURCE = Source(
    "tokenizers",
    (
        Repository(
            "openai/clip-vit-large-patch14", CLIP_FILES, CLIP_FILES, part="tokenizer", checks=((".", check_clip),)
        ),
        Repository("google/flan-t5-base", T5_FILES, T5_FILES, "tokenizer_2", ((".", check_t5),)),
    ),
    "CLIP's vocabulary is OpenAI's, published with CLIP's source under the MIT License; T5's is Google's, under the "
    "Apache License 2.0.",
    3_900_000,
    brings="tokenizers",
)
SOURCES = (SCHNELL_SOURCE, DEV_SOURCE, DISTILLT5_SOURCE, TOKENIZERS_SOURCE)
