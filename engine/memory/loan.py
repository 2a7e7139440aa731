"""A component's time on the device: what is resident is put there, what is streamed comes and goes as it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor

from engine.memory.host import PROGRESS_EVERY_BYTES, Host, Opened
from engine.memory.placement import Device, Placement, Progress
from engine.memory.ring import Ring, copying
from engine.memory.units import Unit
from engine.quantization import kernels
from engine.quantization.fp8 import Fp8Linear
from engine.sampling.modulation import Tables
from engine.weights.converted import column_maxima


class Loan:
    """One component's time on the device: `load` brings what is resident, the module then runs; `close` ends it."""

    def __init__(
        self, host: Host, opened: Opened, where: Device, placement: Placement, check: Callable[[], None], passes: int
    ) -> None:
        """`where` is the device; its blocks will run `passes` times."""
        self.component, self.placement = opened.component, placement
        self.name, self.module, self.dtype = self.component.name, self.component.module, self.component.dtype
        self.device = where.device
        self._host, self._opened, self._where, self._check, self._passes = host, opened, where, check, passes
        self._is_read = False
        self._arena: Tensor | None = None
        self._ring: Ring | None = None
        self._hooks: list[Any] = []
        self._installed: list[Unit] = []
        self._placed = 0

    def read(self) -> Iterator[Progress]:
        """Open the files and read what is kept on the host; nothing is on the device yet."""
        yield from self._host.open(self._opened, self._check)
        self._is_read = True
        yield from self._host.keep(self._opened, self.placement, self._check)

    def load(self) -> Iterator[Progress]:
        """Put the resident units on the device and start streaming the others; then the module can run."""
        streamed = self.placement.streamed
        needed = [unit for unit in self.component.units if unit.role != "modulation"]
        resident = [unit for unit in needed if unit.name not in streamed]
        opened = self._opened
        if not self._is_read:
            yield from self._host.open(opened, self._check)
            self._is_read = True
            # What is to be resident crosses while the next of it is read.
            later = [] if self.placement.in_place else [unit.name for unit in resident]
            yield from self._host.keep(opened, self.placement, self._check, later)
        self._empty_cache()  # of the slots that `visit` had
        self.component.place_buffers(self.device)
        if self.placement.in_place:
            for unit in resident:
                self._install(unit, unit.views(opened.copies[unit.name]))
                self._place(unit.nbytes)
        else:
            yield from self._fill_arena(resident, opened)
        crossing = [unit for unit in needed if unit.name in streamed]
        if crossing:
            self._stream(crossing, opened)

    def visit(self, names: Iterable[str]) -> Iterator[str]:
        """Bring units to the device one after the other, each until the next one is asked for; the name of each."""
        if not self._is_read:
            raise RuntimeError("read() comes first")
        by_name = {unit.name: unit for unit in self.component.units}
        units = [by_name[name] for name in names]
        opened = self._opened
        if self.placement.in_place:
            for unit in units:
                self._check()
                self._install(unit, unit.views(opened.copies[unit.name]))
                yield unit.name
                self._withdraw(unit)
            return
        with self._ring_of(units, iter(units), opened) as (ring, memory):
            for unit in units:
                slot = ring.acquire(unit)
                self._install(unit, unit.views(memory[slot][: unit.nbytes]))
                self._host.traffic.moved_bytes += unit.nbytes
                yield unit.name
                self._withdraw(unit)
                ring.release()

    def folded(self, tables: Tables) -> Tables:
        """Modulation tables as the component's blocks take them."""
        reader, form = self.component.reader, self._host.form(self.name, self._opened.precision)
        assert reader is not None
        if form is None or form.folds is None:
            return tables
        return Tables(form.folds.tables(tables.rows, reader.places))

    def column_maxima(self, names: Iterable[str]) -> Tensor:
        """The largest numbers of some weights' columns, together: float32 [in]. They are read once more."""
        weights = self._opened.weights
        if weights is None:
            raise RuntimeError("read() comes first")
        maxima = [column_maxima(weights.files, weights.names[name]) for name in names]
        return torch.stack(maxima).amax(dim=0)

    def embedded(self, ids: Tensor) -> Tensor:
        """The rows of the table that stays on the host for these ids: [1, S, width]."""
        if not self._is_read:
            raise RuntimeError("read() comes first")
        shape = self.component.host_shape
        assert shape is not None
        if self._opened.table is None:  # simulated
            return torch.empty(*ids.shape, shape[1], dtype=self.dtype, device=self.device)
        return torch.nn.functional.embedding(ids, self._opened.table)

    def close(self) -> None:
        """Take everything off the device."""
        for hook in self._hooks:
            hook.remove()
        if self._ring is not None:
            self._ring.close()
        for unit in self._installed:
            unit.withdraw()
        self._installed.clear()
        for unit in self.component.units:
            if unit.name in self.placement.streamed:
                unit.withdraw()
        self.component.place_buffers(torch.device("cpu"))
        if self.component.reader is not None:
            self.component.reader.leave()
        self._hooks, self._ring, self._arena = [], None, None
        self._where.place(-self._placed)
        self._placed = 0
        self._empty_cache()

    def _fill_arena(self, resident: Sequence[Unit], opened: Opened) -> Iterator[Progress]:
        total = sum(unit.nbytes for unit in resident)
        self._arena = self._allocate(total)
        start = done = reported = 0
        kept, reader = self.placement.kept, self._host.source(opened)
        missing = [unit for unit in resident if unit.name in kept and unit.name not in opened.copies]
        reading = self._host.read_ahead(opened, missing)
        with closing(reading), copying(self.device) as copy:
            for unit in resident:
                self._check()
                memory = self._arena[start : start + unit.nbytes]
                start += unit.nbytes
                if unit.name in kept and unit.name not in opened.copies:
                    next(reading, None)
                copy(unit, memory, reader)
                self._install(unit, unit.views(memory))
                self._host.traffic.moved_bytes += unit.nbytes
                done += unit.nbytes
                if done - reported >= PROGRESS_EVERY_BYTES or done == total:
                    reported = done
                    yield Progress(self.name, done, total)

    def _stream(self, crossing: Sequence[Unit], opened: Opened) -> None:
        """Let units come and go with the modules that need them."""
        order = chain.from_iterable(repeat(crossing, self._passes))
        slots = self._slots(crossing)
        self._ring = ring = Ring(slots, order, self._host.source(opened), self.device, self._check)
        views: dict[tuple[str, int], list[Any]] = {}
        traffic = self._host.traffic

        def hooks_of(unit: Unit) -> tuple[Callable[..., None], Callable[..., None]]:
            def enter(*_: object) -> None:
                slot = ring.acquire(unit)
                key = unit.name, slot
                if key not in views:
                    views[key] = unit.views(slots[slot][: unit.nbytes])
                unit.install(views[key])
                traffic.moved_bytes += unit.nbytes

            def leave(*_: object) -> None:
                ring.release()

            return enter, leave

        for unit in crossing:
            enter, leave = hooks_of(unit)
            self._hooks.append(unit.module.register_forward_pre_hook(enter))
            self._hooks.append(unit.module.register_forward_hook(leave))

    @contextmanager
    def _ring_of(self, units: Sequence[Unit], order: Iterator[Unit], opened: Opened) -> Iterator[Any]:
        before = self._placed
        slots = self._slots(units)
        ring = Ring(slots, order, self._host.source(opened), self.device, self._check)
        try:
            yield ring, slots
        finally:
            ring.close()
            for unit in units:
                unit.withdraw()
            self._where.place(before - self._placed)
            self._placed = before

    def _slots(self, units: Sequence[Unit]) -> list[Tensor]:
        largest = max(unit.nbytes for unit in units)
        memory = self._allocate(largest * self.placement.slots)
        return [memory[number * largest : (number + 1) * largest] for number in range(self.placement.slots)]

    def _allocate(self, nbytes: int) -> Tensor:
        memory = self._where.allocate(nbytes)
        self._placed += nbytes
        return memory

    def _place(self, nbytes: int) -> None:
        self._where.place(nbytes)
        self._placed += nbytes

    def _install(self, unit: Unit, views: list[Any]) -> None:
        unit.install(views)
        self._installed.append(unit)

    def _withdraw(self, unit: Unit) -> None:
        unit.withdraw()
        with suppress(ValueError):
            self._installed.remove(unit)

    def _empty_cache(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def set_kernel(module: Any, kernel: str) -> None:
    """How every 8-bit layer of a module multiplies; those that know no such kernel dequantize."""
    for layer in module.modules():
        if isinstance(layer, Fp8Linear):
            layer.kernel = kernel if kernel == "scaled_mm" else "dequantize"
    if hasattr(module, "kernels"):
        kernels.set_kernel(module, kernel)
