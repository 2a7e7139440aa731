"""Keys: the table, `t2i keys`, `keymap.toml`, and what the bytes that terminals send do in the real app."""

from __future__ import annotations

import inspect
import os
import re
import string
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.actions import parse
from textual.command import CommandPalette
from textual.events import Key, Paste
from textual.pilot import Pilot
from textual.screen import Screen

from engine import folders
from tests.apps import notes, run, running, screen_text
from tui.app import T2IApp
from tui.bindings import (
    COMMANDS,
    GALLERY_BAR,
    KEPT,
    LIST_BAR,
    MAX_FILE_BYTES,
    MODELS_BAR,
    NAMED_KEYS,
    PROMPT_BAR,
    QUIT,
    TOGETHER,
    UNBOUND,
    UNREACHABLE,
    Command,
    Keys,
    Scope,
    display,
    read_keymap,
)
from tui.keys import HEADINGS, main, markdown_table, plain_table
from tui.paste import PasteSafeParser as XTermParser
from tui.screens.compare import Compare
from tui.screens.dialogs import AskText, Confirm, ParametersWindow, ReadText, SearchPrompts
from tui.screens.gallery import Gallery
from tui.screens.main import MainScreen
from tui.screens.models import ModelsScreen
from tui.screens.pictures import PicturesScreen
from tui.text import clean
from tui.widgets.prompt import PromptArea

ROOT = Path(__file__).parent.parent
OWNERS: dict[Scope, type] = {
    "prompt": PromptArea,
    "main": MainScreen,
    "pictures": PicturesScreen,
    "compare": Compare,
    "gallery": Gallery,
    "models": ModelsScreen,
    "app": T2IApp,
}
posix = pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error on Windows")


# What terminals send.

NAMED = {"enter": "\r", "escape": "\x1b", "tab": "\t", "space": " "}
NAMED |= {"up": "\x1b[A", "down": "\x1b[B", "home": "\x1b[H", "end": "\x1b[F", "delete": "\x1b[3~"}
NAMED |= {"f1": "\x1bOP", "f2": "\x1bOQ", "f3": "\x1bOR", "f4": "\x1bOS", "f5": "\x1b[15~", "f6": "\x1b[17~"}
NAMED |= {"f7": "\x1b[18~", "f8": "\x1b[19~", "f9": "\x1b[20~", "f10": "\x1b[21~", "f11": "\x1b[23~", "f12": "\x1b[24~"}


def xterm(key: str) -> str:
    """What almost every terminal sends for a key."""
    if key.startswith("alt+shift+"):
        return f"\x1b{key[-1].upper()}"
    if key.startswith("alt+"):
        return f"\x1b{key[-1]}"
    if key.startswith("ctrl+"):
        return chr(ord(key[-1]) & 31)
    return NAMED.get(key, key)


def kitty(key: str) -> str:
    """The Kitty protocol with all that Textual asks for: each key by its number, its text at the end."""
    codes = {"enter": 13, "escape": 27, "tab": 9}
    if key in codes:
        return f"\x1b[{codes[key]}u"
    if key == "space":
        return "\x1b[32;;32u"
    if len(key) == 1:
        shift = ";2" if key.isupper() else ";"
        return f"\x1b[{ord(key.lower())}{shift};{ord(key)}u"
    for prefix, modifiers in (("alt+shift+", 4), ("alt+", 3), ("ctrl+", 5)):
        if key.startswith(prefix):
            return f"\x1b[{ord(key[-1])};{modifiers}u"
    return {"f1": "\x1b[P", "f2": "\x1b[Q", "f3": "\x1b[13~", "f4": "\x1b[S"}.get(key) or NAMED[key]


def tmux(key: str) -> str:
    """tmux with extended keys in their older form, which brings the letter of Ctrl along."""
    return f"\x1b[27;5;{ord(key[-1])}~" if key.startswith("ctrl+") else xterm(key)


def paste(text: str) -> str:
    return f"\x1b[200~{text}\x1b[201~"


DIALECTS = {"xterm": xterm, "kitty": kitty, "tmux": tmux}
dialects = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


class Terminal:
    """Feeds the app what a terminal sends, through Textual's own parser: `pilot.press` makes other events of it."""

    def __init__(self, app: T2IApp, pilot: Pilot[None]) -> None:
        self.app, self._pilot = app, pilot
        self._parser = XTermParser()
        self.ran: list[str] = []  # actions of the table

    @property
    def focus(self) -> str | None:
        """The id of what has the focus."""
        return None if self.app.focused is None else self.app.focused.id

    async def send(self, *packets: str) -> list[str]:
        """Send packets with a pause after each; returns the actions that ran."""
        self.ran.clear()
        for packet in packets:
            events = list(self._parser.feed(packet))
            if self._parser._timeout_time is not None:  # nothing more comes: half a sequence is what it is
                self._parser._timeout_time = 0.0
                events += self._parser.tick()
            for event in events:
                self.app.post_message(event)
            await self.settle()
        return list(self.ran)

    async def settle(self) -> None:
        """Wait until what is under way has come to its end."""
        await self._pilot.pause()

    def record(self, *, dry: bool) -> None:
        """Note the table's actions from now on; `dry`: without running them."""
        table, run_action = {command.action for command in COMMANDS}, self.app.run_action

        async def recorded(action: str, *arguments: object, **keywords: object) -> bool:
            if dry and action in table:
                self.ran.append(action)
                return True
            done = await run_action(action, *arguments, **keywords)  # type: ignore[arg-type]
            if done and action in table:
                self.ran.append(action)
            return done

        self.app.run_action = recorded  # type: ignore[method-assign, assignment]


@asynccontextmanager
async def terminal(keymap: str = "", *, dry: bool = False) -> AsyncIterator[Terminal]:
    """The real app without an engine, at 80 x 24, with the prompt focused."""
    if keymap:
        folders.config_dir().mkdir(parents=True, exist_ok=True)
        (folders.config_dir() / "keymap.toml").write_text(keymap, "utf-8")
    async with running(engine=False) as (app, pilot):
        sender = Terminal(app, pilot)
        sender.record(dry=dry)
        assert sender.focus == "prompt"
        yield sender


def active(*scopes: Scope) -> list[Command]:
    return [command for command in COMMANDS if command.scope in scopes]


