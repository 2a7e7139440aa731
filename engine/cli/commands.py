"""The headless verbs: `generate`, `plan`, `models` and `doctor`.

`main` parses and validates before anything heavy is imported, so that bad input is answered at once. Exit codes:
0 done, 1 failed (the machine's fault), 2 bad input, 130 cancelled (Ctrl+C), 141 the reader of
stdout went away.

stdout carries results only: the path of each saved picture, with `--output -` the picture itself, or with `--json` one
object per event and line.
Progress, hints and errors go to stderr. Every line of `--json` has `event`; all but `error` have `image` (from 0,
within one prompt's count), `elapsed_seconds` and `memory` (`ram_bytes`, `device_bytes`, `device_peak_bytes`; bytes, or
null without a device), and `job`: which prompt, from 0, in the order given. Bytes are base64 text, paths are text.

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
    simulated         peak_bytes, peak_bytes_by_phase, budget_bytes, seconds_by_phase, card
    error             field, message

`plan` is what `t2i plan --json` prints, see below; `phase` is load, encode, denoise, decode or save; `preview` is null
or `width`, `height`, `rgb`. `image_saved`, `cancelled`, `failed` and `simulated` are terminal: one for each picture.
`error` ends a job that could not begin, or the whole run; its `field` names the flag or value at fault and is null
where the fault is not the input's. A run that is cancelled before its first event prints none.

`t2i plan --json` prints one object: model, size, steps, precision, precision_reason (why auto chose it, else empty),
target, budget_bytes, peak_bytes, ram_budget_bytes, host_bytes, pinned_bytes, phases (each with name, resident_bytes,
streamed_bytes_per_step, loaded_bytes, activation_bytes, allowance_bytes, peak_bytes), text_encoder, tile (pixels, 0 for
whole), same_prompt and new_prompt (of the next picture, each with moved_bytes, disk_bytes and seconds_by_phase,
estimates), notes.
"""

from __future__ import annotations

import errno
import gc
import io
import json
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.console import (
    BAD_INPUT,
    CANCELLED,
    DONE,
    FAILED,
    UNREAD,
    OutputError,
    abandon_output,
    say,
    write,
    write_path,
    write_picture,
)
from engine.cli.interrupts import Interrupts
from engine.cli.models import models_app
from engine.cli.progress import open_display
from engine.cli.prompts import read_prompts
from engine.events import Cancelled, Failed, ImageSaved, MemoryUse, Noticed, PhaseStarted, Simulated
from engine.folders import shown_path
from engine.jobs.runtime import CARD_NAMES, DEFAULT_CARD, Repeat
from engine.libraries import collector_paused, hush_libraries
from engine.precision import PRECISIONS, Precision
from engine.request import (
    DEFAULT_CFG,
    MAX_SIDE,
    MIN_SIDE,
    PRECISION_CHOICES,
    SALIENCES,
    SCHEDULES,
    SIDE_MULTIPLE,
    Request,
    RequestError,
)

if TYPE_CHECKING:
    from engine.cli.progress import Display
    from engine.engine import Engine
    from engine.images.metadata import Record, Said
    from engine.images.save import Destination

DEFAULT_MODEL = "demo"
TO_STDOUT = "-"
MAX_PLAN_COLUMNS = 120
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
KERNELS = ("dequantize", "scaled_mm", "triton", "int_mm", "float32")  # of 8-bit layers
MAX_NAMED = 300  # characters of what is left out of a picture's settings
MAX_THREADS = 256  # that a picture's record may ask for
EXAMPLE = 't2i generate --prompt "a large red circle above a small blue square on a white background"'

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(models_app, name="models")
VERBS = ("generate", "plan", "models", "doctor")

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


@dataclass(frozen=True, slots=True)
class Job:
    """One request, and where its prompt was read ("line 3 of prompts.txt"; empty for the command line)."""

    request: Request
    place: str = ""


