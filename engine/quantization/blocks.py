"""FLUX.1's transformer blocks over int8 linear layers: the same computation, cut where activations are quantized.

What goes into several layers is normalized, modulated and quantized once for all of them. The modulation comes in
tables that `Folds.tables` has turned into one factor and one addend for each channel, in float32: stored as
"1 + scale" in bfloat16, a scale that balancing has made small would lose its digits.

The networks are those of diffusers' `FluxTransformerBlock` and `FluxSingleTransformerBlock`, with their submodules.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from engine.quantization.int8 import KERNELS, Kernel, Tokens
from engine.request import RequestError

Rotation = tuple[Tensor, Tensor]


class NotFiniteError(RequestError):
    """A step gave numbers that are not finite: the fault of the weights, or of too small a precision for them."""

    def __init__(self, message: str) -> None:
        super().__init__("model", message)

    def __reduce__(self) -> tuple[type[NotFiniteError], tuple[str]]:  # type: ignore[override]
        return NotFiniteError, (str(self),)


class Watch:
    """Sees where in a step activations stop being finite, at the cost of one small sum for each quantization."""

    def __init__(self) -> None:
        self._totals: list[tuple[str, Tensor]] = []

    def see(self, name: str, tokens: Tokens) -> Tokens:
        """Remember what goes into the layers of this name; on the meta device there is nothing to see."""
        if not tokens.values.is_meta:
            self._totals.append((name, tokens.total()))
        return tokens

    def forget(self) -> None:
        """Begin a new step."""
        self._totals = []

    def first_bad(self) -> str | None:
        """The first layers of this step whose input was not finite, or None; begins a new step."""
        totals, self._totals = self._totals, []
        if not totals:
            return None
        finite = torch.stack([total for _, total in totals]).isfinite().tolist()  # waits for the device, once
        return next((name for (name, _), good in zip(totals, finite, strict=True) if not good), None)


class _Quantized(nn.Module):
    """What both kinds of blocks have: a name, a kernel, somebody who watches."""

    def __init__(self, name: str, watch: Watch) -> None:
        super().__init__()
        self.name, self.watch = name, watch
        self.kernel: Kernel = KERNELS["dequantize"]

    def modulated(self, x: Tensor, factor: Tensor, addend: Tensor, layers: str) -> Tokens:
        return self.watch.see(f"{self.name}.{layers}", self.kernel.modulate(x, factor, addend))

    def quantized(self, x: Tensor, layers: str, inverse: Tensor | None = None) -> Tokens:
        return self.watch.see(f"{self.name}.{layers}", self.kernel.quantize(x, inverse))


class FeedForward(_Quantized):
    """`diffusers.models.attention.FeedForward` with GELU (tanh form)."""

    def __init__(self, plain: Any, name: str, watch: Watch) -> None:
        super().__init__(name, watch)
        self.net = plain.net

    def forward(self, tokens: Tokens) -> Tensor:
        inner, outer = self.net[0].proj, self.net[2]
        hidden = self.kernel.linear(tokens, inner, gelu=True)
        return self.kernel.linear(self.quantized(hidden, "net.2", _inverse(outer)), outer)


class DoubleBlock(_Quantized):
    """`FluxTransformerBlock`: image and text have weights of their own and attend to each other."""

    def __init__(self, plain: Any, name: str, watch: Watch) -> None:
        super().__init__(name, watch)
        self.norm1, self.norm1_context, self.attn = plain.norm1, plain.norm1_context, plain.attn
        self.ff = FeedForward(plain.ff, f"{name}.ff", watch)
        self.ff_context = FeedForward(plain.ff_context, f"{name}.ff_context", watch)
        self.attn.set_processor(JointAttention(self))

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotation,
        joint_attention_kwargs: None = None,
    ) -> tuple[Tensor, Tensor]:
        image, text = hidden_states, encoder_hidden_states
        add, factor, gate, add_mlp, factor_mlp, gate_mlp = self.norm1.linear(temb).chunk(6, dim=1)
        c_add, c_factor, c_gate, c_add_mlp, c_factor_mlp, c_gate_mlp = self.norm1_context.linear(temb).chunk(6, dim=1)
        image_out, text_out = self.attn(
            self.modulated(image, factor, add, "attn.to_q"),
            self.modulated(text, c_factor, c_add, "attn.add_q_proj"),
            image_rotary_emb=image_rotary_emb,
        )
        image = _added(image, gate, image_out)
        image = _added(image, gate_mlp, self.ff(self.modulated(image, factor_mlp, add_mlp, "ff.net.0.proj")))
        text = _added(text, c_gate, text_out)
        inner = self.modulated(text, c_factor_mlp, c_add_mlp, "ff_context.net.0.proj")
        return _added(text, c_gate_mlp, self.ff_context(inner)), image


class SingleBlock(_Quantized):
    """`FluxSingleTransformerBlock`: text and image in one sequence, attention beside the feed-forward net."""

    def __init__(self, plain: Any, name: str, watch: Watch) -> None:
        super().__init__(name, watch)
        self.norm, self.proj_mlp, self.proj_out, self.attn = plain.norm, plain.proj_mlp, plain.proj_out, plain.attn
        self.attn.set_processor(JointAttention(self))

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotation,
        joint_attention_kwargs: None = None,
    ) -> tuple[Tensor, Tensor]:
        both = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        add, factor, gate = self.norm.linear(temb).chunk(3, dim=1)
        tokens = self.modulated(both, factor, add, "attn.to_q")
        inner = self.kernel.linear(tokens, self.proj_mlp, gelu=True)
        attended = self.attn(tokens, image_rotary_emb=image_rotary_emb)
        del tokens
        wide = torch.cat([attended, inner], dim=2)
        del attended, inner
        tokens = self.quantized(wide, "proj_out", _inverse(self.proj_out))
        del wide
        both = _added(both, gate, self.kernel.linear(tokens, self.proj_out))
        text = encoder_hidden_states.shape[1]
        return both[:, :text], both[:, text:]


class JointAttention:
    """`FluxAttnProcessor` for tokens that are quantized; what it returns in a double block went through its output
    layers."""

    def __init__(self, block: DoubleBlock | SingleBlock) -> None:
        self.block = [block]  # a list, or the attention would hold its own block

    def __call__(
        self,
        attn: Any,
        hidden_states: Tokens,
        encoder_hidden_states: Tokens | None = None,
        attention_mask: None = None,
        image_rotary_emb: Rotation | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        block = self.block[0]

        def heads(tokens: Tokens, layer: Any) -> Tensor:
            projected: Tensor = block.kernel.linear(tokens, layer).unflatten(-1, (-1, attn.head_dim))
            return projected

        out: Tensor
        query = attn.norm_q(heads(hidden_states, attn.to_q))
        key = attn.norm_k(heads(hidden_states, attn.to_k))
        value = heads(hidden_states, attn.to_v)
        if encoder_hidden_states is not None:
            query = torch.cat([attn.norm_added_q(heads(encoder_hidden_states, attn.add_q_proj)), query], dim=1)
            key = torch.cat([attn.norm_added_k(heads(encoder_hidden_states, attn.add_k_proj)), key], dim=1)
            value = torch.cat([heads(encoder_hidden_states, attn.add_v_proj), value], dim=1)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        out = dispatch_attention_fn(query, key, value, attn_mask=attention_mask).flatten(2, 3)
        del query, key, value
        if encoder_hidden_states is None:
            return out
        text = encoder_hidden_states.values.shape[1]
        tokens = block.quantized(out, "attn.to_out.0")
        of_text, of_image = tokens.split([text, out.shape[1] - text])
        return block.kernel.linear(of_image, attn.to_out[0]), block.kernel.linear(of_text, attn.to_add_out)


def install(transformer: Any) -> None:
    """Put these blocks in the place of diffusers' own, over the same layers; `transformer.watch` watches them."""
    transformer.watch = watch = Watch()
    for path, kind in (("transformer_blocks", DoubleBlock), ("single_transformer_blocks", SingleBlock)):
        blocks = getattr(transformer, path)
        for index, plain in enumerate(blocks):
            blocks[index] = kind(plain, f"{path}.{index}", watch)


def set_kernel(transformer: Any, kernel: str) -> None:
    """How all blocks multiply."""
    for module in transformer.modules():
        if isinstance(module, _Quantized):
            module.kernel = KERNELS[kernel]


def _inverse(layer: Any) -> Tensor | None:
    return getattr(layer, "inverse", None)


def _added(x: Tensor, gate: Tensor, out: Tensor) -> Tensor:
    return torch.addcmul(x, gate.to(x.dtype)[:, None], out)
