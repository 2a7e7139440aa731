"""Which colours the terminal has, and what says so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Literal

Colors = Literal["truecolor", "256", "16", "none"]

# TERM is what SSH passes on. These terminals have always had all colours.
TRUE_COLORS = re.compile(r"-direct$|kitty|ghostty|alacritty|wezterm|^foot")
TMUX_TIMEOUT = 0.1  # seconds: it answers in a few thousandths, and the start waits for it


def colors_of(env: Mapping[str, str], platform: str, tmux: str | None = None) -> tuple[Colors, str]:
    """The colours of the terminal that `env` describes, and what says so.

    `platform` is `sys.platform`, `tmux` the answer of `tmux_features`.
    """
    term = env.get("TERM", "").strip().lower()
    if env.get("NO_COLOR"):
        return "none", "NO_COLOR"
    if term in ("dumb", "unknown"):
        return "none", f"TERM={term}"
    if env.get("TMUX") and tmux:  # what COLORTERM says is of the terminal in which tmux was started, once
        if "RGB" in tmux.split(","):
            return "truecolor", "tmux"
        return "256", "tmux: its client has no RGB feature"
    screen = not env.get("TMUX") and (bool(env.get("STY")) or term.startswith("screen"))
    # Only the latest have all colours (macOS 26), by which number is not documented; people set COLORTERM in all.
    if env.get("TERM_PROGRAM") == "Apple_Terminal" and not screen:
        return ("256" if "256color" in term or env.get("TMUX") else "16"), "Apple's Terminal"
    if not screen:  # what screen inherits is what the terminal around it can do; screen itself shows 256
        if env.get("COLORTERM", "").strip().lower() in ("truecolor", "24bit"):
            return "truecolor", "COLORTERM"
        if env.get("WT_SESSION"):
            return "truecolor", "WT_SESSION"
        if env.get("LC_TERMINAL") == "iTerm2" and not env.get("TMUX") and not term.startswith("tmux"):
            return "truecolor", "LC_TERMINAL"  # set by iTerm2, and passed on by SSH as locales are
        if platform == "win32" and not term:
            return "truecolor", "Windows"
    if TRUE_COLORS.search(term) and not screen:
        return "truecolor", f"TERM={term}"
    if "-256color" in term:
        return "256", f"TERM={term}"
    return ("256", "tmux") if env.get("TMUX") else ("16", f"TERM={term}" if term else "no TERM")


def tmux_features(env: Mapping[str, str]) -> str | None:
    """What the tmux around us knows of its terminal ("256,RGB,title"); None where there is none, or no answer."""
    if not env.get("TMUX") or (program := shutil.which("tmux")) is None:
        return None
    try:
        answer = subprocess.run(
            [program, "display-message", "-p", "#{client_termfeatures}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "TMUX": env["TMUX"]},
            encoding="utf-8",
            errors="replace",
            timeout=TMUX_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
