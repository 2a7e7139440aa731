"""The half of a family that needs torch: its networks, and what they are called with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.families.facts import Config, Configs, Size
from engine.quantization.salience import Input

Conditioning = Mapping[str, Tensor]  # what a prompt says to the core, by names that its family gives


@dataclass(frozen=True, slots=True)
class Cut:
    """How the weights of a network are cut; paths of modules and names of parameters."""

    units: tuple[str, ...] = ()  # modules whose weights move on their own, in the order of use
    step_only: tuple[str, ...] = ()  # the embedder of the step, then linears whose outputs follow from it alone
    read_by_library: tuple[str, ...] = ()  # those whose outputs the library's code reads: in the dtype computed in
    host_tables: tuple[str, ...] = ()  # names of a table whose rows are looked up on the host; files have the first
    repeats: tuple[str, ...] = ()  # lists of layers whose first few have the peak of all
    unused: tuple[str, ...] = ()  # beginnings of parameters that the files have, and nothing here needs


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt's token ids. `count` is what the longest encoder would need, `limit` what it takes; the rest is cut."""

    ids: Mapping[str, Tensor]  # by tokenizer, [1, S] int64
    count: int
    limit: int


class Networks(ABC):
    """The networks of a family: diffusers' and transformers' own."""

    @abstractmethod
    def build(self, part: str, config: Config) -> nn.Module:
        """The network of a part with this configuration: its parameters on the meta device, its constants real.

        Whatever a library raises for a configuration that it cannot use goes through.
        """

    @abstractmethod
    def cut(self, part: str, module: nn.Module) -> Cut:
        """How a network that was built is cut."""

    def inputs(self, config: Config) -> list[Input]:
        """What the 8-bit layers of a core of this configuration are given, by what is balanced together."""
        return []

    def install_blocks(self, module: nn.Module, dtype: torch.dtype, *, folded: bool) -> None:  # noqa: B027
        """Put blocks that multiply in the way of a kernel in the place of a core's own.

        `folded`: they are int8, and their tables are folded (`Folds.tables`). `module.kernels` are what they can
        multiply with, by name; `module.watch` is a `Watch` of what goes into int8 layers, or None.
        """

    # From a prompt to what the core reads of it. What is in a conditioning is the family's alone.

    @abstractmethod
    def load_tokenizer(self, name: str, folder: Path) -> Any:
        """A tokenizer from its folder. Raises `RequestError`."""

    @abstractmethod
    def tokenize(self, prompt: str, tokenizers: Mapping[str, Any], limits: Mapping[str, int]) -> Tokens:
        """A prompt's ids; `tokenizers` and the tokens that they may give are by name."""

    @abstractmethod
    def encode(
        self, part: str, module: Any, tokens: Tokens, rows: Callable[[Tensor], Tensor], device: torch.device
    ) -> Conditioning:
        """What a text encoder tells of a prompt, on the host; what all of them tell is the conditioning.

        `rows` looks ids [1, S] up in the table that stays on the host: [1, S, width].
        """

    @abstractmethod
    def unread(self, configs: Configs, size: Size, dtype: torch.dtype) -> Conditioning:
        """A conditioning of the right shapes without numbers, to measure with."""

    # The core's steps.

    @abstractmethod
    def noise(self, seed: int, size: Size) -> Tensor:
        """Starting noise [1, L, C], float32, drawn on the CPU so that a seed is the same everywhere."""

    @abstractmethod
    def step_input(
        self,
        embedder: Any,
        sigma: Tensor,
        guidance: float | None,
        conditioning: Conditioning,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Tensor:
        """What the linears that follow from the step alone are given, [1, D]; `guidance` is the distilled one."""

    @abstractmethod
    def prepare(
        self, conditionings: Sequence[Conditioning], size: Size, device: torch.device, dtype: torch.dtype
    ) -> Conditioning:
        """What the core is called with in every step, on the device: prompts, positions."""

    @abstractmethod
    def velocity(self, module: Any, latents: Tensor, ready: Conditioning, prompts: slice) -> Tensor:
        """The velocities [n, L, C] that the core predicts for `latents` [1, L, C] with some of the prompts."""

    def running(self, module: Any) -> AbstractContextManager[object]:
        """Open while a picture's steps run; what is the same in all of them may be kept."""
        return nullcontext()

    # From latents to pixels.

    @abstractmethod
    def unpacked(self, latents: Tensor, size: Size) -> Tensor:
        """Image tokens [1, L, C] as the decoder's map of latents, [1, c, h, w]."""

    @abstractmethod
    def to_decoder(self, latents: Tensor, decoder: Any, size: Size) -> Tensor:
        """Image tokens [1, L, C] as what the decoder takes, [1, c, h, w]."""

    def tied(self, part: str) -> Mapping[str, str]:
        """Tensors of a part that are stored once, under either of two names."""
        return {}

    def current_name(self, part: str, stored: str, wanted: Mapping[str, object]) -> str:
        """A stored tensor's name in the installed version of the libraries, where versions differ."""
        return stored
