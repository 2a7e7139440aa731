"""`t2i models` and `--distill`, from arguments to exit code and output, in this process."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import engine.cli.commands
import engine.cli.models
import engine.cli.pull
from engine.cli import console
from engine.families.flux1.published import FLUX_FILES, FLUX_NEEDED
from engine.families.sources import Repository, Source
from engine.images.metadata import read_record
from engine.library import catalog, hub, registry, transfer
from engine.library.caches import Cached
from engine.library.hub import PullProgress
from engine.library.inventory import Listing, Part, Scanned
from engine.text import size
from engine.weights.converted import converted_files
from tests.checkpoints import save
from tests.commands import json_lines
from tests.models import Kit, comfyui, lora, small_kit
from tests.test_hub import TINY, Hub, server
from tests.tiny import FP8_FORM

assert server  # the fixture: a hub on this machine
DONE, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 130
ESCAPE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Run:
    code: int
    stdout: str
    stderr: str


T2I = Callable[..., Run]


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Press Ctrl+C in this process, which a shell may have started in the background, with that signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def kit() -> Kit:
    return small_kit()


@pytest.fixture(scope="module")
def diffusers(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers") / "Some Model"
    kit.pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def comfy(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = comfyui(tmp_path_factory.mktemp("disk") / "ComfyUI", kit)
    lora(root / "models" / "loras" / "a.safetensors")
    return root


@pytest.fixture
def t2i(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> T2I:
    """The command line in this process, where torch is imported once."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str | Path) -> Run:
        code = engine.cli.commands.main([str(argument) for argument in arguments])
        return Run(code, *capsys.readouterr())

    return run


def named(kind: type[Any]) -> set[str]:
    return {field.name for field in fields(kind)}


def documented(text: str) -> set[str]:
    return set(re.findall(r"[a-z_]+", re.sub(r"\(.*?\)", "", text)))


class TestList:
    def test_fits_in_80_columns(self, t2i, comfy):
        bare = t2i("models", "list")
        assert (bare.code, bare.stderr) == (DONE, "")
        assert t2i("models") == bare
        assert [line.split()[0] for line in bare.stdout.splitlines()] == [
            *("name", "demo", "flux.1-schnell", "flux.1-dev", "distillt5", "tokenizers")
        ]
        assert all(len(line) <= 80 for line in bare.stdout.splitlines())
        t2i(
            "models",
            "add",
            comfy / "models" / "unet" / "flux1-dev.safetensors",
            "--name",
            "a-name-of-" + "50-letters" * 5,
        )
        t2i("models", "scan", comfy)
        lines = t2i("models", "list").stdout.splitlines()
        assert lines[-1] == "5 parts that may complete models: t2i models list --parts"
        assert len([line for line in lines if str(comfy) in line]) == 3
        lines = t2i("models", "list", "--parts").stdout.splitlines()
        paths = [line for line in lines if str(comfy) in line]
        assert len(paths) == 3 + 5, "of three models and five loose parts"
        assert all(len(line) <= 80 for line in lines if line not in paths)
        assert "a-name-of-" + "50-letters" * 5 in lines

    def test_as_json_with_the_documented_fields(self, t2i, comfy):
        t2i("models", "scan", comfy)
        lines = json_lines(t2i("models", "list", "--json").stdout)
        loose = [line for line in lines if line["event"] == "part"]
        assert [{*line} for line in loose] == [{"event", *named(Part)}] * 5
        lines = [line for line in lines if line not in loose]
        assert {line.pop("event") for line in lines} == {"model"}
        assert len(lines) == 8
        text = engine.cli.models.__doc__ or ""
        about = re.search(r"A model has (.*); a part has (.*?)\. `seconds_left`", text, flags=re.DOTALL)
        assert about is not None
        assert documented(about[1]) == named(Listing)
        assert documented(about[2]) == named(Part)
        assert all(set(line) == named(Listing) for line in lines)
        assert all(set(part) == named(Part) for line in lines for part in line["parts"])
        scan = re.search(r"^    scanned +scan +(.*)$", text, flags=re.MULTILINE)
        pull = re.search(r"^    pull_progress +pull +(.*)$", text, flags=re.MULTILINE)
        assert scan is not None
        assert documented(scan[1]) == named(Scanned)
        assert pull is not None
        assert documented(pull[1]) == named(PullProgress)

    def test_what_is_wrong_stands_below_its_model(self, t2i, comfy, tmp_path):
        shutil.copytree(comfy, tmp_path / "usb")
        t2i("models", "scan", tmp_path / "usb")
        shutil.rmtree(tmp_path / "usb")
        run = t2i("models", "list")
        assert run.code == DONE
        assert len(re.findall(r"unusable\n    /.*\n    flux1-dev\S* was at ", run.stdout)) == 3

    def test_a_damaged_registry_is_said_after_the_list(self, t2i, own_folders):
        (own_folders / "state").mkdir(parents=True, exist_ok=True)
        (own_folders / "state" / registry.FILE).write_text("{")
        run = t2i("models", "list")
        assert run.code == BAD_INPUT
        assert "flux.1-dev" in run.stdout
        assert "the list of your models, is damaged; mend it, or delete it" in run.stderr
        assert t2i("models", "show", "demo").code == DONE, "the demo needs no list"


