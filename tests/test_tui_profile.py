"""The terminal profile: what is drawn and how often, from the environment and the settings."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.cli import colors
from tui.profile import TerminalProfile, detect, environment, prepare
from tui.settings import Settings

ROOT = Path(__file__).parent.parent
LOCAL = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "en_US.UTF-8"}
SSH = {"TERM": "xterm-256color", "SSH_CONNECTION": "10.0.0.1 50000 10.0.0.2 22", "LANG": "en_US.UTF-8"}
TMUX = {"TERM": "tmux-256color", "TMUX": "/tmp/tmux-1000/default,1,0", "LANG": "en_US.UTF-8"}
DEFAULTS = Settings()


def seen(env: dict[str, str], settings: Settings = DEFAULTS, platform: str = "linux") -> TerminalProfile:
    return detect(env, settings, platform, "utf-8")


def test_a_local_terminal_gets_everything() -> None:
    profile = seen(LOCAL)
    assert profile == TerminalProfile(
        ssh=False,
        multiplexer=None,
        color="truecolor",
        fps=10,
        preview="high",
        mouse=True,
        ascii=False,
        images=True,
    )
    assert (profile.preview_columns, profile.preview_rows, profile.previews_per_second) == (64, 32, 4)
    assert profile.label == "local truecolor"


def test_ssh_gets_less() -> None:
    profile = seen(SSH)
    assert (profile.fps, profile.preview, profile.images, profile.mouse) == (4, "low", False, True)
    assert (profile.preview_columns, profile.preview_rows, profile.previews_per_second) == (24, 12, 1.6)
    assert profile.label == "ssh 256c"
    wide = seen({**SSH, "COLORTERM": "truecolor"})
    assert (wide.color, wide.preview_columns, wide.preview_rows) == ("truecolor", 32, 16)


@pytest.mark.parametrize("name", ["SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY"])
def test_ssh_is_known_by_any_of_its_variables(name: str) -> None:
    assert seen({**LOCAL, name: "x"}).ssh
    assert not seen({**LOCAL, name: ""}).ssh


def test_tmux_gets_fewer_frames_and_the_whole_preview() -> None:
    profile = seen(TMUX)
    assert (profile.fps, profile.preview, profile.previews_per_second, profile.images) == (4, "high", 1.6, False)
    assert profile.label == "tmux 256c"
    assert seen({**TMUX, **SSH}).label == "ssh tmux 256c"


@pytest.mark.parametrize(
    ("env", "multiplexer"),
    [
        ({"TMUX": "x"}, "tmux"),
        ({"TERM": "tmux-256color"}, "tmux"),
        ({"TERM": "screen-256color", "TMUX": "x"}, "tmux"),
        ({"TERM": "screen.xterm-256color"}, "screen"),
        ({"STY": "1.pts"}, "screen"),
        ({"ZELLIJ": "0"}, "zellij"),
        ({"TERM": "xterm-256color", "TMUX": ""}, None),
    ],
)
def test_multiplexers_are_told_apart(env: dict[str, str], multiplexer: str | None) -> None:
    assert seen(env).multiplexer == multiplexer


@pytest.mark.parametrize(
    ("env", "platform", "color"),
    [
        ({"TERM": "xterm-256color"}, "linux", "256"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "linux", "truecolor"),
        ({"TERM": "xterm-256color", "COLORTERM": "24BIT"}, "linux", "truecolor"),
        ({"TERM": "xterm-256color", "COLORTERM": "yes"}, "linux", "256"),
        ({"TERM": "tmux-256color"}, "linux", "256"),
        ({"TERM": "tmux-256color", "TMUX": "x", "COLORTERM": "truecolor"}, "linux", "truecolor"),
        ({"TERM": "xterm-kitty"}, "linux", "truecolor"),
        ({"TERM": "xterm-ghostty"}, "linux", "truecolor"),
        ({"TERM": "alacritty"}, "linux", "truecolor"),
        ({"TERM": "foot"}, "linux", "truecolor"),
        ({"TERM": "xterm-direct"}, "linux", "truecolor"),
        ({"TERM": "screen"}, "linux", "16"),
        ({"TERM": "screen", "STY": "x", "COLORTERM": "truecolor"}, "linux", "16"),
        ({"TERM": "linux"}, "linux", "16"),
        ({"TERM": "xterm"}, "linux", "16"),
        ({}, "linux", "16"),
        ({"TERM": "dumb"}, "linux", "none"),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, "linux", "none"),
        ({"TERM": "xterm-256color", "WT_SESSION": "x"}, "linux", "truecolor"),
        ({}, "win32", "truecolor"),
        ({"TERM": "cygwin"}, "win32", "16"),
        ({**LOCAL, "NO_COLOR": "0"}, "linux", "none"),
        ({**LOCAL, "NO_COLOR": ""}, "linux", "truecolor"),
        ({**LOCAL, "TERM_PROGRAM": "Apple_Terminal"}, "linux", "256"),
        ({**LOCAL, "TERM_PROGRAM": "Apple_Terminal", "TERM": "xterm"}, "linux", "16"),
        ({**SSH, "TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "linux", "truecolor"),
        ({"TERM": "screen", "TMUX": "x"}, "linux", "256"),
    ],
)
def test_colours_are_those_that_the_terminal_says_it_has(env: dict[str, str], platform: str, color: str) -> None:
    assert seen(env, platform=platform).color == color


@pytest.mark.parametrize(
    ("env", "features", "color"),
    [
        ({"TERM": "tmux-256color"}, "bpaste,RGB,title", "truecolor"),
        ({"TERM": "screen"}, "RGB", "truecolor"),
        ({"TERM": "screen", "COLORTERM": "truecolor"}, "bpaste,title", "256"),
        ({"TERM": "screen", "COLORTERM": "truecolor"}, None, "truecolor"),
        ({"TERM": "tmux-256color", "NO_COLOR": "1"}, "RGB", "none"),
    ],
)
def test_in_tmux_the_features_of_its_terminal_count(env: dict[str, str], features: str | None, color: str) -> None:
    assert detect({"TMUX": "x", **env}, DEFAULTS, "linux", "utf-8", features).color == color
    forced = detect({"TMUX": "x", **env}, Settings(color="16"), "linux", "utf-8", features)
    assert forced.color == "16"


@pytest.mark.parametrize(
    ("program", "seconds", "features"),
    [
        ('echo "$TMUX: $*"', 60, "here: display-message -p #{client_termfeatures}"),
        ("exit 1", 60, None),
        ("echo", 60, None),  # no client is attached
        ("exec sleep 600", 0.1, None),
    ],
)
def test_tmux_is_asked_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, seconds: float, features: str | None
) -> None:
    (tmp_path / "tmux").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "tmux").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(colors, "TMUX_TIMEOUT", seconds)
    assert colors.tmux_features({"TMUX": "here"}) == features
    assert colors.tmux_features({}) is None


def test_an_explicit_colour_overrules_no_color_and_auto_does_not() -> None:
    env = {**LOCAL, "NO_COLOR": "1"}
    assert seen(env, Settings(color="256")).color == "256"
    assert seen(env, Settings(color="auto")).color == "none"
    assert seen(LOCAL, Settings(color="none")).label == "local mono"


@pytest.mark.parametrize(
    ("env", "encoding", "ascii_only"),
    [
        ({"LANG": "en_US.UTF-8"}, "utf-8", False),
        ({"LANG": "de_DE.utf8"}, "UTF-8", False),
        ({"LC_CTYPE": "UTF-8"}, "utf_8", False),
        ({}, "utf-8", False),
        ({}, None, False),
        ({}, "cp65001", False),
        ({}, "cp1252", True),
        ({}, "ascii", True),
        ({"LANG": "en_US.UTF-8"}, "iso8859-1", True),
        ({"LANG": "C"}, "utf-8", True),
        ({"LANG": "C"}, None, True),
        ({"LC_ALL": "POSIX", "LANG": "en_US.UTF-8"}, "utf-8", True),
        ({"LC_ALL": "C.UTF-8", "LANG": "C"}, "utf-8", False),
        ({"LC_CTYPE": "C.UTF-8", "LANG": "C"}, "utf-8", True),
        ({"LC_CTYPE": "C.UTF-8"}, "utf-8", False),
        ({"LC_CTYPE": "C.UTF-8", "LANG": "de_DE.ISO-8859-1"}, "utf-8", True),
        ({"LC_CTYPE": "C.UTF-8", "LANG": "de_DE.UTF-8"}, "utf-8", False),
        ({"LC_ALL": "de_DE.ISO-8859-1", "LANG": "de_DE.UTF-8"}, "utf-8", True),
        ({"LC_CTYPE": "en_US.UTF-8", "LANG": "C"}, "utf-8", False),
    ],
)
def test_without_utf_8_there_is_ascii_alone(env: dict[str, str], encoding: str | None, ascii_only: bool) -> None:
    profile = detect({"TERM": "xterm-256color", **env}, DEFAULTS, "linux", encoding)
    assert profile.ascii is ascii_only
    assert profile.label == ("local 256c ascii" if ascii_only else "local 256c")


@pytest.mark.skipif(sys.platform != "linux", reason="Python rewrites the C locale so on Linux")
@pytest.mark.parametrize(
    ("env", "ascii_only"),
    [
        ({"LANG": "C"}, True),
        ({"LANG": "C.UTF-8"}, False),
        ({"LANG": "xx_XX.ISO-8859-1"}, True),  # none of these is installed
        ({"LANG": "xx_XX.UTF-8"}, False),
        ({"LC_CTYPE": "xx_XX.ISO-8859-1", "LANG": "C.UTF-8"}, True),
        ({"LC_ALL": "xx_XX.ISO-8859-1", "LANG": "C.UTF-8"}, True),
    ],
)
def test_a_real_process_goes_by_what_the_person_set(env: dict[str, str], ascii_only: bool) -> None:
    code = """
