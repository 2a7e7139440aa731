"""DistillT5, a small T5 with a projection, in the place of T5-XXL (arXiv:2503.19897).

Its network is transformers' T5EncoderModel, which knows nothing of the projection, so the two are put together here;
the author's own class does not load with transformers 5. FLUX.1 was trained without an attention mask, and DistillT5,
too: pads are part of the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from engine.untrusted.configs import attention_of

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
    return _tied(module).eval()


def _tied(module: DistillT5) -> DistillT5:
    """Make the encoder look up its embedding in the one table that there is."""
    module.encoder.encoder.embed_tokens = module.encoder.shared
    return module
