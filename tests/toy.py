"""A family of models that is as small as one can be, and other than FLUX.1: it keeps the engine free of FLUX.1.

One text encoder, no pooled prompt, one pixel patch of a map that is a quarter of the picture, blocks of one stream.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.families.facts import Config, Configs, Cost, Layout, Part, Size, Tokenizer, Traits, Variant
from engine.families.family import Family
from engine.families.flux1.parts import VAE_KEYS
from engine.families.networks import Conditioning, Cut, Networks, Tokens
from engine.families.rules import Shapes, count
from engine.untrusted.configs import LAYERS, WIDTH, Keys, truth

VOCABULARY, WORDS, SCALE = 257, 16, 4
TOY_KEYS = Keys({"width": WIDTH, "layers": LAYERS, "channels": WIDTH, "vocab_size": WIDTH})
KIND = Variant("toy", "Toy", "toy", "The toy is part of the tests.")


class Block(nn.Module):
    """Attention and a feed-forward net over one stream, both modulated by the step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mod, self.qkv = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        shift, scale, gate = self.mod(step)[:, None].chunk(3, dim=-1)
        normed = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
        query, key, value = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(normed).chunk(3, dim=-1))
        x = x + gate * self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        wide: Tensor = F.gelu(self.up(F.layer_norm(x, x.shape[-1:])))
        return torch.add(x, self.down(wide))


class ToyTransformer(nn.Module):
    """Image tokens behind the prompt's to velocities."""

    def __init__(self, width: int, layers: int, channels: int, vocab_size: int = 0) -> None:
        super().__init__()
        self.time, self.into = nn.Linear(2, width), nn.Linear(channels, width)
        self.toy_blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.back = nn.Linear(width, channels)

    def forward(self, latents: Tensor, words: Tensor, places: Tensor) -> Tensor:
        x = torch.cat([words, self.into(latents) + places], dim=1)
        step = self.time(x[:, :1, :2])
        for block in self.toy_blocks:
            x = block(x, step)
        velocity: Tensor = self.back(x[:, words.shape[1] :])
        return velocity


class ToyEncoder(nn.Module):
    """Rows of a table to a sequence."""

    def __init__(self, width: int, layers: int, channels: int = 0, vocab_size: int = VOCABULARY) -> None:
        super().__init__()
        self.toy_table = nn.Embedding(vocab_size, width)
        self.toy_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, rows: Tensor) -> Tensor:
        for layer in self.toy_layers:
            rows = rows + F.gelu(layer(rows))
        return rows


