"""Themes: legible colours in those that come along, and one readable message for a person's own that are broken."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from rich.color import ColorType
from rich.segment import Segment
from textual.app import App, ComposeResult
from textual.color import Color
from textual.containers import Vertical
from textual.theme import Theme
from textual.widgets import Footer, Input, OptionList, Static, TextArea

from tui.theme_loader import (
    COLOR_VARIABLES,
    COLORS,
    DEFAULT_THEME,
    MAX_BYTES,
    STYLE_VARIABLES,
    VARIABLE_DEFAULTS,
    ThemeError,
    load_themes,
    parse_theme,
)

NOWHERE = Path(__file__).parent / "no such folder"
BUILT_IN = {theme.name: theme for theme in load_themes(NOWHERE).themes}
RGB = [name for name, theme in BUILT_IN.items() if not theme.ansi]
LEGIBLE = {"contrast": 7.0}  # WCAG 2.2: 4.5 is level AA, 7 level AAA
AA = 4.5
OUTLINE = 3.0  # WCAG 2.2, 1.4.11: what is no text but has to be seen


def contrast(first: Color, second: Color) -> float:
    """WCAG 2.2 contrast ratio, from 1 to 21."""

    def luminance(color: Color) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color.normalized]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def css_colors(theme: Theme) -> dict[str, Color]:
    """What a stylesheet gets for the theme's plain colours, as `App.get_css_variables` puts it together."""
    variables = VARIABLE_DEFAULTS | theme.to_color_system().generate() | theme.variables
    names = {
        *COLORS,
        *COLOR_VARIABLES,
        *VARIABLE_DEFAULTS,
        "text-muted",
        "text-disabled",
        "foreground-muted",
        "foreground-disabled",
    }
    automatic = {name for name in names if variables[name].startswith("auto") or variables[name] == "transparent"}
    return {name: Color.parse(variables[name]) for name in names - automatic}


def theme_text(*, without: str = "", **colors: str) -> str:
    """A right theme file but for the colours given here."""
    palette = dict.fromkeys(COLORS, "#808080") | colors
    lines = [f'{key} = "{value}"' for key, value in palette.items() if key != without]
    return "\n".join(["dark = true", "[colors]", *lines, ""])


class Page(App[None]):
    """The widgets that the app is made of, and text in the app's own variables."""

    BINDINGS: ClassVar = [("f5", "paint", "Paint")]
    CSS = """
    #muted { color: $muted; }
    #states { background: $surface; }
    #used { color: $gauge-used; background: $gauge-free; }
    #peak { color: $gauge-peak; background: $gauge-free; }
    """

    def __init__(self, theme: Theme | None = None) -> None:
        super().__init__()
        if theme is not None:
            self.register_theme(theme)
            self.theme = theme.name

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return VARIABLE_DEFAULTS

    def compose(self) -> ComposeResult:
        yield Static("muted", id="muted")
        with Vertical(id="states"):
            for state in ("success", "warning", "error", "accent", "primary", "secondary"):
                label = Static(state)
                label.styles.color = self.get_css_variables()[state]
                yield label
        yield Static("\N{FULL BLOCK}", id="used")
        yield Static("\N{FULL BLOCK}", id="peak")
        yield TextArea("a fox\nin the snow")
        yield OptionList("first", "second", "third")
        yield Input("2024")
        yield Input(placeholder="seed")
        yield Footer()

    def segments(self) -> list[Segment]:
        """What stands on the screen now."""
        return [segment for strip in self.screen._compositor.render_strips() for segment in strip]


def screens(theme: Theme | None) -> list[list[Segment]]:
    """The page with the focus in the text, in the list, and in a field whose content is selected."""

    async def visit() -> list[list[Segment]]:
        app = Page(theme)
        app.animation_level = "none"
        pages = []
        async with app.run_test(size=(60, 44)) as pilot:
            for widget in (TextArea, OptionList, Input):
                app.query(widget).first().focus()
                await pilot.pause()
                await pilot.press("down" if widget is OptionList else "shift+home")
                await pilot.pause()
                pages.append(app.segments())
        return pages

    return asyncio.run(visit())


def has_text(segment: Segment) -> bool:
    return any(character.isalnum() for character in segment.text)


def test_the_six_themes_that_come_along_are_all_right() -> None:
    loaded = load_themes(NOWHERE)
    assert loaded.problem is None
    assert {theme.name for theme in loaded.themes} == {"ansi", "blueprint", "contrast", "dark", "darkroom", "light"}
    assert DEFAULT_THEME in BUILT_IN
    assert {name for name in BUILT_IN if not BUILT_IN[name].dark} == {"light"}


