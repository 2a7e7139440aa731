"""Weights in host memory: a component's files are opened, converted to 8 bits where that is wanted, and read there."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.library.caches import what_could_go
from engine.memory.placement import Device, Placement, Progress, Traffic
from engine.memory.ring import host_memory, pin
from engine.memory.units import Component, Unit, Weights
from engine.precision import Precision
from engine.quantization.salience import Folds
from engine.weights import calibrations
from engine.weights.converted import converted_files, is_converted_already
from engine.weights.forms import Form
from engine.weights.loading import check_tensors
from engine.weights.model import Model
from engine.weights.reading import WeightFiles
from engine.weights.workers import give_up, start_workers, wait

PROGRESS_EVERY_BYTES = 32 * 2**20
AHEAD_BYTES = 256 * 2**20  # of units that are read while one is waited for


@dataclass(slots=True, eq=False)
class Opened:
    """A component in one precision, its files, and the copies of its units in host memory."""

    component: Component
    precision: Precision
    weights: Weights | None = None  # None: not opened yet, or simulated
    copies: dict[str, Tensor] = field(default_factory=dict)
    table: Tensor | None = None  # an embedding, whose rows are looked up on the host

    @property
    def lacks_table(self) -> bool:
        return self.component.host_shape is not None and self.table is None

    @property
    def table_bytes(self) -> int:
        assert self.weights is not None
        return self.weights.files.tensors[self.weights.names[self.component.host_name]].nbytes

    def host_copy(self, unit: Unit) -> Tensor | None:
        return self.copies.get(unit.name)

    def close(self) -> None:
        self.copies.clear()
        self.table = None
        if self.weights is not None:
            self.weights.files.close()


class Host:
    """The computer's own memory, into which the weights of one model are read."""

    def __init__(self, model: Model, device: Device, *, model_hash: str, simulated: bool) -> None:
        """`device` is where they go on to; see `Components` for the others."""
        self.model, self.model_hash, self.simulated = model, model_hash, simulated
        self.device = device
        self.traffic = Traffic()
        self.notices: list[str] = []  # sentences for the person
        self._told: set[str] = set()  # those that each conversion would say again
        self._said_unpinned = False
        self._forms: dict[Precision, Form] = {}  # for as long as this lives: tables and weights must agree
        self._threads: ThreadPoolExecutor | None = None

    def form(self, name: str, precision: Precision) -> Form | None:
        """The 8-bit form of a component that computes in this precision; None where there is none.

        Raises `RequestError` where it needs balancing factors and there are none, or another model's.
        """
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

    def open(self, opened: Opened, check: Callable[[], None]) -> Iterator[Progress]:
        """Open a component's files; the first use of 8 bits makes them."""
        component, name = opened.component, opened.component.name
        if opened.weights is None and not self.simulated:
            files, place = self.model.files[name], self.model.place(name)
            source = WeightFiles.open(files, name, families=[self.model.family])
            try:
                names = check_tensors(component.wanted, source, place, self.model.family.networks, name)
                form, is_converted = self.form(name, opened.precision), False
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

    def keep(
        self, opened: Opened, placement: Placement, check: Callable[[], None], later: Collection[str] = ()
    ) -> Iterator[Progress]:
        """Read what `placement` keeps and is not there yet, but for units that come `later`."""
        yield from self._read(opened, placement, check, later)
        if self.device.device.type == "cuda" and opened.component.name == self.model.family.core.name:
            self._pin(opened, placement)

    def _read(
        self, opened: Opened, placement: Placement, check: Callable[[], None], later: Collection[str]
    ) -> Iterator[Progress]:
        weights, component = opened.weights, opened.component
        names = placement.kept - opened.copies.keys() - set(later)
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

    def read_ahead(self, opened: Opened, units: Iterable[Unit]) -> Generator[Unit, None, None]:
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
                opened.copies[unit.name] = memory
                self.traffic.disk_bytes += weights.stored_bytes([unit])
                yield unit
        finally:
            give_up(task for *_, tasks in coming for task in tasks)

    def _pin(self, opened: Opened, placement: Placement) -> None:
        """Lock the host copies of what crosses to a card in every step, so that no copy has to wait for the host."""
        with torch.cuda.device(self.device.device):
            crossing = [opened.copies[name] for name in sorted(placement.streamed & opened.copies.keys())]
            refused = any(not memory.is_pinned() and not pin(memory) for memory in crossing)
        if refused and not self._said_unpinned:
            self._said_unpinned = True
            self.notices.append("the system locks no more memory, so some weights cross to the card more slowly.")

    def source(self, opened: Opened) -> Source:
        """What a ring takes units from."""
        from_files = opened.weights is not None and any(u.name not in opened.copies for u in opened.component.units)
        return Source(opened, self.traffic, self.threads if from_files else None)

    def close(self) -> None:
        """Stop the threads."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    @property
    def threads(self) -> ThreadPoolExecutor:
        """Those that read weights. They are started before anything computes with what they read."""
        if self._threads is None:
            self._threads = start_workers()
        return self._threads


class Source:
    """A source of units that counts what is read from files."""

    def __init__(self, opened: Opened, traffic: Traffic, threads: ThreadPoolExecutor | None) -> None:
        """Without `threads` nothing is in files alone."""
        self._opened, self._traffic, self._threads = opened, traffic, threads

    def host_copy(self, unit: Unit) -> Tensor | None:
        return self._opened.host_copy(unit)

    def read(self, unit: Unit, memory: Tensor) -> None:
        weights = self._opened.weights
        if weights is None or self._threads is None:
            return
        wait([self._threads.submit(task) for task in weights.tasks(unit, memory)])
        self._traffic.disk_bytes += weights.stored_bytes([unit])