def letters_of(command: Command) -> list[str]:
    """The keys of a command that are typed where there is a prompt."""
    return [key for key in command.key_list if len(key) == 1 and key in string.ascii_letters]


def alt(letter: str) -> str:
    return f"alt+{letter}" if letter.islower() else f"alt+shift+{letter.lower()}"


# The table.


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.id)
def test_the_action_of_a_command_exists_where_its_scope_says(command: Command) -> None:
    _, name, arguments = parse(command.action)
    method = getattr(OWNERS[command.scope], f"action_{name}", None)
    assert method is not None
    inspect.signature(method).bind(None, *arguments)
    assert command.label
    assert command.tooltip


def test_ids_are_unique_and_complete() -> None:
    ids = [command.id for command in COMMANDS]
    assert len(set(ids)) == len(ids)
    assert {command.scope for command in COMMANDS} == set(OWNERS)
    assert set(PROMPT_BAR) | set(LIST_BAR) | set(GALLERY_BAR) | set(MODELS_BAR) <= set(ids)


@pytest.mark.parametrize("scopes", TOGETHER, ids=lambda scopes: "+".join(sorted(scopes)))
def test_no_key_does_two_things_at_once(scopes: frozenset[Scope]) -> None:
    owners: dict[str, set[str]] = {}
    for command in active(*scopes):
        for binding in command.bindings():
            if binding.key != UNBOUND:
                owners.setdefault(binding.key, set()).add(command.id)
    assert {key: ids for key, ids in owners.items() if len(ids) > 1} == {}


def test_every_key_of_the_table_arrives_from_a_terminal() -> None:
    keys = {key for command in COMMANDS for key in command.key_list}
    assert not keys & set(UNREACHABLE)
    for key in keys:
        assert len(key) == 1 or key in NAMED_KEYS or (key.startswith("ctrl+") and key[-1] in string.ascii_lowercase)
    for command in active("main", "pictures", "models", "app"):
        assert not set(command.key_list) & KEPT, command.id


@pytest.mark.parametrize(
    "bar", [PROMPT_BAR, LIST_BAR, GALLERY_BAR, MODELS_BAR], ids=["prompt", "list", "gallery", "models"]
)
def test_a_bar_has_at_most_seven_commands_each_with_a_key_of_its_own(bar: tuple[str, ...]) -> None:
    keys = Keys()
    assert len(bar) <= 7
    assert len({keys.shown(name) for name in bar}) == len(bar)


def test_the_bars_of_the_main_screen_fit_a_terminal_of_80_columns() -> None:
    async def test() -> None:
        async with terminal() as t:
            for bar, focus in ((PROMPT_BAR, t.app.main.prompt), (LIST_BAR, t.app.main.jobs)):
                focus.focus()
                await t.settle()
                letters = focus is t.app.main.jobs
                pairs = [(t.app.keys.shown(name, letter=letters), t.app.keys[name].label) for name in bar]
                assert sum(len(key) + len(label) + 3 for key, label in pairs) <= 78
                assert "  ".join(f"{key} {label}" for key, label in pairs) in screen_text(t.app).splitlines()[-1]

    run(test())


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((80, 24), " Enter Generate  F9 Params  ^P Menu  Esc List  ^R History  ^C Cancel  F1 Help"),
        ((60, 16), " Enter Generate  F9 Params  ^P Menu  Esc List  F1 Help"),
    ],
)
def test_help_is_the_last_key_to_leave_the_bar(size: tuple[int, int], shown: str) -> None:
    async def test() -> None:
        async with running(size, engine=False) as (app, pilot):
            assert screen_text(app).splitlines()[-1] == shown
            await pilot.press("escape")
            assert screen_text(app).splitlines()[-1].endswith("? Help")
            assert "g Generate  n New seed  r Remix" in screen_text(app).splitlines()[-1]

    run(test())


def test_a_key_is_shown_as_people_write_it() -> None:
    shown = {"ctrl+g": "^G", "f5": "F5", "escape": "Esc", "K": "K", "shift+tab": "Shift+Tab", "alt+z": "Alt+Z"}
    shown |= {"pageup": "PgUp", "delete": "Del", "space": "Space", "?": "?"}
    assert {key: display(key) for key in shown} == shown
    assert [Keys().shown("job.cancel", letter=letter) for letter in (False, True)] == ["^C", "x"]
    assert Keys().shown("prompt.focus", letter=True) == "F2"


# t2i keys


def test_t2i_keys_prints_every_command_under_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    heading, found = "", {}
    for line in output.out.splitlines():
        if not line.startswith(" "):
            heading = line or heading
        else:
            keys, command_id, tooltip = (part.strip() for part in line.split("  ") if part.strip())
            found[command_id] = (heading, keys, tooltip)
    assert found == {
        command.id: (HEADINGS[command.scope], " ".join(map(display, command.key_list)), command.tooltip)
        for command in COMMANDS
    }
    assert str(folders.config_dir() / "keymap.toml") in output.out
    assert max(map(len, plain_table(Keys()).splitlines())) <= 80


def test_t2i_keys_follows_the_keymap(capsys: pytest.CaptureFixture[str], own_folders: Path) -> None:
    folders.config_dir().mkdir()
    (folders.config_dir() / "keymap.toml").write_text('"job.cancel" = "f7 z"\n"job.cancl" = "b"\n')
    assert main([]) == 1
    output = capsys.readouterr()
    (line,) = (line for line in output.out.splitlines() if "job.cancel" in line)
    assert line.startswith("  F7 z  ")
    assert all(command.id in output.out for command in COMMANDS)  # the table comes with a problem, too
    assert output.err.count("\n") == 1
    assert output.err.startswith("error: keymap.toml: there is no command job.cancl, the nearest is job.cancel")


def test_t2i_keys_helps_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "-h"):
        assert main([word]) == 0
        output = capsys.readouterr()
        assert output.out.startswith("usage: t2i keys")
        assert output.err == ""
    for arguments in (["extra"], ["--markdwn"], ["--markdown", "extra"], ["\x1b[2J"]):
        assert main(arguments) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err == "error: t2i keys takes nothing but --markdown; see t2i keys --help.\n"


def test_the_markdown_table_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--markdown"]) == 0
    text = capsys.readouterr().out
    assert text == markdown_table(Keys())
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()[2:]]
    commands = [row for row in rows if not row[0].startswith("**")]
    assert len(commands) == len(COMMANDS)
    for keys, tooltip, command_id in commands:
        command = Keys()[command_id.strip("`|")]
        assert tooltip == command.tooltip
        assert keys.split(" ") == [f"`{display(key)}`" for key in command.key_list]


