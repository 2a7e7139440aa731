"""FLUX.1's networks: diffusers' transformer and autoencoder, transformers' CLIP and T5, and DistillT5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from engine.families.family import Config
from engine.families.flux1 import blocks, cuts, distill_t5
from engine.families.flux1.parts import CLIP, CLIP_KEYS, DISTILL_T5, T5, T5_KEYS, TRANSFORMER_KEYS, VAE_KEYS
from engine.families.networks import Cut, Networks
from engine.quantization import fp8, int8
from engine.quantization.salience import Input
from engine.untrusted.configs import attention_of, for_network


class Flux1Networks(Networks):
    """See `Networks`."""

    def build(self, part: str, config: Config) -> nn.Module:
        module: Any
        match part:
            case "text_encoder":  # has a constant beside its weights, which must be a real one
                known = for_network(config, CLIP_KEYS)
                with init_empty_weights():
                    module = CLIPTextModel(CLIPTextConfig(**known, attn_implementation=attention_of(CLIPTextModel)))
            case "text_encoder_2":
                known = for_network(config, T5_KEYS)
                with torch.device("meta"):
                    module = T5EncoderModel(T5Config(**known, attn_implementation=attention_of(T5EncoderModel)))
            case "transformer":
                with torch.device("meta"):
                    module = FluxTransformer2DModel(**for_network(config, TRANSFORMER_KEYS))
            case "vae":
                with torch.device("meta"):
                    module = AutoencoderKL(**for_network(config, VAE_KEYS))
            case _:
                module = distill_t5.empty(config)
        network: nn.Module = module
        return network

    def cut(self, part: str, module: nn.Module) -> Cut:
        return cuts.cut(part, module)

    def inputs(self, config: Config) -> list[Input]:
        return cuts.inputs(config)

    def install_blocks(self, module: Any, dtype: torch.dtype, *, folded: bool) -> None:
        blocks.install(module, int8.KERNELS if folded else fp8.kernels(module.inner_dim, dtype), folded=folded)

    def tied(self, part: str) -> Mapping[str, str]:
        if part == DISTILL_T5:
            return {"encoder.encoder.embed_tokens.weight": "encoder.shared.weight"}
        return {"encoder.embed_tokens.weight": "shared.weight"} if part == T5 else {}

    def current_name(self, part: str, stored: str, wanted: Mapping[str, object]) -> str:
        if part != CLIP or stored in wanted:
            return stored
        prefix = "text_model."  # which version 5 of transformers dropped
        return stored.removeprefix(prefix) if stored.startswith(prefix) else prefix + stored


NETWORKS = Flux1Networks()
