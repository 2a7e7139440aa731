"""FLUX.1 by Black Forest Labs: [schnell], [dev], and models of their shape, as the embedded demo model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.families.facts import Config, Configs, Cost, Layout, Size, Traits, Variant
from engine.families.family import Family
from engine.families.flux1 import distill_names, files
from engine.families.flux1 import published as facts
from engine.families.flux1.parts import (
    CLIP,
    CLIP_TOKENIZER,
    PARTS,
    PATCH_SIZE,
    T5,
    T5_TOKENIZER,
    TOKENIZERS,
    TRANSFORMER,
    VAE,
    VAE_SCALE,
)
from engine.families.rules import Shapes
from engine.untrusted.headers import Header

if TYPE_CHECKING:
    from engine.families.networks import Networks

LATENT_STAGES = 4  # of the autoencoder, which reduces 8 times
ELEMENTWISE_PASSES = 34  # over a block's tokens x width, beside the matrix products
DECODER_OPERATIONS_PER_PIXEL = 2.2e-6 * 25.6e12  # seconds on an RTX 3060 times what that computes in one


class Flux1(Family):
    """A transformer of double and single blocks, read to by CLIP-L and T5-XXL, with a 16-channel autoencoder."""

    name = "flux1"
    title = "FLUX.1"
    pipelines = ("FluxPipeline",)
    parts = PARTS
    tokenizers = TOKENIZERS
    variants = facts.VARIANTS
    published = tuple(map(facts.published, facts.NAMES))
    sources = facts.SOURCES
    side = 1024

    @property
    def networks(self) -> Networks:
        from engine.families.flux1.networks import NETWORKS

        return NETWORKS

    def key_of(self, part: str) -> str:
        return part  # its caches are older than other families

    def part_of(self, names: Sequence[str]) -> str:
        return files.part_of(names)

    def layout(self, part: str, shapes: Shapes) -> Layout:
        return files.layout(part, shapes)

    def eight_bit(self, part: str, name: str) -> bool:
        path, _, parameter = name.rpartition(".")
        layer = path.rpartition(".")[2]
        if parameter != "weight":
            return False
        if part == TRANSFORMER:  # norm_q, norm_added_k are no linears
            return path.startswith(("transformer_blocks.", "single_transformer_blocks.")) and layer[:4] != "norm"
        if part == T5:
            return path.startswith("encoder.block.") and layer not in ("layer_norm", "relative_attention_bias")
        return False

    def beside(self, name: str) -> bool:
        return files.BESIDE.fullmatch(name) is not None

    def look(self, part: str, names: Sequence[str], headers: Sequence[Header]) -> str:
        return files.look(names, headers) if part == TRANSFORMER else ""

    def tokenizer_in(self, folder: Path) -> str:
        return files.tokenizer_in(folder)

    def misfit(self, part: str, config: Config, core: Config) -> str:
        match part:
            case "vae":
                if len(config["block_out_channels"]) != LATENT_STAGES:
                    return "does not reduce 8 times, as FLUX.1's does"
                wanted, given, what = core["in_channels"], 4 * config["latent_channels"], "channels"
            case "text_encoder":
                wanted, given, what = core["pooled_projection_dim"], config["hidden_size"], "numbers a prompt"
            case "text_encoder_2":
                wanted, given, what = core["joint_attention_dim"], config["d_model"], "numbers a token"
            case "distill_t5":
                wanted, given, what = core["joint_attention_dim"], config["project_out_dim"], "numbers a token"
            case _:
                return ""
        return "" if wanted == given else f"gives {given} {what}, the transformer takes {wanted}"

    def foreign(self, part: str, config: Config) -> str:
        if part != VAE or config["latent_channels"] != facts.VAE["latent_channels"]:
            return ""
        # Stable Diffusion 3's has the same shapes.
        is_ours = abs(config.get("scaling_factor", 0) - facts.VAE["scaling_factor"]) <= 0.01
        return "" if is_ours else "is another model's: it scales latents in another way"

    def said(self, part: str, said: Config, told: Config) -> Config:
        inner = said.get("text_config")  # of a whole CLIP, in whose file the text encoder is one of two parts
        return {**told, **inner} if part == CLIP and isinstance(inner, dict) else said

    def config(self, part: str, shapes: Shapes, said: Config) -> dict[str, Any]:
        return distill_names.config_from_shapes(shapes, said)

    def traits(self, configs: Configs) -> Traits:
        guided = bool(configs[TRANSFORMER].get("guidance_embeds"))
        return Traits(
            steps=28 if guided else 4,
            side=configs[VAE].get("sample_size", 0),
            guidance=3.5 if guided else None,
            tokens={
                CLIP_TOKENIZER: configs[CLIP]["max_position_embeddings"],
                T5_TOKENIZER: 512 if guided else 256,
            },
        )

    def size(self, configs: Configs, limits: Mapping[str, int], width: int, height: int) -> Size:
        side = VAE_SCALE * PATCH_SIZE
        return Size(
            width,
            height,
            rows=height // side,
            columns=width // side,
            channels=int(configs[VAE]["latent_channels"]) * PATCH_SIZE**2,
            scale=VAE_SCALE,
            latent_channels=int(configs[VAE]["latent_channels"]),
            text_tokens=limits[T5_TOKENIZER],
        )

    def cost(self, part: str, config: Config, size: Size) -> Cost:
        if part == VAE:  # as published: 1.7 s at 1024x768 on an RTX 3060
            share = (config["block_out_channels"][0] / facts.VAE["block_out_channels"][0]) ** 2
            return Cost(DECODER_OPERATIONS_PER_PIXEL * size.width * size.height * share)
        if part == TRANSFORMER:
            width, blocks = self.width(config), config["num_layers"] + config["num_single_layers"]
            tokens = size.tokens + size.text_tokens
            return Cost(
                operations=2 * tokens * blocks * 12 * width**2,
                attention=4 * tokens**2 * width * blocks,
                elements=ELEMENTWISE_PASSES * blocks * tokens * width,
            )
        if part == CLIP:
            return Cost(0.0)  # of a prompt's 77 tokens
        layer = 4 * config["d_model"] * config["num_heads"] * config["d_kv"] + 3 * config["d_model"] * config["d_ff"]
        return Cost(2 * size.text_tokens * layer * config["num_layers"])

    def width(self, config: Config) -> int:
        return int(config["num_attention_heads"]) * int(config["attention_head_dim"])

    def variant(self, config: Config) -> Variant:
        return facts.DEV_KIND if config.get("guidance_embeds") else facts.SCHNELL_KIND


FLUX1 = Flux1()
