"""An engine that says nothing: how long it may, what is said of it, and how it is ended."""

from __future__ import annotations

import sys
from typing import Any

import psutil
import pytest
from textual.pilot import Pilot

from engine import folders
from engine.cli.progress import PictureProgress
from engine.events import LoadProgress, MemoryUse, PhaseStarted, StepFinished
from engine.process import JobEvent
from tests.apps import notes, run, running, screen_text, until
from tests.test_plan_text import plan_of
from tests.test_progress import Clock
from tui.app import T2IApp
from tui.history import History
from tui.session import Session
from tui.watchdog import FIRST_SECONDS, MAX_TICK_SECONDS, MIN_STEP_SECONDS, OVER_SECONDS, Doing, Watchdog, Work

PROMPT = "a red circle above a blue square"
PIXELS = 128.0 * 128


def stamp() -> dict[str, Any]:
    return {"image": 0, "elapsed_seconds": 0.0, "memory": MemoryUse(2**29)}


def step(number: int) -> StepFinished:
    return StepFinished(**stamp(), step=number, steps=9, sigma=1.0, seconds=1.0, preview=None)


def silent(watch: Watchdog, clock: Clock, seconds: float) -> None:
    """Ticks, two a second."""
    for _ in range(round(2 * seconds)):
        clock.now += 0.5
        watch.tick()


def test_the_engine_may_be_silent_three_times_as_long_as_it_was_before() -> None:
    clock, progress = Clock(), PictureProgress()
    watch = Watchdog(clock)
    progress.apply(PhaseStarted(**stamp(), phase="denoise"))
    assert watch.expected_seconds(Work(progress, None, PIXELS)) == FIRST_SECONDS  # a first step, which may compile
    silent(watch, clock, 40.0)
    assert watch.said == "40 s"
    watch.heard(Work(progress, None, PIXELS))
    progress.apply(step(1))
    for seconds in (3.0, 4.0, 2.0):
        silent(watch, clock, seconds)
        watch.heard(Work(progress, None, PIXELS))
    assert watch.expected_seconds(Work(progress, None, PIXELS)) == 12.0  # the longest of them, not the first step
    assert watch.expected_seconds(Work(progress, None, 4 * PIXELS)) == 48.0
    assert watch.expected_seconds(Work(progress, None, PIXELS / 4)) == 12.0
    watch.forget()
    assert watch.expected_seconds(Work(progress, None, PIXELS)) == FIRST_SECONDS  # another process


def test_what_is_done_for_the_first_time_may_take_twice_what_the_plan_says_of_it() -> None:
    watch, progress = Watchdog(Clock()), PictureProgress()
    plan = plan_of(steps=4)
    seconds = plan.new_prompt.seconds_by_phase
    for phase, planned in (
        ("load", seconds["load"]),
        ("encode", seconds["encode"]),
        ("denoise", seconds["denoise"] / 4),
    ):
        progress.apply(PhaseStarted(**stamp(), phase=phase))  # type: ignore[arg-type]
        assert watch.expected_seconds(Work(progress, plan, PIXELS)) == FIRST_SECONDS + 2 * planned


def test_steps_too_short_to_be_counted_may_still_be_waited_for() -> None:
    watch, progress = Watchdog(Clock()), PictureProgress()
    progress.apply(PhaseStarted(**stamp(), phase="denoise"))
    progress.apply(step(1))
    watch.heard(Work(progress, None, PIXELS))
    assert watch.expected_seconds(Work(progress, None, PIXELS)) == MIN_STEP_SECONDS


def test_what_was_known_already_teaches_nothing_about_how_long_it_takes() -> None:
    watch, progress = Watchdog(Clock()), PictureProgress()
    progress.apply(PhaseStarted(**stamp(), phase="encode"))
    watch.heard(Work(progress, None, PIXELS))  # a prompt that was encoded before
    assert watch.expected_seconds(Work(progress, None, PIXELS)) == FIRST_SECONDS


def test_time_in_which_the_app_itself_was_stopped_is_not_the_engines() -> None:
    clock = Clock()
    watch = Watchdog(clock)
    clock.now += 3600
    assert watch.tick() == watch.seconds == MAX_TICK_SECONDS