def test_the_contrast_ratio_is_that_of_wcag() -> None:
    assert contrast(Color.parse("#000"), Color.parse("#fff")) == pytest.approx(21)
    assert contrast(Color.parse("#777"), Color.parse("#fff")) == pytest.approx(4.48, abs=0.01)
    assert contrast(Color.parse("#00f"), Color.parse("#fff")) == pytest.approx(8.59, abs=0.01)


@pytest.mark.parametrize("name", RGB)
def test_text_is_legible_on_every_background(name: str) -> None:
    colors = css_colors(BUILT_IN[name])
    texts = ("foreground", "muted", "text-muted", "text-disabled", "foreground-muted", "foreground-disabled")
    colored = ("success", "warning", "error", "accent", "primary", "secondary")
    pairs = [(text, place) for text in (*texts, *colored) for place in ("background", "surface", "panel")]
    pairs += [(text, "footer-background") for text in (*texts, "footer-key-foreground")]
    pairs += [(text, "footer-background") for text in ("footer-foreground", "footer-description-foreground")]
    pairs += [(text, "block-hover-background") for text in (*texts, "footer-key-foreground")]
    ratios = {pair: contrast(*(colors[key] for key in pair)) for pair in pairs}
    ratios |= {
        (text, place): contrast(colors[text], colors[place])
        for text, place in (
            ("block-cursor-foreground", "block-cursor-background"),
            ("block-cursor-blurred-foreground", "block-cursor-blurred-background"),
            ("input-cursor-foreground", "input-cursor-background"),
            ("input-selection-foreground", "input-selection-background"),
            ("screen-selection-foreground", "screen-selection-background"),
            ("link-color-hover", "link-background-hover"),
            *(("button-color-foreground", state) for state in ("primary", "success", "warning", "error")),
        )
    }
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < LEGIBLE.get(name, AA)} == {}


@pytest.mark.parametrize("name", RGB)
def test_gauges_and_the_focus_can_be_seen(name: str) -> None:
    colors = css_colors(BUILT_IN[name])
    assert contrast(colors["gauge-used"], colors["gauge-free"]) >= OUTLINE
    assert contrast(colors["gauge-peak"], colors["gauge-free"]) >= OUTLINE
    assert contrast(colors["border"], colors["background"]) >= OUTLINE
    assert contrast(colors["border"], colors["border-blurred"]) >= 1.5  # and the two apart
    if name == "contrast":
        for outline in ("border-blurred", "scrollbar", "gauge-free"):
            assert contrast(colors[outline], colors["surface"]) >= OUTLINE


@pytest.mark.parametrize("name", RGB)
def test_backgrounds_stay_quiet_beside_a_picture(name: str) -> None:
    theme = BUILT_IN[name]
    for place in ("background", "surface", "panel"):
        brightness = css_colors(theme)[place].brightness
        assert brightness < 0.3 if theme.dark else brightness > 0.8, place


@pytest.mark.parametrize("name", RGB)
def test_all_that_an_app_shows_is_legible(name: str) -> None:
    texts = [segment for page in screens(BUILT_IN[name]) for segment in page if has_text(segment)]
    ratios: dict[str, float] = {}
    for text, style, _ in texts:
        assert style is not None
        assert style.color is not None
        assert style.bgcolor is not None
        assert style.color.triplet is not None  # neither the terminal's own colour nor one of its sixteen
        assert style.bgcolor.triplet is not None
        ratios[f"{text.strip()} {style}"] = contrast(Color(*style.color.triplet), Color(*style.bgcolor.triplet))
    assert {"muted", "fox", "second", "2024", "seed", "Paint", "error"} <= {
        word for text in ratios for word in text.split()
    }
    assert {text: ratio for text, ratio in ratios.items() if ratio < LEGIBLE.get(name, AA)} == {}


def test_the_ansi_theme_shows_in_the_colours_of_the_terminal_alone() -> None:
    for page in screens(BUILT_IN["ansi"]):
        styles = [segment.style for segment in page if segment.style and segment.text.strip()]
        kinds = {color.type for style in styles for color in (style.color, style.bgcolor) if color}
        assert kinds == {ColorType.DEFAULT, ColorType.STANDARD}


