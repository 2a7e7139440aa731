"""Flags that several verbs take, and what their texts mean: read before anything heavy is imported."""

from __future__ import annotations

import re
from typing import Annotated

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

DEFAULT_MODEL = "demo"

StepsOption = Annotated[int | None, typer.Option("--steps", help="Denoising steps, 1 to 1000.")]
SizeOption = Annotated[str | None, typer.Option("--size", metavar="WxH", help="Pixels, multiples of 16: 512x384.")]
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


def sides(size: str | None, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    """Width and height in pixels, of `--size` or of the two flags."""
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise RequestError("size", "--size and --width or --height exclude each other; give one or the other.")
    sides = re.fullmatch(r"\s*([0-9]{1,9})\s*[xX\u00d7*]\s*([0-9]{1,9})\s*", size)
    if sides is None:
        raise RequestError("size", f"size must be width x height in pixels, such as 512x384, got {size[:40]!r}.")
    return int(sides[1]), int(sides[2])


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
