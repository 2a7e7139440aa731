"""What a configuration may say: the keys that a network is built from, their types and ranges.

Which keys a part has is its family's knowledge. Every other key of a stranger's file is left out, so that no library is
told by it what to load, to ask or to run. Sizes that cost time and memory must agree with the shapes in the weights'
headers. torch is not imported.
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
LAYERS = whole(0, MAX_LAYERS, needed=True, told=True)
TOKEN = whole(0, MAX_WIDTH)


def nothing(_: Mapping[str, Any]) -> str:
    """No contradiction."""
    return ""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a configuration, and what cannot be true at once of values that are allowed one by one."""

    keys: Mapping[str, Key]
    contradiction: Callable[[Mapping[str, Any]], str] = nothing  # in words; empty where all can be true


SCHEDULER = Keys(
    {
        **{key: truth() for key in ("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas")},
        **{key: truth() for key in ("use_beta_sigmas", "invert_sigmas", "stochastic_sampling")},
        "shift_terminal": number(-1e3, 1e3),
        "time_shift_type": one_of("exponential", "linear"),
        "shift": number(1e-3, 1e3),
        "base_shift": number(-20, 20),
        "max_shift": number(-20, 20),
        "base_image_seq_len": whole(1, MAX_WIDTH),
        "max_image_seq_len": whole(1, MAX_WIDTH),
    }
)
TOKENIZER = Keys({"model_max_length": Key(lambda value: type(value) in (int, float), "a number")})


def read_config(file: Path, keys: Keys) -> dict[str, Any]:
    """What a configuration that no weights belong to says of the keys that are known; see `checked`."""
    return checked(read_object(file), keys, file)


def declared_class(said: Mapping[str, Any]) -> str:
    """The class that a configuration is of, as diffusers and transformers write it; empty where it does not say."""
    declared = said.get("_class_name")
    if declared is None and isinstance(architectures := said.get("architectures"), list) and architectures:
        declared = architectures[0]
    return "" if declared is None else str(declared)


def checked(said: Mapping[str, Any], keys: Keys, file: Path, told: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The known keys of what a part's configuration says. `told` is what the shapes of its weights tell.

    Raises `RequestError` that names the file and the key where a value is not allowed, or is not what the weights have.
    """
    found: dict[str, Any] = {}
    for name, key in keys.keys.items():
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
    if wrong := keys.contradiction(found):
        raise RequestError("model", f"{shown_path(file)} is wrong: {wrong}; download it again.")
    return found


def attention_of(network: Any) -> str:
    """Which of its attention implementations a network of transformers is to use: never what a model's files name."""
    return "sdpa" if network._supports_sdpa else "eager"


def for_network(config: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """Of a configuration the keys that a network is built from; null is left to the library."""
    return {name: config[name] for name in keys.keys if config.get(name) is not None}
