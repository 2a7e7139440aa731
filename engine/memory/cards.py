"""What known cards can do, for times that are estimates: simulated runs, and what a plan says of the next picture.

The figures are peaks from the makers' data sheets; the shares of them that are reached were fitted to published times
of FLUX.1 on these cards (4 s a step at 1024x1024 on an RTX 3060, 1.7 s for its decoder at 1024x768).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

GIB = 2**30
INTEGER_SHARE = 0.60  # of the peak of int8, as on a sister card (RTX 3090)
LINEAR_SHARE, ATTENTION_SHARE, BUS_SHARE = 0.80, 0.66, 0.80  # of the peaks
ELEMENTWISE_PASSES = 34  # over a block's tokens x width, beside the matrix products
DECODER_SECONDS_PER_PIXEL = 2.2e-6  # of FLUX.1's on an RTX 3060
FLUX_FIRST_CHANNELS, RTX_3060_FLOPS = 128, 25.6e12
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

    def step_seconds(
        self,
        config: Mapping[str, Any],
        tokens: int,
        weight_bytes: int,
        *,
        dequantized: bool = False,
        integers: bool = False,
    ) -> float:
        """One denoise step over `tokens` image and text tokens, nothing streamed. `config` is the transformer's.

        `dequantized`: from FP8; `integers`: linear layers multiply in int8.
        """
        width = config["num_attention_heads"] * config["attention_head_dim"]
        blocks = config["num_layers"] + config["num_single_layers"]
        rate = self.integer_flops * INTEGER_SHARE if integers else self.flops * LINEAR_SHARE
        linear = 2 * tokens * blocks * 12 * width**2 / rate
        attention = 4 * tokens**2 * width * blocks / (self.flops * ATTENTION_SHARE)
        traffic = ELEMENTWISE_PASSES * blocks * tokens * width * 2
        if dequantized:
            traffic += 7 * weight_bytes  # read as fp8, written as bf16, scaled in place, read by the product
        return float(linear + attention + traffic / self.memory_bandwidth)

    def encode_seconds(
        self, config: Mapping[str, Any], tokens: int, moved_bytes: int, *, on_host: bool = False
    ) -> float:
        """T5 over `tokens`, its weights streamed, or on the CPU beside the card. `config` is T5's."""
        layer = 4 * config["d_model"] * config["num_heads"] * config["d_kv"] + 3 * config["d_model"] * config["d_ff"]
        rate = HOST_FLOPS if on_host else self.flops * LINEAR_SHARE
        compute = 2 * tokens * layer * config["num_layers"] / rate
        return float(max(compute, self.move_seconds(moved_bytes)))

    def decode_seconds(self, config: Mapping[str, Any], pixels: int) -> float:
        """The decoder. `config` is the autoencoder's."""
        share = (config["block_out_channels"][0] / FLUX_FIRST_CHANNELS) ** 2 * RTX_3060_FLOPS / self.flops
        return float(DECODER_SECONDS_PER_PIXEL * pixels * share)

    def move_seconds(self, moved_bytes: int, disk_bytes: int = 0, *, pinned: bool = False) -> float:
        """To the card; what comes from disk is read while the rest moves."""
        bus = self.bus_bandwidth * BUS_SHARE
        rate = bus if pinned else min(bus, HOST_BYTES_PER_SECOND)
        return max(moved_bytes / rate, disk_bytes / DISK_BYTES_PER_SECOND)


RTX_3060 = CardProfile("RTX 3060", 12 * GIB, RTX_3060_FLOPS, 102e12, 360e9, 31.5e9)
RTX_3090 = CardProfile("RTX 3090", 24 * GIB, 71e12, 284e12, 936e9, 31.5e9)
RTX_4090 = CardProfile("RTX 4090", 24 * GIB, 165e12, 661e12, 1008e9, 31.5e9)
CARDS = {"rtx-3060": RTX_3060, "rtx-3090": RTX_3090, "rtx-4090": RTX_4090}


def profile_of(device_name: str, total_bytes: int) -> CardProfile:
    """The profile of the card that is here, or a 3060's with its memory where nobody knows it."""
    for card in CARDS.values():
        if card.name in device_name:
            return card
    return replace(RTX_3060, name=device_name, total_bytes=total_bytes)
