"""`t2i models`: the models that there are; adding, finding, looking at, downloading and forgetting them.

Results go to stdout, for people or with `--json` as one object a line; questions, progress and errors go to stderr.
Exit codes are those of `engine.cli.commands`.

    event          from           fields
    model          list, show     the fields of a model
    part           list           the fields of a part, which may complete models
    added          add            the same
    scanned        scan           added, known (models), loose (parts), refused (sentences), folders, files, unreadable
    pull_begins    pull           name, licence, folder, here_bytes, download_bytes
    pull_progress  pull           done_bytes, total_bytes, bytes_per_second, seconds_left, file
    pulled         pull           the fields of a model
    removed        remove, cache  message, freed_bytes
    cached         cache          name, path, form, component, nbytes, models, source, reason
    calibrating    calibrate      prompt, prompts, step, steps
    calibrated     calibrate      model, file, prompts, steps, precision, inputs, largest_factor
    model_checked  check          model, parts (by component: layout, precision, bytes), fp8 (by component)
    error          all            field, message

A model has name, place, kind (dev, schnell, demo, text encoder, tokenizers, autoencoder), here (it can be run), nbytes,
precision, layout, parts, missing (in words), warning, pulled, can_pull, can_remove, licence; a part has component,
title, place, layout, precision, nbytes, note. `seconds_left` is null where nothing arrives.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cancel import CancelledError
from engine.cli.console import CANCELLED, DONE, FAILED, StatusLine, is_terminal, say, write
from engine.cli.interrupts import Interrupts
from engine.cli.prompts import read_prompts
from engine.folders import shown_path
from engine.libraries import hush_libraries
from engine.request import Request, RequestError
from engine.text import duration, printable, size

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.library.caches import Cached
    from engine.library.hub import Prepared, PullProgress
    from engine.library.inventory import Listing, Part, Scanned

COLUMNS = 80
MAX_SENTENCES = 20  # about files that cannot be used
MANY = 4  # such files of one kind are counted, not listed
REFUSED = re.compile(r"(?P<file>'.*'|\".*\") is (?P<what>[^']+, which cannot be run here; .*)")

models_app = typer.Typer(
    help="The models that there are: list, add, scan, show, check, calibrate, pull, remove, cache.",
    rich_markup_mode=None,
)

JsonOption = Annotated[bool, typer.Option("--json", help="JSON objects on stdout; the fields: engine/cli/models.py.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A name of t2i models list, a folder or a file.")]
Work = Callable[[], int]


@models_app.command("list")
def list_models(
    parts: Annotated[bool, typer.Option("--parts", help="Also every part that may complete models.")] = False,
    as_json: JsonOption = False,
) -> Work:
    """All models by name, and what each lacks."""

    def work() -> int:
        from engine.library import inventory, registry

        models, loose = inventory.listed(), inventory.loose()
        if as_json:
            for model in models:
                _write_model("model", model)
            for part in loose:
                write(json.dumps({"event": "part", **asdict(part)}))
        else:
            for line in list_lines(models, loose, with_parts=parts):
                write(line)
        registry.read()  # which says what is wrong with it
        return DONE

    return work


@models_app.command("add")
def add_model(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A model's file or folder, or a part of one.")],
    name: Annotated[str | None, typer.Option(help="What it is called; otherwise after its file or folder.")] = None,
    vae: Annotated[str | None, typer.Option(metavar="PATH", help="Its autoencoder.")] = None,
    clip: Annotated[str | None, typer.Option(metavar="PATH", help="Its CLIP-L.")] = None,
    t5: Annotated[str | None, typer.Option(metavar="PATH", help="Its T5-XXL.")] = None,
    tokenizers: Annotated[
        str | None, typer.Option(metavar="DIR", help="A folder that holds its tokenizers, or a ComfyUI.")
    ] = None,
    as_json: JsonOption = False,
) -> Work:
    """Give a model on this disk a name.

    Parts that are not named are looked for beside it and among those that are known. Nothing is copied.
    """
    from engine.families.all import parts as known_parts

    named = {part.flag: part.name for part in known_parts().values()}
    given = {named["--vae"]: vae, named["--clip"]: clip, named["--t5"]: t5, "tokenizers": tokenizers}
    parts = {part: Path(place) for part, place in given.items() if place is not None}

    def work() -> int:
        from engine.library import inventory

        added = inventory.add(Path(path), name, parts)
        _answer("added", added, as_json=as_json)
        return DONE

    return work


@models_app.command("scan")
def scan_folder(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="ComfyUI's, Forge's, InvokeAI's, any folder.")],
    as_json: JsonOption = False,
) -> Work:
    """Find models in a folder and all folders in it.

    They get names, and parts that complete others are remembered. Nothing is copied.
    """

    def work() -> int:
        from engine.library import inventory

        found: Scanned | None = None
        with Interrupts(), closing(StatusLine()) as line:
            for found in inventory.scan(Path(folder)):
                line.show(f"{_counted(found)}...")
        assert found is not None
        if as_json:
            write(json.dumps({"event": "scanned", **asdict(found)}))
        else:
            for text in scan_lines(found):
                write(text)
        return DONE

    return work


@models_app.command("show")
def show_model(name: NameArgument, as_json: JsonOption = False) -> Work:
    """Tell where a model's parts lie, and its licence."""

    def work() -> int:
        from engine.library import inventory

        model = inventory.show(name)
        _answer("model", model, as_json=as_json)
        return DONE

    return work


