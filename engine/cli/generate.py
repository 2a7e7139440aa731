"""`t2i generate`: its flags become jobs, and `engine.cli.painting` makes their pictures.

stdout carries results only: the path of each saved picture, with `--output -` the picture itself, or with `--json` one
object per event and line.
Progress, hints and errors go to stderr. Every line of `--json` has `event`; all but `error` and `sheet_saved` have
`image` (from 0, within one prompt's count), `elapsed_seconds` and `memory` (`ram_bytes`, `device_bytes`,
`device_peak_bytes`; bytes, or null without a device), and `job`: which prompt, from 0, in the order given. Bytes are
base64 text, paths are text.

    event             fields
    planned           plan
    noticed           message
    load_progress     component, done_bytes, total_bytes
    phase_started     phase
    phase_finished    phase, seconds, estimated
    encoded           tokens, token_limit, cached, hint
    step_finished     step, steps, sigma, seconds, preview, estimated
    image_saved       path, seed, width, height, seconds_by_phase, notice, predicted_peak_bytes, measured_peak_bytes,
                      moved_bytes, disk_bytes
    latents_restored  steps
    cancelled         phase
    failed            phase, message, bad_input
    sheet_saved       path, columns, rows, notice
    simulated         peak_bytes, peak_bytes_by_phase, budget_bytes, seconds_by_phase, card
    error             field, message

`plan` is what `t2i plan --json` prints, see `engine.cli.plan`; `phase` is load, encode, denoise, decode or save;
`preview` is null or `width`, `height`, `rgb`. `image_saved`, `cancelled`, `failed` and `simulated` are terminal: one
for each picture; `sheet_saved` comes after those of a grid. `error` ends a job that could not begin, or the whole run;
its `field` names the flag or value at fault and is null where the fault is not the input's. A run that is cancelled
before its first event prints none.
"""

from __future__ import annotations

import os
import random
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.cli import flags
from engine.cli.painting import TO_STDOUT, paint_all
from engine.cli.prompts import EXAMPLE, Job, expanded, read_prompts
from engine.cli.repeat import for_grid, repeated, repeated_axes, to_repeat
from engine.folders import shown_path
from engine.jobs.runtime import DEFAULT_CARD
from engine.request import Request, RequestError

if TYPE_CHECKING:
    from engine.grids import Axis
    from engine.prompts.wildcards import Wildcards


def generate(
    words: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="What the picture shows.")] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The same as a flag. '-': standard input, one a line.")
    ] = None,
    prompts_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Prompts from a text file, one a line, a picture for each.")
    ] = None,
    variants: Annotated[
        bool, typer.Option("--variants/--no-variants", help="A picture for each of {red|blue}; or paint that as it is.")
    ] = True,
    wildcards: Annotated[
        list[str] | None, typer.Option(metavar="DIR", help="Where NAME.txt of __NAME__ is looked for, too.")
    ] = None,
    from_image: Annotated[
        str | None,
        typer.Option("--from", metavar="IMAGE", help="Repeat a picture, of other programs, too; flags change it."),
    ] = None,
    preset: flags.PresetOption = None,
    steps: flags.StepsOption = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same picture. -1: random.")] = None,
    size: flags.SizeOption = None,
    fit: flags.FitOption = None,
    width: flags.WidthOption = None,
    height: flags.HeightOption = None,
    count: Annotated[int | None, typer.Option(help="Pictures of each prompt; picture k uses seed + k.")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=A,B,...", help="A picture for each value, and a sheet of all: steps=4,8. May be repeated."
        ),
    ] = None,
    guidance: flags.GuidanceOption = None,
    negative_prompt: flags.NegativeOption = None,
    cfg: flags.CfgOption = None,
    guidance_schedule: flags.ScheduleOption = None,
    cfg_zero: flags.CfgZeroOption = None,
    apg: flags.ApgOption = None,
    precision: flags.PrecisionOption = None,
    salience: flags.SalienceOption = None,
    distill: flags.DistillOption = None,
    model: flags.ModelOption = None,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to compute. Default: auto; with --from, as then.")
    ] = None,
    vram: flags.VramOption = "auto",
    ram: flags.RamOption = "auto",
    tile: flags.TileOption = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Run all phases at full size without weights; paint nothing.")
    ] = False,
    card: flags.CardOption = DEFAULT_CARD,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE|DIR|-", help="Where to save; - is standard output.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per event and line on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; errors and results only.")] = False,
) -> Callable[[], int]:
    """Make pictures from prompts and print where they were saved."""
    prompt = _the_prompt(words, prompt)
    for name, text in (("output", output), ("model", model), ("from", from_image), ("prompts-file", prompts_file)):
        if text is not None and not text.strip():
            raise RequestError(name, f"--{name} is empty; name a file or folder, or leave it out.")
    given = {
        "model": model,
        "steps": steps,
        "seed": seed,
        "size": size,
        "fit": fit,
        "width": width,
        "height": height,
        "count": count,
        "guidance": guidance,
        "negative_prompt": negative_prompt,
        "cfg": cfg,
        "guidance_schedule": guidance_schedule,
        "cfg_zero": cfg_zero,
        "apg": apg,
        "precision": precision,
        "salience": salience,
        "distill": distill,
    }
    changes = flags.chosen(preset, given)
    model = changes.pop("model", None)
    if changes.get("seed") == -1:  # so other programs call a random one
        changes["seed"] = None
    if prompt is not None and prompts_file is not None:
        raise RequestError("prompt", "--prompt and --prompts-file exclude each other; give one of them.")
    ratio = flags.size_values(changes)
    template = Request("to be read", **changes)  # the flags are checked before a prompt is read or a file opened
    said = None
    other_words = prompt is not None or prompts_file is not None
    if from_image is not None:
        said, template, model = repeated(Path(from_image), changes, model, other_words=other_words)
        device = device or said.record.device.split(":")[0] or None
    model = model or flags.DEFAULT_MODEL
    if ratio is not None:
        template = replace(template, **flags.shape(ratio, model))
    axes = _axes(grid or ())
    if said is not None and not axes:
        axes = [*repeated_axes(said.record, [*changes, *(["prompt"] if other_words else [])])]
    if axes and template.count > 1:
        raise RequestError("grid", "--grid and --count exclude each other; --grid seed=1,2,3 varies the seed.")
    drawn = template.seed is None  # one seed serves all prompts
    template = replace(template, seed=random.SystemRandom().randrange(2**32) if drawn else template.seed)
    notes: list[str] = []
    if not other_words:
        if said is None:
            raise RequestError("prompt", f"there is no prompt; say what the picture should show: {EXAMPLE}")
        jobs = [Job(template)]  # what was painted, whatever it stood for then
    else:
        prompts = [("", prompt or "")]
        if prompt == "-" or prompts_file is not None:
            prompts = read_prompts(None if "-" in (prompt, prompts_file) else prompts_file)
        jobs, notes = expanded(prompts, template, _wildcards(wildcards or ()) if variants else None)
    if axes:
        jobs, axes = _cells(jobs, axes, model)
    if drawn and len({job.request.seed for job in jobs}) < len(jobs):  # a single job's seed is in its own summary
        notes.append(f"seed {template.seed}")
    if output == TO_STDOUT:
        _check_stdout(sum(job.request.count for job in jobs) + bool(axes), as_json=as_json)
    tile_side, tile_given = flags.tile_side(tile)
    repeat = to_repeat(said.record if said is not None else None, template, (tile_side, tile_given))
    if axes and not tile_given:
        repeat = for_grid(repeat, [axis.name for axis in axes])
    return partial(
        paint_all,
        jobs,
        model,
        opening={
            "device": device or "auto",
            "vram": flags.checked_size(vram, "vram"),
            "ram": flags.checked_size(ram, "ram"),
            "simulate": simulate,
            "card": card,
            "repeat": repeat,
        },
        axes=axes,
        notes=notes,
        notices=_notices(jobs),
        said=said,
        guidance_given="guidance" in changes,
        output=output,
        as_json=as_json,
        quiet=quiet,
    )


