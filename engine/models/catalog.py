"""The models that have names."""

from __future__ import annotations

import difflib
from pathlib import Path

from engine.models import flux1
from engine.models.folder import ModelFolder, open_folder
from engine.request import RequestError

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent.parent / "demo" / "weights"
NAMES = (DEMO, *flux1.NAMES)


def open_model(model: str | Path) -> ModelFolder:
    """The model of this name, or in this folder; the weights of a published one may not be here.

    Raises `RequestError` with what to do.
    """
    if model == DEMO:
        return open_folder(DEMO_FOLDER, DEMO)
    if model in flux1.NAMES:
        return flux1.published(str(model))
    text = str(model)
    folder, is_file = None, False
    try:
        path = Path(text).expanduser()
        folder, is_file = path.resolve() if path.is_dir() else None, path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name too long, a null byte, the home of nobody
        pass
    if folder is not None:
        return open_folder(folder, str(folder))
    if is_file:
        raise RequestError("model", f"{text!r} is a file; give the model's folder in diffusers' layout.")
    near = difflib.get_close_matches(text, NAMES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known names: {', '.join(NAMES)}; or give a folder."
    raise RequestError("model", f"there is no model {text[:80]!r}; {hint}")


def prompt_hint(model: ModelFolder, prompt: str) -> str | None:
    """A sentence about words that the demo model was never shown, if there are any."""
    if model.name != DEMO:
        return None
    from engine.demo.grammar import unknown_words

    words = unknown_words(prompt)
    if not words:
        return None
    others = f" and {len(words) - 5} more" if len(words) > 5 else ""
    return f"the demo model does not know: {', '.join(words[:5])}{others}."
