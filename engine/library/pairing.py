"""A model made of files: a transformer, and the autoencoder, text encoders and tokenizers that go with it.

What the person does not name is looked for beside the transformer, in the folders where other programs keep such
files, among what was found before, and in the hub's cache; a part counts as found only when its shapes fit the
transformer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from engine.families.all import FAMILIES
from engine.families.facts import Part, Tokenizer
from engine.families.family import Family
from engine.folders import shown_path
from engine.library import hub
from engine.library.registry import ALONE, PARTS_ALONE, Registry
from engine.request import RequestError
from engine.untrusted.headers import WEIGHT_SUFFIXES, read_header, unreadable
from engine.weights.layouts import Found, recognise
from engine.weights.model import (
    SHARD,
    Model,
    check_whole,
    component_in,
    config_of,
    described,
    has_tokenizer,
    weight_files,
    with_config,
)

WRONG_WORDS = ("sd3", "sd_3", "stable-diffusion-3", "stable_diffusion_3")  # of files whose parts have the same shapes
MAX_CANDIDATES = 500  # files of a folder that are looked at
MAX_REMEMBERED = 512  # files and folders of which it is remembered what they hold


@dataclass(frozen=True, slots=True)
class Pairing:
    """A transformer's file, and what belongs to it: parts by component, tokenizers' folders, and what is nowhere."""

    family: Family
    path: Path
    found: dict[str, Found]
    folders: dict[str, Path]
    missing: tuple[Part | Tokenizer, ...]
    elsewhere: tuple[str, ...] = ()  # a sentence for each part that is not the model's own
    wrong: RequestError | None = None  # why a tokenizer that is there is not the right one

    @property
    def lacks(self) -> tuple[str, ...]:
        """What is missing, in words."""
        return tuple(each.title for each in self.missing)


def paired(path: Path, given: Mapping[str, Path], registry: Registry) -> Pairing:
    """A transformer's file, or one that holds everything, with its parts; `given` are places of parts by component.

    Raises `RequestError` for a file or a part that cannot be used; not for what is missing.
    """
    found = {part.component: part for part in recognised(path)}
    core = next((part for part in found.values() if part.part is part.family.core), None)
    if core is None:
        what = " and ".join(part.part.title for part in found.values())
        raise RequestError(
            "model", f"{shown_path(path)} holds {what}; give the transformer's file, it is paired with it."
        )
    family = core.family
    if family.core.name in given:
        raise RequestError("model", "the transformer is the file itself; leave the other one out.")
    missing: list[Part | Tokenizer] = []
    elsewhere: list[str] = []
    for part in family.parts:
        if part.name in given:
            found[part.name] = _part_in(given[part.name], part.name, family)
            if wrong := misfit(found[part.name], core):
                raise RequestError(
                    "model", f"{part.title} in {shown_path(given[part.name])} {wrong}; give the right one."
                )
        elif part.name not in found:
            fitting, own = _candidates(part, core, path, registry)
            if fitting:
                found[part.name] = fitting[0]
                if not own and not part.takes_place_of:
                    elsewhere.append(_from_elsewhere(fitting[0]))
            elif not part.takes_place_of:
                missing.append(part)
    folders: dict[str, Path] = {}
    wrong_one: RequestError | None = None
    for tokenizer in family.tokenizers:
        encoder = found.get(tokenizer.encoder)
        if tokenizer.name in given:
            check_tokenizer(tokenizer, given[tokenizer.name], encoder)
            folders[tokenizer.name] = given[tokenizer.name]
            continue
        for folder in _tokenizers(tokenizer, path, registry):
            try:
                check_tokenizer(tokenizer, folder, encoder)
                folders[tokenizer.name] = folder
                break
            except RequestError as error:
                wrong_one = wrong_one or error
        else:
            missing.append(tokenizer)
    return Pairing(family, path, found, folders, tuple(missing), tuple(elsewhere), wrong_one)


def model_of_file(path: Path, name: str, given: Mapping[str, Path], registry: Registry) -> Model:
    """The model of a transformer's file, or of one that holds everything; `given` are places of parts by component.

    Raises `RequestError` that names everything that is missing, before anything is loaded.
    """
    return model_of(paired(path, given, registry), name)


def model_of(pairing: Pairing, name: str) -> Model:
    """The model that these parts make. Raises `RequestError` that names everything that is missing."""
    if not pairing.missing:
        return replace(_assembled(pairing, name), elsewhere=pairing.elsewhere)
    parts = [part for part in pairing.missing if isinstance(part, Part)]
    if not parts and pairing.wrong is not None:
        raise pairing.wrong
    missing = [f"{part.title} ({part.flag})" for part in parts]
    lacking = [each for each in pairing.missing if isinstance(each, Tokenizer)]
    if lacking:
        what = "tokenizers" if len(lacking) == len(pairing.family.tokenizers) else lacking[0].title
        missing.append(f"{what} (t2i models pull tokenizers, or --tokenizers with their folder)")
    raise RequestError(
        "model",
        f"{shown_path(pairing.path)} needs {_listed(missing)}, which {'is' if len(pairing.missing) == 1 else 'are'} "
        "not beside it and not among the models that are known: say where with t2i models add, or let t2i models scan "
        "look.",
    )


def _assembled(pairing: Pairing, name: str) -> Model:
    """A model of these parts; its noise schedule is that of the published one of its kind."""
    configs = {component: config_of(part) for component, part in pairing.found.items()}
    configs["scheduler"] = pairing.family.scheduler(configs[pairing.family.core.name])
    files = {component: part.files for component, part in pairing.found.items()}
    folders, found = dict(pairing.folders), dict(pairing.found)
    return described(pairing.family, name, pairing.path, configs, files, tokenizers=folders, found=found)


# Tokenizers


def check_tokenizer(tokenizer: Tokenizer, folder: Path, encoder: Found | None) -> None:
    """A tokenizer must be the one that its text encoder was trained with. Raises `RequestError`."""
    rows = int(encoder.config["vocab_size"]) if encoder else tokenizer.entries
    if rows == tokenizer.entries:
        if wrong := _wrong_tokenizer(tokenizer, folder, _stamps(folder)):
            raise RequestError("model", wrong)
    elif encoder and (size := tokenizer.size(folder)) > rows:
        raise RequestError(
            "model",
            f"the tokenizer in {shown_path(folder)} knows {size} tokens, {encoder.part.title} in "
            f"{shown_path(encoder.files[0])} {rows}: they do not belong together.",
        )


@lru_cache(maxsize=MAX_REMEMBERED)
def _wrong_tokenizer(tokenizer: Tokenizer, folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Why a tokenizer is not the published one, as a sentence; empty where it is. It takes half a second to see."""
    try:
        tokenizer.check(folder)
    except RequestError as error:
        return str(error)
    return ""


