"""Colour themes from TOML files: those that come along, and a person's own beside them.

    name = "dusk"                 # small letters, digits, hyphens; by default the file's name
    dark = true                   # false for dark text on a light background
    ansi = false                  # true: the terminal's own 16 colours, named "ansi_default", "ansi_blue", ...
    [colors]                      # all of `COLORS`, opaque: "#rrggbb", "rgb(...)", "hsl(...)" or a CSS name
    background = "#161718"
    [variables]                   # optional: any of `COLOR_VARIABLES` and `STYLE_VARIABLES`
    border-blurred = "#2a2b2e"

Stylesheets write `$foreground` and `$muted` for text; `$text` is Textual's for text on a strong colour. Besides
Textual's variables they may use those of `VARIABLE_DEFAULTS`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from textual.color import Color, ColorParseError
from textual.theme import Theme

from engine.folders import shown_path
from engine.text import printable

DEFAULT_THEME = "dark"
MAX_BYTES = 64 * 2**10  # of a theme file
MAX_SHOWN = 40  # characters of a file's text in a message

KEYS = ("name", "dark", "ansi", "colors", "variables")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
COLORS = (
    *("background", "surface", "panel"),
    *("foreground", "muted"),
    *("primary", "secondary", "accent"),
    *("success", "warning", "error"),
)
COLOR_VARIABLES = (
    *("border", "border-blurred", "button-foreground", "button-color-foreground"),
    *("block-cursor-background", "block-cursor-foreground", "block-hover-background"),
    *("block-cursor-blurred-background", "block-cursor-blurred-foreground"),
    *("footer-background", "footer-foreground", "footer-description-foreground"),
    *("footer-key-background", "footer-key-foreground"),
    *("gauge-used", "gauge-free", "gauge-peak"),
    *("input-cursor-background", "input-cursor-foreground"),
    *("input-selection-background", "input-selection-foreground"),
    *("link-color", "link-color-hover", "link-background-hover"),
    *("screen-selection-background", "screen-selection-foreground"),
    *("scrollbar", "scrollbar-hover", "scrollbar-active", "scrollbar-background", "scrollbar-corner-color"),
)
STYLE_VARIABLES = (
    *("block-cursor-text-style", "block-cursor-blurred-text-style"),
    *("button-focus-text-style", "input-cursor-text-style"),
)
STYLES = ("none", "bold", "dim", "italic", "underline", "reverse", "strike")

# For `App.get_theme_variable_defaults`. Themes from here set all of these; Textual's own ones fall back on this.
VARIABLE_DEFAULTS = {
    "muted": "#808080",  # text that may wait
    "gauge-used": "#0178d4",  # the filled part of a gauge
    "gauge-free": "#5c5c5c",  # the rest of it
    "gauge-peak": "#d08700",  # the mark of the highest fill so far
}


@dataclass(frozen=True, slots=True)
class LoadedThemes:
    """All themes that could be read, and what to tell the person about the others."""

    themes: tuple[Theme, ...]  # one a name; the person's own in place of built-in ones
    problem: str | None  # a line for each broken file; plain text, to be shown without markup


class ThemeError(ValueError):
    """What is wrong with a theme; continues a sentence that began with its file's name."""


def load_themes(user_folder: Path) -> LoadedThemes:
    """The themes that come along and those in `user_folder`, which need not exist. Never raises."""
    themes: dict[str, Theme] = {}
    faults: list[str] = []
    for folder in (files("themes"), user_folder):
        sources: dict[str, str] = {}  # file names by theme name, in this folder
        try:
            paths = _theme_files(folder)
        except OSError as error:
            faults.append(f"{shown_path(folder.name)} cannot be listed: {_reason(error)}.")
            continue
        for path in paths:
            try:
                theme = parse_theme(_read(path), path.name.removesuffix(".toml"))
                if theme.name in sources:
                    raise ThemeError(
                        f"has the name {theme.name!r}, as has {shown_path(sources[theme.name])}; change one"
                    )
            except ThemeError as error:
                faults.append(f"{shown_path(path.name)} {error}.")
            else:
                sources[theme.name] = path.name
                themes[theme.name] = theme
    problem = "\n".join([f"Themes left out (yours are in {shown_path(user_folder)}):", *faults]) if faults else None
    return LoadedThemes(tuple(themes.values()), problem)


def parse_theme(text: str, default_name: str) -> Theme:
    """The theme that a TOML text describes; raises `ThemeError` with the first thing that is wrong with it."""
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ThemeError("is nested too deeply to be a theme") from None
    except ValueError as error:  # TOMLDecodeError, or a number of too many digits
        raise ThemeError(f"is not valid TOML: {printable(str(error))[:200]}") from None
    _check_keys(table, KEYS, "at the top")
    name = table.get("name", default_name)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ThemeError(f"has the name {_shown(name)}; set name to 1 to 40 small letters, digits and hyphens")
    dark, ansi = _flag(table.get("dark"), "dark"), _flag(table.get("ansi", False), "ansi")

    colors = _table(table, "colors")
    _check_keys(colors, COLORS, "in [colors]")
    if missing := [key for key in COLORS if key not in colors]:
        raise ThemeError(f"lacks {', '.join(missing)} in [colors]; all of its {len(COLORS)} colours are needed")
    palette = {key: _color(colors[key], f"{key} in [colors]", ansi) for key in COLORS}

    variables = _table(table, "variables")
    _check_keys(variables, (*COLOR_VARIABLES, *STYLE_VARIABLES), "in [variables]")
    own = {
        key: _style(value, key) if key in STYLE_VARIABLES else _color(value, f"{key} in [variables]", ansi)
        for key, value in variables.items()
    }
    return Theme(
        name=name,
        dark=dark,
        ansi=ansi,
        background=palette["background"],
        surface=palette["surface"],
        panel=palette["panel"],
        foreground=palette["foreground"],
        primary=palette["primary"],
        secondary=palette["secondary"],
        accent=palette["accent"],
        success=palette["success"],
        warning=palette["warning"],
        error=palette["error"],
        variables={**_variables(palette, ansi), **own},
    )


