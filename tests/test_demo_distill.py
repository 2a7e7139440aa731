"""The demo's distilled text encoder: it ships small, paints what prompts say, and its training teaches."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file

from engine.demo import distill
from engine.demo.optim import Clock
from engine.families.flux1.distill_names import config_from_shapes
from engine.library.catalog import DEMO_FOLDER
from engine.sampling import flow
from engine.times import FlowTimes
from engine.weights.loading import load
from tests.bench.accuracy import summary
from tests.bench.distill import DISTILLED_FOLDER, encoders, paint, weight_bytes
from tests.painting import open_pipeline
from tests.test_demo_model import SCENES

FILE = DISTILLED_FOLDER / "model.safetensors"


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return open_pipeline(DEMO_FOLDER)


@pytest.fixture(scope="module")
def teacher() -> distill.Teacher:
    return distill.Teacher(DEMO_FOLDER)


def test_it_is_small() -> None:
    files = [file for file in DISTILLED_FOLDER.iterdir() if file.is_file()]
    assert {file.name for file in files} == {"config.json", "model.safetensors"}
    assert sum(file.stat().st_size for file in files) < 400_000
    assert weight_bytes(DISTILLED_FOLDER) < weight_bytes(DEMO_FOLDER / "text_encoder_2") / 2


def test_its_files_are_as_distill_t5_is_published() -> None:
    weights = load_file(FILE)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert "encoder.shared.weight" in weights
    assert "encoder.encoder.embed_tokens.weight" not in weights
    said = json.loads((DISTILLED_FOLDER / "config.json").read_text("utf-8"))
    told = config_from_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, said)
    assert {name: said[name] for name in told} == told
    transformer = json.loads((DEMO_FOLDER / "transformer" / "config.json").read_text("utf-8"))
    assert said["project_out_dim"] == transformer["joint_attention_dim"]


def test_it_gives_what_the_student_gave(teacher: distill.Teacher, tmp_path: Path) -> None:
    (tmp_path / distill.STUDENT).write_bytes(FILE.read_bytes())
    student = distill.resumed(tmp_path / distill.STUDENT).eval().requires_grad_(False)
    ids = teacher.ids(["a red circle above a blue square", "", "a wooden star in a meadow."])
    assert torch.equal(load(DISTILLED_FOLDER, "distill_t5")(ids), student(ids))


def test_its_pictures_show_their_colours_places_and_backgrounds(pipeline: FluxPipeline) -> None:
    ways = encoders(pipeline, load(DISTILLED_FOLDER, "distill_t5"))
    result = summary(paint(pipeline, ways["distilled"], SCENES, seed=0))
    assert result["places_and_colours"] >= 0.75
    assert result["background"] >= 0.75
    without = summary(paint(pipeline, ways["no text but CLIP's"], SCENES, seed=0))
    assert without["places_and_colours"] <= 0.25


def taught(teacher: distill.Teacher, folder: Path, kind: str, steps: int, batch_size: int) -> distill.Learner:
    """A new student after some steps of a stage, with a few prompts to be examined by."""
    torch.manual_seed(0)
    clock = Clock(60, warmup_steps=5)
    learner = distill.Learner(folder / distill.STUDENT, teacher, clock, rate=3e-3, every=1000, held_out=4)
    losses = distill.LESSONS[kind](teacher, learner.student, np.random.default_rng(0), batch_size)
    for loss in islice(losses, steps):
        learner.learn(loss)
    return learner


def test_matching_brings_the_embeddings_nearer(teacher: distill.Teacher, tmp_path: Path) -> None:
    learner = taught(teacher, tmp_path, "match", steps=30, batch_size=16)
    assert np.mean(learner.losses[-5:]) < 0.8 * np.mean(learner.losses[:5])
    before = learner.error
    learner.examine()
    assert learner.error < before
    assert learner.examination.error(distill.resumed(learner.file)) == pytest.approx(learner.error)


def test_following_brings_the_velocities_nearer(teacher: distill.Teacher, tmp_path: Path) -> None:
    learner = taught(teacher, tmp_path, "follow", steps=12, batch_size=4)
    assert learner.examination.error(learner.student) < 0.95 * learner.error


def test_walks_are_those_of_the_sampler(teacher: distill.Teacher) -> None:
    walks = distill.Walks(teacher, np.random.default_rng(0), 4)
    times = FlowTimes(shift=3.0)
    assert torch.equal(walks.sigmas[3, :5], flow.sigmas(times, 4, 64))
    assert torch.equal(walks.sigmas[1, :3], flow.sigmas(times, 2, 64))
    began = walks.x.clone()
    velocity = torch.ones_like(walks.x)
    walks.advance(velocity)
    assert torch.allclose(walks.x[3], began[3] + (flow.sigmas(times, 4, 64)[1] - 1) * velocity[3])
    assert walks.at.tolist() == [0, 1, 1, 1]  # the first has arrived, and another began in its place
    assert not torch.allclose(walks.x[0], began[0] - 1)
    assert torch.equal(walks.sequence, teacher.sequence(walks.ids))


def test_what_is_exported_is_what_was_trained(teacher: distill.Teacher, tmp_path: Path) -> None:
    torch.manual_seed(0)
    distill.save(distill.Student(), tmp_path / distill.STUDENT)
    distill.export(tmp_path, tmp_path / "out")
    student, ids = distill.resumed(tmp_path / distill.STUDENT), teacher.ids(["a red circle"])
    assert torch.allclose(load(tmp_path / "out", "distill_t5")(ids), student(ids), atol=0.05)