@models_app.command("check")
def check_model(name: NameArgument, as_json: JsonOption = False) -> Work:
    """Look at every weight of a model.

    Is it there, is it finite, and what would its FP8 form lose?
    """

    def work() -> int:
        from engine.cli.check import run

        hush_libraries()
        return run(name, as_json=as_json)

    return work


@models_app.command("calibrate")
def calibrate_model(
    name: NameArgument,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Prompts, one a line: 32 to 128, like those to be painted.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, as pictures will have.")] = None,
    precision: Annotated[str | None, typer.Option(metavar="fp32|bf16|fp8", help="To measure in.")] = None,
    use: Annotated[
        str | None, typer.Option(metavar="FILE", help="Take a calibration of the same model that was made elsewhere.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")] = "auto",
    vram: Annotated[str, typer.Option(metavar="SIZE|auto", help="Budget of the card: 12GiB.")] = "auto",
    ram: Annotated[str, typer.Option(metavar="SIZE|auto", help="Budget of this process's memory: 16GiB.")] = "auto",
    as_json: JsonOption = False,
) -> Work:
    """Find out which channels are hard to round, so that --precision int8 can balance them.

    Paints prompts as far as latents; what is kept is small, and is used from the next picture on.
    """
    if (prompts is None) == (use is None):
        raise RequestError("prompts", "give either --prompts FILE, with one prompt a line, or --use FILE.")
    request = Request("to be read", steps=steps, seed=0, precision=precision)
    opening = {"device": device, "vram": vram, "ram": ram}
    if use is not None:
        return lambda: _use_calibration(name, Path(use), as_json=as_json)
    return lambda: _calibrate(name, prompts or "", request, opening, as_json=as_json)


@models_app.command("pull")
def pull_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="flux.1-schnell, flux.1-dev, distillt5 or tokenizers.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept the licence and the size; do not ask.")] = False,
    as_json: JsonOption = False,
) -> Work:
    """Download a model from the hub, or the rest of it."""
    return lambda: _pull(name, yes=yes, as_json=as_json)


@models_app.command("remove")
def remove_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of t2i models list, or a part's path.")],
    files: Annotated[
        bool, typer.Option("--files", help="Delete what was downloaded for it, and its FP8 form; never your own files.")
    ] = False,
    as_json: JsonOption = False,
) -> Work:
    """Forget a model, or delete its download."""

    def work() -> int:
        from engine.library import inventory

        message, freed = inventory.remove(name, files=files)
        if as_json:
            write(json.dumps({"event": "removed", "message": message, "freed_bytes": freed}))
        else:
            write(printable(f"{message} {size(freed)} freed." if freed else message))
        return DONE

    return work


