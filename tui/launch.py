"""From the command line to the open app: settings, terminal profile, keys, theme."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine import folders
from engine.cli.console import is_terminal, say

if TYPE_CHECKING:
    from textual.driver import Driver

    from tui.app import T2IApp

DUMB = ("dumb", "unknown")  # whose cursor cannot be moved


def main(argv: Sequence[str]) -> int:
    """Open the app with the flags in `argv`; returns the exit code."""
    from tui.settings import parse_arguments

    gc.disable()  # until the first paint: importing and composing make few cycles and many objects
    flags = parse_arguments(argv)
    if not is_terminal():
        return _refuse("the app needs a terminal; without one this works")
    term = os.environ.get("TERM", "").strip()
    if term.lower() in DUMB and sys.platform != "win32":
        return _refuse(f"a terminal of TERM={term} shows lines alone, and the app a screen; this works")
    try:
        app = open_app(flags)
    except ValueError as error:
        say(f"error: {error}")
        return 2
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the app's loop takes it over
    app.run(mouse=app.profile.mouse)
    for notice in app.session.history.take_notices():  # of leaving
        print(notice, file=sys.stderr)
    if app.return_code:
        return app.return_code
    return 0


def _refuse(why: str) -> int:
    from engine.cli.prompts import EXAMPLE

    say(f"error: {why}: {EXAMPLE}")
    return 2


def open_app(flags: dict[str, object]) -> T2IApp:
    """The app with `flags` over the config file. Raises `RequestError` where it could not do what it is asked for."""
    from engine.cli.colors import tmux_features
    from tui.profile import as_set, detect, prepare
    from tui.settings import merge, read_config

    config, problem = read_config(folders.config_dir() / "config.toml")
    settings = merge(config, flags)
    tmux = tmux_features(os.environ) if settings.color == "auto" else None
    profile = detect(as_set(os.environ), settings, sys.platform, getattr(sys.stdout, "encoding", None), tmux)
    prepare(profile, os.environ)  # Textual reads these while it is imported
    output_problem = None
    if settings.output is not None:
        from engine.images.save import plan_output

        try:
            plan_output(settings.output, 2)
        except ValueError as error:
            if "output" in flags:
                raise
            output_problem = f"output in config.toml: {error}"
            settings = replace(settings, output=None)
    images = None
    if profile.images:  # asks the terminal, so before Textual reads from it
        images = _terminal_images()
    from tui.app import T2IApp
    from tui.bindings import read_keymap
    from tui.paste import make_pastes_safe

    make_pastes_safe()
    keys, keymap_problem = read_keymap(folders.config_dir() / "keymap.toml")
    if not settings.enter_submits:
        keys = keys.exchanged("job.submit", "prompt.newline")
    return T2IApp(
        settings,
        profile,
        keys=keys,
        theme_is_chosen="theme" in {**config, **flags},
        images=images,
        notices=[text for text in (problem, output_problem, keymap_problem) if text],
        driver=_driver(slow=profile.ssh),
    )


def _driver(*, slow: bool) -> type[Driver] | None:
    """Our way to the terminal; on Windows Textual's. A `slow` line may part what belongs together."""
    if sys.platform == "win32":
        return None
    from tui.display.driver import TerminalDriver

    TerminalDriver.rest_seconds = 0.25 if slow else 0.1
    return TerminalDriver


def _terminal_images() -> type[Any] | None:
    """The widget of the optional extra `[images]`, where this terminal has Kitty or Sixel graphics; else None."""
    try:
        from textual_image.renderable import Image as Best
        from textual_image.renderable.sixel import Image as Sixel
        from textual_image.renderable.tgp import Image as Kitty
        from textual_image.widget import Image

        return Image if Best in (Sixel, Kitty) else None
    except Exception:  # not installed, an old version, a terminal that gives odd answers (ZeroDivisionError at 0x0)
        return None
