"""What the person told about models: names for those that lie somewhere on disk, and loose parts that may complete one.

References only: nothing is copied, and what a file holds is looked at anew whenever it is opened. Kept as models.json
in the state folder; an entry that cannot be read is kept as it is, for the person to mend.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.families.all import parts, sources, tokenizers
from engine.files import locked, make_folder, write_whole
from engine.folders import shown_path, state_dir
from engine.request import RequestError
from engine.text import quoted
from engine.untrusted import read_file

FILE = "models.json"
LOCK, LOCK_SECONDS = "models.lock", 30.0
MAX_BYTES = 4 * 2**20
PLACES = (*parts(), *(tokenizer.name for tokenizer in tokenizers()))
ALONE = {name: source.brings for name, source in sources().items() if source.brings}
PARTS_ALONE = tuple(ALONE)  # names of what is no model by itself: a text encoder for all models, tokenizers


@dataclass(frozen=True, slots=True)
class Registered:
    """A model by name: a folder in diffusers' layout, or a transformer's file with the parts that belong to it.

    `parts` are files or folders by component (also `tokenizer` and `tokenizer_2`); what is left out is looked for.
    """

    name: str
    path: Path
    parts: Mapping[str, Path] = field(default_factory=dict)
    pulled: bool = False  # it was downloaded by us


@dataclass(frozen=True, slots=True)
class Registry:
    """All models that have names, and files and folders that were found and may complete others."""

    models: Mapping[str, Registered] = field(default_factory=dict)
    loose: tuple[Path, ...] = ()
    broken: Mapping[str, object] = field(default_factory=dict)  # entries that cannot be read, by name
    broken_loose: tuple[object, ...] = ()
    problem: str = ""  # why the whole of it cannot be read: a sentence

    def with_model(self, model: Registered) -> Registry:
        broken = {name: entry for name, entry in self.broken.items() if name != model.name}
        return replace(self, models={**self.models, model.name: model}, broken=broken)

    def without_model(self, name: str) -> Registry:
        models = {key: model for key, model in self.models.items() if key != name}
        return replace(self, models=models, broken={key: entry for key, entry in self.broken.items() if key != name})

    def with_loose(self, paths: Iterable[Path]) -> Registry:
        return replace(self, loose=tuple(dict.fromkeys((*self.loose, *paths))))

    def fault_of(self, name: str) -> str:
        """Why an entry of this name cannot be used: a sentence; "" where that is not so."""
        if name not in self.broken:
            return ""
        file = shown_path(state_dir() / FILE)
        return f"the entry {quoted(name)} in {file} cannot be read: mend it, or t2i models remove it and add it again."


def read() -> Registry:
    """The registry; an empty one where there is none. Raises `RequestError` where it cannot be read as one."""
    file = state_dir() / FILE
    try:
        values = json.loads(read_file(file, MAX_BYTES))
        entries, places = values["models"], values["loose"]
        if not isinstance(entries, dict) or not isinstance(places, list):
            raise ValueError
    except FileNotFoundError:
        return Registry()
    except OSError as error:
        raise RequestError("model", f"{shown_path(file)} cannot be read: {error.strerror}.", machine=True) from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RequestError(
            "model",
            f"{shown_path(file)}, the list of your models, is damaged; mend it, or delete it and add them again.",
        ) from None
    models = {name: model for name, entry in entries.items() if (model := _registered(name, entry))}
    broken = {name: entry for name, entry in entries.items() if name not in models}
    loose = tuple(Path(place) for place in places if _is_path(place))
    return Registry(models, loose, broken, tuple(place for place in places if not _is_path(place)))


@contextmanager
def changing() -> Iterator[None]:
    """Nobody else changes the registry meanwhile: read it, change that and write it. Raises `RequestError`."""
    file = state_dir() / LOCK
    with ExitStack() as stack:
        try:
            make_folder(file.parent)
            stack.enter_context(locked(file, LOCK_SECONDS))
        except TimeoutError:
            waited = f"for {LOCK_SECONDS:.0f} s another program has kept {shown_path(file)} locked; end it"
            raise RequestError("model", f"{waited}, and try again.", machine=True) from None
        except OSError as error:
            place = f"{shown_path(file)} cannot be written: {error.strerror}."
            raise RequestError("model", place, machine=True) from None
        yield


def change(changed: Callable[[Registry], Registry]) -> Registry:
    """Write what `changed` makes of the registry, while nobody else does. Raises `RequestError`."""
    with changing():
        before = read()
        after = changed(before)
        if after != before:
            write(after)
    return after


def write(registry: Registry) -> None:
    """Keep it, whole or not at all; others that write it meanwhile are kept out by `changing`.

    Raises `RequestError` where the state folder cannot be written.
    """
    file = state_dir() / FILE
    models: dict[str, object] = {
        name: {
            "path": str(model.path),
            "parts": {part: str(path) for part, path in model.parts.items()},
            "pulled": model.pulled,
        }
        for name, model in registry.models.items()
    }
    values = {
        "models": dict(sorted({**registry.broken, **models}.items())),
        "loose": [*map(str, registry.loose), *registry.broken_loose],
    }
    try:
        write_whole(file, (json.dumps(values, indent=2) + "\n").encode())
    except OSError as error:
        raise RequestError("model", f"{shown_path(file)} cannot be written: {error.strerror}.", machine=True) from None


def known() -> Registry:
    """The registry as far as it can be read, for those who only look things up; its `problem` says why not."""
    try:
        return read()
    except RequestError as error:
        return Registry(problem=str(error))


def _registered(name: str, entry: object) -> Registered | None:
    """The model of an entry; None where it is none."""
    if not isinstance(entry, dict) or not _is_path(entry.get("path")) or any("\ud800" <= c <= "\udfff" for c in name):
        return None
    parts, is_pulled = entry.get("parts", {}), entry.get("pulled", False)
    if not isinstance(parts, dict) or not all(map(_is_path, parts.values())) or not isinstance(is_pulled, bool):
        return None
    places = {part: Path(path) for part, path in parts.items() if part in PLACES}
    return Registered(name, Path(entry["path"]), places, is_pulled)


def _is_path(value: object) -> bool:
    """Whether this system can have a path that is written like this."""
    try:
        return isinstance(value, str) and bool(value) and "\0" not in value and bool(os.fsencode(value))
    except UnicodeEncodeError:  # half of a pair
        return False