def main(argv: Sequence[str] | None = None, prog: str = "t2i") -> int:
    """Run the verb in `argv` (default: the process's own arguments) and return its exit code. Never raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a letter gets its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            # The command functions only look at their arguments; what they return does the work, out of Typer's reach.
            result = app(arguments, prog_name=prog, standalone_mode=False)
            code: int = result() if callable(result) else int(result or DONE)
            if code == CANCELLED:
                say("cancelled.")
        except typer.TyperException as error:
            field = getattr(getattr(error, "param", None), "name", None) or "arguments"
            verb = f" {arguments[0]}" if arguments and arguments[0] in VERBS else ""
            message = error.format_message()
            stop = "" if message.endswith((".", "?")) else "."
            code = _complain(field, f"{message}{stop} See {prog}{verb} --help.", as_json=as_json)
        except RequestError as error:
            code = _refuse(error, as_json=as_json)
        except KeyboardInterrupt:
            say("cancelled.")
            code = CANCELLED
        except (BrokenPipeError, OutputError):
            raise
        except OSError as error:
            if error.errno in DISK_FULL and error.filename is None:  # Typer's help
                raise OutputError(f"standard output cannot be written to ({_reason(error)}).") from None
            code = _complain(None, _unexpected(error), as_json=as_json, code=FAILED)
        except Exception as error:
            code = _complain(None, _unexpected(error), as_json=as_json, code=FAILED)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        abandon_output()
        code = UNREAD
    except (OutputError, OSError) as error:  # a full disk behind a redirection
        abandon_output()
        said = error if isinstance(error, OutputError) else f"standard output cannot be written to ({_reason(error)})."
        say(f"error: {said}")
        code = FAILED
    return code


def _reason(error: OSError) -> str:
    return (error.strerror or "unknown reason").lower()


def _show_version(wanted: bool) -> None:
    if wanted:
        from engine import __version__

        write(f"TextToImageTool {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """TextToImageTool: pictures from text."""


@app.command()
def generate(
    words: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="What the picture shows. '-': standard input, one a line.")
    ] = None,
    prompts_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Prompts from a text file, one a line, a picture for each.")
    ] = None,
    from_image: Annotated[
        str | None,
        typer.Option("--from", metavar="IMAGE", help="Repeat a picture, of other programs, too; flags change it."),
    ] = None,
    steps: StepsOption = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same picture. -1: random.")] = None,
    size: SizeOption = None,
    width: WidthOption = None,
    height: HeightOption = None,
    count: Annotated[int | None, typer.Option(help="Pictures of each prompt; picture k uses seed + k.")] = None,
    guidance: GuidanceOption = None,
    negative_prompt: NegativeOption = None,
    cfg: CfgOption = None,
    guidance_schedule: ScheduleOption = None,
    cfg_zero: CfgZeroOption = None,
    apg: ApgOption = None,
    precision: PrecisionOption = None,
    salience: SalienceOption = None,
    distill: DistillOption = None,
    model: ModelOption = None,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to compute. Default: auto; with --from, as then.")
    ] = None,
    vram: VramOption = "auto",
    ram: RamOption = "auto",
    tile: TileOption = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Run all phases at full size without weights; paint nothing.")
    ] = False,
    card: CardOption = DEFAULT_CARD,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE|DIR|-", help="Where to save; - is standard output.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per event and line on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; errors and results only.")] = False,
) -> Callable[[], int]:
    """Make pictures from prompts and print where they were saved."""
    if words:
        raise RequestError("prompt", f"a prompt goes in quotes after --prompt: {EXAMPLE}")
    for name, text in (("output", output), ("model", model), ("from", from_image), ("prompts-file", prompts_file)):
        if text is not None and not text.strip():
            raise RequestError(name, f"--{name} is empty; name a file or folder, or leave it out.")
    width, height = _sides(size, width, height)
    flags = {
        "steps": steps,
        "seed": seed,
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
    changes: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    if seed == -1:  # so other programs call a random one
        changes["seed"] = None
    if prompt is not None and prompts_file is not None:
        raise RequestError("prompt", "--prompt and --prompts-file exclude each other; give one of them.")
    template = Request("to be read", **changes)  # the flags are checked before a prompt is read or a file opened
    said = None
    if from_image is not None:
        other_words = prompt is not None or prompts_file is not None
        said, template, model = _repeated(Path(from_image), changes, model, other_words=other_words)
        device = device or said.record.device.split(":")[0] or None
    if prompt == "-" or prompts_file is not None:
        prompts = read_prompts(None if "-" in (prompt, prompts_file) else prompts_file)
        jobs = []
        for place, text in prompts:
            with _at(place):
                jobs.append(Job(replace(template, prompt=text), place))
    elif prompt is not None:
        jobs = [Job(replace(template, prompt=prompt))]
    elif said is not None:
        jobs = [Job(template)]
    else:
        raise RequestError("prompt", f"there is no prompt; say what the picture should show: {EXAMPLE}")
    if output == TO_STDOUT:
        _check_stdout(sum(job.request.count for job in jobs), as_json=as_json)
    return partial(
        _generate,
        jobs,
        model or DEFAULT_MODEL,
        opening={
            "device": device or "auto",
            "vram": _checked_size(vram, "vram"),
            "ram": _checked_size(ram, "ram"),
            "simulate": simulate,
            "card": card,
            "repeat": _to_repeat(said.record if said is not None else None, template, _tile(tile)),
        },
        said=said,
        guidance_given=guidance is not None,
        output=None if output is None else Path(output),
        as_json=as_json,
        quiet=quiet,
    )


@app.command()
def plan(
    steps: StepsOption = None,
    size: SizeOption = None,
    width: WidthOption = None,
    height: HeightOption = None,
    precision: PrecisionOption = None,
    salience: SalienceOption = None,
    distill: DistillOption = None,
    negative_prompt: NegativeOption = None,
    cfg: CfgOption = None,
    guidance_schedule: ScheduleOption = None,
    model: ModelOption = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where it would run.")] = "auto",
    vram: VramOption = "auto",
    ram: RamOption = "auto",
    tile: TileOption = None,
    card: CardOption = DEFAULT_CARD,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as one JSON object on stdout.")] = False,
) -> Callable[[], int]:
    """Say whether a picture fits into memory, and how, before anything is loaded. Needs no weights and no card."""
    width, height = _sides(size, width, height)
    flags: dict[str, Any] = {
        "steps": steps,
        "width": width,
        "height": height,
        "precision": precision,
        "salience": salience,
        "distill": distill,
        "negative_prompt": negative_prompt,
        "cfg": cfg,
        "guidance_schedule": guidance_schedule,
    }
    request = Request("a plan", seed=0, **{name: value for name, value in flags.items() if value is not None})
    opening = {
        "device": device,
        "vram": _checked_size(vram, "vram"),
        "ram": _checked_size(ram, "ram"),
        "card": card,
        "repeat": Repeat(tile=_tile(tile)[0]),
    }
    return partial(_plan, request, model or DEFAULT_MODEL, opening=opening, as_json=as_json)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="All facts as one JSON object on stdout.")] = False,
) -> Callable[[], int]:
    """Look at this machine: Python, torch, graphics card, driver, memory, disk, terminal; say what to do."""
    from engine.cli.doctor import run

    return partial(run, as_json=as_json)


def _repeated(
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
        model = _recorded_model(record.model) or None
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


def _recorded_model(name: str) -> str:
    """The model that a picture names. A picture is not trusted: no network share is opened on its word.

    Judged by what Windows makes of it, wherever this runs: slashes of both kinds are one there.
    """
    if name.replace("/", "\\").startswith(("\\\\", "\\??\\")):  # the second: a name of the kernel's
        raise RequestError("model", f"the picture names a model on a network share ({name!r}); say it with --model.")
    return name


def _to_repeat(record: Record | None, request: Request, tile: tuple[int | None, bool]) -> Repeat:
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
        chosen = recorded("tile", int, lambda side: side == 0 or _is_tile(side))
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


def _tile(text: str | None) -> tuple[int | None, bool]:
    """The tile's side in pixels (0: whole, None: as the budget wants it), and whether it was given."""
    if text is None or text == "auto":
        return None, text is not None
    if text == "off":
        return 0, True
    if text.isascii() and text.isdecimal() and len(text) < 6 and _is_tile(int(text)):
        return int(text), True
    raise RequestError(
        "tile",
        f"tile must be auto, off, or pixels a side from {MIN_SIDE} to {MAX_SIDE} in multiples of {SIDE_MULTIPLE}, "
        f"got {text[:40]!r}.",
    )


