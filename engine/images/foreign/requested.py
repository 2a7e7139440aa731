"""A request of what another program wrote into a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.images.foreign.settings import Settings, shown
from engine.images.texts import UnreadableError
from engine.request import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE, Request, RequestError

LABELS = {  # of fields of a request, in the order in which they are named
    "prompt": "prompt",
    "negative_prompt": "negative prompt",
    "width": "size",
    "height": "size",
    "steps": "steps",
    "seed": "seed",
    "guidance": "guidance",
    "cfg": "CFG scale",
}


def requested(settings: Settings, changes: Mapping[str, Any], *, lenient: bool) -> tuple[Request, list[str], list[str]]:
    """A request of what another program wrote, with `changes` in its place, what of it is taken over, and what is not.

    Raises `UnreadableError` where it does not say enough, `RequestError` where it says what cannot be.
    """
    values, left_out = _without_idle_guidance(settings, changes)
    values |= changes
    if "prompt" not in values:
        raise UnreadableError("does not say its prompt in a way that is known; add --prompt TEXT.")
    if lenient:
        left_out += _drop_impossible(values)
    else:
        _check_said(values)
    said = [label for name, label in LABELS.items() if name not in changes and values.get(name) is not None]
    return Request.from_dict(values), list(dict.fromkeys(said)), left_out


def _without_idle_guidance(settings: Settings, changes: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings without a true guidance that is off or is none, and all that is left out of them."""
    values, left_out = dict(settings.values), list(settings.left_out)
    cfg, negative = values.get("cfg"), values.get("negative_prompt")
    idle: tuple[str, ...] = () if negative else ("negative_prompt",)
    if "cfg" in changes or ("negative_prompt" in changes and cfg == 1):
        idle += ("cfg",)  # what is given turns it on
    elif cfg is not None and cfg <= 1:
        idle = ("cfg", "negative_prompt")
        if cfg < 1:
            left_out += [f"CFG scale {cfg:g}", *(["negative prompt"] if negative else [])]
    elif cfg is not None and not (negative or "guidance" in values or changes.get("negative_prompt") or settings.ours):
        # Without either it is of another kind of model, or another name of the distilled one.
        idle += ("cfg",)
        left_out.append(f"CFG scale {cfg:g}")
    return {name: value for name, value in values.items() if name not in idle}, left_out


def _check_said(values: Mapping[str, Any]) -> None:
    """Raises `UnreadableError` where a picture does not say enough to be repeated, or has no size of ours."""
    missing = [name for name in ("steps", "seed") if name not in values]
    missing += ["size"] if values.get("width") is None or values.get("height") is None else []
    if missing:
        flags = " and ".join({"size": "--size 1024x1024"}.get(name, f"--{name} NUMBER") for name in missing)
        raise UnreadableError(f"does not say its {' and '.join(missing)}; add {flags}.")
    width, height = values["width"], values["height"]
    nearest = [_nearest_side(side) for side in (width, height)]
    if nearest != [width, height]:
        possible = all(MIN_SIDE <= side <= MAX_SIDE for side in (width, height))
        fit = f", or --size {width}x{height} --fit to have it cropped" if possible else ""
        raise UnreadableError(
            f"has {width}x{height} pixels, but each side must be a multiple of {SIDE_MULTIPLE} "
            f"from {MIN_SIDE} to {MAX_SIDE}; add --size {nearest[0]}x{nearest[1]}, the nearest one{fit}."
        )


def _nearest_side(side: int) -> int:
    by = SIDE_MULTIPLE
    return min(max((side + by // 2) // by * by, MIN_SIDE), MAX_SIDE)


def _drop_impossible(values: dict[str, Any]) -> list[str]:
    """Take away what no request can say; returns it in words."""
    left_out = []
    size = (values.get("width"), values.get("height"))
    if any(side is None or side != _nearest_side(side) for side in size):
        values.pop("width", None), values.pop("height", None)
        if size != (None, None):
            left_out.append(f"size {size[0]}x{size[1]}")
    for name in [name for name in values if name not in ("prompt", "width", "height")]:
        try:
            Request("to be read", **{name: values[name]})
        except RequestError:
            left_out.append(shown(f"{name.replace('_', ' ')} {values.pop(name)}"))
    return left_out