def test_no_key_breaks_the_markdown_table(tmp_path: Path) -> None:
    (tmp_path / "keymap.toml").write_text('"view.preview" = "| `"')
    keys, problem = read_keymap(tmp_path / "keymap.toml")
    assert problem is None
    assert "| `\\|` `` ` `` | Live preview" in markdown_table(keys)


def test_t2i_keys_in_a_terminal_without_the_letters(own_folders: Path) -> None:
    folders.config_dir().mkdir()
    (folders.config_dir() / "keymap.toml").write_text('"job.cancel" = "f8 \u00e9"', "utf-8")
    command = [sys.executable, "-m", "tui", "keys"]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True
    )
    assert result.returncode == 0
    assert result.stderr == ""
    assert "F8 \\xe9" in result.stdout


@posix
def test_t2i_keys_into_a_pipe_that_nobody_reads(own_folders: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        command = [sys.executable, "-m", "tui", "keys"]
        result = subprocess.run(command, cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 141
    assert result.stderr == ""


# Raw bytes: which action runs.


@dialects
def test_from_the_list_every_key_runs_its_command(dialect: Callable[[str], str]) -> None:
    async def test() -> None:
        async with terminal(dry=True) as t:
            t.app.main.jobs.focus()
            for command in active("main", "pictures", "app"):
                for key in [*command.key_list, *(alt(letter) for letter in letters_of(command) if letter not in "bf")]:
                    assert await t.send(dialect(key)) == [command.action], key
            assert t.focus == "jobs"

    run(test())


@dialects
def test_from_the_prompt_every_key_that_is_no_text_runs_its_command(dialect: Callable[[str], str]) -> None:
    async def test() -> None:
        async with terminal(dry=True) as t:
            t.app.main.prompt.put("one\ntwo")
            for command in active("prompt", "main", "pictures", "app"):
                keys = [key for key in command.key_list if len(key) > 1 and key not in ("space", "delete")]
                for key in [*keys, *(alt(letter) for letter in letters_of(command) if letter not in "bf")]:
                    assert await t.send(dialect(key)) == [command.action], key
            assert t.app.main.prompt.text == "one\ntwo"
            assert t.focus == "prompt"

    run(test())


@dialects
def test_in_the_gallery_every_key_runs_its_command(dialect: Callable[[str], str]) -> None:
    async def test() -> None:
        async with terminal(dry=True) as t:
            t.app.open_gallery()
            await t.settle()
            for command in active("gallery", "pictures", "app"):
                for key in [*command.key_list, *(alt(letter) for letter in letters_of(command) if letter not in "bf")]:
                    assert await t.send(dialect(key)) == [command.action], key

    run(test())


@dialects
def test_among_the_models_every_key_runs_its_command(dialect: Callable[[str], str]) -> None:
    async def test() -> None:
        async with terminal(dry=True) as t:
            t.app.open_models()
            await t.settle()
            for command in active("models", "app"):
                for key in [*command.key_list, *(alt(letter) for letter in letters_of(command) if letter not in "bf")]:
                    assert await t.send(dialect(key)) == [command.action], key

    run(test())


@dialects
def test_what_is_typed_into_the_prompt_is_text_and_no_command(dialect: Callable[[str], str]) -> None:
    async def test() -> None:
        async with terminal() as t:
            text = "".join(sorted({key for command in COMMANDS for key in command.key_list if len(key) == 1}))
            for letter in text:
                assert await t.send(dialect(letter)) == []
            assert await t.send(dialect("space")) == []
            assert t.app.main.prompt.text == text + " "
            await t.send(dialect("home"), dialect("delete"), dialect("delete"))
            assert t.app.main.prompt.text == text[2:] + " "
            assert not t.app.session.queue
            assert t.app.session.running is None

    run(test())


@dialects
def test_alt_and_a_letter_types_nothing(dialect: Callable[[str], str]) -> None:
    commands = {letter: c.action for c in active("main", "pictures", "app") for letter in letters_of(c)}

    async def test() -> None:
        async with terminal(dry=True) as t:
            t.app.main.prompt.put("red circle")
            for letter in string.ascii_letters:
                expected = [commands[letter]] if letter in commands and letter not in "bf" else []
                assert await t.send(dialect(alt(letter))) == expected, letter
                assert t.app.main.prompt.text == "red circle", letter
                assert t.focus == "prompt", letter

    run(test())


def test_alt_b_and_alt_f_jump_over_words() -> None:
    async def test() -> None:
        async with terminal() as t:
            t.app.main.prompt.put("red circle")
            await t.send("\x1bb")
            assert t.app.main.prompt.cursor_location == (0, 4)
            await t.send("\x1bb", "\x1bf")
            assert t.app.main.prompt.cursor_location == (0, 3)

    run(test())


def test_escape_and_a_command_letter_in_one_packet_is_that_command() -> None:
    async def test() -> None:
        async with terminal() as t:
            t.app.main.prompt.put("a red circle")
            assert await t.send("\x1bg") == ["generate"]
            assert t.app.session.running is not None
            assert t.app.session.running.request.prompt == "a red circle"
            assert t.app.main.prompt.text == "a red circle"

    run(test())


def test_escape_and_a_digit_in_one_packet_runs_no_command() -> None:
    async def test() -> None:
        async with terminal() as t:
            assert await t.send("\x1b1") == []
            assert len(t.app.main.prompt.text) == 1  # what Textual makes of it, such as the sign of Option+1
            assert t.focus == "prompt"

    run(test())


def test_escape_and_space_or_a_sign_in_one_packet_are_both() -> None:
    async def test() -> None:
        async with terminal() as t:
            for sent, action in ((" ", "pause"), ("<", "change_count(-1)"), ("?", "help")):
                t.app.main.set_focus(t.app.main.prompt)
                assert await t.send(f"\x1b{sent}") == ["leave", action], sent
            assert t.app.main.prompt.text == ""

    run(test())


@pytest.mark.parametrize("keys", ["\x1b[27u\x1b[32;;32u", "\t "], ids=["Esc", "Tab"])
def test_a_key_behind_the_one_that_leaves_the_prompt_is_not_typed_into_it(keys: str) -> None:
    async def test() -> None:
        async with terminal() as t:
            await t.send(f"red{keys}")  # all of it is there before the app looks, as when it starts
            assert t.app.main.prompt.text == "red"
            assert t.focus == "jobs"
            assert t.app.session.paused

    run(test())


def test_a_pause_with_nothing_waiting_holds_what_comes_until_space_is_pressed_again() -> None:
    async def test() -> None:
        async with terminal() as t:
            session = t.app.session
            await t.send("\x1b", " ")
            assert "Nothing new begins until Space is pressed again." in notes(t.app)
            t.app.main.prompt.put("a red circle")
            assert await t.send("g") == ["generate"]
            assert session.running is None
            assert [job.request.prompt for job in session.queue] == ["a red circle"]
            assert "paused, 1 waiting" in screen_text(t.app)
            await t.send(" ")
            assert session.running is not None

    run(test())


@dialects
def test_undo_takes_back_a_word_at_a_time_and_redo_brings_it_again(dialect: Callable[[str], str]) -> None:
    async def test() -> None:
        async with terminal() as t:
            prompt, undo, redo = t.app.main.prompt, dialect("ctrl+t"), dialect("ctrl+y")
            await t.send("a red circle")
            seen = []
            for key in (undo, undo, undo, undo, redo, redo, redo, redo):
                await t.send(key)
                seen.append(prompt.text)
            assert seen == ["a red ", "a ", "", "", "a ", "a red ", "a red circle", "a red circle"]
            prompt.put("")
            await t.send(undo)
            assert prompt.text == "a red circle"

    run(test())


@dialects
def test_ctrl_u_empties_the_prompt_and_undo_brings_it_back(dialect: Callable[[str], str]) -> None:
    async def test() -> None:
        async with terminal() as t:
            t.app.main.prompt.put("a red circle\nabove a green square")
            assert await t.send(dialect("ctrl+u")) == ["clear"]
            assert t.app.main.prompt.text == ""
            await t.send(dialect("ctrl+t"))
            assert t.app.main.prompt.text == "a red circle\nabove a green square"

    run(test())


@dialects
def test_ctrl_z_suspends_wherever_it_is_pressed(dialect: Callable[[str], str]) -> None:
    async def test() -> None:
        async with terminal(dry=True) as t:
            t.app.main.prompt.put("red")
            for focus in (t.app.main.prompt, t.app.main.jobs):
                t.app.screen.set_focus(focus)
                assert await t.send(dialect("ctrl+z")) == ["suspend"]
            gallery = Gallery(t.app.shared, folders.default_output_dir())
            for window in (Confirm("Leave?"), AskText("Folder:", ""), gallery):
                t.app.push_screen(window)
                await t.settle()
                assert await t.send(dialect("ctrl+z")) == ["suspend"]
            assert t.app.main.prompt.text == "red"

    run(test())


def test_enter_and_its_like_generate_and_the_text_stays() -> None:
    async def test() -> None:
        async with terminal() as t:
            await t.send(*"a red", " circle")
            likes = ("\r", "\x1b[13u", "\x1bOM", "\x1b\r", "\x07", "\x1b[103;5u", "\x1b[27;5;103~", "\x1b[15~")
            for number, sent in enumerate(likes):
                await t.send(sent)
                assert t.app.main.prompt.text == "a red circle", sent
                assert t.app.session.running is not None, sent
                jobs = [t.app.session.running, *t.app.session.queue]
                assert [job.request.prompt for job in jobs] == ["a red circle"] * (number + 1), sent

    run(test())


@pytest.mark.parametrize("last", ["\r", "\x07", "\x1b[15~", "\x1bg"])
def test_what_comes_in_the_same_packet_before_belongs_to_the_picture(last: str) -> None:
    async def test() -> None:
        async with terminal() as t:
            await t.send(f"a red\n{paste('large ')}circlee\x7f{last}")
            assert t.app.main.prompt.text == "a red\nlarge circle"
            assert t.app.session.running is not None
            assert t.app.session.running.request.prompt == "a red\nlarge circle"

    run(test())


def test_what_comes_in_the_same_packet_after_enter_does_not() -> None:
    async def test() -> None:
        async with terminal() as t:
            await t.send("red\rdish")
            assert t.app.main.prompt.text == "reddish"
            assert t.app.session.running is not None
            assert t.app.session.running.request.prompt == "red"

    run(test())


@dialects
def test_ctrl_j_breaks_the_line(dialect: Callable[[str], str]) -> None:
    async def test() -> None:
        async with terminal() as t:
            await t.send("red", dialect("ctrl+j"), "circle")
            assert t.app.main.prompt.text == "red\ncircle"
            await t.send("\x1b[1;2H", dialect("ctrl+j"))  # Shift+Home selects what is before the cursor
            assert t.app.main.prompt.text == "red\n\n"
            assert t.app.session.running is None

    run(test())


def test_enter_and_ctrl_j_can_be_swapped() -> None:
    folders.config_dir().mkdir(parents=True)
    (folders.config_dir() / "config.toml").write_text("enter_submits = false")

    async def test() -> None:
        async with terminal() as t:
            await t.send("red", "\r", "circle", "\n")
            assert t.app.session.running is not None
            assert t.app.session.running.request.prompt == t.app.main.prompt.text == "red\ncircle"

    run(test())


def test_keys_that_are_not_in_the_table_do_nothing() -> None:
    unknown = ("\x1b[13;2u", "\x1b[13;5u", "\x1b[27;2;13~", "\x1b[27;5;13~", "\x1b[27;5;110~", "\x1b[57387u", "\x00")

    async def test() -> None:
        async with terminal() as t:
            await t.send("red")
            for focus in (t.app.main.prompt, t.app.main.jobs):
                focus.focus()
                for sent in unknown:
                    assert await t.send(sent) == [], sent
                    assert t.app.main.prompt.text == "red", sent
                    assert len(t.app.screen_stack) == 1, sent

    run(test())


def test_ways_out_of_the_prompt_and_back() -> None:
    async def test() -> None:
        async with terminal() as t:
            await t.send("red")
            for sent in ("\x1b", "\t", "\x1b[27u", "\x1b[9u"):
                await t.send(sent)
                assert t.focus == "jobs", sent
                await t.send("\x1bOQ")
                assert t.focus == "prompt"
            assert t.app.main.prompt.text == "red"
            await t.send("\x1bOQ", " an apple")  # there already: none of these letters is a command
            assert t.app.main.prompt.text == "red an apple"

    run(test())


SPLIT = "[A [B [C [D [H [F [5~ [3~ [15~ [17~ [20~ [24~ [1;5C [200~ [97u [99;5u [I [O [M OP OQ OR OS OM OA".split()


def test_a_sequence_that_arrives_in_two_parts_destroys_nothing() -> None:
    async def test() -> None:
        async with terminal() as t:
            session = t.app.session
            for prompt in ("first", "second", "third"):
                t.app.main.prompt.put(prompt)
                await t.send("\r")
            before = [session.running, *session.queue]
            for sequence in SPLIT:
                await t.send("\x1b", sequence)  # Escape leaves the prompt; the rest arrives as single characters
                assert [session.running, *session.queue] == before, sequence
                assert not session.cancelling, sequence
                assert not session.paused, sequence
                assert not isinstance(t.app.screen, Confirm), sequence
                t.app.take_prompt("third")
                await t.settle()

    run(test())


@dialects
def test_up_and_down_walk_through_earlier_prompts_from_the_edges_only(dialect: Callable[[str], str]) -> None:
    async def test() -> None:
        async with terminal() as t:
            prompt, up, down = t.app.main.prompt, dialect("up"), dialect("down")
            for text in ("one", "two\nlines"):
                prompt.put(text)
                await t.send("\r")
            prompt.put("first\nlast")
            await t.send(down)
            assert prompt.text == "first\nlast"  # there is nothing later
            await t.send(up)
            assert prompt.text == "first\nlast"
            assert prompt.cursor_location[0] == 0  # only the cursor moved
            await t.send(up)
            assert prompt.text == "two\nlines"
            await t.send(down)
            assert prompt.text == "two\nlines"
            assert prompt.cursor_location[0] == 1
            await t.send(up, up)
            assert prompt.text == "one"
            await t.send(up)
            assert prompt.text == "one"  # the first there was
            await t.send(down)
            assert prompt.text == "two\nlines"
            await t.send(down)
            assert prompt.text == "first\nlast"

    run(test())


def test_an_earlier_prompt_that_was_changed_is_the_draft() -> None:
    async def test() -> None:
        async with terminal() as t:
            prompt = t.app.main.prompt
            for text in ("one", "two words"):
                prompt.put(text)
                await t.send("\r")
            for sent in ("!", "\x7f", "\n", "\x17", paste("blue"), paste("two\nlines")):
                prompt.put("")
                await t.send("\x1b[A", "\x1b[F", sent)
                changed = prompt.text
                assert changed not in ("two words", ""), sent
                await t.send("\x1b[A", "\x1b[A", "\x1b[A")
                assert prompt.text in ("one", "two words"), sent
                await t.send(*["\x1b[B"] * 5)
                assert prompt.text == changed, sent

    run(test())


@dialects
def test_ctrl_c_copies_a_selection_and_else_cancels(dialect: Callable[[str], str]) -> None:
    async def test() -> None:
        async with terminal() as t:
            cancelled: list[bool] = []
            t.app.client.cancel = lambda job_id, *, after_step: cancelled.append(after_step)  # type: ignore[method-assign]
            assert await t.send(dialect("ctrl+c")) == ["cancel"]
            assert any("Nothing runs" in note for note in notes(t.app))
            t.app.main.prompt.put("red circle")
            await t.send("\r")
            t.app.main.prompt.select_all()
            assert await t.send(dialect("ctrl+c")) == []
            assert t.app.clipboard == "red circle"
            assert cancelled == []
            t.app.main.prompt.put("red circle")
            await t.send(dialect("ctrl+c"))
            assert cancelled == [True]  # after this step
            t.app.main.jobs.focus()
            await t.send(dialect("ctrl+c"))
            assert cancelled == [True, False]  # at once
            assert t.app.main.prompt.text == "red circle"

    run(test())


# Paste.


def test_a_paste_is_text_whatever_its_lines() -> None:
    async def test() -> None:
        async with terminal() as t:
            assert await t.send(paste("a red\r\ncircle\rand\ta \x07 star\x03\x11 q [/b] {a|b}")) == []
            assert t.app.main.prompt.text == "a red\ncircle\nand a  star q [/b] {a|b}"
            assert t.app.session.running is None

    run(test())


ESCAPES = ["a \x1b[31mred\x1b[0m circle", "\x1b]0;title\x07red", "red\x1b", "\x1b[2J\x1b[H\x1bPq\x1b\\", "\x9b31m red"]


def test_a_paste_with_escape_sequences_puts_no_control_character_into_the_prompt() -> None:
    async def test() -> None:
        async with terminal() as t:
            for text in ESCAPES:
                t.app.main.prompt.put("")
                await t.send(paste(text))
                t.app.main.prompt.focus()  # the parser takes some of them for the Escape key
                await t.send("!")
                assert "!" in t.app.main.prompt.text, text  # the paste has ended
                assert t.app.main.prompt.text.replace("\n", "").isprintable(), text

    run(test())


def test_a_paste_with_escape_sequences_is_text_and_no_command() -> None:
    async def test() -> None:
        async with terminal() as t:
            for text in ESCAPES:
                t.app.main.prompt.put("")
                assert await t.send(paste(text)) == [], text
                assert t.app.main.prompt.text == clean(text), text

    run(test())


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_paste_that_arrives_in_two_parts_is_one(cut: int) -> None:
    parser, sent = XTermParser(), "\x1b[200~red\x1bg\x11\x1b[201~"
    events = [*parser.feed(sent[:cut]), *parser.feed(sent[cut:])]
    assert [event.text for event in events if isinstance(event, Paste)] == ["redg\x11"]
    assert not [event for event in events if isinstance(event, Key)]


def test_a_paste_where_nothing_can_be_typed_does_nothing() -> None:
    async def test() -> None:
        async with terminal() as t:
            t.app.main.prompt.put("red")
            await t.send("\r")
            t.app.main.jobs.focus()
            for text in ("q", "x", "X", "g", "dy", " "):
                assert await t.send(paste(text)) == []
            assert t.app.screen is t.app.main
            assert not t.app.session.queue
            assert not t.app.session.cancelling

    run(test())


# The way out.

OPENERS: dict[str, tuple[str, type[Screen[Any]]]] = {
    "question": ("\x1bX", Confirm),
    "line": ("\x1bO", AskText),
    "search": ("\x12", SearchPrompts),
    "text": ("\x1bOP", ReadText),
    "parameters": ("\x1b[20~", ParametersWindow),
    "palette": ("\x10", CommandPalette),
    "gallery": ("\x1bl", Gallery),
    "models": ("\x1bM", ModelsScreen),
}


@pytest.mark.parametrize("name", [*OPENERS, "prompt", "list"])
def test_ctrl_q_leaves_from_everywhere(name: str) -> None:
    async def test() -> None:
        async with terminal() as t:
            t.app.main.prompt.put("red circle")
            await t.send("\r", "\r")
            if name in OPENERS:
                keys, screen = OPENERS[name]
                await t.send(keys)
                assert isinstance(t.app.screen, screen)
            elif name == "list":
                t.app.main.jobs.focus()
            left: list[object] = []
            t.app.exit = lambda *arguments, **_: left.append(arguments)  # type: ignore[method-assign]
            if name in ("line", "search", "prompt", "palette"):
                assert await t.send("q") == []  # where text is typed, q is text
            assert not left
            for number, dialect in enumerate(DIALECTS.values()):
                assert await t.send(dialect("ctrl+q")) == ["quit"]
                assert len(left) == number + 1

    run(test())


def test_a_question_is_answered_and_the_keys_of_the_screen_below_rest() -> None:
    async def test() -> None:
        async with terminal() as t:
            t.app.main.prompt.put("red circle")
            await t.send("\r", "\r", "\r", "\x1bX")
            assert isinstance(t.app.screen, Confirm)
            for sent in ("g", "\x07", "x", " ", "\x1b[15~", "\x12"):
                assert await t.send(sent) == []
            assert len(t.app.session.queue) == 2
            await t.send("n")
            assert len(t.app.screen_stack) == 1
            assert len(t.app.session.queue) == 2
            await t.send("\x1bX", "y")
            assert not t.app.session.queue

    run(test())


@pytest.mark.parametrize("name", ["line", "search", "text", "parameters", "palette"])
def test_escape_closes_a_window(name: str) -> None:
    async def test() -> None:
        async with terminal() as t:
            await t.send(OPENERS[name][0])
            assert t.app.screen is not t.app.main
            await t.send("\x1b")
            assert t.app.screen is t.app.main
            assert t.focus == "prompt"

    run(test())


@pytest.mark.parametrize("name", ["question", "line", "search", "text", "parameters", "gallery", "models"])
def test_escape_and_a_letter_in_one_packet_close_a_window_and_go_below(name: str) -> None:
    async def test() -> None:
        async with terminal() as t:
            t.app.main.prompt.put("red")
            await t.send("\r", "\r", OPENERS[name][0])
            assert t.app.screen is not t.app.main
            assert await t.send("\x1bz") == (["back"] if name in ("gallery", "models") else [])
            assert t.app.screen is t.app.main
            assert t.app.main.prompt.text == "redz"
            t.app.main.set_focus(t.app.main.jobs)
            await t.send("X" if name == "question" else OPENERS[name][0], "\x1bW")
            assert t.app.screen is t.app.main
            assert t.focus == "jobs"
            assert len(t.app.session.queue) == 1

    run(test())


# keymap.toml


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str | bytes], tuple[Keys, str]]:
    """Write a keymap and read it; its message without the file's name."""

    def write_and_read(content: str | bytes) -> tuple[Keys, str]:
        path = tmp_path / "keymap.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        keys, message = read_keymap(path)
        if message is None:
            return keys, ""
        assert message.startswith("keymap.toml")
        assert message.isprintable()
        return keys, message.removeprefix("keymap.toml").removeprefix(":").strip()

    return write_and_read


