"""The kinds of file that the program reads and others may have written: valid ones, and how each kind is read.

A `place` is a folder with what one run sees: `input` (models, pictures and the like), the program's own folders, a hub
cache, and `outside`, where nobody may look.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from huggingface_hub import constants

from engine import Engine, Request, folders
from engine.cli import commands as cli
from engine.cli.prompts import read_prompts
from engine.events import Failed
from engine.images.metadata import Record, encode_png, read_parameters, read_record
from engine.images.save import plan_output
from engine.jobs.runtime import Repeat
from engine.library import catalog
from engine.request import RequestError
from engine.untrusted.headers import read_header
from engine.weights import calibrations
from engine.weights.model import model_hash
from tests import mutations
from tests.checkpoints import save, save_gguf
from tests.models import Kit, copy_tokenizers, hub_cache, small_kit
from tests.mutations import CANARY
from tests.tiny import save_tiny

HERE = "/place-of-this-input"  # in the list of models, which has whole paths
OWN = ("state", "cache", "config", "output")
REPOSITORY = "black-forest-labs/FLUX.1-schnell"
SMALLEST = Request("a red circle", steps=1, seed=1, width=64, height=64)
ONE_THREAD = Repeat(threads=1)  # a process that was forked must not wait for threads that it does not have
MAX_CHANGED_BYTES = 64 * 2**20
MAX_LINE = 400  # characters of a sentence


class ViolationError(Exception):
    """What must not happen; the message says what."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`files`: patterns of what is changed, below a place. `read` gives sentences about what is refused, or raises."""

    name: str
    make: Callable[[Path, Kit], None]
    files: tuple[str, ...]
    read: Callable[[Path, Random], Sequence[str]]
    pipes: bool = False  # a pipe is a good place for it, and may take its time


@contextmanager
def at(place: Path) -> Iterator[None]:
    """The program's folders, and the hub's cache, are those of a place."""
    before = dict(os.environ)
    os.environ |= {f"TEXTTOIMAGETOOL_{name.upper()}_DIR": str(place / name) for name in OWN}
    os.environ["HOME"] = str(place)
    cache, constants.HF_HUB_CACHE = constants.HF_HUB_CACHE, str(place / "hub")
    try:
        yield
    finally:
        constants.HF_HUB_CACHE = cache
        os.environ.clear()
        os.environ.update(before)


def make(kind: Kind, place: Path, kit: Kit) -> None:
    """A place with valid files of a kind."""
    for name in (*OWN, "input", "hub", "outside/folder"):
        (place / name).mkdir(parents=True)
    secret = {"_class_name": "FluxPipeline", "secret": CANARY, "weight_map": {CANARY: CANARY}, CANARY: CANARY}
    (place / "outside" / "secret.json").write_text(json.dumps(secret))
    (place / "outside" / "secret.txt").write_text(f"{CANARY}\n")
    save({"secret": torch.zeros(1)}, place / "outside" / "secret.safetensors")
    with at(place):
        kind.make(place, kit)


def copy(valid: Path, place: Path) -> None:
    """A place like a valid one. What is not written to in place is the same file by a link."""

    def copied(source: str, target: str) -> None:
        if source.endswith(".sqlite3"):
            shutil.copy2(source, target)
        else:
            os.link(source, target)

    shutil.copytree(valid, place, symlinks=True, copy_function=copied)
    registry = place / "state" / "models.json"
    if registry.exists():
        mutations.put(registry, registry.read_bytes().replace(HERE.encode(), str(place).encode()))


