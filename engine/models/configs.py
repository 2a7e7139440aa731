"""What a configuration of FLUX.1's parts may say: the keys that the networks are built from, their types and ranges.

Every other key of a stranger's file is left out, so that no library is told by it what to load, to ask or to run.
Sizes that cost time and memory must agree with the shapes in the weights' headers. torch is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.folders import shown_path
from engine.request import RequestError
from engine.text import quoted
from engine.untrusted import read_object

MAX_WIDTH = 2**20
MAX_LAYERS = 10_000
CLASSES = {
    "transformer": "FluxTransformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "T5EncoderModel",
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a configuration: whether a value is allowed, in words what is, and what else holds of it."""

    allows: Callable[[Any], bool]
    allowed: str
    needed: bool = False  # must be there; another one that is missing or null is as the library has it
    told: bool = False  # the shapes of the weights say it, too


def whole(low: int, high: int, *, needed: bool = False, told: bool = False) -> Key:
    """A whole number."""
    return Key(lambda value: type(value) is int and low <= value <= high, f"from {low} to {high}", needed, told)


def number(low: float, high: float, *, needed: bool = False) -> Key:
    """Any number."""
    return Key(lambda value: type(value) in (int, float) and low <= value <= high, f"from {low:g} to {high:g}", needed)


def truth(*, told: bool = False) -> Key:
    """True or false."""
    return Key(lambda value: type(value) is bool, "true or false", told=told)


def one_of(*texts: str) -> Key:
    """One of these texts."""
    return Key(lambda value: type(value) is str and value in texts, " or ".join(texts))


def list_of(key: Key, count: range, *, needed: bool = False, told: bool = False) -> Key:
    """Some values of one kind."""

    def allows(value: Any) -> bool:
        return type(value) is list and len(value) in count and all(map(key.allows, value))

    return Key(allows, f"a list of {count.start} to {count.stop - 1}, each {key.allowed}", needed, told)


WIDTH = whole(1, MAX_WIDTH, needed=True, told=True)
STAGES = range(1, 9)  # of an autoencoder; how many it must have is said where the parts are compared
LAYERS = whole(0, MAX_LAYERS, needed=True, told=True)
TOKEN = whole(0, MAX_WIDTH)
KEYS: dict[str, dict[str, Key]] = {
    "transformer": {
        "patch_size": whole(1, 1),
        "in_channels": WIDTH,
        "out_channels": whole(1, MAX_WIDTH),
        "num_layers": LAYERS,
        "num_single_layers": LAYERS,
        "attention_head_dim": WIDTH,
        "num_attention_heads": WIDTH,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "guidance_embeds": truth(told=True),
        "axes_dims_rope": list_of(whole(2, MAX_WIDTH), range(3, 4)),
    },
    "vae": {
        "in_channels": whole(3, 3),
        "out_channels": whole(3, 3),
        "down_block_types": list_of(one_of("DownEncoderBlock2D"), STAGES, needed=True),
        "up_block_types": list_of(one_of("UpDecoderBlock2D"), STAGES, needed=True),
        "block_out_channels": list_of(whole(1, MAX_WIDTH), STAGES, needed=True, told=True),
        "layers_per_block": whole(1, MAX_LAYERS, needed=True, told=True),
        "act_fn": one_of("silu"),
        "latent_channels": WIDTH,
        "norm_num_groups": whole(1, MAX_WIDTH),
        "sample_size": whole(1, 2**14),
        "scaling_factor": number(1e-3, 1e3),
        "shift_factor": number(-1e3, 1e3, needed=True),
        "force_upcast": truth(),
        "use_quant_conv": truth(),
        "use_post_quant_conv": truth(),
        "mid_block_add_attention": truth(told=True),
    },
    "text_encoder": {
        "vocab_size": WIDTH,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "projection_dim": whole(1, MAX_WIDTH),
        "num_hidden_layers": LAYERS,
        "num_attention_heads": whole(1, MAX_WIDTH, needed=True),
        "max_position_embeddings": WIDTH,
        "hidden_act": one_of("quick_gelu", "gelu"),
        "layer_norm_eps": number(0, 1),
        "bos_token_id": TOKEN,
        "eos_token_id": TOKEN,
        "pad_token_id": TOKEN,
    },
    "text_encoder_2": {
        "vocab_size": WIDTH,
        "d_model": WIDTH,
        "d_kv": WIDTH,
        "d_ff": WIDTH,
        "num_layers": LAYERS,
        "num_heads": WIDTH,
        "relative_attention_num_buckets": whole(4, MAX_WIDTH, told=True),
        "relative_attention_max_distance": whole(2, MAX_WIDTH),
        "layer_norm_epsilon": number(0, 1),
        "feed_forward_proj": one_of("gated-gelu"),
        "decoder_start_token_id": TOKEN,
        "eos_token_id": TOKEN,
        "pad_token_id": TOKEN,
    },
    "scheduler": {
        **{key: truth() for key in ("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas")},
        **{key: truth() for key in ("use_beta_sigmas", "invert_sigmas", "stochastic_sampling")},
        "shift_terminal": number(-1e3, 1e3),
        "time_shift_type": one_of("exponential", "linear"),
        "shift": number(1e-3, 1e3),
        "base_shift": number(-20, 20),
        "max_shift": number(-20, 20),
        "base_image_seq_len": whole(1, MAX_WIDTH),
        "max_image_seq_len": whole(1, MAX_WIDTH),
    },
    "tokenizer": {"model_max_length": Key(lambda value: type(value) in (int, float), "a number")},
}


