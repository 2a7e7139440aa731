"""Every key of the app in one table: screens, footer, help, palette, README and `keymap.toml` read it.

A single character is a command letter: it works where no text is being typed, and with Alt everywhere. Other keys work
everywhere on their screen, unless they edit the prompt while it has the focus. Keys that terminals cannot send apart
from others are refused.
"""

from __future__ import annotations

import difflib
import re
import string
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from textual.binding import Binding, BindingType
from textual.events import Key

from engine.text import printable, some_of

Scope = Literal["prompt", "main", "pictures", "compare", "gallery", "models", "app"]
MAX_FILE_BYTES = 64 * 1024
MAX_PROBLEMS = 320  # characters of clauses in one message; it is for reading
QUIT, SUSPEND = "app.quit", "app.suspend"
UNBOUND = "unbound"  # a name that no key has
ANYWHERE = re.compile(r"ctrl\+|alt\+|f[0-9]")  # keys that neither type nor edit
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
    "alt+b": "arrives as ctrl+left",
    "alt+f": "arrives as ctrl+right",
    "ctrl+s": "stops the output of many terminals",
    "ctrl+backslash": "ends the app in many terminals",
}
# Prompt and list move their own cursor with these, and Enter is the prompt's: no other command would see them.
KEPT = {"enter", "up", "down", "home", "end", "pageup", "pagedown"}
SHORT_NAMES = {"escape": "Esc", "pageup": "PgUp", "pagedown": "PgDn", "delete": "Del"}
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

    def textual_keys(self, *, first: bool) -> list[str]:
        """Textual's names of the keys that are asked first, before what has the focus, or of the others.

        First come those of the prompt, which would type them, the Alt aliases of letters, and both ways out.
        """
        found = []
        for key in self.key_list:
            if first == (self.scope == "prompt" or (self.id in (QUIT, SUSPEND) and bool(ANYWHERE.match(key)))):
                found.append(_textual_key(key))
            if first and (alias := _alias(key)):
                found.append(alias)
        return found

    def bindings(self) -> list[Binding]:
        """What Textual needs.

        A keymap replaces the keys of bindings, and while the prompt has the focus Textual takes those of letters away
        before: each of the two kinds has one more, which never rings.
        """
        return [
            Binding(key, self.action, self.label, show=False, id=binding_id, priority=first)
            for binding_id, first in ((self.id, False), (f"{self.id}.first", True))
            for key in (*self.textual_keys(first=first), UNBOUND)
        ]