def test_text_of_the_ansi_theme_never_vanishes() -> None:
    legible = {("default", "default"), ("color(0)", "color(7)")}  # and any of the six hues on the default background
    legible |= {(f"color({hue})", "default") for hue in range(1, 7)}
    seen = set()
    for segment in (segment for page in screens(BUILT_IN["ansi"]) for segment in page if has_text(segment)):
        assert segment.style is not None
        assert segment.style.color is not None
        assert segment.style.bgcolor is not None
        seen.add((segment.style.color.name, segment.style.bgcolor.name))
    assert seen <= legible
    assert ("color(0)", "color(7)") in seen  # the row under the cursor stands out


def test_an_app_can_change_between_all_themes_and_those_of_textual() -> None:
    async def visit() -> dict[str, str]:
        app = Page()
        app.animation_level = "none"
        muted = {}
        async with app.run_test() as pilot:
            for theme in BUILT_IN.values():
                app.register_theme(theme)
            for name in (*BUILT_IN, "textual-light", "textual-dark", "ansi-dark"):
                app.theme = name
                await pilot.pause()
                muted[name] = app.query_one("#muted").styles.color.hex
        return muted

    expected = {name: css_colors(theme)["muted"].hex for name, theme in BUILT_IN.items()}
    expected |= dict.fromkeys(("textual-light", "textual-dark", "ansi-dark"), VARIABLE_DEFAULTS["muted"].upper())
    assert asyncio.run(visit()) == expected


def test_every_variable_that_a_file_may_set_is_one_that_textual_or_the_app_knows() -> None:
    known = set(BUILT_IN["dark"].to_color_system().generate()) | set(VARIABLE_DEFAULTS)
    assert set(COLOR_VARIABLES) | set(STYLE_VARIABLES) <= known
    for theme in BUILT_IN.values():
        assert set(VARIABLE_DEFAULTS) <= set(theme.variables)


