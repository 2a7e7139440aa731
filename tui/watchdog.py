"""How long the engine may be silent, and what its process does while it is.

The rule: what the engine did before in this process it may do in three times the longest silence that this took,
more for a larger picture (`MIN_SECONDS` at least: a wait on a busy machine is no news). What it does for the first time
(importing torch, a first step, which may compile kernels) it may do in a minute, and twice what the plan expects of
that phase, of denoise a step. `OVER_SECONDS` beyond that the silence is said. A process that is stopped may not be
silent at all.

Only time in which the app itself ran is counted: not that of a suspended app or a sleeping machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import psutil

from engine.cli.progress import PictureProgress
from engine.events import Plan
from engine.text import duration

OVER_SECONDS = 5.0  # beyond what was to be expected, before it is said
FIRST_SECONDS = 60.0  # for what this process has not done yet
MIN_SECONDS, MIN_STEP_SECONDS = 10.0, 2.0
LONGER = 3  # times the longest silence of the same kind
MAX_TICK_SECONDS = 2.0  # what is more between two looks the app did not live through
NOTICED_SECONDS = 0.5  # a shorter silence taught nothing: a prompt that was known, a plan that was kept

Doing = Literal["stopped", "waiting", "busy", "idle", "unknown"]
WORDS: dict[Doing, str] = {
    "stopped": "its process is stopped",
    "waiting": "it waits for driver or disk",
    "busy": "it is busy",
    "idle": "it does nothing",
    "unknown": "nobody can tell why",
}


class Watchdog:
    """The silence of one engine's process. `tick` while it has something to do, `heard` with each of its words."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self.seconds = 0.0  # of the present silence
        self._longest: dict[str, tuple[float, float]] = {}  # by kind: seconds, and pixels of the picture

    def forget(self) -> None:
        """Another process: what its forerunner did is still to be done for the first time."""
        self._longest.clear()
        self.restart()

    def restart(self) -> None:
        """It was told to do something now."""
        self.seconds, self._last = 0.0, self._clock()

    def tick(self) -> float:
        """Time goes by; returns how much."""
        now = self._clock()
        passed = min(now - self._last, MAX_TICK_SECONDS)
        self.seconds += passed
        self._last = now
        return passed

    @property
    def said(self) -> str:
        """The silence in words: 12 s, 1:05."""
        return f"{self.seconds:.0f} s" if self.seconds < 59.5 else duration(self.seconds)

    def heard(self, progress: PictureProgress, pixels: float) -> None:
        """It said something; `progress` is as it was before."""
        kind = _kind(progress)
        before, _ = self._longest.get(kind, (0.0, 0.0))
        if self.seconds >= max(before, 0.0 if kind == "step" else NOTICED_SECONDS):
            self._longest[kind] = self.seconds, pixels
        self.restart()

    def expected_seconds(self, progress: PictureProgress, plan: Plan | None, pixels: float) -> float:
        """How long it may be silent in what it is at."""
        kind = _kind(progress)
        if kind not in self._longest:
            return FIRST_SECONDS + (2 * _planned_seconds(progress, plan) if plan is not None else 0.0)
        seconds, before = self._longest[kind]
        larger = max(1.0, pixels / before) if before and pixels else 1.0
        return max(MIN_STEP_SECONDS if kind == "step" else MIN_SECONDS, LONGER * seconds * larger)

    def is_new(self, progress: PictureProgress) -> bool:
        """Whether this process does for the first time what it is at."""
        return _kind(progress) not in self._longest


class ProcessLook:
    """What a process does, from outside: told from what changed since the look before."""

    def __init__(self) -> None:
        self._seen: tuple[int, float, float] | None = None  # pid, when, processor seconds

    def look(self, pid: int | None) -> Doing:
        """Call it again and again, some tenths of a second apart."""
        if pid is None:
            return "unknown"
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                status, times = process.status(), process.cpu_times()
        except psutil.Error:
            return "unknown"
        if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            return "stopped"
        if status == psutil.STATUS_DISK_SLEEP:
            return "waiting"
        now, used = time.monotonic(), times.user + times.system
        before, self._seen = self._seen, (pid, now, used)
        if before is None or before[0] != pid:
            return "unknown"
        return "busy" if used - before[2] > 0.1 * (now - before[1]) else "idle"


def _planned_seconds(progress: PictureProgress, plan: Plan) -> float:
    seconds = plan.new_prompt.seconds_by_phase.get(progress.running or "load", 0.0)
    return seconds / plan.steps if progress.running == "denoise" else seconds


def _kind(progress: PictureProgress) -> str:
    if progress.running == "denoise":
        return "step" if progress.step else "first step"
    return progress.running or "between phases"
