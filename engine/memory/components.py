"""The components of an open model: read once, kept on the host as the plan says, lent to a phase one at a time.

No phase moves weights itself: it asks here for a component and gets a module that is ready to run. Whether its weights
lie whole on the device or cross to it block by block while it runs is decided by the plan and seen here alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor

from engine.library.caches import what_could_go
from engine.memory.ring import Ring, copying, host_memory, pin
from engine.memory.units import Component, Unit, Weights, build, precision_of
from engine.precision import Precision
from engine.quantization import kernels
from engine.quantization.fp8 import Fp8Linear
from engine.quantization.salience import Folds
from engine.sampling.modulation import Tables
from engine.weights import calibrations
from engine.weights.converted import column_maxima, converted_files, is_converted_already
from engine.weights.forms import Form
from engine.weights.loading import check_tensors
from engine.weights.model import Model
from engine.weights.reading import WeightFiles
from engine.weights.workers import give_up, start_workers, wait

PROGRESS_EVERY_BYTES = 32 * 2**20
AHEAD_BYTES = 256 * 2**20  # of units that are read while one is waited for


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a component's weights lie while it is lent, and what stays of them in between. Units are named."""

    streamed: frozenset[str] = frozenset()  # cross to the device anew in each pass
    slots: int = 0  # of the ring
    kept: frozenset[str] = frozenset()  # have a copy in host memory between uses
    in_place: bool = False  # the device is the CPU, which computes with the host copies where they lie


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a component has been brought to where it is needed."""

    component: str
    done_bytes: int
    total_bytes: int


class Device:
    """The card, real or simulated: what the memory manager placed there, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.placed_bytes = 0
        self.peak_placed_bytes = 0

    def allocate(self, nbytes: int) -> Tensor:
        """Uninitialized memory, uint8."""
        if self.device.type == "cpu":
            memory = host_memory(nbytes)
        else:
            memory = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        self.place(nbytes)
        return memory

    def place(self, nbytes: int) -> None:
        """Count memory that is in use there from now on, or (negative) no longer."""
        self.placed_bytes += nbytes
        self.peak_placed_bytes = max(self.peak_placed_bytes, self.placed_bytes)


@dataclass(slots=True)
class Traffic:
    """Bytes since the start of a job."""

    moved_bytes: int = 0  # to the card
    disk_bytes: int = 0  # from files


