"""Parameters: what a model offers, what a person may choose of it, and the panel where they do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from textual import events
from textual.pilot import Pilot

from engine.precision import PRECISIONS
from engine.request import MAX_COUNT, MAX_GUIDANCE, MAX_SEED, SCHEDULES, Option, Request, RequestError
from engine.sampling import flow
from engine.sampling.guidance import weights
from engine.sizes import ALLOWED
from engine.times import FlowTimes
from tests.apps import notes, run, running, screen_text
from tui.app import T2IApp
from tui.parameters import LABELS, Parameters
from tui.screens.dialogs import ParametersWindow
from tui.widgets.parameters import ASCII_BARS, BARS, ParametersPanel, plot


def options(*, side: int = 1024, top: int = 2048, steps: int = 28, guided: bool = True) -> tuple[Option, ...]:
    """What an open model announces."""
    offered = [
        Option("steps", steps, 1, 1000, 1),
        Option("width", side, 64, top, 16),
        Option("height", side, 64, top, 16),
        Option("guidance", 3.5, 0, MAX_GUIDANCE, 0.5),
        Option("precision", "bf16", choices=PRECISIONS),
    ]
    return tuple(option for option in offered if guided or option.name != "guidance")


DEV, SCHNELL = options(), options(side=512, top=768, steps=4, guided=False)
NAMES = ["steps", "size", "guidance", "precision", "seed", "count"]


@pytest.fixture
def parameters() -> Parameters:
    return Parameters(DEV)


# What is offered.


def test_rows_are_what_the_model_announces_with_width_and_height_as_one(parameters: Parameters) -> None:
    assert parameters.names() == NAMES
    assert Parameters(SCHNELL).names() == ["steps", "size", "precision", "seed", "count"]
    assert Parameters().names() == ["seed", "count"]  # before there is a model


def test_at_first_everything_is_as_the_model_prefers(parameters: Parameters) -> None:
    assert {name: parameters.shown(name) for name in NAMES} == {
        "steps": "28",
        "size": "1024x1024",
        "guidance": "3.5",
        "precision": "bf16",
        "seed": "random",
        "count": "1",
    }
    assert all(parameters.is_default(name) for name in NAMES)
    assert parameters.chosen == {}


def test_what_is_allowed_is_said(parameters: Parameters) -> None:
    assert {name: parameters.allowed(name) for name in NAMES} == {
        "steps": "1 to 1000",
        "size": "64 to 2048, multiples of 16",
        "guidance": "0 to 30",
        "precision": "fp32, bf16, fp8 or int8",
        "seed": "random, or 0 to 2**64 - 1",
        "count": "1 to 1000",
    }


# Step by step.


@pytest.mark.parametrize(
    ("name", "start", "direction", "after"),
    [
        ("steps", 28, 1, 29),
        ("steps", 28, -1, 27),
        ("steps", 1, -1, 1),
        ("steps", 1000, 1, 1000),
        ("guidance", 3.5, 1, 4.0),
        ("guidance", 3.7, 1, 4.0),
        ("guidance", 3.7, -1, 3.5),
        ("guidance", 0.0, -1, 0.0),
        ("guidance", 0.3, -1, 0.0),
        ("guidance", 29.9, 1, 30.0),
        ("guidance", 30.0, 1, 30.0),
        ("precision", "bf16", 1, "fp8"),
        ("precision", "bf16", -1, "fp32"),
        ("seed", None, 1, None),
        ("seed", None, -1, None),
        ("seed", 7, 1, 8),
        ("seed", 0, -1, 0),
        ("seed", MAX_SEED, 1, MAX_SEED),
        ("count", 1, 1, 2),
        ("count", 1, -1, 1),
        ("count", MAX_COUNT, 1, MAX_COUNT),
    ],
)
def test_a_step_goes_to_the_next_value_and_stops_at_the_ends(
    name: str, start: Any, direction: int, after: Any, parameters: Parameters
) -> None:
    if name in ("seed", "count"):
        setattr(parameters, name, start)
    else:
        parameters.write(name, str(start))
    parameters.step(name, direction)
    assert parameters.value(name) == after
    assert type(parameters.value(name)) is type(after)
    Request("the engine takes it", **parameters.chosen)


def test_back_at_the_models_own_value_nothing_is_chosen(parameters: Parameters) -> None:
    for name in ("steps", "guidance", "precision"):
        parameters.step(name, 1)
        assert not parameters.is_default(name)
        parameters.step(name, -1)
        assert parameters.is_default(name)
    assert parameters.chosen == {}


@pytest.mark.parametrize(("side", "top"), [(1024, 2048), (512, 768), (512, 512), (128, 128), (2048, 2048)])
def test_sizes_are_of_the_usual_proportions_and_about_as_large_as_the_default(side: int, top: int) -> None:
    parameters = Parameters(options(side=side, top=top))
    sizes = parameters.sizes()
    assert len(sizes) == len(set(sizes))
    assert sizes[0] == (side, side)
    for width, height in sizes:
        assert width % 16 == height % 16 == 0
        assert 64 <= width <= top
        assert 64 <= height <= top
        assert width * height <= 1.1 * side * side
        if max(width, height) < top:
            assert width * height >= 0.9 * side * side
        assert (height, width) in sizes  # upright, too
        Request("the engine takes it", width=width, height=height)
    if top >= 1.5 * side:
        assert len(sizes) == 11


def test_steps_go_through_all_sizes_and_around(parameters: Parameters) -> None:
    for direction in (1, -1):
        seen = []
        for _ in parameters.sizes():
            seen.append(parameters.value("size"))
            parameters.step("size", direction)
        assert sorted(seen) == sorted(parameters.sizes())
        assert parameters.is_default("size")


def test_a_size_of_ones_own_is_one_of_the_sizes_while_it_is_chosen(parameters: Parameters) -> None:
    usual = parameters.sizes()
    parameters.write("size", "640x80")
    assert parameters.sizes() == [*usual, (640, 80)]
    parameters.step("size", 1)
    assert parameters.value("size") in usual
    parameters.write("size", "640x80")
    parameters.step("size", -1)
    assert parameters.value("size") == usual[-1]


# Written.


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "8", 8),
        ("steps", " 1000 ", 1000),
        ("steps", "007", 7),
        ("size", "512x768", (512, 768)),
        ("size", "512 X 768", (512, 768)),
        ("size", "512\u00d7768", (512, 768)),
        ("size", "512*768", (512, 768)),
        ("size", "512 768", (512, 768)),
        ("size", "512", (512, 512)),
        ("size", "portrait", (832, 1248)),
        ("size", "16:9", (1360, 768)),
        ("size", "1000x1000 --fit", (1008, 1008)),
        ("size", "64x2048", (64, 2048)),
        ("guidance", "4", 4.0),
        ("guidance", "4.", 4.0),
        ("guidance", ".25", 0.25),
        ("guidance", "0", 0.0),
        ("precision", "fp32", "fp32"),
        ("precision", "FP3", "fp32"),
        ("precision", "b", "bf16"),
        ("seed", "0", 0),
        ("seed", str(MAX_SEED), MAX_SEED),
        ("seed", "random", None),
        ("seed", "R", None),
        ("count", "1000", 1000),
    ],
)
def test_a_value_can_be_written(name: str, text: str, value: Any, parameters: Parameters) -> None:
    parameters.seed = 5
    parameters.write(name, text)
    assert parameters.value(name) == value
    assert type(parameters.value(name)) is type(value)


def test_an_empty_text_is_the_models_own_choice(parameters: Parameters) -> None:
    for name, text in zip(NAMES, ("8", "512x512", "1", "fp32", "7", "3"), strict=True):
        parameters.write(name, text)
        assert not parameters.is_default(name)
    for name in NAMES:
        parameters.write(name, "  ")
        assert parameters.is_default(name), name
    assert parameters.to_dict() == {"chosen": {}, "seed": None, "count": 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("steps", "0", "steps must be a whole number from 1 to 1000, got 0."),
        ("steps", "1001", "steps must be a whole number from 1 to 1000, got 1001."),
        ("steps", "8.5", "steps must be a whole number, 1 to 1000; got '8.5'."),
        ("steps", "-8", "steps must be a whole number, 1 to 1000; got '-8'."),
        ("steps", "eight", "steps must be a whole number, 1 to 1000; got 'eight'."),
        ("steps", "\u0668", "steps must be a whole number, 1 to 1000; got '\u0668'."),
        ("steps", "9" * 30, f"steps must be a whole number, 1 to 1000; got '{'9' * 30}'."),
        ("size", "x", f"there is no size 'x'; write {ALLOWED}."),
        ("size", "512x", f"there is no size '512x'; write {ALLOWED}."),
        ("size", "squar", "there is no size 'squar'; did you mean square?"),
        (
            "size",
            "500",
            "size 500x500 is not in multiples of 16; the nearest are 496x496 and 512x512: take one of them, or add "
            "--fit, which paints 512x512 and crops it.",
        ),
        (
            "size",
            "20:1",
            "size 20:1 would be 4576x224 with this model, whose sides go from 64 to 2048; take a ratio nearer to a "
            "square, or say the pixels.",
        ),
        ("size", "512x48", "height must be a whole number from 64 to 2048, got 48."),
        ("size", "4096x512", "width must be a whole number from 64 to 2048, got 4096."),
        ("guidance", "31", "guidance must be a number from 0 to 30, got 31.0."),
        ("guidance", "-1", "guidance must be a number, 0 to 30; got '-1'."),
        ("guidance", "nan", "guidance must be a number, 0 to 30; got 'nan'."),
        ("guidance", "1e1", "guidance must be a number, 0 to 30; got '1e1'."),
        ("guidance", ".", "guidance must be a number, 0 to 30; got '.'."),
        ("precision", "fp16", "precision must be fp32, bf16, fp8 or int8, got 'fp16'."),
        ("precision", "\x1b[2J", "precision must be fp32, bf16, fp8 or int8, got '\\x1b[2J'."),
        ("seed", "-2", "seed must be a whole number, random, or 0 to 2**64 - 1; got '-2'."),
        ("seed", str(MAX_SEED + 1), f"seed must be a whole number from 0 to 2**64 - 1, got {MAX_SEED + 1}."),
        ("seed", "x" * 99, f"seed must be a whole number, random, or 0 to 2**64 - 1; got '{'x' * 40}'."),
        ("count", "0", "count must be a whole number from 1 to 1000, got 0."),
        ("count", "1001", "count must be a whole number from 1 to 1000, got 1001."),
    ],
)
def test_what_cannot_be_is_explained_and_changes_nothing(
    name: str, text: str, message: str, parameters: Parameters
) -> None:
    with pytest.raises(RequestError) as refused:
        parameters.write(name, text)
    assert str(refused.value) == message
    assert parameters == Parameters(DEV)


def test_a_model_may_allow_less_than_a_request_does() -> None:
    parameters = Parameters(SCHNELL)
    with pytest.raises(RequestError, match=r"^width must be 64 to 768, multiples of 16 for this model, got 1024\.$"):
        parameters.write("size", "1024x512")
    few = Parameters((Option("steps", 4, 1, 8, 1),))
    with pytest.raises(RequestError, match=r"^steps must be 1 to 8 for this model, got 9\.$"):
        few.write("steps", "9")
    assert parameters.chosen == few.chosen == {}


# From a picture, to another model, and back.


def test_what_is_cropped_is_taken_over_and_kept() -> None:
    picture = Request("p", width=1024, height=1024, crop="1020x1010", seed=1)
    parameters = Parameters(DEV)
    assert parameters.take(picture, seed=True) == []
    assert parameters.shown("size") == "1020x1010"
    assert not parameters.is_default("size")
    assert parameters.requested() == {"width": 1024, "height": 1024, "crop": "1020x1010"}  # the model's own, and said
    again = Parameters()  # of the next start, before the model is open
    again.restore(json.loads(json.dumps(parameters.to_dict())))
    assert again.requested() == parameters.requested()
    again.announce(DEV)
    assert again == parameters
    again.announce(SCHNELL)  # which paints nothing so large
    assert again.requested() == {}
    assert again.take(picture, seed=False) == ["width", "height", "crop"]
    parameters.step("size", 1)
    assert "crop" not in parameters.requested()
    parameters.restore({"chosen": {"width": 96, "height": 96, "crop": "10x10"}})
    assert "crop" not in parameters.requested()


def test_everything_that_a_picture_chose_is_taken_over(parameters: Parameters) -> None:
    parameters.count = 3
    request = Request("p", steps=8, seed=5, width=512, height=768, guidance=2.0, precision="fp32")
    assert parameters.take(request, seed=True) == []
    chosen = {"steps": 8, "width": 512, "height": 768, "guidance": 2.0, "precision": "fp32"}
    assert parameters == Parameters(DEV, chosen, 5, 3)  # how many are made is the person's own matter
    assert parameters.take(Request("p", steps=28, seed=6, width=512), seed=False) == []
    assert parameters == Parameters(DEV, {"width": 512}, 5, 3)  # what it left open, and defaults, are the model's


def test_without_its_seed_the_persons_own_stays(parameters: Parameters) -> None:
    parameters.seed = 41
    parameters.take(Request("p", seed=5), seed=False)
    assert parameters.seed == 41
    parameters.take(Request("p"), seed=True)
    assert parameters.seed is None


def test_what_this_model_lacks_is_named_and_its_own_choice_holds() -> None:
    parameters = Parameters(SCHNELL, {"width": 256, "height": 320, "steps": 6})
    request = Request("p", steps=8, width=1024, height=512, guidance=2.0, precision="bf16")
    assert parameters.take(request, seed=False) == ["width", "guidance"]
    assert parameters.chosen == {"steps": 8}
    assert parameters.value("size") == (512, 512)


def test_another_model_keeps_what_it_offers_too(parameters: Parameters) -> None:
    for name, text in zip(NAMES, ("8", "1536x640", "2", "fp32", "7", "3"), strict=True):
        parameters.write(name, text)
    parameters.announce(SCHNELL)
    assert parameters == Parameters(SCHNELL, {"steps": 8, "height": 640, "precision": "fp32"}, 7, 3)
    parameters.announce(options(steps=8))
    assert parameters.is_default("steps")  # what one model has to be told is another's own choice
    assert parameters.shown("size") == "1024x640"  # what the model between could not do is gone
    parameters.announce(())
    assert parameters == Parameters((), {}, 7, 3)


def test_a_smaller_text_encoder_is_on_or_off() -> None:
    distills = Option("distill", False, choices=(False, True))
    parameters = Parameters((*DEV, distills))
    assert parameters.names() == ["steps", "size", "guidance", "precision", "distill", "seed", "count"]
    assert (parameters.shown("distill"), parameters.allowed("distill")) == ("off", "off or on")
    parameters.step("distill", 1)
    assert parameters.chosen == {"distill": True}
    assert parameters.shown("distill") == "on"
    assert Request("the engine takes it", **parameters.chosen).distill is True
    again = Parameters()
    again.restore(json.loads(json.dumps(parameters.to_dict())))
    again.announce((*DEV, distills))
    assert again == parameters
    parameters.step("distill", -1)
    assert parameters.chosen == {}
    for text, value in (("on", True), ("ON", True), ("off", False), ("of", False), ("", False)):
        parameters.write("distill", text)
        assert parameters.value("distill") is value
    for text in ("o", "1", "true", "yes"):
        with pytest.raises(RequestError, match="distill must be off or on"):
            parameters.write("distill", text)
    parameters.write("distill", "on")
    parameters.announce(DEV)
    assert parameters.chosen == {}, "another model has none"


def test_a_picture_without_the_smaller_text_encoder_is_taken_over_by_a_model_that_has_none() -> None:
    parameters = Parameters(DEV)
    assert parameters.take(Request("p", distill=False), seed=False) == []
    assert parameters.take(Request("p", distill=True), seed=False) == ["distill"]
    parameters.announce((*DEV, Option("distill", False, choices=(False, True))))
    assert parameters.take(Request("p", distill=True), seed=False) == []
    assert parameters.chosen == {"distill": True}
    assert parameters.take(Request("p"), seed=False) == []
    assert parameters.chosen == {}


def test_what_was_chosen_comes_back(parameters: Parameters) -> None:
    for name, text in zip(NAMES, ("8", "512x768", "2.5", "fp32", "7", "3"), strict=True):
        parameters.write(name, text)
    again = Parameters()
    again.restore(json.loads(json.dumps(parameters.to_dict())))
    again.announce(DEV)
    assert again == parameters


@pytest.mark.parametrize(
    "values",
    [
        None,
        5,
        "text",
        [],
        {},
        {"chosen": None, "seed": None, "count": None},
        {"chosen": [1], "seed": -1, "count": 0},
        {"chosen": "steps", "seed": 2**64, "count": 1001},
        {"chosen": {}, "seed": True, "count": False},
        {"chosen": {}, "seed": 1.5, "count": "3"},
        {"chosen": {"prompt": "x", "seed": 5, "count": 7, "nonsense": 1, "template": "t"}},
        {"chosen": {"steps": "8", "width": 500, "height": None, "guidance": "much", "precision": ["fp32"]}},
        {"chosen": {"steps": 0, "width": 8.5, "height": True, "guidance": float("nan"), "precision": 32}},
    ],
    ids=str,
)
def test_nonsense_of_an_earlier_version_is_passed_over(values: object) -> None:
    parameters = Parameters()
    parameters.restore(values)
    assert parameters == Parameters()
    Request("a job may be queued before there is a model", **parameters.chosen)
    parameters.announce(DEV)
    assert parameters == Parameters(DEV)


def test_only_what_is_sound_is_restored() -> None:
    parameters = Parameters()
    parameters.restore({"chosen": {"steps": 8, "width": 500, "x": 1}, "seed": MAX_SEED, "count": 0})
    assert parameters == Parameters((), {"steps": 8}, MAX_SEED, 1)


# The panel.


@asynccontextmanager
async def panel(size: tuple[int, int]) -> AsyncIterator[tuple[T2IApp, Pilot[None], ParametersPanel]]:
    """The app without an engine, and its panel with the focus: in a window at 80 x 24, on the screen at 200 x 60."""
    async with running(size, engine=False) as (app, pilot):
        app.session.parameters.announce(DEV)
        app.main.parameters_changed()
        await pilot.press("f9")
        found = app.screen.query_one(ParametersPanel)
        assert app.focused is found
        assert isinstance(app.screen, ParametersWindow) == (size[0] < 160)
        yield app, pilot, found


both = pytest.mark.parametrize("size", [(80, 24), (200, 60)], ids=["window", "panel"])


def row(app: T2IApp, name: str) -> str:
    """A row of the panel as it is shown."""
    lines = [line for line in screen_text(app).splitlines() if f" {name:<10} " in line]
    return lines[-1].partition(f" {name:<10} ")[2].rstrip(" \u2502")


@both
def test_a_value_is_typed_and_taken_over_by_enter(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with panel(size) as (app, pilot, _):
            parameters = app.session.parameters
            await pilot.press("8")
            assert parameters.value("steps") == 28
            assert row(app, "steps") == "8_"
            await pilot.press("0", "backspace", "enter")
            assert parameters.value("steps") == 8
            assert row(app, "steps") == "8"
            await pilot.press("down", "6", "4", "0", "x", "8", "0", "enter")
            assert parameters.value("size") == (640, 80)
            await pilot.press("down", ".", "5", "enter")
            assert parameters.value("guidance") == 0.5
            await pilot.press("down", "enter", "f", "p", "3", "enter")  # letters after Enter only
            assert parameters.value("precision") == "fp32"
            await pilot.press("down", "7", "enter", "down", "3", "enter")
            assert (parameters.seed, parameters.count) == (7, 3)
            await pilot.press("up", "enter", "r", "enter")
            assert parameters.seed is None

    run(test())


@both
def test_what_was_changed_is_in_the_header_and_kept(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with panel(size) as (app, pilot, _):
            kept: list[dict[str, Any]] = []
            app.session.save_parameters = lambda: kept.append(  # type: ignore[method-assign]
                {**app.session.parameters.chosen}
            )
            await pilot.press("8", "enter")
            assert kept == [{"steps": 8}]
            await pilot.press("escape")
            assert "steps 8" in screen_text(app).splitlines()[0]

    run(test())


@both
def test_arrows_choose_a_row_and_change_its_value(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with panel(size) as (app, pilot, _):
            parameters = app.session.parameters
            await pilot.press("right", "right", "left")
            assert parameters.value("steps") == 29
            await pilot.press("down", "right")
            assert parameters.value("size") == parameters.sizes()[1]
            await pilot.press("down", "left")
            assert parameters.value("guidance") == 3.0
            assert row(app, "guidance") == "3"
            await pilot.press("up", "up", "up", "right")  # around, to the last row
            assert parameters.count == 2
            await pilot.press("down", "left")
            assert parameters.value("steps") == 28
            assert parameters.is_default("steps")

    run(test())


@both
def test_the_row_of_the_smaller_text_encoder_is_switched_and_is_in_the_header_while_it_is_on(
    size: tuple[int, int],
) -> None:
    async def test() -> None:
        async with panel(size) as (app, pilot, _):
            app.session.parameters.announce((*DEV, Option("distill", False, choices=(False, True))))
            app.main.parameters_changed()
            await pilot.press(*["down"] * 4)
            assert row(app, "distill").startswith("off")
            assert "distill: off or on" in screen_text(app)
            assert "distill" not in screen_text(app).splitlines()[0]
            await pilot.press("right")
            await pilot.pause()
            assert row(app, "distill").startswith("on")
            assert app.session.parameters.chosen == {"distill": True}
            if size[0] >= 160:
                assert "distill on" in screen_text(app).splitlines()[0]
            await pilot.press("enter", "o", "enter")
            assert "distill must be off or on" in screen_text(app)
            await pilot.press("backspace", "o", "f", "enter")
            assert app.session.parameters.chosen == {}

    run(test())


@both
def test_backspace_and_delete_go_back_to_the_models_own_choice(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with panel(size) as (app, pilot, _):
            parameters = app.session.parameters
            parameters.write("size", "512x512")
            for key in ("backspace", "delete"):
                parameters.write("steps", "8")
                await pilot.press(key)
                assert parameters.chosen == {"width": 512, "height": 512}
            await pilot.press("8", "backspace", "backspace", "enter")  # an empty text as well
            assert parameters.is_default("steps")

    run(test())


@both
def test_one_key_gives_all_rows_back_to_the_model(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with panel(size) as (app, pilot, _):
            parameters = app.session.parameters
            for name, text in (("steps", "8"), ("size", "512x512"), ("seed", "7"), ("count", "3")):
                parameters.write(name, text)
            await pilot.press("R")
            assert all(map(parameters.is_default, parameters.names()))
            assert row(app, "steps") == "28"
            assert "seed random" in screen_text(app).splitlines()[0]
            parameters.write("steps", "8")
            await pilot.press("escape")
            app.main.set_focus(app.main.jobs)
            await pilot.press("R")
            assert parameters.is_default("steps")
            assert "as the model prefers" in notes(app)[-1]

    run(test())


@both
def test_what_cannot_be_is_said_until_something_else_is_done(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with panel(size) as (app, pilot, _):
            parameters = app.session.parameters
            parameters.write("steps", "12")
            await pilot.press("0", "enter")
            assert parameters.value("steps") == 12
            assert "steps must be a whole number" in screen_text(app)
            assert "1000, got 0." in screen_text(app)  # all of it, though it is longer than the panel is wide
            await pilot.press("down")
            text = screen_text(app)
            assert "steps must be a whole number" not in text
            assert "size: 64 to 2048, multiples of 16" in text
            await pilot.press("5", "0", "0", "enter")
            text = screen_text(app)
            assert "size 500x500 is not in multiples" in text
            assert "crops it." in text  # the end of a long sentence, too
            await pilot.press("right")
            assert "crops it." not in screen_text(app)
            await pilot.press("enter", *"3:2", "enter")
            assert parameters.value("size") == (1248, 832)
            await pilot.press(*"100x90", "space", *"--fit", "enter")
            assert row(app, "size") == "100x90"
            assert parameters.requested() == {"steps": 12, "width": 112, "height": 96, "crop": "100x90"}

    run(test())


TOGETHER = (Option("cfg", None, 1, 30, 0.5, first=3.0), Option("cfg_zero", False, choices=(False, True)))
EXCLUDE, CHANGES = "CFG-Zero* and APG exclude each other; choose one.", "changes true guidance: add a negative prompt"


@both
def test_choices_that_do_not_go_together_are_said_at_once_all_of_them(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with panel(size) as (app, pilot, _):
            parameters = app.session.parameters
            parameters.announce((*DEV, *TOGETHER, Option("apg", False, choices=(False, True))))
            app.main.parameters_changed()
            app.main.prompt.put("a red circle")
            await pilot.press(*["down"] * parameters.names().index("cfg_zero"), "right")
            assert "CFG-Zero* changes true guidance" in " ".join(screen_text(app).split())
            assert f"CFG-Zero* {CHANGES}" in app.session.forecast.refusal  # the live line
            await pilot.press("down", "right")
            assert f"{EXCLUDE} Either {CHANGES}" in app.session.forecast.refusal
            for words in (
                "exclude each other",
                "Either changes true guidance: add a negative prompt or",
                "leave it out.",
            ):
                assert words in screen_text(app)
            await pilot.press("escape")
            app.main.set_focus(app.main.prompt)
            await pilot.press("enter")
            assert f"{EXCLUDE} Either {CHANGES}" in notes(app)[-1]
            assert app.session.running is None
            assert not app.session.queue
            parameters.write("apg", "off")
            parameters.write("cfg", "2")
            app.main.parameters_changed()
            assert app.session.forecast.refusal == ""

    run(test())


@pytest.mark.parametrize("size", [(60, 16), (30, 8)])
def test_the_help_lines_and_the_chosen_row_are_seen_however_small_the_window_is(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with running(size, engine=False) as (app, pilot):
            app.session.parameters.announce((*DEV, *TOGETHER, *(Option(f"more{n}", 1, 1, 2) for n in range(6))))
            await pilot.press("f9")
            for name in app.session.parameters.names():
                text, label = screen_text(app), LABELS.get(name, name)
                assert f" {label:<10} " in text
                assert f" {label}: {app.session.parameters.allowed(name)[:8]}" in text
                await pilot.press("down")

    run(test())


@both
def test_escape_gives_up_typing_and_then_the_window(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with panel(size) as (app, pilot, found):
            await pilot.press("9", "9", "escape")
            assert app.focused is found
            assert app.session.parameters.is_default("steps")
            assert row(app, "steps") == "28"
            await pilot.press("5", "0", "enter")  # begins anew
            assert app.session.parameters.value("steps") == 50
            if size[0] < 160:
                await pilot.press("escape")
                assert len(app.screen_stack) == 1

    run(test())


@both
def test_letters_are_text_while_a_value_is_typed(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.widgets.parameters.MAX_TYPED", 24)

    async def test() -> None:
        async with panel(size) as (app, pilot, found):
            await pilot.press("enter", *"qgxpd?", "space")
            assert row(app, "steps") == "qgxpd? _"
            assert app.focused is found
            assert app.session.running is None
            await pilot.press(*"1" * (29))
            assert row(app, "steps") == "qgxpd? " + "1" * (17) + "_"
            await pilot.press("up", "down", "left", "right")  # the row stays while its value is typed
            await pilot.press("enter")
            assert app.session.parameters.is_default("steps")
            assert "steps must be a whole number" in screen_text(app)

    run(test())


@both
def test_keys_with_a_modifier_are_not_typed_though_terminals_send_their_letter(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with panel(size) as (app, pilot, _):
            await pilot.press("enter", "1")
            app.post_message(events.Key("ctrl+t", "z"))
            await pilot.pause()
            await pilot.press("2", "enter")
            assert app.session.parameters.value("steps") == 12
            for key in ("alt+z", "alt+shift+z"):  # Esc and a letter: typing is given up
                await pilot.press("enter", "3")
                app.post_message(events.Key(key, "z"))
                await pilot.pause()
                assert row(app, "steps") == "12"

    run(test())


def test_tab_goes_through_the_rows_and_on() -> None:
    async def test() -> None:
        async with panel((200, 60)) as (app, pilot, found):
            await pilot.press(*["tab"] * (len(NAMES) - 1))
            assert app.focused is found
            await pilot.press("right")
            assert app.session.parameters.count == 2
            await pilot.press("tab")
            assert app.focused is not found
            found.focus()
            await pilot.press(*["shift+tab"] * (len(NAMES) - 1))
            assert app.focused is found
            await pilot.press("8", "enter", "shift+tab")
            assert app.session.parameters.value("steps") == 8
            assert app.focused is not found

    run(test())


def test_escape_leads_back_to_where_one_came_from() -> None:
    async def test() -> None:
        async with panel((200, 60)) as (app, pilot, found):
            await pilot.press("9", "escape")
            assert found.has_focus, "that was the value"
            await pilot.press("escape", "a")
            assert app.main.prompt.text == "a"
            await pilot.press("escape", "f9", "escape")
            assert app.main.jobs.has_focus

    run(test())


def test_what_was_being_typed_is_given_up_when_the_focus_goes() -> None:
    async def test() -> None:
        async with panel((200, 60)) as (app, pilot, found):
            await pilot.press("9")
            assert row(app, "steps") == "9_"
            await pilot.press("f9")
            assert app.focused is app.main.prompt
            assert row(app, "steps") == "28"
            found.focus()
            await pilot.press("7", "enter")
            assert app.session.parameters.value("steps") == 7

    run(test())


@both
def test_a_click_chooses_the_row_under_it(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with panel(size) as (app, pilot, found):
            at = {name: (2, found.gutter.top + number) for number, name in enumerate(NAMES)}
            await pilot.click(found, offset=at["guidance"])
            await pilot.press("right")
            assert app.session.parameters.chosen == {"guidance": 4.0}
            await pilot.click(found, offset=at["steps"])
            await pilot.press("right")
            assert app.session.parameters.chosen == {"guidance": 4.0, "steps": 29}
            await pilot.press("9")
            await pilot.click(found, offset=at["count"])  # typing is given up
            await pilot.press("right")
            await pilot.click(found, offset=at["steps"])
            await pilot.click(found, offset=(2, found.gutter.top + len(NAMES)))  # no row
            await pilot.press("right")
            assert app.session.parameters.chosen == {"guidance": 4.0, "steps": 30}
            assert app.session.parameters.count == 2

    run(test())


@both
def test_a_model_with_fewer_rows_may_come_at_any_time(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with panel(size) as (app, pilot, found):
            await pilot.press("up")  # the last of six
            app.session.parameters.announce(SCHNELL)
            await pilot.press("right")
            assert app.session.parameters.count == 2  # the last of five
            app.session.parameters.announce(())
            found.refresh(layout=True)
            await pilot.pause()
            assert "count: 1 to 1000" in screen_text(app)  # the last of two
            await pilot.press("up", "down", "right", "backspace", "1", "enter")
            assert app.session.parameters.chosen == {}
            assert app.is_running

    run(test())


def test_the_window_shows_every_row_in_a_small_terminal() -> None:
    async def test() -> None:
        async with panel((60, 16)) as (app, _pilot, _):
            text = screen_text(app)
            assert all(f" {name:<10} " in text for name in NAMES)
            assert "arrows change, digits or Enter type" in text

    run(test())


# Guidance.

GUIDED = (
    *DEV,
    Option("cfg", None, 1, 30, 0.5, first=3.0),
    Option("negative_prompt", None),
    Option("guidance_schedule", "constant", choices=tuple(SCHEDULES)),
)
UNIFORM = FlowTimes()


def test_true_guidance_is_off_until_it_is_chosen() -> None:
    parameters = Parameters(GUIDED)
    assert (parameters.shown("cfg"), parameters.allowed("cfg")) == ("off", "off, or 1 to 30")
    parameters.step("cfg", -1)
    assert parameters.chosen == {}
    parameters.step("cfg", 1)
    assert parameters.chosen == {"cfg": 3.0}
    parameters.step("cfg", 1)
    assert parameters.shown("cfg") == "3.5"
    parameters.write("cfg", "1")
    parameters.step("cfg", -1)
    assert parameters.chosen == {}
    parameters.write("cfg", "7.5")
    assert parameters.shown("cfg") == "7.5"
    parameters.write("cfg", "off")
    assert parameters.is_default("cfg")
    with pytest.raises(RequestError, match="cfg must be a number from 1 to 30"):
        parameters.write("cfg", "31")


def test_a_negative_prompt_is_any_text_and_brings_guidance_with_it() -> None:
    parameters = Parameters(GUIDED)
    parameters.step("negative_prompt", 1)
    assert parameters.chosen == {}
    parameters.write("negative_prompt", "[b]blurry[/b], 50%")
    assert parameters.shown("negative_prompt") == "[b]blurry[/b], 50%"
    assert parameters.shown("cfg") == "3"
    parameters.write("negative_prompt", "")
    assert parameters.shown("negative_prompt") == parameters.shown("cfg") == "off"
    parameters.take(Request("p", negative_prompt="", cfg=2.0, guidance_schedule="interval:low=0.3"), seed=False)
    assert parameters.shown("negative_prompt") == "empty"
    assert parameters.chosen == {"negative_prompt": "", "cfg": 2.0, "guidance_schedule": "interval:low=0.3"}
    again = Parameters()
    again.restore(parameters.to_dict())
    again.announce(GUIDED)
    assert again.chosen == parameters.chosen
    assert Parameters(DEV).take(Request("p", negative_prompt="x", guidance_schedule="constant"), seed=False) == [
        "negative_prompt"
    ]


def test_balancing_is_asked_for_in_int8_alone() -> None:
    parameters = Parameters((*DEV, Option("salience", "csb+ssc", choices=("off", "csb", "csb+ssc"))))
    parameters.write("salience", "off")
    assert parameters.requested() == {}
    parameters.write("precision", "int8")
    assert parameters.requested() == {"precision": "int8", "salience": "off"}


def test_a_schedule_is_chosen_by_its_name_or_written_with_options() -> None:
    parameters = Parameters(GUIDED)
    assert parameters.weights() is None
    parameters.write("guidance_schedule", "tv")
    assert parameters.chosen == {"guidance_schedule": "tv"}
    parameters.write("guidance_schedule", "tv-")
    assert parameters.value("guidance_schedule") == "tv-anchored"
    parameters.write("guidance_schedule", "Interval:low=0.2,high=0.6")
    assert parameters.value("guidance_schedule") == "interval:low=0.2,high=0.6"
    parameters.step("guidance_schedule", 1)
    assert parameters.value("guidance_schedule") in SCHEDULES
    for text, said in (
        ("zigzag", "there is no guidance schedule"),
        ("tvv", "did you mean 'tv'"),
        ("interval:low=3", "low of the schedule interval"),
    ):
        with pytest.raises(RequestError, match=said):
            parameters.write("guidance_schedule", text)


def test_the_plot_has_the_weights_that_the_engine_will_use() -> None:
    parameters = Parameters(GUIDED, times=UNIFORM)
    parameters.write("steps", "4")
    parameters.write("guidance_schedule", "tv")
    assert parameters.weights() == pytest.approx(weights("tv", 3.5, [1, 0.75, 0.5, 0.25, 0]))
    parameters.limits = (1.0, 4.0)
    assert max(parameters.weights() or [0]) == 4
    parameters.write("cfg", "5")
    assert max(parameters.weights() or [0]) == pytest.approx(max(weights("tv", 5, [1, 0.75, 0.5, 0.25, 0])))
    assert plot([1.0, 4.0, 8.0, 1.0], BARS, 20) == "▁▄█▁ 1 to 8"
    assert plot([1.0, 4.0, 8.0, 1.0], ASCII_BARS, 20) == "_=#_ 1 to 8"
    many = plot([*(float(step) for step in range(1, 100)), 1.0], BARS, 25)
    assert len(many) == 25
    assert many[0] == "▁"
    assert many.split()[0][-1] == "▁"  # the last step is among them


def test_times_in_plain_numbers_are_the_samplers() -> None:
    for config in ({"shift": 3.0}, {"use_dynamic_shifting": True}):
        for steps in (1, 4, 28):
            times = FlowTimes.from_config(config)
            assert times.numbers(steps, 4096) == pytest.approx(flow.sigmas(times, steps, 4096).tolist(), abs=1e-6)
