"""The budget held: on CUDA torch's allocator gets a hard limit, and what the process really took is measured."""

from __future__ import annotations

import torch

from engine.memory.target import Target


def cap_allocator(target: Target) -> None:
    """Let torch allocate no more than the budget less what the process takes beside: so all of it stays inside."""
    if target.device.startswith("cuda"):
        device = torch.device(target.device)
        total = torch.cuda.get_device_properties(device).total_memory
        allowed = max(target.budget_bytes - target.context_bytes, 0)
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
    return torch.cuda.max_memory_reserved(target.device) + target.context_bytes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation was refused, on a card or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
