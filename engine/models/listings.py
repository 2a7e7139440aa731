"""What there is to say about a model, or about what completes models. torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from engine.folders import shown_path
from engine.models import catalog, flux1, hub, pairing
from engine.models.configs import CLASSES
from engine.models.layouts import TITLES, Found
from engine.models.model import DESCRIBING, DISTILLED, TOKENIZERS, Model, open_folder
from engine.models.registry import DISTILLT5, TOKENIZERS_ALONE, Registered, Registry
from engine.request import RequestError
from engine.text import printable, quoted

KINDS = {True: "dev", False: "schnell"}  # by whether guidance is embedded
LICENCES = {
    "demo": "The demo model is part of this program: Apache License 2.0 or MIT, as you prefer.",
    "dev": "As its author says; what is made from FLUX.1 [dev] is under the FLUX.1 [dev] Non-Commercial License.",
    "schnell": "As its author says; FLUX.1 [schnell] itself is under the Apache License 2.0.",
}


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
    if name == DISTILLT5:
        return distilled_listing(entry)
    if name == TOKENIZERS_ALONE:
        return _tokenizers_listing(entry)
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
    kind = "demo" if name == catalog.DEMO else KINDS[bool(model.configs["transformer"].get("guidance_embeds"))]
    given = entry.parts if entry else {}
    parts = tuple(_parts_of(model, given))
    own = [part for part in parts if part.component != DISTILLED]
    source = hub.SOURCES.get(name)
    pulled = entry is not None and entry.pulled
    missing = () if model.has_weights else ("the rest of its weights" if pulled else "its weights",)
    found = model.found.get("transformer")
    return Listing(
        name=name,
        place=str(model.path) if model.has_weights else "",
        kind=kind,
        here=model.has_weights,
        nbytes=sum(part.nbytes for part in own),
        precision=model.precision("transformer") or "bf16",
        layout=model.layout("transformer"),
        parts=parts,
        missing=missing,
        warning=found.warning if found else "",
        pulled=pulled,
        can_pull=not model.has_weights and source is not None,
        can_remove=entry is not None,
        licence=source.licence if source else LICENCES[kind],
    )


def _parts_of(model: Model, given: Mapping[str, Path]) -> Iterator[Part]:
    for component in (*CLASSES, DISTILLED):
        if component in model.found:
            note = "takes T5's place with --distill" if component == DISTILLED else ""
            yield part_of_found(model.found[component], note or ("as you said" if component in given else ""))
        elif component in CLASSES:
            yield Part(component, TITLES[component], "", "diffusers", "bf16", model.bytes[component])
    for part, folder in model.tokenizers.items():
        yield tokenizer_part(part, folder, "as you said" if part in given else "")


def part_of_found(found: Found, note: str = "") -> Part:
    """Of weights."""
    files = found.files
    place = files[0] if len(files) == 1 else files[0].parent
    title = TITLES[found.component]
    return Part(found.component, title, str(place), found.layout, found.precision, found.nbytes, note)


def tokenizer_part(part: str, folder: Path, note: str = "") -> Part:
    """Of a tokenizer's folder; `part` is tokenizer or tokenizer_2."""
    nbytes = 0
    with suppress(OSError):
        nbytes = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in DESCRIBING)
    return Part(part, pairing.TOKENIZER_TITLES[part], str(folder), "", "", nbytes, note)


def _incomplete(entry: Registered, pairs: pairing.Pairing) -> Listing:
    """Of a transformer whose other parts are not all here."""
    transformer = pairs.found["transformer"]
    parts = [part_of_found(pairs.found[component]) for component in CLASSES if component in pairs.found]
    parts += [tokenizer_part(part, folder) for part, folder in pairs.folders.items()]
    parts += [Part(part, title, "", "", "", 0) for part, title in zip(pairs.missing, pairs.lacks, strict=True)]
    kind = KINDS[bool(transformer.config.get("guidance_embeds"))]
    return Listing(
        name=entry.name,
        place=str(entry.path),
        kind=kind,
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
        licence=LICENCES[kind],
    )


def _broken(name: str, entry: Registered | None, sentence: str) -> Listing:
    """Of a model that cannot be opened."""
    pulled = entry is not None and entry.pulled
    return Listing(
        name=name,
        place=str(entry.path) if entry else "",
        kind={flux1.DEV: "dev", flux1.SCHNELL: "schnell"}.get(name, ""),
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


def distilled_listing(entry: Registered | None) -> Listing:
    """Of the smaller text encoder, wherever it is."""
    source = hub.SOURCES[DISTILLT5]
    pulled = entry is not None and entry.pulled
    found, place, warning = None, None, ""
    try:
        cached = hub.found_in_cache(DISTILLT5)
        place = entry.path if entry and not pulled else cached if isinstance(cached, Path) else None
        if place is not None:
            found = next((part for part in pairing.recognised(place) if part.component == DISTILLED), None)
    except Exception as error:
        warning = sentence_of(error, place or DISTILLT5)
    return Listing(
        name=DISTILLT5,
        place=str(place or ""),
        kind="text encoder",
        here=found is not None,
        nbytes=found.nbytes if found else source.approximate_bytes,
        precision=found.precision if found else "fp32",
        layout=found.layout if found else TITLES[DISTILLED],
        parts=(part_of_found(found, "takes T5's place with --distill"),) if found else (),
        missing=() if found or warning else ("the rest of its weights" if pulled else "its weights",),
        warning=warning,
        pulled=pulled,
        can_pull=place is None,
        can_remove=entry is not None,
        licence=source.licence if pulled or not entry else "As its author says.",
    )


def _tokenizers_listing(entry: Registered | None) -> Listing:
    """Of CLIP's and T5's tokenizers by themselves."""
    source = hub.SOURCES[TOKENIZERS_ALONE]
    cached = hub.found_in_cache(TOKENIZERS_ALONE)
    folders = cached if isinstance(cached, dict) else {}
    parts = tuple(tokenizer_part(part, folders[part]) for part in TOKENIZERS if part in folders)
    return Listing(
        name=TOKENIZERS_ALONE,
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
