"""What there is to say about a model, or about what completes models. torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from engine.families import facts as families
from engine.families.all import FAMILIES, family_of_source
from engine.families.facts import Tokenizer, Variant
from engine.families.family import Family
from engine.folders import shown_path
from engine.library import catalog, hub, pairing
from engine.library.registry import ALONE, Registered, Registry
from engine.request import RequestError
from engine.text import printable, quoted
from engine.weights.layouts import Found
from engine.weights.model import DESCRIBING, Model, open_folder

# The demo model by what lists show of any other.
DEMO_KIND = Variant(
    "demo",
    "the demo model",
    "demo",
    "The demo model is part of this program: Apache License 2.0 or MIT, as you prefer.",
)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a model, or one that may complete others. `component` is the engine's name of it."""

    component: str
    title: str
    place: str  # file or folder, "" where missing
    layout: str
    precision: str
    nbytes: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A model, or what completes models, as it is to be shown."""

    name: str
    place: str  # file or folder, "" where it is not here
    kind: str  # dev, schnell, demo, text encoder, tokenizers; of a loose part also autoencoder; "" where nobody knows
    here: bool  # it can be run
    nbytes: int
    precision: str  # of the transformer's weights
    layout: str
    parts: tuple[Part, ...]
    missing: tuple[str, ...]  # in words
    warning: str  # a sentence, or ""
    pulled: bool  # `t2i models pull` brought it, or began to
    can_pull: bool
    can_remove: bool
    licence: str


def listing_of_name(name: str, known: Registry) -> Listing:
    """Of a name that is known."""
    entry = known.models.get(name)
    if fault := known.fault_of(name):
        return replace(_broken(name, None, fault), name=printable(name), can_remove=True)
    if name in ALONE:
        return _tokenizers_listing(name, entry) if ALONE[name] == "tokenizers" else part_alone(name, entry)
    if entry is not None and not entry.pulled:
        return listing_of_entry(entry, known)
    try:
        model = catalog.open_name(name, known)
        assert model is not None
        return _model_of(catalog.with_distilled(model, known), entry, name)
    except Exception as error:  # whatever it is, the others are to be listed
        return _broken(name, entry, sentence_of(error, entry.path if entry else name))


def listing_of_entry(entry: Registered, known: Registry) -> Listing:
    """Of a model that lies where the person said."""
    try:
        catalog.check_there(entry)
        place = catalog.transformer_at(entry.path)
        if place is None:
            model = open_folder(entry.path, entry.name)
        else:
            pairs = pairing.paired(place, entry.parts, known)
            if pairs.missing:
                return _incomplete(entry, pairs)
            model = pairing.model_of(pairs, entry.name)
        return _model_of(catalog.with_distilled(model, known), entry, entry.name)
    except Exception as error:
        return _broken(entry.name, entry, sentence_of(error, entry.path))


def _model_of(model: Model, entry: Registered | None, name: str) -> Listing:
    """Of a model that is complete, or of a published one without weights."""
    core = model.family.core.name
    kind = DEMO_KIND if name == catalog.DEMO else model.family.variant(model.configs[core])
    given = entry.parts if entry else {}
    parts = tuple(_parts_of(model, given))
    optional = {part.name for part in model.family.parts if part.takes_place_of}
    own = [part for part in parts if part.component not in optional]
    source = hub.SOURCES.get(name)
    pulled = entry is not None and entry.pulled
    missing = () if model.has_weights else ("the rest of its weights" if pulled else "its weights",)
    found = model.found.get(core)
    return Listing(
        name=name,
        place=str(model.path) if model.has_weights else "",
        kind=kind.name,
        here=model.has_weights,
        nbytes=sum(part.nbytes for part in own),
        precision=model.precision(core) or "bf16",
        layout=model.layout(core),
        parts=parts,
        missing=missing,
        warning=found.warning if found else "",
        pulled=pulled,
        can_pull=not model.has_weights and source is not None,
        can_remove=entry is not None,
        licence=source.licence if source else kind.licence,
    )


def _parts_of(model: Model, given: Mapping[str, Path]) -> Iterator[Part]:
    for part in model.family.parts:
        if part.name in model.found:
            note = _in_place_of(part, model.family) or ("as you said" if part.name in given else "")
            yield part_of_found(model.found[part.name], note)
        elif not part.takes_place_of:
            yield Part(part.name, part.title, "", "diffusers", "bf16", model.bytes[part.name])
    for name, folder in model.tokenizers.items():
        yield tokenizer_part(model.family.tokenizer(name), folder, "as you said" if name in given else "")


def _in_place_of(part: families.Part, family: Family) -> str:
    """Whose place a part takes, in words; "" where it has one of its own."""
    if not part.takes_place_of:
        return ""
    return f"takes {family.part(part.takes_place_of).short}'s place with --distill"


def part_of_found(found: Found, note: str = "") -> Part:
    """Of weights."""
    title, place = found.part.title, str(found.place)
    return Part(found.component, title, place, found.layout, found.precision, found.nbytes, note)


def tokenizer_part(tokenizer: Tokenizer, folder: Path, note: str = "") -> Part:
    """Of a tokenizer's folder."""
    nbytes = 0
    with suppress(OSError):
        nbytes = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in DESCRIBING)
    return Part(tokenizer.name, tokenizer.title, str(folder), "", "", nbytes, note)


