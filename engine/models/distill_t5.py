"""DistillT5, a small T5 with a projection, in the place of T5-XXL (arXiv:2503.19897).

Its network is transformers' T5EncoderModel, which knows nothing of the projection, so the two are put together here;
the author's own class does not load with transformers 5. FLUX.1 was trained without an attention mask, and DistillT5,
too: pads are part of the input.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from engine.folders import shown_path
from engine.models.configs import attention_of
from engine.models.distill_names import TIED_TABLE
from engine.models.layouts import Found
from engine.models.model import DISTILLED, component_in, distilled_config
from engine.models.weights import WeightFiles
from engine.request import RequestError

T5_XXL_WIDTH = 4096
T5_FIELDS = (
    *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj", "layer_norm_epsilon"),
    *("relative_attention_num_buckets", "relative_attention_max_distance"),
)


class DistillT5(nn.Module):
    """Token ids to the sequence that FLUX.1's transformer reads."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, out = config["d_model"], config["project_out_dim"]
        fields = {name: config[name] for name in T5_FIELDS}
        fields |= {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
        self.encoder: Any = T5EncoderModel(T5Config(**fields, attn_implementation=attention_of(T5EncoderModel)))
        self.final_projection = nn.Sequential(
            nn.Linear(width, out, bias=False), nn.ReLU(), nn.Dropout(0.1), nn.Linear(out, out, bias=False)
        )

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        """Ids [B, S], or their rows of the embedding [B, S, d_model], to [B, S, project_out_dim]."""
        if inputs_embeds is None:
            hidden = self.encoder(input_ids=input_ids).last_hidden_state
        else:
            hidden = self.encoder(inputs_embeds=inputs_embeds).last_hidden_state
        sequence: Tensor = self.final_projection(hidden)
        return sequence


def empty(config: Mapping[str, Any]) -> DistillT5:
    """The network of this configuration (see `distill_names.config_from_shapes`), its parameters on the meta device."""
    with torch.device("meta"):
        module = DistillT5(config)
    return tied(module).eval()


def tied(module: DistillT5) -> DistillT5:
    """Make the encoder look up its embedding in the one table that there is."""
    module.encoder.encoder.embed_tokens = module.encoder.shared
    return module


def load(path: str | Path, dtype: torch.dtype = torch.float32) -> DistillT5:
    """DistillT5 on the CPU in `dtype`, from its folder or its file: called on ids [B, S], it gives [B, S, width].

    Raises `RequestError` that names the file and the tensor where it cannot be used.
    """
    from engine.models.loading import check_tensors, place_of  # it builds `empty` networks, and so imports this module

    try:
        part = _part(Path(path).expanduser())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = empty(distilled_config(part))
        wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        weights: dict[str, Tensor] = {}
        with WeightFiles.open(part.files, DISTILLED, drop_pages=True) as files:
            names = check_tensors(wanted, files, place_of(part))
            for name in wanted.keys() - {TIED_TABLE}:
                weights[name] = torch.empty(wanted[name], dtype=dtype)
                files.read(names[name], weights[name])
    except RequestError as error:
        raise RequestError("distill", str(error), error.machine) from None
    module.load_state_dict(weights, strict=False, assign=True)
    return tied(module).requires_grad_(False)


def _part(path: Path) -> Found:
    """What lies there. Raises `RequestError` with the reason where it is no DistillT5."""
    try:
        return component_in(path, DISTILLED)
    except RequestError as error:
        try:
            t5 = component_in(path, "text_encoder_2")
        except RequestError:
            raise error from None
    if t5.config["d_model"] == T5_XXL_WIDTH:
        raise RequestError(
            "distill",
            f"{shown_path(t5.files[0])} is T5-XXL, which belongs in a model's text_encoder_2; DistillT5 takes "
            f"its place.",
        )
    raise RequestError(
        "distill",
        f"{shown_path(t5.files[0])} is a plain T5: it lacks DistillT5's projection "
        f"('final_projection.0.weight'), so its "
        f"{t5.config['d_model']} numbers a token cannot feed FLUX.1; get DistillT5.",
    )