class TestScan:
    def test_tells_what_it_found_and_what_it_cannot_use(self, t2i, comfy):
        run = t2i("models", "scan", comfy)
        assert (run.code, run.stderr) == (DONE, "")
        assert re.search(r"^added:\n  flux1-dev-all: FLUX.1 \[dev\], fp32, \d MiB, ready\n", run.stdout)
        for words in ("parts that complete models:", "is a LoRA", "looked at 13 folders with 7 files of weights.\n"):
            assert words in run.stdout
        again = t2i("models", "scan", comfy)
        assert "known already:\n  flux1-dev-all: " in again.stdout
        assert "added:" not in again.stdout

    def test_hundreds_of_loras_are_one_line(self, t2i, tmp_path):
        first = lora(tmp_path / "loras" / "000.safetensors")
        for number in range(1, 30):
            shutil.copy(first, first.with_name(f"{number:03}.safetensors"))
        run = t2i("models", "scan", tmp_path)
        assert run.stdout.count("LoRA,") == 1
        assert "(29 other files are the same)" in run.stdout
        assert "no FLUX.1 was found.\n" in run.stdout
        (said,) = json_lines(t2i("models", "scan", tmp_path, "--json").stdout)
        assert len(said["refused"]) == 30

    def test_says_how_far_it_is_where_it_takes_long(self, t2i, comfy, monkeypatch):
        from engine.library import finding

        monkeypatch.setattr(finding, "TICK_SECONDS", 0)
        monkeypatch.setattr(console, "SECONDS_PER_LINE", 0)
        assert "\n13 folders with 7 files of weights...\n" in t2i("models", "scan", comfy).stderr

    def test_ctrl_c_keeps_nothing(self, t2i, comfy, monkeypatch, ctrl_c):
        from engine.library import finding

        monkeypatch.setattr(finding, "TICK_SECONDS", 0)
        monkeypatch.setattr(console.StatusLine, "show", lambda line, text: ctrl_c())
        run = t2i("models", "scan", comfy)
        assert (run.code, run.stdout, run.stderr) == (CANCELLED, "", "cancelled.\n")
        assert registry.read().models == {}


