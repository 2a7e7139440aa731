"""Prompt to conditioning: CLIP's pooled output and T5's sequence, as FLUX.1 reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.families.flux1.parts import CLIP_TOKENIZER, T5_TOKENIZER
from engine.families.networks import Tokens


def tokenize(prompt: str, tokenizers: Mapping[str, Any], limits: Mapping[str, int]) -> Tokens:
    """Token ids of a prompt, padded to the limit: FLUX.1 has no attention mask, pads are part of the input."""

    def ids(tokenizer: Any, length: int) -> Tensor:
        batch = tokenizer([prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        input_ids: Tensor = batch.input_ids
        return input_ids

    found = {name: ids(tokenizers[name], limits[name]) for name in (CLIP_TOKENIZER, T5_TOKENIZER)}
    longest, limit = tokenizers[T5_TOKENIZER], limits[T5_TOKENIZER]
    count = int((found[T5_TOKENIZER] != longest.pad_token_id).sum())
    if count == limit:  # full, so perhaps cut
        count = len(longest([prompt], truncation=False).input_ids[0])
    return Tokens(found, count, limit)


@torch.no_grad()
def pooled_embedding(text_encoder: Any, ids: Tensor, device: torch.device) -> Tensor:
    """CLIP's pooled output [1, pooled_projection_dim] of ids [1, S], on the host."""
    pooled: Tensor = text_encoder(input_ids=ids.to(device)).pooler_output
    return on_host(pooled)


@torch.no_grad()
def sequence_embedding(text_encoder_2: Any, embedded: Tensor, device: torch.device) -> Tensor:
    """T5's last hidden state, or DistillT5's projection of it: [1, S, joint_attention_dim], on the host.

    `embedded` [1, S, d_model] are the rows of T5's embedding for its ids: they are looked up on the host, so that the
    rest of that table (263 MB of T5-XXL in bf16) never lies on a card.
    """
    output = text_encoder_2(inputs_embeds=embedded.to(device))
    sequence: Tensor = output if isinstance(output, Tensor) else output.last_hidden_state
    return on_host(sequence)


def on_host(tensor: Tensor) -> Tensor:
    """On the CPU; a simulated tensor stays what it is."""
    return tensor if tensor.is_meta else tensor.cpu()
