"""What lies in the cache of converted weights, who needs it, and removing what nobody does. torch is not imported."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from engine.files import remove_leftovers
from engine.folders import cache_dir, shown_path
from engine.library import catalog, registry
from engine.request import RequestError
from engine.text import quoted, size, some_of
from engine.untrusted.headers import read_header
from engine.weights.conversions import (
    DTYPES,
    FORMAT,
    FORMS,
    cache_files,
    index_file,
    indexed,
    indexed_content,
    weights_folder,
)

SHARD = re.compile(r"(.*)-00001-of-(.*)")
OTHERS = {"plans": "measured plans", "previews": "previews", "salience": "calibrations"}  # folders of the cache


@dataclass(frozen=True, slots=True)
class Cached:
    """A file of the cache. `reason` says why nobody needs it, "" where somebody does."""

    name: str
    path: str
    form: str  # "fp8", "int8", "int8+csb+ssc"
    component: str
    nbytes: int
    models: tuple[str, ...]  # names of the models that have it
    source: str  # the first of the files that it was made from, "" where that is unknown
    reason: str


def listed() -> list[Cached]:
    """All converted weights, those that are needed first. What killed conversions left is removed."""
    remove_leftovers(weights_folder())
    users, files = _users()
    sources: dict[str, list[str]] = defaultdict(list)
    for _, content, source in indexed():
        sources[content].append(source)
    found = [_cached(path, users, files, sources) for path in cache_files()]
    return sorted(found, key=lambda cached: (bool(cached.reason), cached.models, cached.component, cached.name))


def others() -> dict[str, int]:
    """Bytes of what else the cache folder holds, by what it is."""
    return {title: _bytes_in(cache_dir() / folder) for folder, title in OTHERS.items()}


def remove(names: Sequence[str]) -> list[Cached]:
    """Delete cache files by their names, or "unused": those that nobody needs, or "all". Returns what is gone.

    Raises `RequestError` for a name that is not there, before anything is deleted, and where the disk refuses.
    """
    there = listed()
    by_name = {cached.name: cached for cached in there}
    for name in names:
        if name not in by_name and name not in ("unused", "all"):
            known = f"there are {some_of(sorted(by_name))}" if by_name else "the cache is empty"
            raise RequestError("remove", f"the cache has no {quoted(name[:80])}: give unused, all, or a name; {known}.")
    gone = []
    for cached in there:
        if "all" in names or cached.name in names or ("unused" in names and cached.reason):
            try:
                Path(cached.path).unlink(missing_ok=True)
            except OSError as error:
                problem = f"{shown_path(cached.path)} cannot be deleted: {error.strerror or error}."
                raise RequestError("remove", problem, machine=True) from None
            gone.append(cached)
    left = {path.name[:32] for path in cache_files()}
    for index, content, _ in list(indexed()):
        if content not in left:
            with suppress(OSError):
                index.unlink()
    return gone


def what_could_go() -> str:
    """For a person whose disk is full: a sentence about the cache after a space, or nothing."""
    with suppress(RequestError, OSError):
        there = listed()
        unused = sum(cached.nbytes for cached in there if cached.reason)
        used = sum(cached.nbytes for cached in there) - unused
        if unused:
            return f" {size(unused)} there are of no use any more: t2i models cache --remove unused."
        if used:
            return f" {size(used)} there are other converted weights: t2i models cache lists them, and removes some."
    return ""


def _users() -> tuple[dict[str, list[str]], set[str]]:
    """The models that need each content, and all files that they are made of."""
    known = registry.known()
    users: dict[str, list[str]] = defaultdict(list)
    files: set[str] = set()
    for name in dict.fromkeys((*catalog.BUILT_IN, *known.models)):
        with suppress(RequestError, OSError):
            model = catalog.open_name(name, known)
            if model is None or not model.has_weights:
                continue
            for part in model.family.needed:
                if not part.forms:
                    continue
                files |= {str(file.absolute()) for file in model.files[part.name]}
                for content in _contents(model.files[part.name], part.name):
                    if name not in users[content]:
                        users[content].append(name)
    return users, files


def _contents(files: Sequence[Path], component: str) -> Iterator[str]:
    """What the index says that these files have become."""
    for form, dtype in product(FORMS, DTYPES):
        with suppress(RequestError):
            if (found := indexed_content(index_file(files, component, dtype, form))) is not None:
                yield found[0]


def _cached(path: Path, users: Mapping[str, list[str]], files: set[str], sources: Mapping[str, list[str]]) -> Cached:
    content, name = path.name[:32], path.name[:8] + path.name[32:].removesuffix(".safetensors")
    about: Mapping[str, str] = {}
    with suppress(RequestError):
        about = read_header(path).metadata
    form, component = about.get("form", ""), about.get("component", "")
    models = tuple(users.get(content, ()))
    there = [source for source in sources.get(content, ()) if source and source not in files]
    made_from = [source for source in there if content in _contents(_shards(Path(source)), component)]
    if about.get("content") != content or form not in map(str, FORMS):
        reason = "damaged"
    elif about.get("t2i_format") != FORMAT:
        reason = "of an older version"
    elif models or made_from:
        reason = ""
    elif sources.get(content):
        reason = "its model is gone or has changed"
    else:
        reason = "no model has it"
    source = next(iter(made_from), next(iter(sources.get(content, ())), ""))
    return Cached(name, str(path), form, component, path.stat().st_size, models, source, reason)


def _shards(first: Path) -> list[Path]:
    """The files that belong together, of which this is the first."""
    match = SHARD.fullmatch(first.name)
    return sorted(first.parent.glob(f"{glob.escape(match[1])}-*-of-{match[2]}")) if match else [first]


def _bytes_in(folder: Path) -> int:
    total = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    return total
