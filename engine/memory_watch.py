"""Memory over time: a thread that looks at what a job uses while the job works."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from engine.events import MemorySample, MemoryUse

SAMPLE_SECONDS = 0.08  # between two looks, each of about a tenth of a millisecond
TELL_SECONDS = 0.25  # between two words about them


class MemoryWatch:
    """While open, `look` is called often, and `tell` from time to time with what came of it, both in a thread."""

    def __init__(self, look: Callable[[], MemoryUse], tell: Callable[[tuple[MemorySample, ...]], None]) -> None:
        self._look, self._tell = look, tell
        self._began = time.perf_counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The last samples are told before this returns."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        samples: list[MemorySample] = []
        due = time.perf_counter() + TELL_SECONDS
        with suppress(OSError):  # nobody listens any more
            while not self._over.wait(SAMPLE_SECONDS):
                samples.append(self._sample())
                if time.perf_counter() >= due:
                    self._tell(tuple(samples))
                    samples, due = [], time.perf_counter() + TELL_SECONDS
            self._tell((*samples, self._sample()))

    def _sample(self) -> MemorySample:
        use = self._look()
        return MemorySample(time.perf_counter() - self._began, use.ram_bytes, use.device_bytes)