@pytest.mark.parametrize(
    ("content", "command_id", "keys"),
    [
        ('"job.cancel" = "z"', "job.cancel", "z"),
        ('job.cancel = "z"', "job.cancel", "z"),
        ('[job]\ncancel = "z"', "job.cancel", "z"),
        ('"job.cancel" = "f7 ctrl+n z"', "job.cancel", "f7 ctrl+n z"),
        ('"job.cancel" = "f7,ctrl+n , z"', "job.cancel", "f7 ctrl+n z"),
        ('"job.cancel" = "z z z"', "job.cancel", "z"),
        ('"job.cancel" = "F7"', "job.cancel", "f7"),
        ('"job.cancel" = "Ctrl+N"', "job.cancel", "ctrl+n"),
        ('"job.cancel" = "^N"', "job.cancel", "ctrl+n"),
        ('"job.cancel" = "^"', "job.cancel", "^"),
        ('"job.cancel" = "Z"', "job.cancel", "Z"),
        ('"job.cancel" = "alt+z alt+shift+z"', "job.cancel", "alt+z alt+shift+z"),
        ('"job.cancel" = "% 5 \u00e9 \u20ac"', "job.cancel", "% 5 \u00e9 \u20ac"),
        ('"image.delete" = "Del"', "image.delete", "delete"),
        ('"job.submit" = "ctrl+n"', "job.submit", "ctrl+n"),
        ('"app.quit" = "f10 z"', "app.quit", "f10 z"),
        ('"app.quit" = "alt+z"', "app.quit", "alt+z"),
        ("\ufeff" + '"job.cancel" = "z"\r\n', "job.cancel", "z"),
    ],
)
def test_a_good_line_replaces_all_keys_of_its_command_and_no_other(
    content: str, command_id: str, keys: str, read
) -> None:
    table, message = read(content)
    assert message == ""
    assert table[command_id].keys == keys
    assert [command for command in table.commands if command.id != command_id] == [
        command for command in COMMANDS if command.id != command_id
    ]


