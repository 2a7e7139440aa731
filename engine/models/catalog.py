"""The models that have names, and those that are named by where they lie."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from engine.models import flux1, pairing, registry
from engine.models.model import DISTILLED, Model, described, distilled_config, open_folder
from engine.models.registry import Registry
from engine.request import RequestError

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent.parent / "demo" / "weights"
BUILT_IN = (DEMO, *flux1.NAMES)


def names() -> list[str]:
    """Of every model that can be opened by one."""
    return [*dict.fromkeys((*BUILT_IN, *registry.known().models))]


def open_model(model: str | Path) -> Model:
    """The model of this name, in this folder, or of this file; the weights of a published one may not be here.

    Raises `RequestError` with what to do.
    """
    if model == DEMO:
        return open_folder(DEMO_FOLDER, DEMO)
    known = registry.known()
    text = str(model)
    if text in known.models:
        return with_distilled(_registered(known.models[text], known), known)
    if text in flux1.NAMES:
        return published(text)
    path = _existing(text)
    if path is None:
        near = difflib.get_close_matches(text, names(), n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"known names: {', '.join(names())}; or give a folder or a file."
        )
        raise RequestError("model", f"there is no model {text[:80]!r}; {hint}")
    return with_distilled(open_path(path, str(path), known), known)


def open_path(path: Path, name: str, known: Registry) -> Model:
    """A model in diffusers' layout, or of a transformer's file, or of the one such file in a folder."""
    if path.is_file():
        return pairing.model_of_file(path, name, {}, known)
    if (path / "model_index.json").is_file():
        return open_folder(path, name)
    files = pairing.transformers_in(path)
    if len(files) > 1:
        listed = ", ".join(repr(file.name) for file in files[:5])
        raise RequestError("model", f"{str(path)!r} holds {len(files)} models ({listed}); name one of the files.")
    if files:
        return pairing.model_of_file(files[0], name, {}, known)
    return open_folder(path, name)  # which says what is missing


def with_distilled(model: Model, known: Registry) -> Model:
    """The model with a DistillT5 that is known, where it has none of its own and one fits."""
    if model.distills or not model.has_weights:
        return model
    part = pairing.distilled_for(model, known)
    if part is None:
        return model
    return replace(
        model,
        configs={**model.configs, DISTILLED: distilled_config(part)},
        files={**model.files, DISTILLED: part.files},
        bytes={**model.bytes, DISTILLED: part.nbytes},
        found={**model.found, DISTILLED: part},
    )


def published(name: str) -> Model:
    """A published model described without its weights. `name` is one of `flux1.NAMES`."""
    guided = name == flux1.DEV
    configs = {
        "transformer": flux1.transformer(guided),
        "vae": flux1.VAE,
        "text_encoder": flux1.CLIP_L,
        "text_encoder_2": flux1.T5_XXL,
        DISTILLED: flux1.DISTILL_T5,
        "scheduler": flux1.scheduler(guided),
    }
    sizes = {"transformer": flux1.TRANSFORMER_BYTES[name], **flux1.OTHER_BYTES, DISTILLED: flux1.DISTILL_T5_BYTES}
    return described(name, Path(name), configs, {}, sizes=sizes)


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


def _registered(entry: registry.Registered, known: Registry) -> Model:
    if not entry.path.exists():
        raise RequestError(
            "model",
            f"{entry.name} was at {str(entry.path)!r}, where nothing is now; bring the disk back, add it again with "
            f"t2i models add, or forget it with t2i models remove {entry.name}.",
        )
    if entry.path.is_file():
        return pairing.model_of_file(entry.path, entry.name, entry.parts, known)
    return open_path(entry.path, entry.name, known)


def _existing(text: str) -> Path | None:
    """The file or folder of this name, if there is one."""
    try:
        path = Path(text).expanduser()
        # A file's link stays what it is: beside it lies what belongs to it.
        return path.resolve() if path.is_dir() else path.absolute() if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name too long, a null byte, the home of nobody, links in a circle
        return None
