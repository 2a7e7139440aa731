"""What a card's driver and torch's allocator are asked: what this process takes, and how its memory is cut."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress

import torch

GIB, MIB = 2**30, 2**20
CONTEXT_BYTES = 450 * MIB  # of CUDA with all its libraries, where it cannot be measured
# Of the context, from its measuring to when cuBLASLt, cuDNN and Triton's modules are in use: an H100 took 75 to 78 MiB.
GROWTH_BYTES = 80 * MIB
SMALLEST_CONTEXT_BYTES, LARGEST_CONTEXT_BYTES = 100 * MIB, 2 * GIB  # else others came or went while it was measured


def let_segments_grow(device: torch.device) -> None:
    """Let torch's allocator map memory page by page where the platform can, so that pieces of odd sizes leave no holes.

    Holes would count against the cap, and each time that it is hit all cached memory is given back, while the card
    waits. What the person set for the allocator stays.
    """
    if sys.platform != "linux" or {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        return
    try:
        set_allocator("expandable_segments:True")
        torch.empty(1, device=device)
    except RuntimeError:  # a driver without virtual memory
        set_allocator("expandable_segments:False")


def set_allocator(setting: str) -> None:
    """One of the settings of torch's allocator that `PYTORCH_ALLOC_CONF` takes, for what is allocated from now on."""
    name = "_accelerator_setAllocatorSettings"  # since torch 2.9
    if hasattr(torch._C, name):
        getattr(torch._C, name)(setting)
    else:
        torch._C._cuda_cudaCachingAllocator_set_allocator_settings(setting)  # type: ignore[attr-defined]


def context_bytes(device: torch.device, before: Mapping[str, int]) -> tuple[int, bool]:
    """What this process takes of the card beside tensors, with the libraries of matrix products and convolutions; and
    whether the driver counts it for this process.

    `before`: what was in use of each card when this process had no part of it.
    """
    with torch.cuda.device(device), torch.no_grad():
        square = torch.zeros(64, 64, device=device, dtype=torch.bfloat16)
        square @ square
        torch.nn.functional.conv2d(square[None, None], square[None, None, :3, :3])
        torch.cuda.synchronize(device)
        reserved = torch.cuda.memory_reserved(device)
    used = process_bytes(device)
    del square
    torch.cuda.empty_cache()
    if used is not None:
        return max(used - reserved, 0), True
    uuid = _uuid(device)
    context = used_by_card().get(uuid, 0) - before.get(uuid, 0) - reserved
    return context if SMALLEST_CONTEXT_BYTES <= context <= LARGEST_CONTEXT_BYTES else CONTEXT_BYTES, False


def process_bytes(device: torch.device) -> int | None:
    """What the driver counts for this process on the card; None where it does not tell (Windows, containers)."""
    with suppress(Exception):  # whatever a driver may raise
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(_uuid(device))
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory:
                return int(process.usedGpuMemory)
    return None


def used_by_card() -> dict[str, int]:
    """Bytes in use of every card, whoever uses them, by its UUID; empty where no driver tells."""
    used: dict[str, int] = {}
    with suppress(Exception):  # whatever a driver may raise
        import pynvml

        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = pynvml.nvmlDeviceGetUUID(handle)
            name = uuid if isinstance(uuid, str) else uuid.decode()
            used[name] = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    return used


def _uuid(device: torch.device) -> str:
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