COMMANDS = (
    Command("job.submit", "prompt", "enter", "submit", "Generate", "Make a picture of the prompt; the text stays"),
    Command("prompt.newline", "prompt", "ctrl+j", "newline", "New line", "Start a new line in the prompt"),
    Command("prompt.leave", "prompt", "escape tab", "leave", "List", "From the prompt to the pictures"),
    Command("prompt.history_prev", "prompt", "up", "history(-1)", "Earlier", "On the first line: the prompt before"),
    Command("prompt.history_next", "prompt", "down", "history(1)", "Later", "On the last line: the prompt after"),
    Command("prompt.undo", "prompt", "ctrl+t", "undo", "Undo", "Take the last words back, or another change"),
    Command("prompt.redo", "prompt", "ctrl+y", "redo", "Redo", "Do again what was taken back"),
    Command("prompt.clear", "prompt", "ctrl+u", "clear", "Empty", "Empty the prompt; undo brings it back"),
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
    Command("seed.inc", "main", "= +", "change_seed(1)", "Seed +1", "One more, and lock it"),
    Command("count.dec", "main", "<", "change_count(-1)", "Fewer", "One picture less each time"),
    Command("count.inc", "main", ">", "change_count(1)", "More", "One picture more each time"),
    Command("view.parameters", "main", "f9 p", "parameters", "Params", "Steps, size, seed and the others"),
    Command("preset.choose", "main", "L", "choose_preset", "Preset", "Take over choices that have a name"),
    Command("preset.save", "main", "S", "save_preset", "Save preset", "Keep what is set under a name"),
    Command("parameters.reset", "main", "R", "reset_parameters", "Reset", "All parameters as the model prefers them"),
    Command("history.search", "main", "ctrl+r h", "search_history", "History", "Search the prompts so far"),
    Command("prompt.editor", "main", "e", "edit", "Edit", "Write the prompt in your editor"),
    Command("prompt.focus", "main", "f2", "focus_prompt", "Prompt", "To the prompt"),
    Command("view.plan", "main", "P", "plan", "Plan", "How the picture fits into memory, and why"),
    Command("view.preview", "main", "w", "cycle_preview", "Preview", "Live preview off, low or high"),
    Command("view.gallery", "main", "l", "gallery", "Gallery", "All pictures of the output folder"),
    Command("view.models", "main", "M", "models", "Models", "The models: open, add, find, pull, remove"),
    Command("output.change", "main", "O", "change_output", "Output folder", "Save pictures to another folder"),
    Command("image.view", "pictures", "v f3", "view", "View", "Fill the terminal with the picture"),
    Command("image.open", "pictures", "o ctrl+o", "open", "Open", "Open the picture in the system's viewer"),
    Command("image.info", "pictures", "i", "info", "Info", "The settings in the picture's file"),
    Command("image.remix", "pictures", "r", "remix", "Remix", "Take everything over but the seed"),
    Command("image.use_seed", "pictures", "u", "use_seed", "Use seed", "Take the seed over, and lock it"),
    Command("image.use_all", "pictures", "a", "use_all", "Use all", "Take everything over, the seed too"),
    Command("image.favourite", "pictures", "f", "favourite", "Favourite", "Star the picture, or take the star away"),
    Command("image.mark", "pictures", "t", "mark", "Mark", "Mark it or not, for star, compare and trash"),
    Command("image.unmark", "pictures", "T", "unmark", "No marks", "Take all marks away"),
    Command("image.compare", "pictures", "c", "compare", "Compare", "Mark a picture; on another, show both"),
    Command("image.delete", "pictures", "d delete", "delete", "Delete", "To the trash folder, or off the queue"),
    Command("image.bring_back", "pictures", "U", "bring_back", "Undelete", "Bring back what went to the trash last"),
    Command("image.copy_path", "pictures", "y", "copy_path", "Copy path", "The picture's path to the clipboard"),
    Command("image.copy_scp", "pictures", "Y", "copy_scp", "Copy scp", "A line that fetches the picture over SSH"),
    Command("compare.keep", "compare", "k", "keep", "Keep this", "Keep this one; the other goes to the trash"),
    Command("compare.next", "compare", "n", "next", "Next", "The next of the marked ones in the other's place"),
    Command("gallery.filter", "gallery", "/", "filter", "Filter", "Only prompts with these words"),
    Command("gallery.favourites", "gallery", "*", "favourites_only", "Favourites", "Only pictures with a star"),
    Command("gallery.back", "gallery", "escape l q", "back", "Back", "Back to the prompt"),
    Command("models.open", "models", "o", "open_model", "Open", "Make the next pictures with this model"),
    Command("models.add", "models", "a", "add", "Add", "A file or a folder of yours to the list"),
    Command("models.scan", "models", "s", "scan", "Scan", "Look for models in a folder and below"),
    Command("models.pull", "models", "p", "pull", "Pull", "Bring what is missing from the model hub"),
    Command("models.remove", "models", "d delete", "remove", "Remove", "Off the list, after asking"),
    Command("models.stop", "models", "x ctrl+c f8", "stop", "Stop", "Stop the search or the pull; what came is kept"),
    Command("models.back", "models", "escape M q", "back", "Back", "Back to the prompt"),
    Command("app.palette", "app", "ctrl+p", "command_palette", "Menu", "Every command, searched by name"),
    Command("app.help", "app", "f1 ?", "help", "Help", "All keys"),
    Command("app.messages", "app", "m", "messages", "Messages", "What was said, the latest first"),
    Command("app.redraw", "app", "ctrl+l", "redraw", "Redraw", "Paint the whole screen again"),
    Command(SUSPEND, "app", "ctrl+z", "suspend", "Suspend", "To the shell; fg there comes back"),
    Command("app.leave", "main", "q", "leave_app", "Quit", "Leave, after asking if something is left undone"),
    Command(QUIT, "app", "ctrl+q", "quit", "Quit", "Leave; prompt, queue and settings are kept"),
)
# Where room is short the last one stays, and the others go from the end.
PROMPT_BAR = (
    "job.submit",
    "view.parameters",
    "app.palette",
    "prompt.leave",
    "history.search",
    "job.cancel",
    "app.help",
)
LIST_BAR = ("job.generate", "job.new_seed", "image.remix", "seed.lock", "image.open", "prompt.focus", "app.help")
GALLERY_BAR = (
    "gallery.back",
    "image.view",
    "image.remix",
    "image.mark",
    "image.delete",
    "gallery.filter",
    "app.help",
)
MODELS_BAR = ("models.back", "models.open", "models.add", "models.scan", "models.pull", "models.remove", "app.help")
# What is active at the same time: within such a group a key may do one thing only.
TOGETHER: tuple[frozenset[Scope], ...] = (
    frozenset(("prompt", "main", "pictures", "app")),
    frozenset(("gallery", "pictures", "app")),
    frozenset(("compare", "pictures", "app")),
    frozenset(("models", "app")),
)