def test_a_theme_file_gives_what_it_says(tmp_path: Path) -> None:
    text = 'name = "dusk"\r\n' + theme_text(primary="teal", error="rgb(255, 0, 0)", muted="hsl(0, 0%, 50%)")
    text += '[variables]\nborder = "#ABC"\nblock-cursor-text-style = "bold  underline"\n'
    (tmp_path / "any name.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())  # with the mark that Notepad writes
    loaded = load_themes(tmp_path)
    assert loaded.problem is None
    [theme] = [theme for theme in loaded.themes if theme.name not in BUILT_IN]
    assert (theme.name, theme.dark, theme.ansi) == ("dusk", True, False)
    assert (theme.primary, theme.error, theme.background) == ("#008080", "#FF0000", "#808080")
    assert theme.variables["muted"] == theme.variables["text-muted"] == "#808080"
    assert theme.variables["border"] == "#AABBCC"
    assert theme.variables["block-cursor-text-style"] == "bold underline"
    screens(theme)  # raises what Textual finds wrong with it


def test_own_themes_take_the_place_of_built_in_ones_by_name(tmp_path: Path) -> None:
    (tmp_path / "light.toml").write_text(theme_text(background="#123456"))
    (tmp_path / "dusk.toml").write_text(theme_text())
    loaded = load_themes(tmp_path)
    assert loaded.problem is None
    themes = {theme.name: theme for theme in loaded.themes}
    assert len(loaded.themes) == len(themes) == len(BUILT_IN) + 1
    assert themes["light"].background == "#123456"
    assert themes["dark"] == BUILT_IN["dark"]


def test_an_ansi_theme_of_ones_own_works(tmp_path: Path) -> None:
    text = "ansi = true\n" + theme_text(**dict.fromkeys(COLORS, "ansi_default") | {"primary": "ansi_bright_green"})
    (tmp_path / "mono.toml").write_text(text)
    loaded = load_themes(tmp_path)
    assert loaded.problem is None
    [theme] = [theme for theme in loaded.themes if theme.name == "mono"]
    assert theme.ansi
    assert css_colors(theme)["border"] == Color.parse("ansi_bright_green")
    assert css_colors(theme)["surface"] == Color.parse("ansi_default")
    screens(theme)


ANSI = "ansi = true\n" + theme_text(**dict.fromkeys(COLORS, "ansi_red"))
TIMES = "2024-05-01"
BROKEN: dict[str, tuple[str | bytes, str]] = {  # what is in a file, what is said of it
    "nothing": ("", "has nothing for dark; it must be true or false."),
    "syntax": (
        "dark = true\nname 'x'\n",
        "is not valid TOML: Expected '=' after a key in a key/value pair (at line 2,",
    ),
    "number": (f"name = {'9' * 5000}\n", "is not valid TOML: "),
    "deep": (f"name = {'[' * 30_000}\n", "is nested too deeply to be a theme."),
    "latin": (b"# one\nname = '\xe9'\n", "is not UTF-8 text (line 2); save it as UTF-8."),
    "large": ("#" * (MAX_BYTES + 1), "is larger than 64 KiB."),
    "key": ("colours = 1\n" + theme_text(), "has an unknown key 'colours' at the top; the nearest is 'colors'."),
    "color-key": (theme_text(foregruond="red"), "key 'foregruond' in [colors]; the nearest is 'foreground'."),
    "variable": (
        theme_text() + "[variables]\nborder-blured = 'red'\n",
        "has an unknown key 'border-blured' in [variables]; the nearest is 'border-blurred'.",
    ),
    "missing": (theme_text(without="muted"), "lacks muted in [colors]; all of its 11 colours are needed."),
    "no-colors": ("dark = true\n", "lacks background, surface, panel, foreground, muted, primary, secondary, accent,"),
    "name": ("name = 'My Theme'\n" + theme_text(), "has the name 'My Theme'; set name to 1 to 40 small letters,"),
    "name-line": ("name = 'a\\n'\n".replace("'", '"') + theme_text(), "has the name 'a '; set name to"),
    "name-kind": ("name = 3\n" + theme_text(), "has the name a number; set name to"),
    "dark": (theme_text().replace("true", "1"), "has a number for dark; it must be true or false."),
    "ansi": ("ansi = 'no'\n" + theme_text(), "has 'no' for ansi; it must be true or false."),
    "colors": ("dark = true\ncolors = ['red']\n", "has a list for colors; write [colors] and a line for each"),
    "variables": (f"variables = {TIMES}\n" + theme_text(), "has a date or time for variables; write [variables]"),
    "hex": (theme_text(muted="#12345"), "has '#12345' for muted in [colors]; it must be an opaque colour such as"),
    "color-name": (theme_text(error="reddish"), "has 'reddish' for error in [colors]; it must be an opaque colour"),
    "automatic": (theme_text(muted="auto 60%"), "has 'auto 60%' for muted in [colors]; it must be an opaque colour"),
    "reference": (theme_text(muted="$panel"), "has '$panel' for muted in [colors]; it must be an opaque colour"),
    "faded": (theme_text(panel="#11223344"), "has '#11223344' for panel in [colors]; it must be an opaque colour"),
    "clear": (theme_text(panel="transparent"), "has 'transparent' for panel in [colors]; it must be an opaque"),
    "long": (theme_text(error="#" + "f" * 9000), "has '#" + "f" * 36 + "...' for error in [colors]; it must be an"),
    "huge": (theme_text(error=f"rgb({'9' * 400},0,0)"), "for error in [colors]; it must be an opaque colour such as"),
    "color-kind": (theme_text().replace('"#808080"', "{}", 1), "has a table for background in [colors]; it must be"),
    "of-the-terminal": (theme_text(error="ansi_red"), "has 'ansi_red' for error in [colors]; it must be an opaque"),
    "not-of-the-terminal": (
        ANSI.replace("ansi_red", "#ff0000", 1),
        "has '#ff0000' for background in [colors]; it must be 'ansi_default' or one such as 'ansi_bright_blue'.",
    ),
    "css": (
        theme_text() + "[variables]\nborder = 'red; } Screen { display: none'\n",
        "has 'red; } Screen { display: none' for border in [variables]; it must be an opaque colour such as '#4cbcff'.",
    ),
    "style": (
        theme_text() + "[variables]\nblock-cursor-text-style = 'blink'\n",
        "has 'blink' for block-cursor-text-style in [variables]; it must be made of none, bold, dim, italic,",
    ),
    "no-style": (
        theme_text() + "[variables]\nblock-cursor-text-style = ''\n",
        "has '' for block-cursor-text-style in [variables]; it must be made of",
    ),
}


def test_all_broken_files_are_named_in_one_message_and_the_others_load(tmp_path: Path) -> None:
    expected = {}
    for name, (content, fault) in BROKEN.items():
        path = tmp_path / f"broken-{name}.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        expected[f"'{path.name}'"] = fault
    (tmp_path / "folder.toml").mkdir()
    expected["'folder.toml'"] = "is not a file."
    (tmp_path / "good.toml").write_text(theme_text())
    (tmp_path / "twin.toml").write_text('name = "good"\n' + theme_text())
    expected["'twin.toml'"] = "has the name 'good', as has 'good.toml'; change one."
    (tmp_path / ".#good.toml").write_text("what an editor keeps beside a file")
    (tmp_path / "notes.txt").write_text("no theme")

    loaded = load_themes(tmp_path)
    assert {theme.name for theme in loaded.themes} == {*BUILT_IN, "good"}
    assert loaded.problem is not None
    heading, *lines = loaded.problem.split("\n")
    assert heading == f"Themes left out (yours are in '{tmp_path}'):"
    assert len(lines) == len(expected)
    for line in lines:
        name = line[: line.index(".toml'") + 6]
        assert expected[name] in line
        assert len(line) < 300
        assert line.endswith(".")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_text_raises_the_one_kind_of_error(name: str) -> None:
    content, _ = BROKEN[name]
    if isinstance(content, str) and name != "large":
        with pytest.raises(ThemeError):
            parse_theme(content, "good")


def test_a_missing_folder_is_no_problem_and_a_file_in_its_place_is(tmp_path: Path) -> None:
    assert load_themes(tmp_path / "themes").problem is None
    (tmp_path / "themes").write_text("")
    loaded = load_themes(tmp_path / "themes")
    assert {theme.name for theme in loaded.themes} == set(BUILT_IN)
    assert loaded.problem is not None
    assert "'themes' cannot be listed: " in loaded.problem


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked.toml").write_text(theme_text())
    (tmp_path / "open.toml").write_text(theme_text())
    really_open = Path.open

    def locked(path: Path, *args, **kwargs):
        if path.name == "locked.toml":
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", locked)
    loaded = load_themes(tmp_path)
    assert {theme.name for theme in loaded.themes} == {*BUILT_IN, "open"}
    assert loaded.problem is not None
    assert loaded.problem.split("\n")[1:] == ["'locked.toml' cannot be read: Permission denied."]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a system with named pipes")
def test_pipes_devices_and_dangling_links_do_not_hold_the_app_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "device.toml").symlink_to("/dev/zero")
    (tmp_path / "gone.toml").symlink_to(tmp_path / "nothing")
    loaded = load_themes(tmp_path)
    assert loaded.problem is not None
    assert loaded.problem.split("\n")[1:] == [f"'{name}.toml' is not a file." for name in ("device", "gone", "pipe")]


