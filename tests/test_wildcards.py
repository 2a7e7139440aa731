"""Wildcards: what is drawn, that it is drawn again for the same seed, and files that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.library import registry
from engine.library.wildcards import wildcard_folders
from engine.prompts.variants import expand
from engine.prompts.wildcards import Wildcards, has_wildcards
from engine.request import RequestError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in the configuration."""
    monkeypatch.setenv("TEXTTOIMAGETOOL_CONFIG_DIR", str(tmp_path / "config"))
    folder = tmp_path / "config" / "wildcards"
    (folder / "art").mkdir(parents=True)
    (folder / "colour.txt").write_text("\ufeff# of shapes\nred\n\n  blue \n", "utf-8")
    (folder / "eye_colour.txt").write_text("green\r\n")
    (folder / "art" / "style.txt").write_text("{oil|ink} in __colour__\n")
    return folder


def test_a_line_is_drawn_for_each_and_the_same_seed_draws_the_same(folder: Path) -> None:
    wildcards = Wildcards()
    drawn = [wildcards.draw("a __colour__ and a __colour__ ball", seed) for seed in range(40)]
    assert set(drawn) == {f"a {one} and a {two} ball" for one in ("red", "blue") for two in ("red", "blue")}
    assert [Wildcards().draw("a __colour__ and a __colour__ ball", seed) for seed in range(40)] == drawn
    assert wildcards.draw("no __ wildcard__ at __all, __eye_colour__", 2**64 - 1) == "no __ wildcard__ at __all, green"
    styles = {wildcards.draw("__art/style__", seed) for seed in range(40)}
    assert styles == {f"{paint} in {colour}" for paint in ("oil", "ink") for colour in ("red", "blue")}


def test_in_braces_alone_every_line_is_a_variant(folder: Path) -> None:
    lines = Wildcards().lines
    assert expand("a {__colour__} {cup|mug}", lines).prompts == ("a red cup", "a red mug", "a blue cup", "a blue mug")
    assert expand("{a __colour__|{ __art/style__ }}", lines).prompts == (
        *("a __colour__", "oil in __colour__", "ink in __colour__"),
    )
    assert expand("a {__colour__}").prompts == ("a {__colour__}",), "without files it is text"
    assert has_wildcards(["a", "a __colour__"])
    assert not has_wildcards(["a", "_colour_", "__", "____"])


def test_a_folder_that_is_named_comes_first(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "colour.txt").write_text("pink")
    assert Wildcards(tmp_path / "mine").draw("__colour__ __eye_colour__", 0) == "pink green"


def test_those_beside_models_that_were_found_come_last(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXTTOIMAGETOOL_STATE_DIR", str(tmp_path / "state"))
    assert wildcard_folders() == ()
    forge, comfy = tmp_path / "Forge", tmp_path / "ComfyUI"
    places = [comfy / "custom_nodes" / "impact" / "wildcards", forge / "extensions" / "dynamic" / "wildcards"]
    for place in places:
        place.mkdir(parents=True)
        for name in ("colour", "mood"):
            (place / f"{name}.txt").write_text(f"{name} of {place.parents[2].name}")
    found = registry.Registered("dev", forge / "models" / "Stable-diffusion" / "dev.safetensors")
    loose = [comfy / "models" / "vae" / "ae.safetensors", tmp_path / "elsewhere" / "ae.safetensors"]
    registry.change(lambda known: known.with_model(found).with_loose(loose))
    assert wildcard_folders() == tuple(places)
    wildcards = Wildcards(others=wildcard_folders)
    assert wildcards.draw("__mood__", 1) == "mood of ComfyUI"
    assert wildcards.draw("__colour__", 1) in ("red", "blue")
    with pytest.raises(RequestError, match="did you mean 'mood'"):
        wildcards.lines("moood")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("color", "there is no wildcard 'color'; did you mean 'colour'?"),
        (
            "q",
            "there are art/style, bad, colour, empty, eye_colour, loop; with --no-variants it is painted as",
        ),
        ("../secret", "there is no wildcard '../secret'"),
        ("empty", "empty.txt' has no line to be drawn."),
        ("bad", "bad.txt' cannot be read (it is not UTF-8 text)."),
        ("loop", "leads back to itself"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(name: str, words: str, folder: Path) -> None:
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "empty.txt").write_text("# nothing\n\n")
    (folder / "bad.txt").write_bytes(b"\xff\xfe\xfd")
    (folder / "loop.txt").write_text("__loop__ __loop__")
    with pytest.raises(RequestError) as refused:
        Wildcards().lines(name) if name.startswith(".") else Wildcards().draw(f"a __{name}__", 1)
    assert words in str(refused.value)


def test_without_any_file_the_place_for_them_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTTOIMAGETOOL_CONFIG_DIR", str(tmp_path))
    with pytest.raises(RequestError, match=r"one line each into colour\.txt in '.*wildcards'; with --no-variants"):
        Wildcards().lines("colour")
