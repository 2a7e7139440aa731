"""Every key of the app in one table: screens, footer, help, palette, README and `keymap.toml` read it.

A single character is a command letter: it works where no text is being typed, and with Alt everywhere. Other keys work
everywhere on their screen. Keys that terminals cannot send apart from others are refused.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from textual.binding import Binding, BindingType

from engine.progress import printable

Scope = Literal["prompt", "main", "pictures", "gallery", "app"]
MAX_FILE_BYTES = 64 * 1024
QUIT = "app.quit"
# With the Kitty protocol or not: these arrive as another key, or not at all, in one terminal or another.
UNREACHABLE = {
    "ctrl+h": "arrives as backspace",
    "ctrl+i": "arrives as tab",
    "ctrl+m": "arrives as enter",
    "ctrl+left_square_bracket": "arrives as escape",
    "ctrl+[": "arrives as escape",
    "ctrl+enter": "arrives as enter in most terminals",
    "shift+enter": "arrives as enter in most terminals",
    "alt+enter": "arrives as enter in most terminals",
    "ctrl+backspace": "arrives as backspace in most terminals",
    "ctrl+s": "stops the output of many terminals",
    "ctrl+z": "suspends the app",
    "ctrl+backslash": "ends the app in many terminals",
}
NAMED_KEYS = {
    *("enter", "escape", "tab", "shift+tab", "space", "backspace", "delete", "insert", "home", "end"),
    *("pageup", "pagedown", "up", "down", "left", "right"),
    *(f"f{number}" for number in range(1, 13)),
}


@dataclass(frozen=True, slots=True)
class Command:
    """Something that a key does. `keys` are separated by blanks; the first is shown."""

    id: str
    scope: Scope
    keys: str
    action: str
    label: str
    tooltip: str

    @property
    def key_list(self) -> list[str]:
        return self.keys.split()

    def bindings(self) -> list[Binding]:
        """What Textual needs, the Alt aliases of letters included."""
        found = []
        for key in self.key_list:
            # A prompt takes what it can type before any other binding is asked, so its own come first.
            first = self.scope == "prompt" or (self.id == QUIT and len(key) > 1)
            found.append(Binding(_textual_key(key), self.action, self.label, show=False, id=self.id, priority=first))
            alias = _alias(key)
            if alias:
                found.append(Binding(alias, self.action, self.label, show=False, id=f"{self.id}.alt", priority=True))
        return found


COMMANDS = (
    Command("job.submit", "prompt", "enter", "submit", "Generate", "Make a picture of the prompt; the text stays"),
    Command("prompt.newline", "prompt", "ctrl+j", "newline", "New line", "Start a new line in the prompt"),
    Command("prompt.leave", "prompt", "escape tab", "leave", "List", "From the prompt to the pictures"),
    Command("prompt.history_prev", "prompt", "up", "history(-1)", "Earlier", "On the first line: the prompt before"),
    Command("prompt.history_next", "prompt", "down", "history(1)", "Later", "On the last line: the prompt after"),
    Command("job.generate", "main", "ctrl+g f5 g", "generate", "Generate", "Make a picture; while one runs, queue it"),
    Command("job.new_seed", "main", "n", "generate_new_seed", "New seed", "Make a picture with a new seed"),
    Command("job.submit_now", "main", "G", "generate_now", "Generate now", "Cancel the running picture, make this one"),
    Command("job.cancel", "main", "ctrl+c f8 x", "cancel", "Cancel", "Stop after this step; again: at once"),
    Command("queue.pause", "main", "space", "pause", "Pause queue", "Begin nothing new, or go on"),
    Command("queue.up", "main", "K", "move(-1)", "Move up", "Move the waiting job up"),
    Command("queue.down", "main", "J", "move(1)", "Move down", "Move the waiting job down"),
    Command("queue.clear", "main", "X", "clear_queue", "Clear queue", "Remove every waiting job, after asking"),
    Command("seed.lock", "main", "f4 s", "lock_seed", "Lock seed", "Keep the last used seed, or let go of it"),
    Command("seed.dec", "main", "-", "change_seed(-1)", "Seed -1", "One less, and lock it"),
    Command("seed.inc", "main", "=", "change_seed(1)", "Seed +1", "One more, and lock it"),
    Command("count.dec", "main", "<", "change_count(-1)", "Fewer", "One picture less each time"),
    Command("count.inc", "main", ">", "change_count(1)", "More", "One picture more each time"),
    Command("view.parameters", "main", "f9 p", "parameters", "Params", "Steps, size, seed and the others"),
    Command("history.search", "main", "ctrl+r h", "search_history", "History", "Search the prompts so far"),
    Command("prompt.editor", "main", "e", "edit", "Edit", "Write the prompt in $EDITOR"),
    Command("prompt.focus", "main", "f2", "toggle_focus", "Prompt", "Between the prompt and the pictures"),
    Command("view.preview", "main", "w", "cycle_preview", "Preview", "Live preview off, low or high"),
    Command("view.gallery", "main", "l", "gallery", "Gallery", "All pictures of the output folder"),
    Command("output.change", "main", "O", "change_output", "Output folder", "Save pictures to another folder"),
    Command("image.view", "pictures", "v f3", "view", "View", "Fill the terminal with the picture"),
    Command("image.open", "pictures", "o ctrl+o", "open", "Open", "Open the picture in the system's viewer"),
    Command("image.info", "pictures", "i", "info", "Info", "The settings in the picture's file"),
    Command("image.remix", "pictures", "r", "remix", "Remix", "Take everything over but the seed"),
    Command("image.use_seed", "pictures", "u", "use_seed", "Use seed", "Take the seed over, and lock it"),
    Command("image.use_all", "pictures", "a", "use_all", "Use all", "Take everything over, the seed too"),
    Command("image.favourite", "pictures", "f", "favourite", "Favourite", "Star the picture, or take the star away"),
    Command("image.compare", "pictures", "c", "compare", "Compare", "Mark a picture; on another, show both"),
    Command("image.delete", "pictures", "d delete", "delete", "Delete", "To the trash folder, or off the queue"),
    Command("image.copy_path", "pictures", "y", "copy_path", "Copy path", "The picture's path to the clipboard"),
    Command("image.copy_scp", "pictures", "Y", "copy_scp", "Copy scp", "A line that fetches the picture over SSH"),
    Command("gallery.filter", "gallery", "/", "filter", "Filter", "Only prompts with these words"),
    Command("gallery.favourites", "gallery", "*", "favourites_only", "Favourites", "Only pictures with a star"),
    Command("gallery.back", "gallery", "escape l", "back", "Back", "Back to the prompt"),
    Command("app.palette", "app", "ctrl+p", "command_palette", "Commands", "Every command, searched by name"),
    Command("app.help", "app", "f1 ?", "help", "Help", "All keys"),
    Command("app.redraw", "app", "ctrl+l", "redraw", "Redraw", "Paint the whole screen again"),
    Command(QUIT, "app", "ctrl+q q", "quit", "Quit", "Leave; prompt, queue and settings are kept"),
)
PROMPT_BAR = (
    "job.submit",
    "job.cancel",
    "history.search",
    "prompt.leave",
    "view.parameters",
    "app.palette",
    "app.help",
)
LIST_BAR = ("job.generate", "job.new_seed", "image.remix", "seed.lock", "image.open", "prompt.focus", "app.help")
GALLERY_BAR = (
    "gallery.back",
    "image.view",
    "image.remix",
    "image.favourite",
    "gallery.filter",
    "image.open",
    "app.help",
)
# What is active at the same time: within such a group a key may do one thing only.
TOGETHER: tuple[frozenset[Scope], ...] = (
    frozenset(("prompt", "main", "pictures", "app")),
    frozenset(("gallery", "pictures", "app")),
)


@dataclass(frozen=True, slots=True)
class Keys:
    """The table as it is in effect."""

    commands: tuple[Command, ...] = COMMANDS

    def __getitem__(self, command_id: str) -> Command:
        return next(command for command in self.commands if command.id == command_id)

    def keymap(self) -> dict[str, str]:
        """What Textual's own keymap must override: only what differs from the table."""
        changed = {}
        for default, command in zip(COMMANDS, self.commands, strict=True):
            if default.keys != command.keys:
                changed[command.id] = ",".join(_textual_key(key) for key in command.key_list)
                aliases = [alias for key in command.key_list if (alias := _alias(key))]
                if any(map(_alias, default.key_list)):
                    changed[f"{command.id}.alt"] = ",".join(aliases) or "f24"  # an empty text would keep the old ones
        return changed

    def shown(self, command_id: str) -> str:
        """The first key of a command, as people write it."""
        return display(self[command_id].key_list[0])