def tokenizer_in(folder: Path) -> Tokenizer | None:
    """Which tokenizer a folder seems to hold, by its files, then by its name; None where it holds none."""
    return likeliest(_tokenizers_in(folder), folder)


def likeliest(candidates: Sequence[Tokenizer], folder: Path) -> Tokenizer | None:
    """The one of several families' tokenizers that a folder holds, by its content; the first where none is right."""
    if len(candidates) > 1:
        right = (each for each in candidates if not _wrong_tokenizer(each, folder, _stamps(folder)))
        return next(right, candidates[0])
    return candidates[0] if candidates else None


def _tokenizers_in(folder: Path) -> tuple[Tokenizer, ...]:
    """What each family takes a folder for."""
    return _seeming(folder, _stamps(folder), tuple(FAMILIES)) if has_tokenizer(folder) else ()


@lru_cache(maxsize=MAX_REMEMBERED)
def _seeming(
    folder: Path, stamps: tuple[tuple[str, int, int], ...], families: tuple[Family, ...]
) -> tuple[Tokenizer, ...]:
    return tuple(family.tokenizer(name) for family in families if (name := family.tokenizer_in(folder)))


def is_trusted(folder: Path, tokenizer: Tokenizer) -> bool:
    """Whether a folder is called as this tokenizer's are: then its content is checked when its encoder is known."""
    return folder.name in tokenizer.folders


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells whether a tokenizer's files have changed."""
    found = []
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model"):
        with suppress(OSError):
            status = (folder / name).stat()
            found.append((name, status.st_size, status.st_mtime_ns))
    return tuple(found)