class ToyNetworks(Networks):
    """See `Networks`."""

    def build(self, part: str, config: Config) -> nn.Module:
        kinds: Mapping[str, Callable[..., nn.Module]] = {"transformer": ToyTransformer, "text_encoder": ToyEncoder}
        with torch.device("meta"):
            return kinds[part](**config) if part in kinds else AutoencoderKL(**config)

    def cut(self, part: str, module: Any) -> Cut:
        if part == "transformer":
            blocks = range(len(module.toy_blocks))
            units = [f"toy_blocks.{i}.{layer}" for i in blocks for layer in ("qkv", "out", "up", "down")]
            return Cut(tuple(units), ("time", *(f"toy_blocks.{i}.mod" for i in blocks)), repeats=("toy_blocks",))
        if part == "text_encoder":
            units = [f"toy_layers.{i}" for i in range(len(module.toy_layers))]
            return Cut(tuple(units), host_tables=("toy_table.weight",), repeats=("toy_layers",))
        return Cut(unused=("encoder.", "quant_conv."))

    def load_tokenizer(self, name: str, folder: Path) -> Any:
        return json.loads((folder / "vocab.json").read_text())["letters"]

    def tokenize(self, prompt: str, tokenizers: Mapping[str, Any], limits: Mapping[str, int]) -> Tokens:
        found = [1 + tokenizers["tokenizer"].find(letter) for letter in prompt]
        limit = limits["tokenizer"]
        return Tokens({"tokenizer": torch.tensor([(found + [0] * limit)[:limit]])}, len(found), limit)

    @torch.no_grad()
    def encode(
        self, part: str, module: Any, tokens: Tokens, rows: Callable[[Tensor], Tensor], device: torch.device
    ) -> Conditioning:
        read = module(rows(tokens.ids["tokenizer"]).to(device))
        return {"words": read if read.is_meta else read.cpu()}

    def unread(self, configs: Configs, size: Size, dtype: torch.dtype) -> Conditioning:
        return {"words": torch.empty(1, size.text_tokens, configs["transformer"]["width"], dtype=dtype)}

    def noise(self, seed: int, size: Size) -> Tensor:
        return torch.randn(size.shape, generator=torch.Generator().manual_seed(seed))

    def step_input(
        self,
        embedder: Any,
        sigma: Tensor,
        guidance: float | None,
        conditioning: Conditioning,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Tensor:
        embedded: Tensor = embedder(torch.stack([sigma, 1 - sigma])[None].to(device, dtype))
        return embedded

    def prepare(
        self, conditionings: Sequence[Conditioning], size: Size, device: torch.device, dtype: torch.dtype
    ) -> Conditioning:
        words = torch.cat([each["words"].to(device, dtype) for each in conditionings])
        places = torch.linspace(0, 1, size.tokens, device=device, dtype=dtype)[None, :, None]
        return {"words": words, "places": places}

    def velocity(self, module: Any, latents: Tensor, ready: Conditioning, prompts: slice) -> Tensor:
        words = ready["words"][prompts]
        velocity: Tensor = module(latents.to(words.dtype).expand(len(words), -1, -1), words, ready["places"])
        return velocity

    def unpacked(self, latents: Tensor, size: Size) -> Tensor:
        tokens: Tensor = latents.transpose(1, 2)
        return tokens.reshape(1, size.channels, size.rows, size.columns)

    def to_decoder(self, latents: Tensor, decoder: Any, size: Size) -> Tensor:
        return self.unpacked(latents, size)


class Toy(Family):
    """See `Family`."""

    name = title = "toy"
    pipelines = ("ToyPipeline",)
    parts = (
        Part("transformer", "toy", "toy", "denoise", TOY_KEYS, "ToyTransformer", forms=frozenset({"fp8"})),
        Part("vae", "autoencoder", "autoencoder", "decode", VAE_KEYS, "AutoencoderKL"),
        Part("text_encoder", "letters", "letters", "encode", TOY_KEYS, "ToyEncoder"),
    )
    tokenizers = (
        Tokenizer("tokenizer", "letters", "text_encoder", VOCABULARY, lambda _: None, lambda _: VOCABULARY, "", ()),
    )
    variants = (KIND,)
    published = ()
    sources = ()
    side = 128
    step_reads_prompt = False
    index = Keys({"is_hasty": truth()})
    networks = ToyNetworks()

    def part_of(self, names: Sequence[str]) -> str:
        for start, part in (("toy_blocks.", "transformer"), ("toy_table.", "text_encoder"), ("decoder.", "vae")):
            if any(name.startswith(start) for name in names):
                return part
        return ""

    def layout(self, part: str, shapes: Shapes) -> Layout:
        if part == "vae":
            names = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(3)]
            if lacking := [name for name in (*names, "decoder.conv_in.weight") if name not in shapes]:
                return Layout("toy", lacking[0])
            widths, latents = [shapes[name][0] for name in names], shapes["decoder.conv_in.weight"][1]
            config = {"latent_channels": latents, "block_out_channels": widths, "layers_per_block": 1}
            return Layout("toy", {**config, "mid_block_add_attention": False})
        width, vocabulary = (shapes.get(name, (0, 0)) for name in ("toy_blocks.0.out.weight", "toy_table.weight"))
        layers = count(shapes, "toy_blocks." if part == "transformer" else "toy_layers.")
        channels = shapes.get("back.weight", (0,))[0]
        sizes = {"width": width[0] or vocabulary[1], "layers": layers, "channels": channels or 1}
        return Layout("toy", {**sizes, "vocab_size": vocabulary[0] or 1})

    def eight_bit(self, part: str, name: str) -> bool:
        leaves = ("qkv.weight", "out.weight", "up.weight", "down.weight")
        return part == "transformer" and name.startswith("toy_blocks.") and name.endswith(leaves)

    def misfit(self, part: str, config: Config, core: Config) -> str:
        given = {"vae": "latent_channels", "text_encoder": "width"}.get(part)
        wanted = core["channels"] if part == "vae" else core["width"]
        return "" if given is None or config[given] == wanted else f"gives {config[given]}, {wanted} is wanted"

    def traits(self, configs: Configs) -> Traits:
        hasty = configs.get("index", {}).get("is_hasty")
        return Traits(steps=1 if hasty else 3, side=64, guidance=None, tokens={"tokenizer": WORDS})

    def size(self, configs: Configs, limits: Mapping[str, int], width: int, height: int) -> Size:
        channels = configs["vae"]["latent_channels"]
        return Size(width, height, height // SCALE, width // SCALE, channels, SCALE, channels, limits["tokenizer"])

    def cost(self, part: str, config: Config, size: Size) -> Cost:
        return Cost(1e6 * size.tokens)

    def width(self, config: Config) -> int:
        return int(config["width"])

    def variant(self, config: Config) -> Variant:
        return KIND


def save_toy(folder: Path, width: int = 64, layers: int = 3, *, hasty: bool = False) -> None:
    """Write a toy with random weights in diffusers' layout. A `hasty` one takes a single step, by its index alone."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    sizes: dict[str, Any] = {"block_out_channels": [8, 8, 16], "latent_channels": 6, "norm_num_groups": 4}
    plain = {"mid_block_add_attention": False, "use_quant_conv": False, "use_post_quant_conv": False}
    vae = AutoencoderKL(**blocks, **sizes, **plain, sample_size=64, shift_factor=0.0)
    networks: tuple[tuple[str, Any, dict[str, int]], ...] = (
        ("transformer", ToyTransformer, {"width": width, "layers": layers, "channels": 6, "vocab_size": 1}),
        ("text_encoder", ToyEncoder, {"width": width, "layers": layers, "channels": 1, "vocab_size": VOCABULARY}),
    )
    for name, network, config in networks:
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file(network(**config).state_dict(), folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps({"_class_name": network.__name__, **config}))
    vae.save_pretrained(folder / "vae")
    for place, value in (
        ("model_index.json", {"_class_name": "ToyPipeline", "is_hasty": hasty}),
        ("scheduler/scheduler_config.json", {"shift": 2.0}),
        ("tokenizer/vocab.json", {"letters": "abcdefghijklmnopqrstuvwxyz "}),
    ):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(json.dumps(value))
