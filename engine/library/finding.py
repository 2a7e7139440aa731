"""Looking for models in folders: ComfyUI's, Forge's, InvokeAI's, the hub's cache, any. torch is not imported."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.families.all import family_of_pipeline, parts
from engine.families.facts import Tokenizer
from engine.folders import shown_path
from engine.library import catalog, pairing, registry
from engine.library.hub import MAX_REFERENCE_BYTES
from engine.library.listings import Listing, Part, listing_of_name, part_of_found, sentence_of, tokenizer_part
from engine.library.registry import ALONE, Registered, Registry
from engine.library.subjects import (
    SNAPSHOT,
    Whole,
    built_in_at,
    check_names,
    in_cache,
    known_transformers,
    name_of,
    registered_at,
    unused_name,
    why_unusable,
)
from engine.request import RequestError
from engine.untrusted import read_file
from engine.weights.layouts import Found, UnknownError
from engine.weights.model import open_folder, pipeline_of

PASSED_OVER = {".git", ".locks", "__pycache__", "blobs", "dist-packages", "node_modules", "site-packages"}
MAX_DEPTH, MAX_FOLDERS, MAX_FILES = 16, 50_000, 20_000
TICK_SECONDS = 0.2  # between two reports of a scan


@dataclass(frozen=True, slots=True)
class Scanned:
    """What was found in a folder so far."""

    added: tuple[Listing, ...]
    known: tuple[Listing, ...]  # found again
    loose: tuple[Part, ...]  # what may complete models
    refused: tuple[str, ...]  # a sentence for each file that was recognised and cannot be used, or is broken
    folders: int
    files: int  # with weights, that were looked at
    unreadable: int = 0  # folders that could not be looked into


def scan(folder: Path, check: Callable[[], None] = lambda: None) -> Iterator[Scanned]:
    """Look for models in a folder and all folders in it, and make known what is there.

    Yields what was found so far about five times a second; the last is complete, and only then is anything kept. What
    `check` raises stops it. Raises `RequestError` where the folder cannot be looked into.
    """
    known = registry.read()
    place = catalog.existing(str(folder))
    if place is None or not place.is_dir():
        raise RequestError("path", f"{shown_path(folder)} is no folder; name one that holds models.")
    search = _Search(check)
    for _ in search.walk(place):
        yield search.so_far()
    yield from search.conclude(known)


class _Search:
    """A walk through folders, and what it came upon."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check
        self.folders = self.files = self.unreadable = 0
        self.wholes: list[Path] = []  # folders in diffusers' layout
        self.others: list[Path] = []  # such folders of other models: all that is in them is theirs
        self.models: list[Whole] = []
        self.transformers: list[Found] = []
        self.parts: list[tuple[Path, Found]] = []
        self.tokenizers: list[tuple[Tokenizer, Path]] = []
        self.refused: list[str] = []
        self.loose: list[Part] = []
        self.seen: set[tuple[int, int]] = set()

    def so_far(self, added: Iterable[Listing] = (), known: Iterable[Listing] = ()) -> Scanned:
        return Scanned(
            tuple(added),
            tuple(known),
            tuple(self.loose),
            tuple(self.refused),
            self.folders,
            self.files,
            self.unreadable,
        )

    def walk(self, top: Path) -> Iterator[None]:
        """Look into each folder once, however many links lead to it; comes back five times a second."""
        waiting = [(top, 0)]
        reported = time.monotonic()
        while waiting:
            place, depth = waiting.pop()
            if self.folders >= MAX_FOLDERS or self.files >= MAX_FILES:
                what = f"{self.folders} folders with {self.files} files of weights"
                self.refused.append(f"there is more in {shown_path(top)} than {what}; scan one of its folders.")
                return
            if not self._is_new(place):
                continue
            self.folders += 1
            try:
                inside = sorted(_folders_in(place))
            except OSError:
                self.unreadable += 1
                continue
            for _ in self._look(place):
                self.check()
                if time.monotonic() - reported >= TICK_SECONDS:
                    reported = time.monotonic()
                    yield
            if depth < MAX_DEPTH:
                waiting += [(path, depth + 1) for path in reversed(self._to_follow(place, inside))]

    def _is_new(self, path: Path) -> bool:
        try:
            status = os.stat(path)
        except OSError:
            return False
        key = (status.st_dev, status.st_ino)
        if key in self.seen:
            return False
        self.seen.add(key)
        return True

    def _to_follow(self, place: Path, inside: list[Path]) -> list[Path]:
        """Which of the folders in a folder are to be looked into."""
        followed = [path for path in inside if path.name not in PASSED_OVER]
        if place.name == "snapshots" and SNAPSHOT.fullmatch(place.parent.name):
            with suppress(OSError, ValueError):  # the others are older
                current = read_file(place.parent / "refs" / "main", MAX_REFERENCE_BYTES).decode().strip()
                followed = [path for path in followed if path.name == current] or followed
        if place in self.others:
            return []
        own = registry.PLACES if place in self.wholes else ()
        return [path for path in followed if path.name not in own]

    def _look(self, place: Path) -> Iterator[None]:
        """Look at one folder, a file at a time."""
        yield
        if (place / "model_index.json").is_file():
            self._look_at_pipeline(place)
            if place in self.others:
                return
        if tokenizer := pairing.tokenizer_in(place):
            self._look_at_tokenizer(tokenizer, place)
        for unit in pairing.places_in(place):
            yield
            if unit.is_dir() or self._is_new(unit):
                self.files += 1
                self._look_at_weights(unit)

    def _look_at_pipeline(self, place: Path) -> None:
        try:
            model = open_folder(place, str(place))
        except Exception as error:  # whatever it is, the rest is to be looked at
            with suppress(RequestError):
                if family_of_pipeline(pipeline_of(place)) is None:
                    self.others.append(place)
            if place in self.others or _has_weights(place):
                self.refused.append(sentence_of(error, place))
            return
        are_new = [self._is_new(file) for files in model.files.values() for file in files]
        if any(are_new):
            family = model.family
            variant = family.variant(model.configs[family.core.name])
            self.models.append(Whole(place, family, variant, folder=True))
        self.wholes.append(place)

    def _look_at_tokenizer(self, tokenizer: Tokenizer, folder: Path) -> None:
        with suppress(Exception):
            if not pairing.is_trusted(folder, tokenizer):
                pairing.check_tokenizer(tokenizer, folder, None)
            self.tokenizers.append((tokenizer, folder))

    def _look_at_weights(self, unit: Path) -> None:
        try:
            found = pairing.recognised(unit)
            transformer = next((part for part in found if part.part is part.family.core), None)
            if transformer is None:
                self.parts += [(unit, part) for part in found]
                return
            check_names(transformer)
            self.transformers.append(transformer)
            family = transformer.family
            self.models.append(Whole(unit, family, family.variant(transformer.config), folder=False))
        except UnknownError:
            return
        except Exception as error:
            self.refused.append(sentence_of(error, unit))

    def conclude(self, known: Registry) -> Iterator[Scanned]:
        """Pair what was found, and keep it."""
        changed, names = self._with_parts(known)
        for subject in self.models:
            entry = registered_at(subject.path, changed)
            name = entry.name if entry else built_in_at(subject.path)
            if not name:
                name = unused_name(name_of(subject.path), subject, changed)
                changed = changed.with_model(Registered(name, subject.path))
            names.append(name)
        added: list[Listing] = []
        again: list[Listing] = []
        for name in names:
            self.check()
            is_new = name in changed.models and name not in known.models
            (added if is_new else again).append(listing_of_name(name, changed))
            yield self.so_far(added, again)
        if changed != known:
            _keep(changed, known)
        yield self.so_far(added, again)

    def _with_parts(self, known: Registry) -> tuple[Registry, list[str]]:
        """The registry with what completes models, and the names that this has found."""
        changed, names = known, []
        transformers = [*self.transformers, *known_transformers(known)]
        for place, found in self.parts:
            if why_unusable([found], transformers):
                continue  # of another model
            try:
                check_names(found)
            except RequestError as error:
                self.refused.append(str(error))
                continue
            alone = next((name for name, brings in ALONE.items() if brings == found.component), None)
            if alone is not None:
                entry = registered_at(place, changed)
                if entry is None and alone not in changed.models and not in_cache(alone):
                    entry = Registered(alone, place)
                    changed = changed.with_model(entry)
                if entry is not None:
                    names.append(entry.name)
                    continue
            changed = changed.with_loose([place])
            self.loose.append(part_of_found(found))
        for tokenizer, folder in self.tokenizers:
            changed = changed.with_loose([folder])
            self.loose.append(tokenizer_part(tokenizer, folder))
        return changed, names


def _keep(changed: Registry, known: Registry) -> None:
    """Write what is new; others may have changed the registry since it was read."""

    def put(latest: Registry) -> Registry:
        latest = latest.with_loose(place for place in changed.loose if place not in known.loose)
        for name, entry in changed.models.items():
            if name not in known.models and name not in latest.models:
                latest = latest.with_model(entry)
        return latest

    registry.change(put)


def _folders_in(folder: Path) -> Iterator[Path]:
    """Folders and links to such. Raises OSError where it cannot be looked into."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # a link in a circle
                if entry.is_dir():
                    yield Path(entry.path)


def _has_weights(folder: Path) -> bool:
    """Whether any of the parts of a folder in diffusers' layout has weights; some programs keep its other files."""
    return any(pairing.weight_files_in(folder / part) for part in parts())
