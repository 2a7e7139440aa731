"""`t2i generate` and `t2i` with the demo model: in a process of their own, as a person runs them, where the process
counts (streams, signals, exit codes), otherwise by `engine.cli.commands.main`, which is all that such a process does.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import engine.cli.commands
import engine.cli.generate
from engine import Engine, events
from engine.cli.entry import _writes_there
from engine.cli.interrupts import Interrupts
from engine.cli.prompts import EXAMPLE
from engine.images.metadata import encode_png, read_parameters, read_record
from tests.commands import isolated_environment, json_lines, t2i
from tests.conftest import share_plans
from tests.tiny import save_tiny

PROMPT = "a large red circle above a small blue square on a white background"
DONE, FAILED, BAD_INPUT, CANCELLED, UNREAD = 0, 1, 2, 130, 141
ESCAPE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # any control character but the line feed
posix = pytest.mark.skipif(os.name == "nt", reason="signals and pseudo-terminals are POSIX's")


@pytest.fixture(scope="module")
def environment(plans: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("home")
    share_plans(plans, home / "cache")
    return isolated_environment(home)


Run = subprocess.CompletedProcess[str]
Main = Callable[..., Run]


@pytest.fixture
def main(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """The command line in this process, where torch is imported once, with the folders of those that have their own."""
    for name in environment:
        if name.startswith("TEXTTOIMAGETOOL_"):
            monkeypatch.setenv(name, environment[name])

    def run(*arguments: str, stdin: bytes = b"") -> Run:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return Run(arguments, engine.cli.commands.main(arguments), *capsys.readouterr())

    return run


# Bad input


@pytest.mark.parametrize(
    ("arguments", "field", "words"),
    [
        ("--steps 0", "steps", "from 1 to 1000, got 0"),
        ("--steps 1001", "steps", "got 1001"),
        ("--steps many", "steps", "valid integer"),
        ("--size 100x100", "size", "the nearest are 96x96 and 112x112: take one of them, or add --fit"),
        ("--width 100", "width", "not a multiple of 16; the nearest are 96 and 112"),
        ("--width 100 --fit", "fit", "add --size, or both"),
        ("--size 128x4096", "height", "from 64 to 2048"),
        ("--size landscap", "size", "did you mean landscape?"),
        ("--size 9:1", "size", "would be 384x48 with this model, whose sides go from 64 to 256"),
        ("--size 128x128 --width 128", "size", "exclude each other"),
        ("--width 32", "width", "from 64 to 2048"),
        ("--seed -2", "seed", "from 0 to 2**64 - 1, got -2"),
        ("--seed 18446744073709551616", "seed", "from 0 to 2**64 - 1"),
        ("--seed 18446744073709551615 --count 2", "seed", "take a smaller seed"),
        ("--count 0", "count", "from 1 to 1000"),
        ("--guidance nan", "guidance", "from 0 to 30"),
        ("--precision fp7", "precision", "fp32, bf16, fp8"),
        ("--output {folder}/a.png --count 2", "output", "give a folder"),
        ("--output {folder}/none/a.png", "output", "does not exist"),
        ("--output {folder}/none", "output", "end it with a slash to have it made"),
        ("--output {folder}/none/new/", "output", "create that first"),
        ("--output=", "output", "--output is empty"),
        ("--model=", "model", "--model is empty"),
        ("--size 2048x2048", "width", "too large for demo"),
        ("--model dmeo", "model", "did you mean 'demo'"),
        ("--from {folder}/none.png", "from", "cannot be read"),
        ("--from {folder}/text.txt", "from", "not a PNG"),
        ("--prompts-file {folder}/text.txt", "prompt", "exclude each other"),
        ("extra", "prompt", "twice, alone and after --prompt"),
        ("--stepz 3", "arguments", "No such option: --stepz (Possible options: "),
        ("--steps", "arguments", "requires an argument"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: str, field: str, words: str, tmp_path: Path, main: Main
) -> None:
    (tmp_path / "text.txt").write_text("a red circle\n")
    options = arguments.format(folder=tmp_path).split(" ")
    run = main("generate", "--prompt", PROMPT, "--json", *options)
    (error,) = json_lines(run.stdout)
    assert (run.returncode, error["event"], error["field"]) == (BAD_INPUT, "error", field)
    assert words in error["message"]
    (sentence,) = run.stderr.splitlines()
    assert sentence == f"error: {error['message']}"
    assert sentence[-1] in ".?'\"" or sentence.endswith("background")
    assert [path.name for path in tmp_path.rglob("*")] == ["text.txt"], "nothing half-written"


@pytest.mark.parametrize("prompt", ["", " \t", "x" * 10_001])
def test_a_prompt_must_say_something_and_not_too_much(prompt: str, main: Main) -> None:
    run = main("generate", "--prompt", prompt)
    assert run.returncode == BAD_INPUT
    assert run.stderr.startswith("error: prompt ")
    assert run.stderr.count("\n") == 1
    assert run.stdout == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read"),
        (b"", "holds no prompt"),
        (b"\n  \n\r\n", "holds no prompt"),
        (b"# nothing\n", "holds no prompt"),
        (b"a red circle\n\xff\xfe\xfd\n", "line 2 of "),
        (b"a red circle\na\0b\n", "line 2 of "),
        (b"a red circle\n\n" + b"x" * 10_001, "line 3 of "),
        (b"x" * (16 * 2**20 + 1), "larger than 16 MiB"),
    ],
    ids=["missing", "empty", "blank", "comment", "binary", "nul", "long line", "huge"],
)
def test_every_prompt_of_a_file_is_checked_first(content: bytes | None, words: str, tmp_path: Path, main: Main) -> None:
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    run = main("generate", "--prompts-file", str(tmp_path / "prompts.txt"))
    assert run.returncode == BAD_INPUT
    assert words in run.stderr
    assert run.stderr.count("\n") == 1


def test_standard_input_may_be_the_bad_one(main: Main) -> None:
    run = main("generate", "--prompt", "-")
    assert (run.returncode, run.stderr) == (BAD_INPUT, "error: standard input holds no prompt; write one a line.\n")
    run = main("generate", "--prompt", "-", stdin=b"a red circle\n\xc3(\n")
    assert (run.returncode, run.stderr) == (BAD_INPUT, "error: line 2 of standard input is not UTF-8 text.\n")


def test_bad_input_is_answered_before_torch_is_imported(environment: dict[str, str]) -> None:
    code = (
        "import sys; from engine.cli.commands import main\n"
        "codes = [main(['generate', '--prompt', 'x', *bad.split()]) for bad in sys.argv[1:]]\n"
        "print(codes, *{'torch', 'diffusers', 'transformers', 'rich', 'PIL'} & set(sys.modules))"
    )
    bad = ["--steps 0", "--size 1x1", "--from none.png", "--nothing", "--output none/a.png"]
    run = subprocess.run([sys.executable, "-c", code, *bad], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "[2, 2, 2, 2, 2]"


def test_escape_sequences_are_never_printed_raw(tmp_path: Path, main: Main) -> None:
    evil = "\x1b[2J\x07\u202e"
    for arguments in (
        ("generate", "--prompt", "x", f"--{evil}"),
        ("generate", "--prompt", "x", "--size", evil),
        ("generate", "--prompt", "x", "--model", evil),
        ("generate", "--prompt", "x", "--output", str(tmp_path / evil / "a.png")),
        ("generate", "--prompts-file", evil),
        (evil,),
    ):
        run = main(*arguments)
        assert run.returncode == BAD_INPUT
        assert not ESCAPE.search(run.stderr)
        assert "\u202e" not in run.stderr


# Without a verb


def test_without_a_verb_and_a_terminal_t2i_says_what_works_instead(environment: dict[str, str]) -> None:
    run = t2i(env=environment)
    assert run.returncode == BAD_INPUT
    assert run.stderr == f"error: the app needs a terminal; without one this works: {EXAMPLE}\n"


def test_verbs_and_version(environment: dict[str, str], main: Main) -> None:
    assert re.fullmatch(r"TextToImageTool \S+\n", t2i("--version", env=environment).stdout)
    run = t2i("genrate", env=environment)
    assert run.returncode == BAD_INPUT
    assert "Did you mean 'generate'?" in run.stderr
    run = main("generate")
    assert run.returncode == BAD_INPUT
    assert EXAMPLE in run.stderr


# Pictures


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Run:
    """Two pictures of one prompt, without --json."""
    folder = tmp_path_factory.mktemp("pair")
    return t2i("generate", "-p", PROMPT, "--seed", "7", "--count", "2", "-o", str(folder), env=environment)


@pytest.fixture
def batch(tmp_path: Path, main: Main) -> Run:
    """Two prompts from standard input, no seed, with --json."""
    prompts = f"# shapes\r\n{PROMPT}\r\n\n  # and\n  a green star\n".encode()
    return main("generate", "-p", "-", "--json", "--size", "64x80", "-o", str(tmp_path), stdin=prompts)


def test_stdout_is_the_paths_and_nothing_else(pair: Run) -> None:
    assert pair.returncode == DONE, pair.stderr
    paths = [Path(line) for line in pair.stdout.splitlines()]
    assert [read_record(path).request.seed for path in paths] == [7, 8]
    assert all(read_record(path).request.prompt == PROMPT for path in paths)


def test_stderr_is_plain_lines_of_ours_where_it_is_no_terminal(pair: Run) -> None:
    assert not ESCAPE.search(pair.stderr)
    known = "a large red|plan: |load |encode |step |denoise |decode |save |hint: |picture [12] of 2: seed [78], "
    assert [line for line in pair.stderr.splitlines() if not re.match(known, line)] == []


def test_a_picture_regenerates_itself(pair: Run, tmp_path: Path, main: Main) -> None:
    original, again = pair.stdout.splitlines()[1], tmp_path / "again.png"
    run = main("generate", "--from", original, "--output", str(again), "--quiet")
    assert (run.returncode, run.stdout, run.stderr) == (DONE, f"{again}\n", "")
    with Image.open(original) as first, Image.open(again) as second:
        assert first.tobytes() == second.tobytes()


def test_flags_change_what_a_picture_says(pair: Run, tmp_path: Path, main: Main) -> None:
    original, other = pair.stdout.splitlines()[0], tmp_path / "other.png"
    run = main("generate", "--from", original, "--steps", "1", "--width", "64", "-o", str(other))
    assert run.returncode == DONE, run.stderr
    first, second = read_record(original).request, read_record(other).request
    assert (second.steps, second.width) == (1, 64)
    assert (second.prompt, second.seed, second.height) == (first.prompt, first.seed, first.height)


def test_prompts_from_standard_input_come_in_order_with_one_seed(batch: Run) -> None:
    assert batch.returncode == DONE, batch.stderr
    saved = [line for line in json_lines(batch.stdout) if line["event"] == "image_saved"]
    assert [line["job"] for line in saved] == [0, 1]
    requests = [read_record(line["path"]).request for line in saved]
    assert [request.prompt for request in requests] == [PROMPT, "a green star"]
    assert {request.seed for request in requests} == {line["seed"] for line in saved}
    assert f"seed {saved[0]['seed']}\n" in batch.stderr
    assert len({line["seed"] for line in saved}) == 1
    assert {(line["width"], line["height"]) for line in saved} == {(64, 80)}


def test_a_prompt_needs_no_flag_and_a_folder_with_a_slash_is_made(tmp_path: Path, main: Main) -> None:
    prompt = "a (red:1.4) circle, <lora:ink:0.8> BREAK (red:1.4) at 10:30 (ratio 3:2)"
    run = main("generate", prompt, "--steps", "1", "--size", "3:2", "--json", "--seed", "-1", "-o", f"{tmp_path}/new/")
    assert run.returncode == DONE, run.stderr
    (made,) = (tmp_path / "new").iterdir()
    request = read_record(made).request
    assert (request.prompt, request.width, request.height, request.crop) == (prompt, 160, 112, None)
    said = [line["message"] for line in json_lines(run.stdout) if line["event"] == "noticed"]
    folder = f"made the folder '{tmp_path / 'new'}'."
    idle = "(red:1.4), <lora:ink:0.8>, BREAK mean nothing here and are painted as text."
    assert said[:2] == [folder, idle]
    assert {folder, idle} <= set(run.stderr.splitlines())
    run = main("generate", "a", "red", "circle")
    assert (run.returncode, run.stderr) == (BAD_INPUT, "error: a prompt goes in quotes: t2i generate 'a red circle'\n")


def test_a_size_that_does_not_fit_is_painted_larger_and_cropped_and_repeated(tmp_path: Path, main: Main) -> None:
    first, again, whole = (tmp_path / f"{name}.png" for name in ("first", "again", "whole"))
    fixed = ("--steps", "1", "--seed", "5")
    run = main("generate", "a star", "--size", "100x90", "--fit", *fixed, "--json", "-o", str(first))
    assert run.returncode == DONE, run.stderr
    saved = json_lines(run.stdout)[-1]
    assert (saved["width"], saved["height"]) == (100, 90)
    assert "Size: 100x90," in read_parameters(first)
    assert main("generate", "--from", str(first), "-q", "-o", str(again)).returncode == DONE
    assert main("generate", "--from", str(first), "-q", "--size", "112x96", "-o", str(whole)).returncode == DONE
    with Image.open(first) as one, Image.open(again) as two, Image.open(whole) as all_of_it:
        assert one.size == (100, 90)
        assert one.tobytes() == two.tobytes() == all_of_it.crop((6, 3, 106, 93)).tobytes()


def test_a_plan_takes_the_same_sizes(main: Main) -> None:
    for size, planned in (("portrait", "112x160"), ("128", "128x128"), ("100x90 --fit", "112x96")):
        run = main("plan", "--size", *size.split())
        assert run.stdout.startswith(f"demo {planned}, "), run.stderr


def test_variants_are_painted_each_and_repeated_as_they_were(tmp_path: Path, main: Main) -> None:
    template, fixed = "a {red|blue} star", ("--steps", "1", "--seed", "3", "--size", "64x64")
    run = main("generate", template, *fixed, "-o", str(tmp_path))
    assert run.returncode == DONE, run.stderr
    assert "2 variants: red / blue" in run.stderr.splitlines()
    requests = [read_record(path).request for path in run.stdout.splitlines()]
    assert [(each.prompt, each.template) for each in requests] == [
        ("a red star", template),
        ("a blue star", template),
    ]
    again = main("generate", "--from", run.stdout.splitlines()[1], "-q", "-o", str(tmp_path / "again.png"))
    assert again.returncode == DONE
    assert read_record(tmp_path / "again.png").request == requests[1]
    literal = main("generate", template, *fixed, "--no-variants", "-q", "-o", str(tmp_path / "literal.png"))
    assert literal.returncode == DONE
    assert read_record(tmp_path / "literal.png").request.prompt == template
    (tmp_path / "many.txt").write_text("{1-99} stars\na __nothing__\n")
    run = main("generate", "--prompts-file", str(tmp_path / "many.txt"), "--simulate")
    assert run.returncode == BAD_INPUT
    assert "line 2 of " in run.stderr
    assert "there is no wildcard 'nothing'; write one line each into nothing.txt in" in run.stderr


def test_what_a_wildcard_draws_goes_by_the_seed_and_is_in_the_picture(tmp_path: Path, main: Main) -> None:
    (tmp_path / "shape.txt").write_text("\n".join(f"star {number}" for number in range(100)))
    drawn = ("a __shape__", "--wildcards", str(tmp_path), "--steps", "1", "--seed", "5", "--size", "64x64", "-q")
    several = main("generate", *drawn, "--count", "2", "-o", str(tmp_path))
    assert several.returncode == DONE, several.stderr
    requests = [read_record(path).request for path in several.stdout.splitlines()]
    assert [(each.seed, each.template) for each in requests] == [(5, "a __shape__"), (6, "a __shape__")]
    assert requests[0].prompt != requests[1].prompt
    single = main("generate", *drawn, "-o", str(tmp_path / "single.png"))
    assert single.returncode == DONE
    assert read_record(tmp_path / "single.png").request == requests[0]
    refused = main("generate", "x", "--wildcards", str(tmp_path / "none"))
    assert (refused.returncode, refused.stderr) == (BAD_INPUT, f"error: there is no folder '{tmp_path / 'none'}'.\n")


def documented_fields() -> dict[str, set[str]]:
    joined = re.sub(r",\n {22}", ", ", engine.cli.generate.__doc__ or "")
    table = re.findall(r"^ {4}([a-z_]+)  +([a-z_, ]+)$", joined, flags=re.MULTILINE)
    return {name: set(listed.split(", ")) for name, listed in table if name != "event"}


def test_the_documented_schema_is_the_events_own() -> None:
    common = {field.name for field in fields(events.Event)}
    classes = events.Event.__subclasses__()
    memory = events.MemoryUse(0)
    expected = {}
    for event in classes:
        own = {field.name for field in fields(event)} - common
        name = event(**dict.fromkeys(own), image=0, elapsed_seconds=0.0, memory=memory).name
        expected[name] = own
    assert documented_fields() == {
        **expected,
        "error": {"field", "message"},
        "sheet_saved": {"path", "columns", "rows", "notice"},
    }
    for name in (*common, "job", *(field.name for field in fields(events.MemoryUse))):
        assert f"`{name}`" in (engine.cli.generate.__doc__ or "")


def test_json_lines_are_as_documented(batch: Run) -> None:
    lines = json_lines(batch.stdout)
    schema = documented_fields()
    common = {"event", "job", "image", "elapsed_seconds", "memory"}
    for line in lines:
        assert next(iter(line)) == "event"
        assert line.keys() == common | schema[line["event"]]
    for job in (0, 1):
        names = [line["event"] for line in lines if line["job"] == job]
        assert names[-1] == "image_saved"
        assert names.count("image_saved") == 1
    steps = [line for line in lines if line["event"] == "step_finished"]
    assert [line["step"] for line in steps[: steps[0]["steps"]]] == list(range(1, steps[0]["steps"] + 1))


# Interrupted


def start(*arguments: str, env: Mapping[str, str], stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    # A background shell starts its children with Ctrl+C ignored, which they rightly respect.
    return subprocess.Popen(
        [sys.executable, "-m", "engine", *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@posix
def test_ctrl_c_cancels_within_the_step_and_leaves_no_file(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = ("-p", PROMPT, "--steps", "1000", "--count", "2", "--json", "-o", str(tmp_path))
    with start("generate", *arguments, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "step_finished":
                break
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=60)
    assert process.returncode == CANCELLED
    ended = [line["image"] for line in json_lines(rest) if line["event"] == "cancelled"]
    assert ended == [0, 1]
    assert said.count("cancelling...") == 1
    assert said.endswith("\ncancelled.\n")
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_is_one_line_and_130(number: signal.Signals, environment: dict[str, str]) -> None:
    with start("generate", "-p", PROMPT, env=environment) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"{PROMPT}\n"
        process.send_signal(number)
        printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed, said) == (CANCELLED, "", "cancelled.\n")


@posix
class Stdout(io.TextIOWrapper):
    """Standard output, into memory or into a pipe that nobody reads."""

    def __init__(self, *, unread: bool = False) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        self.bytes = io.BytesIO()
        super().__init__(os.fdopen(writing, "wb") if unread else self.bytes, write_through=True)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.usefixtures("main")
def test_the_picture_itself_goes_to_standard_output(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("generate", "-p", "circle", "--steps", "1", "--size", "64x64", "--seed", "3", "--output", "-")
    stdout = Stdout()
    monkeypatch.setattr(sys, "stdout", stdout)
    assert engine.cli.commands.main(command) == DONE
    picture = scratch / "picture.png"
    picture.write_bytes(stdout.bytes.getvalue())
    assert read_record(picture).request.seed == 3
    assert "seed 3" in capsys.readouterr().err
    picture.unlink()
    assert list(scratch.iterdir()) == []


@posix
@pytest.mark.usefixtures("main")
def test_a_picture_that_standard_output_does_not_take_is_kept_and_named(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Stdout(unread=True))
    assert (
        engine.cli.commands.main(("generate", "-p", "circle", "--steps", "1", "--size", "64x64", "-o", "-")) == UNREAD
    )
    [kept] = scratch.glob("*/*.png")
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("nobody read the picture; it is ")
    assert str(kept) in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--count", "2"), "writes one picture, and these are 2; name a folder."),
        (("--json",), "both write to standard output"),
    ],
)
def test_standard_output_takes_one_picture_alone(main: Main, arguments: tuple[str, ...], words: str) -> None:
    result = main("generate", "-p", "circle", "--output", "-", *arguments)
    assert result.returncode == BAD_INPUT
    assert words in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "writes"),
    [
        (["generate", "-o", "-"], True),
        (["generate", "--output=-"], True),
        (["generate", "-p", "-", "-o", "folder"], False),
    ],
)
def test_a_picture_for_a_closed_standard_output_is_refused(arguments: list[str], writes: bool) -> None:
    assert _writes_there(arguments) is writes


def test_a_reader_that_goes_away_ends_the_run_quietly(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = ("-p", PROMPT, "--steps", "1000", "--json", "--quiet", "-o", str(tmp_path))
    with start("generate", *arguments, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == UNREAD
    assert list(tmp_path.iterdir()) == []


class Ended(BaseException):
    """In the place of the process's end."""


