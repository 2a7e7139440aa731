"""Where in a step numbers stop being finite."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.quantization.kernels import Tokens
from engine.request import RequestError


class NotFiniteError(RequestError):
    """A step gave numbers that are not finite: the fault of the weights, or of too small a precision for them."""

    def __init__(self, message: str) -> None:
        super().__init__("model", message)

    def __reduce__(self) -> tuple[type[NotFiniteError], tuple[str]]:  # type: ignore[override]
        return NotFiniteError, (str(self),)


class Watch:
    """Sees where in a step activations stop being finite, at the cost of a small sum for each quantization."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._totals: list[Tensor] = []
        self._scales: list[Tensor] = []  # of the running block, which are summed at its end, by one call

    def see(self, name: str, tokens: Tokens) -> None:
        """Remember what goes into the layers of this name; on the meta device there is nothing to see."""
        if tokens.values.is_meta:
            return
        if tokens.scale is None:
            self.end_block()
            self._totals.append(tokens.total())
        else:
            self._scales.append(tokens.scale)
        self._names.append(name)

    def end_block(self) -> None:
        """Keep nothing but numbers of what was seen."""
        if self._scales:
            self._totals += torch._foreach_norm(self._scales, 1)  # of what is positive, or not a number: the sum
            self._scales = []

    def forget(self) -> None:
        """Begin a new step."""
        self._names, self._totals, self._scales = [], [], []

    def first_bad(self) -> str | None:
        """The first layers of this step whose input was not finite, or None; begins a new step."""
        self.end_block()
        names, totals = self._names, self._totals
        self.forget()
        if not totals:
            return None
        finite = torch.stack(totals).isfinite().tolist()  # waits for the device, once
        return next((name for name, good in zip(names, finite, strict=True) if not good), None)
