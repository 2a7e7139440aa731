"""FLUX.1's networks: diffusers' transformer and autoencoder, transformers' CLIP and T5, and DistillT5."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from engine.families.facts import Config, Configs, Size
from engine.families.flux1 import blocks, cuts, distill_t5, encode, tokenizers
from engine.families.flux1.latents import image_position_ids, noise, unpack
from engine.families.flux1.parts import (
    CLIP,
    CLIP_KEYS,
    CLIP_TOKENIZER,
    DISTILL_T5,
    PATCH_SIZE,
    T5,
    T5_KEYS,
    T5_TOKENIZER,
    TRANSFORMER,
    TRANSFORMER_KEYS,
    VAE_KEYS,
)
from engine.families.networks import Conditioning, Cut, Networks, Tokens
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

    def load_tokenizer(self, name: str, folder: Path) -> Any:
        return tokenizers.load(name, folder)

    def tokenize(self, prompt: str, tokenizers: Mapping[str, Any], limits: Mapping[str, int]) -> Tokens:
        return encode.tokenize(prompt, tokenizers, limits)

    def encode(
        self, part: str, module: Any, tokens: Tokens, rows: Callable[[Tensor], Tensor], device: torch.device
    ) -> Conditioning:
        if part == CLIP:
            return {"pooled": encode.pooled_embedding(module, tokens.ids[CLIP_TOKENIZER], device)}
        return {"sequence": encode.sequence_embedding(module, rows(tokens.ids[T5_TOKENIZER]), device)}

    def unread(self, configs: Configs, size: Size, dtype: torch.dtype) -> Conditioning:
        config = configs[TRANSFORMER]
        sequence = torch.empty(1, size.text_tokens, config["joint_attention_dim"], dtype=dtype)
        return {"sequence": sequence, "pooled": torch.empty(1, config["pooled_projection_dim"])}

    def noise(self, seed: int, size: Size) -> Tensor:
        return noise(seed, size.channels // PATCH_SIZE**2, size.width, size.height)

    def step_input(
        self,
        embedder: Any,
        sigma: Tensor,
        guidance: float | None,
        conditioning: Conditioning,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Tensor:
        """As `FluxTransformer2DModel.forward` computes it from timestep, guidance and pooled prompt."""
        pooled = conditioning["pooled"].to(device, dtype)
        timestep = sigma.to(device, dtype).expand(1) * 1000
        embedding: Tensor
        if guidance is None:
            embedding = embedder(timestep, pooled)
        else:
            scale = torch.full((1,), guidance, device=device, dtype=torch.float32)
            embedding = embedder(timestep, scale.to(dtype) * 1000, pooled)
        return F.silu(embedding)

    def prepare(
        self, conditionings: Sequence[Conditioning], size: Size, device: torch.device, dtype: torch.dtype
    ) -> Conditioning:
        sequences = torch.cat([each["sequence"].to(device, dtype) for each in conditionings])
        return {
            "sequences": sequences,
            "image_ids": image_position_ids(size.width, size.height).to(device, dtype),
            "text_ids": torch.zeros(sequences.shape[1], 3, device=device, dtype=dtype),
            "timestep": torch.zeros(1, device=device, dtype=dtype),  # not used: it is in the tables
        }

    def velocity(self, module: Any, latents: Tensor, ready: Conditioning, prompts: slice) -> Tensor:
        sequences = ready["sequences"][prompts]
        velocities: Tensor = module(
            hidden_states=latents.to(sequences.dtype).expand(len(sequences), -1, -1),
            encoder_hidden_states=sequences,
            timestep=ready["timestep"],
            img_ids=ready["image_ids"],
            txt_ids=ready["text_ids"],
            return_dict=False,
        )[0]
        return velocities

    def running(self, module: Any) -> AbstractContextManager[object]:
        kept: AbstractContextManager[object] = module.pos_embed.kept()
        return kept

    def unpacked(self, latents: Tensor, size: Size) -> Tensor:
        return unpack(latents, size.width, size.height)

    def to_decoder(self, latents: Tensor, decoder: Any, size: Size) -> Tensor:
        scaled: Tensor = self.unpacked(latents, size) / decoder.config.scaling_factor + decoder.config.shift_factor
        return scaled

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
