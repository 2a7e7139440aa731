"""Presets in the app: kept from the panel, taken over, removed, and what a model does not offer of one."""

from __future__ import annotations

import pytest
from textual.pilot import Pilot

from engine import presets
from engine.cli.commands import main
from engine.request import RequestError
from tests.apps import notes, run, running, screen_text, until
from tests.test_tui_parameters import DEV, SCHNELL, both, panel, row
from tui.app import T2IApp
from tui.parameters import Parameters
from tui.screens.dialogs import Confirm
from tui.screens.preset_dialogs import ChoosePreset, NamePreset
from tui.widgets.parameters import ParametersPanel


async def opened(app: T2IApp, pilot: Pilot[None], key: str, screen: type[object]) -> None:
    await pilot.press(key)
    await until(pilot, lambda: isinstance(app.screen, screen))


@both
def test_what_is_set_is_kept_replaced_taken_over_and_removed(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with panel(size) as (app, pilot, _):
            parameters = app.session.parameters
            await pilot.press("S")
            assert "nothing to keep as a preset" in notes(app)[-1]
            await pilot.press("L")
            await until(pilot, lambda: "There are no presets" in notes(app)[-1])
            await pilot.press("8", "enter", "down", *"100x90", "space", *"--fit", "enter")
            await opened(app, pilot, "S", NamePreset)
            assert "steps 8, size 100x90, fit True" in screen_text(app)
            await pilot.press(*"a/b", "enter")
            assert "a preset's name has letters" in screen_text(app)
            await pilot.press("backspace", "backspace", "enter")
            assert notes(app)[-1] == "Kept as the preset 'a': steps 8, size 100x90, fit True."
            assert presets.read("a") == {"steps": 8, "size": "100x90", "fit": True}
            assert main(["presets"]) == 0  # the command line's own
            parameters.seed = 7
            await pilot.press("delete", "up", *"4,20", "enter", "down", "down", "2", "enter")
            await opened(app, pilot, "S", NamePreset)
            await pilot.press("down")  # a known name instead of typing it
            assert "replaces a: steps 8, size 100x90, fit True" in screen_text(app)
            await pilot.press("enter")
            assert notes(app)[-1] == "Kept as the preset 'a': guidance 2.0, seed 7. A grid is not kept: steps."
            presets.write("wide", {"size": "3:2", "count": 2, "apg": True, "model": "elsewhere", "steps": 9})
            await opened(app, pilot, "L", ChoosePreset)
            assert "a  guidance 2.0, seed 7" in screen_text(app)
            await pilot.press("down", "enter")
            await pilot.pause()
            assert notes(app)[-1] == (
                "Preset 'wide': size 3:2, count 2, apg True, model elsewhere, steps 9. This model does not take apg as "
                "they were; its own choice holds. Its model is not opened; M does that."
            )
            assert parameters.requested() == {"steps": 9, "width": 1248, "height": 832}
            assert (parameters.seed, parameters.count, parameters.axes) == (7, 2, {})
            assert app.focused is app.screen.query_one(ParametersPanel)
            assert row(app, "steps") == "9"
            await opened(app, pilot, "L", ChoosePreset)
            await pilot.press("delete")
            assert isinstance(app.screen, Confirm)
            await pilot.press("n")
            assert presets.names() == ["a", "wide"]
            await pilot.press("delete", "y")
            assert presets.names() == ["wide"]
            assert "a  guidance" not in screen_text(app)
            await pilot.press("d", "y")  # the last one closes the list
            assert not isinstance(app.screen, ChoosePreset)
            assert presets.names() == []

    run(test())


def test_a_preset_that_is_wrong_is_listed_with_its_problem_and_changes_nothing() -> None:
    path = presets.write("odd", {"steps": 8})
    path.write_text("steps = 0\n")

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await pilot.press("escape", "L")
            assert "when the model is open" in notes(app)[-1]
            app.session.parameters.announce(DEV)
            await opened(app, pilot, "L", ChoosePreset)
            assert "odd  preset 'odd': steps must be a whole number" in screen_text(app)
            await pilot.press("enter")
            await pilot.pause()
            assert notes(app)[-1].startswith("Preset 'odd': steps must be a whole number")
            assert app.session.parameters == Parameters(DEV)

    run(test())


def test_what_a_model_does_not_take_of_a_preset_is_named() -> None:
    parameters = Parameters(SCHNELL)
    wishes = {"steps": 8, "guidance": 4.0, "cfg_zero": False, "width": 1000, "height": 90, "fit": True, "seed": -1}
    parameters.seed = 5
    assert parameters.take_preset(wishes) == ["guidance", "size"]
    assert {**parameters.requested(), "seed": parameters.seed} == {"steps": 8, "seed": None}
    assert parameters.take_preset({"size": "512", "precision": "fp8"}) == []
    assert parameters.to_preset() == {"precision": "fp8"}  # and the size is its own
    parameters.write("size", "100x90 --fit")
    values = parameters.to_preset()
    again = Parameters(SCHNELL)
    assert again.take_preset(values) == []
    assert again == parameters
    with pytest.raises(RequestError, match="letters, digits"):
        presets.remove("../odd")