HOSTILE = "[/b][bold red]\x1b[31m\x07\x9b2J\u202e\r\n\t[@click=app.quit]x[/]"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")
def test_nothing_of_a_hostile_file_reaches_the_terminal_as_it_is(tmp_path: Path) -> None:
    quoted = "".join(f"\\u{ord(character):04x}" for character in HOSTILE)  # in TOML's own escapes
    right = 'name = "good"\n' + theme_text()
    texts = [
        f'name = "{quoted}"\n{theme_text()}',
        f'"{quoted}" = 1\n{right}',
        right + f'"{quoted}" = "red"\n',
        right + f'[variables]\nborder = "{quoted}"\n',
        'name = "good"\n' + theme_text(error=quoted),
        HOSTILE,
    ]
    for number, text in enumerate(texts):
        name = f"{number} {HOSTILE.replace('/', '_')}.toml"
        (tmp_path / name).write_bytes(text.encode())
    broken_name = os.fsencode(tmp_path) + b"/\xff\xfe.toml"  # no UTF-8
    with open(broken_name, "wb") as stream:
        stream.write(b"dark = 1\n")

    loaded = load_themes(tmp_path)
    assert {theme.name for theme in loaded.themes} == set(BUILT_IN)
    assert loaded.problem is not None
    lines = loaded.problem.split("\n")
    assert len(lines) == 1 + len(texts) + 1
    assert all(line.isprintable() for line in lines)
    assert "\\udcff\\udcfe.toml" in loaded.problem
    assert loaded.problem.count("\\x1b[31m") >= len(texts)
    loaded.problem.encode()  # no lone surrogates


def test_the_loader_leaves_the_engine_s_heavy_parts_alone() -> None:
    heavy = {"torch", "diffusers", "transformers", "numpy", "PIL"}
    code = f"import sys, tui.theme_loader\nprint(*sorted({heavy!r} & set(sys.modules)))"
    root = Path(__file__).parent.parent
    loaded = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
