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
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.cli import calibrate, model_text, pull
from engine.cli.console import DONE, StatusLine, write
from engine.cli.interrupts import Interrupts
from engine.libraries import hush_libraries
from engine.request import Request, RequestError
from engine.text import printable, size

if TYPE_CHECKING:
    from engine.library.inventory import Scanned

models_app = typer.Typer(rich_markup_mode=None)

JsonOption = Annotated[bool, typer.Option("--json", help="JSON objects on stdout; the fields: engine/cli/models.py.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A name of t2i models list, a folder or a file.")]
Work = Callable[[], int]


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context) -> Work | None:
    """The models that there are: list, add, scan, show, check, calibrate, pull, remove, cache."""
    return list_models() if context.invoked_subcommand is None else None


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
                model_text.write_model("model", model)
            for part in loose:
                write(json.dumps({"event": "part", **asdict(part)}))
        else:
            for line in model_text.list_lines(models, loose, with_parts=parts):
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
        model_text.answer("added", added, as_json=as_json)
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
                line.show(f"{model_text.counted(found)}...")
        assert found is not None
        if as_json:
            write(json.dumps({"event": "scanned", **asdict(found)}))
        else:
            for text in model_text.scan_lines(found):
                write(text)
        return DONE

    return work


@models_app.command("show")
def show_model(name: NameArgument, as_json: JsonOption = False) -> Work:
    """Tell where a model's parts lie, and its licence."""

    def work() -> int:
        from engine.library import inventory

        model = inventory.show(name)
        model_text.answer("model", model, as_json=as_json)
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
        return lambda: calibrate.use(name, Path(use), as_json=as_json)
    return lambda: calibrate.run(name, prompts or "", request, opening, as_json=as_json)


@models_app.command("pull")
def pull_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="flux.1-schnell, flux.1-dev, distillt5 or tokenizers.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept the licence and the size; do not ask.")] = False,
    as_json: JsonOption = False,
) -> Work:
    """Download a model from the hub, or the rest of it."""
    return lambda: pull.run(name, yes=yes, as_json=as_json)


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
            message = model_text.removed_sentence(gone)
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
            for line in model_text.cache_lines(found, caches.others()):
                write(line)
        return DONE

    return work
