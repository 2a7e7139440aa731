"""Settings: what a file and flags may say, and what one is told about the rest."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tui.settings import MAX_CONFIG_BYTES, Settings, merge, parse_arguments, read_config

ROOT = Path(__file__).parent.parent


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str | bytes], tuple[dict[str, Any], str]]:
    """Write a configuration and read it; its message without the path."""

    def write_and_read(content: str | bytes) -> tuple[dict[str, Any], str]:
        path = tmp_path / "config.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        values, message = read_config(path)
        if message is None:
            return values, ""
        assert message.startswith(f"'{path}'")
        assert message.isprintable()
        return values, message.removeprefix(f"'{path}'").strip(": ")

    return write_and_read


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_arguments(arguments)
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.removesuffix("\n").isprintable()
    assert output.err.startswith("error: ")
    assert output.err.endswith("; see t2i --help.\n")
    return output.err.removeprefix("error: ").removesuffix("; see t2i --help.\n")


def test_every_setting_can_be_in_the_file(read) -> None:
    values, message = read("""
        model = "flux-dev"
        output = "~/pictures"
        vram = "11.5GiB"
        ram = "16GB"
        simulate = true
        theme = "light"
        preview = "low"
        fps = 12
        mouse = false
        ascii = true
        color = 256
        images = "on"
        opener = "feh --fullscreen"
        host = "ann@gpu.example.org"
        open_forwarded = true
        enter_submits = false
    """)
    assert message == ""
    assert merge(values, {}) == Settings(
        model="flux-dev",
        output=Path(os.path.expanduser("~/pictures")),
        vram="11.5GiB",
        ram="16GB",
        simulate=True,
        theme="light",
        preview="low",
        fps=12,
        mouse=False,
        ascii=True,
        color="256",
        images="on",
        opener="feh --fullscreen",
        host="ann@gpu.example.org",
        open_forwarded=True,
        enter_submits=False,
    )


def test_flags_win_over_the_file_and_the_file_over_defaults() -> None:
    merged = merge({"fps": 5, "theme": "light"}, parse_arguments(["--fps", "auto", "--no-mouse"]))
    assert merged == Settings(fps="auto", theme="light", mouse=False)
    assert merge({}, {}) == Settings()


def test_a_missing_or_empty_file_is_fine(read, tmp_path: Path) -> None:
    assert read_config(tmp_path / "nothing" / "config.toml") == ({}, None)
    assert read("") == ({}, "")
    assert read(b"\xef\xbb\xbffps = 5\r\n") == ({"fps": 5}, "")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("fps = 0", "fps must be auto or a whole number from 1 to 60, got 0"),
        ("fps = 61", "fps must be auto or a whole number from 1 to 60, got 61"),
        ("fps = 10.0", "fps must be auto or a whole number from 1 to 60, got 10.0"),
        ("fps = true", "fps must be auto or a whole number from 1 to 60, got true"),
        ('fps = "10"', "fps must be auto or a whole number from 1 to 60, got '10'"),
        (f"fps = 0x{'f' * 9000}", "fps must be auto or a whole number from 1 to 60, got a huge number"),
        ("fps = nan", "fps must be auto or a whole number from 1 to 60, got nan"),
        ("mouse = 1", "mouse must be true or false, got 1"),
        ("preview = true", "preview must be auto, off, low or high, got true"),
        ('color = "purple"', "color must be auto, truecolor, 256, 16 or none, got 'purple'"),
        (f"color = 0x{'f' * 9000}", "color must be auto, truecolor, 256, 16 or none, got a huge number"),
        ("images = []", "images must be auto, on or off, got a list"),
        ("theme.name = 1", "theme must be the name of a theme, got a table"),
        ("theme = 1999-01-01", "theme must be the name of a theme, got a date or a time"),
        ('model = " "', "model must be the name or the folder of a model, got ' '"),
        ('model = "a\\u0000b"', "model must be the name or the folder of a model, got 'a\\x00b'"),
        ("vram = 12", "vram 12 has no unit; write 12GiB, or 12GB for 12 * 10^9 bytes"),
        ('vram = "12gb"', "vram '12gb' has no unit that is known; write 12GB."),
        ("ram = true", "ram must be auto or a size such as 12GiB, got true"),
        ("ram = nan", "ram must be auto or a size from 1MiB to less than 1TiB, such as 12GiB, got 'nan'"),
        (f"ram = 0x{'f' * 9000}", "ram must be auto or a size such as 12GiB, got a huge number"),
        ("simulate = 1", "simulate must be true or false, got 1"),
        ('output = ""', "output must be a folder, got ''"),
        (f'output = "\\u001b[2J{"x" * 99}"', f"output must be a folder, got '\\x1b[2J{'x' * 49}..."),
        (
            'host = "-oProxyCommand=x"',
            "host must be the name of this machine for ssh, such as gpu.example.org, got '-oP",
        ),
        ('host = "a b"', "host must be the name of this machine for ssh, such as gpu.example.org, got 'a b'"),
        ("previw = 1", "there is no key 'previw', the nearest is preview"),
        ("open-forwarded = true", "there is no key 'open-forwarded', the nearest is open_forwarded"),
        ("FPS = 1", "there is no key 'FPS', the nearest is fps"),
        ('"\\u001b[2J\\u202e" = 1', "there is no key '\\x1b[2J\\u202e', only model, output, vram, ram, simulate, "),
    ],
)
def test_a_wrong_line_is_explained_and_the_others_count(line: str, fault: str, read) -> None:
    values, message = read(f"enter_submits = false\n{line}\n")
    assert values == {"enter_submits": False}
    assert message.startswith(fault)
    assert message.endswith(". Defaults stand in for what is wrong.")


def test_everything_wrong_is_in_one_message(read) -> None:
    values, message = read('fps = 99\nmouse = "no"\ncolor = "16"\ncolour = 1\nascci = true\n')
    assert values == {"color": "16"}
    assert message == (
        "fps must be auto or a whole number from 1 to 60, got 99; mouse must be true or false, got 'no'; "
        "there is no key 'colour', the nearest is color; there is no key 'ascci', the nearest is ascii. "
        "Defaults stand in for what is wrong."
    )


def test_a_flood_of_unknown_keys_is_counted(read) -> None:
    _, message = read("\n".join(f"key{number} = 1" for number in range(3000)))
    named = message.count("there is no key")
    assert named >= 5
    assert message.endswith(f" and {3000 - named} more. Defaults stand in for what is wrong.")
    assert len(message) <= 400


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("fps = 1\nmouse =\n", "it is not TOML: Invalid value (at line 2, column 8)"),
        ("fps = 1\nfps = 2\n", "it is not TOML: Cannot overwrite a value (at line 2, column 8)"),
        ("theme = \x1b[2J", "it is not TOML: Invalid value (at line 1, column 9)"),
        (b"fps = 1\ntheme = '\xff'\n", "line 2 is not UTF-8 text; save the file as UTF-8"),
        ("fps = 1".encode("utf-16"), "line 1 is not UTF-8 text; save the file as UTF-8"),
        ("fps = 1\0", "it is not TOML: "),
        ("#" * MAX_CONFIG_BYTES + "#", "it is larger than 64 KiB"),
        ("fps = " + "[" * 30_000, "it holds a value that is nested too deep or has too many digits"),
        ("fps = " + "1" * 30_000, "it holds a value that is nested too deep or has too many digits"),
    ],
)
def test_a_file_that_cannot_be_used_is_explained(content: str | bytes, reason: str, read) -> None:
    values, message = read(content)
    assert values == {}
    assert message.startswith(f"is not used: {reason}")


def test_the_largest_file_is_read(read) -> None:
    comment = "fps = 7\n#"
    assert read(comment + "x" * (MAX_CONFIG_BYTES - len(comment))) == ({"fps": 7}, "")


def test_a_deep_table_is_no_trouble(read) -> None:
    assert read(f"fps.{'.'.join('a' * 2000)} = 1")[1].startswith("fps must be auto")


def test_a_folder_or_something_unreadable_in_its_place_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "config.toml"
    folder.mkdir()
    assert read_config(folder) == ({}, f"'{folder}' is not used: it is a folder, not a file.")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    path = tmp_path / "b\n.toml"
    values, message = read_config(path)
    assert values == {}
    assert message is not None
    assert message.endswith("b\\n.toml' is not used: it cannot be read (Permission denied).")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")
    assert "it is not a file of text" in str(read_config(tmp_path / "config.toml")[1])


@pytest.mark.parametrize("seed", range(200))
def test_noise_in_the_file_is_never_a_traceback(seed: int, read) -> None:
    dice = random.Random(seed)
    pieces = [
        "fps",
        "theme",
        "color",
        "=",
        " = ",
        "1",
        '"x"',
        "\n",
        "[",
        "]",
        "{",
        "}",
        ".",
        "#",
        '"',
        "é",
        "\x1b",
        "true",
    ]
    values, _ = read("".join(dice.choices(pieces, k=dice.randint(1, 30))))
    merge(values, {})


def test_flags_are_values_of_settings() -> None:
    flags = parse_arguments(
        [
            *"--model m --output ~/p --vram 12GiB --ram=auto --simulate --theme=t --preview low".split(),
            *"--fps 60 --no-mouse --color 16 --ascii --images off".split(),
        ]
    )
    assert flags == {
        "model": "m",
        "output": Path(os.path.expanduser("~/p")),
        "vram": "12GiB",
        "ram": "auto",
        "simulate": True,
        "theme": "t",
        "preview": "low",
        "fps": 60,
        "mouse": False,
        "color": "16",
        "ascii": True,
        "images": "off",
    }
    assert parse_arguments([]) == {}
    assert parse_arguments(["--fps", "3", "--fps", "4"]) == {"fps": 4}
    assert parse_arguments(["--output", "~nobody-of-that-name"]) == {
        "output": Path(os.path.expanduser("~nobody-of-that-name"))
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--fps", "0"], "--fps must be auto or a whole number from 1 to 60, got '0'"),
        (["--fps", "-1"], "--fps must be auto or a whole number from 1 to 60, got '-1'"),
        (["--fps", "ten"], "--fps must be auto or a whole number from 1 to 60, got 'ten'"),
        (["--fps", "1e9"], "--fps must be auto or a whole number from 1 to 60, got '1e9'"),
        (["--fps", ""], "--fps must be auto or a whole number from 1 to 60, got ''"),
        (["--fps", "9" * 5000], f"--fps must be auto or a whole number from 1 to 60, got '{'9' * 56}..."),
        (["--fps"], "--fps needs a value: auto or a whole number from 1 to 60"),
        (["--fps", "--ascii"], "--fps needs a value: auto or a whole number from 1 to 60"),
        (["--preview", "medium"], "--preview must be auto, off, low or high, got 'medium'"),
        (["--color=rgb"], "--color must be auto, truecolor, 256, 16 or none, got 'rgb'"),
        (["--images", "yes"], "--images must be auto, on or off, got 'yes'"),
        (["--model", ""], "--model must be the name or the folder of a model, got ''"),
        (["--output="], "--output must be a folder, got ''"),
        (["--theme", "\x1b[2J"], "--theme must be the name of a theme, got '\\x1b[2J'"),
        (["--vram", "12"], "--vram 12 has no unit; write 12GiB, or 12GB for 12 * 10^9 bytes"),
        (["--vram=0GiB"], "--vram must be auto or a size from 1MiB to less than 1TiB, such as 12GiB, got '0GiB'"),
        (["--ram", "\x1b"], "--ram must be auto or a size from 1MiB to less than 1TiB, such as 12GiB, got '\\x1b'"),
        (["--ram"], "--ram needs a value: auto or a size such as 12GiB"),
        (["--simulate=1"], "--simulate takes no value; write --simulate alone"),
        (["plam"], "'plam' is not a verb of t2i, the nearest is plan"),
        (["--ascii=1"], "--ascii takes no value; write --ascii alone"),
        (["--no-mouse=yes"], "--no-mouse takes no value; write --no-mouse alone"),
        (["--colour", "256"], "'--colour' is not a flag of t2i, the nearest is --color"),
        (["--mouse"], "'--mouse' is not a flag of t2i, the nearest is --no-mouse"),
        (["--Theme=x"], "'--Theme' is not a flag of t2i, the nearest is --theme"),
        (["--prev", "low"], "'--prev' is not a flag of t2i, the nearest is --preview"),
        (["--prompt", "a cat"], "'--prompt' is not a flag of t2i"),
        (["-x"], "'-x' is not a flag of t2i"),
        (["--\x1b[2J"], "'--\\x1b[2J' is not a flag of t2i"),
        (["--"], "'--' is not a flag of t2i"),
        (["genrate"], "'genrate' is not a verb of t2i, the nearest is generate"),
        (["a cat"], "'a cat' is not a verb of t2i"),
        ([""], "'' is not a verb of t2i"),
        (["--ascii", "doctor"], "the verb comes first: t2i doctor ..."),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(arguments, capsys) == sentence


@pytest.mark.parametrize("seed", range(200))
def test_noise_on_the_command_line_is_never_a_traceback(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    dice = random.Random(seed)
    words = [
        "--fps",
        "--fps=",
        "3",
        "-",
        "--",
        "-1",
        "--ascii",
        "=",
        "",
        "--model",
        "é",
        "\udc80",
        "-a",
        "--=x",
        "@x",
        "-hx",
    ]
    code: object = 0
    try:
        merge({}, parse_arguments(dice.choices(words, k=dice.randint(1, 6))))
    except SystemExit as stop:
        code = stop.code
    assert (code, capsys.readouterr().err.count("\n")) in ((0, 0), (2, 1))


def test_help_lists_the_flags_and_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("-h", "--help"):
        with pytest.raises(SystemExit) as stop:
            parse_arguments([flag])
        assert not stop.value.code
        shown = capsys.readouterr().out
        names = "model output vram ram theme preview fps simulate no-mouse color ascii images version".split()
        assert [name for name in names if f"--{name}" not in shown] == []
        verbs = shown.partition("verbs:\n")[2].splitlines()
        assert [line.split()[1] for line in verbs] == "generate plan presets models doctor smoke keys".split()


def test_version_wins_over_other_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--version", "--fps", "0"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("TextToImageTool ")


def test_without_stderr_bad_input_still_ends_with_2() -> None:
    code = "import sys; sys.stderr = None; from tui.settings import parse_arguments; parse_arguments(['--fps', '0'])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 2


@pytest.mark.parametrize("module", ["tui.settings", "tui.profile", "engine.prompts.variants"])
def test_what_runs_before_the_first_paint_imports_little(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    unwanted = {"engine.cli.progress", "engine.events", "numpy", "platformdirs", "rich", "textual", "tomllib", "torch"}
    assert unwanted & set(result.stdout.split()) == set()
