"""Where the balancing factors of which model are kept, beside the converted weights; torch is not needed to find them.

A file is named after the model's hash. It holds, for each mode and each distinct input of the transformer's blocks, one
factor a channel, and says which model they are of and what they were found with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.files import write_whole
from engine.folders import cache_dir, shown_path
from engine.precision import MODES
from engine.request import RequestError

if TYPE_CHECKING:
    from engine.quantization.salience import Calibration, Input

FORMAT = "1"


def file_of(model_hash: str) -> Path:
    """The file for a model."""
    return cache_dir() / "salience" / f"{model_hash[:32]}.safetensors"


def missing(model: str) -> RequestError:
    """What to tell the person who asks for balanced channels of a model without factors."""
    return RequestError(
        "salience",
        f"{model} is not calibrated: run t2i models calibrate {model} --prompts FILE first, or take --salience off.",
    )


def write(calibration: Calibration, file: Path | None = None) -> Path:
    """Keep a calibration where its model finds it, or in `file`; returns where.

    Raises `RequestError` where the disk refuses.
    """
    import safetensors.torch

    about = {
        "t2i_salience": FORMAT,
        "model_hash": calibration.model_hash,
        "steps": str(calibration.steps),
        "prompts": str(calibration.prompts),
        "precision": calibration.precision,
    }
    tensors = {
        f"{mode}:{name}": factor for mode, factors in calibration.factors.items() for name, factor in factors.items()
    }
    file = file or file_of(calibration.model_hash)
    try:
        write_whole(file, safetensors.torch.save(tensors, about))
    except OSError as error:
        raise RequestError(
            "salience",
            f"the calibration cannot be kept in {shown_path(file.parent)}: {error.strerror or error}.",
            machine=True,
        ) from None
    return file


def read(model: str, model_hash: str, inputs: Sequence[Input], file: Path | None = None) -> Calibration:
    """A model's calibration, from where it is kept or from `file`. `inputs` are of the model's core.

    Raises `RequestError` where there is none, or one of another model, or a broken one.
    """
    import torch

    from engine.quantization.salience import Calibration
    from engine.weights.reading import WeightFiles

    file = file or file_of(model_hash)
    if not file.is_file():
        raise missing(model)
    widths = {each.name: each.width for each in inputs}
    with WeightFiles.open([file]) as files:
        about = files.metadata
        if about.get("t2i_salience") != FORMAT:
            raise RequestError("salience", f"{shown_path(file)} is no calibration; make one with t2i models calibrate.")
        if about.get("model_hash") != model_hash:
            raise RequestError(
                "salience",
                f"{shown_path(file)} was made with another model than {model} (its hash begins with "
                f"{about.get('model_hash', '')[:12]!r}, not {model_hash[:12]!r}); calibrate {model} itself.",
            )
        expected = {f"{mode}:{name}": (width,) for mode in MODES for name, width in widths.items()}
        found = {name: tensor.shape for name, tensor in files.tensors.items() if tensor.dtype == torch.float32}
        factors: dict[str, dict[str, torch.Tensor]] = {mode: {} for mode in MODES}
        if found != expected or not all(
            re.fullmatch("[0-9]{1,9}", about.get(count, "")) for count in ("steps", "prompts")
        ):
            raise _broken(file)
        for mode in MODES:
            for name, width in widths.items():
                factors[mode][name] = factor = torch.empty(width)
                files.read(f"{mode}:{name}", factor)
                if not bool((factor > 0).all()):
                    raise _broken(file)
    return Calibration(model_hash, int(about["steps"]), int(about["prompts"]), about.get("precision", ""), factors)


def _broken(file: Path) -> RequestError:
    """What to tell the person about a file that holds other things than it should."""
    return RequestError(
        "salience", f"{shown_path(file)} is broken: delete it, and make it again with t2i models calibrate."
    )