def _axes(texts: Sequence[str]) -> list[Axis]:
    if not texts:
        return []
    from engine.grids import read_axis

    return [read_axis(text) for text in texts]


def _cells(jobs: list[Job], axes: list[Axis], model: str) -> tuple[list[Job], list[Axis]]:
    """A job for each cell of a grid, and its axes: several prompts are one, too."""
    from engine import grids

    templates = {job.request.prompt: job.request.template for job in jobs}
    if len(templates) > 1:
        axes = [*axes, grids.Axis(grids.PROMPT, tuple(templates))]
    cells = grids.requests(jobs[0].request, axes, lambda ratio: flags.shape(ratio, model))
    return [
        Job(replace(request, template=templates.get(request.prompt, request.template)), label, label)
        for request, label in cells
    ], axes


def _wildcards(folders: Sequence[str]) -> Wildcards:
    from engine.library.wildcards import wildcard_folders
    from engine.prompts.wildcards import Wildcards

    return Wildcards(*map(_folder, folders), others=wildcard_folders)


def _notices(jobs: Sequence[Job]) -> list[str]:
    from engine.prompts.weights import idle_notice

    notice = idle_notice(job.request.prompt for job in jobs)
    return [notice] if notice else []


def _folder(text: str) -> Path:
    folder = Path(os.path.expanduser(text))
    if not folder.is_dir():
        raise RequestError("wildcards", f"there is no folder {shown_path(folder)}.")
    return folder


def _the_prompt(words: list[str] | None, prompt: str | None) -> str | None:
    """The prompt, be it the argument or the flag's. Raises `RequestError`."""
    if not words:
        return prompt
    if prompt is not None:
        raise RequestError("prompt", "the prompt stands there twice, alone and after --prompt; leave one of them out.")
    if len(words) > 1:
        raise RequestError("prompt", f"a prompt goes in quotes: t2i generate {shlex.quote(' '.join(words)[:200])}")
    return words[0]


def _check_stdout(count: int, *, as_json: bool) -> None:
    """Whether standard output can take the picture itself. Raises `RequestError`."""
    if as_json:
        raise RequestError("output", "--output - and --json both write to standard output; give one of them.")
    if count != 1:
        raise RequestError("output", f"--output - writes one picture, and these are {count}; name a folder.")
    if sys.stdout is not None and sys.stdout.isatty():
        raise RequestError("output", "standard output is a terminal here; --output - is for a pipe or a file.")
