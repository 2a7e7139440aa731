"""DistillT5's tensors: what they are called, and what their shapes tell. torch is not imported.

DistillT5 ("Scaling Down Text Encoders of Text-to-Image Diffusion Models", arXiv:2503.19897) is a T5 encoder with a
projection of two linear layers. Its files call the encoder `encoder.encoder...`, ComfyUI's `encoder...`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from math import nan
from typing import Any

from engine.request import RequestError
from engine.text import quoted

TABLE, TIED_TABLE = "encoder.shared.weight", "encoder.encoder.embed_tokens.weight"  # one tensor under two names
BIAS = "encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
PROJECTION = ("final_projection.0.weight", "final_projection.3.weight")
T5_BASE = {  # of what is published, where a file does not tell
    "vocab_size": 32128,
    "d_model": 768,
    "d_ff": 2048,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "project_out_dim": 4096,
}
HEAD_SIZE = 64
_ENCODER = re.compile(
    r"shared\.weight"
    r"|encoder\.(embed_tokens|final_layer_norm)\.weight"
    r"|encoder\.block\.(0|[1-9]\d{0,3})\.layer\.(0\.SelfAttention\.[qkvo]|0\.layer_norm|1\.layer_norm"
    r"|1\.DenseReluDense\.(wi_0|wi_1|wo))\.weight"
    r"|encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight"
)
_BLOCK = re.compile(r"encoder\.encoder\.block\.(\d+)\.")
# Which dimension of which tensors (their names end so) each number is.
_TELLING: dict[str, tuple[tuple[str, int], ...]] = {
    "vocab_size": ((".shared.weight", 0), (".embed_tokens.weight", 0)),
    "d_model": (
        *((f".{name}.weight", 1) for name in ("shared", "embed_tokens", "q", "k", "v", "wi_0", "wi_1")),
        *((f".{name}.weight", 0) for name in ("o", "wo", "layer_norm", "final_layer_norm")),
    ),
    "attention": (*((f".{name}.weight", 0) for name in "qkv"), (".o.weight", 1)),  # heads times their size
    "d_ff": ((".wi_0.weight", 0), (".wi_1.weight", 0), (".wo.weight", 1)),
    "relative_attention_num_buckets": ((BIAS, 0),),
    "num_heads": ((BIAS, 1),),
    "project_out_dim": ((PROJECTION[0], 0), (PROJECTION[1], 0), (PROJECTION[1], 1)),
}


def canonical_name(stored: str) -> str | None:
    """DistillT5's published name of a tensor, from that or from ComfyUI's; None for a name that is neither."""
    if stored in PROJECTION:
        return stored
    if stored.startswith("encoder.") and _ENCODER.fullmatch(stored.removeprefix("encoder.")):
        return stored
    return f"encoder.{stored}" if _ENCODER.fullmatch(stored) else None


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], said: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration of a DistillT5 with tensors of these shapes (by either form's names).

    Each number is what most tensors agree on, so that a misshapen or missing one is found when all are compared with
    what the configuration wants. `said` (a config.json) is asked only for what no shape tells. Raises `RequestError`
    where that is nonsense.
    """
    known = {name: shape for stored, shape in shapes.items() if (name := canonical_name(stored)) and all(shape)}
    told = {number: _majority(known, number) for number in _TELLING}
    config: dict[str, Any] = {name: told.get(name) or value for name, value in T5_BASE.items()}
    attention = told["attention"] or config["d_model"]
    heads = told["num_heads"] or 0
    if not heads or attention % heads:  # the bias is missing or wrong, which is then said of it
        heads = attention // HEAD_SIZE if attention % HEAD_SIZE == 0 else 1
    buckets = config["relative_attention_num_buckets"]
    if buckets < 4:  # half for each direction, half of these for distances of their own
        buckets = T5_BASE["relative_attention_num_buckets"]
    said = said or {}
    return {
        "architectures": ["T5EncoderWithProjection"],
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        **config,
        "num_layers": _layers(known),
        "num_heads": heads,
        "d_kv": attention // heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": _said(said, "relative_attention_max_distance", int, buckets // 4 + 1, 2**20),
        "layer_norm_epsilon": _said(said, "layer_norm_epsilon", float, 0.0, 1.0),
        "project_in_dim": config["d_model"],
    }


def _majority(known: Mapping[str, tuple[int, ...]], number: str) -> int | None:
    """What most tensors say that a number is; None where none of them is there."""
    votes = Counter(_votes(known, number))
    return votes.most_common(1)[0][0] if votes else None


def _votes(known: Mapping[str, tuple[int, ...]], number: str) -> Iterator[int]:
    for name, shape in known.items():
        dimensions = 1 if name.endswith("layer_norm.weight") else 2
        for ending, axis in _TELLING[number]:
            if name.endswith(ending) and len(shape) == dimensions:
                yield shape[axis]


def _layers(known: Mapping[str, tuple[int, ...]]) -> int:
    """How many blocks there are without a gap; a file has at least one."""
    found = {int(match[1]) for name in known if (match := _BLOCK.match(name))}
    count = 0
    while count in found:
        count += 1
    return max(1, count)


def _said(said: Mapping[str, Any], name: str, kind: type[int] | type[float], low: float, high: float) -> Any:
    value: Any = said.get(name, T5_BASE[name])
    number = value if isinstance(value, (kind, int)) and not isinstance(value, bool) else nan
    if not low <= number <= high:
        raise RequestError(
            "model",
            f"the config.json of DistillT5 says that {name} is {quoted(value, 40)}, which must be from {low:g} "
            f"to {high:g}; "
            "download it again, or delete it.",
        )
    return value
