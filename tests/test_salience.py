"""Balancing factors: how they are found, what they are worth, how they are kept and used."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine import Engine, Request, RequestError
from engine.cli.commands import main
from engine.engine import Engine as OpenEngine
from engine.events import Event, ImageSaved, Noticed, StepFinished
from engine.families.flux1 import FLUX1
from engine.families.flux1.cuts import inputs
from engine.folders import cache_dir
from engine.images.metadata import read_record
from engine.images.save import plan_output
from engine.jobs.runtime import Repeat
from engine.library.catalog import DEMO_FOLDER
from engine.precision import MODES, Precision
from engine.quantization.int8 import KERNELS
from engine.quantization.salience import (
    Calibration,
    Folds,
    Maxima,
    balanced_at_run_time,
    balancing,
    mean_salience,
    spearman,
)
from engine.weights import calibrations
from engine.weights.converted import converted_files
from engine.weights.forms import Form
from engine.weights.reading import WeightFiles
from tests.commands import json_lines
from tests.test_int8 import layer_of, normal
from tests.tiny import save_tiny, tiny_pipeline

PROMPTS = ["a red circle", "a blue square above a green triangle"]
INT8 = Request("a small yellow star", seed=5, steps=2, width=64, height=64, precision="int8")
BRIEF = replace(INT8, precision=None)
FLUX = {"num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 19, "num_single_layers": 38}


class TestFactors:
    def test_rank_correlation(self):
        first = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
        assert spearman(first, first.exp()) == pytest.approx(1)
        assert spearman(first, -first) == pytest.approx(-1)
        assert spearman(first, torch.tensor([2.0, 1.0, 4.0, 3.0, 5.0])) == pytest.approx(1 - 6 * 4 / (5 * 24))
        assert spearman(torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx(
            4.5 / (4.5 * 5) ** 0.5
        )
        assert spearman(first, torch.ones(5)) == 0

    def test_a_step_whose_salience_has_less_to_do_with_the_weights_counts_more(self):
        weights = torch.arange(1.0, 65.0)
        alike, opposed = weights / 10, weights.flip(0)
        mean = mean_salience(torch.stack([alike, opposed]), weights)
        share = torch.softmax(torch.tensor([-1.0, 1.0], dtype=torch.float64), 0)
        torch.testing.assert_close(mean, share[0] * alike.double() + share[1] * opposed.double())

    def test_both_sides_are_equally_salient_afterwards(self):
        maxima, weights = normal(1, 50).exp(), normal(50, seed=1).exp()
        for mode in MODES:
            factors = balancing(maxima, weights, mode)
            activations, columns = maxima[0].double() / factors, weights.double() * factors
            ratio = activations / columns
            torch.testing.assert_close(ratio, ratio[:1].expand(50))
            assert factors.log().mean() == pytest.approx(0, abs=1e-12)

    def test_csb_alone_looks_at_the_middle_step(self):
        maxima, weights = normal(5, 20).exp(), normal(20, seed=1).exp()
        assert torch.equal(balancing(maxima, weights, "csb"), balancing(maxima[2:3], weights, "csb+ssc"))

    def test_a_channel_of_zeros_is_left_alone_and_factors_are_bounded(self):
        maxima, weights = torch.ones(3, 8), torch.ones(8)
        maxima[:, 1], weights[2], maxima[:, 3], maxima[:, 4] = 0, 0, 1e9, 1e-9
        for mode in MODES:
            factors = balancing(maxima, weights, mode)
            assert factors[1] == factors[2] == 1
            assert factors[3] == 1e2
            assert factors[4] == 1e-2
            assert bool(factors.isfinite().all())
        assert torch.equal(balancing(torch.zeros(1, 4), torch.ones(4), "csb"), torch.ones(4, dtype=torch.float64))

    def test_salient_channels_no_longer_spoil_the_others(self):
        """The synthetic case of the field: 12 of 3072 channels forty times as large."""
        x, weight = normal(64, 3072), normal(256, 3072, seed=1) * 0.02
        x[:, torch.arange(12) * 250] *= 40
        exact = x.double() @ weight.double().t()
        factors = balancing(x.abs().amax(dim=0)[None], weight.abs().amax(dim=0), "csb+ssc").float()
        kernel, errors = KERNELS["float32"], []
        for b in (torch.ones(3072), factors):
            layer = layer_of(weight * b)
            layer.dtype = torch.float32
            got = kernel.linear(kernel.quantize((x / b)[None]), layer)[0]
            errors.append(float((got.double() - exact).norm() / exact.norm()))
        assert errors[1] <= 0.4 * errors[0]


class TestInputs:
    def test_of_flux_itself(self):
        found = inputs(FLUX)
        assert len(found) == 19 * 7 + 38 * 3
        assert sum(each.width for each in found) == 19 * (3072 * 5 + 2 * 12288) + 38 * (3072 * 2 + 12288)
        assert len({each.name for each in found}) == len(found)
        assert "single_transformer_blocks.37.proj_out" in balanced_at_run_time(found)
        assert "transformer_blocks.0.ff_context.net.2" in balanced_at_run_time(found)
        assert len(balanced_at_run_time(found)) == 19 * 2 + 38

    @torch.no_grad()
    def test_maxima_are_the_largest_activations_of_each_step(self):
        transformer = tiny_pipeline(guided=False).transformer
        maxima = Maxima(inputs(transformer.config), steps=2)
        names = {"q": "transformer_blocks.1.attn.to_q", "out": "transformer_blocks.1.attn.to_out.0"}
        given = {
            "hidden_states": normal(1, 16, 16),
            "encoder_hidden_states": normal(1, 5, 48, seed=1),
            "pooled_projections": normal(1, 32, seed=2),
            "img_ids": torch.zeros(16, 3),
            "txt_ids": torch.zeros(5, 3),
        }
        seen: dict[str, list[Tensor]] = {name: [] for name in (*names, "add_out", "proj_out")}

        def keep(name: str) -> Any:
            return lambda _, args: seen[name].append(args[0].flatten(0, -2).abs().amax(dim=0))

        watched = {
            **names,
            "add_out": "transformer_blocks.1.attn.to_add_out",
            "proj_out": "single_transformer_blocks.0.proj_out",
        }
        for name, path in watched.items():
            transformer.get_submodule(path).register_forward_pre_hook(keep(name))
        for scale in (1.0, 3.0):  # two prompts of two steps
            with maxima.observing(transformer):
                for time in (1.0, 0.5):
                    latents = given["hidden_states"] * scale
                    transformer(**given | {"hidden_states": latents}, timestep=torch.tensor([time]))
        latents = given["hidden_states"] * 100  # nobody looks any more
        transformer(**given | {"hidden_states": latents}, timestep=torch.tensor([1.0]))
        by_name = {each.name: maxima.of(each) for each in maxima.inputs}
        q = torch.stack(seen["q"][:4]).view(2, 2, -1).amax(dim=0)
        assert torch.equal(by_name[names["q"]], q)
        out = torch.maximum(torch.stack(seen["out"][:4]), torch.stack(seen["add_out"][:4])).view(2, 2, -1).amax(dim=0)
        assert torch.equal(by_name[names["out"]], out)
        proj = torch.stack(seen["proj_out"][:4]).view(2, 2, -1).amax(dim=0)
        single = "single_transformer_blocks.0.proj_out"
        assert torch.equal(torch.cat([by_name[single], by_name[f"{single}.mlp"]], dim=1), proj)

    def test_what_was_never_seen_is_an_error(self):
        maxima = Maxima(inputs(tiny_pipeline(guided=False).transformer.config), steps=2)
        with pytest.raises(ValueError, match="was given nothing"):
            maxima.of(maxima.inputs[0])


def calibrated(engine: Engine, prompts: list[str] = PROMPTS, request: Request = BRIEF) -> tuple[Path, list[Event]]:
    made, events = engine.calibrate(prompts, request), []
    while True:
        try:
            events.append(next(made))
        except StopIteration as end:
            return end.value, events


def pixels(engine: OpenEngine, request: Request, folder: Path) -> tuple[np.ndarray[Any, Any], list[Event]]:
    events = list(engine.generate(request, plan_output(folder, 1)))
    assert isinstance(events[-1], ImageSaved), events[-1]
    return np.asarray(Image.open(events[-1].path)), events


def path_of(events: list[Event]) -> Path:
    assert isinstance(events[-1], ImageSaved), events[-1]
    return events[-1].path


def demo() -> Engine:
    return Engine.open("demo", device="cpu", repeat=Repeat(kernel="float32"))


class TestCalibrating:
    def test_it_is_kept_and_used_from_then_on(self, tmp_path):
        with demo() as engine:
            plain, _ = pixels(engine, INT8, tmp_path)
            file, events = calibrated(engine)
            steps = [(event.image, event.step) for event in events if isinstance(event, StepFinished)]
            assert steps == [(0, 1), (0, 2), (1, 1), (1, 2)]
            assert file == calibrations.file_of(engine.context.model_hash)
            known = calibrations.read("demo", engine.context.model_hash, engine.source.inputs)
        assert (known.prompts, known.steps, known.precision) == (2, 2, "fp32")
        with demo() as engine:
            option = next(option for option in engine.options if option.name == "salience")
            assert option.default == "csb+ssc"
            assert engine.resolve(INT8).salience == "csb+ssc"
            assert engine.resolve(replace(INT8, precision="bf16")).salience is None
            balanced, events = pixels(engine, INT8, tmp_path)
            off, _ = pixels(engine, replace(INT8, salience="off"), tmp_path)
            exact, _ = pixels(engine, replace(INT8, precision="bf16"), tmp_path)
        assert np.array_equal(off, plain)
        assert not np.array_equal(balanced, plain)
        assert ((balanced.astype(float) - exact) ** 2).mean() < 255**2 / 10**3.5
        record = read_record(path_of(events))
        assert record.request.salience == "csb+ssc"
        assert record.reproduce["salience"] == known.digest("csb+ssc")

    def test_a_new_calibration_makes_new_weights_and_old_ones_go(self, tmp_path):
        def caches() -> set[str]:
            return {file.name for file in (cache_dir() / "weights").glob("*-int8.safetensors")}

        with demo() as engine:
            calibrated(engine)
        with demo() as engine:
            first, events = pixels(engine, INT8, tmp_path)
            before = caches()
            old = path_of(events)
            calibrated(engine, ["a green triangle"])
            still, _ = pixels(engine, INT8, tmp_path)  # tables and weights are of one calibration while it is open
        assert np.array_equal(first, still)
        with demo() as engine:
            second, events = pixels(engine, INT8, tmp_path)
        assert not any("calibrated" in event.message for event in events if isinstance(event, Noticed))
        assert not np.array_equal(first, second)
        assert len(caches()) == len(before) == 1
        assert caches() != before
        repeat = Repeat(kernel="float32", salience=read_record(old).reproduce["salience"])
        with Engine.open("demo", device="cpu", repeat=repeat) as engine:
            _, events = pixels(engine, INT8, tmp_path)
        assert any("calibrated anew" in event.message for event in events if isinstance(event, Noticed))

    def test_without_room_for_the_cache_it_paints_the_same(self, monkeypatch, tmp_path):
        with demo() as engine:
            calibrated(engine)
        with demo() as engine:
            cached, _ = pixels(engine, INT8, tmp_path)
        shutil.rmtree(cache_dir() / "weights")
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with demo() as engine:
            anew, events = pixels(engine, INT8, tmp_path)
        assert any("no room for INT8" in event.message for event in events if isinstance(event, Noticed))
        assert np.array_equal(cached, anew)

    def test_a_picture_of_it_can_be_repeated_in_another_precision(self, tmp_path):
        with demo() as engine:
            calibrated(engine)
        with demo() as engine:
            _, events = pixels(engine, INT8, tmp_path)
        other = tmp_path / "other.png"
        assert main(["generate", "--from", str(path_of(events)), "--precision", "fp8", "-q", "-o", str(other)]) == 0
        assert (read_record(other).request.precision, read_record(other).request.salience) == ("fp8", None)

    def test_simulated_it_needs_no_factors(self):
        with Engine.open("flux.1-schnell", simulate=True) as engine:
            request = Request("a lighthouse", steps=1, width=64, height=64, precision="int8", salience="csb")
            assert [event.name for event in engine.generate(request)][-1] == "simulated"

    def test_biases_in_fp8_are_balanced_too(self, tmp_path):
        """Files that are FP8 throughout, as some on the hub are."""
        file = tmp_path / "transformer.safetensors"
        weights = load_file(DEMO_FOLDER / "transformer" / "diffusion_pytorch_model.safetensors")
        save_file({name: tensor.float().to(torch.float8_e4m3fn) for name, tensor in weights.items()}, file)
        config = Engine.open("demo").source.configs["transformer"]
        factors = {each.name: normal(each.width).exp() for each in inputs(config)}
        form = Form(FLUX1, Precision("int8", "csb"), Folds(inputs(config), factors), "0" * 16)
        notices: list[str] = []
        for _ in converted_files("transformer", [file], torch.bfloat16, notices, form):
            pass
        assert notices == []
        (cache,) = (cache_dir() / "weights").glob("*-int8.safetensors")
        files = WeightFiles.open([cache], "transformer")
        layer = "single_transformer_blocks.0.attn.to_v"
        bias = torch.empty(factors[f"{layer[:-10]}.proj_out"].shape, dtype=torch.bfloat16)
        files.read(f"{layer}.bias", bias)
        files.close()
        stored = weights[f"{layer}.bias"].float().to(torch.float8_e4m3fn).float()
        assert torch.equal(bias, (stored / factors[f"{layer[:-10]}.proj_out"]).bfloat16())

    def test_int8_itself_is_nothing_to_measure_in(self):
        with demo() as engine, pytest.raises(RequestError, match="before they are rounded"):
            calibrated(engine, request=INT8)
        with Engine.open("demo", simulate=True) as engine, pytest.raises(RequestError, match="no activations"):
            calibrated(engine)

    def test_cancelled_it_leaves_the_older_one(self):
        with demo() as engine:
            file, _ = calibrated(engine)
            before = file.read_bytes()
            made = engine.calibrate(["a green triangle"], BRIEF)
            for event in made:
                if isinstance(event, StepFinished):
                    break
            made.close()
            assert file.read_bytes() == before
            assert engine.runtime().components.resident is None


class TestFile:
    CONFIG = tiny_pipeline(guided=False).transformer.config

    def calibration(self, model_hash: str = "a" * 64) -> Calibration:
        factors = {mode: {each.name: normal(each.width).exp() for each in inputs(self.CONFIG)} for mode in MODES}
        return Calibration(model_hash, 4, 32, "bf16", factors)

    def test_what_is_read_is_what_was_written(self):
        written = self.calibration()
        file = calibrations.write(written)
        assert file.parent == cache_dir() / "salience"
        read = calibrations.read("x", "a" * 64, inputs(self.CONFIG))
        assert (read.model_hash, read.steps, read.prompts, read.precision) == ("a" * 64, 4, 32, "bf16")
        for mode in MODES:
            assert read.digest(mode) == written.digest(mode)
        assert read.digest("csb") == read.digest("csb+ssc")  # the same factors here

    def test_another_models_is_refused_by_its_hash(self, tmp_path):
        file = calibrations.write(self.calibration(), tmp_path / "there.safetensors")
        with pytest.raises(
            RequestError, match=r"made with another model than mine .*'aaaaaaaaaaaa', not 'bbbbbbbbbbbb'"
        ):
            calibrations.read("mine", "b" * 64, inputs(self.CONFIG), file)

    @pytest.mark.parametrize("harm", ["missing", "misshapen", "negative", "nan", "about", "none", "cut", "text"])
    def test_a_broken_one_is_refused(self, harm, tmp_path):
        file = calibrations.write(self.calibration(), tmp_path / "there.safetensors")
        tensors = load_file(file)
        about = {"t2i_salience": "1", "model_hash": "a" * 64, "steps": "4", "prompts": "32", "precision": "bf16"}
        name = next(iter(tensors))
        if harm == "missing":
            del tensors[name]
        elif harm == "misshapen":
            tensors[name] = tensors[name][:3].clone()
        elif harm in ("negative", "nan"):
            tensors[name][1] = -1 if harm == "negative" else torch.nan
        elif harm == "about":
            about["steps"] = "four"
        elif harm == "none":
            about = {}
        save_file(tensors, file, about)
        if harm == "cut":
            file.write_bytes(file.read_bytes()[:-5])
        elif harm == "text":
            file.write_text("{}")
        with pytest.raises(RequestError) as refused:
            calibrations.read("mine", "a" * 64, inputs(self.CONFIG), file)
        assert str(file) in str(refused.value)


class TestVerb:
    def test_from_prompts_to_pictures(self, tmp_path, capsys):
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("\n".join(PROMPTS))
        assert main(["models", "calibrate", "demo", "--prompts", str(prompts), "--steps", "2"]) == 0
        out = capsys.readouterr().out
        assert "demo is calibrated with 2 prompts at 2 steps: factors for 32 inputs" in out
        picture = tmp_path / "a.png"
        small = ["--size", "64x64", "--steps", "1", "--seed", "1", "-q"]
        assert main(["generate", "-p", "a star", "--precision", "int8", *small, "-o", str(picture)]) == 0
        assert read_record(picture).request.salience == "csb+ssc"
        other = tmp_path / "b.png"
        assert main(["generate", "--from", str(picture), "--salience", "off", "-q", "-o", str(other)]) == 0
        assert read_record(other).request.salience == "off"

    def test_json_and_a_file_from_elsewhere(self, tmp_path, capsys):
        prompts = tmp_path / "prompts.txt"
        prompts.write_text(PROMPTS[0])
        assert main(["models", "calibrate", "demo", "--prompts", str(prompts), "--steps", "1", "--json"]) == 0
        lines = json_lines(capsys.readouterr().out)
        assert [line["event"] for line in lines] == ["calibrating", "calibrated"]
        assert lines[0] == {"event": "calibrating", "prompt": 1, "prompts": 1, "step": 1, "steps": 1}
        assert (lines[1]["model"], lines[1]["inputs"]) == ("demo", 32)
        moved = tmp_path / "moved.safetensors"
        shutil.move(lines[1]["file"], moved)
        assert main(["models", "calibrate", "demo", "--use", str(moved)]) == 0
        mine, theirs = load_file(lines[1]["file"]), load_file(moved)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        save_tiny(tmp_path / "tiny", guided=False)
        capsys.readouterr()
        assert main(["models", "calibrate", str(tmp_path / "tiny"), "--use", str(moved)]) == 2
        assert "another model" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("content", "said"),
        [(b"", "no prompt"), (b"\n \n", "no prompt"), (b"\x00\x01\xff\xfe", "not UTF-8"), (None, "cannot read")],
    )
    def test_prompts_that_are_none(self, content, said, tmp_path, capsys):
        prompts = tmp_path / "prompts.txt"
        if content is not None:
            prompts.write_bytes(content)
        assert main(["models", "calibrate", "demo", "--prompts", str(prompts)]) == 2
        assert said in capsys.readouterr().err
        assert not (cache_dir() / "salience").exists()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "give either --prompts FILE"),
            (["--prompts", "a", "--use", "b"], "give either --prompts FILE"),
            (["--use", "nowhere"], "there is no file 'nowhere'"),
            (["--prompts", "a", "--steps", "0"], "steps must be"),
            (["--prompts", "a", "--precision", "int4"], "precision must be one of"),
        ],
    )
    def test_bad_input(self, arguments, said, capsys):
        assert main(["models", "calibrate", "demo", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_folds_leave_alone_what_has_no_factors():
    config = tiny_pipeline(guided=False).transformer.config
    folds = Folds(inputs(config), {})
    weight = normal(4, 8)
    assert folds.weight("transformer_blocks.0.attn.to_q", weight) is weight
    assert not folds.inverse
