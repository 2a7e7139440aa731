"""Plans, budgets and simulated jobs in the app: what the person sees of them, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot

from engine import folders
from engine.events import (
    Encoded,
    Event,
    ImageSaved,
    MemoryUse,
    Noticed,
    PhaseFinished,
    PhaseStarted,
    Planned,
    Simulated,
    StepFinished,
)
from engine.process import ModelLoaded, ModelOpened, ModelRefused, OpenModel
from engine.request import Defaults
from tests.apps import engine_says, notes, run, running, screen_text, until
from tests.test_plan_text import GIB, plan_of
from tui.app import T2IApp
from tui.card import CardSample
from tui.client import EngineClient
from tui.history import History
from tui.screens.dialogs import ReadText
from tui.screens.plan import PlanWindow
from tui.session import Session
from tui.widgets.gauge import Gauge

PROMPT = "a red [/b] circle"
PLAN = plan_of()
IDLE: dict[str, Any] = {"image": 0, "elapsed_seconds": 0.0, "memory": MemoryUse(GIB)}
ON_CARD: dict[str, Any] = {**IDLE, "memory": MemoryUse(GIB, int(7.9 * GIB), int(9.05 * GIB))}
PLANNED = Planned(plan=PLAN, **IDLE)
STEPS: tuple[Event, ...] = (
    PhaseStarted(phase="encode", **ON_CARD),
    Encoded(tokens=5, token_limit=256, cached=False, hint=None, **ON_CARD),
    PhaseFinished(phase="encode", seconds=1.2, estimated=True, **ON_CARD),
    PhaseStarted(phase="denoise", **ON_CARD),
    *(
        StepFinished(step=step, steps=4, sigma=1.0, seconds=2.5, preview=None, estimated=True, **ON_CARD)
        for step in (1, 2, 3, 4)
    ),
)
DENOISED = PhaseFinished(phase="denoise", seconds=10.0, estimated=True, **ON_CARD)
END = Simulated(
    peak_bytes=int(9.05 * GIB),
    peak_bytes_by_phase={"encode": 5 * GIB, "denoise": int(9.05 * GIB), "decode": 3 * GIB},
    budget_bytes=12 * GIB,
    seconds_by_phase={"encode": 1.2, "denoise": 10.0, "decode": 0.8},
    card="RTX 3060",
    **ON_CARD,
)


async def submit(app: T2IApp, pilot: Pilot[None], text: str = PROMPT) -> None:
    app.main.prompt.put(text)
    await pilot.press("enter")
    assert app.session.running is not None


def saved(path: Path, **values: Any) -> ImageSaved:
    return ImageSaved(
        path=path, seed=7, width=64, height=64, seconds_by_phase={"denoise": 2.0}, **{**ON_CARD, **values}
    )


def gauge(app: T2IApp) -> Gauge:
    return app.main.query_one(Gauge)


# What the engine is opened with.


def test_budgets_and_simulation_reach_the_engine(own_folders: Path) -> None:
    folders.config_dir().mkdir(parents=True)
    (folders.config_dir() / "config.toml").write_text('vram = "10GiB"\nram = "16GB"\n')
    sent: list[OpenModel] = []

    async def test() -> None:
        async with running(engine=False, vram="12GiB", simulate=True, model="flux.1-schnell") as (app, pilot):
            app.client.start = lambda opening: sent.append(opening)  # type: ignore[method-assign]
            await submit(app, pilot)
        assert sent == [OpenModel("flux.1-schnell", vram="12GiB", ram="16GB", simulate=True)]

    run(test())


def test_another_model_or_budget_needs_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Still:
        """A process that does nothing."""

        pid = 1

        def send(self, _: object) -> None:
            """Nothing."""

        def stop(self) -> None:
            """Nothing."""

    monkeypatch.setattr("tui.client.EngineProcess", Still)
    client = EngineClient(lambda _: True, lambda *_, **__: None, updates_per_second=4)  # type: ignore[arg-type]
    opening = OpenModel("demo", vram="12GiB")
    assert not client.has_open(opening)
    client.start(opening)
    assert client.has_open(OpenModel("demo", vram="12GiB"))
    others: tuple[dict[str, Any], ...] = ({"model": "flux-dev"}, {"vram": "8GiB"}, {"ram": "8GiB"}, {"simulate": True})
    for other in others:
        assert not client.has_open(replace(opening, **other)), other
    client.stop()
    assert not client.has_open(opening)


# What is seen of a plan.


def test_the_plan_is_told_when_a_job_begins_and_makes_room_for_its_steps() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await submit(app, pilot)
            assert "plan:" not in screen_text(app)
            await engine_says(app, pilot, PLANNED)
            assert "plan: peak 9.1 of 12.0 GiB, 2.4 GiB streamed a step" in screen_text(app)
            await engine_says(app, pilot, *STEPS)
            assert "plan:" not in screen_text(app)

    run(test())


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_the_plan_has_a_window_that_fits(size: tuple[int, int], ascii_only: bool) -> None:
    async def test() -> None:
        async with running(size, engine=False, ascii=ascii_only) as (app, pilot):
            await submit(app, pilot)
            await engine_says(app, pilot, PLANNED)
            await pilot.press("escape", "P")
            assert isinstance(app.screen, PlanWindow)
            await pilot.pause()
            text = screen_text(app)
            for part in (
                "plan: a red [/b] circle",
                "It fits: peak 9.1 GiB in denoise, 2.9 GiB under the budget of 12.0 GiB.",
                "denoise  7.9 GiB        614 MiB      600 MiB  9.1 GiB   2.4 GiB  7.9 GiB",
                "budget 12.0 GiB",
                "new prompt ~21.6 s, 12.7 GiB to the card, 4.6 GiB from disk",
                "The desktop keeps 400 MiB of the card for itself.",
                "Esc closes",
            ):
                assert part in text, part
            window = app.screen.query_one(".window")
            assert window.show_vertical_scrollbar == (size == (80, 24))  # there the course is below, not the plan
            assert not ascii_only or "\n".join(text.splitlines()).isascii()
            assert max(map(cell_len, text.splitlines())) <= size[0]
            await pilot.press("P")
            assert len(app.screen_stack) == 1

    run(test())


def test_the_window_follows_the_terminal_and_scrolls() -> None:
    async def test() -> None:
        async with running((120, 40), engine=False) as (app, pilot):
            await submit(app, pilot)
            await engine_says(app, pilot, PLANNED)
            await pilot.press("escape", "P")
            for size in ((60, 20), (30, 8), (5, 3), (1, 1), (80, 24)):
                await pilot.resize_terminal(*size)
                await pilot.press("down", "j", "up", "k")
            assert "denoise  7.9 GiB        614 MiB" in screen_text(app)
            await pilot.press("q")
            assert app.screen is app.main

    run(test())


def test_without_a_plan_there_is_a_sentence() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await pilot.press("escape", "P")
            assert app.screen is app.main
            assert any("There is no plan yet" in note for note in notes(app))

    run(test())


def test_the_measured_peak_stands_beside_the_predicted_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await submit(app, pilot)
            measured = int(8.97 * GIB)
            await engine_says(app, pilot, PLANNED, saved(tmp_path / "1.png", measured_peak_bytes=measured))
            assert app.session.results[0].peak_bytes == measured
            await submit(app, pilot, "another")
            await engine_says(app, pilot, Planned(plan=plan_of(8), **IDLE))
            await pilot.press("escape", "home", "P")  # the list follows the running job
            await pilot.pause()
            assert "It does not fit" in screen_text(app)
            assert "measured 9.0" not in screen_text(app)
            await pilot.press("escape", "down", "P")  # the plan of the selected picture
            await pilot.pause()
            assert "predicted 9.1 GiB, measured 9.0 GiB" in screen_text(app)
        history = History.open(folders.state_dir())
        assert [job.peak_bytes for job in history.results()] == [measured]  # it outlives the app
        history.close()

    run(test())


def test_what_the_engine_notices_is_told_once() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            notice = Noticed(message="the card is smaller than [/b] the budget.", **IDLE)
            await submit(app, pilot)
            await engine_says(app, pilot, notice, notice)
            assert notes(app) == ["The card is smaller than [/b] the budget."]

    run(test())


# The gauges.


def test_the_gauge_of_a_card_shows_budget_and_prediction() -> None:
    async def test() -> None:
        async with running((120, 40), engine=False) as (app, pilot):
            app.shared.card.sample = CardSample("RTX 3060", 5 * GIB, 12 * GIB, 97, 71, 140.0)
            app.session.peak_bytes = 3 * GIB
            await submit(app, pilot)
            app.main.update_progress()
            level = gauge(app).level
            assert level is not None
            assert (level.peak_bytes, level.budget_bytes) == (3 * GIB, None)  # as the last picture, without a plan
            await engine_says(app, pilot, Planned(plan=plan_of(11), **IDLE))
            level = gauge(app).level
            assert level is not None
            assert (level.label, level.used_bytes, level.total_bytes) == ("VRAM", 5 * GIB, 12 * GIB)
            assert (level.peak_bytes, level.budget_bytes) == (PLAN.peak_bytes, 11 * GIB)
            text = screen_text(app)
            for part in ("VRAM 5.0 of 12.0 GiB", "plan 9.1 GiB", "budget 11.0 GiB", "GPU 97% 71 C 140 W", "RAM 1.0 of"):
                assert part in text, part
            await pilot.resize_terminal(80, 20)  # no room for the plot
            line = next(line for line in screen_text(app).splitlines() if "VRAM" in line)
            assert "\u2593" in line  # the bar comes before the notes
            assert "peak 9.1 GiB" in line

    run(test())


def test_without_a_card_the_gauge_shows_ram_and_its_budget() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await submit(app, pilot)
            await engine_says(app, pilot, Planned(plan=plan_of(target="cpu"), **IDLE))
            level = gauge(app).level
            assert level is not None
            assert (level.label, level.used_bytes, level.budget_bytes) == ("RAM", GIB, 14 * GIB)

    run(test())


def test_a_simulated_card_has_a_gauge() -> None:
    async def test() -> None:
        async with running(engine=False, simulate=True) as (app, pilot):
            await submit(app, pilot)
            await engine_says(app, pilot, PLANNED, STEPS[0])
            level = gauge(app).level
            assert level is not None
            assert (level.label, level.used_bytes, level.total_bytes) == ("VRAM", int(7.9 * GIB), 12 * GIB)
            assert level.peak_bytes == PLAN.peak_bytes
            assert "VRAM 7.9 of 12.0 GiB" in screen_text(app)
            assert "RTX 3060 (simulated)" in screen_text(app)

    run(test())


def test_the_gauge_of_an_earlier_card_does_not_stay() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            from tui.client import Received

            app.shared.card.sample = CardSample("RTX 3060", 5 * GIB, 12 * GIB)
            app.post_message(Received(None, ModelLoaded("cpu", "CPU", None, 0.1)))  # type: ignore[arg-type]
            await pilot.pause()
            assert app.shared.card.sample is None

    run(test())


# Simulated jobs.


async def simulate(app: T2IApp, pilot: Pilot[None], text: str = PROMPT) -> None:
    await submit(app, pilot, text)
    await engine_says(
        app, pilot, PLANNED, *STEPS, PhaseFinished(phase="denoise", seconds=10, estimated=True, **ON_CARD)
    )
    await engine_says(app, pilot, END)


@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_simulated_job_says_what_it_is_everywhere(ascii_only: bool) -> None:
    async def test() -> None:
        async with running((120, 40), engine=False, simulate=True, ascii=ascii_only) as (app, pilot):
            assert "simulated" in screen_text(app).splitlines()[0]
            await submit(app, pilot)
            await engine_says(app, pilot, PLANNED, *STEPS)
            assert "encode ~1.2 s" in screen_text(app)
            assert "4/4  ~2.5 s/step, ~0.00 s left" in screen_text(app)
            await engine_says(app, pilot, DENOISED, END)
            job = app.session.results[0]
            assert (job.state, job.path, job.simulated) == ("done", None, True)
            assert job.message == "simulated: peak 9.0 of 12.0 GiB, denoise"
            app.session.engine_state = "ready"
            app.main.update(follow=True)
            await pilot.pause()
            text = screen_text(app)
            assert "~12.0 s" in text
            assert "~12.0 s  simulated  9.0 GiB  a red [/b] circle" in text
            assert "plan: peak 9.1 of 12.0 GiB, 2.4 GiB" in text  # instead of a thumbnail
            assert "~12.0 s on RTX 3060 (simulated)" in text
            assert text.count(job.message) == 2  # there, and in the line below the phases
            assert "P shows the whole plan" in text
            assert not ascii_only or text.isascii()
            await pilot.press("escape", "P")
            await pilot.pause()
            assert "peak predicted 9.1 GiB, held in the simulation 9.0 GiB" in screen_text(app)

    run(test())


def test_what_needs_a_picture_refuses_and_the_rest_works() -> None:
    async def test() -> None:
        async with running(engine=False, simulate=True) as (app, pilot):
            app.session.parameters.seed = 42
            await simulate(app, pilot)
            app.session.parameters.seed = None
            app.main.prompt.put("")
            await pilot.press("escape", "home")
            for key in ("v", "f3", "o", "ctrl+o", "f", "c", "y", "Y"):
                app.shared.said.clear()
                await pilot.press(key)
                assert app.screen is app.main, key
                assert [note for note in notes(app) if "This job is simulated" in note], key
            for key in ("i", "enter"):
                await pilot.press(key)
                assert isinstance(app.screen, ReadText)
                assert "done, simulated" in screen_text(app)
                assert "~12.0 s" in screen_text(app)
                await pilot.press("escape")
            await pilot.press("r")
            assert app.main.prompt.text == PROMPT
            assert app.session.parameters.shown("seed") == "random"
            await pilot.press("escape", "home", "u")
            assert app.session.parameters.shown("seed") == "42"
            app.main.prompt.put("")
            await pilot.press("escape", "home", "a")
            assert app.main.prompt.text == PROMPT
            await pilot.press("escape", "home", "d")
            assert len(app.screen_stack) == 1  # no question
            assert not app.session.results
            assert any("There was no picture to delete" in note for note in notes(app))

    run(test())


def test_a_simulated_job_leaves_its_prompt_and_no_picture() -> None:
    async def test() -> None:
        async with running(engine=False, simulate=True, model="flux.1-schnell") as (app, pilot):
            await simulate(app, pilot)
            assert app.session.waiting_seconds() is None  # its seconds are the card's, not ours
            await submit(app, pilot, "still to simulate")
        async with running(engine=False) as (app, pilot):
            session = app.session
            assert session.results == []
            assert session.history.prompts() == ["still to simulate", PROMPT]
            assert session.model == "demo"  # what was simulated need not be here
            assert [(job.request.prompt, job.simulated) for job in session.queue] == [("still to simulate", True)]
            sent: list[OpenModel] = []
            app.client.start = lambda opening: sent.append(opening)  # type: ignore[method-assign]
            await pilot.press("escape", "space")  # goes on: with what was asked for
            assert [opening.simulate for opening in sent] == [True]

    run(test())


def test_a_job_of_last_time_is_painted_though_the_app_simulates_now() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await submit(app, pilot)
        async with running(engine=False, simulate=True) as (app, pilot):
            assert [job.simulated for job in app.session.queue] == [False]
            app.session.enqueue("another")
            assert [job.simulated for job in app.session.queue] == [False, True]

    run(test())


def test_a_failed_simulation_is_simulated_again(tmp_path: Path) -> None:
    session = Session(History.open(tmp_path), "demo", "", simulate=True)
    (job,) = session.enqueue(PROMPT)
    assert session.begin_next() is not None
    session._finish("failed", "no room")
    assert session.retry(job).simulated


def test_a_model_that_is_refused_does_not_seem_to_load(tmp_path: Path) -> None:
    session = Session(History.open(tmp_path), "demo", "")
    session.receive(ModelOpened("demo", Defaults(4, 64, 64, None, "fp32"), ()))
    assert session.progress.running == "load"
    assert session.receive(ModelRefused("1.5 GiB are needed.")) == "1.5 GiB are needed."
    assert session.progress.running is None


def test_flux_schnell_is_simulated_on_12_gib() -> None:
    async def test() -> None:
        async with running((120, 40), simulate=True, vram="12GiB", model="flux.1-schnell") as (app, pilot):
            assert app.session.engine_state == "ready", notes(app)
            await submit(app, pilot)
            await until(pilot, lambda: app.session.results)
            job = app.session.results[0]
            assert (job.state, job.path) == ("done", None), job.message
            assert job.message.startswith("simulated: peak ")
            plan = app.session.plans[job.id]
            assert plan.budget_bytes == 12 * GIB
            assert job.peak_bytes is not None
            assert 4 * GIB < job.peak_bytes <= plan.budget_bytes
            assert app.session.estimated >= {"encode", "denoise", "decode"}
            assert not list(app.output_folder.glob("*.png"))
            await pilot.press("escape", "P")
            await pilot.pause()
            assert "It fits:" in screen_text(app)

    run(test())
