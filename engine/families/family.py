"""A family of models: everything that the rest of the engine may ask about a kind of model, without torch.

A family answers and never drives. It is a set of facts (its parts, how their files are recognised, what is published)
and of small functions of a part's configuration; `Family` has the defaults, so that a small family stays short.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.events import Phase
from engine.families.rules import Rule, Shapes
from engine.families.sources import Source
from engine.precision import Precision
from engine.times import FlowTimes
from engine.untrusted.configs import Keys
from engine.untrusted.headers import Header

if TYPE_CHECKING:
    from engine.families.networks import Networks

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


class Family(ABC):
    """A kind of model. Parts are in the order in which lists show them, the one that a model is named by first."""

    name: str
    title: str
    pipelines: tuple[str, ...]  # classes that a folder's model_index.json names
    parts: tuple[Part, ...]
    tokenizers: tuple[Tokenizer, ...]
    variants: tuple[Variant, ...]
    published: tuple[Published, ...]
    sources: tuple[Source, ...]  # what is to be had of it
    side: int  # pixels that its models were made for, where a configuration does not say
    index: Keys = Keys(
        {}
    )  # of model_index.json, that tell what no weights tell; a folder's `Configs` then have an "index"
    step_reads_prompt: bool = True  # whether what follows from the step alone follows from the prompt, too

    @property
    def core(self) -> Part:
        """The part that the other parts are paired with, and the model is named by."""
        return self.parts[0]

    @property
    def needed(self) -> tuple[Part, ...]:
        """Parts that every model has."""
        return tuple(part for part in self.parts if not part.takes_place_of)

    @property
    def decoder(self) -> Part:
        """The part that makes pixels."""
        return next(part for part in self.parts if part.phase == "decode")

    def encoders(self, *, distill: bool) -> tuple[Part, ...]:
        """The parts that read a prompt, in order; with `distill` smaller ones take the place of others."""
        replaced = {part.takes_place_of for part in self.parts if part.takes_place_of} if distill else set()
        return tuple(
            part
            for part in self.parts
            if part.phase == "encode" and part.name not in replaced and (distill or not part.takes_place_of)
        )

    def tokenizer_of(self, part: str) -> Tokenizer:
        """The tokenizer whose tokens a text encoder reads."""
        encoder = self.part(part).takes_place_of or part
        return next(tokenizer for tokenizer in self.tokenizers if tokenizer.encoder == encoder)

    def part(self, name: str) -> Part:
        """The part of this name. Raises `KeyError`."""
        return next((part for part in self.parts if part.name == name), None) or _unknown(name)

    def tokenizer(self, name: str) -> Tokenizer:
        """The tokenizer of this name. Raises `KeyError`."""
        return next((each for each in self.tokenizers if each.name == name), None) or _unknown(name)

    @property
    @abstractmethod
    def networks(self) -> Networks:
        """The half that needs torch."""

    # Files.

    @abstractmethod
    def part_of(self, names: Sequence[str]) -> str:
        """Which part has tensors of these names; "" where none has."""

    @abstractmethod
    def layout(self, part: str, shapes: Shapes) -> Layout:
        """Whose names the tensors of a part have."""

    def eight_bit(self, part: str, name: str) -> bool:
        """Whether the parameter `name` of a part is a linear layer's weight that has 8 bits where any have."""
        return False

    def beside(self, name: str) -> bool:
        """Whether a tensor outside all parts' prefixes may lie in a file that holds everything."""
        return False

    def look(self, part: str, names: Sequence[str], headers: Sequence[Header]) -> str:
        """A warning about the files of a part, or "". Raises `RequestError` for what only looks like it."""
        return ""

    def tokenizer_in(self, folder: Path) -> str:
        """Which of the tokenizers a folder seems to hold, by its files; "" where that is not to be told."""
        return ""

    # Models.

    def said(self, part: str, said: Config, told: Config) -> Config:
        """What a folder's config.json says of a part, where it says it in another way than the network's class."""
        return said

    def config(self, part: str, shapes: Shapes, said: Config) -> dict[str, Any]:
        """The configuration of a part that is no network of a library, by its shapes, and what else is said of it."""
        raise NotImplementedError(part)

    @abstractmethod
    def traits(self, configs: Configs) -> Traits:
        """What a model of these configurations was made for."""

    @abstractmethod
    def misfit(self, part: str, config: Config, core: Config) -> str:
        """What of a part does not fit a core of this configuration, in words; "" where all does."""

    def foreign(self, part: str, config: Config) -> str:
        """Why a part that fits is another family's, in words; "" where nothing tells."""
        return ""

    def times(self, scheduler: Config) -> FlowTimes:
        """Where a model's steps lie; it can be pickled, and says it without torch.

        Raises ValueError for a scheduler that is not the family's.
        """
        return FlowTimes.from_config(scheduler)

    @abstractmethod
    def size(self, configs: Configs, limits: Mapping[str, int], width: int, height: int) -> Size:
        """The geometry of a picture of so many pixels; `limits` are tokens of text by tokenizer."""

    @abstractmethod
    def cost(self, part: str, config: Config, size: Size) -> Cost:
        """Of one run: a step of the core, a prompt of an encoder, a picture of the decoder."""

    @abstractmethod
    def width(self, config: Config) -> int:
        """Of what goes through a core of this configuration: kernels are tried at it."""

    @abstractmethod
    def variant(self, config: Config) -> Variant:
        """What kind of model has a core of this configuration."""

    def scheduler(self, config: Config) -> dict[str, Any]:
        """The noise schedule of a model whose core has this configuration, where no file tells it."""
        name = self.variant(config).published
        return dict(next(each for each in self.published if each.name == name).configs["scheduler"])


def _unknown(name: str) -> Any:
    raise KeyError(name)