@pytest.mark.parametrize(
    ("doing", "device", "shown", "explained"),
    [
        ("stopped", "CPU", "its process is stopped", "(kill -CONT 7 lets it go on)"),
        ("waiting", "RTX 3060", "it waits for driver or disk", "it waits for driver or disk"),
        ("busy", "CPU", "it is busy", "what it does for the first time (reading, compiling) may take minutes"),
        ("busy", "RTX 3060", "it is busy", "as it does while it waits for the card"),
        ("idle", "RTX 3060", "it does nothing", "as it does while it waits for the card"),
        ("idle", "CPU", "it does nothing", "it does nothing. ^C"),
    ],
)
def test_what_a_silent_process_does_is_told_apart(doing: Doing, device: str, shown: str, explained: str) -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            session, clock = app.session, Clock()
            session.watch, session.device = Watchdog(clock), device
            app.client.doing = lambda: doing  # type: ignore[method-assign]
            look = lambda: session.watch.look(session.work, doing, 7, "^C")  # noqa: E731
            app.main.prompt.put(PROMPT)
            await pilot.press("enter")
            may = 0.0 if doing == "stopped" else FIRST_SECONDS
            said = ""
            while not said:
                clock.now += 0.5
                said = look()
            assert session.watch.seconds == may + OVER_SECONDS + 0.5
            assert explained in said
            assert said.endswith(
                "^C ends it and starts another, which begins this picture anew; nothing of the queue is lost."
            )
            assert len(said) <= 400
            clock.now += 0.5
            assert look() == ""  # it was said
            app.main.update_progress()
            text = screen_text(app)
            assert "the engine has said nothing for" in text
            assert "^C ends it" in text
            assert shown in text
            assert session.running is not None
            session.receive(
                JobEvent(session.running.id, LoadProgress(**stamp(), component="vae", done_bytes=1, total_bytes=2))
            )
            assert not session.watch.silence

    run(test())


@pytest.mark.parametrize(
    ("doing", "device", "waited", "ends"),
    [
        ("stopped", "CPU", 0.0, True),
        ("waiting", "RTX 3060", 0.5, False),  # for the disk perhaps
        ("waiting", "RTX 3060", 1.0, True),
        ("idle", "CPU", 0.5, False),
        ("idle", "CPU", 1.0, True),
        ("idle", "RTX 3060", 1.0, False),  # a card is waited for so, too
        ("busy", "CPU", 1.0, False),  # a block of a large model takes longer; its weights are worth the wait
        ("busy", "CPU", FIRST_SECONDS + 0.5, True),
    ],
)
def test_an_engine_that_was_told_to_stop_at_once_is_ended_where_it_cannot_listen(
    doing: Doing, device: str, waited: float, ends: bool
) -> None:
    history = History.open(folders.state_dir())
    session, clock = Session(history, "demo", ""), Clock()
    session.watch, session.device = Watchdog(clock), device
    session.enqueue(PROMPT)
    session.begin_next()
    session.watch.at_once = 0.0
    for _ in range(round(2 * waited)):
        clock.now += 0.5
        session.watch.look(session.work, doing, 7, "^C")
    session.watch.look(session.work, doing, 7, "^C")
    assert session.watch.must_end(session.work) == ends
    history.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_an_engine_that_hangs_is_said_and_ended_and_its_picture_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.watchdog.OVER_SECONDS", 0.2)

    async def test() -> None:
        async with running() as (app, pilot):
            session = app.session
            session.parameters.write("steps", "1000")
            for prompt in (PROMPT, "second"):
                app.main.prompt.put(prompt)
                await pilot.press("enter")

            # It hangs: said, ended with one press on any screen, and nobody gave the picture up.
            first = await hang(app, pilot)
            painted = session.running
            await until(pilot, lambda: "its process is stopped" in screen_text(app))
            assert " left" not in screen_text(app).split("queue", 1)[1]
            await pilot.press("escape", "l")
            await until(pilot, lambda: app.screen is not app.main)
            await pilot.press("ctrl+c")
            await until(pilot, lambda: app.client.pid not in (None, first) and session.running is not None)
            assert not psutil.pid_exists(first)
            await pilot.press("escape")
            assert session.running is not None
            assert painted is not None
            assert session.running.id == painted.id
            assert [job.request.prompt for job in session.queue] == ["second"]
            assert not session.results
            assert any("A fresh one begins this picture anew" in note for note in notes(app))
            await pilot.press("ctrl+c")  # one press too many
            assert not session.cancelling

            # It hangs, and the picture was given up: the second press ends the engine, and the next picture begins.
            app.dispatcher.last_cancel = None
            monkeypatch.setattr("tui.watchdog.OVER_SECONDS", 60.0)  # before it is said
            second = await hang(app, pilot)
            await pilot.press("ctrl+c", "ctrl+c")
            await until(pilot, lambda: session.results and app.client.pid not in (None, second))
            assert session.results[0].state == "cancelled"
            assert session.running is not None
            assert session.running.request.prompt == "second"
            await app.action_quit()

    run(test())


async def hang(app: T2IApp, pilot: Pilot[None]) -> int:
    """Stop the engine in the middle of a picture, as a driver does that hangs; returns its process's number."""
    await until(pilot, lambda: app.session.progress.step > 1)
    pid = app.client.pid
    assert pid is not None
    psutil.Process(pid).suspend()
    return pid
