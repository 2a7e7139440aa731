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
def pooled_embedding(text_encoder: Any, tokens: Tokens, check: Callable[[], None]) -> Tensor:
    """CLIP's pooled output [1, pooled_projection_dim], on the CPU; `check` is called before every layer."""
    with cancellable(text_encoder, check):
        pooled: Tensor = text_encoder(input_ids=tokens.clip.to(text_encoder.device)).pooler_output
    return pooled.cpu()


@torch.no_grad()
def sequence_embedding(text_encoder_2: Any, tokens: Tokens, check: Callable[[], None]) -> Tensor:
    """T5's last hidden state [1, S, joint_attention_dim], on the CPU; `check` is called before every layer."""
    with cancellable(text_encoder_2, check):
        sequence: Tensor = text_encoder_2(input_ids=tokens.t5.to(text_encoder_2.device)).last_hidden_state
    return sequence.cpu()
