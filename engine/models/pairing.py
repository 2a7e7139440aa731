"""A model made of files: a transformer, and the autoencoder, text encoders and tokenizers that go with it.

What the person does not name is looked for beside the transformer, in the folders where other programs keep such
files, among what was found before, and in the hub's cache; a part counts as found only when its shapes fit the
transformer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine.folders import shown_path
from engine.models import flux1, hub, tokenizers
from engine.models.configs import CLASSES
from engine.models.headers import WEIGHT_SUFFIXES, read_header, unreadable
from engine.models.layouts import TITLES, Found, recognise
from engine.models.model import (
    DISTILLED,
    SHARD,
    TOKENIZERS,
    Model,
    check_whole,
    component_in,
    described,
    distilled_config,
    has_tokenizer,
    weight_files,
    with_config,
)
from engine.models.registry import DISTILLT5, TOKENIZERS_ALONE, Registry
from engine.request import RequestError
from engine.untrusted import read_object

# The folders of ComfyUI, Forge and InvokeAI that hold models, by what they hold.
SIBLINGS = {
    "vae": ("vae", "VAE"),
    "text_encoder": ("clip", "text_encoders", "text_encoder"),
    "text_encoder_2": ("clip", "text_encoders", "text_encoder", "text_encoder_2"),
    DISTILLED: ("clip", "text_encoders", DISTILLED),
}
COMFY_TOKENIZERS = {"tokenizer": "comfy/sd1_tokenizer", "tokenizer_2": "comfy/text_encoders/t5_tokenizer"}
NAMES_OF_TOKENIZERS = {  # folders of these names are taken at their word, until their text encoder is known
    "tokenizer": "tokenizer",
    "sd1_tokenizer": "tokenizer",
    "tokenizer_2": "tokenizer_2",
    "t5_tokenizer": "tokenizer_2",
}
FLAGS = {"vae": "--vae", "text_encoder": "--clip", "text_encoder_2": "--t5", DISTILLED: "--distill"}
ENCODERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
CHECKS: dict[str, tuple[int, Callable[[Path], None]]] = {
    "tokenizer": (flux1.CLIP_L["vocab_size"], tokenizers.check_clip),
    "tokenizer_2": (flux1.T5_XXL["vocab_size"], tokenizers.check_t5),
}
TOKENIZER_TITLES = {"tokenizer": "CLIP's tokenizer", "tokenizer_2": "T5's tokenizer"}
# Other models' parts may have the same shapes: where several fit, these words in a file's name decide.
RIGHT_WORDS = {"vae": ("flux", "ae"), "text_encoder": ("clip_l", "clip-l")}
WRONG_WORDS = ("sd3", "sd_3", "stable-diffusion-3", "stable_diffusion_3")
MAX_CANDIDATES = 500  # files of a folder that are looked at
MAX_TOKENIZER_BYTES = 32 * 2**20
MAX_REMEMBERED = 512  # files and folders of which it is remembered what they hold


@dataclass(frozen=True, slots=True)
class Pairing:
    """A transformer's file, and what belongs to it: parts by component, tokenizers' folders, and what is nowhere."""

    path: Path
    found: dict[str, Found]
    folders: dict[str, Path]
    missing: tuple[str, ...]  # components, tokenizers
    elsewhere: tuple[str, ...] = ()  # a sentence for each part that is not the model's own
    wrong: RequestError | None = None  # why a tokenizer that is there is not the right one

    @property
    def lacks(self) -> tuple[str, ...]:
        """What is missing, in words."""
        return tuple((TITLES | TOKENIZER_TITLES)[part] for part in self.missing)


def paired(path: Path, given: Mapping[str, Path], registry: Registry) -> Pairing:
    """A transformer's file, or one that holds everything, with its parts; `given` are places of parts by component.

    Raises `RequestError` for a file or a part that cannot be used; not for what is missing.
    """
    found = {part.component: part for part in recognised(path)}
    if "transformer" not in found:
        what = " and ".join(TITLES[component] for component in found)
        raise RequestError(
            "model", f"{shown_path(path)} holds {what}; give the transformer's file, it is paired with it."
        )
    transformer = found["transformer"]
    if "transformer" in given:
        raise RequestError("model", "the transformer is the file itself; leave the other one out.")
    missing: list[str] = []
    elsewhere: list[str] = []
    for component in (*CLASSES, DISTILLED):
        if component in given:
            found[component] = _part_in(given[component], component)
            if wrong := misfit(found[component], transformer):
                raise RequestError(
                    "model", f"{TITLES[component]} in {shown_path(given[component])} {wrong}; give the right one."
                )
        elif component not in found:
            fitting, own = _candidates(component, transformer, path, registry)
            if fitting:
                found[component] = fitting[0]
                if not own and component in CLASSES:
                    elsewhere.append(_from_elsewhere(fitting[0]))
            elif component in CLASSES:
                missing.append(component)
    folders: dict[str, Path] = {}
    wrong_one: RequestError | None = None
    for part in TOKENIZERS:
        encoder = found.get(ENCODERS[part])
        if part in given:
            check_tokenizer(part, given[part], encoder)
            folders[part] = given[part]
            continue
        for folder in _tokenizers(part, path, registry):
            try:
                check_tokenizer(part, folder, encoder)
                folders[part] = folder
                break
            except RequestError as error:
                wrong_one = wrong_one or error
        else:
            missing.append(part)
    return Pairing(path, found, folders, tuple(missing), tuple(elsewhere), wrong_one)


def model_of_file(path: Path, name: str, given: Mapping[str, Path], registry: Registry) -> Model:
    """The model of a transformer's file, or of one that holds everything; `given` are places of parts by component.

    Raises `RequestError` that names everything that is missing, before anything is loaded.
    """
    return model_of(paired(path, given, registry), name)


def model_of(pairing: Pairing, name: str) -> Model:
    """The model that these parts make. Raises `RequestError` that names everything that is missing."""
    if not pairing.missing:
        model = assembled(name, pairing.path, pairing.found, pairing.folders)
        return replace(model, elsewhere=pairing.elsewhere)
    components = [part for part in pairing.missing if part in CLASSES]
    if not components and pairing.wrong is not None:
        raise pairing.wrong
    missing = [f"{TITLES[component]} ({FLAGS[component]})" for component in components]
    lacking = [part for part in pairing.missing if part in TOKENIZERS]
    if lacking:
        what = "tokenizers" if len(lacking) == len(TOKENIZERS) else TOKENIZER_TITLES[lacking[0]]
        missing.append(f"{what} (t2i models pull tokenizers, or --tokenizers with their folder)")
    raise RequestError(
        "model",
        f"{shown_path(pairing.path)} needs {_listed(missing)}, which {'is' if len(pairing.missing) == 1 else 'are'} "
        "not beside it and not among the models that are known: say where with t2i models add, or let t2i models scan "
        "look.",
    )


def assembled(name: str, path: Path, found: Mapping[str, Found], folders: Mapping[str, Path]) -> Model:
    """A model of these parts; its noise schedule is that of FLUX.1 of its kind."""
    configs: dict[str, dict[str, Any]] = {
        component: distilled_config(part) if component == DISTILLED else part.config
        for component, part in found.items()
    }
    configs["scheduler"] = flux1.scheduler(bool(configs["transformer"].get("guidance_embeds")))
    files = {component: part.files for component, part in found.items()}
    return described(name, path, configs, files, tokenizers=dict(folders), found=dict(found))


# Tokenizers


def check_tokenizer(part: str, folder: Path, encoder: Found | None) -> None:
    """A tokenizer must be the one that its text encoder was trained with. Raises `RequestError`."""
    vocabulary, _ = CHECKS[part]
    rows = int(encoder.config["vocab_size"]) if encoder else vocabulary
    if rows == vocabulary:
        if wrong := _wrong_tokenizer(part, folder, _stamps(folder)):
            raise RequestError("model", wrong)
    elif encoder and (size := tokenizers.vocabulary_size(folder)) > rows:
        raise RequestError(
            "model",
            f"the tokenizer in {shown_path(folder)} knows {size} tokens, {TITLES[encoder.component]} in "
            f"{shown_path(encoder.files[0])} {rows}: they do not belong together.",
        )


@lru_cache(maxsize=MAX_REMEMBERED)
def _wrong_tokenizer(part: str, folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Why a tokenizer is not FLUX.1's, as a sentence; empty where it is. It takes half a second to see."""
    _, check = CHECKS[part]
    try:
        check(folder)
    except RequestError as error:
        return str(error)
    return ""