@posix
def test_the_first_signal_asks_and_the_second_ends_it_but_not_in_the_middle_of_a_file(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr("engine.cli.interrupts.os._exit", end)
    before = signal.getsignal(signal.SIGTERM)
    asked: list[str] = []
    with Interrupts() as interrupts:
        interrupts.ask(lambda: asked.append("polite"))
        interrupts.at_last(lambda: asked.append("last"))
        interrupts.saving = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert (asked, interrupts.requested) == (["polite"], True)
        interrupts.saving = False
        with pytest.raises(Ended, match="130"):
            signal.raise_signal(signal.SIGTERM)
    assert asked == ["polite", "last"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert capfd.readouterr().err == "cancelled.\n"


@posix
def test_ctrl_c_pressed_twice_is_quiet_and_130(environment: dict[str, str], tmp_path: Path) -> None:
    with start("generate", "-p", PROMPT, "--steps", "1000", "--json", "-o", str(tmp_path), env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "step_finished":
                break
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)  # two of one kind would arrive as one
        _, said = process.communicate(timeout=60)
    assert process.returncode == CANCELLED
    assert said.endswith("cancelled.\n")
    assert "Traceback" not in said


@posix
def test_ctrl_c_before_anybody_listens_is_quiet_and_130(environment: dict[str, str]) -> None:
    code = "import os, signal; from engine.cli.entry import run; run(lambda _: os.kill(os.getpid(), signal.SIGINT), [])"
    command = [sys.executable, "-c", "import signal; signal.signal(2, signal.default_int_handler); " + code]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (CANCELLED, "", "")


@posix
def test_ctrl_c_after_the_work_is_done_changes_nothing(environment: dict[str, str]) -> None:
    code = (
        "import os, signal; from engine.cli.entry import run; run(lambda _: 0, []); os.kill(os.getpid(), signal.SIGINT)"
    )
    command = [sys.executable, "-c", "import signal; signal.signal(2, signal.default_int_handler); " + code]
    assert subprocess.run(command, env=environment).returncode == 0


@posix
def test_an_interrupt_that_a_library_dropped_is_found() -> None:
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            interrupts.ask(lambda: None)


@posix
def test_an_interrupt_that_a_library_made_an_error_of_is_found() -> None:
    def half_import() -> None:
        with Interrupts():
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                raise ImportError("half imported") from None

    with pytest.raises(KeyboardInterrupt):
        half_import()


# On a terminal, and when all else fails


@posix
def test_a_terminal_gets_a_live_display_and_stdout_still_the_path(tmp_path: Path, environment: dict[str, str]) -> None:
    import pty

    ours, theirs = pty.openpty()
    env = {**environment, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    arguments = ("-p", "a [red] circle \x1b[2J[/red]", "--steps", "2", "-o", str(tmp_path / "a.png"))
    with start("generate", *arguments, env=env, stderr=theirs) as process:
        os.close(theirs)
        screen = b""
        try:
            while part := os.read(ours, 65536):
                screen += part
        except OSError:  # how Linux says that the other end was closed
            pass
        printed, _ = process.communicate(timeout=60)
    os.close(ours)
    assert (process.returncode, printed) == (DONE, f"{tmp_path / 'a.png'}\n")
    assert b"a [red] circle \\x1b[2J[/red]" in screen, "the prompt is text, no markup and no escape sequence"
    assert b"\x1b[2J" not in screen
    assert b"denoise" in screen
    assert screen.count(b"\x1b[?25l") == screen.count(b"\x1b[?25h") >= 1, "the cursor is given back"


def test_an_unexpected_error_is_a_sentence_and_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise RuntimeError("bad \x1b[31mluck")

    monkeypatch.setattr("engine.engine.Engine.open", break_down)
    monkeypatch.setenv("TEXTTOIMAGETOOL_STATE_DIR", str(tmp_path / "state"))
    code = engine.cli.commands.main(["generate", "-p", PROMPT, "--json", "--quiet", "-o", str(tmp_path)])
    printed = capsys.readouterr()
    log = tmp_path / "state" / "error.log"
    assert code == FAILED
    assert printed.err == f"error: something unexpected went wrong (RuntimeError: bad \\x1b[31mluck); see {log}.\n"
    assert json.loads(printed.out)["field"] is None
    assert "Traceback" in log.read_text()


# Pictures from elsewhere, and places that go away


def with_record(original: str, target: Path, **changes: Any) -> str:
    """A copy of a picture whose record differs."""
    record = replace(read_record(original), **changes)
    with Image.open(original) as image:
        target.write_bytes(encode_png(image, record))
    return str(target)


def test_what_changed_since_a_picture_was_made_is_said(pair: Run, tmp_path: Path, main: Main) -> None:
    original = pair.stdout.splitlines()[0]
    versions = {**read_record(original).versions, "torch": "0.9"}
    older = with_record(original, tmp_path / "older.png", versions=versions, model_hash="00" * 32)
    run = main("generate", "--from", older, "-o", str(tmp_path / "new.png"))
    assert run.returncode == DONE
    assert "the model, torch changed since this picture was made" in run.stderr


def test_the_number_of_threads_is_repeated(pair: Run, tmp_path: Path, main: Main) -> None:
    original, copy, new = pair.stdout.splitlines()[0], tmp_path / "copy.png", tmp_path / "new.png"
    threads = 1 + read_record(original).reproduce["threads"]
    with_record(original, copy, reproduce={"batch": 1, "threads": threads})
    before = torch.get_num_threads()
    try:
        assert main("generate", "--from", str(copy), "-o", str(new)).returncode == DONE
    finally:
        torch.set_num_threads(before)
    assert read_record(new).reproduce["threads"] == threads


@pytest.mark.parametrize("share", ["\\\\host\\share\\model", "//host/share/model"])
def test_a_picture_cannot_open_a_network_share(share: str, pair: Run, tmp_path: Path, main: Main) -> None:
    picture = with_record(pair.stdout.splitlines()[0], tmp_path / "share.png", model=share)
    run = main("generate", "--from", picture)
    assert run.returncode == BAD_INPUT
    assert "say it with --model" in run.stderr


def test_another_model_chooses_its_own_guidance(pair: Run, tmp_path: Path, main: Main) -> None:
    save_tiny(tmp_path / "schnell", guided=False)
    original, new = pair.stdout.splitlines()[0], tmp_path / "new.png"
    assert read_record(original).request.guidance is not None
    run = main("generate", "--from", original, "--model", str(tmp_path / "schnell"), "-o", str(new))
    assert run.returncode == DONE, run.stderr
    assert read_record(new).request.guidance is None
    assert "left out: guidance 3" in run.stderr.splitlines()


def forge_picture(folder: Path, **changes: str) -> str:
    """A picture that Forge made, with settings that have no counterpart here."""
    details = {
        "Steps": "2",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Simple",
        "CFG scale": "2",
        "Seed": str(2**64 - 1),
        "Distilled CFG Scale": "2.5",
        "Size": "1000x1000",
        "Model": "flux1-dev",
        "Version": "f2.0.1",
    }
    info = PngInfo()
    line = ", ".join(f"{name}: {value}" for name, value in (details | changes).items())
    info.add_text("parameters", f"a red circle <lora:ink:1>\nNegative prompt: a blue square\n{line}")
    path = folder / "forge.png"
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    return str(path)


def test_a_picture_of_another_program_is_repeated_and_what_is_left_out_is_said(tmp_path: Path, main: Main) -> None:
    path = forge_picture(tmp_path)
    run = main("generate", "--from", path)
    assert (run.returncode, run.stdout) == (BAD_INPUT, "")
    assert "add --size 1008x1008, the nearest one, or --size 1000x1000 --fit to have it cropped." in run.stderr
    cropped = ("--size", "100x90", "--fit", "-q", "-o", str(tmp_path / "cropped.png"))
    assert main("generate", "--from", path, *cropped).returncode == DONE
    assert read_record(tmp_path / "cropped.png").request.crop == "100x90"
    run = main("generate", "--from", path, "--size", "64x64", "--json", "-o", str(tmp_path))
    assert run.returncode == DONE, run.stderr
    account = (
        "taken over from Forge: prompt, negative prompt, steps, seed, guidance, CFG scale; "
        "left out: LoRA ink, sampler DPM++ 2M, model flux1-dev"
    )
    assert account in run.stderr.splitlines()
    noticed, *others = [line for line in json_lines(run.stdout) if line["event"] == "noticed"]
    assert (noticed["message"], noticed["job"], noticed["image"]) == (account, 0, 0)
    assert [each["message"] for each in others] == [
        "demo was made for 128x128 pixels; at 64x64 things may be repeated or cut off."
    ]
    (made,) = tmp_path.glob(f"000001_seed{2**64 - 1}_*.png")
    request = read_record(made).request
    assert (request.prompt, request.steps, request.seed) == ("a red circle", 2, 2**64 - 1)
    assert (request.guidance, request.cfg, request.negative_prompt) == (2.5, 2.0, "a blue square")
    again = main("generate", "--from", str(made), "-o", str(tmp_path / "again.png"))
    assert again.returncode == DONE
    with Image.open(made) as one, Image.open(tmp_path / "again.png") as two:
        assert one.tobytes() == two.tobytes()


def test_a_guidance_that_a_model_does_not_take_is_left_out_and_said(tmp_path: Path, main: Main) -> None:
    save_tiny(tmp_path / "schnell", guided=False)
    flags = ("--model", str(tmp_path / "schnell"), "--size", "64x64", "--seed", "-1", "-o", str(tmp_path / "new.png"))
    run = main("generate", "--from", forge_picture(tmp_path), *flags)
    assert run.returncode == DONE, run.stderr
    account = (
        "taken over from Forge: prompt, negative prompt, steps, CFG scale; "
        "left out: LoRA ink, sampler DPM++ 2M, guidance 2.5"
    )
    assert account in run.stderr.splitlines()
    request = read_record(tmp_path / "new.png").request
    assert (request.guidance, request.cfg) == (None, 2.0)
    assert request.seed is not None
    assert request.seed < 2**32  # drawn anew


def test_the_demo_at_its_own_size_needs_no_note(tmp_path: Path, main: Main) -> None:
    run = main("generate", "-p", PROMPT, "--steps", "1", "-o", str(tmp_path / "new.png"))
    assert run.returncode == DONE
    assert "was made for" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "x" * 300), "there is no model"),
        (("--model", "~nosuchuser/model"), "there is no model"),
        (("--device", "cudaxyz"), "device must be auto, cpu, cuda or cuda:N"),
        (("--device", "mps"), "device must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_names_that_mean_nothing_are_bad_input(arguments: tuple[str, str], words: str, main: Main) -> None:
    run = main("generate", "-p", PROMPT, *arguments)
    assert run.returncode == BAD_INPUT
    assert words in run.stderr
    assert run.stderr.count("\n") == 1


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
SHORT = ("generate", "-p", PROMPT, "--steps", "1", "--seed", "7", "-q")


@needs_full
@pytest.mark.parametrize("more", [(), ("--json",)], ids=["path", "json"])
def test_a_path_that_cannot_be_printed_is_said_on_stderr(
    more: tuple[str, ...], environment: dict[str, str], main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        run = main(*SHORT, *more, "-o", str(tmp_path))
    made = list(tmp_path.glob("*.png"))
    assert run.returncode == FAILED
    assert run.stderr.startswith("error: standard output cannot be written to (no space left on device); ")
    if more:  # the first event could not be written: nothing was begun
        assert not made
    else:
        assert run.stderr.endswith(f"the picture is '{made[0]}'.\n")


@needs_full
@pytest.mark.parametrize("arguments", ["generate --help", "keys", "--version", "doctor --json"])
def test_whatever_cannot_be_printed_is_one_sentence(arguments: str, environment: dict[str, str]) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "tui", *arguments.split()]
        run = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == FAILED
    assert run.stderr.startswith("error: standard output cannot be written to (no space left on device)")
    assert run.stderr.count("\n") == 1


@needs_full
def test_progress_that_cannot_be_written_stops_no_picture(
    environment: dict[str, str], main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        run = main(*SHORT[:-1], "-o", str(tmp_path / "a.png"))
        assert (run.returncode, run.stdout) == (DONE, f"{tmp_path / 'a.png'}\n")


@posix
@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("exec -m tui <&-", BAD_INPUT, "error: the app needs a terminal; "),
        ("exec -m tui smoke >&-", FAILED, "error: standard output is closed, "),
        ("exec -m engine doctor >&-", FAILED, "error: standard output is closed, "),
        ("mkdir gone; cd gone; rmdir ../gone; exec -m tui generate -p x", FAILED, "error: the folder that this was "),
    ],
)
def test_what_is_missing_at_the_start_is_one_sentence(
    command: str, code: int, words: str, environment: dict[str, str], tmp_path: Path
) -> None:
    shell = command.replace("exec", f"exec {sys.executable}")
    run = subprocess.run(["sh", "-c", shell], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert run.returncode == code
    assert run.stderr.startswith(words)
    assert run.stderr.count("\n") == 1


@posix
def test_a_picture_needs_no_output_to_be_made(environment: dict[str, str], tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m tui generate -p x --steps 1 -o {tmp_path / 'a.png'} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], env=environment).returncode == DONE
    assert read_record(tmp_path / "a.png").request.prompt == "x"


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS counts on Linux")
def test_too_little_memory_is_said_in_words_of_ours(environment: dict[str, str], tmp_path: Path) -> None:
    command = f"ulimit -v 700000; exec {sys.executable} -m tui generate -q -p x --steps 1 -o {tmp_path / 'a.png'}"
    run = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    assert run.returncode == FAILED
    assert run.stderr.startswith("error: the 684 MiB that this process may have (ulimit -v) are too little")
    assert run.stderr.count("\n") == 1


def test_a_picture_whose_folder_went_away_is_rescued_and_exits_1(
    tmp_path: Path, environment: dict[str, str], main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    generate = Engine.generate

    def lose_the_folder(*arguments: Any) -> Iterator[events.Event]:
        for event in generate(*arguments):
            if isinstance(event, events.Planned):
                folder.rmdir()
            yield event

    monkeypatch.setattr(Engine, "generate", lose_the_folder)
    run = main("generate", "-p", PROMPT, "--json", "-o", str(folder / "a.png"))
    saved = json_lines(run.stdout)[-1]
    assert (run.returncode, saved["event"]) == (FAILED, "image_saved")
    assert Path(saved["path"]).parent == Path(environment["TEXTTOIMAGETOOL_STATE_DIR"]) / "rescued"
    assert read_record(saved["path"]).request.prompt == PROMPT
    assert "so it is kept as" in run.stderr