def _variables(palette: dict[str, str], ansi: bool) -> dict[str, str]:
    """CSS variables from the palette, where Textual would choose faded or automatic colours."""
    muted = dict.fromkeys(
        (
            *("muted", "text-muted", "text-disabled", "foreground-muted", "foreground-disabled"),
            *("footer-foreground", "footer-description-foreground"),
        ),
        palette["muted"],
    )
    variables = muted | {
        "border": palette["primary"],
        "footer-background": palette["surface"],
        "footer-key-foreground": palette["accent"],
        "gauge-used": palette["primary"],
        "gauge-free": palette["panel"],
        "gauge-peak": palette["warning"],
    }
    if ansi:  # these cannot be mixed; Textual takes surface and panel of such a theme from the variables alone
        return variables | {
            "surface": palette["surface"],
            "panel": palette["panel"],
            "ansi-background": palette["background"],
            "ansi-foreground": palette["foreground"],
        }

    def mix(first: str, second: str, share: float) -> str:  # `share` of the second, from 0 to 1
        return Color.parse(palette[first]).blend(Color.parse(palette[second]), share).hex

    selection = mix("surface", "primary", 0.3)
    return variables | {
        "block-cursor-foreground": palette["background"],
        "block-cursor-blurred-background": selection,
        "block-hover-background": mix("surface", "foreground", 0.1),
        "border-blurred": mix("surface", "muted", 0.3),
        "button-color-foreground": palette["background"],
        "gauge-free": mix("panel", "muted", 0.2),
        "input-selection-background": selection,
        "link-color": palette["accent"],
        "link-color-hover": palette["background"],
        "screen-selection-background": selection,
        "screen-selection-foreground": palette["foreground"],
        "scrollbar": mix("surface", "muted", 0.4),
        "scrollbar-hover": mix("surface", "muted", 0.7),
        "scrollbar-background": palette["surface"],
    }


def _theme_files(folder: Traversable) -> list[Traversable]:
    """What is named like a theme, by name; hidden files are editors' own. Raises OSError, not for a missing folder."""
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    return [entry for entry in entries if entry.name.endswith(".toml") and not entry.name.startswith(".")]


def _read(path: Traversable) -> str:
    """The text of a file that is small and regular: a pipe would block, a device may never end."""
    try:
        if not path.is_file():
            raise ThemeError("is not a file")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ThemeError(f"cannot be read: {_reason(error)}") from None
    if len(data) > MAX_BYTES:
        raise ThemeError(f"is larger than {MAX_BYTES // 2**10} KiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ThemeError(f"is not UTF-8 text (line {line}); save it as UTF-8") from None


def _check_keys(table: dict[str, object], allowed: Iterable[str], place: str) -> None:
    for key in table:
        if key not in allowed:
            nearest = get_close_matches(key[:MAX_SHOWN], allowed, n=1, cutoff=0.0)[0]
            raise ThemeError(f"has an unknown key {_shown(key)} {place}; the nearest is {nearest!r}")


def _table(table: dict[str, object], key: str) -> dict[str, object]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise ThemeError(f"has {_shown(value)} for {key}; write [{key}] and a line for each colour below it")
    return value


def _flag(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise ThemeError(f"has {_shown(value)} for {key}; it must be true or false")
    return value


def _color(value: object, place: str, ansi: bool) -> str:
    """The colour, spelled as Textual does; nothing of the file's own text goes into a stylesheet."""
    try:
        color = Color.parse(value) if isinstance(value, str) and len(value) <= MAX_SHOWN else None
    except ColorParseError:
        color = None
    if color is None or color.a != 1 or (color.ansi is not None) != ansi:
        allowed = "'ansi_default' or one such as 'ansi_bright_blue'" if ansi else "an opaque colour such as '#4cbcff'"
        raise ThemeError(f"has {_shown(value)} for {place}; it must be {allowed}")
    return color.hex


def _style(value: object, key: str) -> str:
    words = value.split() if isinstance(value, str) else []
    if not words or not set(words) <= set(STYLES):
        raise ThemeError(f"has {_shown(value)} for {key} in [variables]; it must be made of {', '.join(STYLES)}")
    return " ".join(words)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _shown(value: object) -> str:
    """A value of a file for a message: text in quotes, one line and not too long; for the others, what they are."""
    match value:
        case str():
            text = printable(value)
            return f"'{text[: MAX_SHOWN - 3]}...'" if len(text) > MAX_SHOWN else f"'{text}'"
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() | float():
            return "a number"
        case dict():
            return "a table"
        case list():
            return "a list"
    return "a date or time"
