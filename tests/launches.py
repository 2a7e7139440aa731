"""A driver for Triton without a card: kernels are compiled for a real one, and launches are only written down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import triton
from triton.backends.compiler import GPUTarget


@dataclass(slots=True)
class Launch:
    """What a card would have been told."""

    grid: tuple[int, int, int]
    function: int  # the loaded kernel's handle
    arguments: tuple[Any, ...]  # constants too


@dataclass(slots=True)
class Driver:
    """What Triton asks of the card that it compiles for."""

    capability: int = 80
    launches: list[Launch] | None = field(default_factory=list)  # None: they are not even written down
    loaded: int = 0

    @property
    def utils(self) -> Driver:
        return self

    def load_binary(self, *_: object) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills, threads."""
        self.loaded += 1
        return self.loaded, self.loaded, 32, 0, 1024

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": 99 * 1024}

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def launcher_cls(self, source: Any, _: object) -> Any:
        """What launches a compiled kernel."""
        expected = len(source.fn.arg_names)

        def launch(x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
            arguments = rest[4:]  # after metadata and hooks
            if len(arguments) != expected:
                raise TypeError(f"{len(arguments)} arguments for {expected} parameters")
            if self.launches is not None:
                self.launches.append(Launch((x, y, z), function, arguments))

        return launch


@contextmanager
def no_card(driver: Driver) -> Iterator[Driver]:
    """While open, Triton compiles for `driver` and launches there; nothing is tuned, the first tile is taken."""
    from engine.quantization import fused

    runtime, tuner = triton.runtime.driver, fused.matmul_kernel
    tuned, tuner.configs, tuner.cache = (tuner.configs, tuner.cache), tuner.configs[-1:], {}
    kept = dict(fused._compiled)
    fused._compiled.clear()
    before = dict(vars(runtime))  # with the driver of the card that is there, if one is
    runtime.set_active(driver)
    try:
        yield driver
    finally:
        vars(runtime).clear()
        vars(runtime).update(before)
        tuner.configs, tuner.cache = tuned
        fused._compiled.clear()
        fused._compiled.update(kept)
        for kernel in (fused.modulate_kernel, fused.quantize_kernel, tuner.fn.fn):
            kernel.device_caches.clear()  # of card 0, which may be another one
