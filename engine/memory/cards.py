"""What known cards can do, for times that are estimates: simulated runs, plans, and the choice of a precision.

The figures are peaks from the makers' data sheets, without sparsity; the shares of them that are reached were fitted to
published times of FLUX.1 on these cards (4 s a step at 1024x1024 on an RTX 3060, 1.7 s for its decoder at 1024x768),
and those of the 8-bit products to what `tests.bench.gpu` measured on an H100. Nothing was measured on Ada.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.families.facts import Cost
from engine.precision import Precision

GIB = 2**30
LINEAR_SHARE, ATTENTION_SHARE, BUS_SHARE = 0.80, 0.66, 0.80  # of the peaks
FP8_SHARE = 0.50  # of the peak, tokens rounded first
# The same of int8: as on a sister card (RTX 3090), and where a card has FP8 units, as on an H100.
INTEGER_SHARE, INTEGER_SHARE_BESIDE_FP8 = 0.60, 0.33
RTX_3060_FLOPS = 25.6e12
DISK_BYTES_PER_SECOND = 2.5e9  # an NVMe disk
HOST_FLOPS = 3e11  # of a desktop's CPU in fp32
HOST_BYTES_PER_SECOND = 8e9  # a copy inside RAM by one thread, which what is not pinned goes through


@dataclass(frozen=True, slots=True)
class CardProfile:
    """Peaks of one card: operations and bytes a second."""

    name: str
    total_bytes: int
    flops: float  # bf16 products, sums in fp32
    integer_flops: float  # int8 products
    memory_bandwidth: float
    bus_bandwidth: float  # from pinned host memory
    float_flops: float | None = None  # fp32 products; None: as bf16
    fp8_flops: float | None = None  # FP8 products, with sums that are not all in fp32; None: it has no such units
    tf32_flops: float | None = None  # of convolutions in fp32; None: as other fp32 products
    int8_ratio: float | None = None  # times of int8 layers to bf16's, where a kernel was measured

    def step_seconds(self, cost: Cost, weight_bytes: int, precision: Precision, kernel: str | None = None) -> float:
        """One denoise step, nothing streamed. 8-bit layers multiply by `kernel` (None: weights are dequantized)."""
        linear = cost.operations / (self._flops(precision) * LINEAR_SHARE)
        if precision.is_int8 and self.int8_ratio is not None:
            linear *= self.int8_ratio
        elif precision.is_8_bits and kernel in (None, "dequantize"):
            linear += 7 * weight_bytes / self.memory_bandwidth  # read, written as bf16, scaled in place, read again
        elif precision.is_int8:
            share = INTEGER_SHARE_BESIDE_FP8 if self.fp8_flops else INTEGER_SHARE
            linear = cost.operations / (self.integer_flops * share)
        elif precision.is_8_bits:
            linear = cost.operations / ((self.fp8_flops or 2 * self.flops) * FP8_SHARE)
        attention = cost.attention / (self._flops(precision) * ATTENTION_SHARE)
        traffic = cost.elements * (4 if precision.is_fp32 else 2)
        return float(linear + attention + traffic / self.memory_bandwidth)

    def encode_seconds(
        self, cost: Cost, moved_bytes: int, disk_bytes: int, precision: Precision, *, on_host: bool = False
    ) -> float:
        """A text encoder over one prompt, its weights streamed, or on the CPU beside the card."""
        rate = HOST_FLOPS if on_host else self._flops(precision) * LINEAR_SHARE
        return float(max(cost.operations / rate, self.move_seconds(moved_bytes, disk_bytes)))

    def decode_seconds(self, cost: Cost, precision: Precision) -> float:
        """The decoder."""
        rate = self.tf32_flops if precision.is_fp32 and self.tf32_flops else self._flops(precision)
        return float(cost.operations / rate)

    def move_seconds(self, moved_bytes: int, disk_bytes: int = 0, *, pinned: bool = False) -> float:
        """To the card; what comes from disk is read while the rest moves."""
        bus = self.bus_bandwidth * BUS_SHARE
        rate = bus if pinned else min(bus, HOST_BYTES_PER_SECOND)
        return max(moved_bytes / rate, disk_bytes / DISK_BYTES_PER_SECOND)

    def _flops(self, precision: Precision) -> float:
        """Of what is not multiplied in 8 bits."""
        return (self.float_flops or self.flops) if precision.is_fp32 else self.flops


RTX_3060 = CardProfile("RTX 3060", 12 * GIB, RTX_3060_FLOPS, 102e12, 360e9, 31.5e9, float_flops=12.7e12)
RTX_3090 = CardProfile("RTX 3090", 24 * GIB, 71e12, 284e12, 936e9, 31.5e9, float_flops=35.6e12)
RTX_4090 = CardProfile("RTX 4090", 24 * GIB, 165e12, 661e12, 1008e9, 31.5e9, float_flops=82.6e12, fp8_flops=661e12)
H100 = CardProfile(
    "H100", 80 * GIB, 989e12, 1979e12, 3350e9, 63e9, float_flops=67e12, fp8_flops=1979e12, tf32_flops=495e12
)
CARDS = {"rtx-3060": RTX_3060, "rtx-3090": RTX_3090, "rtx-4090": RTX_4090, "h100": H100}


def profile_of(device_name: str, total_bytes: int) -> CardProfile:
    """The profile of the card that is here, or a 3060's with its memory where nobody knows it."""
    for card in CARDS.values():
        if card.name in device_name:
            return card
    return replace(RTX_3060, name=device_name, total_bytes=total_bytes)