@models_app.command("cache")
def show_cache(
    remove: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|unused|all", help="Delete these, or all that no model needs; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> Work:
    """The 8-bit weights that were converted and kept, who needs them, and deleting some.

    They can be made again. Nothing else is ever deleted.
    """

    def work() -> int:
        from engine.library import caches

        if remove:
            gone = caches.remove(remove)
            message = removed_sentence(gone)
            freed = sum(cached.nbytes for cached in gone)
            if as_json:
                write(json.dumps({"event": "removed", "message": message, "freed_bytes": freed}))
            else:
                write(printable(message))
            return DONE
        found = caches.listed()
        if as_json:
            for cached in found:
                write(json.dumps({"event": "cached", **asdict(cached)}))
        else:
            for line in cache_lines(found, caches.others()):
                write(line)
        return DONE

    return work


# Calibrating


def _calibrate(name: str, file: str, request: Request, opening: dict[str, Any], *, as_json: bool) -> int:
    from engine.engine import Engine
    from engine.events import LoadProgress, StepFinished

    prompts = [replace(request, prompt=text).prompt for _, text in read_prompts(file)]
    hush_libraries()
    begun = time.monotonic()
    with closing(StatusLine()) as line, Interrupts() as interrupts, Engine.open(name, **opening) as engine:
        events = engine.calibrate(prompts, request)
        interrupts.ask(engine.cancel)
        try:
            while True:
                event = next(events)
                if isinstance(event, LoadProgress):
                    line.show(f"load {event.component} {size(event.done_bytes)} of {size(event.total_bytes)}")
                elif isinstance(event, StepFinished):
                    done = event.image + event.step / event.steps
                    left = (len(prompts) - done) * (time.monotonic() - begun) / done
                    place = f"prompt {event.image + 1} of {len(prompts)}, step {event.step} of {event.steps}"
                    line.show(f"{place}, {duration(left)} left")
                    if as_json:
                        counts = {"prompt": event.image + 1, "prompts": len(prompts)}
                        steps = {"step": event.step, "steps": event.steps}
                        write(json.dumps({"event": "calibrating", **counts, **steps}))
        except StopIteration as end:
            made: Path = end.value
        except CancelledError:
            return CANCELLED
        line.close()
        _say_calibration(engine, made, as_json=as_json)
    return DONE


def _use_calibration(name: str, file: Path, *, as_json: bool) -> int:
    from engine.engine import Engine
    from engine.weights import calibrations

    hush_libraries()
    with Engine.open(name) as engine:
        engine.context.require_weights()
        if not file.is_file():
            raise RequestError("use", f"there is no file {shown_path(file)}.")
        known = calibrations.read(engine.model, engine.context.model_hash, engine.source.inputs, file)
        _say_calibration(engine, calibrations.write(known), as_json=as_json)
    return DONE


def _say_calibration(engine: Engine, file: Path, *, as_json: bool) -> None:
    from engine.weights import calibrations

    known = calibrations.read(engine.model, engine.context.model_hash, engine.source.inputs)
    factors = known.factors["csb+ssc"]
    largest = max(float(factor.max()) for factor in factors.values())
    if as_json:
        about = {"prompts": known.prompts, "steps": known.steps, "precision": known.precision}
        found = {"inputs": len(factors), "largest_factor": largest}
        write(json.dumps({"event": "calibrated", "model": engine.model, "file": str(file), **about, **found}))
        return
    write(
        printable(
            f"{engine.model} is calibrated with {_count(known.prompts, 'prompt')} at {_count(known.steps, 'step')}: "
            f"factors for {len(factors)} inputs, up to {largest:.1f}, in {shown_path(file)}. "
            "--precision int8 uses them from now on (--salience off does not)."
        )
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# Downloading


def _pull(name: str, *, yes: bool, as_json: bool) -> int:
    from engine.library import hub, inventory

    with Interrupts():
        prepared = hub.prepare(name)
        say(prepared.licence)
        if as_json:
            about = {"name": name, "licence": prepared.licence, "folder": str(prepared.folder)}
            amounts = {"here_bytes": prepared.here_bytes, "download_bytes": prepared.download_bytes}
            write(json.dumps({"event": "pull_begins", **about, **amounts}))
        if prepared.download_bytes:
            if not yes and not _agreed(prepared):
                return CANCELLED
            inventory.pulling(name, prepared.folder)
        try:
            where = _watched(prepared, as_json=as_json)
        except KeyboardInterrupt:
            say(f"what arrived is kept: t2i models pull {name} goes on from there.")
            return CANCELLED
        model = inventory.pulled(name, where) if prepared.download_bytes else inventory.show(name)
    _answer("pulled", model, as_json=as_json)
    return DONE if model.here else FAILED


def _agreed(prepared: Prepared) -> bool:
    """Whether the person wants it, as far as that must be asked. Raises `RequestError` where nobody can be asked."""
    source = prepared.source
    here = f", {size(prepared.here_bytes)} are here" if prepared.here_bytes else ""
    amount = f"{size(prepared.download_bytes)} to download into {str(prepared.folder)!r}{here}"
    if not is_terminal():
        if source.restricted:
            raise RequestError(
                "yes", f"nobody can be asked to accept the licence of {source.name} here; if you do: --yes."
            )
        say(f"{amount}.")
        return True
    print(printable(f"{amount}. Go on? [y/N] "), end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        say("")  # not behind the question
        raise


def _watched(prepared: Prepared, *, as_json: bool) -> Path | dict[str, Path]:
    """Bring it and show how far it is."""
    from engine.library import hub

    with closing(hub.pull(prepared)) as steps, closing(StatusLine()) as line:
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                where: Path | dict[str, Path] = end.value
                return where
            line.show(f"{prepared.source.name}: {progress_text(progress)}")
            if as_json:
                write(json.dumps({"event": "pull_progress", **asdict(progress)}))


def progress_text(progress: PullProgress) -> str:
    """How far a download is, for people."""
    done, total = progress.done_bytes, progress.total_bytes
    share = f" ({100 * done // total} %)" if total else ""
    left = "" if progress.seconds_left is None else f", {duration(progress.seconds_left)} left"
    rate = f", {size(progress.bytes_per_second)}/s{left}" if done < total else ""
    return f"{size(done)} of {size(total)}{share}{rate}{', ' + progress.file if progress.file else ''}"


# For people


def list_lines(models: Sequence[Listing], loose: Sequence[Part], *, with_parts: bool) -> Iterator[str]:
    """A table of models, in 80 columns but for long paths."""
    rows = [(model.name, model.kind or "?", model.precision, size(model.nbytes), state_of(model)) for model in models]
    rows.insert(0, ("name", "kind", "weights", "size", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    widths[0] = min(widths[0], COLUMNS - sum(widths[1:]) - len("incomplete") - 8)
    for model, row in zip((None, *models), rows, strict=True):
        name, kind, precision, amount, state = row
        if len(name) > widths[0]:
            yield printable(name)
            name = ""
        cells = f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {precision:<{widths[2]}}  {amount:>{widths[3]}}  {state}"
        yield printable(cells.rstrip())
        if model is not None:
            if model.place and model.kind != "demo":
                yield printable(f"    {model.place}")
            if text := _what_is_wrong(model):
                yield printable(f"    {text}")
    if loose:
        yield ""
    if loose and with_parts:
        yield "parts that complete models:"
        yield from _part_rows(loose)
    elif loose:
        yield f"{len(loose)} part{'' if len(loose) == 1 else 's'} that may complete models: t2i models list --parts"


def state_of(model: Listing) -> str:
    """Of a model, in a word or two."""
    if model.here:
        return "ready"
    if model.can_pull:
        return "to pull" if not model.pulled else "begun"
    return "incomplete" if model.missing else "unusable"


def _what_is_wrong(model: Listing) -> str:
    if model.missing and not model.can_pull:
        return _lacks(model)
    return model.warning


def _lacks(model: Listing) -> str:
    alone = all("tokenizer" in word for word in model.missing)
    return f"lacks {', '.join(model.missing)}{': t2i models pull tokenizers' if alone else ''}"


def model_lines(model: Listing) -> Iterator[str]:
    """Everything about a model."""
    from engine.library.listings import title_of_kind

    what = title_of_kind(model.kind)
    yield printable(f"{model.name}: {what + ', ' if what else ''}{state_of(model)}")
    if model.place and model.place != model.name:
        yield printable(f"    {model.place}")
    facts = [size(model.nbytes) if model.nbytes else "", model.layout, model.precision]
    if any(facts):
        yield printable(f"    {', '.join(fact for fact in facts if fact)}")
    if model.can_pull:
        yield f"    t2i models pull {model.name} downloads {'the rest' if model.pulled else 'it'}"
    elif model.missing:
        yield printable(f"    {_lacks(model)}")
    for sentence in (model.warning, model.licence):
        if sentence:
            yield printable(f"    {sentence}")
    if model.parts:
        yield ""
        yield from _part_rows(model.parts, model.place)


def _part_rows(parts: Sequence[Part], beside: str = "") -> Iterator[str]:
    """A table of parts and where each lies, as seen from the folder `beside`."""
    rows = [(part.title, part.layout, part.precision, size(part.nbytes) if part.nbytes else "-") for part in parts]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for part, row in zip(parts, rows, strict=True):
        title, layout, precision, amount = row
        cells = f"  {title:<{widths[0]}}  {layout:<{widths[1]}}  {precision:<{widths[2]}}  {amount:>{widths[3]}}"
        note = part.note or ("" if part.place else "not here")
        yield printable(f"{cells}  {note}".rstrip())
        if place := _seen_from(beside, part.place):
            yield printable(f"      {place}")


def _seen_from(beside: str, place: str) -> str:
    """Where a part lies, without the folder that it is in where that was said; empty where it is the same."""
    if beside and place and Path(place).is_relative_to(beside):
        place = str(Path(place).relative_to(beside))
        return "" if place == "." else place
    return place


def scan_lines(found: Scanned) -> Iterator[str]:
    """What was found in a folder."""
    from engine.library.listings import title_of_kind

    for title, models in (("added:", found.added), ("known already:", found.known)):
        if models:
            yield title
            for model in models:
                what = f"{title_of_kind(model.kind)}, {model.precision}, {size(model.nbytes)}"
                yield printable(f"  {model.name}: {what}, {state_of(model)}")
                yield printable(f"      {model.place}")
                if text := _what_is_wrong(model):
                    yield printable(f"      {text}")
    if found.loose:
        yield "parts that complete models:"
        yield from _part_rows(found.loose)
    if found.refused:
        yield "cannot be used:"
        sentences = [*_grouped(found.refused)]
        for sentence in sentences[:MAX_SENTENCES]:
            yield printable(f"  {sentence}")
        if len(sentences) > MAX_SENTENCES:
            yield f"  and {len(sentences) - MAX_SENTENCES} more (--json has all)"
    if not found.added and not found.known:
        yield "no FLUX.1 was found."
    unreadable = f"; {found.unreadable} of them cannot be read" if found.unreadable else ""
    yield f"looked at {_counted(found)}{unreadable}."


def _counted(found: Scanned) -> str:
    folders = f"{found.folders} folder{'' if found.folders == 1 else 's'}"
    return f"{folders} with {found.files} file{'' if found.files == 1 else 's'} of weights"


def _grouped(sentences: Sequence[str]) -> Iterator[str]:
    """Sentences about files, many that say the same as one: a folder may hold hundreds of LoRAs."""
    files: dict[str, list[str]] = defaultdict(list)
    for sentence in sentences:
        if match := REFUSED.fullmatch(sentence):
            files[match["what"]].append(match["file"])
    for sentence in sentences:
        match = REFUSED.fullmatch(sentence)
        if match is None or len(files[match["what"]]) < MANY:
            yield sentence
        elif files[match["what"]][0] == match["file"]:
            others = len(files[match["what"]]) - 1
            yield f"{match['file']} is {match['what'].removesuffix('.')} ({others} other files are the same)."


def cache_lines(found: Sequence[Cached], others: Mapping[str, int]) -> Iterator[str]:
    """A table of converted weights, and what can go."""
    unused = sum(cached.nbytes for cached in found if cached.reason)
    rows = [(cached.name, cached.form or "?", cached.component or "?", size(cached.nbytes)) for cached in found]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for cached, row in zip(found, rows, strict=True):
        name, form, component, amount = row
        cells = f"{name:<{widths[0]}}  {form:<{widths[1]}}  {component:<{widths[2]}}  {amount:>{widths[3]}}"
        yield printable(f"{cells}  {cached.reason or 'in use'}")
        if cached.models or cached.source:
            yield printable(f"    of {', '.join(cached.models) or cached.source}")
    total = sum(cached.nbytes for cached in found)
    yield f"{_count(len(found), 'file')} of converted weights, {size(total)}." if found else "no converted weights."
    if unused:
        yield f"{size(unused)} can go: t2i models cache --remove unused"
    if small := ", ".join(f"{title} {size(nbytes)}" for title, nbytes in others.items() if nbytes):
        yield f"Beside them: {small}."


def removed_sentence(gone: Sequence[Cached]) -> str:
    """What was freed."""
    if not gone:
        return "there was nothing to remove."
    freed = sum(cached.nbytes for cached in gone)
    return f"{_count(len(gone), 'file')} of converted weights removed, {size(freed)} freed."


def _answer(event: str, model: Listing, *, as_json: bool) -> None:
    """Show one model, as what came of a command."""
    if as_json:
        _write_model(event, model)
    else:
        for line in model_lines(model):
            write(line)


def _write_model(event: str, model: Listing) -> None:
    write(json.dumps({"event": event, **asdict(model)}))
