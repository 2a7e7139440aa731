"""A model made of files: a transformer, and the autoencoder, text encoders and tokenizers that go with it.

What the person does not name is looked for beside the transformer, in the folders where other programs keep such
files, and among what was found before; a part counts as found only when its shapes fit the transformer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.models import flux1, tokenizers
from engine.models.headers import WEIGHT_SUFFIXES, read_header
from engine.models.layouts import TITLES, Found, recognise
from engine.models.model import (
    CLASSES,
    DISTILLED,
    TOKENIZERS,
    Model,
    component_in,
    described,
    distilled_config,
)
from engine.models.registry import DISTILLT5, Registry
from engine.request import RequestError

# The folders of ComfyUI, Forge and InvokeAI that hold models, by what they hold.
SIBLINGS = {
    "vae": ("vae", "VAE"),
    "text_encoder": ("clip", "text_encoders", "text_encoder"),
    "text_encoder_2": ("clip", "text_encoders", "text_encoder", "text_encoder_2"),
    DISTILLED: ("clip", "text_encoders", DISTILLED),
}
COMFY_TOKENIZERS = {"tokenizer": "comfy/sd1_tokenizer", "tokenizer_2": "comfy/text_encoders/t5_tokenizer"}
FLAGS = {"vae": "--vae", "text_encoder": "--clip", "text_encoder_2": "--t5", DISTILLED: "--distill"}
MAX_CANDIDATES = 500  # files of a folder that are looked at


def model_of_file(path: Path, name: str, given: Mapping[str, Path], registry: Registry) -> Model:
    """The model of a transformer's file, or of one that holds everything; `given` are places of parts by component.

    Raises `RequestError` that names everything that is missing, before anything is loaded.
    """
    found = {part.component: part for part in recognise([read_header(path)])}
    if "transformer" not in found:
        what = " and ".join(TITLES[component] for component in found)
        raise RequestError("model", f"{str(path)!r} holds {what}; give the transformer's file, it is paired with it.")
    transformer = found["transformer"]
    if "transformer" in given:
        raise RequestError("model", "the transformer is the file itself; leave the other one out.")
    missing = []
    for component in (*CLASSES, DISTILLED):
        if component in given:
            found[component] = component_in(given[component], component)
            _refuse_misfit(found[component], transformer)
        elif component not in found:
            fitting = _candidates(component, transformer, path, registry)
            if fitting:
                found[component] = fitting[0]
            elif component in CLASSES:
                missing.append(f"{TITLES[component]} ({FLAGS[component]})")
    folders = {}
    for part in TOKENIZERS:
        folder = given.get(part) or _tokenizer(part, path, registry)
        if folder is not None:
            folders[part] = folder
    if len(folders) < len(TOKENIZERS):
        missing.append("tokenizers (t2i models pull tokenizers, or --tokenizers with their folder)")
    if missing:
        raise RequestError(
            "model",
            f"{str(path)!r} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not beside it and "
            "not among the models that are known: say where with t2i models add, or let t2i models scan look.",
        )
    model = assembled(name, path, found, folders)
    check_tokenizers(model)
    return model


def assembled(name: str, path: Path, found: Mapping[str, Found], folders: Mapping[str, Path]) -> Model:
    """A model of these parts; its noise schedule is that of FLUX.1 of its kind."""
    configs: dict[str, dict[str, Any]] = {
        component: distilled_config(part) if component == DISTILLED else part.config
        for component, part in found.items()
    }
    configs["scheduler"] = flux1.scheduler(bool(configs["transformer"].get("guidance_embeds")))
    files = {component: part.files for component, part in found.items()}
    return described(name, path, configs, files, tokenizers=dict(folders), found=dict(found))


def check_tokenizers(model: Model) -> None:
    """The tokenizers must be those that the text encoders were trained with. Raises `RequestError`."""
    checks: dict[str, tuple[str, int, Callable[[Path], None]]] = {
        "tokenizer": ("text_encoder", flux1.CLIP_L["vocab_size"], tokenizers.check_clip),
        "tokenizer_2": ("text_encoder_2", flux1.T5_XXL["vocab_size"], tokenizers.check_t5),
    }
    for part, (component, vocabulary, check) in checks.items():
        folder = model.tokenizers[part]
        rows = int(model.configs[component]["vocab_size"])
        if rows == vocabulary:
            check(folder)
        elif (size := tokenizers.vocabulary_size(folder)) > rows:
            raise RequestError(
                "model",
                f"the tokenizer in {str(folder)!r} knows {size} tokens, {TITLES[component]} in "
                f"{str(model.place(component))!r} {rows}: they do not belong together.",
            )


def transformers_in(folder: Path) -> list[Path]:
    """The files of a folder that hold a transformer that can be run."""
    return [
        file for file in weight_files_in(folder) if any(part.component == "transformer" for part in _recognised(file))
    ]


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


def _refuse_misfit(part: Found, transformer: Found) -> None:
    if wrong := misfit(part, transformer):
        raise RequestError("model", f"{TITLES[part.component]} in {str(part.files[0])!r} {wrong}; give the right one.")


def _candidates(component: str, transformer: Found, path: Path, registry: Registry) -> list[Found]:
    """Parts that fit, the best first: of the most bytes, because fewer are a rounding of those."""
    fitting = [
        part
        for place in _places(component, path, registry)
        for part in _recognised(place)
        if part.component == component and not misfit(part, transformer)
    ]
    beside = [part for part in fitting if part.files[0].parent == path.parent]
    return sorted(beside or fitting, key=lambda part: (-part.nbytes, str(part.files[0])))


def _places(component: str, path: Path, registry: Registry) -> Iterator[Path]:
    """Files and component folders in which a part may be, without repeats."""
    seen: set[Path] = set()
    folders = [path.parent]
    for ancestor in path.parents[1:4]:
        folders += [ancestor / name for name in SIBLINGS[component]]
    for folder in folders:
        for file in weight_files_in(folder):
            if file not in seen and file != path:
                seen.add(file)
                yield file
    for place in registry.loose:
        if place not in seen:
            seen.add(place)
            yield place
    for model in registry.models.values():
        places = [model.parts.get(component), model.path / component]
        if component == DISTILLED and model.name == DISTILLT5:
            places.append(model.path)
        for candidate in places:
            if candidate is not None and candidate not in seen:
                seen.add(candidate)
                yield candidate


def _recognised(place: Path) -> Sequence[Found]:
    """The parts in a file or a component's folder; none where nothing there can be used."""
    try:
        if place.is_dir():
            for component in (*CLASSES, DISTILLED):
                with suppress(RequestError):
                    return [component_in(place, component)]
            return []
        return recognise([read_header(place)])
    except (RequestError, OSError):
        return []


def _tokenizer(part: str, path: Path, registry: Registry) -> Path | None:
    """A folder with a tokenizer: beside the file, in a ComfyUI above it, or of a model that is known."""
    places = [folder / part for folder in (path.parent, path.parent.parent)]
    places += [ancestor / COMFY_TOKENIZERS[part] for ancestor in path.parents[:6]]
    for model in registry.models.values():
        places += [model.parts[part]] if part in model.parts else []
        places.append(model.path / part)
    for place in registry.loose:
        places += [place, place / part] if place.name == part else [place / part]
    return next((place for place in places if has_tokenizer(place)), None)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    with suppress(OSError):
        return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model"))
    return False


def distilled_for(model: Model, registry: Registry) -> Found | None:
    """A DistillT5 that is known and fits a model which has none of its own."""
    transformer = Found("transformer", "", "", (), 0, model.configs["transformer"])
    places = [*registry.loose, *(known.parts.get(DISTILLED) for known in registry.models.values())]
    if DISTILLT5 in registry.models:
        places.insert(0, registry.models[DISTILLT5].path)
    for place in places:
        for part in _recognised(place) if place is not None else ():
            if part.component == DISTILLED and not misfit(part, transformer):
                return part
    return None