def tokenizers_below(folder: Path, family: Family) -> dict[str, Path]:
    """A family's tokenizers in a folder: in one of its folders as diffusers or ComfyUI name them, or in itself."""
    found = {}
    for tokenizer in family.tokenizers:
        for place in (
            folder / tokenizer.place,
            folder / tokenizer.place.removeprefix("comfy/"),
            folder / tokenizer.name,
        ):
            if has_tokenizer(place):
                found[tokenizer.name] = place
    if not found and has_tokenizer(folder) and (name := family.tokenizer_in(folder)):
        found[name] = folder
    return found


def _tokenizers(tokenizer: Tokenizer, path: Path, registry: Registry) -> Iterator[Path]:
    """Folders with a tokenizer: beside the file, in a ComfyUI above it, known, in the hub's cache."""
    name = tokenizer.name
    places = [folder / name for folder in (path.parent, path.parent.parent)]
    places += [ancestor / tokenizer.place for ancestor in path.parents[:6]]
    for place in registry.loose:
        places += [place] if tokenizer in _tokenizers_in(place) else [place / name]
    for model in registry.models.values():
        places += [model.parts[name]] if name in model.parts else []
        places.append(model.path / name)
    yield from (place for place in dict.fromkeys(places) if has_tokenizer(place))
    for source, brings in ALONE.items():
        alone = hub.found_in_cache(source) if brings == "tokenizers" else None
        if isinstance(alone, dict) and name in alone:
            yield alone[name]
    yield from (folder / name for folder in cached_models() if has_tokenizer(folder / name))


# Weights


def transformers_in(folder: Path) -> list[Path]:
    """Where in a folder a transformer lies that can be run: files, or the folder itself."""
    return [place for place in places_in(folder) if any(part.part is part.family.core for part in parts_at(place))]


def places_in(folder: Path) -> list[Path]:
    """Where a folder may hold parts: in each of its files, and in itself where there are the shards of one part."""
    files = weight_files_in(folder)
    whole = [file for file in files if not SHARD.search(file.name)]
    return whole if len(whole) == len(files) else [folder, *whole]


def weight_files_in(folder: Path) -> list[Path]:
    """Files that may hold weights, by name; none where the folder cannot be read."""
    with suppress(OSError):
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in WEIGHT_SUFFIXES and file.is_file())
        return files[:MAX_CANDIDATES]
    return []


def misfit(part: Found, core: Found) -> str:
    """What of a part does not fit a transformer, in words; empty where all does."""
    if part.family is not core.family:
        return f"is {part.family.title}'s, the transformer is {core.family.title}'s"
    family = part.family
    return family.foreign(part.component, part.config) or family.misfit(part.component, part.config, core.config)


def parts_at(place: Path, families: Sequence[Family] = FAMILIES) -> Sequence[Found]:
    """The parts in a file or in a component's folder; none where nothing there can be used."""
    try:
        return recognised(place, families)
    except (RequestError, OSError):
        return ()


def recognised(place: Path, families: Sequence[Family] = FAMILIES) -> Sequence[Found]:
    """The parts in a file or in a component's folder, of one of the families.

    Raises `RequestError` with the reason where there are none.
    """
    if not place.is_dir():
        check_whole(place)
    files = weight_files(place) if place.is_dir() else (place,)
    config = files[0].with_name("config.json")
    stamps = []
    for file in (*files, config):
        try:
            stamps.append((file.stat().st_size, file.stat().st_mtime_ns))
        except OSError as error:
            if file != config:
                raise unreadable(file, error) from None
    return _parts_of(files, tuple(stamps), tuple(families))


@lru_cache(maxsize=MAX_REMEMBERED)
def _parts_of(
    files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...], families: tuple[Family, ...]
) -> Sequence[Found]:
    """What these files hold; where a stamp is another, that is looked at anew."""
    parts = recognise([read_header(file) for file in files], families)
    with_own = len(stamps) > len(files) and _alone(files)
    return tuple(with_config(part, trusted=False) if with_own else part for part in parts)


def _part_in(place: Path, component: str, family: Family) -> Found:
    """A part that the person named, by its file, its folder or its model's. Raises `RequestError`."""
    inside = place / component
    for part in parts_at(inside if inside.is_dir() else place, [family]):
        if part.component == component:
            return part
    return component_in(place, component, [family])  # which says what is wrong


