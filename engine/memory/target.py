"""What a plan is made for: a card with its budget, the CPU, or a card that is only simulated."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from engine.memory.cards import RTX_3060, CardProfile, profile_of
from engine.memory.driver import CONTEXT_BYTES, GROWTH_BYTES, context_bytes, let_segments_grow, used_by_card
from engine.request import RequestError
from engine.text import size

GIB, MIB = 2**30, 2**20
DESKTOP_BYTES = (600 if sys.platform == "win32" else 400) * MIB  # left to others on the card where nobody says how much
SYSTEM_SHARE, SYSTEM_BYTES = 0.10, GIB  # of RAM, left to others
SIMULATED_RAM_BYTES = 13 * GIB  # what a PC with 16 GiB has left
NOMINAL = 1.06  # a card that is sold as 12 GiB tells torch of a little less
CPU_PROFILE = CardProfile("CPU", 0, 0.5e12, 0.5e12, 30e9, 10e9)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model runs. Budgets are in bytes; `context_bytes` of the card's are no tensors: CUDA with all libraries
    that a picture needs."""

    name: str  # for people
    device: str  # as torch names it; "meta" where it is simulated
    is_card: bool  # has a memory of its own, which weights cross a bus to
    budget_bytes: int
    ram_budget_bytes: int
    context_bytes: int
    profile: CardProfile
    note: str = ""  # a sentence for the person

    @property
    def simulated(self) -> bool:
        return self.device == "meta"


def resolve(
    device_name: str, vram_bytes: int | None, ram_bytes: int | None, *, simulated: bool, card: CardProfile = RTX_3060
) -> Target:
    """The target of `--device`, `--vram` and `--ram` (None: auto). Raises `RequestError` for what is not here."""
    if simulated:
        budget = vram_bytes if vram_bytes is not None else card.total_bytes - DESKTOP_BYTES
        ram = ram_bytes if ram_bytes is not None else SIMULATED_RAM_BYTES
        return Target(f"{card.name} (simulated)", "meta", True, budget, ram, CONTEXT_BYTES, card)
    ram = _ram_budget(ram_bytes)
    before = used_by_card()
    device_name = _existing_device(device_name)
    if device_name == "cpu":
        name = "cpu" if vram_bytes is None else "cpu as a card"
        return Target(name, "cpu", False, vram_bytes if vram_bytes is not None else ram, ram, 0, CPU_PROFILE)
    device = torch.device(device_name)
    let_segments_grow(device)
    context, is_told = context_bytes(device, before)
    free, total = torch.cuda.mem_get_info(device)
    if vram_bytes is not None and vram_bytes > total * NOMINAL:
        raise RequestError("vram", f"vram {size(vram_bytes)} is more than the {size(total)} of this card; take less.")
    budget = min(vram_bytes, total) if vram_bytes is not None else min(free + context, total) - DESKTOP_BYTES
    profile = profile_of(torch.cuda.get_device_name(device), total)
    notes = []
    if budget > free + context:
        notes.append(f"only {size(free + context)} of the card are free now: other programs use the rest.")
    if not is_told:
        notes.append(
            "the driver does not tell what this process takes of the card, so the budget holds for tensors and "
            f"{size(context + GROWTH_BYTES)} beside them."
        )
    return Target(device_name, device_name, True, budget, ram, context + GROWTH_BYTES, profile, " ".join(notes))


def _existing_device(name: str) -> str:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name.startswith("cuda") and not torch.cuda.is_available():
        raise RequestError("device", "torch sees no CUDA card; run `t2i doctor` to learn why, or use --device cpu.")
    device = torch.device(name)
    if device.type != "cuda":
        return name
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise RequestError("device", f"there is no {name}; torch sees {torch.cuda.device_count()} card(s).")
    return f"cuda:{index}"


def _ram_budget(ram_bytes: int | None) -> int:
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limit = _container_limit()
    if limit is not None:
        total, available = min(total, limit), min(available, limit)
    if ram_bytes is None:
        return int(max(available + psutil.Process().memory_info().rss - max(SYSTEM_BYTES, SYSTEM_SHARE * total), 0))
    if ram_bytes > total:
        raise RequestError("ram", f"ram {size(ram_bytes)} is more than the {size(total)} of this machine; take less.")
    return ram_bytes


def _container_limit() -> int | None:
    """What a container's control group allows, which psutil does not know."""
    with suppress(OSError, ValueError):
        return int(Path("/sys/fs/cgroup/memory.max").read_text("ascii"))
    return None
