"""Grids and wildcards in the app: rows with several values, a picture for each cell, and the sheet that shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from textual.pilot import Pilot

from engine import folders
from engine.cli.repeat import repeated_axes
from engine.grids import Axis, read_axis
from engine.images.metadata import read_record
from engine.prompts.wildcards import Wildcards
from engine.request import Request, RequestError
from tests.apps import notes, run, running, screen_text, settled, until
from tests.test_tui_app import generate, write
from tests.test_tui_parameters import DEV, SCHNELL, row
from tui.app import T2IApp
from tui.history import GRID, History
from tui.jobs import Job, job_from_dict, job_to_dict
from tui.parameters import Parameters
from tui.sheets import Sheet

SMALL = {"steps": 1, "width": 64, "height": 64}


def sheet_of(app: T2IApp) -> Path:
    """The only sheet in the output folder."""
    (sheet,) = app.output_folder.glob("*_grid-*.png")
    return sheet


async def sheet_saved(app: T2IApp, pilot: Pilot[None]) -> None:
    await until(pilot, lambda: any("one sheet" in said for said in notes(app)))
    await settled(pilot, app)


def test_a_row_with_several_values_is_a_grid() -> None:
    parameters = Parameters(DEV)
    parameters.write("guidance", "1, 3.5")
    parameters.write("steps", "20,4,8")
    parameters.write("size", "512|1024x512|square")
    assert [*parameters.axes] == ["steps", "size", "guidance"]  # as the rows are, however they were typed
    assert parameters.shown("steps") == "grid 20, 4, 8"
    assert not parameters.is_default("steps")
    assert parameters.requested() == {"steps": 20, "guidance": 1.0}  # the most costly one is planned
    again = Parameters()
    again.restore(json.loads(json.dumps(parameters.to_dict())))
    again.announce(DEV)
    assert again == parameters
    again.announce(SCHNELL)  # of smaller pictures, and without guidance
    assert [*again.axes] == ["steps"]
    parameters.write("seed", "1,2")
    parameters.step("guidance", 1)
    parameters.write("steps", "5")
    parameters.reset("size")
    assert [*parameters.axes] == ["seed"]
    assert parameters.take(Request("p", steps=3), seed=False) == []
    assert parameters.axes == {}
    parameters.write("steps", "8")
    parameters.restore({"chosen": {}, "grid": "nonsense"})
    assert parameters.axes == {}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("steps", "4,0", "grid steps: steps must be a whole number from 1 to 1000, got 0."),
        ("size", "512,500", "grid size: size 500x500 is not in multiples of 16; the nearest are"),
        ("size", "512,2048x4096", "grid size: height must be a whole number from 64 to 2048, got 4096."),
        ("precision", "bf16,nf4", "grid precision: precision must be one of"),
        ("seed", ",".join(map(str, range(501))), "2 x 501 are 1002 pictures; at most 1000 are painted"),
        ("count", "1,2", "count must be a whole number"),
    ],
)
def test_what_makes_no_grid_is_one_sentence_and_changes_nothing(name: str, text: str, words: str) -> None:
    parameters = Parameters(DEV)
    parameters.write("steps", "2,3")
    before = parameters.to_dict()
    with pytest.raises(RequestError) as refused:
        parameters.write(name, text)
    assert words in str(refused.value)
    assert parameters.to_dict() == before


def test_a_grid_is_typed_in_the_panel_painted_and_put_on_one_sheet() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            await pilot.press("f9", *"1,2", "enter")
            assert row(app, "steps") == "grid 1, 2"
            await pilot.press("down", *"64,96x64", "enter", "escape")
            await write(app, pilot, "a {red|blue} star")
            assert "grid of 8 pictures: 2 steps x 2 size x 2 variants: red / blue" in screen_text(app)
            app.session.parameters.count = 2
            await pilot.press("enter")
            assert "A grid and a count exclude each other" in notes(app)[-1]
            app.session.parameters.count = 1
            await pilot.press("enter")
            await sheet_saved(app, pilot)
            assert notes(app)[-1].startswith("The grid is on one sheet: ")
            made = [job.request for job in reversed(app.session.results)]
            assert [(each.steps, each.width, each.prompt) for each in made] == [
                (steps, width, f"a {colour} star")
                for width in (64, 96)
                for colour in ("red", "blue")
                for steps in (1, 2)
            ]
            assert len({each.seed for each in made}) == 1
            sheet = sheet_of(app)
            assert app.session.history.load(f"{GRID}{app.session.results[0].grid}") is None  # it is done
            await pilot.press("escape", "l")
            await settled(pilot, app)
            assert "9 pictures" in screen_text(app)
            for name in app.session.parameters.names():
                app.session.parameters.reset(name)
            await pilot.press("home", "a")  # the sheet, whose settings are the grid
            assert app.main.prompt.text == "a {red|blue} star"
            assert [*app.session.parameters.axes.values()] == [read_axis("steps=1,2"), read_axis("size=64,96x64")]
            record = read_record(sheet)  # as `t2i generate --from` reads it
            assert [*repeated_axes(record, ())][:2] == [*app.session.parameters.axes.values()]
            with Image.open(sheet) as pixels:
                assert pixels.height > 4 * 64

    run(test())


def test_a_grid_is_finished_after_a_restart_and_what_was_not_made_is_an_empty_cell() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            app.session.parameters.announce(DEV)
            app.session.parameters.chosen.update(SMALL)
            app.session.parameters.write("steps", "1,2,3,4")
            app.session.paused = app.session.held = True
            await write(app, pilot, "a red star")
            await pilot.press("enter")
            _, second, third, _ = app.session.queue
            await pilot.press("escape")
            app.main.jobs.select(second.id)
            await pilot.press("d")
            assert [job.cell for job in app.session.queue] == [0, 2, 3]
            app.session.history.remove(third.id)  # as if its row could not be read
        async with running() as (app, pilot):
            await pilot.press("escape", "space")
            await sheet_saved(app, pilot)
            assert "The grid is on one sheet, but for 2 cells of 4: " in notes(app)[-1]
            record = read_record(sheet_of(app))
            assert record.reproduce["grid"] == [{"name": "steps", "values": [1, 2, 3, 4]}]
            made = sorted(app.output_folder.glob("*.png"))
            all_made = Sheet((read_axis("steps=1,2"),), [str(made[0]), str(made[0])])
            app.session.history.save(f"{GRID}x", all_made.to_dict())  # as where a kill came before the sheet
        async with running(engine=False) as (app, pilot):
            await sheet_saved(app, pilot)
            assert len({*app.output_folder.glob("*.png")} - {*made}) == 1

    run(test())


def test_a_job_that_failed_leaves_an_empty_cell_and_may_be_tried_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            session = app.session
            session.parameters.announce(DEV)
            session.parameters.write("steps", "1,2,3")
            jobs = session.enqueue("a star")
            sheet = session.sheets[jobs[0].grid]
            for state in ("failed", "cancelled"):
                session.begin_next()
                session._finish(state)
            assert sheet.cells == ["", "", None]
            again = session.retry(session.results[1])
            assert (again.grid, again.cell, sheet.cells) == (jobs[0].grid, 0, [None, "", None])
            session.begin_next()
            session._finish("done", path=tmp_path / "gone.png")
            assert session.history.load(f"{GRID}{again.grid}")["cells"] == [str(tmp_path / "gone.png"), "", None]
            session.clear_queue()
            assert sheet.is_complete
            app.main.update()
            await settled(pilot, app)
            assert session.history.load(f"{GRID}{again.grid}") is None  # no picture is there: no sheet, and no sentence
            assert not any("sheet" in said for said in notes(app))
            session.simulate = True
            assert not session.enqueue("a star")[0].grid

    run(test())


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {"axes": [], "cells": []},
        {"axes": [{"name": "steps", "values": [1]}], "cells": [None, None]},
        {"axes": [{"name": "steps", "values": [1, 0]}], "cells": [None, None]},
        {"axes": [{"name": "steps", "values": [1, 2]}], "cells": [None, 7]},
        {"axes": [{"name": "steps", "values": [1, 2]}], "cells": None},
    ],
    ids=str,
)
def test_a_grid_that_cannot_be_read_costs_itself_alone(values: object) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Sheet.from_dict(values)


def test_a_grid_outlives_its_session_and_jobs_say_what_they_belong_to() -> None:
    sheet = Sheet((read_axis("steps=1,2"),), ["/a.png", None])
    assert Sheet.from_dict(json.loads(json.dumps(sheet.to_dict()))) == sheet
    job = Job(Request("p", seed=1), "demo", "", grid="g", cell=1)
    assert job_from_dict(job.id, "queued", json.loads(json.dumps(job_to_dict(job)))) == job
    alone = Job(Request("p", seed=1), "demo", "")
    assert not {"grid", "cell"} & job_to_dict(alone).keys()  # as ever
    first, second = (History.open(folders.state_dir()) for _ in range(2))
    first.put_all([job], values={f"{GRID}g": sheet.to_dict()})
    second.save("draft", "newer")
    first.close()
    second.close()
    adopted = History.open(folders.state_dir()).adopt()
    assert adopted is not None
    assert (adopted.draft, adopted.values, adopted.jobs) == ("newer", {f"{GRID}g": sheet.to_dict()}, [job])


def test_wildcards_are_drawn_by_each_jobs_seed_and_a_missing_one_is_said() -> None:
    folder = folders.config_dir() / "wildcards"
    folder.mkdir(parents=True)
    (folder / "colour.txt").write_text("red\ngreen\nblue\n")

    async def test() -> None:
        async with running() as (app, pilot):
            app.session.parameters.seed = 3
            app.session.parameters.chosen.update(SMALL)
            await write(app, pilot, "a __color__ star")
            await until(pilot, lambda: "there is no wildcard 'color'; did you mean 'colour'?" in screen_text(app))
            await pilot.press("enter")
            await until(pilot, lambda: notes(app))
            assert notes(app)[-1].startswith("There is no wildcard 'color'; did you mean 'colour'?")
            assert app.session.running is None
            template = "a __colour__ star {__colour__}"
            await write(app, pilot, template)
            await until(pilot, lambda: "3 variants: red / green / blue" in screen_text(app))
            await pilot.press("enter")
            await until(pilot, lambda: len(app.session.results) == 3)
            requests = [read_record(job.path).request for job in app.session.results if job.path]
            assert {request.template for request in requests} == {template}
            drawn = {request.prompt.split()[1] for request in requests}
            assert len(drawn) == 1  # one seed, one line
            assert drawn <= {"red", "green", "blue"}
            assert {request.prompt.split()[3] for request in requests} == {"red", "green", "blue"}
            await pilot.press("escape", "home", "r")
            assert app.main.prompt.text == template
            app.session.parameters.count = 3
            await generate(app, pilot, "__colour__")
            await until(pilot, lambda: len(app.session.results) == 6)
            by_seed = {job.request.seed: job.request.prompt for job in app.session.results[:3]}
            assert by_seed == {seed: Wildcards().draw("__colour__", seed) for seed in (3, 4, 5)}

    run(test())


def test_a_grid_waits_for_the_model() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, _):
            app.session.parameters.axes = {"size": Axis("size", ("16:9",))}
            with pytest.raises(RequestError, match="a grid begins when the model is open"):
                app.session.enqueue("a star")

    run(test())