class TestAddAndShow:
    def test_a_model_is_added_shown_painted_with_and_forgotten(self, t2i, kit, comfy, tmp_path):
        file = save(kit.transformer, tmp_path / "with spaces" / "Größe.safetensors")
        parts = comfy / "models"
        run = t2i(
            *("models", "add", file, "--vae", parts / "vae" / "ae.safetensors", "--clip", parts / "clip"),
            *("--t5", parts / "text_encoders" / "t5xxl_fp16.safetensors", "--tokenizers", comfy),
        )
        assert run.code == DONE, run.stderr
        assert run.stdout.startswith(f"groe: FLUX.1 [dev], ready\n    {file}\n")
        assert t2i("models", "show", "groe").stdout == run.stdout
        (shown,) = json_lines(t2i("models", "show", "groe", "--json").stdout)
        assert (shown["event"], shown["here"], shown["place"]) == ("model", True, str(file))
        small = ("--size", "64x64", "--steps", "1", "--seed", "1", "-q")
        picture = tmp_path / "a.png"
        run = t2i("generate", "-p", "a star", "--model", "groe", *small, "-o", picture)
        assert run.code == DONE, run.stderr
        assert read_record(picture).model == "groe"
        run = t2i("models", "remove", "groe")
        assert (run.code, run.stdout) == (DONE, f"groe is forgotten; its files are yours and stay at '{file}'.\n")
        assert t2i("generate", "--from", picture, "-q").code == BAD_INPUT

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ("add {tmp}/none", "is not there"),
            ("add {tmp}/none --name x --json", "is not there"),
            ("add {tmp}", "holds no model itself; let t2i models scan look"),
            ("add {comfy}/models/loras/a.safetensors", "is a LoRA"),
            ("add {comfy}/models/unet/flux1-dev.safetensors --name X", "a name has letters"),
            ("add {comfy}/models/unet/flux1-dev.safetensors --vae {tmp}/none", "is not there"),
            ("show flux1", "did you mean"),
            ("show zzz", "known names: demo"),
            ("check flux.1-dev", "the weights of flux.1-dev are not here"),
            ("check tokenizers", "no model by itself"),
            ("scan {tmp}/none", "is no folder"),
            ("remove zzz", "there is no model"),
            ("remove demo --files", "it stays"),
            ("pull demo", "cannot be downloaded"),
            ("pull flux.1-devv", "did you mean 'flux.1-dev'"),
            ("add", "Missing argument 'PATH'"),
            ("adds x", "No such command 'adds'"),
        ],
    )
    def test_bad_input_is_one_sentence_and_exit_code_2(self, t2i, comfy, tmp_path, arguments, words):
        run = t2i("models", *arguments.format(tmp=tmp_path, comfy=comfy).split())
        assert run.code == BAD_INPUT
        assert words in run.stderr
        assert run.stderr.startswith("error: ")
        assert run.stderr.count("\n") == 1
        if "--json" in arguments:
            assert json_lines(run.stdout)[0]["event"] == "error"

    def test_what_files_and_paths_say_never_reaches_the_terminal_raw(self, t2i, kit, comfy, tmp_path):
        evil = tmp_path / "\x1b[2J\u202e\n"
        save(kit.all_in_one(), evil / "\x07flux.safetensors", {"modelspec.title": "\x1b[31m"})
        shutil.copytree(comfy / "comfy", evil / "comfy")
        (evil / "other").mkdir()
        (evil / "other" / "model_index.json").write_text(json.dumps({"_class_name": "\x1b[2JPipeline"}))
        for arguments in (
            ("scan", evil),
            ("list",),
            ("show", "flux"),
            ("show", evil),
            ("remove", "flux"),
            ("add", evil / "x"),
        ):
            run = t2i("models", *arguments)
            assert not ESCAPE.search(run.stdout + run.stderr), arguments
            assert "\u202e" not in run.stdout + run.stderr

    def test_check_says_layout_and_precision(self, t2i, comfy, diffusers):
        run = t2i("models", "check", comfy / "models" / "checkpoints")
        assert run.code == DONE, run.stderr
        assert re.search(
            r"^transformer: all in one, fp32, 7 MiB; every tensor is there", run.stdout, flags=re.MULTILINE
        )
        (report,) = json_lines(t2i("models", "check", diffusers, "--json").stdout)
        assert report["parts"]["text_encoder"]["layout"] == "transformers"
        assert report["parts"]["vae"].keys() == {"layout", "precision", "bytes"}