@dataclass(frozen=True, slots=True)
class Keys:
    """The table as it is in effect."""

    commands: tuple[Command, ...] = COMMANDS

    def __getitem__(self, command_id: str) -> Command:
        return next(command for command in self.commands if command.id == command_id)

    def pressed(self, command_id: str) -> list[str]:
        """The keys of a command as events name them."""
        return [_textual_key(key) for key in self[command_id].key_list]

    def exchanged(self, first: str, second: str) -> Keys:
        """The table with the keys of two commands exchanged."""
        keys = {first: self[second].keys, second: self[first].keys}
        return Keys(tuple(replace(command, keys=keys.get(command.id, command.keys)) for command in self.commands))

    def keymap(self) -> dict[str, str]:
        """What Textual's own keymap must override: only what differs from the table."""
        changed = {}
        for default, command in zip(COMMANDS, self.commands, strict=True):
            if default.keys != command.keys:
                changed[command.id] = ",".join(command.textual_keys(first=False)) or UNBOUND
                changed[f"{command.id}.first"] = ",".join(command.textual_keys(first=True)) or UNBOUND
        return changed

    def shown(self, command_id: str, *, letter: bool = False) -> str:
        """The first key of a command, as people write it; its letter, if it has one and that is preferred."""
        keys = self[command_id].key_list
        return display(next((key for key in keys if letter and len(key) == 1), keys[0]))


def display(key: str) -> str:
    """A key as people write it: ^G, F5, Esc, K."""
    if key.startswith("ctrl+"):
        return "^" + key.removeprefix("ctrl+").upper()
    if len(key) == 1:
        return key
    return SHORT_NAMES.get(key) or "+".join(part.capitalize() for part in key.split("+"))


def types(event: Key) -> bool:
    """Whether a key writes its character. With Alt or Ctrl it does not, though terminals and tmux send one along."""
    return event.is_printable and not event.key.startswith(("alt+", "ctrl+", "super+", "hyper+", "meta+"))


def bindings_of(*scopes: Scope) -> list[BindingType]:
    """The default bindings of a screen or widget."""
    return [binding for command in COMMANDS if command.scope in scopes for binding in command.bindings()]


