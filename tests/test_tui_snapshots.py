"""The main screen as it looks, with a picture of the demo model, at the usual sizes.

`T2I_UPDATE_SNAPSHOTS=1 pytest tests/test_tui_snapshots.py` writes the files anew, README's screenshot among them: look
at them before committing. What differs from run to run (times, memory, paths) is put to fixed values.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from engine import Engine, Request
from engine.events import LoadProgress, MemoryUse, Phase, PhaseFinished, PhaseStarted, StepFinished
from engine.library.transfer import PullProgress
from engine.process import Foreseen
from tests.apps import engine_says, run, running, screen_text, settled, until
from tui.app import T2IApp
from tui.course import Course
from tui.library import Pull

FOLDER = Path(__file__).parent / "snapshots"
SCREENSHOT, BEING_MADE = FOLDER / "app.svg", FOLDER / "being-made.svg"
UPDATE = os.environ.get("T2I_UPDATE_SNAPSHOTS") == "1"
PROMPTS = (
    ("a green triangle next to a pink heart", 11),
    ("a yellow star in the night sky", 4),
    ("a large red circle above a small blue square on a white background", 7),
)
MIB = 2**20
# What the third picture's course was on the machine where the times were taken: moments in tenths of milliseconds, KiB.
COURSE = {
    "ram": True,
    "budget": 12 * 2**20,
    "stretches": [
        ["load", 0, 150],
        ["encode", 150, 550],
        ["load", 550, 610],
        ["denoise", 610, 1410],
        ["load", 1410, 1430],
        ["decode", 1430, 2030],
        ["save", 2030, 2130],
    ],
    "steps": [810, 1010, 1210, 1410],
    "samples": [[when, (470 + rise) << 10] for when, rise in ((0, 0), (160, 8), (560, 9), (620, 28), (1430, 54))],
    "slopes": [[0, 2130, 488 << 10, 488 << 10]],
}
SECONDS: dict[Phase, float] = {"load": 0.21, "encode": 0.04, "denoise": 0.05, "decode": 0.02, "save": 0.01}


async def paint(app: T2IApp, pilot: Pilot[None]) -> None:
    """Three pictures, a star, and figures that are the same in every run."""
    session = app.session
    for prompt, seed in PROMPTS:
        session.parameters.seed = seed
        app.main.prompt.put(prompt)
        made = len(session.results)
        await pilot.press("enter")
        await until(pilot, lambda made=made: len(session.results) > made and session.running is None)  # type: ignore[misc]
    await until(pilot, lambda: not session.forecast.is_stale)
    session.results[:] = [replace(job, seconds=sum(SECONDS.values())) for job in session.results]
    path = session.results[1].path
    assert path is not None
    session.history.set_favourite(path, True)
    session.parameters.seed = None
    session.progress.seconds = dict(SECONDS)
    session.progress.step_seconds = [0.0125] * 4
    session.progress.memory = MemoryUse(524 * MIB)
    session.peak_bytes = 524 * MIB
    session.course = Course.from_dict(COURSE)
    session.slowness = sum(SECONDS.values()) / 0.04
    app.main._ram_bytes = 16 * 2**30
    app.main.pictures_changed()
    jobs = app.main.jobs
    await until(pilot, lambda: not jobs._has_thumbnails or len(jobs._small) == len(PROMPTS))
    await settled(pilot, app)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
def test_the_main_screen_looks_as_it_did(size: tuple[int, int]) -> None:
    stored = FOLDER / f"main-{size[0]}x{size[1]}.txt"

    async def test() -> None:
        async with running(size, ram="12GiB") as (app, pilot):
            await paint(app, pilot)
            text = screen_text(app) + "\n"
            if UPDATE:
                stored.write_text(text, "utf-8")
            assert text == stored.read_text("utf-8")

    run(test())


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_the_models_look_as_they_did(size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    stored = FOLDER / f"models-{size[0]}x{size[1]}.txt"

    async def test() -> None:
        async with running(size, engine=False) as (app, pilot):
            app.session.opened = "demo"
            await pilot.press("escape", "M")
            await settled(pilot, app)
            await pilot.press("down", "down")
            progress = PullProgress(3 * 2**30, 31 * 2**30, 11 * 2**20, 2600.0, "")
            app.shared.library.pull = Pull("flux.1-schnell", progress)
            app.shared.models_changed.publish(None)
            await settled(pilot, app)
            text = screen_text(app) + "\n"
            if UPDATE:
                stored.write_text(text, "utf-8")
            assert text == stored.read_text("utf-8")

    run(test())


def test_the_screenshot_in_readme_shows_the_app_as_it_is() -> None:
    async def test() -> None:
        async with running((100, 30), ram="12GiB") as (app, pilot):
            await paint(app, pilot)
            svg = drawn(app)
            if UPDATE:
                SCREENSHOT.write_text(svg, "utf-8")
            stored = SCREENSHOT.read_text("utf-8")
            # Texts must be the same; colours of the picture's cells may differ by a bit between processors.
            assert texts(svg) == texts(stored)
            assert len(set(re.findall(r'fill="#[0-9a-f]{6}"', stored))) > 50

    run(test())


def test_the_screenshot_of_a_picture_being_made_shows_the_app_as_it_is() -> None:
    """The engine's own events of a real picture, told step by step in the time that a card would take."""
    with Engine.open("demo", device="cpu", ram="12GiB") as engine:
        request = Request(PROMPTS[0][0], seed=PROMPTS[0][1], steps=20)
        foreseen = Foreseen(1, engine.plan(request), engine.count_tokens(request.prompt))
        events = []
        for event in engine.generate(request):
            events.append(event)
            if isinstance(event, StepFinished) and event.step == 13:
                break

    async def test() -> None:
        async with running((100, 30), engine=False, ram="12GiB") as (app, pilot):
            session = app.session
            session.engine_state, session.opened, session.device = "ready", "demo", "CPU"
            app.main._ram_bytes = 16 * 2**30
            session.parameters.announce(engine.options)
            session.parameters.chosen["steps"] = 20
            app.main.prompt.put(request.prompt)
            session.parameters.seed = request.seed
            await pilot.press("enter")
            question = session.forecast.question()
            assert question is not None
            session.forecast.answered(replace(foreseen, number=question.number))
            now = 0.0
            session.progress.clock = lambda: now
            session.progress.started = now
            steps = {LoadProgress: 0.05, PhaseStarted: 0.02, PhaseFinished: 0.3, StepFinished: 0.4}
            for number, event in enumerate(events):
                now += steps.get(type(event), 0.01)
                memory = MemoryUse((440 + 6 * min(number, 12)) * MIB)
                changes: dict[str, Any] = {"elapsed_seconds": now, "memory": memory}
                if isinstance(event, PhaseFinished | StepFinished):
                    changes["seconds"] = steps[type(event)]
                await engine_says(app, pilot, replace(event, **changes))
            app.main.update()
            await settled(pilot, app)
            svg = drawn(app)
            if UPDATE:
                BEING_MADE.write_text(svg, "utf-8")
            stored = BEING_MADE.read_text("utf-8")
            assert texts(svg) == texts(stored)
            assert "13/20" in stored

    run(test())


def drawn(app: T2IApp) -> str:
    """The screen as an SVG that fetches nothing from anywhere."""
    svg = app.export_screenshot(title="t2i", simplify=True)
    svg = re.sub(r"@font-face \{.*?\}\n?", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code", "DejaVu Sans Mono, Menlo, Consolas")
    return re.sub(r"terminal-[0-9]+", "terminal", svg)


def texts(svg: str) -> list[str]:
    """What can be read in an SVG."""
    found = [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    return [text for text in found if text.strip("\u2580\u00a0 ")]
