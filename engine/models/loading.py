"""diffusers' and transformers' own modules without weights, and which stored tensors they need."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from engine.models.folder import ModelFolder
from engine.models.weights import WeightFiles
from engine.quantization.fp8 import SCALE_SUFFIX
from engine.request import RequestError

TIED = {"encoder.embed_tokens.weight": "shared.weight"}  # T5 stores its embedding once


def empty_component(folder: ModelFolder, component: str) -> Any:
    """The component's module with its real configuration and no weights (parameters on the meta device)."""
    config = folder.configs[component]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if component == "text_encoder":  # has a constant beside its weights, which must be a real one
                with init_empty_weights():
                    return CLIPTextModel(CLIPTextConfig.from_dict(config))
            with torch.device("meta"):
                if component == "transformer":
                    return FluxTransformer2DModel.from_config(config)
                if component == "vae":
                    return AutoencoderKL.from_config(config)
                return T5EncoderModel(T5Config.from_dict(config))
    except Exception as error:  # whatever a wrong configuration may cause in three libraries
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            "model", f"the configuration of {component} in {str(folder.path)!r} is wrong: {reason}"
        ) from None


def check_tensors(
    wanted: Mapping[str, tuple[int, ...]], files: WeightFiles, place: Path, *, converted: bool = False
) -> dict[str, str]:
    """The stored name of every tensor that a component wants (shapes by name); nothing is read.

    `converted`: it is a file of our own, where FP8 weights have scales beside them.
    Raises `RequestError` that names the file (or the `place` of all) and the tensor where something is missing, spare
    or misshapen.
    """
    names: dict[str, str] = {}
    for stored, tensor in files.tensors.items():
        name = current_name(stored, wanted)
        if name.endswith("position_ids") or (converted and stored.endswith(SCALE_SUFFIX)):
            continue  # a constant that older transformers stored; the scales of our FP8 form
        if name not in wanted:
            raise RequestError("model", f"{str(tensor.file)!r} holds an unknown tensor {stored!r}.")
        if tensor.shape != wanted[name]:
            raise RequestError(
                "model",
                f"{stored!r} in {str(tensor.file)!r} has shape {list(tensor.shape)}, "
                f"the model needs {list(wanted[name])}.",
            )
        names[name] = stored
    for name, source in TIED.items():
        if name in wanted and (name in names or source in names):
            names.setdefault(name, names.get(source, ""))
            names.setdefault(source, names[name])
    missing = sorted(wanted.keys() - names.keys())
    if missing:
        raise RequestError("model", f"{str(place)!r} lacks {len(missing)} tensors, the first is {missing[0]!r}.")
    return names


def current_name(stored: str, wanted: Mapping[str, object]) -> str:
    """A stored tensor's name in the installed transformers: version 5 dropped CLIP's `text_model.` prefix."""
    if stored in wanted:
        return stored
    prefix = "text_model."
    return stored.removeprefix(prefix) if stored.startswith(prefix) else prefix + stored


def load_tokenizer(folder: Path) -> Any:
    """A component's tokenizer, from its tokenizer.json, or from the vocabulary files that FLUX.1 ships for CLIP."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # quiet: no fork warnings
    try:
        if (folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise RequestError("model", f"the tokenizer in {str(folder)!r} cannot be read: {reason}") from None
