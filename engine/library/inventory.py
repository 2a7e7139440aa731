"""The models that there are: listing them, adding and finding them on disk, forgetting them. torch is not imported.

Everything is a reference to where it lies; only what `t2i models pull` downloaded is ever deleted.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from engine.families.family import Family
from engine.folders import shown_path
from engine.library import catalog, hub, pairing, registry
from engine.library.finding import Scanned, scan
from engine.library.listings import (
    Listing,
    Part,
    listing_of_entry,
    listing_of_name,
    listing_of_part,
    part_alone,
    part_of_found,
    tokenizer_part,
)
from engine.library.registry import ALONE, PARTS_ALONE, Registered, Registry
from engine.library.subjects import (
    NAME,
    Loose,
    built_in_at,
    check_free,
    check_names,
    fit_name,
    in_cache,
    is_same,
    known_transformers,
    name_of,
    registered_at,
    subject_at,
    unused_name,
    why_unusable,
)
from engine.request import RequestError
from engine.text import printable, quoted, some_of
from engine.weights import conversions

__all__ = ["Listing", "Part", "Scanned", "add", "listed", "loose", "pulled", "pulling", "remove", "scan", "show"]


def listed() -> list[Listing]:
    """The published models, those that were added, and what completes models; never raises for a broken one."""
    known = registry.known()
    added = sorted({*known.models, *known.broken} - {*catalog.BUILT_IN, *PARTS_ALONE})
    return [listing_of_name(name, known) for name in (*catalog.BUILT_IN, *added, *PARTS_ALONE)]


def loose() -> list[Part]:
    """What was added or found that is no model by itself; gone where its disk is gone."""
    parts: list[Part] = []
    for place in registry.known().loose:
        if tokenizer := pairing.tokenizer_in(place):
            parts.append(tokenizer_part(tokenizer, place))
        parts += [part_of_found(found) for found in pairing.parts_at(place)]
    return parts


def show(name: str) -> Listing:
    """A model by name, or what lies in a file or a folder. Raises `RequestError` with the nearest name."""
    known = registry.known()
    if name in (*catalog.BUILT_IN, *known.models, *known.broken, *PARTS_ALONE):
        return listing_of_name(name, known)
    path = catalog.existing(name)
    if path is None:
        raise _unknown(name, known)
    subject = subject_at(path)
    if isinstance(subject, Loose):
        return listing_of_part(subject.path, subject.kind, subject.parts, known)
    return listing_of_entry(registered_at(subject.path, known) or Registered(name, subject.path), known)


def _unknown(name: str, known: Registry) -> RequestError:
    if known.problem:
        return RequestError("model", f"the model {quoted(name[:80])} is not found: {known.problem}")
    names = [*dict.fromkeys((*catalog.BUILT_IN, *known.models, *PARTS_ALONE))]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known names: {some_of(names)}."
    return RequestError("model", f"there is no model {name[:80]!r}; {hint}")


def add(path: Path, name: str | None = None, parts: Mapping[str, Path] = {}) -> Listing:
    """Give a model on disk a name, or make a loose part known; nothing is copied.

    `parts` are places by component, also by `tokenizers`: a folder with both. Raises `RequestError` for what cannot
    be used, and for a model whose parts are missing.
    """
    with registry.changing():  # its name must stay free until it is written
        return _add(path, name, parts, registry.read())


def _add(path: Path, name: str | None, parts: Mapping[str, Path], known: Registry) -> Listing:
    place = catalog.existing(str(path))
    if place is None:
        raise RequestError("path", f"{shown_path(path)} is not there; give a file or a folder with weights.")
    if name is not None and not NAME.fullmatch(name):
        fit = fit_name(name)
        raise RequestError("name", f"a name has letters a to z, digits, and . _ -, such as {fit!r}, got {name[:80]!r}.")
    subject = subject_at(place)
    if isinstance(subject, Loose):
        return _add_loose(subject, name, parts, known)
    if subject.folder and parts:
        raise RequestError("path", f"{shown_path(place)} has all of its parts; leave the others out.")
    given = _given(parts, subject.family)
    same = registered_at(subject.path, known)
    if name is None:
        if same is None and not given and (built_in := built_in_at(subject.path)):
            return listing_of_name(built_in, known)
        name = same.name if same else unused_name(name_of(subject.path), subject, known)
    else:
        check_free(name, subject, known)
    if same is not None and same.name == name:
        given = {**same.parts, **given}
    entry = Registered(name, subject.path, given, pulled=same is not None and same.name == name and same.pulled)
    if not subject.folder:
        pairing.model_of_file(subject.path, name, given, known)  # which says what is missing
    if known.models.get(name) != entry:
        known = known.with_model(entry)
        registry.write(known)
    return listing_of_entry(entry, known)


def _add_loose(part: Loose, name: str | None, parts: Mapping[str, Path], known: Registry) -> Listing:
    component = part.parts[0].component
    if parts:
        raise RequestError("path", f"{shown_path(part.path)} is no transformer; other parts go with one.")
    if part.kind != "tokenizers":
        _check_use(part, known)
    alone = next((known_name for known_name, brings in ALONE.items() if brings == component), None)
    if alone is not None:
        if name not in (None, alone):
            title = part.parts[0].title
            raise RequestError("name", f"{title} has the name {alone!r} for all models; leave --name out.")
        entry = Registered(alone, part.path)
        if known.models.get(alone) != entry:
            known = known.with_model(entry)
            registry.write(known)
        return part_alone(alone, entry)
    if name is not None:
        raise RequestError(
            "name", f"{shown_path(part.path)} is {part.parts[0].title}, which completes models; it needs no name."
        )
    places = [Path(each.place) for each in part.parts] if part.kind == "tokenizers" else [part.path]
    if not {*places} <= {*known.loose}:
        known = known.with_loose(places)
        registry.write(known)
    return listing_of_part(part.path, part.kind, part.parts, known)


def _given(parts: Mapping[str, Path], family: Family) -> dict[str, Path]:
    """Places of a model's parts, absolute, and the tokenizers of a folder. Raises `RequestError`."""
    given: dict[str, Path] = {}
    tokenizers = [tokenizer.name for tokenizer in family.tokenizers]
    others = [part.name for part in family.parts if part is not family.core]
    for part, path in parts.items():
        place = catalog.existing(str(path))
        if place is None:
            raise RequestError(part, f"{shown_path(path)} is not there; give a file or a folder.")
        if part == "tokenizers":
            below = pairing.tokenizers_below(place, family)
            if not below:
                names = " and ".join(tokenizers)
                raise RequestError(part, f"{shown_path(place)} holds no tokenizer ({names}).")
            given |= below
        elif part in (*others, *tokenizers):
            given[part] = place
        else:
            raise RequestError("parts", f"a model has no part {part[:40]!r} to be given.")
    return given


