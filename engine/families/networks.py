"""The half of a family that needs torch: its networks, and what they are called with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from engine.families.family import Config
from engine.quantization.salience import Input


@dataclass(frozen=True, slots=True)
class Cut:
    """How the weights of a network are cut; paths of modules and names of parameters."""

    units: tuple[str, ...] = ()  # modules whose weights move on their own, in the order of use
    step_only: tuple[str, ...] = ()  # the embedder of the step, then linears whose outputs follow from it alone
    by_library: tuple[str, ...] = ()  # those of them that the library's own code reads, in the dtype computed in
    host_tables: tuple[str, ...] = ()  # names of a table whose rows are looked up on the host; files have the first
    repeats: tuple[str, ...] = ()  # lists of layers whose first few have the peak of all
    unused: tuple[str, ...] = ()  # beginnings of parameters that the files have, and nothing here needs


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

    def tied(self, part: str) -> Mapping[str, str]:
        """Tensors of a part that are stored once, under either of two names."""
        return {}

    def current_name(self, part: str, stored: str, wanted: Mapping[str, object]) -> str:
        """A stored tensor's name in the installed version of the libraries, where versions differ."""
        return stored
