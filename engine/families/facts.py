"""What a family says of its kind of model: values that the engine and the networks of the family share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.events import Phase
from engine.families.rules import Rule
from engine.precision import Precision
from engine.untrusted.configs import Keys

Config = Mapping[str, Any]
Configs = Mapping[str, Config]  # by part
NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part of a model that has weights. `name` is what folders, registries and caches call it: it never changes."""

    name: str
    title: str  # for people: "CLIP-L"
    short: str  # of whatever size: "CLIP"
    phase: Phase  # in which it runs
    keys: Keys  # of its configuration
    network: str = ""  # its class in diffusers or transformers, as configurations name it
    forms: frozenset[str] = frozenset()  # in 8 bits, that its linear layers may have
    beside_card: bool = False  # it is quick enough on the CPU, where there is a card, and takes nothing of that
    fixed: Precision | None = None  # that it has whatever is asked
    takes_place_of: str = ""  # another part, where a request asks for that; such a part need not be there
    alone: str = "text encoder"  # what it is called where it lies by itself
    flag: str = ""  # of `t2i models add` that says where it lies
    fits: str = ""  # why one fits a transformer, in words
    folders: tuple[str, ...] = ()  # of other programs that hold such parts
    prefixes: tuple[str, ...] = ()  # of its tensors, in files that hold everything
    spare: re.Pattern[str] = NOTHING  # tensors that belong to what a file was made from, not to what is used of it
    usual_names: tuple[str, ...] = ()  # words in the names of its files, where others' parts have the same shapes


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """A tokenizer that a model needs, and how the right one is told."""

    name: str
    title: str
    encoder: str  # the part that reads its tokens
    entries: int  # rows of the embedding of the published encoder, for which `check` is right
    check: Callable[[Path], None]  # raises `RequestError` for a folder with another vocabulary
    size: Callable[[Path], int]  # one more than the highest token that a folder's tokenizer gives
    place: str  # in a ComfyUI folder
    folders: tuple[str, ...]  # names that are trusted, until the encoder is known


@dataclass(frozen=True, slots=True)
class Layout:
    """How the tensors of a part are called in its files."""

    title: str  # for people: "BFL", "diffusers"
    config: dict[str, Any] | str  # that the shapes tell, or the name of a tensor that is missing
    rules: Callable[[Config], Iterator[Rule]] | None = None  # where tensors are cut
    ours: Callable[[str], str | None] = str  # our name, where they are only called otherwise; None: an unknown tensor
    plain: Callable[[str], str] = str  # one of several names that the same tensor has in this layout


@dataclass(frozen=True, slots=True)
class Variant:
    """A kind of model within a family, told by its configurations. `name` is what lists show."""

    name: str
    title: str
    published: str  # the name of the published model of this kind
    licence: str  # of a file of this kind whose licence nobody told, a sentence


@dataclass(frozen=True, slots=True)
class Traits:
    """What a model was made for, and prefers where nothing else is said."""

    steps: int
    side: int  # pixels
    guidance: float | None  # distilled; None: it takes none
    tokens: Mapping[str, int]  # that it was made for, by tokenizer
    cfg: float | None = None  # scale of true guidance, away from the empty prompt; None: it needs none


@dataclass(frozen=True, slots=True)
class Size:
    """The geometry of one picture in a model: all of it that is known outside the family."""

    width: int  # pixels
    height: int
    rows: int  # of image tokens
    columns: int
    channels: int  # of a token
    scale: int  # pixels a side of one of the decoder's latents
    latent_channels: int  # of these
    text_tokens: int

    @property
    def tokens(self) -> int:
        """Of the image."""
        return self.rows * self.columns

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the sampler's state: [1, L, C]."""
        return 1, self.tokens, self.channels


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of a part computes, for times that are estimates."""

    operations: float  # of matrix products and convolutions, a multiplication and an addition each
    attention: float = 0.0  # operations of it
    elements: float = 0.0  # numbers that are read or written beside the products


@dataclass(frozen=True, slots=True)
class Published:
    """A published model, known without its weights: its configurations, and the bytes of its parts."""

    name: str
    configs: dict[str, dict[str, Any]]
    nbytes: dict[str, int]