def _is_tile(side: int) -> bool:
    return MIN_SIDE <= side <= MAX_SIDE and side % SIDE_MULTIPLE == 0


def _checked_size(text: str, field: str) -> str:
    """A budget's text, refused here where it is wrong: before anything heavy is imported."""
    from engine.memory.budget import read_size

    read_size(text, field)
    return text


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


def _generate(
    jobs: list[Job],
    model: str,
    *,
    opening: dict[str, Any],
    said: Said | None,
    guidance_given: bool,
    output: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Make every picture of `jobs` with one engine; the worst that happened decides the exit code."""
    from engine.engine import Engine
    from engine.images.save import plan_output

    to_stdout = output == Path(TO_STDOUT)
    if to_stdout:
        output = Path(tempfile.mkdtemp(prefix="texttoimagetool-"))
    destination = plan_output(output, sum(job.request.count for job in jobs))
    display = open_display(quiet=quiet, stdout_shared=as_json and sys.stdout is not None and sys.stdout.isatty())
    hush_libraries()
    with (
        _removed_if_empty(output if to_stdout else None),
        closing(display),
        Interrupts() as interrupts,
        collector_paused(),
        Engine.open(model, **opening) as engine,
    ):
        interrupts.at_last(display.abandon)
        left_out = list(said.left_out) if said is not None else []
        if said is not None and said.program and engine.defaults.guidance is None and not guidance_given:
            jobs, idle = _without_guidance(jobs)
            left_out += idle
        jobs = _resolved(jobs, engine, display)
        if said is not None and (account := said.account(left_out, most=MAX_NAMED)):
            _note(display, account, as_json=as_json)
        if said is not None and (changed := _changes_since(said.record, engine)):
            display.note(f"{changed} changed since this picture was made; the new one may differ")
        codes: set[int] = set()
        for number, job in enumerate(jobs):
            if interrupts.requested:
                codes.add(CANCELLED)
                break
            title = job.request.prompt if len(jobs) == 1 else f"{number + 1} of {len(jobs)}: {job.request.prompt}"
            display.begin(title, job.request.count)
            try:
                with _at(job.place):
                    codes |= _paint(
                        engine, job, number, destination, display, interrupts, as_json=as_json, to_stdout=to_stdout
                    )
            except RequestError as error:  # of this prompt alone: the others still count
                display.close()
                codes.add(_refuse(error, as_json=as_json))
    if interrupts.requested and codes != {DONE}:
        return CANCELLED
    return next((code for code in (FAILED, BAD_INPUT) if code in codes), DONE)


def _without_guidance(jobs: list[Job]) -> tuple[list[Job], list[str]]:
    """The jobs for a model that takes no guidance, which a picture of another program may name; and that, in words."""
    named = {f"guidance {job.request.guidance:g}" for job in jobs if job.request.guidance is not None}
    return [replace(job, request=replace(job.request, guidance=None)) for job in jobs], sorted(named)


def _note(display: Display, sentence: str, *, as_json: bool) -> None:
    """A sentence before the first picture begins."""
    display.note(sentence)
    if as_json:
        from engine.jobs.runtime import resident_set_bytes

        event = Noticed(image=0, elapsed_seconds=0.0, memory=MemoryUse(resident_set_bytes()), message=sentence)
        fields = event.to_dict()
        write(json.dumps({"event": fields.pop("event"), "job": 0, **fields}))


@contextmanager
def _removed_if_empty(folder: Path | None) -> Iterator[None]:
    """A folder that is gone afterwards, unless something had to be left in it."""
    try:
        yield
    finally:
        if folder is not None:
            with suppress(OSError):
                folder.rmdir()


def _check_stdout(count: int, *, as_json: bool) -> None:
    """Whether standard output can take the picture itself. Raises `RequestError`."""
    if as_json:
        raise RequestError("output", "--output - and --json both write to standard output; give one of them.")
    if count != 1:
        raise RequestError("output", f"--output - writes one picture, and these are {count}; name a folder.")
    if sys.stdout is not None and sys.stdout.isatty():
        raise RequestError("output", "standard output is a terminal here; --output - is for a pipe or a file.")


def _changes_since(record: Record, engine: Engine) -> str:
    """What is not as it was when a picture was made, in words; empty where its pixels will come out the same."""
    from engine.version import library_versions

    now = library_versions()
    changed = [name for name, version in record.versions.items() if name in now and now[name] != version]
    if (
        record.model == engine.model
        and record.model_hash
        and record.model_hash != engine.context.hash_for(record.request)
    ):
        changed.insert(0, "the model")
    return ", ".join(changed)


def _resolved(jobs: list[Job], engine: Engine, display: Display) -> list[Job]:
    """The jobs with every open choice filled in; one random seed serves all prompts when none was given."""
    seed = random.SystemRandom().randrange(2**32)
    drawn = any(job.request.seed is None for job in jobs)
    resolved = []
    for job in jobs:
        request = job.request if job.request.seed is not None else replace(job.request, seed=seed)
        with _at(job.place):
            resolved.append(Job(engine.resolve(request), job.place))
    if drawn and len(jobs) > 1:  # a single job's seed is in its own summary
        display.note(f"seed {seed}")
    return resolved


def _paint(
    engine: Engine,
    job: Job,
    number: int,
    destination: Destination,
    display: Display,
    interrupts: Interrupts,
    *,
    as_json: bool,
    to_stdout: bool,
) -> set[int]:
    """Make one job's pictures and report every event; the exit codes that its pictures ask for."""
    codes: set[int] = set()
    with closing(engine.generate(job.request, destination)) as events:
        if interrupts.requested:  # between two jobs
            engine.cancel()
        for event in events:
            if not gc.isenabled():  # the first event: everything is imported
                gc.freeze()
                gc.enable()
            interrupts.ask(engine.cancel, display.cancelling)  # before the first event nothing is lost by just leaving
            interrupts.saving = isinstance(event, PhaseStarted) and event.phase == "save"
            display.show(event)
            if as_json:
                fields = event.to_dict()
                try:
                    write(json.dumps({"event": fields.pop("event"), "job": number, **fields}))
                except OutputError as error:
                    if isinstance(event, ImageSaved):
                        say(f"the picture is {shown_path(event.path)}.")
                    raise error
            match event:
                case ImageSaved(path=path, notice=notice):
                    if notice:
                        say(notice)
                    if to_stdout:
                        write_picture(path)
                        path.unlink(missing_ok=True)
                    elif not as_json:
                        write_path(path)
                    codes.add(FAILED if notice else DONE)  # it is safe, but not where a script would look for it
                case Failed(message=message, bad_input=bad_input):
                    say(f"error: {job.place + ': ' if job.place else ''}{message}")
                    codes.add(BAD_INPUT if bad_input else FAILED)
                case Simulated():
                    codes.add(DONE)
                case Cancelled():
                    codes.add(CANCELLED)
    return codes


def _sides(size: str | None, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise RequestError("size", "--size and --width or --height exclude each other; give one or the other.")
    sides = re.fullmatch(r"\s*([0-9]{1,9})\s*[xX\u00d7*]\s*([0-9]{1,9})\s*", size)
    if sides is None:
        raise RequestError("size", f"size must be width x height in pixels, such as 512x384, got {size[:40]!r}.")
    return int(sides[1]), int(sides[2])


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Put the place of a prompt ("line 3 of prompts.txt") in front of what is wrong with it."""
    try:
        yield
    except RequestError as error:
        raise RequestError(error.field, f"{place}: {error}" if place else str(error)) from None


def _complain(field: str | None, message: str, *, as_json: bool, code: int = BAD_INPUT) -> int:
    """The error on stderr, and on stdout too where JSON is read; returns `code`."""
    say(f"error: {message}")
    if as_json:
        write(json.dumps({"event": "error", "field": field, "message": message}))
    return code


def _refuse(error: RequestError, *, as_json: bool) -> int:
    return _complain(error.field, str(error), as_json=as_json, code=FAILED if error.machine else BAD_INPUT)


def _unexpected(error: Exception) -> str:
    """One sentence for an error that nobody foresaw; the traceback goes to a file in the state folder."""
    from engine.errors_log import keep_traceback, memory_shortage

    log = keep_traceback(error)
    message = memory_shortage(error) or f"something unexpected went wrong ({type(error).__name__}: {error})"
    return f"{message}; the details could not be saved." if log is None else f"{message}; see {log}."
