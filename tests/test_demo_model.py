"""The embedded model: it ships whole and small, paints what prompts say, and is a FluxPipeline to diffusers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from engine import Encoded, Engine, ImageSaved, Request, StepFinished
from engine.demo.checker import check
from engine.demo.grammar import parse
from engine.demo.scenes import Scene, Thing
from engine.images.save import plan_output
from engine.library.catalog import DEMO_FOLDER
from tests.bench.accuracy import measure
from tests.painting import largest_difference, open_pipeline, painted, painted_by_diffusers

EXAMPLE = "a large red circle above a small blue square on a white background"
SCENES = [
    Scene((Thing(colour, shape, "large"),), background=background)
    for colour, shape, background in (
        ("red", "circle", "white"),
        ("yellow", "square", "blue"),
        ("green", "circle", "black"),
        ("blue", "square", "yellow"),
        ("white", "circle", "purple"),
        ("yellow", "square", "night sky"),
        ("red", "circle", "meadow"),
        ("white", "square", "green"),
    )
]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.open("demo", device="cpu") as engine:
        yield engine


def test_the_model_is_at_most_16_mb_in_bf16() -> None:
    files = [file for file in DEMO_FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 16 * 10**6
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert len(weights) == 5
    for file in weights:
        with safe_open(file, framework="pt") as tensors:
            assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_no_file_tells_where_the_model_was_trained() -> None:
    for file in DEMO_FOLDER.rglob("*.json"):
        assert "_name_or_path" not in file.read_text("utf-8"), file


def test_the_example_shows_what_it_says(engine: Engine) -> None:
    scene = parse(EXAMPLE)
    assert scene is not None
    verdicts = [check(painted(engine, Request(EXAMPLE, seed=seed)), scene) for seed in range(4)]
    assert sum(verdict.places_and_colours for verdict in verdicts) >= 3


def test_most_simple_prompts_show_their_colours_places_and_backgrounds(engine: Engine) -> None:
    result = measure(engine, SCENES)
    assert result["places_and_colours"] >= 0.75
    assert result["background"] >= 0.75


def test_other_seeds_put_a_free_thing_elsewhere(engine: Engine) -> None:
    scene = SCENES[0]
    found = [
        check(painted(engine, Request("a large red circle on a white background", seed=seed)), scene).found[0]
        for seed in range(6)
    ]
    centres = [(thing.x, thing.y) for thing in found if thing is not None]
    assert len(centres) >= 5
    assert np.std(centres, axis=0, ddof=1).mean() > 0.03


def test_unknown_words_are_allowed_and_named(engine: Engine, tmp_path: Path) -> None:
    request = Request("a wooden red circle purring on a white background", seed=1)
    events = list(engine.generate(request, plan_output(tmp_path, 1)))
    hints = [event.hint for event in events if isinstance(event, Encoded)]
    assert hints == ["the demo model does not know: wooden, purring."]
    assert isinstance(events[-1], ImageSaved)


def test_the_last_preview_looks_like_the_picture(engine: Engine, tmp_path: Path) -> None:
    preview_error, plain_error = preview_errors(engine, tmp_path)
    assert preview_error < 0.6 * plain_error


def test_a_model_without_a_preview_learns_it_from_its_own_pictures(tmp_path: Path) -> None:
    shutil.copytree(DEMO_FOLDER, tmp_path / "model", ignore=shutil.ignore_patterns("preview.json"))
    with Engine.open(tmp_path / "model", device="cpu") as engine:
        first = list(engine.generate(Request("a green star on a pink background", seed=1), plan_output(tmp_path, 1)))
        assert all(event.preview is None for event in first if isinstance(event, StepFinished))
        for prompt in ("a red heart at sunset", "a blue circle on a yellow background", "a black square by the ocean"):
            painted(engine, Request(prompt, seed=1))
    with Engine.open(tmp_path / "model", device="cpu") as reopened:  # the fit was kept
        preview_error, plain_error = preview_errors(reopened, tmp_path)
    assert preview_error < 0.8 * plain_error


def preview_errors(engine: Engine, folder: Path) -> tuple[float, float]:
    """Mean error of the last preview, and of a single mean colour, against the picture; in levels of 255."""
    events = list(engine.generate(Request(EXAMPLE, seed=2), plan_output(folder, 1)))
    preview = [event.preview for event in events if isinstance(event, StepFinished)][-1]
    saved = events[-1]
    assert preview is not None
    assert (preview.width, preview.height) == (16, 16), "a cell for each latent"
    assert isinstance(saved, ImageSaved)
    shown = np.frombuffer(preview.rgb, np.uint8).reshape(preview.height, preview.width, 3).astype(float)
    small = np.asarray(
        Image.open(saved.path).resize((preview.width, preview.height), Image.Resampling.BOX), dtype=float
    )
    return float(np.abs(shown - small).mean()), float(np.abs(small - small.mean((0, 1))).mean())


@pytest.mark.parametrize(("width", "height"), [(64, 64), (192, 128), (256, 256)])
def test_every_size_in_range_paints(engine: Engine, width: int, height: int) -> None:
    assert painted(engine, Request(EXAMPLE, seed=1, width=width, height=height)).shape == (height, width, 3)


def test_diffusers_opens_the_same_folder_and_true_cfg_changes_the_picture(engine: Engine) -> None:
    request = engine.resolve(Request(EXAMPLE, seed=11, guidance=1.0))
    pipeline = open_pipeline(DEMO_FOLDER)
    plain = painted_by_diffusers(pipeline, request)
    guided = painted_by_diffusers(pipeline, request, negative_prompt="", true_cfg_scale=2.0)
    assert largest_difference(painted(engine, request), plain) <= 1
    assert largest_difference(guided, plain) > 8
    scene = parse(EXAMPLE)
    assert scene is not None
    assert check(guided, scene).background


@pytest.mark.cuda
def test_a_card_paints_what_the_cpu_paints(engine: Engine) -> None:
    with Engine.open("demo", device="cuda") as on_card:
        theirs = painted(on_card, Request(EXAMPLE, seed=1)).astype(int)
    assert np.abs(painted(engine, Request(EXAMPLE, seed=1)).astype(int) - theirs).mean() < 2