def _alone(files: Sequence[Path]) -> bool:
    """Whether a folder holds no other weights, so that its config.json is of these."""
    return {*weight_files_in(files[0].parent)} <= {*files}


def cached_models() -> Iterator[Path]:
    """Complete folders of published models in the hub's cache."""
    for family in FAMILIES:
        for model in family.published:
            folder = hub.found_in_cache(model.name)
            if isinstance(folder, Path):
                yield folder


def distilled_for(model: Model, registry: Registry) -> Found | None:
    """A smaller text encoder that is known and fits a model which has none of its own."""
    core = Found(model.family, model.family.core.name, "", "", (), 0, model.configs[model.family.core.name])
    for part in model.family.parts:
        if part.takes_place_of:
            places = [*registry.loose, *(known.parts.get(part.name) for known in registry.models.values())]
            alone = [registry.models[name].path for name in PARTS_ALONE if name in registry.models]
            for tier in ([*alone, *(place for place in places if place)], _cached_places(part)):
                if found := next(_fitting(part.name, core, tier), None):
                    return found
    return None


def _candidates(part: Part, core: Found, path: Path, registry: Registry) -> tuple[list[Found], bool]:
    """Parts that fit, and whether they are the model's own.

    The nearest place that has one is its own: its folder, then a folder for such parts beside it or above it; only
    then what is known from elsewhere. In one place the best comes first: named as the family's, then of the most
    bytes, because fewer are a rounding.
    """
    places = [*_own_places(part, path)]
    for number, tier in enumerate([*places, _known_places(part, registry), _cached_places(part)]):
        elsewhere = (place for place in dict.fromkeys(tier) if place != path)
        if fitting := [*_fitting(part.name, core, elsewhere)]:
            return sorted(fitting, key=_unlikeliness), number < len(places)
    return [], False


def _from_elsewhere(found: Found) -> str:
    """A part that is not beside the model: where it lies, and why it was taken."""
    part = found.part
    return (
        f"{part.title} is not beside the model, so {shown_path(found.place)} is used: {part.fits}; {part.flag} with "
        "t2i models add names another."
    )


def _fitting(component: str, core: Found, places: Iterable[Path]) -> Iterator[Found]:
    for place in places:
        for part in parts_at(place, [core.family]):
            if part.component == component and not misfit(part, core):
                yield part


def _unlikeliness(part: Found) -> tuple[int, int, bool, str]:
    return _name_rank(part), -part.nbytes, bool(part.prefix), str(part.files[0])


def _name_rank(part: Found) -> int:
    """How a part's file is called: 0 as expected, 1 neutral, 2 as another model's."""
    stem = part.files[0].stem.lower()
    if any(word in str(part.files[0].parent / stem).lower() for word in WRONG_WORDS):
        return 2
    usual = part.part.usual_names
    return 0 if not usual or any(stem == word or (len(word) > 2 and word in stem) for word in usual) else 1


def _own_places(part: Part, path: Path) -> Iterator[list[Path]]:
    """Files and component folders in which the model's own part may be: the nearest first, each place by itself."""
    yield places_in(path.parent)
    for ancestor in path.parents[:4]:
        yield [place for name in part.folders for place in places_in(ancestor / name)]


def _known_places(part: Part, registry: Registry) -> Iterator[Path]:
    """Where other parts are that were added or found."""
    yield from registry.loose
    for model in registry.models.values():
        if part.name in model.parts:
            yield model.parts[part.name]
        yield model.path / part.name
        if model.path.is_file() or model.name in PARTS_ALONE:
            yield model.path


def _cached_places(part: Part) -> Iterator[Path]:
    """Where the hub's cache has a part."""
    if part.takes_place_of:
        for name, brings in ALONE.items():
            folder = hub.found_in_cache(name) if brings == part.name else None
            if isinstance(folder, Path):
                yield folder
    else:
        yield from (folder / part.name for folder in cached_models())


def _listed(texts: Sequence[str]) -> str:
    return " and ".join((", ".join(texts[:-1]), texts[-1])) if len(texts) > 1 else texts[0]