def test_keys_can_be_swapped_and_taken_over(read) -> None:
    table, message = read('"job.new_seed" = "e"\n"prompt.editor" = "n"\n"job.cancel" = "f8"\n"view.preview" = "x"')
    assert message == ""
    ids = ("job.new_seed", "prompt.editor", "job.cancel", "view.preview")
    assert [table[command_id].keys for command_id in ids] == ["e", "n", "f8", "x"]


@pytest.mark.parametrize("spelled", [str, display], ids=["by name", "as shown"])
def test_the_whole_table_can_be_written_down(spelled: Callable[[str], str], read) -> None:
    lines = [f"{command.id!r} = '{' '.join(map(spelled, command.key_list))}'" for command in COMMANDS]
    table, message = read("\n".join(lines))
    assert message == ""
    assert table == Keys()
    assert table.keymap() == {}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("job.cancl = 'z'", "there is no command job.cancl, the nearest is job.cancel"),
        ("cancel = 'z'", "there is no command cancel"),
        ("nothing.like.it = 'z'", "there is no command nothing.like.it; `t2i keys` lists them"),
        ("view = 'z'", "there is no command view"),
        ("view.preview = 'f13'", "view.preview: f13 cannot be used, the nearest is f3"),
        ("view.preview = 'crtl+t'", "view.preview: crtl+t cannot be used, the nearest is ctrl+t"),
        ("view.preview = 'escpe'", "view.preview: escpe cannot be used, the nearest is escape"),
        ("view.preview = '\u65e5\u672c'", "view.preview: \u65e5\u672c cannot be used. The"),
        ("view.preview = 'ctrl+1'", "view.preview: ctrl+1 cannot be used"),
        ("view.preview = 'ctrl+m'", "view.preview: ctrl+m cannot be used, it arrives as enter"),
        ("view.preview = 'f7 ^I z'", "view.preview: ctrl+i cannot be used, it arrives as tab"),
        ("view.preview = 'Alt+F'", "view.preview: alt+f cannot be used, it arrives as ctrl+right"),
        ("view.preview = 'alt+b'", "view.preview: alt+b cannot be used, it arrives as ctrl+left"),
        ("view.preview = 'shift+enter'", "view.preview: shift+enter cannot be used, it arrives as enter"),
        ("view.preview = 'ctrl+z'", "view.preview: ^Z is taken by app.suspend"),
        ("view.preview = 'alt+1'", "view.preview: alt+1 does not arrive in most terminals"),
        ("view.preview = 'ctrl+shift+t'", "view.preview: ctrl+shift+t does not arrive in most terminals"),
        ("view.preview = 'pageup'", "view.preview: pageup cannot be used, prompt and list take it for themselves"),
        ("job.submit = 'z'", "job.submit: z cannot be used, it is typed into the prompt"),
        ("prompt.leave = 'space'", "prompt.leave: space cannot be used, it is typed into the prompt"),
        ("view.preview = 'x'", "view.preview: x is taken by job.cancel"),
        ("view.preview = 'z x'", "view.preview: x is taken by job.cancel"),
        ("view.preview = 'alt+x'", "view.preview: Alt+X is taken by job.cancel"),
        ("view.preview = 'enter'", "view.preview: enter cannot be used"),
        ("view.preview = 'tab'", "view.preview: Tab is taken by prompt.leave"),
        ("view.preview = '?'", "view.preview: ? is taken by app.help"),
        ("app.help = 'r'", "app.help: r is taken by image.remix"),
        ("gallery.filter = 'v'", "gallery.filter: v is taken by image.view"),
        ("app.quit = 'q'", "app.quit needs a key with ctrl or alt or an F key"),
        ("app.quit = 'q,z'", "app.quit needs a key with ctrl or alt or an F key"),
        ("app.quit = 'space left'", "app.quit needs a key with ctrl or alt or an F key"),
        ("view.preview = 5", "view.preview must be keys as text, such as 'w'"),
        ("view.preview = ['z']", "view.preview must be keys as text, such as 'w'"),
        ("view.preview = true", "view.preview must be keys as text, such as 'w'"),
        ("view.preview = ''", "view.preview must be keys as text, such as 'w'"),
        ("view.preview = ' , '", "view.preview must be keys as text, such as 'w'"),
        ("view.preview = 1999-01-01", "view.preview must be keys as text, such as 'w'"),
    ],
)
def test_a_wrong_line_is_explained_and_the_others_count(line: str, problem: str, read) -> None:
    table, message = read(f"job.submit_now = 'Z'\n{line}")
    assert message.startswith(problem)
    assert message.endswith(". The usual keys hold there.")
    assert table["job.submit_now"].keys == "Z"
    assert table.keymap().keys() <= {"job.submit_now", "job.submit_now.first"}


