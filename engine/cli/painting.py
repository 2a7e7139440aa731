"""The pictures of `t2i generate`: one engine paints every job, and each event is shown."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.console import (
    BAD_INPUT,
    CANCELLED,
    DONE,
    FAILED,
    OutputError,
    refuse,
    say,
    write,
    write_path,
    write_picture,
)
from engine.cli.interrupts import Interrupts
from engine.cli.progress import open_display
from engine.cli.prompts import Job, at
from engine.cli.repeat import changes_since
from engine.events import Cancelled, Failed, ImageSaved, MemoryUse, Noticed, PhaseStarted, Simulated
from engine.folders import shown_path
from engine.libraries import collector_paused, hush_libraries
from engine.request import RequestError

if TYPE_CHECKING:
    from engine.cli.progress import Display
    from engine.engine import Engine
    from engine.grids import Axis
    from engine.images.metadata import Said
    from engine.images.save import Destination

TO_STDOUT = "-"
MAX_NAMED = 300  # characters of what is left out of a picture's settings


def paint_all(
    jobs: list[Job],
    model: str,
    *,
    opening: dict[str, Any],
    said: Said | None,
    guidance_given: bool,
    axes: Sequence[Axis],
    notes: Sequence[str],
    notices: Sequence[str],
    output: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Make every picture of `jobs` with one engine; the worst that happened decides the exit code.

    With `axes` they are the cells of a grid, and a sheet shows them all.
    """
    from engine.engine import Engine
    from engine.images.save import plan_output

    to_stdout = output == TO_STDOUT
    if to_stdout:
        output = tempfile.mkdtemp(prefix="texttoimagetool-")
    destination = plan_output(output, sum(job.request.count for job in jobs) + bool(axes))
    display = open_display(quiet=quiet, stdout_shared=as_json and sys.stdout is not None and sys.stdout.isatty())
    hush_libraries()
    with (
        _removed_if_empty(destination.path if to_stdout else None),
        closing(display),
        Interrupts() as interrupts,
        collector_paused(),
        Engine.open(model, **opening) as engine,
    ):
        interrupts.at_last(display.abandon)
        if destination.is_new:
            _note(display, f"made the folder {shown_path(destination.path)}.", as_json=as_json)
        left_out = list(said.left_out) if said is not None else []
        if said is not None and said.program and engine.defaults.guidance is None and not guidance_given:
            jobs, idle = _without_guidance(jobs)
            left_out += idle
        resolved = []
        for job in jobs:
            with at(job.place):
                resolved.append(replace(job, request=engine.resolve(job.request)))
        if said is not None and (account := said.account(left_out, most=MAX_NAMED)):
            _note(display, account, as_json=as_json)
        for note in notes:
            display.note(note)
        for notice in notices:
            _note(display, notice, as_json=as_json)
        if said is not None and (changed := changes_since(said.record, engine)):
            display.note(f"{changed} changed since this picture was made; the new one may differ")
        codes: set[int] = set()
        saved: dict[int, Path | None] = {}  # of each job its last picture
        for number, job in enumerate(resolved):
            if interrupts.requested:
                codes.add(CANCELLED)
                break
            title = f"{job.label}: {job.request.prompt}" if job.label else job.request.prompt
            display.begin(title if len(jobs) == 1 else f"{number + 1} of {len(jobs)}: {title}", job.request.count)
            try:
                with at(job.place):
                    done, path = _paint(
                        engine, job, number, destination, display, interrupts, as_json=as_json, to_stdout=to_stdout
                    )
                codes |= done
                saved[number] = path
            except RequestError as error:  # of this prompt alone: the others still count
                display.close()
                codes.add(refuse(error, as_json=as_json))
        if axes and any(saved.values()) and CANCELLED not in codes:
            codes.add(_save_sheet(axes, [*map(saved.get, range(len(jobs)))], destination, as_json=as_json))
    if interrupts.requested and codes != {DONE}:
        return CANCELLED
    return next((code for code in (FAILED, BAD_INPUT) if code in codes), DONE)


def _save_sheet(
    axes: Sequence[Axis], pictures: Sequence[Path | None], destination: Destination, *, as_json: bool
) -> int:
    """Put a grid's pictures on one sheet, whose file says how to paint them again; returns an exit code."""
    from engine.grids import PROMPT, headings, to_plain
    from engine.images.metadata import read_record
    from engine.images.save import save_image
    from engine.images.sheet import make_sheet

    names = [axis.name for axis in axes]
    columns, rows = headings(axes)
    try:
        record = read_record(next(path for path in pictures if path is not None))
        request = record.request
        prompt = request.template if PROMPT in names else request.prompt
        caption = [prompt or "", "" if "seed" in names else f"seed {request.seed}"]
        sheet = make_sheet(pictures, columns, rows, ", ".join(filter(None, caption)))
        record = replace(record, reproduce={**record.reproduce, "grid": to_plain(axes)})
        path, notice = save_image(sheet, record, destination, "grid")
    except (OSError, RequestError) as error:
        say(f"error: the sheet could not be made ({error}); the pictures are saved.")
        return FAILED
    if notice:
        say(notice)
    if as_json:
        about = {"columns": columns, "rows": rows, "notice": notice}
        write(json.dumps({"event": "sheet_saved", "path": str(path), **about}))
    else:
        write_path(path)
    return FAILED if notice else DONE


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
) -> tuple[set[int], Path | None]:
    """Make one job's pictures and report every event; the exit codes that they ask for, and the last one's place."""
    codes: set[int] = set()
    saved = None
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
                    saved = path
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
    return codes, saved
