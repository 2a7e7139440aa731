"""Where weights lie, on the device and in host memory, and what moved between them: values that the planner makes and
the components follow, and the count of bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.memory.ring import host_memory


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a component's weights lie while it is lent, and what stays of them in between. Units are named."""

    streamed: frozenset[str] = frozenset()  # cross to the device anew in each pass
    slots: int = 0  # of the ring
    kept: frozenset[str] = frozenset()  # have a copy in host memory between uses
    in_place: bool = False  # the device is the CPU, which computes with the host copies where they lie


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a component has been brought to where it is needed."""

    component: str
    done_bytes: int
    total_bytes: int


class Device:
    """The card, real or simulated: what the memory manager placed there, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.placed_bytes = 0
        self.peak_placed_bytes = 0

    def allocate(self, nbytes: int) -> Tensor:
        """Uninitialized memory, uint8."""
        if self.device.type == "cpu":
            memory = host_memory(nbytes)
        else:
            memory = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        self.place(nbytes)
        return memory

    def place(self, nbytes: int) -> None:
        """Count memory that is in use there from now on, or (negative) no longer."""
        self.placed_bytes += nbytes
        self.peak_placed_bytes = max(self.peak_placed_bytes, self.placed_bytes)


@dataclass(slots=True)
class Traffic:
    """Bytes since the start of a job."""

    moved_bytes: int = 0  # to the card
    disk_bytes: int = 0  # from files

    def restart(self) -> None:
        """Count from here."""
        self.moved_bytes = self.disk_bytes = 0
