"""Weights from files into memory: several threads, the bits of one, no more under way than is allowed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.cancel import CancelledError
from engine.errors_log import memory_shortage
from engine.library.catalog import DEMO_FOLDER, open_model
from engine.memory import host, units
from engine.memory.components import Components
from engine.memory.enforce import host_is_full
from engine.memory.placement import Placement, Progress
from engine.memory.ring import host_memory
from engine.precision import BF16, FP8, FP32, INT8, Precision
from engine.request import RequestError
from engine.weights import reading as weights
from engine.weights.direct import page_aligned

CPU = torch.device("cpu")
PRECISIONS = (FP32, BF16, FP8, INT8)


def test_memory_that_there_is_not_is_no_fault_of_a_disk() -> None:
    for take in (host_memory, page_aligned):
        with pytest.raises(MemoryError) as refused:
            take(2**60)
        assert host_is_full(refused.value)
        assert memory_shortage(refused.value)
    assert memory_shortage(OSError(errno.ENOMEM, "Cannot allocate memory", "a folder that is listed for an import"))
    assert not memory_shortage(OSError(errno.EIO, "Input/output error"))


def go_on() -> None:
    """Nobody cancels."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the demo's tensors have many."""
    for module in (weights, units):
        monkeypatch.setattr(module, "PART_BYTES", 3000)


@pytest.fixture
def components() -> Iterator[Components]:
    made = Components(open_model("demo"), CPU)
    yield made
    made.clear()


def everything(components: Components, precision: Precision, *, in_place: bool = True) -> Placement:
    named = components.component("transformer", precision).units
    return Placement(kept=frozenset(unit.name for unit in named), in_place=in_place)


def kept(components: Components, precision: Precision) -> tuple[dict[str, Tensor], list[Progress]]:
    """Host copies of the transformer's units, and how they came."""
    placement = everything(components, precision)
    progress = [*components.keep("transformer", precision, placement, go_on)]
    return components._open["transformer"].copies, progress


def nothing_is_read(components: Components) -> None:
    """What had not begun was dropped, and what had begun has ended."""
    weights = components._open["transformer"].weights
    assert weights is not None
    before = weights.files.bytes_read
    for _ in range(20):
        components.host.threads.submit(int).result()
    assert weights.files.bytes_read == before


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_units_that_several_threads_read_have_the_bits_of_one(
    components: Components, precision: Precision, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cached:  # 8 bits are made while the units are read
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    copies, _ = kept(components, precision)
    opened = components._open["transformer"]
    assert opened.weights is not None
    assert opened.weights.converted == (cached and precision.is_8_bits)
    for unit in opened.component.units:
        alone = torch.zeros(unit.nbytes, dtype=torch.uint8)
        opened.weights.fill(unit, alone)
        for piece in unit.pieces:
            got, expected = (piece.view(memory).view(torch.uint8) for memory in (copies[unit.name], alone))
            assert torch.equal(got, expected), piece.stored


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_progress_is_exact_and_every_byte_is_read_once(components: Components, precision: Precision) -> None:
    conversion_and_loading = kept(components, precision)[1]
    begins = max(index for index, at in enumerate(conversion_and_loading) if at.done_bytes == 0)
    progress = conversion_and_loading[begins:]
    opened = components._open["transformer"]
    assert opened.weights is not None
    stored = opened.weights.stored_bytes(opened.component.units)
    assert {at.total_bytes for at in progress} == {stored}
    assert [at.done_bytes for at in progress] == sorted(at.done_bytes for at in progress)
    assert progress[-1].done_bytes == stored == components.traffic.disk_bytes == opened.weights.files.bytes_read


def test_no_more_is_under_way_than_is_allowed(components: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(unit.nbytes for unit in components.component("transformer", FP32).units)
    monkeypatch.setattr(host, "AHEAD_BYTES", largest)
    allocated = 0

    def counted(nbytes: int) -> Tensor:
        nonlocal allocated
        allocated += nbytes
        return host_memory(nbytes)

    monkeypatch.setattr(host, "host_memory", counted)
    under_way = []

    def look() -> None:
        there = components._open["transformer"].copies
        under_way.append(allocated - sum(memory.numel() for memory in there.values()))

    for _ in components.keep("transformer", FP32, everything(components, FP32), look):
        pass
    assert max(under_way) > 0, "the next is read while one is used"
    assert max(under_way) <= 2 * largest


def test_what_is_resident_crosses_while_the_next_is_read(components: Components) -> None:
    """One pass over the file fills the device and the host copies."""
    placement = everything(components, FP32, in_place=False)
    modulation = {unit.name for unit in components.component("transformer", FP32).of_role("modulation")}
    with components.lend("transformer", FP32, placement, go_on) as loan:
        read_before = [at for at in loan.load() if at.total_bytes]
        opened = components._open["transformer"]
        assert opened.weights is not None
        assert opened.copies.keys() == placement.kept
        assert components.traffic.disk_bytes == opened.weights.files.bytes_read
        for unit in opened.component.units:
            if unit.name not in modulation:
                for piece in unit.pieces:
                    parameter = piece.owner._parameters[piece.leaf]
                    assert parameter is not None
                    assert torch.equal(parameter.data, piece.view(opened.copies[unit.name]))
    resident = sum(unit.nbytes for unit in loan.component.units if unit.name not in modulation)
    assert read_before[-1] == Progress("transformer", resident, resident)


def test_cancelling_leaves_no_thread_at_work(components: Components) -> None:
    asked = 0

    def cancel() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise CancelledError

    placement = everything(components, BF16)
    with pytest.raises(CancelledError):
        list(components.keep("transformer", BF16, placement, cancel))
    nothing_is_read(components)
    opened = components._open["transformer"]
    assert 0 < len(opened.copies) < len(placement.kept)
    assert [*components.keep("transformer", BF16, placement, go_on)], "what is missing is read afterwards"
    assert opened.copies.keys() == placement.kept


def test_a_file_that_shrinks_while_it_is_loaded_gives_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEMO_FOLDER, folder)
    components = Components(open_model(folder), CPU)
    placement = everything(components, BF16)
    reading = components.keep("transformer", BF16, placement, go_on)
    next(reading)
    (file,) = components.model.files["transformer"]
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(RequestError, match="has changed while it was in use"):
        list(reading)
    nothing_is_read(components)
    components.clear()


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 2 * 2**20, 5 * 2**20 + 3])
def test_host_memory_has_its_size_and_can_be_written(nbytes: int) -> None:
    memory = host_memory(nbytes)
    assert (memory.dtype, memory.numel()) == (torch.uint8, nbytes)
    memory.fill_(7)
    assert int(memory.sum()) == 7 * nbytes
    assert memory.data_ptr() % 64 == 0 or nbytes == 0


def test_a_thread_that_reads_weights_computes_alone(components: Components) -> None:
    usual = torch.get_num_threads()
    counts = {components.host.threads.submit(torch.get_num_threads).result() for _ in range(20)}
    assert counts == {1}
    assert torch.get_num_threads() == usual
