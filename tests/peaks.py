"""What work holds in memory, by the engine's ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from engine.memory.ledger import counted


def peak_of(device_type: str, weights: Iterable[Tensor], work: Callable[[], object]) -> int:
    """The highest sum of live bytes while `work` runs, `weights` left out."""
    with counted(device_type) as ledger:
        ledger.ignore(weights)
        work()
        return ledger.peak_bytes