def test_the_line_at_fault_for_a_clash_is_the_persons(read) -> None:
    table, message = read("image.view = 'z'\nview.gallery = 'z'")
    assert message == "image.view: z is taken by view.gallery. The usual keys hold there."
    assert (table["view.gallery"].keys, table["image.view"].keys) == ("z", "v f3")


def test_taking_a_line_back_may_bring_another_clash_to_light(read) -> None:
    # e goes back to the editor, for ctrl+p is taken; so new seeds cannot have it.
    table, message = read("prompt.editor = 'ctrl+p'\njob.new_seed = 'e'")
    assert message == (
        "prompt.editor: ^P is taken by app.palette; job.new_seed: e is taken by prompt.editor. "
        "The usual keys hold there."
    )
    assert table == Keys()


def test_several_problems_come_in_one_message_which_stays_readable(read) -> None:
    table, message = read("job.cancl = 'z'\nview.preview = 'ctrl+m'\nimage.view = 3\nview.gallery = 'z'")
    assert message.count(";") == 2
    assert all(part in message for part in ("job.cancl", "view.preview", "image.view"))
    assert table["view.gallery"].keys == "z"
    many = "\n".join(f"nothing_{number} = 'z'" for number in range(500))
    assert re.search(r" and 49[0-9] more\. The usual keys hold there\.$", read(many)[1])
    assert len(read(many)[1]) <= 400


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'"job.cancel" = ', "Invalid value (at end of document); the usual keys hold."),
        (b"job cancel", "Expected '=' after a key"),
        (b"job.cancel = 'a'\njob.cancel = 'b'", "Cannot overwrite a value"),
        (b'"job.cancel" = "\xff"', "is not UTF-8 text; the usual keys hold."),
        (b"\xff\xfej\x00", "is not UTF-8 text; the usual keys hold."),
        (b"#" * (MAX_FILE_BYTES + 1), "it is larger than 64 KiB; the usual keys hold."),
        (b"a = " + b"[" * 9000, "it holds a value that is nested too deep; the usual keys hold."),
        (b"a." * 2000 + b"a = 1", "it holds a value that is nested too deep; the usual keys hold."),
        (b"a = " + b"9" * 9000, "Exceeds the limit"),
    ],
)
def test_a_file_that_is_no_keymap_is_explained_and_changes_nothing(content: bytes, problem: str, read) -> None:
    table, message = read(content)
    assert message.startswith(problem)
    assert table == Keys()


