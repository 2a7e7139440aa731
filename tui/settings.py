"""What the app can be told to do differently: defaults < `config.toml` in the config folder < command-line flags.

Both the file and the flags are checked by the one table `RULES`. Runs before the first paint, so what only bad
input needs is imported where it is needed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

Preview = Literal["auto", "off", "low", "high"]
Color = Literal["auto", "truecolor", "256", "16", "none"]
Images = Literal["auto", "on", "off"]

MAX_FPS = 60
MAX_CONFIG_BYTES = 64 * 2**10
MAX_HINTS = 10  # for keys that are unknown: looking for the nearest one takes a while
MAX_SENTENCE = 380  # characters, "and 12 more" not counted; it is for reading
MAX_SHOWN = 60  # characters of a wrong value

HOST = re.compile(r"(?:[\w.-]+@)?(?:[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:]+\])")  # one that cannot be taken for a flag

# Of each setting: what is allowed, in words, and a function that gives its value or raises `ValueError`.
Rule = tuple[str, Callable[[object], object]]

FLAGS = {  # that take a value; each is named like its setting
    "model": ("M", "a name or a folder; without it, the last one used"),
    "output": ("DIR", "the folder that pictures go into"),
    "vram": ("SIZE", "the most memory of the card to use, such as 12GiB; auto: what is free"),
    "ram": ("SIZE", "the most memory of the machine to use, such as 16GiB; auto: what is free"),
    "theme": ("T", "the colours of the app, such as dark"),
    "preview": ("|".join(get_args(Preview)), "the picture while it is being made"),
    "fps": ("N", f"updates per second while a job runs, 1 to {MAX_FPS} or auto"),
    "color": ("|".join(get_args(Color)), "the colours that the terminal can show"),
    "images": ("|".join(get_args(Images)), "the full-screen view by Kitty or Sixel graphics"),
}
SWITCHES = ("simulate", "no-mouse", "ascii", "help", "version")
VERBS = {
    "generate": "make pictures without the app, from a prompt or a file of them",
    "plan": "whether a picture fits into a card's memory, before anything is loaded",
    "presets": "what --preset of generate takes: choices under a name",
    "models": "check a model's files and the error of its FP8 form",
    "doctor": "what this machine has, and what to do if something is missing",
    "smoke": "make a small picture, to see that everything works",
    "keys": "the keys of the app",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Choices that last longer than one picture."""

    model: str | None = None  # a name or a folder; None: the one used last
    output: Path | None = None  # a folder, not checked yet; None: `engine.folders.default_output_dir`
    vram: str = "auto"  # a size as `engine.memory.budget.read_size` takes it: never to be exceeded
    ram: str = "auto"
    simulate: bool = False  # nothing is painted: plan, memory and time are played through, without weights
    theme: str = "dark"
    preview: Preview = "auto"
    fps: int | Literal["auto"] = "auto"  # updates per second while a job runs, 1 to 60
    mouse: bool = True
    ascii: bool = False  # no glyph beyond ASCII; False: where the terminal can show them
    color: Color = "auto"
    images: Images = "auto"  # may the full-screen view use Kitty or Sixel graphics
    opener: str | None = None  # the command that opens a picture; None: the system's own
    host: str | None = None  # what the person calls this machine in scp; None: by what the connection says
    open_forwarded: bool = False  # open pictures through a forwarded X11 display, too
    enter_submits: bool = True  # Enter generates, Ctrl+J is a new line; False: the other way round


def merge(config: dict[str, Any], flags: dict[str, Any]) -> Settings:
    """The settings of a session, from what `read_config` and `parse_arguments` gave."""
    return Settings(**{**config, **flags})


def read_config(path: Path) -> tuple[dict[str, Any], str | None]:
    """The good values in the TOML file at `path`, and one line with all that is wrong in it (None: nothing).

    A file that is missing is an empty one. Never raises.
    """
    try:
        found = _read_toml(path)
    except FileNotFoundError:
        return {}, None
    except ValueError as error:
        return {}, _escaped(f"{_quoted(path)} is not used: {error}.")
    values: dict[str, Any] = {}
    faults = []
    for key, (_, read) in RULES.items():
        if key in found:
            try:
                values[key] = read(found[key])
            except ValueError as error:
                faults.append(_fault(key, found[key], error))
    unknown = [key for key in found if key not in RULES]
    every = f", only {', '.join(RULES)}"
    for number, key in enumerate(unknown):
        hint = _nearest(key, RULES) if number < MAX_HINTS else ""
        faults.append(f"there is no key {_shown(key)}{hint or every}")
        every = every if hint else ""  # said once
    if not faults:
        return values, None
    from engine.text import some_of

    beginning, end = f"{_quoted(path)}: ", ". Defaults stand in for what is wrong."
    room = MAX_SENTENCE - len(beginning) - len(end)
    return values, _escaped(beginning + some_of(faults, room, "; ") + end)