import os, sys
from tui.profile import as_set, detect
from tui.settings import Settings
print(detect(as_set(os.environ), Settings(), sys.platform, sys.stdout.encoding).ascii)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": "", "TERM": "xterm", **env},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str(ascii_only)


@pytest.mark.parametrize(
    ("env", "settings", "preview"),
    [
        (LOCAL, DEFAULTS, "high"),
        (SSH, DEFAULTS, "low"),
        ({**LOCAL, "NO_COLOR": "1"}, DEFAULTS, "off"),
        ({"TERM": "linux"}, DEFAULTS, "off"),
        ({"TERM": "dumb"}, DEFAULTS, "off"),
        (LOCAL, Settings(ascii=True), "off"),
        (SSH, Settings(preview="high"), "high"),
        (LOCAL, Settings(preview="off"), "off"),
        ({"TERM": "linux"}, Settings(preview="low"), "low"),
        (LOCAL, Settings(ascii=True, preview="high"), "off"),
    ],
)
def test_the_preview_suits_the_terminal_unless_it_is_set(env: dict[str, str], settings: Settings, preview: str) -> None:
    assert seen(env, settings).preview == preview


def test_another_preview_has_its_own_size() -> None:
    profile = seen(SSH)
    sizes = [replace(profile, preview=preview).preview_columns for preview in ("off", "low", "high")]
    assert sizes == [0, 24, 64]
    assert replace(profile, preview="off").preview_rows == 0


