"""What a card and its driver tell of memory and of time."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from engine.quantization.probing import card_milliseconds
from tests.bench.models import Sampler


class CardGauge:
    """What the driver counts for this process on a card; where it does not tell, what the whole card uses more."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.source: str | None = None
        self._handle: Any = None
        self._before = 0
        if self.device.type == "cuda":
            with suppress(Exception):  # whatever a driver may raise
                import pynvml

                pynvml.nvmlInit()
                uuid = f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                self._before = int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def __call__(self) -> int | None:
        if self._handle is None:
            return None
        with suppress(Exception):
            import pynvml

            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                if process.pid == os.getpid() and process.usedGpuMemory:
                    self.source = "process"
                    return int(process.usedGpuMemory)
            if self.source != "process":
                self.source = "card"
                return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used) - self._before
        return None


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def restart_peaks(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def reserved_peak(device: str) -> int | None:
    return torch.cuda.max_memory_reserved(device) if device.startswith("cuda") else None


def allocator_faults(device: str) -> dict[str, int]:
    """Allocations of this process that were refused at last, and those that succeeded once the cache was emptied."""
    if not device.startswith("cuda"):
        return {"out_of_memory": 0, "retries": 0}
    stats = torch.cuda.memory_stats(device)
    return {"out_of_memory": int(stats.get("num_ooms", 0)), "retries": int(stats.get("num_alloc_retries", 0))}


def peak_bytes(device: str, card: Sampler, context_bytes: int) -> int | None:
    """The most that the process took since the last restart: the driver's word, or the allocator's if that is more."""
    reserved = reserved_peak(device)
    found = [
        value for value in (card.peak, None if reserved is None else reserved + context_bytes) if value is not None
    ]
    return max(found, default=None)


def milliseconds(device: str, work: Callable[[], object]) -> float:
    """The median time of `work`, by the card's own clock where there is one."""
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return statistics.median(card_milliseconds(work, 2, 5))
    work()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
