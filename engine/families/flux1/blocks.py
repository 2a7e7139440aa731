"""FLUX.1's transformer blocks, cut where activations are quantized: diffusers' computation, with less Python around it.

What goes into several layers is normalized, modulated and quantized once for all of them, in the way of a `Kernel`. The
modulation comes in views of the step's tables, and the positions' rotation is computed once for all steps. Int8 kernels
are given tables that `Folds.tables` has turned into one factor and one addend for each channel, in float32: stored as
"1 + scale" in bfloat16, a scale that balancing has made small would lose its digits.

The networks are those of diffusers' `FluxTransformerBlock` and `FluxSingleTransformerBlock`, with their submodules; the
plain kernel gives their bits. On a fast card a step at 8 bits is over before its Python is, so what costs a microsecond
at every layer is kept out: modules that only pass on, searches for attributes, views that could be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.quantization.kernels import Block, Kernel, Tokens
from engine.quantization.watch import Watch

Rotation = tuple[Tensor, Tensor]  # cosines and sines, [1, S, 1, D] float32; every other sine is negative


class _Part(Block):
    """What all parts of blocks have: a name, a kernel, and for int8 somebody who watches."""

    def __init__(self, name: str, kernel: Kernel, watch: Watch | None) -> None:
        super().__init__()
        self.name, self.kernel, self.watch = name, kernel, watch
        self.folded = watch is not None  # the tables, for int8

    def modulated(self, x: Tensor, factor: Tensor, addend: Tensor, layers: str) -> Tokens:
        tokens = self.kernel.modulate(x, factor, addend)
        if self.watch is not None:
            self.watch.see(f"{self.name}.{layers}", tokens)
        return tokens

    def quantized(self, x: Tensor, layers: str, balanced: Any = None) -> Tokens:
        """What goes into `layers`; `balanced` is the one of them that may divide its channels first."""
        if self.watch is None:
            return self.kernel.quantize(x)
        tokens = self.kernel.quantize(x, getattr(balanced, "inverse", None))
        self.watch.see(f"{self.name}.{layers}", tokens)
        return tokens

    def end_block(self) -> None:
        if self.watch is not None:
            self.watch.end_block()


class FeedForward(_Part):
    """`diffusers.models.attention.FeedForward` with GELU (tanh form)."""

    def __init__(self, plain: Any, name: str, kernel: Kernel, watch: Watch | None) -> None:
        super().__init__(name, kernel, watch)
        self.net: Any = plain.net

    def forward(self, tokens: Tokens) -> Tensor:
        inner, outer = self.net[0].proj, self.net[2]
        hidden = self.kernel.linear(tokens, inner, gelu=True)
        return self.kernel.linear(self.quantized(hidden, "net.2", outer), outer)


class Attention(_Part):
    """`FluxAttention` with `FluxAttnProcessor`, without output layers in a single block."""

    def __init__(self, plain: Any, name: str, kernel: Kernel, watch: Watch | None) -> None:
        super().__init__(name, kernel, watch)
        self.head_dim = plain.head_dim
        for child, module in plain.named_children():
            self.add_module(child, module)

    def forward(self, tokens: Tokens, rotation: Rotation) -> Tensor:
        """Of one sequence: [B, S, heads * head_dim]."""
        query = _normed(self.heads(tokens, self.to_q), self.norm_q)
        key = _normed(self.heads(tokens, self.to_k), self.norm_k)
        value = self.heads(tokens, self.to_v)
        return _attended(query, key, value, rotation)

    def heads(self, tokens: Tokens, layer: Any) -> Tensor:
        """What a layer makes of tokens: [B, S, heads, head_dim]."""
        projected = self.kernel.linear(tokens, layer)
        return projected.view(*projected.shape[:-1], -1, self.head_dim)


class JointAttention(Attention):
    """The same of a double block: image and text attend to each other, and have output layers."""

    def forward(  # type: ignore[override]
        self, image: Tokens, text: Tokens, rotation: Rotation
    ) -> tuple[Tensor, Tensor]:
        to_out: Any = self.to_out
        query = _normed(self.heads(image, self.to_q), self.norm_q)
        key = _normed(self.heads(image, self.to_k), self.norm_k)
        value = self.heads(image, self.to_v)
        query = torch.cat([_normed(self.heads(text, self.add_q_proj), self.norm_added_q), query], dim=1)
        key = torch.cat([_normed(self.heads(text, self.add_k_proj), self.norm_added_k), key], dim=1)
        value = torch.cat([self.heads(text, self.add_v_proj), value], dim=1)
        out = _attended(query, key, value, rotation)
        del query, key, value
        words = text.values.shape[1]
        of_text, of_image = self.quantized(out, "to_out.0").split([words, out.shape[1] - words])
        return self.kernel.linear(of_image, to_out[0]), self.kernel.linear(of_text, self.to_add_out)


class DoubleBlock(_Part):
    """`FluxTransformerBlock`: image and text have weights of their own and attend to each other."""

    def __init__(self, plain: Any, name: str, kernel: Kernel, watch: Watch | None) -> None:
        super().__init__(name, kernel, watch)
        self.norm1, self.norm1_context = plain.norm1, plain.norm1_context
        self.attn = JointAttention(plain.attn, f"{name}.attn", kernel, watch)
        self.ff = FeedForward(plain.ff, f"{name}.ff", kernel, watch)
        self.ff_context = FeedForward(plain.ff_context, f"{name}.ff_context", kernel, watch)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotation,
        joint_attention_kwargs: None = None,
    ) -> tuple[Tensor, Tensor]:
        image, text, added = hidden_states, encoder_hidden_states, self.kernel.added
        add, factor, gate, add_mlp, factor_mlp, gate_mlp = self.norm1.linear.parts(6, folded=self.folded)
        c_add, c_factor, c_gate, c_add_mlp, c_factor_mlp, c_gate_mlp = self.norm1_context.linear.parts(
            6, folded=self.folded
        )
        image_out, text_out = self.attn(
            self.modulated(image, factor, add, "attn.to_q"),
            self.modulated(text, c_factor, c_add, "attn.add_q_proj"),
            image_rotary_emb,
        )
        image = added(image, gate, image_out)
        del image_out
        image = added(image, gate_mlp, self.ff(self.modulated(image, factor_mlp, add_mlp, "ff.net.0.proj")))
        text = added(text, c_gate, text_out)
        del text_out
        inner = self.modulated(text, c_factor_mlp, c_add_mlp, "ff_context.net.0.proj")
        text = added(text, c_gate_mlp, self.ff_context(inner))
        self.end_block()
        return text, image


class SingleBlock(_Part):
    """`FluxSingleTransformerBlock`: text and image in one sequence, attention beside the feed-forward net."""

    def __init__(self, plain: Any, name: str, kernel: Kernel, watch: Watch | None) -> None:
        super().__init__(name, kernel, watch)
        self.norm, self.proj_mlp, self.proj_out = plain.norm, plain.proj_mlp, plain.proj_out
        self.attn = Attention(plain.attn, f"{name}.attn", kernel, watch)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotation,
        joint_attention_kwargs: None = None,
    ) -> tuple[Tensor, Tensor]:
        both = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        add, factor, gate = self.norm.linear.parts(3, folded=self.folded)
        tokens = self.modulated(both, factor, add, "attn.to_q")
        inner = self.kernel.linear(tokens, self.proj_mlp, gelu=True)
        attended = self.attn(tokens, image_rotary_emb)
        del tokens
        wide = torch.cat([attended, inner], dim=2)
        del attended, inner
        tokens = self.quantized(wide, "proj_out", self.proj_out)
        del wide
        both = self.kernel.added(both, gate, self.kernel.linear(tokens, self.proj_out))
        self.end_block()
        text = encoder_hidden_states.shape[1]
        return both[:, :text], both[:, text:]


class Positions(nn.Module):
    """In the place of `FluxPosEmbed`: the rotation as the blocks take it, once for all steps of a picture."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain
        self._kept: Rotation | None = None
        self._keeps = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While open, every call is for the same positions."""
        self._keeps = True
        try:
            yield
        finally:
            self._keeps, self._kept = False, None

    def forward(self, ids: Tensor) -> Rotation:
        if self._kept is not None:
            return self._kept
        cosines, sines = self.plain(ids)  # [S, D]
        sines = sines.clone()
        sines[:, ::2].neg_()
        rotation = cosines[None, :, None], sines[None, :, None]
        if self._keeps:
            self._kept = rotation
        return rotation


def install(transformer: Any, kernels: Mapping[str, Kernel], *, folded: bool) -> None:
    """Put these blocks in the place of diffusers' own, over the same layers.

    `kernels` are what they can multiply with, by name; they begin with "dequantize". Tables that are `folded` are those
    of int8, and what goes into such blocks' layers is watched by `transformer.watch`.
    """
    transformer.kernels, kernel = kernels, kernels["dequantize"]
    transformer.watch = watch = Watch() if folded else None
    for path, kind in (("transformer_blocks", DoubleBlock), ("single_transformer_blocks", SingleBlock)):
        blocks = getattr(transformer, path)
        for index, plain in enumerate(blocks):
            blocks[index] = kind(plain, f"{path}.{index}", kernel, watch)
    transformer.pos_embed = Positions(transformer.pos_embed)


def _normed(heads: Tensor, norm: Any) -> Tensor:
    """`torch.nn.RMSNorm` over each head."""
    return torch.rms_norm(heads, norm.normalized_shape, norm.weight, norm.eps)


def _attended(query: Tensor, key: Tensor, value: Tensor, rotation: Rotation) -> Tensor:
    """Attention over the whole sequence, all [B, S, heads, head_dim]: [B, S, heads * head_dim]."""
    query, key = _rotated(query, *rotation), _rotated(key, *rotation)
    out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)


def _rotated(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """diffusers' `apply_rotary_emb` in the same roundings: neighbours are the two parts of a number, products are in
    float32. The sign is with the sines, and types are widened in the multiplication."""
    first, second = heads.view(*heads.shape[:-1], -1, 2).unbind(-1)
    swapped = torch.stack([second, first], dim=-1).view(heads.shape)
    return (heads * cosines).add_(swapped * sines).to(heads.dtype)