class Components:
    """The modules of one model, and the rule that only one of them is on the device at a time."""

    def __init__(self, model: Model, device: torch.device, *, model_hash: str = "", simulated: bool = False) -> None:
        """`simulated`: the device is torch's meta device, nothing is read, and only sizes move. `model_hash` is what
        balancing factors are found by."""
        self.model = model
        self.model_hash = model_hash
        self.simulated = simulated
        self.device = Device(device)
        self.resident: str | None = None  # the component on the device now
        self.notices: list[str] = []  # sentences for the person
        self._told: set[str] = set()  # those that each conversion would say again
        self._said_unpinned = False
        self.traffic = Traffic()
        self._open: dict[str, _Opened] = {}
        self._precision: dict[str, Precision] = {}
        self._forms: dict[Precision, Form] = {}  # for as long as this lives: tables and weights must agree
        self._threads: ThreadPoolExecutor | None = None

    def form(self, name: str, precision: Precision) -> Form | None:
        """The 8-bit form of a component in this precision; None where there is none.

        Raises `RequestError` where it needs balancing factors and there are none, or another model's.
        """
        precision = self._precision_of(name, precision)
        if precision.kind not in self.model.family.part(name).forms:
            return None
        if precision not in self._forms:
            self._forms[precision] = self._made(precision)
        return self._forms[precision]

    def _made(self, precision: Precision) -> Form:
        family, inputs = self.model.family, self.model.inputs
        if not precision.is_int8:
            return Form(family, precision)
        if not precision.salience:
            return Form(family, precision, Folds(inputs, {}))
        calibration = calibrations.read(self.model.name, self.model_hash, inputs)
        factors, digest = calibration.factors[precision.salience], calibration.digest(precision.salience)
        return Form(family, precision, Folds(inputs, factors), digest)

    def _precision_of(self, name: str, precision: Precision) -> Precision:
        return precision_of(self.model.family.part(name), precision)

    def component(self, name: str, precision: Precision) -> Component:
        """The component without weights; another precision of it is forgotten."""
        precision = self._precision_of(name, precision)
        if self._precision.get(name) != precision:
            self._forget(name)
            self._open[name] = _Opened(build(self.model, name, precision))
            self._precision[name] = precision
        return self._open[name].component

    def would_forget(self, name: str, precision: Precision) -> bool:
        """Whether asking for this component would cost another precision of it that is open."""
        precision = self._precision_of(name, precision)
        return self._precision.get(name, precision) != precision

    def keep(
        self, name: str, precision: Precision, placement: Placement, check: Callable[[], None]
    ) -> Iterator[Progress]:
        """Read what `placement` keeps into host memory; yields progress, nothing where it is there already."""
        opened = yield from self._opened(name, precision, check)
        yield from self._keep(opened, placement, check)

    def arrange(self, precision: Precision, placements: Mapping[str, Placement]) -> None:
        """Let go of what a new plan does not keep, before anything is read for it."""
        for name, kept_in in list(self._precision.items()):
            if kept_in != self._precision_of(name, precision) or name not in placements:
                self._forget(name)
        for name, opened in self._open.items():
            for unit in opened.host.keys() - placements[name].kept:
                del opened.host[unit]

    def drop_host_copies(self) -> None:
        """Make room in RAM; the next use reads them again."""
        for opened in self._open.values():
            opened.host.clear()

    def begin_job(self) -> None:
        """Count from here."""
        self.traffic = Traffic()
        self.device.peak_placed_bytes = self.device.placed_bytes

    @contextmanager
    def lend(
        self,
        name: str,
        precision: Precision,
        placement: Placement,
        check: Callable[[], None],
        *,
        passes: int = 1,
        kernel: str | None = None,
        device: str | None = None,
    ) -> Iterator[Loan]:
        """The device, for this component alone; off it again afterwards.

        `passes`: how often its blocks will run. `kernel`: of its 8-bit layers. `device`: another one than planned.
        """
        if self.resident is not None:
            raise RuntimeError(f"{name} was asked for while {self.resident} is on the device")
        where = self.device if device is None else Device(torch.device(device))
        loan = Loan(self, self.component(name, precision), where, precision, placement, check, passes)
        if kernel is not None:
            set_kernel(loan.module, kernel)
        self.resident = name
        try:
            yield loan
        finally:
            try:
                loan.close()
            finally:
                self.resident = None

    def clear(self) -> None:
        """Forget every host copy."""
        for name in list(self._open):
            self._forget(name)
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    @property
    def threads(self) -> ThreadPoolExecutor:
        """Those that read weights. They are started before anything computes with what they read."""
        if self._threads is None:
            self._threads = start_workers()
        return self._threads

    def _forget(self, name: str) -> None:
        opened = self._open.pop(name, None)
        self._precision.pop(name, None)
        if opened is not None:
            opened.close()

    def _opened(self, name: str, precision: Precision, check: Callable[[], None]) -> Generator[Progress, None, _Opened]:
        """A component with its files open; the first use of 8 bits makes them."""
        component = self.component(name, precision)
        opened = self._open[name]
        if opened.weights is None and not self.simulated:
            files, place = self.model.files[name], self.model.place(name)
            source = WeightFiles.open(files, name, families=[self.model.family])
            try:
                names = check_tensors(component.wanted, source, place, self.model.family.networks, name)
                form, is_converted = self.form(name, precision), False
                if form is not None and not is_converted_already(source, name, form):
                    notices: list[str] = []
                    conversion = converted_files(name, files, component.dtype, notices, form, what_could_go)
                    converted = None
                    try:
                        while True:
                            done, total = next(conversion)
                            check()
                            yield Progress(name, done, total)
                    except StopIteration as end:
                        converted = end.value
                    finally:
                        conversion.close()
                    self.notices.extend(sentence for sentence in notices if sentence not in self._told)
                    self._told.update(notices)
                    if converted is not None:
                        source.close()
                        source, is_converted = converted, True
                        names = check_tensors(component.wanted, source, place, self.model.family.networks, name)
            except BaseException:
                source.close()
                raise
            opened.weights = Weights(source, names, form, converted=is_converted)
        return opened

    def _keep(
        self, opened: _Opened, placement: Placement, check: Callable[[], None], later: Collection[str] = ()
    ) -> Iterator[Progress]:
        yield from self._read(opened, placement, check, later)
        if self.device.device.type == "cuda" and opened.component.name == self.model.family.core.name:
            self._pin(opened, placement)

    def _read(
        self, opened: _Opened, placement: Placement, check: Callable[[], None], later: Collection[str]
    ) -> Iterator[Progress]:
        """What is to be kept and is not there yet, but for units that come `later`."""
        weights, component = opened.weights, opened.component
        names = placement.kept - opened.host.keys() - set(later)
        wanted = [unit for unit in component.units if unit.name in names]
        if weights is None or not (wanted or opened.lacks_table):
            return
        total = weights.stored_bytes(wanted) + (opened.table_bytes if opened.lacks_table else 0)
        done = reported = 0
        yield Progress(component.name, 0, total)
        with closing(self.read_ahead(opened, wanted)) as units:
            for unit in units:
                check()
                done += weights.stored_bytes([unit])
                if done - reported >= PROGRESS_EVERY_BYTES and done < total:
                    reported = done
                    yield Progress(component.name, done, total)
        if opened.lacks_table:
            shape = component.host_shape or ()
            table = host_memory(math.prod(shape) * component.dtype.itemsize).view(component.dtype).view(shape)
            name = weights.names[component.host_name]
            parts = weights.files.parts(name)
            wait([self.threads.submit(weights.files.read_part, name, start, stop, table) for start, stop in parts])
            opened.table = table
            self.traffic.disk_bytes += opened.table_bytes
        yield Progress(component.name, total, total)

    def read_ahead(self, opened: _Opened, units: Iterable[Unit]) -> Generator[Unit, None, None]:
        """Read units into host memory, in turn; each when it is there, while the next ones are on their way."""
        weights = opened.weights
        if weights is None:  # simulated
            return
        coming: deque[tuple[Unit, Tensor, list[Future[object]]]] = deque()
        rest, under_way = iter(units), 0
        try:
            while True:
                while under_way < AHEAD_BYTES and (unit := next(rest, None)) is not None:
                    memory = host_memory(unit.nbytes)
                    coming.append((unit, memory, [self.threads.submit(task) for task in weights.tasks(unit, memory)]))
                    under_way += unit.nbytes
                if not coming:
                    return
                unit, memory, tasks = coming[0]
                wait(tasks)
                coming.popleft()
                under_way -= unit.nbytes
                opened.host[unit.name] = memory
                self.traffic.disk_bytes += weights.stored_bytes([unit])
                yield unit
        finally:
            give_up(task for *_, tasks in coming for task in tasks)

    def _pin(self, opened: _Opened, placement: Placement) -> None:
        """Lock the host copies of what crosses to a card in every step, so that no copy has to wait for the host."""
        with torch.cuda.device(self.device.device):
            crossing = [opened.host[name] for name in sorted(placement.streamed & opened.host.keys())]
            refused = any(not memory.is_pinned() and not pin(memory) for memory in crossing)
        if refused and not self._said_unpinned:
            self._said_unpinned = True
            self.notices.append("the system locks no more memory, so some weights cross to the card more slowly.")


