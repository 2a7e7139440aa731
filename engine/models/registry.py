"""What the person told about models: names for those that lie somewhere on disk, and loose parts that may complete one.

References only: nothing is copied, and what a file holds is looked at anew whenever it is opened. Kept as models.json
in the state folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.files import write_whole
from engine.folders import shown_path, state_dir
from engine.models.layouts import COMPONENTS
from engine.models.model import TOKENIZERS
from engine.request import RequestError

FILE = "models.json"
MAX_BYTES = 4 * 2**20
PLACES = (*COMPONENTS, *TOKENIZERS)
DISTILLT5 = "distillt5"  # the name that a text encoder for all models has
TOKENIZERS_ALONE = "tokenizers"  # and those of CLIP and T5, where they were downloaded without a model
PARTS_ALONE = (DISTILLT5, TOKENIZERS_ALONE)  # names of what is no model by itself


@dataclass(frozen=True, slots=True)
class Registered:
    """A model by name: a folder in diffusers' layout, or a transformer's file with the parts that belong to it.

    `parts` are files or folders by component (also `tokenizer` and `tokenizer_2`); what is left out is looked for.
    """

    name: str
    path: Path
    parts: Mapping[str, Path] = field(default_factory=dict)
    pulled: bool = False  # it was downloaded by us


@dataclass(frozen=True, slots=True)
class Registry:
    """All models that have names, and files and folders that were found and may complete others."""

    models: Mapping[str, Registered] = field(default_factory=dict)
    loose: tuple[Path, ...] = ()

    def with_model(self, model: Registered) -> Registry:
        return Registry({**self.models, model.name: model}, self.loose)

    def without_model(self, name: str) -> Registry:
        return Registry({key: model for key, model in self.models.items() if key != name}, self.loose)

    def with_loose(self, paths: Iterable[Path]) -> Registry:
        return Registry(self.models, tuple(dict.fromkeys((*self.loose, *paths))))


def read() -> Registry:
    """The registry; an empty one where there is none. Raises `RequestError` where it cannot be read as one."""
    file = state_dir() / FILE
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError
        values = json.loads(file.read_text("utf-8"))
        models = {name: _registered(name, entry) for name, entry in dict(values["models"]).items()}
        return Registry(models, tuple(Path(str(path)) for path in list(values["loose"])))
    except FileNotFoundError:
        return Registry()
    except OSError as error:
        raise RequestError("model", f"{shown_path(file)} cannot be read: {error.strerror}.", machine=True) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise RequestError(
            "model",
            f"{shown_path(file)}, the list of your models, is damaged; mend it, or delete it and add them again.",
        ) from None


def write(registry: Registry) -> None:
    """Keep it, whole or not at all. Raises `RequestError` where the state folder cannot be written."""
    file = state_dir() / FILE
    values = {
        "models": {
            name: {
                "path": str(model.path),
                "parts": {part: str(path) for part, path in model.parts.items()},
                "pulled": model.pulled,
            }
            for name, model in sorted(registry.models.items())
        },
        "loose": [str(path) for path in registry.loose],
    }
    try:
        write_whole(file, (json.dumps(values, indent=2) + "\n").encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise RequestError("model", f"{shown_path(file)} cannot be written: {error.strerror}.", machine=True) from None


def known() -> Registry:
    """The registry as far as it can be read, for those who only look things up."""
    with suppress(RequestError):
        return read()
    return Registry()


def _registered(name: str, entry: Mapping[str, Any]) -> Registered:
    parts = {part: Path(str(path)) for part, path in dict(entry.get("parts", {})).items() if part in PLACES}
    return Registered(str(name), Path(str(entry["path"])), parts, bool(entry.get("pulled", False)))
