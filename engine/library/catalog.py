"""The models that have names, and those that are named by where they lie."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from engine.families.all import published as published_models
from engine.folders import shown_path
from engine.library import hub, pairing, registry
from engine.library.registry import PARTS_ALONE, Registered, Registry
from engine.request import RequestError
from engine.text import quoted, some_of
from engine.weights.model import Model, config_of, described, open_folder

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent.parent / "demo" / "weights"
PUBLISHED = published_models()  # with their families, by name
BUILT_IN = (DEMO, *PUBLISHED)


def names() -> list[str]:
    """Of every model that can be opened by one."""
    known = (name for name in registry.known().models if name not in PARTS_ALONE)
    return [*dict.fromkeys((*BUILT_IN, *known))]


def open_model(model: str | Path) -> Model:
    """The model of this name, in this folder, or of this file; the weights of a published one may not be here.

    Raises `RequestError` with what to do.
    """
    known = registry.known()
    text = str(model)
    if fault := known.fault_of(text):
        raise RequestError("model", fault)
    opened = open_name(text, known)
    if opened is None:
        path = existing(text)
        if path is None:
            if known.problem:
                raise RequestError("model", f"the model {quoted(text, 80)} is not found: {known.problem}")
            near = difflib.get_close_matches(text, names(), n=1)
            listed = f"known names: {some_of(names())}; or give a folder or a file."
            hint = f"did you mean {quoted(near[0])}?" if near else listed
            raise RequestError("model", f"there is no model {quoted(text, 80)}; {hint}")
        opened = open_path(path, str(path), known)
    return with_distilled(opened, known)


def open_name(name: str, known: Registry) -> Model | None:
    """The model of a name; None where nobody has it. Raises `RequestError` where it cannot be opened."""
    if name == DEMO:
        return open_folder(DEMO_FOLDER, DEMO)
    if name in PARTS_ALONE:
        is_part = registry.ALONE[name] != "tokenizers"
        use = "its pictures are made with --distill" if is_part else "they complete models that lack them"
        raise RequestError("model", f"{quoted(name)} is no model by itself; {use}. Known names: {some_of(names())}.")
    entry = known.models.get(name)
    if entry is not None and not entry.pulled:
        return _registered(entry, known)
    folder = hub.found_in_cache(name) if name in hub.SOURCES else None
    if isinstance(folder, Path):  # wherever it is now: another program may have brought a newer one
        return open_folder(folder, name)
    if name in PUBLISHED:
        return published(name)
    return _registered(entry, known) if entry is not None else None


def open_path(path: Path, name: str, known: Registry) -> Model:
    """A model in diffusers' layout, or of a transformer's file, or of the one such file in a folder."""
    place = transformer_at(path)
    return open_folder(path, name) if place is None else pairing.model_of_file(place, name, {}, known)


def transformer_at(path: Path) -> Path | None:
    """Where the transformer lies whose parts are to be found: a file, the only one in a folder, or a folder of shards.

    None for everything else: diffusers' layout above all. Raises `RequestError` where there are several.
    """
    if path.is_file():
        return path.parent if path.name.endswith(".json") and ".safetensors.index." in path.name else path
    if (path / "model_index.json").is_file():
        return None
    places = pairing.transformers_in(path)
    if len(places) > 1:
        listed = ", ".join(repr(place.name) for place in places[:5])
        raise RequestError("model", f"{shown_path(path)} holds {len(places)} models ({listed}); name one of the files.")
    return places[0] if places else None


def with_distilled(model: Model, known: Registry) -> Model:
    """The model with a smaller text encoder that is known, where it has none of its own and one fits."""
    if model.distills or not model.has_weights:
        return model
    part = pairing.distilled_for(model, known)
    if part is None:
        return model
    name = part.component
    return replace(
        model,
        configs={**model.configs, name: config_of(part)},
        files={**model.files, name: part.files},
        bytes={**model.bytes, name: part.nbytes},
        found={**model.found, name: part},
    )


def published(name: str) -> Model:
    """A published model described without its weights. `name` is one of `PUBLISHED`."""
    family, known = PUBLISHED[name]
    return described(family, name, Path(name), {**known.configs}, {}, sizes={**known.nbytes})


def guidance_limits(model: Model) -> tuple[float, float]:
    """The distilled guidance that a model was trained with; of FLUX.1 [dev] what is in use."""
    return (1.0, 4.0) if model.name == DEMO else (1.0, 10.0)


def prompt_hint(model: Model, prompt: str) -> str | None:
    """A sentence about words that the demo model was never shown, if there are any."""
    if model.name != DEMO:
        return None
    from engine.demo.grammar import unknown_words

    words = unknown_words(prompt)
    if not words:
        return None
    others = f" and {len(words) - 5} more" if len(words) > 5 else ""
    return f"the demo model does not know: {', '.join(words[:5])}{others}."


def existing(text: str) -> Path | None:
    """The file or folder of this name, if there is one."""
    try:
        path = Path(text).expanduser()
        # A file's link stays what it is: beside it lies what belongs to it.
        return path.resolve() if path.is_dir() else path.absolute() if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name too long, a null byte, the home of nobody, links in a circle
        return None


def _registered(entry: Registered, known: Registry) -> Model:
    check_there(entry)
    place = transformer_at(entry.path)
    if place is None:
        return open_folder(entry.path, entry.name)
    return pairing.model_of_file(place, entry.name, entry.parts, known)


def check_there(entry: Registered) -> None:
    """Raises `RequestError` where nothing is left of what was added."""
    if existing(str(entry.path)) is None:
        raise RequestError(
            "model",
            f"{entry.name} was at {shown_path(entry.path)}, where nothing is now; bring the disk back, add it "
            "again with "
            f"t2i models add, or forget it with t2i models remove {entry.name}.",
        )
