"""The precisions that a model can run in. Everything here is plain values, without torch."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("fp32", "bf16", "fp8", "int8")  # fp8: of the weights, computed in bf16; int8: of activations as well
EIGHT_BITS = ("fp8", "int8")  # of them, which not every family has
MODES = ("csb", "csb+ssc")  # how channels that are hard to round are balanced in int8


@dataclass(frozen=True, slots=True)
class Precision:
    """What weights are stored in and multiplied with: printed as "bf16", "fp8", "int8", "int8+csb", "int8+csb+ssc".

    That text is in the keys of caches and in their files. Raises ValueError for what is no precision.
    """

    kind: str  # of `PRECISIONS`
    salience: str = ""  # of `MODES`, in int8 alone; "": no channel is balanced

    def __post_init__(self) -> None:
        balanced = self.kind == "int8" and self.salience in MODES
        if self.kind not in PRECISIONS or (self.salience and not balanced):
            raise ValueError(f"{self} is no precision")

    def __str__(self) -> str:
        return f"{self.kind}+{self.salience}" if self.salience else self.kind

    @property
    def is_8_bits(self) -> bool:
        """Whether linear layers are stored in 8 bits."""
        return self.kind in EIGHT_BITS

    @property
    def is_int8(self) -> bool:
        """Whether linear layers multiply whole numbers."""
        return self.kind == "int8"

    @property
    def is_fp32(self) -> bool:
        """Whether everything is stored and computed in 32 bits; else what is not in 8 bits is in bfloat16."""
        return self.kind == "fp32"


FP32, BF16, FP8, INT8 = map(Precision, PRECISIONS)