def read_keymap(path: Path) -> tuple[Keys, str | None]:
    """The table with the user's `keymap.toml` (`"job.cancel" = "f8 x"`), and one message with all that is wrong in it.

    Lines that are wrong leave their command as it was. Raises nothing; a missing file changes nothing.
    """
    name = path.name
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # opening a pipe would wait for its other end
            raise ValueError("it is not a file of text")
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {MAX_FILE_BYTES // 1024} KiB")
        keys, problems = apply_keymap(tomllib.loads(data.decode("utf-8-sig")))
    except FileNotFoundError:
        return Keys(), None
    except OSError as error:
        return Keys(), f"{name} cannot be read ({(error.strerror or 'unknown reason').lower()}); the usual keys hold."
    except UnicodeDecodeError:
        return Keys(), f"{name} is not UTF-8 text; the usual keys hold."
    except ValueError as error:
        return Keys(), printable(f"{name}: {error}; the usual keys hold.")
    except RecursionError:
        return Keys(), f"{name}: it holds a value that is nested too deep; the usual keys hold."
    if not problems:
        return keys, None
    return keys, f"{printable(name)}: {some_of(problems, MAX_PROBLEMS, '; ')}. The usual keys hold there."


def apply_keymap(values: Mapping[str, object]) -> tuple[Keys, list[str]]:
    """The table with `values` (id to keys) laid over it, and a clause for each thing that is wrong with them."""
    problems: list[str] = []
    known = {command.id for command in COMMANDS}
    wanted: dict[str, str] = {}
    for command_id, value in _flat(values):
        keys = [_spelled(key) for key in value.replace(",", " ").split()] if isinstance(value, str) else []
        if command_id not in known:
            near = difflib.get_close_matches(command_id, known, n=1)
            hint = f", the nearest is {near[0]}" if near else "; `t2i keys` lists them"
            problems.append(f"there is no command {command_id[:60]}{hint}")
        elif not keys:
            problems.append(f"{command_id} must be keys as text, such as {_default(command_id).keys!r}")
        elif wrong := next((reason for key in keys if (reason := _problem(key, _default(command_id).scope))), None):
            problems.append(f"{command_id}: {wrong}")
        elif command_id == QUIT and not any(map(ANYWHERE.match, keys)):
            problems.append(f"{QUIT} needs a key with ctrl or alt or an F key, for it must work in the prompt, too")
        else:
            wanted[command_id] = " ".join(dict.fromkeys(keys))
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
    """A key by its own name, from that or from what `display` makes of it."""
    if len(key) == 1:
        return key
    if len(key) == 2 and key[0] == "^":
        return f"ctrl+{key[1].lower()}"
    lower = key.lower()
    return next((name for name, short in SHORT_NAMES.items() if short.lower() == lower), lower)


def _problem(key: str, scope: Scope) -> str | None:
    """What is wrong with a key for a command of this scope; None if nothing is."""
    if len(key) == 1 and not key.isprintable():
        return f"{key!r} is no key that can be named"
    if key in UNREACHABLE:
        return f"{key} cannot be used, it {UNREACHABLE[key]}"
    if re.fullmatch(r"alt\+[0-9]", key) or key.startswith("ctrl+shift+"):
        return f"{key} does not arrive in most terminals"
    if scope == "prompt" and (len(key) == 1 or key == "space"):
        return f"{key} cannot be used, it is typed into the prompt"
    if scope != "prompt" and key in KEPT:
        return f"{key} cannot be used, prompt and list take it for themselves"
    if len(key) == 1 or key in NAMED_KEYS or re.fullmatch(r"ctrl\+[a-z]|alt\+[a-z]|alt\+shift\+[a-z]", key):
        return None
    near = difflib.get_close_matches(key[:40], [*NAMED_KEYS, *(f"ctrl+{c}" for c in string.ascii_lowercase)], n=1)
    return f"{key[:40]} cannot be used" + (f", the nearest is {near[0]}" if near else "")


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
    """Escape and a letter in one packet arrive as Alt and the letter; Alt+B and Alt+F are the prompt's word jumps."""
    if not re.fullmatch("[A-Za-z]", key) or key in "bf":
        return None
    return f"alt+{key}" if key.islower() else f"alt+shift+{key.lower()}"


def behind_escape(key: str) -> str | None:
    """The letter of a key that a terminal sends as Escape and a letter; None of others."""
    letter = re.fullmatch("alt\\+(shift\\+)?([a-z])", key)
    return None if letter is None else letter[2].upper() if letter[1] else letter[2]
