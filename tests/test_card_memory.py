"""The budget is the process's: what libraries take of a card beside torch's allocator comes off the allocator's cap."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine import Engine, ImageSaved, Request
from engine.memory import driver, enforce
from engine.memory.cards import RTX_3060
from engine.memory.driver import CONTEXT_BYTES, GROWTH_BYTES, context_bytes, set_allocator
from engine.memory.enforce import CardMemory
from engine.memory.target import Target
from tests.bench.models import Sampler

MIB, GIB = 2**20, 2**30
TOTAL = 12 * GIB
TARGET = Target("cuda:0", "cuda:0", True, 8 * GIB, 32 * GIB, 700 * MIB + GROWTH_BYTES, RTX_3060)


@dataclass
class Card:
    """The counters of a card: what torch's allocator has reserved, its cap, and what the process takes beside."""

    reserved: int = 0
    highest: int = 0
    beside: int = 700 * MIB
    allowed: int = TOTAL
    told: bool = True  # whether the driver tells what a process takes

    def reserve(self, count: int) -> None:
        """As torch's allocator does: as far as it may."""
        self.reserved = min(self.reserved + count, self.allowed)
        self.highest = max(self.highest, self.reserved)

    def cap(self, fraction: float, _: object) -> None:
        self.allowed = int(fraction * TOTAL)

    def restart(self, _: object) -> None:
        self.highest = self.reserved

    @property
    def process(self) -> int:
        return self.reserved + self.beside


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    found = Card()
    monkeypatch.setattr(enforce, "process_bytes", lambda _: found.process if found.told else None)
    for name, value in {
        "memory_reserved": lambda _: found.reserved,
        "max_memory_reserved": lambda _: found.highest,
        "set_per_process_memory_fraction": found.cap,
        "reset_peak_memory_stats": found.restart,
        "get_device_properties": lambda _: SimpleNamespace(total_memory=TOTAL, uuid="1"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return found


def test_growth_that_was_measured_is_kept_free_from_the_start(card: Card) -> None:
    memory = CardMemory(TARGET)
    memory.hold()
    card.beside += GROWTH_BYTES  # cuBLASLt, cuDNN and Triton come in the middle of the first phase
    card.reserve(TOTAL)
    assert card.process == TARGET.budget_bytes


def test_growth_beyond_that_comes_off_the_cap_at_the_next_phase(card: Card) -> None:
    memory = CardMemory(TARGET)
    memory.hold()
    card.beside += GROWTH_BYTES + 50 * MIB
    memory.hold()
    card.reserve(TOTAL)
    assert card.process == TARGET.budget_bytes
    memory.release()
    assert card.allowed == TOTAL


def test_the_peak_is_the_drivers_count(card: Card) -> None:
    memory = CardMemory(TARGET)
    memory.hold()
    memory.restart()
    card.beside += 60 * MIB
    card.reserve(3 * GIB)
    memory.look()  # as a phase ends
    card.reserved = GIB
    assert memory.used_bytes == card.process
    assert memory.peak_bytes == 3 * GIB + 760 * MIB
    memory.restart()
    memory.look()
    assert memory.peak_bytes == card.process


def test_where_the_driver_tells_nothing_what_was_measured_elsewhere_is_expected(card: Card) -> None:
    card.told = False
    memory = CardMemory(TARGET)
    memory.hold()
    card.reserve(TOTAL)
    assert card.reserved == TARGET.budget_bytes - TARGET.context_bytes
    assert memory.used_bytes == memory.peak_bytes == TARGET.budget_bytes


def test_elsewhere_nothing_is_held_and_nothing_counted() -> None:
    memory = CardMemory(replace(TARGET, name="cpu", device="cpu"))
    memory.hold()
    memory.restart()
    memory.release()
    assert (memory.used_bytes, memory.peak_bytes) == (None, None)


def test_a_plan_heeds_a_context_that_is_larger_than_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request("a cat", width=1024, height=1024, precision="fp8")
    with Engine.open("flux.1-dev", vram="8GiB", simulate=True) as engine:
        before = engine.plan(request)
        planners = []
        for growth in (300 * MIB, 300 * MIB + 1, 304 * MIB, 304 * MIB + 1):
            monkeypatch.setattr(engine.runtime().card, "look", partial(int, CONTEXT_BYTES + growth))
            after = engine.plan(request)
            planners.append(engine.runtime().planner)
    assert [phase.allowance_bytes for phase in after.phases] == [
        phase.allowance_bytes + 320 * MIB for phase in before.phases
    ]
    assert [planner is planners[0] for planner in planners] == [True, True, True, False], "it grows by pieces"
    assert after.peak_bytes <= after.budget_bytes


@pytest.mark.parametrize(
    ("mine", "others", "expected"), [(500, 0, 500), (500, 5000, CONTEXT_BYTES // MIB), (3, 0, CONTEXT_BYTES // MIB)]
)
def test_a_context_that_no_process_is_told_of_is_the_cards_own_growth(
    monkeypatch: pytest.MonkeyPatch, mine: int, others: int, expected: int
) -> None:
    """Where other programs came or went in between, it is what was measured elsewhere."""
    reserved, before = 34, 1200

    with monkeypatch.context() as patched:
        patched.setattr(driver, "process_bytes", lambda _: None)
        patched.setattr(driver, "used_by_card", lambda: {"GPU-1": (before + mine + others + reserved) * MIB})
        for name, value in {
            "device": lambda _: torch.no_grad(),
            "synchronize": lambda _: None,
            "memory_reserved": lambda _: reserved * MIB,
            "empty_cache": lambda: None,
            "get_device_properties": lambda _: SimpleNamespace(uuid="1"),
        }.items():
            patched.setattr(torch.cuda, name, value)
        found = context_bytes(torch.device("cpu"), {"GPU-1": before * MIB})
    assert found == (expected * MIB, False)


def test_the_allocator_knows_its_setting() -> None:
    """A name that torch does not know would be an error only where there is a card."""
    set_allocator("expandable_segments:False")
    with pytest.raises((RuntimeError, ValueError)):
        set_allocator("expandable_segments:perhaps")


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_what_the_person_set_for_the_allocator_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(os.environ, name, "max_split_size_mb:128")
    monkeypatch.setattr(driver, "set_allocator", pytest.fail)
    driver.let_segments_grow(torch.device("cuda:0"))


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "fp8", "int8"])
def test_the_process_stays_inside_its_budget_on_a_card(tmp_path: Any, precision: str) -> None:
    from engine.images.save import Destination

    with Engine.open("demo", device="cuda", vram="1400MiB") as engine:
        device = torch.device(engine.runtime().target.device)
        with Sampler(lambda: driver.process_bytes(device)) as process:
            *_, last = engine.generate(Request("a red circle", seed=1, precision=precision), Destination(tmp_path))
        faults = torch.cuda.memory_stats(device)["num_alloc_retries"]
    assert isinstance(last, ImageSaved)
    assert 0 < (process.peak or 0) <= 1400 * MIB
    assert faults == 0