@dataclass(slots=True, eq=False)
class _Opened:
    """A component, its files, and the copies of its units in host memory."""

    component: Component
    weights: Weights | None = None  # None: not opened yet, or simulated
    host: dict[str, Tensor] = field(default_factory=dict)
    table: Tensor | None = None  # T5's embedding, which stays on the host

    @property
    def lacks_table(self) -> bool:
        return self.component.host_shape is not None and self.table is None

    @property
    def table_bytes(self) -> int:
        assert self.weights is not None
        return self.weights.files.tensors[self.weights.names[self.component.host_name]].nbytes

    def host_copy(self, unit: Unit) -> Tensor | None:
        return self.host.get(unit.name)

    def close(self) -> None:
        self.host.clear()
        self.table = None
        if self.weights is not None:
            self.weights.files.close()


class Loan:
    """One component's time on the device: `load` brings what is resident, the module then runs; `close` ends it."""

    def __init__(
        self,
        components: Components,
        component: Component,
        where: Device,
        precision: Precision,
        placement: Placement,
        check: Callable[[], None],
        passes: int,
    ) -> None:
        self.name, self.precision, self.placement = component.name, precision, placement
        self.component, self.module = component, component.module
        self.device, self.dtype = where.device, component.dtype
        self._components, self._where, self._check, self._passes = components, where, check, passes
        self._opened: _Opened | None = None
        self._arena: Tensor | None = None
        self._ring: Ring | None = None
        self._hooks: list[Any] = []
        self._installed: list[Unit] = []
        self._placed = 0

    def read(self) -> Iterator[Progress]:
        """Open the files and read what is kept on the host; nothing is on the device yet."""
        opened = yield from self._components._opened(self.name, self.precision, self._check)
        self._opened = opened
        yield from self._components._keep(opened, self.placement, self._check)

    def load(self) -> Iterator[Progress]:
        """Put the resident units on the device and start streaming the others; then the module can run."""
        streamed = self.placement.streamed
        needed = [unit for unit in self.component.units if unit.role != "modulation"]
        resident = [unit for unit in needed if unit.name not in streamed]
        if self._opened is None:
            components = self._components
            self._opened = yield from components._opened(self.name, self.precision, self._check)
            # What is to be resident crosses while the next of it is read.
            later = [] if self.placement.in_place else [unit.name for unit in resident]
            yield from components._keep(self._opened, self.placement, self._check, later)
        opened = self._opened
        self._empty_cache()  # of the slots that `visit` had
        self.component.place_buffers(self.device)
        if self.placement.in_place:
            for unit in resident:
                self._install(unit, unit.views(opened.host[unit.name]))
                self._place(unit.nbytes)
        else:
            yield from self._fill_arena(resident, opened)
        crossing = [unit for unit in needed if unit.name in streamed]
        if crossing:
            self._stream(crossing, opened)

    def visit(self, names: Iterable[str]) -> Iterator[str]:
        """Bring units to the device one after the other, each until the next one is asked for; the name of each."""
        if self._opened is None:
            raise RuntimeError("read() comes first")
        by_name = {unit.name: unit for unit in self.component.units}
        units = [by_name[name] for name in names]
        opened = self._opened
        if self.placement.in_place:
            for unit in units:
                self._check()
                self._install(unit, unit.views(opened.host[unit.name]))
                yield unit.name
                self._withdraw(unit)
            return
        with self._ring_of(units, iter(units), opened) as (ring, memory):
            for unit in units:
                slot = ring.acquire(unit)
                self._install(unit, unit.views(memory[slot][: unit.nbytes]))
                self._components.traffic.moved_bytes += unit.nbytes
                yield unit.name
                self._withdraw(unit)
                ring.release()

    def folded(self, tables: Tables) -> Tables:
        """Modulation tables as the component's blocks take them."""
        reader, form = self.component.reader, self._components.form(self.name, self.precision)
        assert reader is not None
        if form is None or form.folds is None:
            return tables
        return Tables(form.folds.tables(tables.rows, reader.places))

    def column_maxima(self, names: Iterable[str]) -> Tensor:
        """The largest numbers of some weights' columns, together: float32 [in]. They are read once more."""
        if self._opened is None or self._opened.weights is None:
            raise RuntimeError("read() comes first")
        weights = self._opened.weights
        maxima = [column_maxima(weights.files, weights.names[name]) for name in names]
        return torch.stack(maxima).amax(dim=0)

    def embedded(self, ids: Tensor) -> Tensor:
        """The rows of the table that stays on the host for these ids: [1, S, width]."""
        if self._opened is None:
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

    def _fill_arena(self, resident: Sequence[Unit], opened: _Opened) -> Iterator[Progress]:
        total = sum(unit.nbytes for unit in resident)
        self._arena = self._allocate(total)
        start = done = reported = 0
        kept, reader = self.placement.kept, self._reader(opened)
        missing = [unit for unit in resident if unit.name in kept and unit.name not in opened.host]
        reading = self._components.read_ahead(opened, missing)
        with closing(reading), copying(self.device) as copy:
            for unit in resident:
                self._check()
                memory = self._arena[start : start + unit.nbytes]
                start += unit.nbytes
                if unit.name in kept and unit.name not in opened.host:
                    next(reading, None)
                copy(unit, memory, reader)
                self._install(unit, unit.views(memory))
                self._components.traffic.moved_bytes += unit.nbytes
                done += unit.nbytes
                if done - reported >= PROGRESS_EVERY_BYTES or done == total:
                    reported = done
                    yield Progress(self.name, done, total)

    def _stream(self, crossing: Sequence[Unit], opened: _Opened) -> None:
        """Let units come and go with the modules that need them."""
        order = chain.from_iterable(repeat(crossing, self._passes))
        slots = self._slots(crossing)
        self._ring = ring = Ring(slots, order, self._reader(opened), self.device, self._check)
        views: dict[tuple[str, int], list[Any]] = {}
        traffic = self._components.traffic

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
    def _ring_of(self, units: Sequence[Unit], order: Iterator[Unit], opened: _Opened) -> Iterator[Any]:
        before = self._placed
        slots = self._slots(units)
        ring = Ring(slots, order, self._reader(opened), self.device, self._check)
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

    def _reader(self, opened: _Opened) -> _FromFiles:
        return _FromFiles(opened, self._components)

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


class _FromFiles:
    """A source of units that counts what is read from files."""

    def __init__(self, opened: _Opened, components: Components) -> None:
        self._opened, self._traffic = opened, components.traffic
        from_files = opened.weights is not None and any(u.name not in opened.host for u in opened.component.units)
        self._threads = components.threads if from_files else None

    def host_copy(self, unit: Unit) -> Tensor | None:
        return self._opened.host_copy(unit)

    def read(self, unit: Unit, memory: Tensor) -> None:
        weights = self._opened.weights
        if weights is None or self._threads is None:
            return
        wait([self._threads.submit(task) for task in weights.tasks(unit, memory)])
        self._traffic.disk_bytes += weights.stored_bytes([unit])