def change(kind: Kind, place: Path, rng: Random) -> str:
    """One or two of a place's files made hostile; what was done, in words."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        found = sorted({path for pattern in kind.files for path in place.glob(pattern)})
        if not found:  # the first change took all of them away
            break
        weights = [0.3 if path.is_dir() else 1 for path in found]
        (file,) = rng.choices(found, weights)
        done.append(f"{file.relative_to(place)}: {_changed(file, place, rng)}")
        if kind.pipes and file.is_fifo():
            file.unlink()
            done.append("and gone")
    if rng.random() < 0.1:
        for folder in (place / "input").iterdir():
            if folder.is_dir() and not folder.is_symlink():
                mutations.plant_code(folder)
        done.append("code planted")
    return " | ".join(done)


CHANGES = {
    ".json": mutations.change_json,
    ".safetensors": mutations.change_safetensors,
    ".gguf": mutations.change_gguf,
    ".png": mutations.change_png,
    ".toml": mutations.change_toml,
}


def _changed(file: Path, place: Path, rng: Random) -> str:
    if not file.is_file() or file.stat().st_size > MAX_CHANGED_BYTES or rng.random() < 0.12:
        return mutations.change_place(file, place / "outside", rng)
    if file.suffix == ".sqlite3":
        return mutations.change_sqlite(file, rng)
    if file.suffix == ".gguf" and rng.random() < 0.03:
        file.unlink()
        mutations.large_gguf(file)
        return "4 GB of fields"
    data = file.read_bytes()
    changed, what = CHANGES.get(file.suffix, mutations.change_text)(data, rng)
    mutations.put(file, changed)
    return what


# Reading


def paint(model: str | Path, request: Request = SMALLEST) -> None:
    """Open a model, plan, and paint the smallest picture."""
    with Engine.open(model, device="cpu", repeat=ONE_THREAD) as engine:
        request = replace(request, precision=request.precision or "fp32")
        engine.plan(request)
        for event in engine.generate(request, plan_output(None, 1)):
            if isinstance(event, Failed):
                if not event.bad_input:
                    raise ViolationError(f"told as a fault of the machine: {event.message}")
                raise RequestError("model", event.message)


def run_cli(*arguments: str) -> list[str]:
    """The lines that a command says on stderr; a violation where it ends in another way than well or refused."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main(list(arguments))
        out.flush()
    command = f"t2i {' '.join(arguments)[:80]}"
    said = err.getvalue()
    ours = any(str(folder) in said for folder in (folders.state_dir(), folders.cache_dir(), folders.config_dir()))
    if code not in (0, 2) and not (code == 1 and ours):  # what lies in our own folders is the machine's fault
        raise ViolationError(f"{command} ends with {code}: {said[:400]}")
    if code and said.count("\n") != 1:
        raise ViolationError(f"{command} refuses in {said.count(chr(10))} lines: {said[:400]}")
    shown = out.buffer.getvalue().decode("utf-8", "replace")
    if "--json" not in arguments:
        for line in shown.splitlines():
            check_sentence(line, command)
    return said.splitlines()


def check_sentence(text: str, where: str) -> None:
    """Raises `ViolationError` for what is not fit to be read."""
    if len(text) > MAX_LINE:
        raise ViolationError(f"{where} says {len(text)} characters: {text[:200]!a}")
    if not all(character.isprintable() or character in "\u200c\u200d" for character in text):
        raise ViolationError(f"{where} says control characters: {text[:300]!a}")
    if CANARY in text:
        raise ViolationError(f"{where} quotes what is outside: {text[:300]!a}")


def read_folder(place: Path, rng: Random) -> Sequence[str]:
    """A model's folder: opened, planned, painted; now and then as a command."""
    model = place / "input" / "model"
    if rng.random() < 0.1:
        return run_cli("plan", "--model", str(model), "--steps", "1", "--size", "64x64", "--device", "cpu")
    paint(model)
    return ()


def read_file(place: Path, rng: Random) -> Sequence[str]:
    """A file of weights with its parts beside it."""
    names = ("flux1-dev.gguf", "flux1-dev.safetensors")
    model = next((path for name in names if os.path.lexists(path := place / "input" / "model" / name)), place / "gone")
    if rng.random() < 0.1:
        return run_cli("models", "add", str(model))
    if model.is_file():
        read_header(model)
    paint(model)
    return ()


def read_library(place: Path, rng: Random) -> Sequence[str]:
    """A folder of models is searched and listed."""
    said = run_cli("models", "scan", str(place / "input"))
    return [*said, *run_cli("models", "list", *rng.choice(((), ("--parts",), ("--json",))))]


def read_registry(place: Path, rng: Random) -> Sequence[str]:
    """The list of models: shown, and something added to it."""
    commands: list[tuple[str, ...]] = [
        ("models", "list"),
        ("models", "list", "--parts"),
        ("models", "show", "mine"),
        ("models", "add", str(place / "input" / "model")),
        ("plan", "--model", "mine", "--steps", "1", "--size", "64x64", "--device", "cpu"),
    ]
    return [line for command in rng.sample(commands, 2) for line in run_cli(*command)]


def read_hub(place: Path, rng: Random) -> Sequence[str]:
    """A model in the hub's cache, by its name."""
    if rng.random() < 0.2:
        return [*run_cli("models", "list"), *run_cli("models", "show", "flux.1-schnell")]
    if rng.random() < 0.2:
        return run_cli("models", "scan", str(place / "hub"))
    try:
        paint("flux.1-schnell")
    except RequestError as error:
        return [str(error)]
    return ()


