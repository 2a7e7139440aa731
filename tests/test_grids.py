"""Grids: which pictures they are, that a sheet shows them all and paints them again, and grids that cannot be."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from engine.cli.commands import main
from engine.grids import MAX_PICTURES, Axis, check, from_plain, headings, read_axis, requests, to_plain, without
from engine.images.metadata import read_record
from engine.images.sheet import MAX_SHEET_PIXELS, make_sheet
from engine.request import Request, RequestError

BASE = Request("a star", seed=7, salience="csb")


def shape(ratio: Fraction) -> dict[str, int]:
    return {"width": 64 * ratio.numerator, "height": 64 * ratio.denominator}


@pytest.mark.parametrize(
    ("text", "name", "values", "labels"),
    [
        ("steps=4, 8,20,4", "steps", (4, 8, 20), ("steps 4", "steps 8", "steps 20")),
        ("--cfg=1,2.5", "cfg", (1.0, 2.5), ("cfg 1", "cfg 2.5")),
        ("cfg-zero=on,off", "cfg_zero", (True, False), ("cfg zero on", "cfg zero off")),
        ("size=64x96,16:9,square", "size", ("64x96", "16:9", "square"), ("size 64x96", "size 16:9", "size square")),
        ("negative-prompt=a red, round one|blue", "negative_prompt", ("a red, round one", "blue"), None),
        (
            "guidance-schedule=tv|interval:low=0.1,high=0.9",
            "guidance_schedule",
            ("tv", "interval:low=0.1,high=0.9"),
            None,
        ),
    ],
)
def test_an_axis_is_a_name_and_values(
    text: str, name: str, values: tuple[object, ...], labels: tuple[str, ...] | None
) -> None:
    axis = read_axis(text)
    assert (axis.name, axis.values) == (name, values)
    assert labels is None or axis.labels == labels


def test_the_first_axis_goes_to_the_right_and_the_others_down() -> None:
    axes = [read_axis("steps=4,8"), read_axis("size=64x96,3:2"), Axis("prompt", ("a star", "a heart"))]
    cells = requests(BASE, axes, shape)
    assert [(each.steps, each.width, each.height, each.prompt) for each, _ in cells] == [
        (steps, *size, prompt)
        for size in ((64, 96), (192, 128))
        for prompt in ("a star", "a heart")
        for steps in (4, 8)
    ]
    assert cells[0][1] == "steps 4, size 64x96"
    columns, rows = headings(axes)
    assert columns == ["steps 4", "steps 8"]
    assert rows == ["size 64x96, a star", "size 64x96, a heart", "size 3:2, a star", "size 3:2, a heart"]
    assert headings(axes[:1]) == (["steps 4", "steps 8"], [""])
    precisions = requests(BASE, [read_axis("precision=int8,bf16")], shape)
    assert [each.salience for each, _ in precisions] == [None, None]
    assert from_plain(json.loads(json.dumps(to_plain(axes)))) == tuple(axes)
    assert without(axes, ["width", "prompt"]) == (axes[0],)
    assert without(axes, ["steps", "seed"]) == tuple(axes[1:])


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("steps", "such as steps=4,8,20, got 'steps'."),
        ("steps=", "such as steps=4,8,20"),
        ("step=4", "a grid has no axis 'step'; did you mean steps?"),
        ("model=a,b", "a grid has no axis 'model'; there are steps, seed, size,"),
        ("prompt=a|b", "write {a|b} in the prompt"),
        ("steps=4,0", "grid steps: steps must be a whole number from 1 to 1000, got 0."),
        ("steps=4,,8", "grid steps: steps must be a whole number from 1 to 1000, got ''."),
        ("cfg=nan", "grid cfg: cfg must be a number from 1 to 30, got 'nan'."),
        ("apg=maybe", "grid apg: apg must be true or false, got 'maybe'."),
        ("size=100x100", "grid size: size 100x100 is not in multiples of 16"),
        ("size=32", "grid size: width must be a whole number from 64"),
        ("seed=" + ",".join(map(str, range(1001))), "needs 1 to 1000 values, got 1001"),
        ("steps=4 steps=8", "the grid has the steps twice"),
        ("size=64 width=64", "the grid has the size twice"),
        ("steps=1,2,3 seed=" + ",".join(map(str, range(500))), "3 x 500 are 1500 pictures; "),
    ],
)
def test_what_makes_no_grid_is_one_sentence(texts: str, words: str) -> None:
    with pytest.raises(RequestError) as refused:
        check([read_axis(text) for text in texts.split()])
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        {},
        [[]],
        [{"name": "steps"}],
        [{"name": "steps", "values": []}],
        [{"name": "steps", "values": [True]}],
        [{"name": "steps", "values": ["4"]}],
        [{"name": "size", "values": [64]}],
        [{"name": "model", "values": ["x"]}],
        [{"name": "cfg", "values": [None]}],
        [{"name": ["steps"], "values": [4]}],
        [{"name": "steps", "values": [4], "more": 1}],
        [{"name": "seed", "values": [*range(40)]}, {"name": "steps", "values": [*range(1, 41)]}],
        [{"name": "steps", "values": [4]}] * 7,
    ],
)
def test_a_grid_in_a_picture_is_not_trusted(plain: object) -> None:
    with pytest.raises(RequestError):
        from_plain(plain)


def picture(path: Path, size: tuple[int, int], colour: str) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def test_a_sheet_shows_every_picture_whole_with_room_for_labels(tmp_path: Path) -> None:
    pictures = [picture(tmp_path / "a.png", (64, 96), "red"), None, picture(tmp_path / "b.png", (96, 64), "blue")]
    columns = ["steps 4", "x" * 500, "a long label of many words that has to be in lines of its own"]
    sheet = make_sheet(pictures, columns, ["row"], "\x1b[2J a caption\n" * 50)
    colours = {colour: number for number, colour in sheet.getcolors(2**16) or []}
    assert (colours[(255, 0, 0)], colours[(0, 0, 255)]) == (64 * 96, 96 * 64)
    assert sheet.width > 3 * 96
    assert sheet.height > 96
    plain = make_sheet(pictures[:1], [""], [""], "")
    assert plain.width < 64 + 40
    assert plain.height < 96 + 40


def test_a_sheet_of_many_large_pictures_stays_in_bounds(tmp_path: Path) -> None:
    large = picture(tmp_path / "large.png", (2048, 1024), "green")
    sheet = make_sheet([large] * 12, ["a", "b", "c", "d"], ["1", "2", "3"], "large")
    assert sheet.width < 4 * (1024 + 8) + 100, "no cell is larger than 1024"
    many = make_sheet(
        [picture(tmp_path / "small.png", (64, 64), "red")] * MAX_PICTURES, ["x"], ["1"] * MAX_PICTURES, ""
    )
    assert many.width * many.height < 1.5 * MAX_SHEET_PIXELS
    assert many.height > 64 * MAX_PICTURES


FIXED = ("--seed", "7", "--size", "64x64")


def test_a_grid_is_painted_and_its_sheet_paints_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    grid = ("--grid", "steps=1,2", "--grid", "cfg=1,2")
    assert main(["generate", "a {red|blue} star", *grid, *FIXED, "--json", "-o", f"{first}/"]) == 0
    run = capsys.readouterr()
    lines = [json.loads(line) for line in run.out.splitlines()]
    assert "5 of 8: steps 1, cfg 2: a red star" in run.err.splitlines()
    saved = [line["path"] for line in lines if line["event"] == "image_saved"]
    requests_ = [read_record(path).request for path in saved]
    assert [(each.steps, each.cfg, each.prompt) for each in requests_] == [
        (steps, cfg, f"a {colour} star") for cfg in (1, 2) for colour in ("red", "blue") for steps in (1, 2)
    ]
    assert {each.template for each in requests_} == {"a {red|blue} star"}
    sheet = lines[-1]
    assert sheet["event"] == "sheet_saved"
    assert (sheet["columns"], sheet["rows"][1]) == (["steps 1", "steps 2"], "cfg 1, a blue star")
    assert Path(sheet["path"]).name == "000009_seed7_grid-a-red-star.png"
    assert main(["generate", "--from", sheet["path"], "-q", "-o", f"{again}/"]) == 0
    assert capsys.readouterr().out.count("\n") == 9
    for one, two in zip(sorted(first.iterdir()), sorted(again.iterdir()), strict=True):
        with Image.open(one) as left, Image.open(two) as right:
            assert left.tobytes() == right.tobytes()
    assert main(["generate", "a heart", "--from", sheet["path"], "--steps", "1", "-q", "-o", f"{other}/"]) == 0
    repeated = [read_record(path).request for path in sorted(other.iterdir())]
    assert [(each.steps, each.cfg, each.prompt, each.seed) for each in repeated] == [
        *((1, 1, "a heart", 7), (1, 2, "a heart", 7), (1, 1, "a heart", 7))
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--count 2", "--grid and --count exclude each other; --grid seed=1,2,3 varies the seed."),
        ("--output one.png", "is one file and 3 pictures were asked for; give a folder."),
        ("--output -", "--output - writes one picture, and these are 3"),
        ("--grid size=9:1", "size 9:1 would be 384x48 with this model"),
    ],
)
def test_what_does_not_go_with_a_grid_is_said(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "x", "--grid", "steps=1,2", *arguments.split()]) == 2
    assert words in capsys.readouterr().err


def test_a_cell_that_cannot_be_painted_is_named_before_anything_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "--grid", "apg=on,off", "--grid", "steps=1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: apg on, steps 1: APG changes true guidance")
