"""`t2i plan`, `t2i generate --simulate`, budgets and `t2i models check`, from arguments to exit code and output."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import engine.cli.commands
from engine.images.metadata import read_record
from tests.commands import json_lines
from tests.test_memory_plan import PHASE_FIELDS
from tests.tiny import save_tiny

GIB = 2**30
DONE, BAD_INPUT = 0, 2
FLUX = ("--model", "flux.1-dev", "--size", "1024x1024", "--precision", "fp8")


@dataclass(frozen=True)
class Run:
    returncode: int
    stdout: str
    stderr: str


T2I = Callable[..., Run]


@pytest.fixture
def t2i(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> T2I:
    """The command line in this process, where torch is imported once."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> Run:
        code = engine.cli.commands.main(arguments)
        return Run(code, *capsys.readouterr())

    return run


def test_a_plan_is_a_table_that_says_whether_it_fits(t2i: T2I) -> None:
    run = t2i("plan", *FLUX, "--vram", "8GiB")
    assert (run.returncode, run.stderr) == (DONE, "")
    assert "It fits: peak 7.9 GiB in denoise" in run.stdout
    for word in ("encode", "denoise", "decode", "streamed", "pinned", "same prompt", "new prompt", "T5, 4.8 billion"):
        assert word in run.stdout
    assert all(len(line) <= 80 for line in run.stdout.splitlines())


def test_a_plan_as_json_is_one_object(t2i: T2I) -> None:
    run = t2i("plan", *FLUX, "--vram", "8GiB", "--json")
    (plan,) = json_lines(run.stdout)
    assert (plan["model"], plan["size"], plan["precision"]) == ("flux.1-dev", "1024x1024", "fp8")
    assert plan["budget_bytes"] == 8 * GIB
    assert plan["peak_bytes"] == max(phase["peak_bytes"] for phase in plan["phases"]) <= 8 * GIB
    assert 0 < plan["pinned_bytes"] <= plan["host_bytes"]
    assert [phase["name"] for phase in plan["phases"]] == ["encode", "denoise", "decode"]
    assert all(set(phase) == PHASE_FIELDS for phase in plan["phases"])