def read_cached(place: Path, rng: Random) -> Sequence[str]:
    """Converted weights, their index, plans and balancing factors in the cache."""
    precision = rng.choice(("fp8", "int8"))
    paint(place / "input" / "model", replace(SMALLEST, precision=precision))
    return ()


def read_calibration(place: Path, rng: Random) -> Sequence[str]:
    """Balancing factors that were made elsewhere."""
    model = place / "input" / "model"
    file = place / "input" / "factors.safetensors"
    return run_cli("models", "calibrate", str(model), "--use", str(file))


def read_picture(place: Path, rng: Random) -> Sequence[str]:
    """A picture: its settings, as a command and in the gallery; its thumbnail."""
    from tui.screens.gallery import pictures_in, read_facts
    from tui.thumbnails import read_small

    file = place / "input" / "picture.png"
    pictures_in(file.parent)
    read_parameters(file)
    read_small(file, 20, 20)
    read_facts(file)
    cli.app(["generate", "--from", str(file), "--simulate"], prog_name="t2i", standalone_mode=False)
    read_record(file)
    return ()


def read_prompt_file(place: Path, rng: Random) -> Sequence[str]:
    """Prompts, one a line, each a request and perhaps a template of several."""
    from engine.prompts.variants import expand

    cli.app(
        ["generate", "--prompts-file", str(place / "input" / "prompts.txt")], prog_name="t2i", standalone_mode=False
    )
    for _, prompt in read_prompts(str(place / "input" / "prompts.txt"))[:100]:
        expand(prompt)
    return ()


def read_choices(place: Path, rng: Random) -> Sequence[str]:
    """A preset and a wildcard file, as a command takes them."""
    cli.app(["generate", "a __colour__ {__colour__}"], prog_name="t2i", standalone_mode=False)
    cli.app(["generate", "a circle", "--preset", "sketch"], prog_name="t2i", standalone_mode=False)
    return run_cli("presets")


def read_app(place: Path, rng: Random) -> Sequence[str]:
    """Settings, keys, themes and history: the app is opened over them; now and then it runs for a moment."""
    from tui.launch import open_app

    app = open_app({})
    try:
        history = app.session.history
        history.prompts()
        history.favourites()
        history.results()
        said = [*app._notices, *history.notices]
        if rng.random() < 0.1:
            app.client.start = lambda opening: None  # type: ignore[method-assign]
            asyncio.run(_run(app))
            said = [text for _, text in app.shared.said]
    finally:
        app.session.history.close()
    return [line for text in said for line in text.split("\n") if not line.startswith("From last time")]


async def _run(app) -> None:
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        for name in [name for name in app.available_themes if not name.startswith(("textual", "dark", "light"))][-2:]:
            app.theme = name
            await pilot.pause()
        await pilot.press("ctrl+r")
        await pilot.press("escape")
        await pilot.press("up")
        await pilot.pause()


# Valid files


