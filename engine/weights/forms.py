"""The forms in which the linear layers of a component are stored in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.families.family import Family
from engine.precision import Precision
from engine.quantization import fp8, int8
from engine.quantization.salience import Folds


@dataclass(frozen=True, slots=True)
class Form:
    """8-bit floats, or whole numbers with salient channels balanced before they are rounded."""

    family: Family  # whose layers they are
    precision: Precision  # of 8 bits
    folds: Folds | None = None  # of int8
    digest: str = ""  # of the balancing factors

    @property
    def kind(self) -> str:
        """ "fp8" or "int8"."""
        return self.precision.kind

    @property
    def dtype(self) -> torch.dtype:
        """Of a stored weight."""
        return torch.int8 if self.precision.is_int8 else fp8.FP8

    def covers(self, component: str, name: str) -> bool:
        """Whether the parameter `name` of a component is stored in 8 bits."""
        return self.kind in self.family.part(component).forms and self.family.eight_bit(component, name)

    def quantize(self, name: str, rows: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Rows of a weight from `start` on as (8 bits [n, in], scale float32 [n]). Raises `ValueError` where they are
        not finite."""
        if not self.precision.is_int8:
            return fp8.quantize_rows(rows)
        if self.folds is not None:
            rows = self.folds.weight(name.removesuffix(".weight"), rows.float(), start)
        return int8.quantize_rows(rows)

    def changes(self, name: str) -> bool:
        """Whether `other` gives other numbers than it is given."""
        layer, _, leaf = name.rpartition(".")
        return self.folds is not None and leaf == "bias" and layer in self.folds.rows

    def other(self, name: str, values: Tensor, start: int) -> Tensor:
        """Elements from `start` on of what is not stored in 8 bits; some biases are balanced, in float32."""
        if self.folds is None or not self.changes(name):
            return values
        return self.folds.bias(name.removesuffix(".bias"), values.float(), start)


def dequantize(quantized: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """8 bits [out, in] of either kind times their scales [out], as `dtype`."""
    if quantized.dtype == fp8.FP8:
        return fp8.dequantize(quantized, scale, dtype)
    return int8.dequantize(quantized, scale, dtype)