@pytest.mark.parametrize(
    ("flags", "field", "words"),
    [
        ("--vram 12", "vram", "12GiB, or 12GB"),
        ("--vram 12gb", "vram", "write 12GB"),
        ("--vram 0", "vram", "from 1MiB"),
        ("--vram=-1GiB", "vram", "from 1MiB"),
        ("--vram 1TiB", "vram", "less than 1TiB"),
        ("--ram 16", "ram", "16GiB"),
        ("--ram 900GiB --device cpu", "ram", "more than the"),
        ("--vram 2MiB --device cpu", "vram", "needs at least"),
        ("--ram 100MiB --device cpu", "ram", "needs at least"),
        ("--size 4096x4096", "width", "2048"),
        ("--size 512x512", "width", "goes up to 256"),
        ("--tile 100", "tile", "multiples of 16"),
        ("--tile huge", "tile", "auto, off"),
        ("--card gtx-970", "card", "rtx-3060"),
        ("--precision fp4", "precision", "fp8"),
        ("--model flux.1-devv", "model", "did you mean 'flux.1-dev'"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "generate"])
def test_a_bad_budget_is_one_sentence_and_exit_code_2(verb: str, flags: str, field: str, words: str, t2i: T2I) -> None:
    prompt = ["--prompt", "a circle"] if verb == "generate" else []
    run = t2i(verb, *prompt, *flags.split(), "--json")
    assert run.returncode == BAD_INPUT
    told = json_lines(run.stdout)[-1]
    assert words in told["message"]
    assert told.get("field", field) == field
    assert "Traceback" not in run.stderr


def test_a_budget_that_cannot_work_is_refused_before_anything_loads(t2i: T2I) -> None:
    run = t2i("generate", "-p", "a circle", "--vram", "2MiB", "--device", "cpu", "--json")
    assert [line["event"] for line in json_lines(run.stdout)] == ["failed"]


def test_a_simulated_run_tells_all_phases_and_paints_nothing(t2i: T2I, tmp_path: Path) -> None:
    arguments = ("--simulate", "--model", "flux.1-schnell", "--vram", "12GiB", "--precision", "fp8")
    run = t2i("generate", "-p", "a cat", *arguments, "-o", str(tmp_path), "--json")
    assert run.returncode == DONE, run.stderr
    events = json_lines(run.stdout)
    names = [event["event"] for event in events]
    assert names[0] == "planned"
    assert names[-1] == "simulated"
    assert names.count("step_finished") == 4
    assert [event["phase"] for event in events if event["event"] == "phase_finished"] == ["encode", "denoise", "decode"]
    timed = [event for event in events if event["event"] in ("step_finished", "phase_finished")]
    assert all(event["estimated"] for event in timed)
    plan, simulated = events[0]["plan"], events[-1]
    for phase in plan["phases"]:
        held = simulated["peak_bytes_by_phase"][phase["name"]]
        assert held == pytest.approx(phase["peak_bytes"], rel=0.002), "all blocks against the few that were measured"
        assert held <= plan["budget_bytes"]
    seconds = simulated["seconds_by_phase"]
    assert seconds == plan["new_prompt"]["seconds_by_phase"], "what a plan says is what a simulation says"
    assert list(seconds) == ["load", "encode", "denoise", "decode"]
    told = {event["phase"]: event["seconds"] for event in events if event["event"] == "phase_finished"}
    assert told == {phase: seconds[phase] for phase in told}
    steps = [event["seconds"] for event in events if event["event"] == "step_finished"]
    assert sum(steps) == pytest.approx(seconds["denoise"])
    assert simulated["card"] == "RTX 3060 (simulated)"
    assert list(tmp_path.iterdir()) == []


def test_simulating_says_on_stderr_what_it_found(t2i: T2I) -> None:
    run = t2i("generate", "-p", "a cat", "--simulate", "--model", "flux.1-schnell", "--vram", "8GiB")
    assert run.returncode == DONE
    assert run.stdout == ""
    assert "simulated on RTX 3060: peak" in run.stderr
    assert "(an estimate)" in run.stderr


def test_without_weights_a_model_is_not_painted(t2i: T2I) -> None:
    run = t2i("generate", "-p", "a cat", "--model", "flux.1-dev")
    assert run.returncode == BAD_INPUT
    assert "--simulate" in run.stderr


def test_a_picture_made_in_tiles_says_so_and_is_repeated_so(t2i: T2I, tmp_path: Path) -> None:
    first, again, whole = (str(tmp_path / f"{name}.png") for name in ("first", "again", "whole"))
    run = t2i("generate", "-p", "a star", "--size", "192x256", "--tile", "128", "-o", first, "-q")
    assert run.returncode == DONE, run.stderr
    assert read_record(first).reproduce["tile"] == 128
    t2i("generate", "--from", first, "-o", again, "-q")
    assert read_record(again).reproduce["tile"] == 128
    t2i("generate", "--from", first, "--tile", "off", "-o", whole, "-q")
    assert read_record(whole).reproduce["tile"] == 0


def test_checking_a_model_tells_the_error_of_its_fp8_form(t2i: T2I, tmp_path: Path) -> None:
    run = t2i("models", "check", "demo", "--json")
    assert run.returncode == DONE, run.stderr
    report = json.loads(run.stdout)["fp8"]
    assert report["vae"] == report["text_encoder"] == {}
    for kinds in (report["transformer"], report["text_encoder_2"]):
        assert len(kinds) > 5
        assert all(0.02 < kind["relative_rms"] < 0.03 for kind in kinds.values())
    assert "every tensor is there" in t2i("models", "check", "demo").stdout

    save_tiny(tmp_path, guided=False)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = "decoder.conv_in.weight"
    save_file({**weights, name: weights[name] * float("nan")}, file)
    run = t2i("models", "check", str(tmp_path))
    assert run.returncode == BAD_INPUT
    assert f"{name!r}" in run.stderr
    assert "not finite" in run.stderr
    del weights[name]
    save_file(weights, file)
    run = t2i("models", "check", str(tmp_path))
    assert run.returncode == BAD_INPUT
    assert f"lacks the tensor {name!r}" in run.stderr