def parse_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """The flags given in `argv` (without the program's name), as values of `Settings` by their names.

    Raises `SystemExit`: 0 after `--help` and `--version`, 2 after one sentence on stderr about bad input.
    """
    try:
        namespace, rest = _parser().parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        flag = error.argument_name or ""
        name = flag.removeprefix("--")
        if name in FLAGS:
            _refuse(f"{flag} needs a value: {RULES[name][0]}")
        _refuse(f"{flag} takes no value; write {flag} alone")
    given = vars(namespace)
    if given.pop("version", False):
        from engine import __version__
        from engine.cli.console import write

        write(f"TextToImageTool {__version__}")
        raise SystemExit(0)
    if rest:
        _refuse(_stray(rest[0]))
    values = {}
    for name, value in given.items():
        try:
            values[name] = RULES[name][1](int(value) if name == "fps" and value.isdecimal() else value)
        except ValueError as error:
            _refuse(f"--{_fault(name, value, error)}")
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="t2i",
        description="TextToImageTool makes pictures from text. Without a verb the app opens.",
        epilog="verbs:\n" + "\n".join(f"  t2i {verb:<10}{purpose}" for verb, purpose in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what was not given has no value
        allow_abbrev=False,
        exit_on_error=False,
    )
    for name, (metavar, purpose) in FLAGS.items():
        parser.add_argument(f"--{name}", metavar=metavar, help=purpose)
    parser.add_argument(
        "--simulate", action="store_true", help="show memory and time without painting, without weights"
    )
    parser.add_argument("--no-mouse", dest="mouse", action="store_false", help="leave the mouse to the terminal")
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII characters only")
    parser.add_argument("--version", action="store_true", help="show the version")
    return parser


def _fault(name: str, value: object, error: ValueError) -> str:
    """What is wrong with a value of this setting, as a clause: the engine's own words where it gave some."""
    from engine.request import RequestError

    if isinstance(error, RequestError):
        return str(error).rstrip(".")
    return f"{name} must be {RULES[name][0]}, got {_shown(value)}"


def _stray(word: str) -> str:
    """What is wrong with a word that is no flag of the app, and no flag's value."""
    if word in VERBS:
        return f"the verb comes first: t2i {word} ..."
    if not word.startswith("-"):
        return f"{_shown(word)} is not a verb of t2i{_nearest(word, VERBS)}"
    flag = word.partition("=")[0]
    return f"{_shown(flag)} is not a flag of t2i{_nearest(flag.strip('-'), (*FLAGS, *SWITCHES), '--')}"


def _refuse(sentence: str) -> NoReturn:
    if sys.stderr is not None:
        print(_escaped(f"error: {sentence}; see t2i --help."), file=sys.stderr, flush=True)
    raise SystemExit(2)


def _read_toml(path: Path) -> dict[str, Any]:
    """What the file holds. Raises `FileNotFoundError`, and `ValueError` with what is wrong in words."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its other end
            raise ValueError("it is a folder, not a file" if path.is_dir() else "it is not a file of text")
        with path.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise ValueError(f"it is larger than {MAX_CONFIG_BYTES // 2**10} KiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8 text; save the file as UTF-8") from None
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not TOML: {error}") from None
    except (RecursionError, ValueError):  # brackets without end, thousands of digits
        raise ValueError("it holds a value that is nested too deep or has too many digits") from None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    if any(character < " " or "\x7f" <= character < "\xa0" for character in value):
        raise ValueError
    return value


def _host(value: object) -> str:
    text = _text(value)
    if not HOST.fullmatch(text):
        raise ValueError
    return text


def _folder(value: object) -> Path:
    return Path(os.path.expanduser(_text(value)))


def _fps(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_FPS
    if value != "auto" and not whole:
        raise ValueError
    return value


def _budget(name: str) -> Rule:
    def read(value: object) -> object:
        from engine.memory.budget import read_size

        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError
        if not isinstance(value, str) and abs(value) >= 10**9:
            raise ValueError
        text = value if isinstance(value, str) else f"{value:.9g}"  # a number: told that it lacks its unit
        read_size(text, name)
        return text

    return "auto or a size such as 12GiB", read


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _one_of(names: tuple[str, ...]) -> Rule:
    def read(value: object) -> object:
        text = str(value) if type(value) is int else value  # color = 256 means "256"
        if text not in names:
            raise ValueError
        return text

    return f"{', '.join(names[:-1])} or {names[-1]}", read


RULES: dict[str, Rule] = {
    "model": ("the name or the folder of a model", _text),
    "output": ("a folder", _folder),
    "vram": _budget("vram"),
    "ram": _budget("ram"),
    "simulate": ("true or false", _switch),
    "theme": ("the name of a theme", _text),
    "preview": _one_of(get_args(Preview)),
    "fps": (f"auto or a whole number from 1 to {MAX_FPS}", _fps),
    "mouse": ("true or false", _switch),
    "ascii": ("true or false", _switch),
    "color": _one_of(get_args(Color)),
    "images": _one_of(get_args(Images)),
    "opener": ("a command that opens a picture", _text),
    "host": ("the name of this machine for ssh, such as gpu.example.org", _host),
    "open_forwarded": ("true or false", _switch),
    "enter_submits": ("true or false", _switch),
}


def _shown(value: object) -> str:
    """A wrong value, fit for a message: short, and in TOML's words."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < 10**MAX_SHOWN):
        text = repr(value)
        return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
    return {int: "a huge number", list: "a list", dict: "a table"}.get(type(value), "a date or a time")


def _nearest(word: str, names: Iterable[str], dashes: str = "") -> str:
    """A hint at the one of `names` that `word` was meant to be; empty where none comes near."""
    import difflib

    near = difflib.get_close_matches(word.lower(), names, n=1)
    return f", the nearest is {dashes}{near[0]}" if near else ""


def _quoted(path: Path) -> str:
    from engine.folders import shown_path

    return shown_path(path)


def _escaped(message: str) -> str:
    from engine.text import printable

    return printable(message)
