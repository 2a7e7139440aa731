"""Models that are known by name and cannot be run here, and kinds of quantization that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.untrusted.headers import Header

PIPELINES = {  # by the class that their model_index.json names
    "FluxKontextPipeline": "FLUX.1 Kontext, which edits pictures",
    "FluxKontextInpaintPipeline": "FLUX.1 Kontext, which edits pictures",
    "FluxFillPipeline": "FLUX.1 Fill, which fills gaps in pictures",
    "FluxControlPipeline": "FLUX.1 Canny or Depth, which follows a picture",
    "FluxControlNetPipeline": "FLUX.1 with a ControlNet",
    "FluxPriorReduxPipeline": "FLUX.1 Redux, which varies pictures",
    "Flux2Pipeline": "FLUX.2",
    "Flux2KleinPipeline": "FLUX.2",
    "ChromaPipeline": "Chroma",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
    "StableDiffusionPipeline": "Stable Diffusion",
}


def _ends(*ends: str) -> Callable[[Mapping[str, Header]], bool]:
    return lambda names: any(name.endswith(ends) for name in names)


def _holds(*parts: str) -> Callable[[Mapping[str, Header]], bool]:
    return lambda names: any(part in name for name in names for part in parts)


def _width_of_input(*widths: int) -> Callable[[Mapping[str, Header]], bool]:
    def is_it(names: Mapping[str, Header]) -> bool:
        for name, header in names.items():
            if name.endswith(("img_in.weight", "x_embedder.weight")) and "pos_embed" not in name:
                shape = header.tensors[name].shape
                return len(shape) == 2 and shape[1] in widths
        return False

    return is_it


TAKE_DEV = "take FLUX.1 [dev] or [schnell]"
OTHERS: tuple[tuple[str, str, Callable[[Mapping[str, Header]], bool]], ...] = (
    (
        "quantized to 4 bits by bitsandbytes (NF4 or FP4)",
        "take the FP8, Q8_0 or BF16 file of the model",
        _holds(".absmax", ".quant_map", "bitsandbytes__"),
    ),
    (
        "quantized to 4 bits by SVDQuant (Nunchaku)",
        "take the FP8, Q8_0 or BF16 file of the model",
        _ends(".qweight", ".wscales", ".wtscale", ".proj_down", ".lora_down", ".smooth_factor", ".smooth"),
    ),
    (
        "quantized to 8 bits by bitsandbytes (LLM.int8)",
        "take the FP8, Q8_0 or BF16 file of the model",
        _ends(".SCB", ".weight_format"),
    ),
    (
        "quantized in NVFP4 or with input scales folded in",
        "take the FP8, Q8_0 or BF16 file of the model",
        _ends(".weight_scale_2", ".pre_quant_scale"),
    ),
    (
        "a LoRA, not a model",
        "LoRAs cannot be used yet",
        _holds(".lora_A.", ".lora_B.", ".lora_up.", ".lora_down.", "lora_unet_", "lora_te", ".lokr_", ".hada_w"),
    ),
    ("FLUX.2", TAKE_DEV, _holds("double_stream_modulation_img", "single_stream_modulation")),
    ("Chroma", TAKE_DEV, _holds("distilled_guidance_layer.")),
    ("HunyuanVideo", TAKE_DEV, _holds("individual_token_refiner.")),
    ("a ControlNet", TAKE_DEV, _holds("controlnet_", "control_model.", "input_hint_block")),
    ("an IP-Adapter or Redux", TAKE_DEV, _holds("image_proj.", "ip_adapter", "redux_up", "redux_down")),
    ("FLUX.1 Fill", TAKE_DEV, _width_of_input(384)),
    ("FLUX.1 Canny or Depth", TAKE_DEV, _width_of_input(128)),
    ("a tiny autoencoder for previews (TAESD)", "take FLUX.1's own, ae.safetensors", _holds("decoder.layers.3.conv.")),
    ("Stable Diffusion 3", TAKE_DEV, _holds("joint_blocks.")),
    (
        "Stable Diffusion XL",
        TAKE_DEV,
        _holds("conditioner.embedders.1.", "add_embedding.linear_1", "diffusion_model.label_emb."),
    ),
    (
        "Stable Diffusion",
        TAKE_DEV,
        _holds("input_blocks.", "down_blocks.0.attentions.", "cond_stage_model.transformer."),
    ),
    (
        "umT5, another model's text encoder",
        "take T5-XXL (t5xxl)",
        _holds("encoder.block.1.layer.0.SelfAttention.relative_attention_bias", "enc.blk.1.attn_rel_b"),
    ),
)
