"""`--from`: the request that repeats a picture, and what of it cannot be repeated."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.flags import is_tile
from engine.jobs.runtime import Repeat
from engine.precision import PRECISIONS, Precision
from engine.request import Request, RequestError

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.grids import Axis
    from engine.images.metadata import Record, Said

KERNELS = ("dequantize", "scaled_mm", "triton", "int_mm", "float32")  # of 8-bit layers
MAX_THREADS = 256  # that a picture's record may ask for


def repeated(
    path: Path, changes: dict[str, Any], model: str | None, *, other_words: bool
) -> tuple[Said, Request, str | None]:
    """What a picture says, the request that repeats it with `changes`, and the model for it."""
    from engine.images.metadata import read_settings

    said = read_settings(path, {**changes, "prompt": "to be read"} if other_words else changes)
    record, left_out = said.record, list(said.left_out)
    if changes.get("precision", "int8") != "int8":
        changes.setdefault("salience", "off")  # what was recorded is about int8
    template = replace(record.request, **changes)
    if other_words:
        template = replace(template, template=None)
    if model is None:
        model = recorded_model(record.model) or None
        left_out += [f"model {said.model}"] if said.model else []
    elif record.model and model != record.model and "guidance" not in changes:
        if template.guidance is not None:
            left_out.append(f"guidance {template.guidance:g}")
        template = replace(template, guidance=None)  # another model's own choice; some take none
        if "guidance_schedule" not in changes and not template.is_true_cfg:
            if template.guidance_schedule is not None:
                left_out.append(f"guidance schedule {template.guidance_schedule}")
            template = replace(template, guidance_schedule=None)  # which was of that guidance
    return replace(said, left_out=tuple(left_out)), template, model


def repeated_axes(record: Record, changes: Collection[str]) -> tuple[Axis, ...]:
    """The axes of the grid that a sheet shows, but for what is given otherwise; none of another picture."""
    from engine import grids

    if "grid" not in record.reproduce:
        return ()
    try:
        return grids.without(grids.from_plain(record.reproduce["grid"]), changes)
    except RequestError as error:
        raise RequestError("from", f"the grid of this sheet cannot be painted: {error}") from None


def for_grid(repeat: Repeat, names: Collection[str]) -> Repeat:
    """Of what decides a picture's bits, what holds for all cells of a grid with these axes."""
    if {"precision", "salience", "distill"} & {*names}:
        repeat = replace(repeat, kernel=None, salience=None)
    if {"size", "width", "height"} & {*names}:
        repeat = replace(repeat, tile=None)
    if {"cfg", "negative_prompt"} & {*names}:
        repeat = replace(repeat, batch=None)
    return repeat


def recorded_model(name: str) -> str:
    """The model that a picture names. A picture is not trusted: no network share is opened on its word.

    Judged by what Windows makes of it, wherever this runs: slashes of both kinds are one there.
    """
    if name.replace("/", "\\").startswith(("\\\\", "\\??\\")):  # the second: a name of the kernel's
        raise RequestError("model", f"the picture names a model on a network share ({name!r}); say it with --model.")
    return name


def to_repeat(record: Record | None, request: Request, tile: tuple[int | None, bool]) -> Repeat:
    """What decides the last bits of a picture's own kind, from its record; `tile` if it was given, and whether."""
    chosen, given = tile
    if record is None:
        return Repeat(tile=chosen)

    def recorded(name: str, kind: type, right: Callable[[Any], bool]) -> Any:
        value = record.reproduce.get(name)
        return value if type(value) is kind and right(value) else None

    same_form = _form(request) == _form(record.request)
    same_prompts = request.is_true_cfg == record.request.is_true_cfg
    same_size = (request.width, request.height) == (record.request.width, record.request.height)
    if not given and same_size:
        chosen = recorded("tile", int, lambda side: side == 0 or is_tile(side))
    return Repeat(
        threads=recorded("threads", int, lambda count: 1 <= count <= MAX_THREADS),  # they decide the sums' last bits
        tile=chosen,
        kernel=recorded("kernel", str, lambda name: name in KERNELS) if same_form else None,
        batch=recorded("batch", int, lambda count: count in (1, 2)) if same_prompts else None,
        salience=recorded("salience", str, lambda digest: bool(re.fullmatch("[0-9a-f]{16}", digest)))
        if same_form
        else None,
        # Of a picture made on the CPU that says nothing of a card.
        decoder=recorded("decoder_device", str, lambda name: name == "cpu" and record.device.startswith("cuda")),
    )


def _form(request: Request) -> Precision | None:
    """How weights are stored; None where that is still to be chosen."""
    return request.form if request.precision in PRECISIONS else None


def changes_since(record: Record, engine: Engine) -> str:
    """What is not as it was when a picture was made, in words; empty where its pixels will come out the same."""
    from engine.version import library_versions

    now = library_versions()
    changed = [name for name, version in record.versions.items() if name in now and now[name] != version]
    now_hash = engine.context.hash_for(record.request)
    if record.model == engine.model and record.model_hash and record.model_hash != now_hash:
        changed.insert(0, "the model")
    return ", ".join(changed)
