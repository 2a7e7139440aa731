"""What the terminal can show and how much may be sent to it, decided once from the environment and the settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.cli.colors import Colors, colors_of
from tui.settings import Settings

Multiplexer = Literal["tmux", "screen", "zellij"]
PreviewSize = Literal["off", "low", "high"]
Rendering = Literal["blocks", "letters"]

LOCAL_FPS, SLOW_FPS = 10, 4  # of progress, while a job runs
LOCAL_TYPING_FPS, SSH_TYPING_FPS = 30, 15  # of everything else: a typed letter may not wait for longer
LOCAL_PREVIEWS, SLOW_PREVIEWS = 4, 1.6  # a second
TRUE_COLOR_RATE, PALETTE_RATE = 5000, 2000  # bytes a second; one of 32x16 cells is up to 21 kB in true colours
SHORT_COLORS = {"truecolor": "truecolor", "256": "256c", "16": "16c", "none": "mono"}
COLOR_SYSTEMS = {"truecolor": "truecolor", "256": "256", "16": "standard"}  # by Rich's names
COERCED = ("C.UTF-8", "C.utf8", "UTF-8")  # what Python puts into LC_CTYPE


@dataclass(frozen=True, slots=True)
class TerminalProfile:
    """How to draw. `dataclasses.replace` with another `preview` changes the size that goes with it."""

    ssh: bool
    multiplexer: Multiplexer | None
    color: Colors
    fps: int  # updates of progress per second while a job runs
    preview: PreviewSize
    mouse: bool
    ascii: bool  # no glyph beyond ASCII
    images: bool  # the terminal may be asked for Kitty or Sixel graphics

    @property
    def slow(self) -> bool:
        """Whether bytes or frames are dear: over SSH, and where a multiplexer draws every frame again."""
        return self.ssh or self.multiplexer is not None

    @property
    def rendering(self) -> Rendering:
        """How pictures are drawn: in letters where there are no colours, or no half-blocks."""
        return "letters" if self.ascii or self.color == "none" else "blocks"

    @property
    def preview_columns(self) -> int:
        """The most cells across that a preview may take; 0 when it is off."""
        small = 24 if self.ssh and self.color != "truecolor" else 32
        return {"off": 0, "low": small, "high": 64}[self.preview]

    @property
    def preview_rows(self) -> int:
        """The most cells down: half as many as across, since a cell shows two pixels, one above the other."""
        return self.preview_columns // 2

    @property
    def previews_per_second(self) -> float:
        """The most previews drawn in a second; those in between are dropped."""
        return SLOW_PREVIEWS if self.slow or self.preview == "low" else LOCAL_PREVIEWS

    @property
    def preview_bytes_per_second(self) -> int | None:
        """The most that previews may cost; None where bytes cost nothing."""
        if not self.slow:
            return None
        return TRUE_COLOR_RATE if self.color == "truecolor" else PALETTE_RATE

    @property
    def label(self) -> str:
        """A few words for the header, so that one sees why it looks as it does: "ssh tmux 256c ascii"."""
        place = ["ssh"] if self.ssh else []
        place += [self.multiplexer] if self.multiplexer else []
        return " ".join([*(place or ["local"]), SHORT_COLORS[self.color], *(["ascii"] if self.ascii else [])])


def as_set(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment as the person set it: where a locale is not installed Python puts its own into LC_CTYPE."""
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:  # no Linux
        return environ
    said = next((os.fsdecode(entry[9:]) for entry in entries if entry.startswith(b"LC_CTYPE=")), "")
    return {**environ, "LC_CTYPE": said} if environ.get("LC_CTYPE") in COERCED else environ


def detect(
    env: Mapping[str, str], settings: Settings, platform: str, stdout_encoding: str | None, tmux: str | None = None
) -> TerminalProfile:
    """The profile of the terminal that `env` describes; `platform` is `sys.platform`. What is set explicitly wins.

    `tmux`: what tmux says of its terminal, see `engine.cli.colors`.
    """
    ssh = any(env.get(name) for name in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY"))
    multiplexer = _multiplexer(env)
    color = settings.color if settings.color != "auto" else colors_of(env, platform, tmux)[0]
    ascii_only = settings.ascii or not _unicode(env, stdout_encoding)
    slow = ssh or multiplexer is not None
    colourful = color in ("truecolor", "256") and not ascii_only
    preview: PreviewSize
    if ascii_only:  # half blocks are not ASCII
        preview = "off"
    elif settings.preview != "auto":
        preview = settings.preview
    else:
        preview = "off" if not colourful else "low" if ssh else "high"
    return TerminalProfile(
        ssh=ssh,
        multiplexer=multiplexer,
        color=color,
        fps=settings.fps if settings.fps != "auto" else SLOW_FPS if slow else LOCAL_FPS,
        preview=preview,
        mouse=settings.mouse,
        ascii=ascii_only,
        images=settings.images == "on" or (settings.images == "auto" and colourful and not slow),
    )


def environment(profile: TerminalProfile) -> dict[str, str]:
    """The variables that Textual reads while it is imported."""
    typing_fps = SSH_TYPING_FPS if profile.ssh else LOCAL_TYPING_FPS
    variables = {
        "TEXTUAL_FPS": str(max(typing_fps, profile.fps)),
        "TEXTUAL_ANIMATIONS": "none",
        "TEXTUAL_SMOOTH_SCROLL": "0",
        "TEXTUAL_ESCAPE_DELAY": "10",  # milliseconds; our driver waits for the rest of a sequence
    }
    if profile.color == "none":  # Textual then draws in the greys that it finds for itself
        return {**variables, "NO_COLOR": "1"}
    return {**variables, "TEXTUAL_COLOR_SYSTEM": COLOR_SYSTEMS[profile.color]}


def prepare(profile: TerminalProfile, environ: MutableMapping[str, str]) -> None:
    """Put `environment` into `environ`, before Textual is imported.

    Takes NO_COLOR out where there is colour: Textual obeys even an empty one, and one that --color overruled.
    """
    environ.pop("NO_COLOR", None)
    environ.update(environment(profile))


def _multiplexer(env: Mapping[str, str]) -> Multiplexer | None:
    term = env.get("TERM", "")
    if env.get("TMUX") or term.startswith("tmux"):  # TERM reaches the far end of an SSH line, TMUX does not
        return "tmux"
    if env.get("ZELLIJ"):
        return "zellij"
    return "screen" if env.get("STY") or term.startswith("screen") else None


def _unicode(env: Mapping[str, str], stdout_encoding: str | None) -> bool:
    """Whether the encoding and the locale both allow UTF-8; what is not known does."""
    if stdout_encoding is not None and not _is_utf8(stdout_encoding):
        return False
    locale = env.get("LC_ALL") or env.get("LC_CTYPE") or env.get("LANG") or "UTF-8"
    # Python sets LC_CTYPE for itself in the C locale, and where one is not installed (PEP 538): what LANG says counts.
    if not env.get("LC_ALL") and locale in COERCED:
        locale = env.get("LANG") or locale
    return _is_utf8(locale)


def _is_utf8(name: str) -> bool:
    name = name.lower().replace("-", "").replace("_", "")
    return "utf8" in name or name == "cp65001"  # the latter is Windows' name for it