def test_a_missing_or_empty_file_is_fine(read, tmp_path: Path) -> None:
    assert read_keymap(tmp_path / "nothing" / "keymap.toml") == (Keys(), None)
    assert read("") == (Keys(), "")
    assert read("# only a comment\n") == (Keys(), "")


def test_a_folder_or_a_pipe_in_its_place_is_explained(tmp_path: Path) -> None:
    (tmp_path / "keymap.toml").mkdir()
    keys, message = read_keymap(tmp_path / "keymap.toml")
    assert keys == Keys()
    assert message is not None
    assert "cannot be read" in message
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.toml")
        assert read_keymap(tmp_path / "pipe.toml") == (
            Keys(),
            "pipe.toml: it is not a file of text; the usual keys hold.",
        )


@pytest.mark.parametrize("hostile", ["\\u001b[2J", "\\u001b]0;x\\u0007", "\\u202egpj", "\\u0000", "\\n\\n", "[/b]"])
def test_hostile_text_is_spelled_out(hostile: str, read) -> None:
    for content in (f'"{hostile}" = "z"', f'"view.preview" = "{hostile}{hostile}x"', f'"{hostile * 999}" = "z"'):
        table, message = read(content)  # which looks at every character of the message
        assert message
        assert len(message) < 1000
        assert table == Keys()
    assert read(f'"job.cancel" = "{hostile}'.encode().decode("unicode_escape").encode())[0] == Keys()


