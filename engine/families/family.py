"""A family of models: everything that the rest of the engine may ask about a kind of model, without torch.

A family answers and never drives. It is a set of facts (`engine.families.facts`: its parts, how their files are
recognised, what is published) and of small functions of a part's configuration; `Family` has the defaults, so that a
small family stays short.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.families.facts import Config, Configs, Cost, Layout, Part, Published, Size, Tokenizer, Traits, Variant
from engine.families.rules import Shapes
from engine.families.sources import Source
from engine.times import FlowTimes
from engine.untrusted.configs import Keys
from engine.untrusted.headers import Header

if TYPE_CHECKING:
    from engine.families.networks import Networks


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

    def key_of(self, part: str) -> str:
        """What keys of caches call a part, where families differ in what they do with the same configuration."""
        return f"{self.name}/{part}"

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