def read_config(file: Path, part: str) -> dict[str, Any]:
    """What a configuration that no weights belong to says of the keys that are known; see `checked`."""
    return checked(read_object(file), part, file)


def declared_class(said: Mapping[str, Any]) -> str:
    """The class that a configuration is of, as diffusers and transformers write it; empty where it does not say."""
    declared = said.get("_class_name")
    if declared is None and isinstance(architectures := said.get("architectures"), list) and architectures:
        declared = architectures[0]
    return "" if declared is None else str(declared)


def checked(said: Mapping[str, Any], part: str, file: Path, told: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The known keys of what a part's configuration says. `told` is what the shapes of its weights tell.

    Raises `RequestError` that names the file and the key where a value is not allowed, or is not what the weights have.
    """
    found: dict[str, Any] = {}
    for name, key in KEYS[part].items():
        value = said.get(name)
        if value is None:
            if key.needed:
                raise RequestError("model", f"{shown_path(file)} lacks {name!r}; download it again.")
            continue
        if not key.allows(value):
            raise RequestError("model", f"{name} in {shown_path(file)} is {quoted(value)}, allowed is {key.allowed}.")
        if key.told and told is not None and value != told[name]:
            raise RequestError(
                "model",
                f"{name} in {shown_path(file)} is {quoted(value)}, by its weights it is {quoted(told[name])}; "
                "download the model again.",
            )
        found[name] = value
    if wrong := _contradiction(found, part):
        raise RequestError("model", f"{shown_path(file)} is wrong: {wrong}; download it again.")
    return found


def _contradiction(config: Mapping[str, Any], part: str) -> str:
    """What cannot be true at once in a configuration whose values are allowed one by one; empty where all can."""
    match part:
        case "transformer":
            if config.get("out_channels", config["in_channels"]) != config["in_channels"]:
                return "out_channels must be in_channels"
            axes, head = config.get("axes_dims_rope", [16, 56, 56]), config["attention_head_dim"]
            if sum(axes) != head or any(axis % 2 for axis in axes):
                return f"axes_dims_rope {quoted(axes)} must be even and add up to attention_head_dim {head}"
        case "vae":
            widths, groups = config["block_out_channels"], config.get("norm_num_groups", 32)
            if any(width % groups for width in widths):
                return f"norm_num_groups {groups} does not divide block_out_channels {quoted(widths)}"
            if any(len(config.get(key, widths)) != len(widths) for key in ("down_block_types", "up_block_types")):
                return "down_block_types and up_block_types must have one for each of block_out_channels"
        case "text_encoder":
            if config["hidden_size"] % config["num_attention_heads"]:
                return "num_attention_heads does not divide hidden_size"
        case "text_encoder_2":
            buckets = config.get("relative_attention_num_buckets", 32)
            if config.get("relative_attention_max_distance", 128) <= buckets // 4:
                return f"relative_attention_max_distance must be more than {buckets // 4}"
    return ""


def attention_of(network: Any) -> str:
    """Which of its attention implementations a network of transformers is to use: never what a model's files name."""
    return "sdpa" if network._supports_sdpa else "eager"


def for_network(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Of a configuration the keys that the part's network is built from; null is left to the library."""
    return {name: config[name] for name in KEYS[part] if config.get(name) is not None}
