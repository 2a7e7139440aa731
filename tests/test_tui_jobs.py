"""Jobs that wait, fail or are stopped: what is seen of them, and how long the others take."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from engine.events import Cancelled, Failed, MemoryUse, Preview
from tests.apps import engine_says, notes, run, running, screen_text, settled, until
from tui.screens.viewer import Viewer

PROMPT = "a red circle"
AT: dict[str, Any] = {"image": 0, "elapsed_seconds": 1.0, "memory": MemoryUse(ram_bytes=2**29)}
FAULT = Failed(phase="denoise", message="the kernel of this card is broken.", **AT)


def test_the_words_of_a_job_that_failed_go_when_the_next_one_runs() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            app.main.prompt.put(PROMPT)
            await pilot.press("enter")
            await engine_says(app, pilot, FAULT)
            await pilot.pause()
            assert "the kernel of this card" in " ".join(app.main.picture._caption.split())
            await pilot.press("enter")
            assert app.session.running is not None
            assert app.main.picture._caption == ""

    run(test())


def test_of_a_job_that_has_ended_without_a_picture_none_is_promised() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            app.main.prompt.put(PROMPT)
            await pilot.press("enter", "enter", "enter")
            await engine_says(app, pilot, Cancelled(phase="denoise", **AT))
            await engine_says(app, pilot, FAULT)
            assert [job.state for job in app.session.results] == ["failed", "cancelled"]
            await pilot.press("escape", "home")
            for told in (
                "There is no picture here yet.",  # of the one that runs
                "This job failed, so there is no picture; r tries it again.",
                "This job was stopped, so there is no picture; r takes its prompt over.",
            ):
                for key in "voyf":
                    await pilot.press(key)
                    assert notes(app)[-1] == told
                await pilot.press("down")

    run(test())


def test_the_window_over_ssh_shows_the_picture_at_the_key_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 50000 192.0.2.1 22")
    for name in ("DISPLAY", "LOGNAME", "USER", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("getpass.getuser", lambda: "ann")  # the system knows the account where the environment does not

    async def test() -> None:
        async with running((120, 40)) as (app, pilot):
            app.main.prompt.put(PROMPT)
            await pilot.press("enter")
            await until(pilot, app.main.selected_path)
            await pilot.press("escape", "home", "o")
            assert "ann@192.0.2.1:" in screen_text(app)
            await pilot.press("v")
            assert isinstance(app.screen, Viewer)
            await pilot.press("escape")
            assert len(app.screen_stack) == 1

    run(test())


def test_the_info_window_says_what_the_panel_says_and_wraps_below_its_texts() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            app.main.prompt.put("a red circle above a green square " * 4)
            await pilot.press("enter")
            await until(pilot, app.main.selected_path)
            await pilot.press("escape", "home", "i")
            text = screen_text(app)
            assert "distill      off" in text
            assert "False" not in text
            lines = [line.partition("\u2502 ")[2] for line in text.splitlines()]
            first = next(number for number, line in enumerate(lines) if line.startswith("prompt"))
            assert lines[first + 1].startswith(" " * 13)
            assert lines[first + 1][13] != " "

    run(test())


def test_a_picture_that_was_read_for_another_room_and_comes_late_is_not_shown() -> None:
    """It was read for a room of no size, at a start: one pixel, which is one flat colour."""

    async def test() -> None:
        async with running() as (app, pilot):
            app.main.prompt.put(PROMPT)
            await pilot.press("enter")
            await until(pilot, app.main.selected_path)
            await settled(pilot, app)
            get, late, widths = app.shared.thumbnails.get, threading.Event(), []

            def get_late(path: Path, columns: int, rows: int) -> Preview | None:
                widths.append(columns)
                if len(widths) == 1:
                    late.wait(60)
                return get(path, columns, rows)

            app.shared.thumbnails.get = get_late  # type: ignore[method-assign]
            await pilot.resize_terminal(62, 16)
            await until(pilot, lambda: len(widths) == 1)
            await pilot.resize_terminal(110, 40)
            await until(pilot, lambda: len(widths) == 2 and app.main.picture._frame is not None)
            await until(pilot, lambda: app.main.picture._frame.width > widths[0])  # type: ignore[union-attr]
            late.set()
            await settled(pilot, app)
            frame = app.main.picture._frame
            assert frame is not None
            assert frame.width > widths[0]

    run(test())


def test_a_queue_is_estimated_by_its_own_pictures_and_not_by_the_last_one() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            session = app.session
            session.parameters.write("cfg", "3")
            app.main.parameters_changed()
            app.main.prompt.put(PROMPT)
            await pilot.press("enter")
            await until(pilot, lambda: session.results)
            session.parameters.reset("cfg")
            app.main.parameters_changed()
            await until(pilot, lambda: not session.forecast.is_stale)
            session.paused = True
            session.enqueue(PROMPT)
            session.enqueue(PROMPT)
            plan, guided = session.forecast.plan, session.results[0]
            assert plan is not None
            assert guided.seconds is not None
            assert session.waiting_seconds() == pytest.approx(2 * plan.new_prompt.seconds * session.slowness)
            session.forecast.forget()  # as where another model is open
            assert session.waiting_seconds() == pytest.approx(guided.seconds)  # one pass a step, where it had two

    run(test())
