"""Small random models in diffusers' folder layout, of schnell's and of dev's kind: the real classes, few weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from engine.demo.vocabulary import clip_tokenizer, t5_tokenizer
from engine.families.facts import Size
from engine.families.flux1 import FLUX1
from engine.precision import FP8
from engine.weights.forms import Form

FP8_FORM = Form(FLUX1, FP8)


def tiny_pipeline(guided: bool, seed: int = 0) -> FluxPipeline:
    """A random FluxPipeline: `guided` is dev's kind (guidance embedded, dynamic shift), else schnell's."""
    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            projection_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    text_encoder_2 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_2),
            d_model=48,
            d_kv=16,
            num_heads=3,
            d_ff=64,
            num_layers=2,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
    )
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=guided,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=128,
        scaling_factor=0.36,
        shift_factor=0.12,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=guided,  # FLUX's has it, the demo's has not
    )
    for module in (text_encoder, text_encoder_2, transformer, vae):
        module.eval()  # T5 has dropout
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if guided else 1.0, use_dynamic_shifting=guided),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def save_tiny(folder: Path, guided: bool, seed: int = 0) -> FluxPipeline:
    """Write a tiny model to `folder`; returns it as diffusers' own pipeline."""
    pipeline = tiny_pipeline(guided, seed)
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux_size(width: int, height: int, channels: int = 16, text_tokens: int = 512) -> Size:
    """The geometry of a picture of FLUX.1's, with so many latent channels."""
    return FLUX1.size({"vae": {"latent_channels": channels}}, {"tokenizer_2": text_tokens}, width, height)
