"""The budget held: on CUDA torch's allocator gets a hard limit, and what the process really took is measured."""

from __future__ import annotations

import torch

from engine.memory.driver import process_bytes
from engine.memory.target import Target

FULL_CARD = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class CardMemory:
    """What this process takes of a CUDA card: torch's allocator, which is capped, and what libraries take beside it.

    The second part grows when a library is first used, so it is looked at again whenever something is brought to the
    card, and the cap follows. On other devices there is nothing to hold and nothing to count.
    """

    def __init__(self, target: Target) -> None:
        self._budget_bytes = target.budget_bytes
        self._device = torch.device(target.device) if target.device.startswith("cuda") else None
        self._expected_bytes = target.context_bytes
        self._beside_bytes = target.context_bytes  # as it was seen last
        self._peak_bytes = 0

    def hold(self) -> None:
        """Let torch allocate no more than the budget less what the process takes beside, now or as is expected."""
        if self._device is not None:
            allowed = max(self._budget_bytes - max(self.look(), self._expected_bytes), 0)
            total = torch.cuda.get_device_properties(self._device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(allowed / total, 1.0), self._device)

    def release(self) -> None:
        """Take the limit away again."""
        if self._device is not None:
            torch.cuda.set_per_process_memory_fraction(1.0, self._device)

    def restart(self) -> None:
        """Look for the highest use from now on."""
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._peak_bytes = 0

    def look(self) -> int:
        """What the process takes beside torch's allocator now, in bytes; as expected where the driver does not tell."""
        if self._device is not None:
            if (process := process_bytes(self._device)) is not None:
                self._beside_bytes = max(process - torch.cuda.memory_reserved(self._device), 0)
            reserved = torch.cuda.max_memory_reserved(self._device)
            self._peak_bytes = max(self._peak_bytes, reserved + self._beside_bytes)
        return self._beside_bytes

    @property
    def used_bytes(self) -> int | None:
        """What the process takes now; None where nobody counts."""
        return None if self._device is None else torch.cuda.memory_reserved(self._device) + self._beside_bytes

    @property
    def peak_bytes(self) -> int | None:
        """The most that the process took since the restart, by the driver's count where it tells."""
        if self._device is None:
            return None
        return max(self._peak_bytes, torch.cuda.max_memory_reserved(self._device) + self._beside_bytes)


def card_is_full(error: BaseException) -> bool:
    """Whether a card refused an allocation: torch's allocator, the driver, or one of the libraries."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in FULL_CARD)


def host_is_full(error: BaseException) -> bool:
    """Whether the host refused an allocation."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def empty_cache(target: Target) -> None:
    """Give back what torch's allocator holds and nobody uses."""
    if target.device.startswith("cuda"):
        torch.cuda.empty_cache()
