"""The components of an open model: loaded once, kept on the host, lent to a phase on the device, one at a time.

No phase moves weights itself: it asks here for a component and gets a module that is ready to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from engine.models.folder import ModelFolder
from engine.models.loading import LoadedBytes, load_component


class Components:
    """The modules of a model by component and precision, and the rule that only one is on the device at a time."""

    def __init__(self, folder: ModelFolder, device: torch.device) -> None:
        self.folder = folder
        self.device = device
        self.resident: str | None = None  # the component on the device now
        self._modules: dict[tuple[str, torch.dtype], Any] = {}

    def load(self, component: str, dtype: torch.dtype) -> Iterator[LoadedBytes]:
        """Bring a component's weights into host memory; yields progress, nothing when they are there already."""
        if (component, dtype) in self._modules:
            return
        for other in [key for key in self._modules if key[0] == component]:
            del self._modules[other]  # another precision of the same weights: one copy is enough
        module = yield from load_component(self.folder, component, dtype)
        self._modules[component, dtype] = module

    @contextmanager
    def lend(self, component: str, dtype: torch.dtype) -> Iterator[Any]:
        """A loaded component on the device, ready to run; it is off the device again afterwards."""
        if self.resident is not None:
            raise RuntimeError(f"{component} was asked for while {self.resident} is on the device")
        module = self._modules[component, dtype]
        self.resident = component
        try:
            if self.device.type != "cpu":
                module.to(self.device)
            yield module
        finally:
            self.resident = None
            if self.device.type != "cpu":
                module.to("cpu")
                torch.cuda.empty_cache()

    def clear(self) -> None:
        """Forget every host copy."""
        self._modules.clear()
