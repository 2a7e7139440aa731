"""Weights from safetensors files into diffusers' and transformers' own modules, a tensor at a time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from engine.models.folder import ModelFolder
from engine.request import RequestError

TIED = {"encoder.embed_tokens.weight": "shared.weight"}  # T5 stores its embedding once
PROGRESS_EVERY_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class LoadedBytes:
    """How much of a component has been read."""

    component: str
    done_bytes: int
    total_bytes: int


def empty_component(folder: ModelFolder, component: str) -> Any:
    """The component's module with its real configuration and no weights (parameters on the meta device)."""
    config = folder.configs[component]
    try:
        with init_empty_weights(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if component == "transformer":
                return FluxTransformer2DModel.from_config(config)
            if component == "vae":
                return AutoencoderKL.from_config(config)
            if component == "text_encoder":
                return CLIPTextModel(CLIPTextConfig.from_dict(config))
            return T5EncoderModel(T5Config.from_dict(config))
    except Exception as error:  # whatever a wrong configuration may cause in three libraries
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            "model", f"the configuration of {component} in {str(folder.path)!r} is wrong: {reason}"
        ) from None


def load_component(folder: ModelFolder, component: str, dtype: torch.dtype) -> Generator[LoadedBytes, None, Any]:
    """Read a component's weights in `dtype`; yields progress, returns the module in eval mode, without gradients.

    Raises `RequestError` that names the file and the tensor where something is missing, spare or misshapen.
    """
    module = empty_component(folder, component)
    wanted = {name: p.shape for name, p in module.state_dict().items()}
    state: dict[str, Tensor] = {}
    done, reported, total = 0, 0, folder.bytes[component]
    yield LoadedBytes(component, 0, total)
    for file in folder.files[component]:
        try:
            with safe_open(file, framework="pt") as weights:
                for stored in weights.keys():  # noqa: SIM118 (not a dict)
                    name = _current_name(stored, wanted)
                    if name.endswith("position_ids"):
                        continue  # a constant that older transformers stored
                    if name not in wanted:
                        raise RequestError("model", f"{str(file)!r} holds an unknown tensor {stored!r}.")
                    tensor = weights.get_tensor(stored)
                    if tensor.shape != wanted[name]:
                        raise RequestError(
                            "model",
                            f"{stored!r} in {str(file)!r} has shape {list(tensor.shape)}, "
                            f"the model needs {list(wanted[name])}.",
                        )
                    done += tensor.nbytes
                    state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
                    if done - reported >= PROGRESS_EVERY_BYTES:
                        reported = done
                        yield LoadedBytes(component, min(done, total), total)
        except SafetensorError as error:
            raise RequestError("model", f"{str(file)!r} is broken ({error}); download it again.") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise RequestError("model", f"{str(file)!r} cannot be read: {reason}.") from None
    for name, source in TIED.items():
        if name in wanted and source in state:
            state.setdefault(name, state[source])
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise RequestError(
            "model", f"{str(folder.path / component)!r} lacks {len(missing)} tensors, the first is {missing[0]!r}."
        )
    module.load_state_dict(state, strict=True, assign=True)
    if isinstance(module, PreTrainedModel):
        module.tie_weights()  # one parameter for both names, or a card would hold the embedding twice
    yield LoadedBytes(component, total, total)
    return module.eval().requires_grad_(False)


def _current_name(stored: str, wanted: dict[str, Any]) -> str:
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