def make_folder(place: Path, kit: Kit) -> None:
    """Diffusers' layout, T5 in shards, the tokenizers also by their older files."""
    model = place / "input" / "model"
    pipeline = save_tiny(model, guided=True)
    shutil.rmtree(model / "text_encoder_2")
    pipeline.text_encoder_2.save_pretrained(model / "text_encoder_2", max_shard_size="60KB")
    (model / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|endoftext|>"}))
    (model / "tokenizer_2" / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>"}))


def make_old_folder(place: Path, kit: Kit) -> None:
    """Diffusers' layout with the vocabulary of CLIP in two files, as FLUX.1 comes."""
    make_folder(place, kit)
    _by_two_files(place / "input" / "model" / "tokenizer")


def _by_two_files(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    merges = [" ".join(rule) if isinstance(rule, list) else rule for rule in model.get("merges", [])]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer.json").unlink()
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 32, "bos_token": "<|startoftext|>"}
    config |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make_demo(place: Path, kit: Kit) -> None:
    """The demo model, which brings preferences and a smaller text encoder."""
    shutil.copytree(catalog.DEMO_FOLDER, place / "input" / "model", copy_function=os.link)


def make_file(place: Path, kit: Kit) -> None:
    """All in one file, in Black Forest Labs' names."""
    save(kit.all_in_one(), place / "input" / "model" / "flux1-dev.safetensors", {"format": "pt"})
    copy_tokenizers(place / "input" / "model")


def make_gguf(place: Path, kit: Kit) -> None:
    """A transformer in GGUF, its parts in files beside it."""
    folder = place / "input" / "model"
    folder.mkdir()
    save_gguf(kit.transformer, folder / "flux1-dev.gguf", "Q8_0")
    save(kit.vae, folder / "ae.safetensors")
    save(kit.clip, folder / "clip_l.safetensors")
    save(kit.t5, folder / "t5xxl.safetensors")
    copy_tokenizers(folder)


def make_library(place: Path, kit: Kit) -> None:
    """Models of several programs in one folder."""
    make_folder(place, kit)
    models = place / "input" / "comfy" / "models"
    save(kit.transformer, models / "unet" / "flux1-dev.safetensors")
    save(kit.vae, models / "vae" / "ae.safetensors")
    save(kit.clip, models / "clip" / "clip_l.safetensors")
    save(kit.t5, models / "text_encoders" / "t5xxl_fp16.safetensors")
    copy_tokenizers(place / "input" / "comfy")


def make_registry(place: Path, kit: Kit) -> None:
    """A list of models with one of each sort."""
    make_library(place, kit)
    values = {
        "models": {
            "mine": {"path": f"{HERE}/input/model", "parts": {}, "pulled": False},
            "file": {
                "path": f"{HERE}/input/comfy/models/unet/flux1-dev.safetensors",
                "parts": {
                    "vae": f"{HERE}/input/comfy/models/vae/ae.safetensors",
                    "tokenizer": f"{HERE}/input/comfy/tokenizer",
                },
                "pulled": False,
            },
            "flux.1-schnell": {"path": f"{HERE}/hub", "parts": {}, "pulled": True},
        },
        "loose": [f"{HERE}/input/comfy/models/clip/clip_l.safetensors", f"{HERE}/input/comfy/tokenizer_2"],
    }
    (place / "state" / "models.json").write_text(json.dumps(values))


def make_hub(place: Path, kit: Kit) -> None:
    """A complete published model in the hub's cache: links to blobs."""
    model = place / "aside"
    save_tiny(model, guided=False)
    snapshot = hub_cache(place / "hub", REPOSITORY, model)
    assert snapshot.is_dir()
    shutil.rmtree(model)


def make_cached(place: Path, kit: Kit) -> None:
    """A model with all that is kept of it in the cache."""
    save_tiny(place / "input" / "model", guided=True)
    for file in place.glob("input/model/*/*"):  # the cache's names follow from the time: the same in every run
        os.utime(file, (1_700_000_000, 1_700_000_000))
    _calibrate(place, None)
    for precision in ("fp8", "int8"):
        paint(place / "input" / "model", replace(SMALLEST, precision=precision))


def make_calibration(place: Path, kit: Kit) -> None:
    """A model, and balancing factors for it in a file."""
    save_tiny(place / "input" / "model", guided=True)
    _calibrate(place, place / "input" / "factors.safetensors")


def _calibrate(place: Path, file: Path | None) -> None:
    from engine.precision import MODES
    from engine.quantization.salience import Calibration
    from engine.weights.model import open_folder

    model = open_folder(place / "input" / "model", "model")
    factors = {mode: {each.name: torch.full((each.width,), 1.5) for each in model.inputs} for mode in MODES}
    calibrations.write(Calibration(model_hash(model), 1, 32, "fp32", factors), file)


GRID = [{"name": "steps", "values": [1, 2]}, {"name": "size", "values": ["64x64", "3:2"]}]


def make_picture(place: Path, kit: Kit) -> None:
    """A picture with its record."""
    from PIL import Image

    record = Record(
        replace(SMALLEST, precision="fp32", guidance=3.5, negative_prompt="blue", cfg=2.0, template="a {red} circle"),
        model="demo",
        model_hash="ab" * 32,
        versions={"engine": "0.1.0", "torch": "2.13.0"},
        seconds_by_phase={"denoise": 1.5},
        device="cpu",
        reproduce={"threads": 1, "tile": 0, "kernel": "dequantize", "batch": 1, "grid": GRID},
    )
    (place / "input" / "picture.png").write_bytes(encode_png(Image.new("RGB", (64, 64), "red"), record))


def make_prompts(place: Path, kit: Kit) -> None:
    """Some prompts, one with variants."""
    lines = ("a red circle", "a {red|blue|2$$green|yellow} square", "", "ein gr\u00fcner Kreis", "a \\{ b")
    (place / "input" / "prompts.txt").write_text("\n".join(lines), "utf-8")


def make_choices(place: Path, kit: Kit) -> None:
    """A preset and a wildcard file."""
    preset = 'steps = 4\nsize = "3:2"\nfit = false\ncfg = 2.0\nnegative_prompt = "blue"\napg = true\nmodel = "demo"\n'
    for name in ("presets", "wildcards"):
        (place / "config" / name).mkdir()
    (place / "config" / "presets" / "sketch.toml").write_text(preset)
    (place / "config" / "wildcards" / "colour.txt").write_text("# of shapes\nred\n{dark|light} blue\n__colour__\n")


CONFIG = """model = "demo"
output = "~/output"
vram = "12GiB"
ram = "auto"
simulate = true
theme = "dusk"
preview = "auto"
fps = 10
mouse = false
ascii = false
color = "truecolor"
images = "off"
opener = "xdg-open %s"
open_forwarded = false
enter_submits = true
"""
KEYMAP = """"job.cancel" = "f8 Z"
"view.plan" = "Q"
[prompt]
newline = "ctrl+j"
"""


def make_app(place: Path, kit: Kit) -> None:
    """Settings, keys, a theme, and a history that another session left."""
    from tui.history import History
    from tui.jobs import Job

    (place / "config" / "themes").mkdir()
    (place / "config" / "config.toml").write_text(CONFIG)
    (place / "config" / "keymap.toml").write_text(KEYMAP)
    theme = (Path(cli.__file__).parents[2] / "themes" / "dark.toml").read_text("utf-8")
    (place / "config" / "themes" / "dusk.toml").write_text(theme.replace('"dark"', '"dusk"', 1))
    history = History.open(place / "state", lambda: 1_700_000_000.0)
    for number in range(3):
        history.add_prompt(f"a red circle {number}")
    for number, state in enumerate(("queued", "running", "done", "failed", "cancelled")):
        job = Job(replace(SMALLEST, template="a {red} circle"), "demo", "", f"id{number}", state, 1_700_000_000.0)  # type: ignore[arg-type]
        history.put(replace(job, path=place / "x.png", seconds=1.5, peak_bytes=10) if state == "done" else job)
    history.save("draft", "a draft")
    history.save("parameters", {"chosen": {"steps": 4, "cfg": 2.0}, "seed": 7, "count": 2})
    history.save("model", "demo")
    history.save("output", "")
    history.save("theme", "dusk")
    history.set_favourite(place / "x.png", True)
    history.close()
    with closing(sqlite3.connect(place / "state" / "history.sqlite3")) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("UPDATE sessions SET id = 'earlier', pid = 0, started = 0")
        for table in ("saved", "jobs"):
            db.execute(f"UPDATE {table} SET session = 'earlier'")
        db.commit()


MODEL = (
    "input/model/*/*.json",
    "input/model/*.json",
    "input/model/*/*.txt",
    "input/model/*/*.safetensors",
    "input/model/*",
)
LIBRARY = ("input/*/*.json", "input/*/*/*.json", "input/**/*.safetensors", "input/**/tokenizer*/*", "input/*/*")
HUB = tuple(f"hub/*/{name}" for name in ("refs/*", "snapshots/*", "snapshots/*/*", "snapshots/*/*/*", "blobs", "*"))

KINDS = {
    kind.name: kind
    for kind in (
        Kind("folder", make_folder, MODEL, read_folder),
        Kind("old-folder", make_old_folder, MODEL, read_folder),
        Kind("demo", make_demo, MODEL, read_folder),
        Kind("file", make_file, ("input/model/*.safetensors", "input/model/*/*"), read_file),
        Kind("gguf", make_gguf, ("input/model/*.gguf", "input/model/*.*", "input/model/*.gguf"), read_file),
        Kind("library", make_library, LIBRARY, read_library),
        Kind("registry", make_registry, ("state/models.json",), read_registry),
        Kind("hub", make_hub, HUB, read_hub),
        Kind("cached", make_cached, ("cache/*/*", "cache/*", "cache/weights/index/*"), read_cached),
        Kind("calibration", make_calibration, ("input/factors.safetensors",), read_calibration),
        Kind("picture", make_picture, ("input/picture.png",), read_picture),
        Kind("prompts", make_prompts, ("input/prompts.txt",), read_prompt_file, pipes=True),
        Kind("choices", make_choices, ("config/presets/sketch.toml", "config/wildcards/colour.txt"), read_choices),
        Kind("settings", make_app, ("config/config.toml",), read_app),
        Kind("keymap", make_app, ("config/keymap.toml",), read_app),
        Kind("theme", make_app, ("config/themes/*.toml", "config/themes"), read_app),
        Kind("history", make_app, ("state/history.sqlite3",), read_app),
    )
}
__all__ = ["KINDS", "Kind", "ViolationError", "at", "change", "check_sentence", "make", "small_kit"]
