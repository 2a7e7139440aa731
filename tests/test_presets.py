"""Presets: kept and read again, under flags, and files that cannot be used."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from engine import presets
from engine.cli.commands import main
from engine.request import RequestError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEXTTOIMAGETOOL_CONFIG_DIR", str(tmp_path))
    return tmp_path / "presets"


def test_what_is_kept_is_read_again_whatever_it_says(folder: Path) -> None:
    values = {
        "model": "~/models/\u201cdev\u201d",
        "size": "16:9",
        "fit": True,
        "steps": 8,
        "seed": -1,
        "cfg": 2.5,
        "guidance": 3.0,
        "negative_prompt": 'a "quote" \\ back\nslash\t\x7f\x01 \u20ac \U0001f600 # = [x]',
        "guidance_schedule": "interval:low=0.2,high=0.8",
        "apg": False,
    }
    assert presets.names() == []
    path = presets.write("flux 1.dev-fast", values)
    assert path == folder / "flux 1.dev-fast.toml"
    assert presets.read("flux 1.dev-fast") == values
    assert presets.write("flux 1.dev-fast", {"size": 64, "cfg": 2}) == path
    assert presets.read("flux 1.dev-fast") == {"size": "64", "cfg": 2.0}
    (folder / ".hidden.toml").write_text("")
    (folder / "note.txt").write_text("")
    assert presets.names() == ["flux 1.dev-fast"]
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("stepz = 4", "preset 'bad': there is no option 'stepz'; did you mean steps?"),
        ('prompt = "x"', "there is no option 'prompt'; there are model, size, fit, steps, seed,"),
        ("steps = 0", "preset 'bad': steps must be a whole number from 1 to 1000, got 0."),
        ('steps = "4"', "steps must be a whole number from 1 to 1000, got '4'."),
        ("cfg = nan", "cfg must be a number from 1 to 30, got nan."),
        ("cfg = 1e400", "cfg must be a number from 1 to 30, got inf."),
        ("apg = 1", "apg must be true or false, got 1."),
        ('size = "portrat"', "did you mean portrait?"),
        ("size = 1.5", "size must be text, got 1.5."),
        ("size = true", "size must be text, got True."),
        ("fit = 1", "fit must be true or false, got 1."),
        ('model = " "', "model must be text"),
        ("[steps]\nx = 1", "steps must be a whole number"),
        ("steps = 2026-11-27", "steps must be a whole number"),
        ("steps 4", "bad.toml' is not used: it is not TOML: "),
        ("\xff", "it is not UTF-8 text."),
        ("x = " + "[" * 20_000, "nested too deep"),
        ("steps = " + "9" * 5000, "too many digits"),
        ("#" * 70_000, "bad.toml' is not used: is larger than"),
    ],
)
def test_a_wrong_one_is_one_sentence(content: str, words: str, folder: Path) -> None:
    folder.mkdir()
    (folder / "bad.toml").write_bytes(content.encode("latin-1"))
    with pytest.raises(RequestError) as refused:
        presets.read("bad")
    assert words in str(refused.value)
    assert refused.value.field == "preset"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "C:x", "x.", "x ", ".x", "x" * 65, "a\n", "a\x1b"]
)
def test_a_name_is_no_path(name: str, folder: Path) -> None:
    for use in (presets.read, lambda name: presets.write(name, {"steps": 4})):
        with pytest.raises(RequestError, match="a preset's name has letters"):
            use(name)
    assert not folder.exists()


def test_wrong_choices_are_not_kept(folder: Path) -> None:
    with pytest.raises(RequestError, match="preset 'x': steps must be"):
        presets.write("x", {"steps": 0})
    assert not folder.exists()


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["plan", *arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    return plan["size"], plan["steps"], plan["precision"]


def test_flags_win_over_a_preset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    presets.write("wide", {"size": "100x90", "fit": True, "steps": 2, "precision": "bf16", "count": 3, "seed": 5})
    assert planned(capsys, "--preset", "wide") == ("112x96", 2, "bf16")
    assert planned(capsys, "--preset", "wide", "--size", "64", "--steps", "3") == ("64x64", 3, "bf16")
    assert planned(capsys, "--preset", "wide", "--width", "64") == ("64x128", 2, "bf16")
    presets.write("absent", {"model": "no-such-model"})
    assert main(["plan", "--preset", "absent"]) == 2
    assert main(["plan", "--preset", "absent", "--model", "demo"]) == 0
    assert main(["generate", "x", "--preset", "wied"]) == 2
    assert "there is no preset 'wied'; did you mean 'wide'?" in capsys.readouterr().err


def test_they_are_listed_with_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    assert capsys.readouterr().out == (
        f"there are no presets; one is a file such as '{folder / 'sketch.toml'}', with lines such as steps = 8.\n"
    )
    presets.write("long", {"negative_prompt": 100 * "word " + "end"})
    assert main(["presets"]) == 0
    assert capsys.readouterr().out == f"long: negative_prompt {12 * 'word '}\n"
    (folder / "long.toml").unlink()
    presets.write("sketch", {"steps": 2, "size": "landscape"})
    (folder / "bad.toml").write_text("steps = 0")
    problem = "preset 'bad': steps must be a whole number from 1 to 1000, got 0."
    assert main(["presets"]) == 0
    assert capsys.readouterr().out == f"bad: {problem}\nsketch: steps 2, size landscape\n"
    assert main(["presets", "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert listed == [
        {"event": "preset", "name": "bad", "values": {}, "problem": problem},
        {"event": "preset", "name": "sketch", "values": {"steps": 2, "size": "landscape"}, "problem": None},
    ]
