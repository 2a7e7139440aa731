"""The budget held: on CUDA torch's allocator gets a hard limit, and what the process really took is measured."""

from __future__ import annotations

import torch

from engine.memory.target import Target, process_bytes

FULL_CARD = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def cap_allocator(target: Target) -> None:
    """Let torch allocate no more than the budget less what the process takes beside: so all of it stays inside."""
    if target.device.startswith("cuda"):
        device = torch.device(target.device)
        total = torch.cuda.get_device_properties(device).total_memory
        allowed = max(target.budget_bytes - context_now(target), 0)
        torch.cuda.set_per_process_memory_fraction(min(allowed / total, 1.0), device)


def uncap_allocator(target: Target) -> None:
    """Take the limit away again."""
    if target.device.startswith("cuda"):
        torch.cuda.set_per_process_memory_fraction(1.0, torch.device(target.device))


def restart_measuring(target: Target) -> None:
    """Look for the highest use from now on."""
    if target.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(target.device)


def measured_peak_bytes(target: Target) -> int | None:
    """The most that the process took of the card since then, context included; None where nobody counts."""
    if not target.device.startswith("cuda"):
        return None
    return torch.cuda.max_memory_reserved(target.device) + context_now(target)


def context_now(target: Target) -> int:
    """What the process takes of a card beside tensors: it grows when a library is used for the first time."""
    used = process_bytes(torch.device(target.device))
    beside = 0 if used is None else used - torch.cuda.memory_reserved(target.device)
    return max(target.context_bytes, beside)


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