def display(key: str) -> str:
    """A key as people write it: ^G, F5, Esc, K."""
    names = {"escape": "Esc", "space": "Space", "pageup": "PgUp", "pagedown": "PgDn", "delete": "Del"}
    if key.startswith("ctrl+"):
        return "^" + key.removeprefix("ctrl+").upper()
    if len(key) == 1:
        return key
    return names.get(key) or "+".join(part.capitalize() for part in key.split("+"))


def bindings_of(*scopes: Scope) -> list[BindingType]:
    """The default bindings of a screen or widget."""
    return [binding for command in COMMANDS if command.scope in scopes for binding in command.bindings()]


def read_keymap(path: Path) -> tuple[Keys, str | None]:
    """The table with the user's `keymap.toml` (`"job.cancel" = "f8 x"`), and one message with all that is wrong in it.

    Lines that are wrong leave their command as it was. Raises nothing; a missing file changes nothing.
    """
    name = path.name
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {MAX_FILE_BYTES // 1024} KiB")
        values = tomllib.loads(data.decode("utf-8"))
    except FileNotFoundError:
        return Keys(), None
    except OSError as error:
        return Keys(), f"{name} cannot be read ({(error.strerror or 'unknown reason').lower()}); the usual keys hold."
    except UnicodeDecodeError:
        return Keys(), f"{name} is not UTF-8 text; the usual keys hold."
    except ValueError as error:
        return Keys(), printable(f"{name}: {error}; the usual keys hold.")
    keys, problems = apply_keymap(values)
    if not problems:
        return keys, None
    return keys, printable(f"{name}: {'; '.join(problems)}. The usual keys hold there.")


def apply_keymap(values: Mapping[str, object]) -> tuple[Keys, list[str]]:
    """The table with `values` (id to keys) laid over it, and a clause for each thing that is wrong with them."""
    problems: list[str] = []
    known = {command.id for command in COMMANDS}
    wanted: dict[str, str] = {}
    for command_id, keys in _flat(values):
        if command_id not in known:
            near = difflib.get_close_matches(command_id, known, n=1)
            hint = f", did you mean {near[0]}?" if near else "; `t2i keys` lists them"
            problems.append(f"there is no command {command_id[:60]}{hint}")
        elif not isinstance(keys, str) or not keys.replace(",", " ").split():
            problems.append(f"{command_id} must be keys as text, such as {_default(command_id).keys!r}")
        elif wrong := [reason for key in keys.replace(",", " ").split() if (reason := _problem(key))]:
            problems += [f"{command_id}: {reason}" for reason in wrong]
        elif command_id == QUIT and not any(len(key) > 1 for key in keys.split()):
            problems.append(f"{QUIT} needs a key that is no letter, for it must work in the prompt, too")
        else:
            wanted[command_id] = " ".join(_spelled(key) for key in keys.replace(",", " ").split())
    while True:  # a clash takes the user's line back, which may bring another to light
        commands = tuple(replace(command, keys=wanted.get(command.id, command.keys)) for command in COMMANDS)
        clash = next(_clashes(commands, wanted), None)
        if clash is None:
            return Keys(commands), problems
        culprit, problem = clash
        del wanted[culprit]
        problems.append(problem)


def table(keys: Keys) -> list[tuple[str, str, str]]:
    """Rows of the table in effect for people: keys, id, what they do."""
    return [
        (" ".join(display(key) for key in command.key_list), command.id, command.tooltip) for command in keys.commands
    ]


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    """`job.cancel = "x"` is a nested table in TOML; in quotes it is not: both are fine."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _default(command_id: str) -> Command:
    return next(command for command in COMMANDS if command.id == command_id)


def _spelled(key: str) -> str:
    return key if len(key) == 1 else key.lower()


def _problem(key: str) -> str | None:
    """What is wrong with a key; None if nothing is."""
    if len(key) == 1:
        return None if key.isprintable() and key != "," else f"{key!r} is no key that can be named"
    lower = key.lower()
    if lower in UNREACHABLE:
        return f"{lower} cannot be used, it {UNREACHABLE[lower]}"
    if re.fullmatch(r"alt\+[0-9]", lower) or lower.startswith("ctrl+shift+"):
        return f"{lower} does not arrive in most terminals"
    if lower in NAMED_KEYS or re.fullmatch(r"ctrl\+[a-z]|alt\+[a-z]|alt\+shift\+[a-z]", lower):
        return None
    near = difflib.get_close_matches(lower, [*NAMED_KEYS, *(f"ctrl+{c}" for c in "abcdefg")], n=1)
    return f"{key[:40]} is no key" + (f", did you mean {near[0]}?" if near else "")


def _clashes(commands: Iterable[Command], wanted: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(the user's line at fault, what is wrong) for each key that does two things at once."""
    commands = list(commands)
    for scopes in TOGETHER:
        taken: dict[str, str] = {}
        for command in sorted(commands, key=lambda command: command.id in wanted):
            if command.scope not in scopes:
                continue
            for key in command.key_list:
                for form in filter(None, (_textual_key(key), _alias(key))):
                    other = taken.setdefault(form, command.id)
                    if other != command.id and command.id in wanted:
                        yield command.id, f"{command.id}: {display(key)} is taken by {other}"
                        break


def _textual_key(key: str) -> str:
    """Textual's name of a key: `?` is question_mark, letters are themselves."""
    if len(key) > 1 or key.isalnum():
        return key
    name = unicodedata.name(key, key).lower().replace("-", "_").replace(" ", "_")
    short = {"solidus": "slash", "reverse_solidus": "backslash", "commercial_at": "at", "hyphen_minus": "minus"}
    return short.get(name) or {"plus_sign": "plus", "low_line": "underscore"}.get(name, name)


def _alias(key: str) -> str | None:
    """Escape and a letter in one packet arrive as Alt and the letter; Alt+F is the prompt's own word jump."""
    if not re.fullmatch("[A-Za-z]", key) or key == "f":
        return None
    return f"alt+{key}" if key.islower() else f"alt+shift+{key.lower()}"
