"""The half of a family that needs torch: its networks, and what they are called with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import nn

from engine.families.family import Config


class Networks(ABC):
    """The networks of a family: diffusers' and transformers' own."""

    @abstractmethod
    def build(self, part: str, config: Config) -> nn.Module:
        """The network of a part with this configuration: its parameters on the meta device, its constants real.

        Whatever a library raises for a configuration that it cannot use goes through.
        """

    def tied(self, part: str) -> Mapping[str, str]:
        """Tensors of a part that are stored once, under either of two names."""
        return {}

    def current_name(self, part: str, stored: str, wanted: Mapping[str, object]) -> str:
        """A stored tensor's name in the installed version of the libraries, where versions differ."""
        return stored