def _check_use(part: Loose, known: Registry) -> None:
    """Raises `RequestError` for a part that completes neither FLUX.1 nor a model that is known."""
    found = pairing.recognised(part.path)
    if wrong := why_unusable(found, known_transformers(known)):
        raise RequestError("path", f"{part.parts[0].title} in {shown_path(part.path)} {wrong}.")
    for each in found:
        check_names(each)


def remove(name: str, *, files: bool = False) -> tuple[str, int]:
    """Forget a model, or a loose part by its path; a sentence about what became of it, and the bytes that were freed.

    `files`: delete what `t2i models pull` downloaded for it and the FP8 forms that we keep. The person's own files are
    never touched. Raises `RequestError` where there is nothing to forget, or it cannot be deleted.
    """
    known = registry.read()
    if name == catalog.DEMO:
        raise RequestError("model", "the demo model is part of the program; it stays.")
    broken = next((key for key in known.broken if name in (key, printable(key))), None)
    if broken is not None:
        registry.change(lambda latest: latest.without_model(broken))
        return f"the entry {quoted(name)}, which cannot be read, is forgotten.", 0
    entry = known.models.get(name)
    if entry is None:
        return _remove_unregistered(name, known, files=files)
    if entry.pulled and not files:
        raise RequestError(
            "model",
            f"{name} was downloaded, and is found as long as its files are there; delete them with "
            f"t2i models remove {name} --files.",
        )
    freed = _forget_conversions(name, known) if files else 0
    if entry.pulled and files:
        freed += hub.delete(name)
    registry.change(lambda latest: latest.without_model(name))
    if entry.pulled:
        return f"{name} is deleted.", freed
    return f"{name} is forgotten; its files are yours and stay at {shown_path(entry.path)}.", freed


def _remove_unregistered(name: str, known: Registry, *, files: bool) -> tuple[str, int]:
    path = Path(name)

    def is_meant(place: Path) -> bool:
        return str(place) == name or is_same(place, path) or is_same(place.parent, path)

    meant = {place for place in known.loose if is_meant(place)}
    if meant:
        registry.change(lambda latest: replace(latest, loose=tuple(p for p in latest.loose if p not in meant)))
        return f"{shown_path(name)} is forgotten; it is yours and stays.", 0
    if name not in hub.SOURCES:
        raise _unknown(name, known)
    if not in_cache(name):
        raise RequestError("model", f"{name} is not here; there is nothing to remove.")
    ids = " ".join(f"model/{repository.id}" for repository in hub.SOURCES[name].repositories)
    stays = f"another program brought {name}, so its files stay; if they may go: hf cache rm {ids}"
    freed = _forget_conversions(name, known) if files else 0
    if not freed:
        raise RequestError("model", stays)
    return f"the FP8 form of {name} is deleted; {stays}", freed


def _forget_conversions(name: str, known: Registry) -> int:
    """Delete the FP8 forms of a model's parts, but for those of parts that another model has, too."""
    mine, others = _converted_files(name, known), set()
    for other in (*catalog.BUILT_IN, *known.models):
        if other != name:
            others |= {files for _, files in _converted_files(other, known)}
    return sum(conversions.forget(files, component) for component, files in mine if files not in others)


def _converted_files(name: str, known: Registry) -> list[tuple[str, tuple[Path, ...]]]:
    with suppress(RequestError, OSError):
        model = catalog.open_name(name, known)
        if model is not None and model.has_weights:
            return [(part.name, model.files[part.name]) for part in model.family.needed if part.forms]
    return []


def pulling(name: str, folder: Path) -> None:
    """A download of `name` into `folder` begins: what arrives may be deleted by `remove`, should it never end.

    Raises `RequestError` where the name is that of the person's own files.
    """
    known = registry.read()
    entry = known.models.get(name)
    if entry is not None and not entry.pulled:
        raise RequestError(
            "model",
            f"{name} is at {shown_path(entry.path)}, as you said; forget that first: t2i models remove {name}.",
        )
    if entry is None:
        registry.change(lambda latest: latest.with_model(Registered(name, folder, pulled=True)))


def pulled(name: str, where: Path | dict[str, Path]) -> Listing:
    """Make known what was downloaded: `where` is its folder, or are its folders by part."""
    parts = {} if isinstance(where, Path) else {part: path for part, path in where.items() if part in registry.PLACES}
    path = where if isinstance(where, Path) else next(iter(where.values()))
    entry = Registered(name, path, parts, pulled=True)

    def put(latest: Registry) -> Registry:
        before = latest.models.get(name)
        return latest.with_model(entry) if before is None or before.pulled else latest

    return listing_of_name(name, registry.change(put))