@pytest.mark.parametrize(
    ("env", "settings", "images"),
    [
        (LOCAL, Settings(images="off"), False),
        (SSH, Settings(images="on"), True),
        (TMUX, Settings(images="on"), True),
        ({"TERM": "linux"}, DEFAULTS, False),
        (LOCAL, Settings(ascii=True), False),
    ],
)
def test_graphics_are_for_local_terminals_unless_they_are_set(
    env: dict[str, str], settings: Settings, images: bool
) -> None:
    assert seen(env, settings).images is images


def test_the_settings_are_taken_over() -> None:
    profile = seen(SSH, Settings(fps=20, mouse=False))
    assert (profile.fps, profile.mouse) == (20, False)


@pytest.mark.parametrize(
    ("env", "settings", "fps", "color"),
    [
        (LOCAL, DEFAULTS, "30", "truecolor"),
        (SSH, DEFAULTS, "15", "256"),
        (LOCAL, Settings(fps=60), "60", "truecolor"),
        ({"TERM": "linux"}, Settings(fps=1), "30", "standard"),
    ],
)
def test_textual_is_told_the_rate_and_the_colours(
    env: dict[str, str], settings: Settings, fps: str, color: str
) -> None:
    assert environment(seen(env, settings)) == {
        "TEXTUAL_FPS": fps,
        "TEXTUAL_ANIMATIONS": "none",
        "TEXTUAL_SMOOTH_SCROLL": "0",
        "TEXTUAL_ESCAPE_DELAY": "10",
        "TEXTUAL_COLOR_SYSTEM": color,
    }


def test_no_color_reaches_textual_only_where_it_counts() -> None:
    environ = {**LOCAL, "NO_COLOR": ""}
    prepare(seen(environ), environ)
    assert "NO_COLOR" not in environ
    environ = {**LOCAL, "NO_COLOR": "1"}
    prepare(seen(environ, Settings(color="256")), environ)
    assert "NO_COLOR" not in environ
    environ = {**LOCAL}
    prepare(seen(environ, Settings(color="none")), environ)
    assert environ["NO_COLOR"] == "1"
    assert "TEXTUAL_COLOR_SYSTEM" not in environ


@pytest.mark.parametrize("color", ["truecolor", "256", "16", "none"])
def test_textual_understands_what_it_is_told(color: str) -> None:
    code = f"""
import os
from tui.profile import detect, prepare
from tui.settings import Settings
prepare(detect(os.environ, Settings(color={color!r}), "linux", "utf-8"), os.environ)
from textual import constants
from textual.app import App
app = App()
print(constants.MAX_FPS, constants.TEXTUAL_ANIMATIONS, constants.SMOOTH_SCROLL, app.no_color, app.console.color_system)
"""
    env = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "SYSTEMROOT": r"C:\Windows"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    system = {"16": "standard", "none": "256"}.get(color, color)
    assert result.stdout.split()[:4] == ["30", "none", "False", str(color == "none")]
    assert sys.platform == "win32" or result.stdout.split()[4] == system
