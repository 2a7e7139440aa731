"""`t2i smoke`: the real app, without a terminal, against the real engine and the demo model, in folders of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine import folders
from engine.cli.console import say, write
from engine.events import TERMINAL, Event, Simulated
from engine.process import EngineProcess, JobEvent, JobRefused, ModelRefused, OpenModel, Paint
from engine.request import Request
from engine.text import size

if TYPE_CHECKING:
    from textual.pilot import Pilot

    from tui.app import T2IApp

PROMPT = "a large red circle above a small blue square"
SIMULATED_MODEL, SIMULATED_VRAM = "flux.1-schnell", "12GiB"
LONG_STEPS = 1000  # enough that there is time to cancel
MAX_SECONDS = 300  # for any one thing; a first import of torch from a cold disk is slow
USAGE = """\
usage: t2i smoke [--keep DIR]

Runs the app without a terminal against the real engine and the demo model: makes a picture, cancels one, remixes, and
quits; then simulates FLUX.1 [schnell] on a card of 12 GiB. The exit code is 0 only if a picture was saved whose
settings hold the prompt, and no simulated phase passed its budget. Your own files are not touched.

  --keep DIR  leave the pictures in DIR, an existing folder
"""


class SmokeError(Exception):
    """Something did not work; the message says what."""


def main(argv: Sequence[str]) -> int:
    """Run the smoke test; returns the exit code."""
    if list(argv) in (["-h"], ["--help"]):
        write(USAGE.rstrip("\n"))
        return 0
    keep = Path(argv[1]).expanduser().absolute() if len(argv) == 2 and argv[0] == "--keep" else None
    if argv and keep is None:
        say("error: t2i smoke takes nothing but --keep DIR; see t2i smoke --help.")
        return 2
    if keep is not None and not keep.is_dir():
        say(f"error: {folders.shown_path(keep)} is no folder; create it first.")
        return 2
    scratch = Path(tempfile.mkdtemp(prefix="t2i-smoke-"))
    try:
        for name in ("state", "cache", "config", "output"):
            os.environ[f"TEXTTOIMAGETOOL_{name.upper()}_DIR"] = str(scratch / name)
        began = time.monotonic()
        asyncio.run(_run(keep))
        _simulate()
        write(f"the smoke test passed in {time.monotonic() - began:.1f} s")
        return 0
    except SmokeError as error:
        say(f"error: {error}.")
        _show_log(scratch)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


async def _run(keep: Path | None) -> None:
    import psutil

    from tui.launch import open_app

    app = open_app({"color": "truecolor", "preview": "high"})
    async with app.run_test(size=(80, 24)) as pilot:
        session = app.session
        await _until(pilot, lambda: session.engine_state == "ready", "the engine started", app)
        engine = psutil.Process(app.client.pid)
        await _use(app, pilot, keep)
    _check(not engine.is_running(), "the app and the engine's process have ended")


async def _use(app: T2IApp, pilot: Pilot[None], keep: Path | None) -> None:
    session = app.session
    await pilot.press(*("space" if letter == " " else letter for letter in PROMPT))
    _check(app.main.prompt.text == PROMPT, "the prompt was typed")
    await pilot.press("enter")
    await _until(pilot, lambda: len(session.results) == 1, "a picture was made", app)
    _check_picture(app, keep)

    session.parameters.write("steps", str(LONG_STEPS))
    await pilot.press("enter")
    await _until(pilot, lambda: session.progress.step > 2, "a long one is being made", app)
    await pilot.press("ctrl+c", "ctrl+c")
    await _until(pilot, lambda: len(session.results) == 2, "it was cancelled", app)
    _check(session.results[0].state == "cancelled", "it says so")

    await pilot.press("escape", "down", "r")
    _check(app.main.prompt.text == PROMPT and session.parameters.value("steps") != LONG_STEPS, "the first was remixed")
    await pilot.press("end", *("space" if letter == " " else letter for letter in " at sunset"), "enter")
    await _until(pilot, lambda: len(session.results) == 3, "the remix was made", app)
    _check_picture(app, keep)
    await pilot.press("ctrl+q")


def _simulate() -> None:
    """FLUX.1 at full size, without weights, in a process of its own: all phases inside the budget, one at a time."""
    process = EngineProcess()
    try:
        process.send(OpenModel(SIMULATED_MODEL, vram=SIMULATED_VRAM, simulate=True))
        process.send(Paint("simulated", Request(PROMPT, seed=1)))
        end = _end_of_job(process)
    finally:
        process.stop()
        process.close()
    if not isinstance(end, Simulated):  # two components on the device at once end it, too
        raise SmokeError(f"{SIMULATED_MODEL} was not simulated: {end}")
    for phase, peak in end.peak_bytes_by_phase.items():
        _check(peak <= end.budget_bytes, f"{SIMULATED_MODEL} fits {SIMULATED_VRAM} in {phase}: {size(peak)}")


def _end_of_job(process: EngineProcess) -> Event | str:
    """The job's terminal event, or why there is none."""
    while True:
        try:
            message = process.receive(MAX_SECONDS)
        except EOFError:
            return process.death()
        match message:
            case None:
                return f"it said nothing for {MAX_SECONDS} s"
            case JobEvent(event=event) if isinstance(event, TERMINAL):
                return event
            case ModelRefused(message=reason) | JobRefused(message=reason):
                return reason


def _check_picture(app: T2IApp, keep: Path | None) -> None:
    from engine.images.metadata import read_record
    from engine.request import RequestError

    job = app.session.results[0]
    if job.state != "done" or job.path is None:
        raise SmokeError(f"no picture was saved: {job.message or job.state}")
    try:
        record = read_record(job.path)
    except RequestError as error:
        raise SmokeError(str(error).rstrip(".")) from None
    _check(record.request.prompt == app.main.prompt.text, f"{job.path.name} holds its prompt")
    if keep is not None:
        shutil.copy(job.path, keep)


async def _until(pilot: Pilot[None], done: Callable[[], bool], what: str, app: T2IApp) -> None:
    """Wait for something that the engine does, and say that it did."""
    deadline = time.monotonic() + MAX_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise SmokeError(f"it was waited {MAX_SECONDS} s for this in vain: {what}")
        if app.session.engine_state in ("gone", "refused"):
            raise SmokeError(f"the engine is off ({app.session.engine_state}); this was waited for: {what}")
        await pilot.pause(0.02)
    _say(what)


def _check(right: bool, what: str) -> None:
    if not right:
        raise SmokeError(f"this is not so: {what}")
    _say(what)


def _say(what: str) -> None:
    write(f"ok  {what}")


def _show_log(scratch: Path) -> None:
    """What the engine's process had to say."""
    for log in sorted((scratch / "state" / "logs").glob("*.log")):
        lines = log.read_text("utf-8", errors="replace").splitlines()
        for line in ("the engine's log ends:", *lines[-10:]):
            say(line)
