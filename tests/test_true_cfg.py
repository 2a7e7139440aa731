"""Pictures with a negative prompt and with schedules of guidance, through the engine and the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import engine.jobs.picture
from engine import Engine, Request, RequestError
from engine.cli.commands import main
from engine.events import Event, ImageSaved, Noticed, Planned, StepFinished
from engine.images.metadata import parameters_text, read_record
from engine.images.save import plan_output
from engine.jobs.runtime import Repeat
from engine.memory.needs import CPU_PROCESS_BYTES
from engine.precision import FP32
from engine.request import Defaults, Resolved
from engine.sampling.guidance import Steering, mean, steering, weights
from engine.sampling.true_cfg import TrueGuidance
from tests.painting import largest_difference, painted, painted_by_diffusers
from tests.test_int8 import normal
from tests.tiny import save_tiny

PROMPT = "a large red circle above a small blue square"
NEGATIVE = "a green star"
SMALL = Request(PROMPT, seed=3, steps=3, width=64, height=64)
LIMITS = (1.0, 4.0)


def test_a_model_may_prefer_true_guidance() -> None:
    guided = Defaults(50, 64, 64, None, "fp32", cfg=4.0)
    assert SMALL.resolved(replace(guided, cfg=None)).is_true_cfg is False
    for request, cfg, negative in (
        (SMALL, 4.0, ""),
        (replace(SMALL, negative_prompt=NEGATIVE), 4.0, NEGATIVE),
        (replace(SMALL, cfg=1.0), 1.0, ""),
        (replace(SMALL, apg=True), 4.0, ""),
    ):
        resolved = request.resolved(guided)
        assert (resolved.cfg, resolved.negative_prompt) == (cfg, negative)


def events_of(engine: Engine, request: Request, folder: Path) -> list[Event]:
    return list(engine.generate(request, plan_output(folder, 1)))


def pixels(events: list[Event]) -> np.ndarray[Any, Any]:
    assert isinstance(events[-1], ImageSaved), events[-1]
    return np.asarray(Image.open(events[-1].path))


def passes_of(engine: Engine, request: Request, folder: Path) -> int:
    """How often the transformer ran for a picture."""
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1

    transformer = engine.runtime().components.component("transformer", FP32).module
    handle = transformer.register_forward_pre_hook(counted)
    try:
        events_of(engine, request, folder)
    finally:
        handle.remove()
    return count


class TestAgainstDiffusers:
    @pytest.mark.parametrize("guided", [False, True], ids=["schnell", "dev"])
    @pytest.mark.parametrize("negative", [NEGATIVE, ""])
    def test_constant_true_guidance_is_its_own(self, guided, negative, tmp_path):
        guidance = 2.5 if guided else None
        request = Request(PROMPT, steps=4, seed=42, width=128, height=96, guidance=guidance)
        pipeline = save_tiny(tmp_path, guided)
        theirs = painted_by_diffusers(pipeline, request, negative_prompt=negative, true_cfg_scale=2.5)
        plain = painted_by_diffusers(pipeline, request)
        with Engine.open(tmp_path, device="cpu") as engine:
            ours = painted(engine, replace(request, negative_prompt=negative, cfg=2.5))
        assert largest_difference(ours, plain) > 8, "guidance that changes nothing would prove nothing"
        assert largest_difference(ours, theirs) <= 1


class TestVelocities:
    POSITIVE, OTHER, LATENTS = (normal(2, 20, 4, seed=seed) for seed in range(3))

    def test_plain(self):
        guidance = TrueGuidance([3.0, 1.0])
        got = guidance.velocity(0, self.LATENTS, torch.tensor(1.0), self.POSITIVE, self.OTHER)
        torch.testing.assert_close(got, self.OTHER + 3 * (self.POSITIVE - self.OTHER))
        assert guidance.wants_negative(0)
        assert not guidance.wants_negative(1)

    def test_cfg_zero_star_fits_the_negative_velocity_first(self):
        guidance = TrueGuidance([3.0] * 4, "zero")
        got = guidance.velocity(0, self.LATENTS, torch.tensor(1.0), self.POSITIVE, self.OTHER)
        for picture in range(2):
            positive, other = self.POSITIVE[picture], self.OTHER[picture]
            fitted = other * (positive * other).sum() / (other * other).sum()
            torch.testing.assert_close(got[picture], fitted + 3 * (positive - fitted))

    def test_cfg_zero_star_stays_where_it_is_only_for_a_small_first_step(self):
        for steps, still in ((8, 0), (24, 0), (25, 1), (50, 2)):
            guidance = TrueGuidance([3.0] * steps, "zero")
            moved = [
                bool(guidance.velocity(step, self.LATENTS, torch.tensor(1.0), self.POSITIVE, self.OTHER).any())
                for step in range(3)
            ]
            assert moved == [step >= still for step in range(3)]

    def test_apg_leaves_out_what_points_along_the_prediction(self):
        sigma = torch.tensor(0.8)
        guidance = TrueGuidance([3.0], "apg")
        got = guidance.velocity(0, self.LATENTS, sigma, self.POSITIVE, self.OTHER)
        clean = self.LATENTS - sigma * self.POSITIVE
        moved = (self.LATENTS - sigma * got) - clean
        for picture in range(2):
            assert float((moved[picture] * clean[picture]).sum()) == pytest.approx(0, abs=1e-3)
        one = TrueGuidance([1.0], "apg").velocity(0, self.LATENTS, sigma, self.POSITIVE, self.OTHER)
        torch.testing.assert_close(one, self.POSITIVE)

    def test_apg_bounds_the_difference_and_remembers_it(self):
        guidance = TrueGuidance([2.0, 2.0], "apg")
        sigma, latents = torch.tensor(1.0), torch.zeros(1, 20, 4)
        clean = -self.POSITIVE[:1]
        first = guidance.velocity(0, latents, sigma, self.POSITIVE[:1], self.OTHER[:1] * 1e4)
        assert float(torch.linalg.vector_norm(latents - first - clean)) <= 15 * (80 / 65536) ** 0.5 + 1e-3
        again = guidance.velocity(1, latents, sigma, self.POSITIVE[:1], self.OTHER[:1] * 1e4)
        assert torch.isfinite(again).all()


class TestSteering:
    SIGMAS = (1.0, 0.75, 0.5, 0.25, 0.0)

    def steer(self, **values: Any) -> Steering:
        complete: dict[str, Any] = {
            "guidance": 3.0,
            "steps": 4,
            "seed": 0,
            "width": 64,
            "height": 64,
            "precision": "fp32",
        }
        return steering(Resolved(PROMPT, **complete | values), self.SIGMAS, LIMITS)

    def test_the_schedule_is_of_true_guidance_where_that_is_on(self):
        found = self.steer(cfg=3.5, negative_prompt="", guidance_schedule="tv")
        assert found.distilled == (3.0,) * 4
        assert found.cfg == tuple(weights("tv", 3.5, self.SIGMAS))
        assert found.negative_passes == 4
        anchored = self.steer(cfg=3.5, negative_prompt="", guidance_schedule="tv-anchored")
        assert anchored.negative_passes == 2
        assert self.steer(cfg=1.0, negative_prompt="").negative_passes == 0

    def test_else_of_the_distilled_one_within_what_was_trained(self):
        found = self.steer(guidance=2.0, guidance_schedule="tv")
        assert found.distilled == tuple(weights("tv", 2.0, self.SIGMAS))
        assert found.cfg is None
        assert "experiment" in found.notice
        assert "mean" not in found.notice
        clamped = self.steer(guidance=3.5, guidance_schedule="tv")
        assert clamped.distilled is not None
        assert max(clamped.distilled) == 4
        assert f"its mean is {mean(clamped.distilled, self.SIGMAS):.2f} in place of 3.5" in clamped.notice
        assert self.steer().distilled == (3.0,) * 4
        assert self.steer().notice == ""
        assert self.steer(guidance=None).distilled is None


class TestPictures:
    def test_passes_are_spent_where_the_weight_is_not_one(self, tmp_path):
        with Engine.open("demo", device="cpu") as engine:
            plain = events_of(engine, SMALL, tmp_path)
            assert passes_of(engine, SMALL, tmp_path) == 3
            assert passes_of(engine, replace(SMALL, negative_prompt=NEGATIVE), tmp_path) == 6
            anchored = replace(SMALL, negative_prompt=NEGATIVE, guidance_schedule="tv-anchored")
            assert passes_of(engine, anchored, tmp_path) == 4
            one = replace(SMALL, negative_prompt=NEGATIVE, cfg=1.0)
            assert passes_of(engine, one, tmp_path) == 3
            assert np.array_equal(pixels(events_of(engine, one, tmp_path)), pixels(plain))

    def test_streamed_blocks_come_for_every_pass(self, tmp_path):
        request = replace(SMALL, negative_prompt=NEGATIVE, guidance_schedule="tv-anchored")
        ram = f"{CPU_PROCESS_BYTES / 2**20 + 28:.0f}MiB"
        with Engine.open("demo", device="cpu") as engine:
            whole = events_of(engine, request, tmp_path)
        with Engine.open("demo", device="cpu", vram="9MiB", ram=ram) as engine:
            events = events_of(engine, request, tmp_path)
            plan = next(event.plan for event in events if isinstance(event, Planned))
        assert plan.phases[1].streamed_bytes_per_step > 0
        saved = events[-1]
        assert isinstance(saved, ImageSaved)
        assert np.array_equal(pixels(events), pixels(whole))

    def test_both_prompts_as_one_batch_give_the_same_picture(self, tmp_path):
        request = replace(SMALL, negative_prompt=NEGATIVE, guidance_schedule="tv-anchored")
        with Engine.open("demo", device="cpu") as engine:
            apart = pixels(events_of(engine, request, tmp_path)).astype(int)
            assert engine.context.planned(engine.resolve(request))[1].batch == 1  # nothing is waited for on a CPU
        with Engine.open("demo", device="cpu", repeat=Repeat(batch=2)) as engine:
            assert passes_of(engine, request, tmp_path) == 3
            events = events_of(engine, request, tmp_path)
        together = pixels(events).astype(int)
        assert abs(together - apart).max() <= 2
        saved = events[-1]
        assert isinstance(saved, ImageSaved)
        assert read_record(saved.path).reproduce["batch"] == 2
        again = tmp_path / "again.png"
        assert main(["generate", "--from", str(saved.path), "-q", "-o", str(again)]) == 0
        assert read_record(again).reproduce["batch"] == 2
        assert np.array_equal(np.asarray(Image.open(again)), pixels(events))

    def test_int8_takes_a_batch_too(self, tmp_path):
        request = replace(SMALL, negative_prompt=NEGATIVE, precision="int8")
        pictures = []
        for batch in (1, 2):
            with Engine.open("demo", device="cpu", repeat=Repeat(batch=batch, kernel="float32")) as engine:
                pictures.append(pixels(events_of(engine, request, tmp_path)).astype(float))
        assert ((pictures[0] - pictures[1]) ** 2).mean() < 255**2 / 10**3.5

    def test_where_weights_are_waited_for_they_cross_once_for_both(self):
        """A fast card with a small budget computes faster than the bus brings weights, unless there is much to do."""
        request = Request(PROMPT, steps=4, width=256, height=256, precision="bf16", negative_prompt="")
        large = replace(request, width=1024, height=1024, precision="fp8")
        with Engine.open("flux.1-dev", simulate=True, card="rtx-4090", vram="8GiB") as engine:
            batches = [engine.runtime().plan(engine.resolve(each)).batch for each in (request, large)]
            assert batches == [2, 1]
            together = engine.plan(request)
        with Engine.open("flux.1-dev", simulate=True, card="rtx-4090", vram="8GiB", repeat=Repeat(batch=1)) as engine:
            apart = engine.plan(request)
        assert any("4 of 4 steps" in note and "as one batch" in note for note in together.notes)
        assert any("one after the other" in note for note in apart.notes)
        assert together.phases[1].activation_bytes > apart.phases[1].activation_bytes
        assert together.same_prompt.moved_bytes < 0.6 * apart.same_prompt.moved_bytes
        assert together.same_prompt.seconds < apart.same_prompt.seconds

    def test_the_file_says_it_all_and_repeats_itself(self, tmp_path):
        request = replace(
            SMALL, negative_prompt=NEGATIVE, cfg=2.5, guidance_schedule="interval:low=0.3,high=0.9", apg=True
        )
        with Engine.open("demo", device="cpu") as engine:
            events = events_of(engine, request, tmp_path)
        saved = events[-1]
        assert isinstance(saved, ImageSaved)
        record = read_record(saved.path)
        assert record.request == replace(request, guidance=3.0, precision="fp32")
        text = parameters_text(record)
        assert f"\nNegative prompt: {NEGATIVE}\nSteps: 3" in text
        assert "CFG scale: 2.5, Distilled CFG Scale: 3" in text
        again = tmp_path / "again.png"
        assert main(["generate", "--from", str(saved.path), "-q", "-o", str(again)]) == 0
        assert np.array_equal(np.asarray(Image.open(again)), pixels(events))

    def test_a_prompt_that_is_known_is_not_forgotten_for_a_new_negative_one(self, monkeypatch, tmp_path):
        monkeypatch.setattr(engine.jobs.picture, "CACHED_PROMPTS", 2)
        with Engine.open("demo", device="cpu") as opened:
            for prompt in ("a red circle", "a blue circle"):
                pixels(events_of(opened, replace(SMALL, prompt=prompt), tmp_path))
            again = replace(SMALL, prompt="a red circle", negative_prompt="a square")
            pixels(events_of(opened, again, tmp_path))
            assert len(opened.runtime().conditionings) == 2

    def test_methods_differ(self, tmp_path):
        with Engine.open("demo", device="cpu") as engine:
            base = replace(SMALL, negative_prompt="", cfg=3.0)
            pictures = [
                pixels(events_of(engine, replace(base, **change), tmp_path))
                for change in ({}, {"cfg_zero": True}, {"apg": True}, {"guidance_schedule": "tv"})
            ]
        for index, picture in enumerate(pictures):
            assert all(not np.array_equal(picture, other) for other in pictures[:index])

    def test_a_clamped_schedule_says_which_mean_it_reaches(self, tmp_path):
        with Engine.open("demo", device="cpu") as engine:
            events = events_of(engine, replace(SMALL, guidance_schedule="tv"), tmp_path)
        assert any("experiment" in event.message for event in events if isinstance(event, Noticed))

    def test_a_long_negative_prompt_is_told(self, tmp_path):
        with Engine.open("demo", device="cpu") as engine:
            events = events_of(engine, replace(SMALL, negative_prompt="red " * 60), tmp_path)
        hints = [event.hint for event in events if event.name == "encoded"]  # type: ignore[attr-defined]
        assert "the negative prompt has 61 tokens; the first 32 are used." in str(hints[0])

    def test_simulated_it_takes_both_passes_and_more_memory(self):
        request = Request(PROMPT, steps=4, width=256, height=256, precision="fp8")
        seconds, peaks = [], []
        with Engine.open("demo", simulate=True) as engine:
            guided = replace(request, negative_prompt="", guidance_schedule="tv-anchored")
            for asked in (request, guided):
                events = list(engine.generate(asked))
                seconds.append([event.seconds for event in events if isinstance(event, StepFinished)])
                peaks.append(engine.plan(asked).phases[1].peak_bytes)
        assert [guided / plain for plain, guided in zip(*seconds, strict=True)] == pytest.approx([1, 2, 2, 1])
        assert peaks[1] > peaks[0]


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--cfg", "0.5"], "cfg must be a number from 1 to 30, got 0.5"),
            (["--cfg", "31"], "cfg must be a number from 1 to 30"),
            (["--guidance-schedule", "tvv"], "there is no guidance schedule 'tvv'; did you mean 'tv'?"),
            (["--guidance-schedule", "zigzag"], "there are constant, interval, tv"),
            (["--guidance-schedule", "interval:low=2"], "low of the schedule interval must be a number from 0 to 1"),
            (["--guidance-schedule", "interval:low=0.9"], "low must be below high, got 0.9 and 0.78"),
            (["--guidance-schedule", "tv:low=1"], "the schedule tv has no option 'low'; it takes none"),
            (["--guidance-schedule", "tv", "--guidance", "0.5"], "needs a guidance from 1 to 30, got 0.5"),
            (["--apg"], "APG changes true guidance"),
            (["--cfg-zero"], "CFG-Zero* changes true guidance"),
            (["--cfg", "2", "--apg", "--cfg-zero"], "exclude each other"),
        ],
    )
    def test_one_sentence_before_anything_loads(self, arguments, said, capsys):
        assert main(["generate", "-p", PROMPT, *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.strip().splitlines()) == 1

    def test_a_schedule_needs_something_to_vary(self, tmp_path):
        save_tiny(tmp_path, guided=False)
        with Engine.open(tmp_path, device="cpu") as engine:
            with pytest.raises(RequestError, match="a schedule has nothing to vary"):
                engine.resolve(replace(SMALL, guidance_schedule="tv"))
            assert engine.resolve(replace(SMALL, guidance_schedule="constant")).guidance is None
            guided = engine.resolve(replace(SMALL, guidance_schedule="tv", negative_prompt="blurry"))
        assert (guided.cfg, guided.guidance) == (3.0, None)
