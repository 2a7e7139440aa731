"""What lies in a file or a folder that somebody names, and what it is called. torch is not imported."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.families.all import FAMILIES, tokenizers
from engine.families.facts import Tokenizer, Variant
from engine.families.family import Family
from engine.folders import shown_path
from engine.library import catalog, hub, pairing
from engine.library.listings import Part, part_of_found, tokenizer_part
from engine.library.registry import PARTS_ALONE, Registered, Registry
from engine.request import RequestError
from engine.text import quoted
from engine.untrusted.headers import read_header
from engine.weights.layouts import Found, entries
from engine.weights.model import has_tokenizer, open_folder

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,59}")
UNTELLING = ("model", "diffusion_pytorch_model", "transformer", "unet")  # names of files that say nothing
SNAPSHOT = re.compile(r"models--(?:.+--)?(.+)")  # the hub cache's folder of a repository


@dataclass(frozen=True, slots=True)
class Whole:
    """Where a model lies: a folder in diffusers' layout, or a transformer's file or shards."""

    path: Path
    family: Family
    variant: Variant
    folder: bool  # diffusers' layout


@dataclass(frozen=True, slots=True)
class Loose:
    """Where something lies that completes models."""

    path: Path
    kind: str
    parts: tuple[Part, ...]


def subject_at(place: Path) -> Whole | Loose:
    """What lies there. Raises `RequestError` where it cannot be used."""
    if place.is_dir():
        if (place / "model_index.json").is_file():
            model = open_folder(place, str(place))
            family = model.family
            return Whole(place, family, family.variant(model.configs[family.core.name]), folder=True)
        place = catalog.transformer_at(place) or _only_part(place)
        if folders := _tokenizers_in(place):
            for tokenizer, folder in folders:
                if not pairing.is_trusted(folder, tokenizer):
                    pairing.check_tokenizer(tokenizer, folder, None)
            return Loose(place, "tokenizers", tuple(tokenizer_part(*each) for each in folders))
    found = pairing.recognised(place)
    for part in found:
        if part.part is part.family.core:
            check_names(part)
            return Whole(place, part.family, part.family.variant(part.config), folder=False)
    return Loose(place, found[0].part.alone, tuple(part_of_found(part) for part in found))


def _only_part(folder: Path) -> Path:
    """Where in a folder without a transformer the only part lies, or the folder where that holds tokenizers."""
    places = pairing.places_in(folder)
    usable = [place for place in places if pairing.parts_at(place)]
    if len(usable) == 1 or len(places) == 1:
        return (usable or places)[0]
    if not usable and _tokenizers_in(folder):
        return folder
    if usable:
        what = f"holds {len(usable)} parts of models, but no transformer; name one of its files, or let"
    else:
        what = "holds no model itself; let"
    raise RequestError("path", f"{shown_path(folder)} {what} t2i models scan look into it and all folders in it.")


def _tokenizers_in(folder: Path) -> list[tuple[Tokenizer, Path]]:
    """Tokenizers in a folder that holds nothing else, each with its own folder."""
    if not folder.is_dir() or pairing.places_in(folder):
        return []
    if tokenizer := pairing.tokenizer_in(folder):
        return [(tokenizer, folder)]
    inside = [path for path in folder.iterdir() if path.is_dir()]
    found = []
    for path in inside:
        named = [each for each in tokenizers() if each.name == path.name]
        if has_tokenizer(path) and (tokenizer := pairing.likeliest(named, path)):
            found.append((tokenizer, path))
    return found if len(found) == len(inside) else []


def check_names(part: Found) -> None:
    """Raises `RequestError` where the tensors are not those of the part, as far as their names and shapes tell."""
    entries([read_header(file) for file in part.files], part.component, [part.family])


def why_unusable(parts: Iterable[Found], transformers: Iterable[Found]) -> str:
    """Why none of these parts can complete any model, in words; empty where one can."""
    wrong = ""
    for part in parts:
        family, core = part.family, part.family.core.name
        real = [Found(family, core, "", "", (), 0, each.configs[core]) for each in family.published]
        for transformer in (*transformers, *real):
            wrong = pairing.misfit(part, transformer)
            if not wrong:
                return ""
    return wrong


def known_transformers(known: Registry) -> list[Found]:
    """Of all models that were added."""
    cores = {family.core.name for family in FAMILIES}
    paths = [entry.path for entry in known.models.values()]
    places = [place for path in paths for place in (path, *(path / core for core in cores))]
    return [part for place in places for part in pairing.parts_at(place) if part.part is part.family.core]


def registered_at(path: Path, known: Registry) -> Registered | None:
    """The model that has a name already and lies there."""
    return next((entry for entry in known.models.values() if entry.path == path or is_same(entry.path, path)), None)


def built_in_at(path: Path) -> str:
    """The name of what has one by itself: the demo, or a published model in the hub's cache; empty for all else."""
    if is_same(path, catalog.DEMO_FOLDER):
        return catalog.DEMO
    for name in catalog.PUBLISHED:
        cached = hub.found_in_cache(name)
        if isinstance(cached, Path) and is_same(path, cached):
            return name
    return ""


def is_same(first: Path, second: Path) -> bool:
    """Whether both are one file or folder."""
    with suppress(OSError, ValueError):  # a null byte
        return first.samefile(second)
    return False


def check_free(name: str, subject: Whole, known: Registry) -> None:
    """Raises `RequestError` for a name that is another model's."""
    if name == catalog.DEMO or name in PARTS_ALONE:
        raise RequestError(
            "name", f"{quoted(name)} is the name of something that comes with the program; take another."
        )
    if name in catalog.PUBLISHED and name != subject.variant.published:
        other = next(each for family in FAMILIES for each in family.variants if each.published == name)
        raise RequestError(
            "name",
            f"{quoted(name)} is {other.title}, and {shown_path(subject.path)} is of "
            f"[{subject.variant.name}]'s kind; take another name.",
        )
    entry = known.models.get(name)
    if entry is not None and not is_same(entry.path, subject.path):
        raise RequestError(
            "name",
            f"{quoted(name)} is at {shown_path(entry.path)} already; take another name, or forget that one first: "
            f"t2i models remove {name}.",
        )


def unused_name(name: str, subject: Whole, known: Registry) -> str:
    """This name, or the same with a number."""

    def taken(name: str) -> bool:
        if name in catalog.PUBLISHED:
            return name in known.models or name != subject.variant.published or in_cache(name)
        return name in known.models or name == catalog.DEMO or name in hub.SOURCES

    number, free = 1, name
    while taken(free):
        number += 1
        free = f"{name}-{number}"
    return free


def in_cache(name: str) -> bool:
    """Whether all of it is in the hub's cache, whoever brought it."""
    return hub.found_in_cache(name) is not None


def name_of(path: Path) -> str:
    """What a model is called after: its file, its folder, or the repository that it is a snapshot of."""
    repository = SNAPSHOT.fullmatch(path.parent.parent.name) if path.parent.name == "snapshots" else None
    if repository:
        return fit_name(repository[1])
    for text in (path.name if path.is_dir() else path.stem, path.parent.name, path.parent.parent.name):
        if fit_name(text) not in UNTELLING:
            return fit_name(text)
    return "flux"


def fit_name(text: str) -> str:
    """`text` made fit for a name."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._]+", "-", plain)[:60].strip("-._") or "model"
