"""Flags that several verbs take, and what their texts mean: read before anything heavy is imported."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any

import typer

from engine.jobs.runtime import CARD_NAMES
from engine.request import (
    DEFAULT_CFG,
    MAX_SIDE,
    MIN_SIDE,
    PRECISION_CHOICES,
    SALIENCES,
    SCHEDULES,
    SIDE_MULTIPLE,
    RequestError,
)
from engine.sizes import SHAPES, check_multiples, fitted, read_size, shaped

DEFAULT_MODEL = "demo"

StepsOption = Annotated[int | None, typer.Option("--steps", help="Denoising steps, 1 to 1000.")]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", metavar="WxH|N|A:B|NAME", help=f"512x384, 512, 16:9, {', '.join(SHAPES)}; multiples of 16."),
]
FitOption = Annotated[
    bool | None,
    typer.Option("--fit/--no-fit", help="A size that is no multiple of 16: paint the next larger one and crop it."),
]
PresetOption = Annotated[
    str | None, typer.Option("--preset", metavar="NAME", help="Choices under a name (t2i presets); flags change them.")
]
WidthOption = Annotated[int | None, typer.Option("--width", help="Instead of --size.")]
HeightOption = Annotated[int | None, typer.Option("--height", help="Instead of --size.")]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="|".join(PRECISION_CHOICES),
        help="fp8 halves the weights; int8 also computes in it. Auto: what suits the card.",
    ),
]
SalienceOption = Annotated[
    str | None,
    typer.Option(
        "--salience", metavar="|".join(SALIENCES), help="Of int8: balance channels that are hard to round (calibrated)."
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help=f"A name, a folder or a file. Default: {DEFAULT_MODEL}.")
]
VramOption = Annotated[
    str, typer.Option("--vram", metavar="SIZE|auto", help="Budget of the card: 12GiB. Auto: what is free.")
]
RamOption = Annotated[str, typer.Option("--ram", metavar="SIZE|auto", help="Budget of this process's memory: 16GiB.")]
TileOption = Annotated[
    str | None,
    typer.Option("--tile", metavar="PIXELS|off|auto", help="Decode in tiles, whole, or as the budget wants it."),
]
GuidanceOption = Annotated[float | None, typer.Option("--guidance", help="How closely to follow the prompt.")]
NegativeOption = Annotated[
    str | None, typer.Option("--negative-prompt", help="What to keep away from; a second pass in each step.")
]
CfgOption = Annotated[
    float | None,
    typer.Option("--cfg", help=f"Scale of true guidance, 1 to 30. With a negative prompt: {DEFAULT_CFG:g}."),
]
ScheduleOption = Annotated[
    str | None,
    typer.Option("--guidance-schedule", metavar="KIND[:option=value,...]", help=f"{', '.join(SCHEDULES)}."),
]
CfgZeroOption = Annotated[bool | None, typer.Option("--cfg-zero/--no-cfg-zero", help="CFG-Zero*, of true guidance.")]
ApgOption = Annotated[bool | None, typer.Option("--apg/--no-apg", help="Adaptive projected, of true guidance.")]
DistillOption = Annotated[
    bool | None,
    typer.Option(
        "--distill/--no-distill", help="Read the prompt with DistillT5, a smaller text encoder, in T5's place."
    ),
]
CardOption = Annotated[
    str, typer.Option("--card", metavar="|".join(CARD_NAMES), help="Whose figures a simulated run has.")
]


def chosen(preset: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """What the flags choose, over what a preset does."""
    values = {name: value for name, value in given.items() if value is not None}
    if preset is None:
        return values
    from engine import presets

    of_preset = presets.read(preset)
    if values.keys() & {"size", "width", "height"}:
        of_preset = {name: value for name, value in of_preset.items() if name not in ("size", "width", "height", "fit")}
    return of_preset | values


def size_values(values: dict[str, Any]) -> Fraction | None:
    """Put width, height and crop in the place of size and fit; returns the ratio where only that is known.

    Width and height are stand-ins then, until there is a model to ask: see `shape`. Raises `RequestError`.
    """
    size, fit = values.pop("size", None), values.pop("fit", None)
    sides = [name for name in ("width", "height") if values.get(name) is not None]
    if size is not None and sides:
        raise RequestError("size", "--size and --width or --height exclude each other; give one or the other.")
    if fit and size is None and len(sides) < 2:
        raise RequestError("fit", "--fit crops to a size: add --size, or both --width and --height.")
    if size is None and not sides:
        return None
    values["crop"] = None  # which a picture that is repeated may have
    read = read_size(size) if size is not None else None
    if isinstance(read, Fraction):
        values |= {"width": MIN_SIDE, "height": MIN_SIDE}
        return read
    if read is not None:
        values["width"], values["height"] = read
    if fit:
        values["width"], values["height"], values["crop"] = fitted(values["width"], values["height"])
    elif read is not None:
        check_multiples(*read)
    return None


def shape(ratio: Fraction, model: str) -> dict[str, Any]:
    """The sides that this ratio has with a model."""
    from engine.library.catalog import open_model

    source = open_model(model)
    own = source.defaults
    return dict(zip(("width", "height"), shaped(ratio, own.width, own.height, source.max_side), strict=True))


def tile_side(text: str | None) -> tuple[int | None, bool]:
    """The tile's side in pixels (0: whole, None: as the budget wants it), and whether it was given."""
    if text is None or text == "auto":
        return None, text is not None
    if text == "off":
        return 0, True
    if text.isascii() and text.isdecimal() and len(text) < 6 and is_tile(int(text)):
        return int(text), True
    raise RequestError(
        "tile",
        f"tile must be auto, off, or pixels a side from {MIN_SIDE} to {MAX_SIDE} in multiples of {SIDE_MULTIPLE}, "
        f"got {text[:40]!r}.",
    )


def is_tile(side: int) -> bool:
    """Whether a tile may have this side."""
    return MIN_SIDE <= side <= MAX_SIDE and side % SIDE_MULTIPLE == 0


def checked_size(text: str, field: str) -> str:
    """A budget's text, refused here where it is wrong: before anything heavy is imported."""
    from engine.memory.budget import read_size

    read_size(text, field)
    return text
