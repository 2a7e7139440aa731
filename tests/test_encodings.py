"""Encoded prompts that stay on disk: painted again without the text encoders, and never a wrong picture."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine import Engine, Request, RequestError
from engine.cli.commands import main
from engine.events import Encoded, ImageSaved, LoadProgress
from engine.folders import cache_dir
from engine.images.save import plan_output
from engine.jobs.encodings import KeptEncodings, key_of
from engine.library.caches import encodings, remove

REQUEST = Request("a red circle above a blue square", steps=2, seed=3)
ENCODERS = {"text_encoder", "text_encoder_2"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTTOIMAGETOOL_CACHE_DIR", str(tmp_path / "cache"))


@dataclass(frozen=True, slots=True)
class Painted:
    pixels: bytes
    read: set[str]  # components
    cached: bool


def paint(folder: Path, request: Request = REQUEST, kept: str = "1GiB") -> Painted:
    """One picture by a fresh engine, as after a restart."""
    with Engine.open("demo", device="cpu", encodings=kept) as engine:
        events = list(engine.generate(request, plan_output(folder, 1)))
    saved = events[-1]
    assert isinstance(saved, ImageSaved), saved
    read = {event.component for event in events if isinstance(event, LoadProgress)}
    (encoded,) = (event for event in events if isinstance(event, Encoded))
    return Painted(Image.open(saved.path).tobytes(), read, encoded.cached)


def test_after_a_restart_a_known_prompt_reads_no_encoder_and_gives_the_same_picture(tmp_path: Path) -> None:
    plain = paint(tmp_path, kept="off")
    assert not encodings()
    first, again = paint(tmp_path), paint(tmp_path)
    assert (first.read >= ENCODERS, first.cached) == (True, False)
    assert (again.read & ENCODERS, again.cached) == (set(), True)
    assert plain.pixels == first.pixels == again.pixels
    (file,) = encodings()
    if os.name == "posix":
        assert Path(file.path).stat().st_mode & 0o777 == 0o600


def test_what_changes_an_encoding_is_encoded_anew(tmp_path: Path) -> None:
    paint(tmp_path)
    others = (
        replace(REQUEST, prompt="a red circle above a blue squares"),
        replace(REQUEST, precision="bf16"),
        replace(REQUEST, distill=True),
    )
    for number, other in enumerate(others, 2):
        assert not paint(tmp_path, other).cached
        assert len(encodings()) == number
    seeds = replace(REQUEST, seed=4, steps=1, width=192, guidance=1.0)
    assert paint(tmp_path, seeds).cached  # these change none


def test_both_prompts_are_kept(tmp_path: Path) -> None:
    request = replace(REQUEST, negative_prompt="a green star", cfg=2.0)
    first = paint(tmp_path, request)
    assert len(encodings()) == 2
    again = paint(tmp_path, request)
    assert not again.read & ENCODERS
    assert again.pixels == first.pixels
    assert paint(tmp_path, replace(REQUEST, prompt="a green star")).cached


@pytest.mark.parametrize("wrong", [b"", b"no file of tensors", "truncated", "not finite", "another shape", "a link"])
def test_a_file_that_is_not_whole_is_encoded_anew(tmp_path: Path, wrong: bytes | str) -> None:
    import safetensors.torch

    plain = paint(tmp_path)
    (file,) = encodings()
    path = Path(file.path)
    tensors = safetensors.torch.load_file(path)
    if wrong == "a link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif wrong == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif wrong == "not finite":
        path.write_bytes(safetensors.torch.save({name: each * torch.nan for name, each in tensors.items()}))
    elif wrong == "another shape":
        path.write_bytes(safetensors.torch.save({name: each[..., :-1].contiguous() for name, each in tensors.items()}))
    elif isinstance(wrong, bytes):
        path.write_bytes(wrong)
    again = paint(tmp_path)
    assert again.pixels == plain.pixels
    if wrong != "a link":
        assert not again.cached
        assert paint(tmp_path).cached  # it was written anew


def test_the_least_recently_used_go_at_the_limit() -> None:
    conditioning = {"words": torch.ones(256, 1024)}  # 1 MiB
    kept = KeptEncodings(3 * 2**20 + 4096)
    for number in range(3):
        kept.keep(key_of({"number": number}), conditioning)
        os.utime(encodings_by_key(number), (number, number))
    assert kept.find(key_of({"number": 0}), conditioning) is not None  # used just now
    kept.keep(key_of({"number": 3}), conditioning)
    assert [kept.has(key_of({"number": number})) for number in range(4)] == [True, False, True, True]
    KeptEncodings(2**20).keep(key_of({"number": 4}), conditioning)  # too large for that limit
    assert len(encodings()) == 3


def encodings_by_key(number: int) -> Path:
    return cache_dir() / "encodings" / f"{key_of({'number': number})}.safetensors"


def test_a_cache_that_cannot_be_written_stops_no_picture(tmp_path: Path) -> None:
    cache_dir().mkdir()
    (cache_dir() / "encodings").write_bytes(b"a file where the folder should be")
    assert not paint(tmp_path).cached
    assert not paint(tmp_path).cached


def test_they_are_shown_and_cleared_with_the_other_caches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint(tmp_path)
    assert main(["models", "cache"]) == 0
    assert "encoded prompts" in capsys.readouterr().out
    assert main(["models", "cache", "--remove", "encodings"]) == 0
    assert capsys.readouterr().out.startswith("1 encoded prompt removed, ")
    assert not encodings()
    paint(tmp_path)
    remove(["all"])
    assert not encodings()


@pytest.mark.parametrize("wrong", ["", "-1GiB", "much", "1", "auto"])
def test_a_limit_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(RequestError, match="encodings"):
        Engine.open("demo", encodings=wrong)
