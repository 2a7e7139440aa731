"""What the graphics card says of itself, by NVML. No torch, no CUDA context, and no error where there is no card."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from textual.app import App


@dataclass(frozen=True, slots=True)
class CardSample:
    """A moment of a card; None for what it does not tell."""

    name: str
    used_bytes: int
    total_bytes: int
    utilization: int | None = None  # per cent
    temperature: int | None = None  # degrees Celsius
    watts: float | None = None


class Card:
    """An NVIDIA card. `sample` blocks for a few milliseconds: call it in a thread."""

    def __init__(self, uuid: str) -> None:
        """`uuid` as NVML and `nvidia-smi -L` write it: GPU-..."""
        self.uuid = uuid
        self._handle: Any = None
        self._nvml: Any = None

    def sample(self) -> CardSample | None:
        """The card now; None where it cannot be asked."""
        try:
            if self._handle is None:
                import pynvml

                pynvml.nvmlInit()
                self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByUUID(self.uuid)
            nvml, handle = self._nvml, self._handle
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            name = nvml.nvmlDeviceGetName(handle)
        except Exception:  # no driver, no such card, one that was lost: NVML has an error class for each
            return None
        utilization = temperature = watts = None
        with suppress(Exception):
            utilization = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        with suppress(Exception):
            temperature = int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        with suppress(Exception):
            watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        return CardSample(text, int(memory.used), int(memory.total), utilization, temperature, watts)


class CardWatch:
    """The card that the engine works on; it is asked in a thread, once at a time."""

    def __init__(self, app: App[None], seen: Callable[[], None]) -> None:
        """`seen` is called when `sample` is a new one."""
        self._app, self._seen = app, seen
        self._card: Card | None = None
        self._sampling = False
        self.sample: CardSample | None = None  # the latest

    def use(self, uuid: str | None) -> None:
        """The engine works on this card, or on none."""
        self._card, self.sample = Card(uuid) if uuid else None, None
        self.look()

    def look(self) -> None:
        """Ask the card how it is; nothing where there is none."""
        if self._card is None or self._sampling:
            return
        self._sampling, card = True, self._card

        def ask() -> None:
            self._app.call_later(self._looked, card.sample())

        self._app.run_worker(ask, name="card", thread=True, exit_on_error=False)

    def _looked(self, sample: CardSample | None) -> None:
        self._sampling = False
        if sample is None:
            self._card = None
        self.sample = sample
        self._seen()
