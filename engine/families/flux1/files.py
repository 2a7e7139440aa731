"""How the files of FLUX.1's parts are told, and whose names they have. torch is not imported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from engine.families.facts import Layout
from engine.families.flux1 import distill_names, naming
from engine.families.flux1.parts import (
    CLIP,
    CLIP_TOKENIZER,
    DISTILL_T5,
    T5,
    T5_TOKENIZER,
    TOKENIZERS,
    TRANSFORMER,
    VAE,
)
from engine.families.others import TAKE_DEV
from engine.families.rules import Shapes
from engine.folders import shown_path
from engine.request import RequestError
from engine.text import quoted
from engine.untrusted import read_object
from engine.untrusted.headers import Header

BESIDE = re.compile(
    r"(text_encoders|cond_stage_model)\.(clip_l|t5xxl)\.(logit_scale|transformer\.text_projection\.weight)"
)
MAX_TOKENIZER_BYTES = 32 * 2**20


def part_of(names: Sequence[str]) -> str:
    """Which part has tensors of these names; "" where none has."""

    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    if has("double_blocks.", "single_blocks.", "single_transformer_blocks."):  # transformer_blocks are others', too
        return TRANSFORMER
    if has("final_projection."):
        return DISTILL_T5
    if has("encoder.block.", "enc.blk."):
        return T5
    if has("text_model.", "encoder.layers.", "transformer.resblocks."):
        return CLIP
    if has("decoder.up.", "decoder.up_blocks.", "decoder.mid"):
        return VAE
    return ""


def layout(part: str, shapes: Shapes) -> Layout:
    """Whose names the tensors of a part have."""

    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in shapes)

    match part:
        case "transformer" if has("double_blocks.", "single_blocks."):
            plain = {_plain_norm(name): shape for name, shape in shapes.items()}
            return Layout("BFL", naming.BFL.config(plain), naming.bfl_rules, plain=_plain_norm)
        case "transformer":
            return Layout("diffusers", naming.DIFFUSERS.config(shapes))
        case "vae" if has("decoder.up.", "encoder.down.", "decoder.mid."):
            return Layout("BFL", naming.ldm_config(shapes), naming.ldm_rules)
        case "vae":
            return Layout("diffusers", naming.diffusers_vae_config(shapes))
        case "text_encoder" if has("transformer.resblocks."):
            return Layout("OpenAI", naming.openai_clip_config(shapes), naming.openai_clip_rules)
        case "text_encoder":
            named = {_clip_name(name): shape for name, shape in shapes.items()}
            return Layout("transformers", naming.clip_config(named), ours=_clip_name)
        case "text_encoder_2":
            named = {naming.t5_name(name): shape for name, shape in shapes.items()}
            return Layout("transformers", naming.t5_config(named), ours=naming.t5_name)
    return Layout("DistillT5", distill_names.config_from_shapes(shapes), ours=distill_names.canonical_name)


def _plain_norm(name: str) -> str:
    """Newer programs call the query's and the key's normalization `weight`."""
    return name.removesuffix("weight") + "scale" if name.endswith(("query_norm.weight", "key_norm.weight")) else name


def _clip_name(name: str) -> str:
    return name.removeprefix("text_model.")


def look(names: Sequence[str], headers: Sequence[Header]) -> str:
    """A warning about a transformer's files, or "". Raises `RequestError` for what only looks like FLUX.1."""
    for header in headers:
        said = " ".join(
            value[:300] for key, value in header.metadata.items() if key.startswith(("modelspec.", "general."))
        )
        if "kontext" in said.lower():
            raise RequestError(
                "model", f"{shown_path(header.path)} is FLUX.1 Kontext, which cannot be run here; {TAKE_DEV}."
            )
    if headers and not any("mod" in name or ("norm" in name and "linear" in name) for name in names):
        raise RequestError("model", f"{shown_path(headers[0].path)} is a FLUX.1 of another build; {TAKE_DEV}.")
    for header in headers:
        if "kontext" in header.path.name.lower():
            return (
                f"{quoted(header.path.name)} sounds like FLUX.1 Kontext, which edits pictures; its tensors are "
                f"those of [dev], so it is run as [dev]."
            )
    return ""


def tokenizer_in(folder: Path) -> str:
    """Which of the tokenizers a folder seems to hold, by its files, then by its name; "" where it holds none."""
    if (folder / "spiece.model").is_file():
        return T5_TOKENIZER
    if (folder / "vocab.json").is_file():
        return CLIP_TOKENIZER if (folder / "merges.txt").is_file() else ""
    file = folder / "tokenizer.json"
    try:
        kind = read_object(file, MAX_TOKENIZER_BYTES)["model"]["type"] if file.is_file() else ""
    except (RequestError, TypeError, KeyError):
        kind = ""
    if kind in ("BPE", "Unigram"):
        return CLIP_TOKENIZER if kind == "BPE" else T5_TOKENIZER
    return next((tokenizer.name for tokenizer in TOKENIZERS if folder.name in tokenizer.folders), "")
