"""Prompt to conditioning: CLIP's pooled output and T5's sequence, as FLUX.1 reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.cancel import cancellable


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt's token ids. `count` is what T5 would need, `limit` what it takes; the rest is cut off."""

    clip: Tensor  # [1, S_clip] int64
    t5: Tensor  # [1, S] int64
    count: int
    limit: int


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the transformer reads of a prompt."""

    sequence: Tensor  # T5, [1, S, joint_attention_dim]
    pooled: Tensor  # CLIP, [1, pooled_projection_dim]


def tokenize(prompt: str, tokenizer: Any, tokenizer_2: Any, clip_limit: int, limit: int) -> Tokens:
    """Token ids of a prompt, padded to `limit` T5 tokens: FLUX.1 has no attention mask, pads are part of the input."""

    def ids(tokenizer: Any, length: int) -> Tensor:
        batch = tokenizer([prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        input_ids: Tensor = batch.input_ids
        return input_ids

    t5 = ids(tokenizer_2, limit)
    count = int((t5 != tokenizer_2.pad_token_id).sum())
    if count == limit:  # full, so perhaps cut
        count = len(tokenizer_2([prompt], truncation=False).input_ids[0])
    return Tokens(ids(tokenizer, clip_limit), t5, count, limit)


@torch.no_grad()
def pooled_embedding(text_encoder: Any, ids: Tensor, check: Callable[[], None], device: torch.device) -> Tensor:
    """CLIP's pooled output [1, pooled_projection_dim] of ids [1, S], on the host; `check` runs before each layer."""
    with cancellable(text_encoder, check):
        pooled: Tensor = text_encoder(input_ids=ids.to(device)).pooler_output
    return on_host(pooled)


@torch.no_grad()
def sequence_embedding(
    text_encoder_2: Any, embedded: Tensor, check: Callable[[], None], device: torch.device
) -> Tensor:
    """T5's last hidden state, or DistillT5's projection of it: [1, S, joint_attention_dim], on the host.

    `check` is called before every layer.

    `embedded` [1, S, d_model] are the rows of T5's embedding for its ids: they are looked up on the host, so that the
    rest of that table (263 MB of T5-XXL in bf16) never lies on a card.
    """
    with cancellable(text_encoder_2, check):
        output = text_encoder_2(inputs_embeds=embedded.to(device))
    sequence: Tensor = output if isinstance(output, Tensor) else output.last_hidden_state
    return on_host(sequence)


def on_host(tensor: Tensor) -> Tensor:
    """On the CPU; a simulated tensor stays what it is."""
    return tensor if tensor.is_meta else tensor.cpu()