# An override in the running app.


@pytest.mark.parametrize(
    ("keymap", "action", "works", "rests"),
    [
        # a letter for a letter
        ('"job.cancel" = "z"', "cancel", ["z", "alt+z"], ["x", "alt+x", "f8", "ctrl+c"]),
        ('"queue.clear" = "Z"', "clear_queue", ["Z", "alt+shift+z"], ["X", "alt+shift+x", "z"]),
        # a key that works in the prompt, for one that does not
        ('"job.new_seed" = "f12"', "generate_new_seed", ["f12"], ["n", "alt+n"]),
        ('"view.preview" = "ctrl+n"', "cycle_preview", ["ctrl+n"], ["w", "alt+w"]),
        ('"view.preview" = "alt+z"', "cycle_preview", ["alt+z"], ["w", "alt+w"]),
        ('"queue.pause" = "f12"', "pause", ["f12"], ["space"]),
        ('"seed.inc" = "f12"', "change_seed(1)", ["f12"], ["="]),
        # a letter for keys that have no letter
        ('"app.redraw" = "z"', "redraw", ["z", "alt+z"], ["ctrl+l"]),
        ('"prompt.focus" = "z"', "focus_prompt", ["z", "alt+z"], ["f2"]),
        ('"job.cancel" = "%"', "cancel", ["%"], ["x", "alt+x"]),
        ('"image.favourite" = "f b"', "favourite", ["f", "b"], []),
        # the prompt's own
        ('"prompt.newline" = "ctrl+n"', "newline", ["ctrl+n"], ["ctrl+j"]),
        ('"prompt.leave" = "f12"', "leave", ["f12"], ["tab", "escape"]),
        # others' keys
        ('"job.new_seed" = "e"\n"prompt.editor" = "n"', "edit", ["n", "alt+n"], ["e", "alt+e"]),
        ('"job.cancel" = "f8"\n"view.preview" = "x"', "cycle_preview", ["x", "alt+x"], ["w", "alt+w", "ctrl+c"]),
        # the way out
        ('"app.quit" = "f10 z"', "quit", ["f10", "z", "alt+z"], ["q", "alt+q", "ctrl+q"]),
    ],
)
def test_an_override_works_and_the_old_keys_rest(keymap: str, action: str, works: list[str], rests: list[str]) -> None:
    command = next(command for command in COMMANDS if command.action == action)

    async def test() -> None:
        async with terminal(keymap, dry=True) as t:
            assert not [note for note in notes(t.app) if "keymap" in note]
            for focus in (t.app.main.prompt, t.app.main.jobs):
                for key in works:
                    focus.focus()
                    typed = focus is t.app.main.prompt and len(key) == 1
                    runs = not typed and (focus is t.app.main.prompt or command.scope != "prompt")
                    assert await t.send(xterm(key)) == ([action] if runs else []), (key, focus)
                for key in rests:
                    focus.focus()
                    assert action not in await t.send(xterm(key)), (key, focus)
            typed_text = "".join(key for key in [*works, *rests] if len(key) == 1)
            assert t.app.main.prompt.text.strip(" \n") == typed_text

    run(test())


def test_a_key_that_the_prompt_got_back_moves_its_cursor() -> None:
    async def test() -> None:
        async with terminal('"prompt.history_prev" = "ctrl+n"\n"prompt.history_next" = "f12"') as t:
            prompt = t.app.main.prompt
            prompt.put("one")
            await t.send("\r")
            prompt.put("two\nlines")
            await t.send("\x1b[A")
            assert prompt.cursor_location[0] == 0
            await t.send("\x1b[A")
            assert prompt.text == "two\nlines"
            await t.send("\x0e")
            assert prompt.text == "one"
            await t.send("\x1b[24~")
            assert prompt.text == "two\nlines"

    run(test())


def test_a_bar_shows_the_keys_in_effect() -> None:
    async def test() -> None:
        async with terminal('"view.parameters" = "f12 p"') as t:
            assert "F12 Params" in screen_text(t.app).splitlines()[-1]

    run(test())


def test_a_line_that_is_wrong_leaves_the_usual_keys_in_the_app() -> None:
    async def test() -> None:
        async with terminal('"app.quit" = "z"\n"job.cancel" = "ctrl+m"', dry=True) as t:
            assert any("keymap.toml" in note and "app.quit" in note and "ctrl+m" in note for note in notes(t.app))
            assert await t.send("z") == []
            assert t.app.main.prompt.text == "z"
            assert await t.send("\r") == ["submit"]
            assert await t.send("\x03") == ["cancel"]
            assert await t.send("\x11") == ["quit"]

    run(test())
    assert Keys()[QUIT].keys == "ctrl+q"
