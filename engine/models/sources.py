"""What `t2i models pull` brings from the model hub, and what is to be known before."""

from __future__ import annotations

from dataclasses import dataclass

from engine.models import flux1

HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the hub, and what is brought from it.

    `files` are patterns. Each entry of `needed` is a file that a complete copy has, or several (with `|`) of which it
    has one; the shards that an index names belong to it. `clip` and `t5` are folders of tokenizers, to be checked.
    """

    id: str
    files: tuple[str, ...]
    needed: tuple[str, ...]
    part: str = ""  # its name in the result of a source that has several
    clip: str | None = None
    t5: str | None = None

    @property
    def page(self) -> str:
        return f"{HUB}/{self.id}"


@dataclass(frozen=True, slots=True)
class Source:
    """What one name brings. `approximate_bytes` is for a list; the hub is asked for the true size before a download."""

    name: str
    repositories: tuple[Repository, ...]
    licence: str  # for the person, before the first byte
    approximate_bytes: int
    gated: bool = False  # the hub wants an account that agreed to the licence
    restricted: bool = False  # the licence is to be accepted first: it forbids some uses, or nobody knows it


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
    folder = Repository(repository, FLUX_FILES, FLUX_NEEDED, clip="tokenizer", t5="tokenizer_2")
    size = flux1.TRANSFORMER_BYTES[name] + sum(flux1.OTHER_BYTES.values())
    return Source(name, (folder,), licence, size, gated=True, restricted=restricted)


SCHNELL = _flux(
    flux1.SCHNELL,
    "black-forest-labs/FLUX.1-schnell",
    "FLUX.1 [schnell] is Black Forest Labs', under the Apache License 2.0; the hub gives it to accounts that agreed to "
    f"its terms: {HUB}/black-forest-labs/FLUX.1-schnell",
)
DEV = _flux(
    flux1.DEV,
    "black-forest-labs/FLUX.1-dev",
    "FLUX.1 [dev] is Black Forest Labs', under the FLUX.1 [dev] Non-Commercial License, which you accept by using it; "
    f"the hub gives it to accounts that accepted the licence: {HUB}/black-forest-labs/FLUX.1-dev",
    restricted=True,
)
DISTILLT5 = Source(
    "distillt5",
    (Repository("LifuWang/DistillT5", DISTILLT5_FILES, DISTILLT5_FILES),),
    "DistillT5 is its authors' (arXiv 2503.19897). We know of no licence of its weights; see whether one is stated at "
    f"{HUB}/LifuWang/DistillT5 before you use it.",
    518_250_000,
    restricted=True,
)
# CLIP's are the four files in which FLUX.1 has them, so that they are read in the same way. T5's are Flan-T5's, of
# which DistillT5 was made: its spiece.model is byte for byte that of T5 v1.1 XXL, whose own repository has no
# tokenizer.json.
TOKENIZERS = Source(
    "tokenizers",
    (
        Repository("openai/clip-vit-large-patch14", CLIP_FILES, CLIP_FILES, part="tokenizer", clip="."),
        Repository("google/flan-t5-base", T5_FILES, T5_FILES, part="tokenizer_2", t5="."),
    ),
    "CLIP's vocabulary is OpenAI's, published with CLIP's source under the MIT License; T5's is Google's, under the "
    "Apache License 2.0.",
    3_900_000,
)
SOURCES = {source.name: source for source in (SCHNELL, DEV, DISTILLT5, TOKENIZERS)}
