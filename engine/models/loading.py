"""diffusers' and transformers' own modules without weights, and which stored tensors they need."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
)

from engine.folders import shown_path
from engine.models.configs import attention_of, for_network
from engine.models.distill_t5 import empty as empty_distill_t5
from engine.models.layouts import Found
from engine.models.model import DISTILLED, Model, component_in
from engine.models.weights import WeightFiles
from engine.request import RequestError
from engine.text import quoted

# T5 stores its embedding once, under either name.
TIED = {
    "encoder.embed_tokens.weight": "shared.weight",
    "encoder.encoder.embed_tokens.weight": "encoder.shared.weight",
}


def load_transformer(path: str | Path, dtype: torch.dtype = torch.float32) -> FluxTransformer2DModel:
    """A FLUX.1 transformer on the CPU in `dtype`, from any layout: a model's folder, its transformer's, or a file.

    The configuration comes from config.json, or from the file's shapes where there is none. Takes the memory of the
    model and of a few MB. Raises `RequestError` that names the file and the tensor where it cannot be used.
    """
    part = component_in(Path(path).expanduser(), "transformer")
    module = _empty("transformer", part.config, part.files[0].parent).eval()
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    with WeightFiles.open(part.files, "transformer", drop_pages=True) as files:
        names = check_tensors(wanted, files, place_of(part))
        for name in wanted:
            memory = torch.empty(wanted[name], dtype=dtype)
            files.read(names[name], memory)
            set_module_tensor_to_device(module, name, "cpu", value=memory, dtype=dtype)
    return module


def place_of(part: Found) -> Path:
    """The file or the folder of a part, for messages."""
    return part.files[0] if len(part.files) == 1 else part.files[0].parent


def empty_component(model: Model, component: str) -> Any:
    """The component's module with its real configuration and no weights (parameters on the meta device)."""
    return _empty(component, model.configs[component], model.path)


def _empty(component: str, config: Mapping[str, Any], place: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if component == DISTILLED:
                return empty_distill_t5(config)
            known = for_network(config, component)
            if component == "text_encoder":  # has a constant beside its weights, which must be a real one
                with init_empty_weights():
                    return CLIPTextModel(CLIPTextConfig(**known, attn_implementation=attention_of(CLIPTextModel)))
            with torch.device("meta"):
                if component == "transformer":
                    return FluxTransformer2DModel(**known)
                if component == "vae":
                    return AutoencoderKL(**known)
                return T5EncoderModel(T5Config(**known, attn_implementation=attention_of(T5EncoderModel)))
    except Exception as error:  # what a wrong configuration may cause in three libraries, though its values are allowed
        raise RequestError(
            "model", f"the configuration of {component} in {shown_path(place)} is wrong: {quoted(_line(error))}."
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def check_tensors(wanted: Mapping[str, tuple[int, ...]], files: WeightFiles, place: Path) -> dict[str, str]:
    """The name in `files` of every tensor that a component wants (shapes by name); nothing is read.

    Raises `RequestError` that names the file (or the `place` of all) and the tensor where something is missing, spare
    or misshapen.
    """
    names: dict[str, str] = {}
    for ours, tensor in files.tensors.items():
        name = current_name(ours, wanted)
        if name not in wanted:
            raise RequestError("model", f"{shown_path(tensor.file)} holds an unknown tensor {quoted(tensor.stored)}.")
        if tensor.shape != wanted[name]:
            raise RequestError(
                "model",
                f"{quoted(tensor.stored)} in {shown_path(tensor.file)} has shape {list(tensor.shape)}, "
                f"the model needs {list(wanted[name])}.",
            )
        if not tensor.dtype.is_floating_point:
            raise RequestError(
                "model",
                f"{quoted(tensor.stored)} in {shown_path(tensor.file)} holds whole numbers, where weights belong.",
            )
        names[name] = ours
    for name, source in TIED.items():
        if name in wanted and (name in names or source in names):
            names.setdefault(name, names.get(source, ""))
            names.setdefault(source, names[name])
    missing = sorted(wanted.keys() - names.keys())
    if missing:
        raise RequestError(
            "model",
            f"{shown_path(place)} lacks {len(missing)} tensors, the first is {quoted(missing[0])}; download it again.",
        )
    return names


def current_name(stored: str, wanted: Mapping[str, object]) -> str:
    """A stored tensor's name in the installed transformers: version 5 dropped CLIP's `text_model.` prefix."""
    if stored in wanted:
        return stored
    prefix = "text_model."
    return stored.removeprefix(prefix) if stored.startswith(prefix) else prefix + stored
