"""The streaming ring: units come in order, ahead of their use, and whatever goes wrong comes out where it is waited."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import chain, repeat

import pytest
import torch
from torch import Tensor, nn

from engine.cancel import CancelFlag, CancelledError
from engine.memory.ring import Ring
from engine.memory.units import Unit

BYTES = 1024


class Numbered:
    """A source whose unit k is full of the byte k; counts what was read."""

    def __init__(self, before: Callable[[int], None] = lambda _: None) -> None:
        self.read_units: list[str] = []
        self._before = before

    def host_copy(self, unit: Unit) -> Tensor | None:
        return None

    def read(self, unit: Unit, memory: Tensor) -> None:
        self._before(int(unit.name))
        memory.fill_(int(unit.name))
        self.read_units.append(unit.name)


def units(count: int) -> list[Unit]:
    return [Unit(str(number), "block", nn.Identity(), (), BYTES) for number in range(count)]


def slots(count: int, device: str = "cpu") -> list[Tensor]:
    return [torch.empty(BYTES, dtype=torch.uint8, device=device) for _ in range(count)]


def ring_of(
    order: list[Unit], source: Numbered, count: int = 3, passes: int = 1, check: Callable[[], None] = lambda: None
) -> tuple[Ring, list[Tensor]]:
    memory = slots(count)
    every = chain.from_iterable(repeat(order, passes))
    return Ring(memory, every, source, torch.device("cpu"), check), memory


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_unit_is_in_its_slot_when_it_is_acquired_in_every_pass(count: int) -> None:
    order, source = units(5), Numbered()
    ring, memory = ring_of(order, source, count, passes=4)
    for _ in range(4):
        for number, unit in enumerate(order):
            slot = ring.acquire(unit)
            assert set(memory[slot].tolist()) == {number}
            ring.release()
    ring.close()
    assert source.read_units == [unit.name for unit in order] * 4


def test_the_next_units_come_while_one_is_in_use_across_the_end_of_a_pass() -> None:
    order, source = units(4), Numbered()
    ring, memory = ring_of(order, source, passes=2)
    for unit in order:
        slot = ring.acquire(unit)
        if unit is not order[-1]:
            ring.release()
    wait_until(lambda: len(source.read_units) == 6)  # the last one and two of the next pass
    assert set(memory[slot].tolist()) == {3}, "a slot in use is not written to"
    assert source.read_units[4:] == ["0", "1"]
    ring.close()


def test_a_failure_in_the_copy_thread_is_raised_where_its_unit_is_waited_for() -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise OSError("the disk fell off")

    order = units(4)
    ring, _ = ring_of(order, Numbered(fail))
    for unit in order[:2]:  # what came before is still good
        ring.acquire(unit)
        ring.release()
    with pytest.raises(OSError, match="fell off"):
        ring.acquire(order[2])
    ring.close()


def test_cancelling_ends_a_wait_for_a_slow_copy() -> None:
    hold, flag = threading.Event(), CancelFlag()
    order = units(2)

    def wait(_: int) -> None:
        hold.wait(60)

    ring, _ = ring_of(order, Numbered(wait), check=flag.check)
    threading.Timer(0.1, flag.set).start()
    with pytest.raises(CancelledError):
        ring.acquire(order[0])
    hold.set()
    ring.close()
    assert not ring._thread or not ring._thread.is_alive()


def test_closing_in_the_middle_of_a_prefetch_ends_the_thread_and_writes_no_more() -> None:
    order, source = units(6), Numbered()
    ring, memory = ring_of(order, source, count=2)
    ring.acquire(order[0])
    wait_until(lambda: len(source.read_units) == 2)
    ring.close()
    assert ring._thread is not None
    assert not ring._thread.is_alive()
    assert source.read_units == ["0", "1"]
    assert set(memory[0].tolist()) == {0}


def test_another_unit_than_the_next_is_refused() -> None:
    order = units(3)
    ring, _ = ring_of(order, Numbered())
    with pytest.raises(RuntimeError, match="next"):
        ring.acquire(order[1])
    ring.close()
    ring, _ = ring_of(order, Numbered())
    ring.acquire(order[0])
    with pytest.raises(RuntimeError, match="in use"):
        ring.acquire(order[1])
    ring.close()


def test_a_ring_that_has_ended_says_so() -> None:
    order = units(1)
    ring, _ = ring_of(order, Numbered())
    ring.acquire(order[0])
    ring.release()
    with pytest.raises(RuntimeError, match="ended"):
        ring.acquire(order[0])
    ring.close()


def test_on_meta_only_the_order_is_kept() -> None:
    order = units(2)
    ring = Ring(slots(2, "meta"), iter(order), Numbered(), torch.device("meta"), lambda: None)
    assert ring.acquire(order[0]) == 0
    ring.release()
    with pytest.raises(RuntimeError, match="next"):
        ring.acquire(order[0])
    ring.close()