class TestPull:
    @pytest.fixture
    def flux(self, server: Hub, diffusers: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
        """The hub with a small model, which goes by FLUX.1 [dev]'s name."""
        files = {path.relative_to(diffusers).as_posix(): path for path in diffusers.rglob("*") if path.is_file()}
        server.files = {name: path.read_bytes() for name, path in files.items()}
        repository = Repository(TINY.id, FLUX_FILES, FLUX_NEEDED)
        source = Source("flux.1-dev", (repository,), "Not to be sold.", 10**7, restricted=True)
        monkeypatch.setitem(hub.SOURCES, "flux.1-dev", source)
        return server

    def test_brings_it_and_makes_it_known(self, flux, t2i, monkeypatch):
        monkeypatch.setattr(console, "SECONDS_PER_LINE", 0)
        run = t2i("models", "pull", "flux.1-dev", "--yes")
        assert run.code == DONE, run.stderr
        assert run.stderr.startswith("Not to be sold.\nflux.1-dev: 0 bytes of 8 MiB (0 %)")
        assert run.stderr.endswith("flux.1-dev: 8 MiB of 8 MiB (100 %)\n")
        assert run.stdout.startswith("flux.1-dev: FLUX.1 [dev], ready\n")
        assert catalog.open_model("flux.1-dev").has_weights
        (shown,) = json_lines(t2i("models", "show", "flux.1-dev", "--json").stdout)
        assert (shown["here"], shown["pulled"], shown["can_pull"]) == (True, True, False)
        again = t2i("models", "pull", "flux.1-dev")
        assert again.code == DONE, "what is here needs no question"
        run = t2i("models", "remove", "flux.1-dev")
        assert run.code == BAD_INPUT
        assert "--files" in run.stderr
        run = t2i("models", "remove", "flux.1-dev", "--files")
        assert re.fullmatch(r"flux\.1-dev is deleted\. 8 MiB freed\.\n", run.stdout)
        assert not catalog.open_model("flux.1-dev").has_weights

    def test_for_programs(self, flux, t2i):
        lines = json_lines(t2i("models", "pull", "flux.1-dev", "--yes", "--json").stdout)
        assert lines[0]["event"] == "pull_begins"
        assert lines[0].keys() == {"event", "name", "licence", "folder", "here_bytes", "download_bytes"}
        assert {line["event"] for line in lines[1:-1]} == {"pull_progress"}
        assert lines[1].keys() == {"event", *named(PullProgress)}
        assert lines[-2]["done_bytes"] == lines[-2]["total_bytes"] == lines[0]["download_bytes"]
        assert (lines[-1]["event"], lines[-1]["here"]) == ("pulled", True)

    def test_nobody_accepts_a_licence_by_silence(self, flux, t2i):
        run = t2i("models", "pull", "flux.1-dev")
        assert run.code == BAD_INPUT
        assert run.stderr.splitlines()[0] == "Not to be sold."
        assert "--yes" in run.stderr
        assert not any(path.endswith(".safetensors") for _, path, _ in flux.asked)
        assert registry.read().models == {}

    @pytest.mark.parametrize(
        ("answer", "code"), [("y\n", DONE), ("n\n", CANCELLED), ("\n", CANCELLED), ("", CANCELLED)]
    )
    def test_on_a_terminal_it_asks(self, flux, t2i, monkeypatch, answer, code):
        monkeypatch.setattr(engine.cli.pull, "is_terminal", lambda: True)
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        run = t2i("models", "pull", "flux.1-dev")
        assert run.code == code
        assert "8 MiB to download into '" in run.stderr
        assert "Go on? [y/N] " in run.stderr
        assert bool(registry.read().models) == (code == DONE)

    def test_a_free_licence_is_told_and_not_asked_for(self, flux, t2i, monkeypatch):
        (repository,) = hub.SOURCES["flux.1-dev"].repositories
        monkeypatch.setitem(hub.SOURCES, "flux.1-dev", Source("flux.1-dev", (repository,), "Take it.", 1))
        run = t2i("models", "pull", "flux.1-dev")
        assert run.code == DONE
        assert re.match(r"Take it\.\n8 MiB to download into '.*'\.\n", run.stderr)

    def test_ctrl_c_stops_and_the_next_one_goes_on(self, flux, t2i, monkeypatch, ctrl_c):
        monkeypatch.setattr(transfer, "LEAVE_SECONDS", 5)
        shown = console.StatusLine.show

        monkeypatch.setattr(console.StatusLine, "show", lambda line, text: ctrl_c())
        run = t2i("models", "pull", "flux.1-dev", "--yes")
        assert run.code == CANCELLED
        assert "what arrived is kept: t2i models pull flux.1-dev goes on from there.\ncancelled.\n" in run.stderr
        assert re.search(r"^flux\.1-dev .* begun$", t2i("models", "list").stdout, flags=re.MULTILINE)
        monkeypatch.setattr(console.StatusLine, "show", shown)
        assert t2i("models", "pull", "flux.1-dev", "--yes").code == DONE

    def test_ones_own_weights_of_that_name_come_first(self, flux, t2i, diffusers):
        assert t2i("models", "add", diffusers, "--name", "flux.1-dev").code == DONE
        run = t2i("models", "pull", "flux.1-dev", "--yes")
        assert run.code == BAD_INPUT
        assert "as you said; forget that first" in run.stderr

    def test_a_machine_at_fault_is_exit_code_1(self, flux, t2i):
        flux.missing = True
        run = t2i("models", "pull", "flux.1-dev", "--yes")
        assert run.code == FAILED
        assert "the hub has no https://huggingface.co/someone/tiny" in run.stderr


class TestCache:
    @pytest.fixture
    def converted(self, t2i, diffusers, tmp_path) -> tuple[Path, Path]:
        """The files of a known model and of one whose weights have changed since."""
        t2i("models", "add", diffusers, "--name", "some-model")
        changing = tmp_path / "changing.safetensors"
        source = next((diffusers / "transformer").glob("*.safetensors"))
        files = []
        for file in (source, changing):
            if file == changing:
                tensors = load_file(source)
                tensors["proj_out.bias"] += 1
                save(tensors, changing)
            conversion = converted_files("transformer", [file], torch.bfloat16, [], FP8_FORM)
            try:
                while True:
                    next(conversion)
            except StopIteration as end:
                end.value.close()
                files.append(next(iter(end.value.tensors.values())).file)
        changing.unlink()
        return files[0], files[1]

    def test_lists_what_there_is_and_who_needs_it(self, t2i, converted):
        run = t2i("models", "cache")
        assert run.code == DONE
        lines = run.stdout.splitlines()
        used, unused = (f"{path.name[:8]}-fp8" for path in converted)
        assert re.fullmatch(rf"{used}  fp8  transformer  +[0-9.]+ [KM]i?B  in use", lines[0])
        assert lines[1] == "    of some-model"
        assert lines[2].startswith(unused)
        assert lines[2].endswith("its model is gone or has changed")
        assert lines[4].startswith("2 files of converted weights, ")
        assert lines[5].endswith(" can go: t2i models cache --remove unused")
        assert all(len(line) <= 80 for line in lines if not line.startswith("    "))

    def test_as_json_with_the_documented_fields(self, t2i, converted):
        found = json_lines(t2i("models", "cache", "--json").stdout)
        (line,) = (text for text in engine.cli.models.__doc__.splitlines() if text.startswith("    cached "))
        for each in found:
            assert set(each) == {"event", *named(Cached)}
            assert named(Cached) == documented(line.partition("cache  ")[2])
        assert [each["models"] for each in found] == [["some-model"], []]
        assert [Path(each["path"]) for each in found] == [*converted]

    def test_removes_what_nobody_needs_and_says_what_was_freed(self, t2i, converted):
        nbytes = converted[1].stat().st_size
        foreign = converted[0].with_name("mine.safetensors")
        foreign.write_bytes(b"mine")
        link = converted[0].with_name(f"{'0' * 32}-fp8.safetensors")
        link.symlink_to(converted[0])
        run = t2i("models", "cache", "--remove", "unused")
        assert run.code == DONE
        assert run.stdout == f"1 file of converted weights removed, {size(nbytes)} freed.\n"
        assert {*converted[0].parent.glob("*.safetensors")} == {converted[0], foreign, link}
        assert len([*(converted[0].parent / "index").iterdir()]) == 1
        (answer,) = json_lines(t2i("models", "cache", "--remove", "unused", "--json").stdout)
        assert (answer["message"], answer["freed_bytes"]) == ("there was nothing to remove.", 0)
        t2i("models", "cache", "--remove", "all")
        assert {*converted[0].parent.glob("*.safetensors")} == {foreign, link}

    def test_removes_by_name(self, t2i, converted):
        t2i("models", "cache", "--remove", f"{converted[0].name[:8]}-fp8")
        assert not converted[0].exists()
        assert converted[1].exists()

    def test_a_name_that_is_not_there_removes_nothing(self, t2i, converted):
        run = t2i("models", "cache", "--remove", "unused", "--remove", "../x")
        assert run.code == BAD_INPUT
        assert "the cache has no '../x': give unused, encodings, all, or a name; there are " in run.stderr
        assert all(path.exists() for path in converted)

    def test_an_older_versions_and_a_damaged_file_are_told(self, t2i, converted):
        old, damaged = converted
        old.write_bytes(old.read_bytes().replace(b'"t2i_format":"3"', b'"t2i_format":"2"'))
        damaged.write_bytes(b"no weights")
        assert {each["reason"] for each in json_lines(t2i("models", "cache", "--json").stdout)} == {
            "of an older version",
            "damaged",
        }

    def test_an_empty_cache_is_no_trouble(self, t2i):
        assert t2i("models", "cache").stdout.startswith("no converted weights.\n")


def test_the_status_line_is_redrawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    line = console.StatusLine()
    line.show("a long text that does not fit\x1b[2J")
    line.show("short")
    line.close()
    line.close()
    first, second, third, *rest = terminal.getvalue().split("\r\r")
    assert first == "\ra long text that do"
    assert second == "short".ljust(19)
    assert third.strip() == ""
    assert rest == []


class TestDistill:
    def test_a_picture_with_distillt5_says_so_and_is_repeated_so(self, t2i, tmp_path):
        first, again, other = (tmp_path / f"{name}.png" for name in ("first", "again", "other"))
        small = ("--size", "64x64", "--steps", "1", "--seed", "1", "-q")
        assert t2i("generate", "-p", "a red circle", "--distill", *small, "-o", first).code == DONE
        assert read_record(first).request.distill
        t2i("generate", "--from", first, "-q", "-o", again)
        assert read_record(again).request.distill
        t2i("generate", "--from", first, "--no-distill", "-q", "-o", other)
        assert not read_record(other).request.distill
        assert pixels(first) == pixels(again) != pixels(other)

    def test_a_plan_with_it(self, t2i):
        run = t2i("plan", "--model", "flux.1-dev", "--vram", "8GiB", "--distill", "--json")
        assert json.loads(run.stdout)["text_encoder"].startswith("DistillT5")

    def test_a_model_that_has_none_says_how_to_get_one(self, t2i, diffusers):
        for verb in (("generate", "-p", "x"), ("plan",)):
            run = t2i(*verb, "--distill", "--model", diffusers)
            assert run.code == BAD_INPUT
            assert "get it with t2i models pull distillt5" in run.stderr


def pixels(file: Path) -> bytes:
    from PIL import Image

    with Image.open(file) as image:
        return image.tobytes()
