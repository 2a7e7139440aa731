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
from dataclasses import dataclass
from typing import Literal

import psutil

from engine.cli.progress import PictureProgress
from engine.events import Plan
from engine.text import duration

OVER_SECONDS = 5.0  # beyond what was to be expected, before it is said
FIRST_SECONDS = 60.0  # for what this process has not done yet
MIN_SECONDS, MIN_STEP_SECONDS = 10.0, 2.0
LONGER = 3  # times the longest silence of the same kind
LISTEN_SECONDS = 1.0  # for the engine to stop at once, before it is looked whether it can
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


@dataclass(frozen=True, slots=True)
class Work:
    """What the engine is at."""

    progress: PictureProgress
    plan: Plan | None = None  # of the picture, as soon as it is known
    pixels: float = 0.0  # of the picture in work
    on_card: bool = False
    running: bool = False  # a picture is in work
    cancelling: bool = False  # and the person gave it up


class Watchdog:
    """The silence of one engine's process. `look` while it has something to do, `heard` with each of its words."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self.seconds = 0.0  # of the present silence
        self.silence = ""  # in words; "" while it is no longer than it may be
        self.at_once: float | None = None  # seconds that it was waited for since it was told to stop at once
        self.ending = False  # the process is being ended, for it said nothing
        self._doing: Doing = "unknown"  # when that was looked at last
        self._longest: dict[str, tuple[float, float]] = {}  # by kind: seconds, and pixels of the picture

    def forget(self) -> None:
        """Another process: what its forerunner did is still to be done for the first time."""
        self._longest.clear()
        self.restart()

    def begin(self) -> None:
        """A picture was begun: nobody has told it to stop."""
        self.at_once = None
        self.restart()

    def ended(self) -> bool:
        """The process has gone; whether it was ended, for it said nothing."""
        ending, self.ending, self.silence, self.at_once = self.ending, False, "", None
        return ending

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

    def heard(self, work: Work) -> None:
        """It said something; `work` is as it was before."""
        kind = _kind(work.progress)
        before, _ = self._longest.get(kind, (0.0, 0.0))
        if self.seconds >= max(before, 0.0 if kind == "step" else NOTICED_SECONDS):
            self._longest[kind] = self.seconds, work.pixels
        self.silence = ""
        self.restart()

    def expected_seconds(self, work: Work) -> float:
        """How long it may be silent in what it is at."""
        if self._doing == "stopped":
            return 0.0
        kind = _kind(work.progress)
        if kind not in self._longest:
            return FIRST_SECONDS + (2 * _planned_seconds(work.progress, work.plan) if work.plan is not None else 0.0)
        seconds, before = self._longest[kind]
        larger = max(1.0, work.pixels / before) if before and work.pixels else 1.0
        return max(MIN_STEP_SECONDS if kind == "step" else MIN_SECONDS, LONGER * seconds * larger)

    def look(self, work: Work, doing: Doing, pid: int | None, key: str) -> str:
        """Once a tick: how long it has said nothing; returns a sentence where that has become too long.

        `doing` is what its process `pid` does meanwhile, and `key` what ends it.
        """
        ticked = self.tick()
        if self.at_once is not None:
            self.at_once += ticked
        self._doing, told = doing, bool(self.silence)
        expected = self.expected_seconds(work)
        if self.seconds <= expected + OVER_SECONDS or self.ending:
            self.silence = ""
            return ""
        said = f"the engine has said nothing for {self.said}"
        self.silence = f"{said}; {key} ends it: {WORDS[doing]}"
        if told:
            return ""
        if expected:
            said += f", and {duration(expected)} were to be expected"
        what = "starts another" if work.running else "the next picture starts another"
        if work.running and not work.cancelling:
            what += ", which begins this picture anew"
        return f"{said}: {self._explained(work, pid)}. {key} ends it and {what}; nothing of the queue is lost."

    @property
    def is_deaf(self) -> bool:
        """Whether it was told to stop at once, and had the time to."""
        return self.at_once is not None and self.at_once >= LISTEN_SECONDS

    def must_end(self, work: Work) -> bool:
        """Whether it did not listen when it was told to stop at once."""
        if self.at_once is None or self.ending:
            return False
        idle = self._doing == "waiting" or (self._doing == "idle" and not work.on_card)  # a card is waited for so
        return self._doing == "stopped" or (self.is_deaf and (idle or self.seconds > self.expected_seconds(work)))

    def _explained(self, work: Work, pid: int | None) -> str:
        """What the process does, as far as that can be told apart from outside."""
        text = WORDS[self._doing]
        if self._doing == "stopped":
            return f"{text} (kill -CONT {pid} lets it go on)"
        if work.on_card and self._doing in ("busy", "idle"):
            text += ", as it does while it waits for the card"
        if self._doing == "busy" and _kind(work.progress) not in self._longest:
            text += "; what it does for the first time (reading, compiling) may take minutes"
        return text


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
