"""The components of an open model: read once, kept on the host as the plan says, lent to a phase one at a time.

No phase moves weights itself: it asks here for a component and gets a module that is ready to run. Whether its weights
lie whole on the device or cross to it block by block while it runs is decided by the plan, and seen in
`engine.memory.loan` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from engine.memory.host import Host, Opened
from engine.memory.loan import Loan, set_kernel
from engine.memory.placement import Device, Placement, Progress
from engine.memory.units import Component, build, precision_of
from engine.precision import Precision
from engine.weights.forms import Form
from engine.weights.model import Model


class Components:
    """The modules of one model, and the rule that only one of them is on the device at a time."""

    def __init__(self, model: Model, device: torch.device, *, model_hash: str = "", simulated: bool = False) -> None:
        """`simulated`: the device is torch's meta device, nothing is read, and only sizes move. `model_hash` is what
        balancing factors are found by."""
        self.model = model
        self.simulated = simulated
        self.device = Device(device)
        self.host = Host(model, self.device, model_hash=model_hash, simulated=simulated)
        self.notices, self.traffic = self.host.notices, self.host.traffic
        self.resident: str | None = None  # the component on the device now
        self._open: dict[str, Opened] = {}

    def form(self, name: str, precision: Precision) -> Form | None:
        """The 8-bit form of a component in this precision; None where there is none.

        Raises `RequestError` where it needs balancing factors and there are none, or another model's.
        """
        return self.host.form(name, self._precision_of(name, precision))

    def component(self, name: str, precision: Precision) -> Component:
        """The component without weights; another precision of it is forgotten."""
        return self._opened(name, precision).component

    def would_forget(self, name: str, precision: Precision) -> bool:
        """Whether asking for this component would cost another precision of it that is open."""
        return name in self._open and self._open[name].precision != self._precision_of(name, precision)

    def keep(
        self, name: str, precision: Precision, placement: Placement, check: Callable[[], None]
    ) -> Iterator[Progress]:
        """Read what `placement` keeps into host memory; yields progress, nothing where it is there already."""
        opened = self._opened(name, precision)
        yield from self.host.open(opened, check)
        yield from self.host.keep(opened, placement, check)

    def arrange(self, precision: Precision, placements: Mapping[str, Placement]) -> None:
        """Let go of what a new plan does not keep, before anything is read for it."""
        for name in list(self._open):
            if self.would_forget(name, precision) or name not in placements:
                self._forget(name)
        for name, opened in self._open.items():
            for unit in opened.copies.keys() - placements[name].kept:
                del opened.copies[unit]

    def drop_host_copies(self) -> None:
        """Make room in RAM; the next use reads them again."""
        for opened in self._open.values():
            opened.copies.clear()

    def begin_job(self) -> None:
        """Count from here."""
        self.traffic.restart()
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
        loan = Loan(self.host, self._opened(name, precision), where, placement, check, passes)
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
        self.host.close()

    def _opened(self, name: str, precision: Precision) -> Opened:
        """The component in this precision, of which another one is forgotten; its files may not be open yet."""
        if name not in self._open or self.would_forget(name, precision):
            self._forget(name)
            precision = self._precision_of(name, precision)
            self._open[name] = Opened(build(self.model, name, precision), precision)
        return self._open[name]

    def _precision_of(self, name: str, precision: Precision) -> Precision:
        return precision_of(self.model.family.part(name), precision)

    def _forget(self, name: str) -> None:
        opened = self._open.pop(name, None)
        if opened is not None:
            opened.close()
