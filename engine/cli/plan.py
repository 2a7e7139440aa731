"""`t2i plan`: whether a picture fits into memory, and how.

`t2i plan --json` prints one object: model, size, steps, precision, precision_reason (why auto chose it, else empty),
target, budget_bytes, peak_bytes, ram_budget_bytes, host_bytes, pinned_bytes, phases (each with name, resident_bytes,
streamed_bytes_per_step, loaded_bytes, activation_bytes, allowance_bytes, peak_bytes), text_encoder, tile (pixels, 0 for
whole), same_prompt and new_prompt (of the next picture, each with moved_bytes, disk_bytes and seconds_by_phase,
estimates), notes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any

import typer

from engine.cli import flags
from engine.cli.console import DONE, write
from engine.jobs.runtime import DEFAULT_CARD, Repeat
from engine.libraries import collector_paused, hush_libraries
from engine.request import Request

MAX_PLAN_COLUMNS = 120


def plan(
    preset: flags.PresetOption = None,
    steps: flags.StepsOption = None,
    size: flags.SizeOption = None,
    fit: flags.FitOption = None,
    width: flags.WidthOption = None,
    height: flags.HeightOption = None,
    precision: flags.PrecisionOption = None,
    salience: flags.SalienceOption = None,
    distill: flags.DistillOption = None,
    negative_prompt: flags.NegativeOption = None,
    cfg: flags.CfgOption = None,
    guidance_schedule: flags.ScheduleOption = None,
    model: flags.ModelOption = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where it would run.")] = "auto",
    vram: flags.VramOption = "auto",
    ram: flags.RamOption = "auto",
    tile: flags.TileOption = None,
    card: flags.CardOption = DEFAULT_CARD,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as one JSON object on stdout.")] = False,
) -> Callable[[], int]:
    """Say whether a picture fits into memory, and how, before anything is loaded. Needs no weights and no card."""
    given: dict[str, Any] = {
        "model": model,
        "steps": steps,
        "size": size,
        "fit": fit,
        "width": width,
        "height": height,
        "precision": precision,
        "salience": salience,
        "distill": distill,
        "negative_prompt": negative_prompt,
        "cfg": cfg,
        "guidance_schedule": guidance_schedule,
    }
    values = flags.chosen(preset, given)
    model = values.pop("model", flags.DEFAULT_MODEL)
    ratio = flags.size_values(values)
    request = Request("a plan", **{**values, "seed": 0, "count": 1})
    if ratio is not None:
        request = replace(request, **flags.shape(ratio, model))
    opening = {
        "device": device,
        "vram": flags.checked_size(vram, "vram"),
        "ram": flags.checked_size(ram, "ram"),
        "card": card,
        "repeat": Repeat(tile=flags.tile_side(tile)[0]),
    }
    return partial(_plan, request, model, opening=opening, as_json=as_json)


def _plan(request: Request, model: str, *, opening: dict[str, Any], as_json: bool) -> int:
    """Print a plan; the exit code is 2 where the budget cannot work."""
    import shutil

    from engine.cli.plan_text import plan_lines
    from engine.engine import Engine

    hush_libraries()
    with collector_paused(), Engine.open(model, **opening) as engine:
        made = engine.plan(request)
    if as_json:
        write(json.dumps({"event": "plan", **asdict(made)}))
        return DONE
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    width = min(shutil.get_terminal_size().columns, MAX_PLAN_COLUMNS)
    for line in plan_lines(made, width, ascii_only=encoding != "utf8"):
        write(line)
    return DONE