def _incomplete(entry: Registered, pairs: pairing.Pairing) -> Listing:
    """Of a transformer whose other parts are not all here."""
    family = pairs.family
    transformer = pairs.found[family.core.name]
    parts = [part_of_found(pairs.found[part.name]) for part in family.needed if part.name in pairs.found]
    parts += [tokenizer_part(family.tokenizer(name), folder) for name, folder in pairs.folders.items()]
    parts += [Part(each.name, each.title, "", "", "", 0) for each in pairs.missing]
    kind = family.variant(transformer.config)
    return Listing(
        name=entry.name,
        place=str(entry.path),
        kind=kind.name,
        here=False,
        nbytes=sum(part.nbytes for part in parts),
        precision=transformer.precision,
        layout=transformer.layout,
        parts=tuple(parts),
        missing=pairs.lacks,
        warning=str(pairs.wrong or transformer.warning),
        pulled=False,
        can_pull=False,
        can_remove=True,
        licence=kind.licence,
    )


def _broken(name: str, entry: Registered | None, sentence: str) -> Listing:
    """Of a model that cannot be opened."""
    pulled = entry is not None and entry.pulled
    return Listing(
        name=name,
        place=str(entry.path) if entry else "",
        kind=_published_kind(name),
        here=False,
        nbytes=0,
        precision="",
        layout="",
        parts=(),
        missing=(),
        warning=sentence,
        pulled=pulled,
        can_pull=pulled and name in hub.SOURCES,
        can_remove=entry is not None,
        licence="",
    )


def title_of_kind(kind: str) -> str:
    """A listing's kind, for people."""
    variants = [DEMO_KIND, *(variant for family in FAMILIES for variant in family.variants)]
    return next((variant.title for variant in variants if variant.name == kind), kind)


def _published_kind(name: str) -> str:
    """What kind of model has a published one's name; "" for other names."""
    if name not in catalog.PUBLISHED:
        return ""
    family, known = catalog.PUBLISHED[name]
    return family.variant(known.configs[family.core.name]).name


def part_alone(name: str, entry: Registered | None) -> Listing:
    """Of a part for all models, wherever it is."""
    source, family = hub.SOURCES[name], family_of_source(name)
    part = family.part(ALONE[name])
    pulled = entry is not None and entry.pulled
    found, place, warning = None, None, ""
    try:
        cached = hub.found_in_cache(name)
        place = entry.path if entry and not pulled else cached if isinstance(cached, Path) else None
        if place is not None:
            found = next((each for each in pairing.recognised(place) if each.component == part.name), None)
    except Exception as error:
        warning = sentence_of(error, place or name)
    return Listing(
        name=name,
        place=str(place or ""),
        kind=part.alone,
        here=found is not None,
        nbytes=found.nbytes if found else source.approximate_bytes,
        precision=found.precision if found else "fp32",
        layout=found.layout if found else part.title,
        parts=(part_of_found(found, _in_place_of(part, family)),) if found else (),
        missing=() if found or warning else ("the rest of its weights" if pulled else "its weights",),
        warning=warning,
        pulled=pulled,
        can_pull=place is None,
        can_remove=entry is not None,
        licence=source.licence if pulled or not entry else "As its author says.",
    )


def _tokenizers_listing(name: str, entry: Registered | None) -> Listing:
    """Of tokenizers by themselves."""
    source = hub.SOURCES[name]
    cached = hub.found_in_cache(name)
    folders = cached if isinstance(cached, dict) else {}
    parts = tuple(
        tokenizer_part(each, folders[each.name]) for each in family_of_source(name).tokenizers if each.name in folders
    )
    return Listing(
        name=name,
        place=str(next(iter(folders.values()), "")),
        kind="tokenizers",
        here=bool(folders),
        nbytes=sum(part.nbytes for part in parts) or source.approximate_bytes,
        precision="",
        layout="",
        parts=parts,
        missing=() if folders else ("its files",),
        warning="",
        pulled=entry is not None and entry.pulled,
        can_pull=not folders,
        can_remove=entry is not None,
        licence=source.licence,
    )


def listing_of_part(path: Path, kind: str, parts: tuple[Part, ...], known: Registry) -> Listing:
    """Of what is no model by itself, by its path."""
    return Listing(
        name=str(path),
        place=str(path),
        kind=kind,
        here=True,
        nbytes=sum(part.nbytes for part in parts),
        precision=parts[0].precision,
        layout=parts[0].layout,
        parts=parts,
        missing=(),
        warning="",
        pulled=False,
        can_pull=False,
        can_remove=not {path, *(Path(part.place) for part in parts)}.isdisjoint(known.loose),
        licence="",
    )


def sentence_of(error: Exception, place: Path | str) -> str:
    """What is wrong with a model that lies there, so that others can be listed beside it."""
    if isinstance(error, RequestError):
        return str(error)
    if isinstance(error, OSError):
        return f"{shown_path(error.filename or place)} cannot be read: {error.strerror or type(error).__name__}."
    return f"{shown_path(place)} cannot be read: {quoted(' '.join(str(error).split()) or type(error).__name__)}."