def tokenizer_in(folder: Path) -> str:
    """Which of a model's tokenizers a folder seems to hold, by its files, then by its name; "" where it holds none."""
    return _tokenizer_in(folder, _stamps(folder)) if has_tokenizer(folder) else ""


@lru_cache(maxsize=MAX_REMEMBERED)
def _tokenizer_in(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    if (folder / "spiece.model").is_file():
        return "tokenizer_2"
    if (folder / "vocab.json").is_file():
        return "tokenizer" if (folder / "merges.txt").is_file() else ""
    with suppress(RequestError, TypeError, KeyError):
        file = folder / "tokenizer.json"
        if file.is_file():
            kind = read_object(file, MAX_TOKENIZER_BYTES)["model"]["type"]
            if kind in ("BPE", "Unigram"):
                return "tokenizer" if kind == "BPE" else "tokenizer_2"
    return NAMES_OF_TOKENIZERS.get(folder.name, "")


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells whether a tokenizer's files have changed."""
    found = []
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model"):
        with suppress(OSError):
            status = (folder / name).stat()
            found.append((name, status.st_size, status.st_mtime_ns))
    return tuple(found)


def tokenizers_below(folder: Path) -> dict[str, Path]:
    """Tokenizers in a folder, by part: in one of its folders as diffusers or ComfyUI name them, or in itself."""
    found = {}
    for part, comfy in COMFY_TOKENIZERS.items():
        for place in (folder / comfy, folder / comfy.removeprefix("comfy/"), folder / part):
            if has_tokenizer(place):
                found[part] = place
    if not found and (part := tokenizer_in(folder)):
        found[part] = folder
    return found


def _tokenizers(part: str, path: Path, registry: Registry) -> Iterator[Path]:
    """Folders with a tokenizer: beside the file, in a ComfyUI above it, known, in the hub's cache."""
    places = [folder / part for folder in (path.parent, path.parent.parent)]
    places += [ancestor / COMFY_TOKENIZERS[part] for ancestor in path.parents[:6]]
    for place in registry.loose:
        places += [place] if tokenizer_in(place) == part else [place / part]
    for model in registry.models.values():
        places += [model.parts[part]] if part in model.parts else []
        places.append(model.path / part)
    yield from (place for place in dict.fromkeys(places) if has_tokenizer(place))
    alone = hub.found_in_cache(TOKENIZERS_ALONE)
    if isinstance(alone, dict):
        yield alone[part]
    yield from (folder / part for folder in cached_models() if has_tokenizer(folder / part))


# Weights


def transformers_in(folder: Path) -> list[Path]:
    """Where in a folder a transformer lies that can be run: files, or the folder itself."""
    return [place for place in places_in(folder) if any(part.component == "transformer" for part in parts_at(place))]


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


def misfit(part: Found, transformer: Found) -> str:
    """What of a part does not fit a transformer, in words; empty where all does."""
    ours, theirs = transformer.config, part.config
    match part.component:
        case "vae":
            if (
                theirs["latent_channels"] == 16
                and abs(theirs.get("scaling_factor", 0) - flux1.VAE["scaling_factor"]) > 0.01
            ):
                return (
                    "is another model's: it scales latents in another way"  # Stable Diffusion 3's has the same shapes
                )
            wanted, given, what = ours["in_channels"], 4 * theirs["latent_channels"], "channels"
        case "text_encoder":
            wanted, given, what = ours["pooled_projection_dim"], theirs["hidden_size"], "numbers a prompt"
        case "text_encoder_2":
            wanted, given, what = ours["joint_attention_dim"], theirs["d_model"], "numbers a token"
        case "distill_t5":
            wanted, given, what = ours["joint_attention_dim"], theirs["project_out_dim"], "numbers a token"
        case _:
            return ""
    return "" if wanted == given else f"gives {given} {what}, the transformer takes {wanted}"


def parts_at(place: Path) -> Sequence[Found]:
    """The parts in a file or in a component's folder; none where nothing there can be used."""
    try:
        return recognised(place)
    except (RequestError, OSError):
        return ()


def recognised(place: Path) -> Sequence[Found]:
    """The parts in a file or in a component's folder. Raises `RequestError` with the reason where there are none."""
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
    return _parts_of(files, tuple(stamps))


@lru_cache(maxsize=MAX_REMEMBERED)
def _parts_of(files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> Sequence[Found]:
    """What these files hold; where a stamp is another, that is looked at anew."""
    parts = recognise([read_header(file) for file in files])
    with_own = len(stamps) > len(files) and _alone(files)
    return tuple(with_config(part, trusted=False) if with_own else part for part in parts)


def _part_in(place: Path, component: str) -> Found:
    """A part that the person named, by its file, its folder or its model's. Raises `RequestError`."""
    inside = place / component
    for part in parts_at(inside if inside.is_dir() else place):
        if part.component == component:
            return part
    return component_in(place, component)  # which says what is wrong


def _alone(files: Sequence[Path]) -> bool:
    """Whether a folder holds no other weights, so that its config.json is of these."""
    return {*weight_files_in(files[0].parent)} <= {*files}


def cached_models() -> Iterator[Path]:
    """Complete folders of published models in the hub's cache."""
    for name in flux1.NAMES:
        folder = hub.found_in_cache(name)
        if isinstance(folder, Path):
            yield folder


def distilled_for(model: Model, registry: Registry) -> Found | None:
    """A DistillT5 that is known and fits a model which has none of its own."""
    transformer = Found("transformer", "", "", (), 0, model.configs["transformer"])
    places = [*registry.loose, *(known.parts.get(DISTILLED) for known in registry.models.values())]
    if DISTILLT5 in registry.models:
        places.insert(0, registry.models[DISTILLT5].path)
    return next(_fitting(DISTILLED, transformer, [place for place in places if place]), None) or next(
        _fitting(DISTILLED, transformer, _cached_places(DISTILLED)), None
    )


def _candidates(component: str, transformer: Found, path: Path, registry: Registry) -> tuple[list[Found], bool]:
    """Parts that fit, and whether they are the model's own.

    The nearest place that has one is its own: its folder, then a folder for such parts beside it or above it; only
    then what is known from elsewhere. In one place the best comes first: named as FLUX.1's, then of the most bytes,
    because fewer are a rounding.
    """
    places = [*_own_places(component, path)]
    for number, tier in enumerate([*places, _known_places(component, registry), _cached_places(component)]):
        elsewhere = (place for place in dict.fromkeys(tier) if place != path)
        if fitting := [*_fitting(component, transformer, elsewhere)]:
            return sorted(fitting, key=_unlikeliness), number < len(places)
    return [], False


def _from_elsewhere(part: Found) -> str:
    """A part that is not beside the model: where it lies, and why it was taken."""
    fits = {
        "vae": "its latents have as many channels as the transformer takes",
        "text_encoder": "it gives as many numbers a prompt as the transformer takes",
        "text_encoder_2": "it gives as many numbers a token as the transformer takes",
    }
    place = part.files[0] if len(part.files) == 1 else part.files[0].parent
    return (
        f"{TITLES[part.component]} is not beside the model, so {shown_path(place)} is used: "
        f"{fits[part.component]}; {FLAGS[part.component]} with t2i models add names another."
    )


def _fitting(component: str, transformer: Found, places: Iterable[Path]) -> Iterator[Found]:
    for place in places:
        for part in parts_at(place):
            if part.component == component and not misfit(part, transformer):
                yield part


def _unlikeliness(part: Found) -> tuple[int, int, bool, str]:
    return _strangeness(part), -part.nbytes, bool(part.prefix), str(part.files[0])


def _strangeness(part: Found) -> int:
    """How little a file's name sounds like FLUX.1's part: 0, 1 or 2."""
    stem = part.files[0].stem.lower()
    if any(word in str(part.files[0].parent / stem).lower() for word in WRONG_WORDS):
        return 2
    right = RIGHT_WORDS.get(part.component, ())
    return 0 if not right or any(stem == word or (len(word) > 2 and word in stem) for word in right) else 1


def _own_places(component: str, path: Path) -> Iterator[list[Path]]:
    """Files and component folders in which the model's own part may be: the nearest first, each place by itself."""
    yield places_in(path.parent)
    for ancestor in path.parents[:4]:
        yield [place for name in SIBLINGS[component] for place in places_in(ancestor / name)]


def _known_places(component: str, registry: Registry) -> Iterator[Path]:
    """Where other parts are that were added or found."""
    yield from registry.loose
    for model in registry.models.values():
        if component in model.parts:
            yield model.parts[component]
        yield model.path / component
        if model.path.is_file() or model.name == DISTILLT5:
            yield model.path


def _cached_places(component: str) -> Iterator[Path]:
    """Where the hub's cache has a part."""
    if component == DISTILLED:
        folder = hub.found_in_cache(DISTILLT5)
        if isinstance(folder, Path):
            yield folder
    else:
        yield from (folder / component for folder in cached_models())


def _listed(texts: Sequence[str]) -> str:
    return " and ".join((", ".join(texts[:-1]), texts[-1])) if len(texts) > 1 else texts[0]
