"""The models in the app, by keys: the real list on real small files, and a model hub on this machine."""

from __future__ import annotations

import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL
from textual import events
from textual.containers import VerticalScroll
from textual.pilot import Pilot
from textual.widgets import OptionList, Static

from engine.events import ImageSaved, MemoryUse
from engine.families.sources import Repository, Source
from engine.folders import state_dir
from engine.library import catalog, hub, inventory, pairing, registry, transfer
from engine.process import ModelOpened, ModelRefused, OpenModel
from engine.request import Defaults, Option
from tests import test_hub
from tests.apps import engine_says, notes, run, running, screen_text, settled, until
from tests.checkpoints import ldm_state, save
from tests.test_hub import Hub, handler, use_hub
from tests.tiny import save_tiny
from tui.app import T2IApp
from tui.client import Received
from tui.library import Pull, Scan
from tui.listing import about, fold, rows, state_of
from tui.screens.dialogs import ReadText
from tui.screens.main import MainScreen
from tui.screens.model_dialogs import AskPlace, PullWindow, RemoveWindow, completed
from tui.screens.models import ModelsScreen
from tui.widgets.field import Field

SIZES = ((1, 1), (80, 1), (1, 24), (17, 9), (40, 12), (300, 100), (80, 24), (120, 40))
DISTILLED = catalog.DEMO_FOLDER / "distill_t5"  # small, and as real as any
FILES = {name: (DISTILLED / name).read_bytes() for name in ("config.json", "model.safetensors")}
TOTAL = sum(map(len, FILES.values()))
WEIGHTS = "model.safetensors"
REPOSITORY = Repository("someone/tiny", tuple(FILES), tuple(FILES))
GIB = 2**30
PART = inventory.Part("transformer", "FLUX.1 transformer", "/models/a/transformer", "BFL", "bf16", 22 * GIB)
LISTING = inventory.Listing(
    name="mine",
    place="/models/a",
    kind="dev",
    here=True,
    nbytes=31 * GIB,
    precision="bf16",
    layout="BFL",
    parts=(PART,),
    missing=(),
    warning="",
    pulled=False,
    can_pull=False,
    can_remove=True,
    licence="Free.",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in diffusers' layout."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny(folder, guided=True)
    return folder


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has DistillT5, and an empty cache."""
    state, storage = Hub(files=dict(FILES)), [""]
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler(state, place)) for place in (storage, [])]
    for each in servers:
        each.daemon_threads = True
        threading.Thread(target=each.serve_forever, args=(0.01,), daemon=True).start()
    state.url, storage[0] = (f"http://127.0.0.1:{each.server_address[1]}" for each in servers)
    use_hub(monkeypatch, state.url, tmp_path / "hub")
    monkeypatch.setattr(test_hub, "SHARD", WEIGHTS)  # the file that the hub can cut short
    monkeypatch.setitem(hub.SOURCES, "distillt5", Source("distillt5", (REPOSITORY,), "Ask [b]its[/b] authors.", TOTAL))
    monkeypatch.setattr(transfer, "PAUSES_SECONDS", (0.01,) * 3)
    yield state
    for each in servers:
        each.shutdown()
        each.server_close()


@asynccontextmanager
async def models(
    size: tuple[int, int] = (80, 24), **flags: object
) -> AsyncIterator[tuple[T2IApp, Pilot[None], ModelsScreen]]:
    """The app without an engine, which remembers what it would open, on the screen with the models."""
    async with running(size, engine=False, **flags) as (app, pilot):
        app.client.start = opened(app).append  # type: ignore[method-assign, assignment]
        await pilot.press("escape", "M")
        await settled(pilot, app)
        screen = app.screen
        assert isinstance(screen, ModelsScreen)
        yield app, pilot, screen


def opened(app: T2IApp) -> list[OpenModel]:
    """What the engine was told to open."""
    found: list[OpenModel] = app.__dict__.setdefault("_opened", [])
    return found


def engine_opens(app: T2IApp, name: str, *options: Option) -> None:
    """What the engine says when it has opened a model."""
    content = ModelOpened(name, Defaults(4, 64, 64, None, "fp32"), options)
    app.post_message(Received(None, content))  # type: ignore[arg-type]


async def press(app: T2IApp, pilot: Pilot[None], *keys: str) -> None:
    await pilot.press(*keys)
    await settled(pilot, app)


async def paste(app: T2IApp, pilot: Pilot[None], text: str) -> None:
    app.post_message(events.Paste(text))
    await pilot.pause()


async def choose(app: T2IApp, pilot: Pilot[None], screen: ModelsScreen, name: str) -> None:
    """Go to a model with the arrows."""
    place = [listing.name for listing in screen._listings].index(name)
    await press(app, pilot, "home", *["down"] * place)
    assert screen.selected is not None
    assert screen.selected.name == name


def row(app: T2IApp, name: str) -> str:
    """A model's line in the list."""
    lines = [line.strip("\u2502| ") for line in screen_text(app).splitlines()]
    return next(line for line in lines if name in line.split()[1:2])


def asks_place(app: T2IApp) -> bool:
    return isinstance(app.screen, AskPlace)


def details(app: T2IApp) -> str:
    return str(app.screen.query_one("#text", Static).visual)


def told(app: T2IApp, *words: str) -> bool:
    """Whether a sentence with all of these words was said."""
    return any(all(word.lower() in note.lower() for word in words) for note in notes(app))


# The list.


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_every_model_is_listed_with_what_is_known_of_it(size: tuple[int, int], tiny: Path) -> None:
    inventory.add(tiny, "mine")

    async def test() -> None:
        async with models(size) as (app, pilot, screen):
            for name, *words in (
                ("demo", "chosen", "12 MiB", "bf16", "diffusers"),
                ("flux.1-dev", "not here", "dev", "31.4 GiB", "bf16"),
                ("mine", "here", "dev", "fp32", "diffusers"),
                ("distillt5", "not here", "text encoder"),
                ("tokenizers", "not here"),
            ):
                assert all(word in row(app, name) for word in words), row(app, name)
            await choose(app, pilot, screen, "mine")
            text = screen_text(app)
            for words_of_parts in ("autoencoder", "CLIP-L", "T5-XXL", "fp32", "licence"):
                assert words_of_parts in details(app)
            assert "mine: here, dev" in text
            assert "Enter opens it" in text
            lines = text.splitlines()
            assert lines[-1].startswith(" Esc Back  Enter Open  a Add  s Scan  p Pull  d Remove  F1 Help")
            assert all(len(line) <= size[0] for line in lines)
            await choose(app, pilot, screen, "flux.1-dev")
            assert "Non-Commercial License" in details(app)
            assert "p brings it from the hub" in screen_text(app)

    run(test())


def test_the_palette_has_the_models_and_among_them_what_can_be_done() -> None:
    async def test() -> None:
        async with models() as (app, _pilot, _screen):
            assert "Models" in [command.title for command in app.get_system_commands(app.screen_stack[0])]
            titles = [command.title for command in app.get_system_commands(app.screen)]
            assert {"Open", "Add", "Scan", "Pull", "Remove", "Stop", "Back"} <= set(titles)

    run(test())


def test_the_details_scroll_and_the_list_stays() -> None:
    async def test() -> None:
        async with models((60, 16)) as (app, pilot, screen):
            assert "Tab reads on" in screen_text(app)
            await press(app, pilot, "tab", "down", "down")
            assert screen.query_one("#about", VerticalScroll).scroll_y == 2
            assert screen.selected is not None
            assert screen.selected.name == "demo"
            await press(app, pilot, "escape")
            assert isinstance(app.screen, MainScreen)

    run(test())


def test_a_long_place_is_folded_to_the_room_that_a_scroll_bar_leaves(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("a-folder-with-a-long-name-" * 4)
    shutil.copytree(tiny, folder)
    inventory.add(folder, "mine")

    async def test() -> None:
        async with models() as (app, pilot, screen):
            await choose(app, pilot, screen, "mine")
            pane, text = screen.query_one("#about", VerticalScroll), screen.query_one("#text", Static)
            assert pane.max_scroll_y > 0
            assert max(map(len, details(app).splitlines())) == text.size.width
            assert len(details(app).splitlines()) == text.size.height

    run(test())


def test_the_screen_survives_every_size_of_the_window() -> None:
    async def test() -> None:
        async with models() as (app, pilot, screen):
            for size in SIZES:
                await pilot.resize_terminal(*size)
                await settled(pilot, app)
                await pilot.press("down")
            assert screen.query_one("#list", OptionList).option_count == 5
            assert "flux.1-schnell" in screen_text(app)

    run(test())


def test_ascii_means_ascii(tiny: Path) -> None:
    inventory.add(tiny, "mine")

    async def test() -> None:
        async with models(ascii=True) as (app, pilot, _):
            assert screen_text(app).isascii()
            await press(app, pilot, "a")
            assert screen_text(app).isascii()

    run(test())


def test_a_list_that_is_damaged_is_said_and_what_comes_along_is_listed() -> None:
    state_dir().mkdir()
    (state_dir() / registry.FILE).write_text("{")

    async def test() -> None:
        async with models() as (app, pilot, screen):
            screen.refresh_list()
            await settled(pilot, app)
            assert len([note for note in notes(app) if "the list of your models, is damaged" in note]) == 1
            assert "demo" in screen_text(app)

    run(test())


def test_what_files_say_is_never_markup() -> None:
    evil = "[red]x[/] [/b] \x1b[2J"
    known = registry.read().with_model(registry.Registered(evil, Path("/nowhere/[@click=app.quit]x[/]")))
    registry.write(known)

    async def test() -> None:
        async with models() as (app, pilot, screen):
            await choose(app, pilot, screen, evil)
            text = screen_text(app)
            assert "[red]x[/] [/b]" in text
            assert "\x1b" not in text
            assert "broken" in text
            assert "[@click=app.quit]" in details(app).replace("\n", "")
            await press(app, pilot, "enter")
            await press(app, pilot, "d")
            assert "[red]x[/] [/b]" in screen_text(app)
            assert app.is_running

    run(test())


def test_a_list_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[inventory.Listing]:
        raise OSError("the disk is gone")

    monkeypatch.setattr(inventory, "listed", broken)

    async def test() -> None:
        async with models() as (app, pilot, _):
            assert "the disk is gone" in screen_text(app)
            await press(app, pilot, "enter", "p", "d")
            assert app.is_running

    run(test())


# To open one.


def test_enter_opens_a_model_and_prompt_and_queue_stay(tiny: Path) -> None:
    inventory.add(tiny, "mine")

    async def test() -> None:
        async with models() as (app, pilot, screen):
            del app.client.start  # the engine is the real one from now on
            app.main.prompt.put("a red circle")
            app.session.paused = True
            app.session.enqueue("a blue square")
            await choose(app, pilot, screen, "mine")
            await press(app, pilot, "enter")
            await until(pilot, lambda: app.session.engine_state == "ready")
            assert isinstance(app.screen, MainScreen)
            assert app.session.opened == app.session.model == "mine"
            assert app.main.prompt.text == "a red circle"
            assert [job.model for job in app.session.queue] == ["demo"]
            assert told(app, "1 waiting picture", "the model")
            assert screen_text(app).splitlines()[0].startswith(" mine ")
            assert "distill" not in [option.name for option in app.session.parameters.options]
            await pilot.press("M")
            await settled(pilot, app)
            assert row(app, "mine").startswith("\u25b6 mine")
        async with running(engine=False) as (app, _):
            assert app.session.model == "mine", "at the next start"

    run(test())


def test_a_model_that_cannot_be_run_is_refused_with_its_sentence(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "gone")
    inventory.add(tmp_path / "gone", "mine")
    shutil.rmtree(tmp_path / "gone" / "vae")

    async def test() -> None:
        async with models() as (app, pilot, screen):
            await choose(app, pilot, screen, "mine")
            assert "broken" in row(app, "mine")
            assert "vae" in details(app)
            await press(app, pilot, "enter")
            assert app.screen is screen
            assert told(app, "vae")
            await choose(app, pilot, screen, "flux.1-dev")
            await press(app, pilot, "enter")
            assert told(app, "flux.1-dev is not here", "p brings it")
            await choose(app, pilot, screen, "tokenizers")
            await press(app, pilot, "o")
            assert told(app, "tokenizers is no model by itself")
            assert not opened(app)
            assert app.session.model == "demo"

    run(test())


def test_a_simulated_model_needs_no_weights() -> None:
    async def test() -> None:
        async with models(simulate=True) as (app, pilot, screen):
            await choose(app, pilot, screen, "flux.1-dev")
            await press(app, pilot, "enter")
            assert [(opening.model, opening.simulate) for opening in opened(app)] == [("flux.1-dev", True)]
            assert isinstance(app.screen, MainScreen)

    run(test())


def test_a_model_that_is_chosen_while_a_picture_is_made_comes_next(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory.add(tiny, "mine")
    saved = ImageSaved(
        image=0,
        elapsed_seconds=1,
        memory=MemoryUse(1),
        path=tmp_path / "x.png",
        seed=1,
        width=64,
        height=64,
        seconds_by_phase={"denoise": 1.0},
    )

    async def test() -> None:
        async with models() as (app, pilot, screen):
            session = app.session
            engine_opens(app, "demo", Option("steps", 4, 1, 50, 1))
            await pilot.pause()
            session.enqueue("a red circle")
            session.enqueue("a blue square")
            assert session.begin_next() is not None
            app.client.paint = lambda job: None  # type: ignore[method-assign]
            monkeypatch.setattr(type(app.client), "pid", 1)
            monkeypatch.setattr(app.client, "has_open", lambda opening: opening.model == session.opening)
            await choose(app, pilot, screen, "mine")
            await press(app, pilot, "enter")
            assert told(app, "mine comes next")
            assert not opened(app)
            assert session.model == "mine"
            await engine_says(app, pilot, saved)
            assert session.running is not None, "the one that waited is painted by its own model"
            assert session.running.model == "demo"
            await pilot.press("escape", "M")
            await settled(pilot, app)
            assert "chosen" in row(app, "mine")
            await engine_says(app, pilot, saved)
            assert [opening.model for opening in opened(app)] == ["mine"]
            engine_opens(app, "mine", Option("steps", 8, 1, 50, 1))
            await settled(pilot, app)
            assert session.parameters.value("steps") == 8
            assert row(app, "mine").startswith("▶ mine")

    run(test())


def test_an_engine_that_opens_what_waits_does_not_change_what_was_chosen() -> None:
    async def test() -> None:
        async with models() as (app, pilot, _):
            session = app.session
            engine_opens(app, "demo", Option("steps", 4, 1, 50, 1))
            await pilot.pause()
            session.starts("other")  # for a job
            engine_opens(app, "other", Option("steps", 28, 1, 50, 1))
            await pilot.pause()
            assert (session.model, session.opened) == ("demo", "other")
            assert session.parameters.value("steps") == 4
            app.post_message(Received(None, ModelRefused("no.")))  # type: ignore[arg-type]
            await pilot.pause()
            assert session.opened == ""

    run(test())


# To add some.


def test_a_folder_is_added_and_is_chosen_in_the_list(tiny: Path) -> None:
    async def test() -> None:
        async with models() as (app, pilot, screen):
            await press(app, pilot, "a")
            assert isinstance(app.screen, AskPlace)
            await paste(app, pilot, f"  {tiny} ")
            await press(app, pilot, "enter")
            await settled(pilot, app)
            assert screen.selected is not None
            assert screen.selected.name == "tiny"
            assert "here" in row(app, "tiny")
            assert told(app, "tiny is in the list")

    run(test())


def test_a_part_by_itself_is_listed_and_forgotten_again(tmp_path: Path) -> None:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    file = save(ldm_state(vae), tmp_path / "ae.safetensors")

    async def test() -> None:
        async with models() as (app, pilot, screen):
            await press(app, pilot, "a")
            await paste(app, pilot, str(file))
            await press(app, pilot, "enter")
            await settled(pilot, app)
            assert screen.selected is not None
            assert screen.selected.name == str(file)
            assert all(word in row(app, file.name) for word in ("here", "autoencoder"))
            await press(app, pilot, "enter")
            assert told(app, f"{file.name} is no model by itself")
            await press(app, pilot, "d", "y")
            await settled(pilot, app)
            assert str(file) not in [listing.name for listing in screen._listings]
        assert file.is_file()

    run(test())


def test_a_place_that_is_wrong_is_said_where_it_was_typed(tmp_path: Path) -> None:
    letter = tmp_path / "letter.safetensors"
    letter.write_text("this is no file of weights")

    async def test() -> None:
        async with models() as (app, pilot, screen):
            await press(app, pilot, "a", "enter")
            assert "Type where it lies." in screen_text(app)
            for text in (str(tmp_path / "gone"), "x" * 5000, "~nobody-of-this-name/x"):
                app.screen.query_one(Field).value = text
                await press(app, pilot, "enter")
                assert asks_place(app)
            app.screen.query_one(Field).value = str(tmp_path / "gone")
            await press(app, pilot, "enter")
            assert "There is nothing at" in screen_text(app)
            app.screen.query_one(Field).value = str(letter)
            await pilot.pause()
            assert "There is nothing at" not in screen_text(app)
            await press(app, pilot, "enter")
            await settled(pilot, app)
            assert asks_place(app), "it can be mended"
            problem = str(app.screen.query_one("#problem", Static).visual)
            assert "letter.safetensors" in problem
            await press(app, pilot, "escape")
            assert app.screen is screen
            assert not registry.read().models

    run(test())


def test_a_path_is_completed(tmp_path: Path) -> None:
    for name in ("models", "modern", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.safetensors").touch()
    (tmp_path / "bad\x1b").touch()
    assert completed(f"{tmp_path}/mo", folders_only=False) == f"{tmp_path}/models/"
    assert completed(f"{tmp_path}/mi", folders_only=False) == f"{tmp_path}/mine.safetensors"
    assert completed(f"{tmp_path}/mi", folders_only=True) is None
    assert completed(f"{tmp_path}/.h", folders_only=True) == f"{tmp_path}/.hidden/"
    assert completed(f"{tmp_path}/bad", folders_only=False) is None
    for text in ("", "x", "/nowhere/at/all", "\0/x"):
        assert completed(text, folders_only=False) is None

    async def test() -> None:
        async with models() as (app, pilot, _):
            await press(app, pilot, "a")
            await paste(app, pilot, f"{tmp_path}/mo")
            field = app.screen.query_one(Field)
            await until(pilot, lambda: field._suggestion)
            await press(app, pilot, "right")
            assert field.value == f"{tmp_path}/models/"

    run(test())


# To look for some.


def test_a_search_finds_models_and_says_what_cannot_be_used(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "there" / "deep" / "tiny")
    (tmp_path / "there" / "broken.safetensors").write_bytes((99).to_bytes(8, "little") + b"{")

    async def test() -> None:
        async with models() as (app, pilot, screen):
            await press(app, pilot, "s")
            await paste(app, pilot, str(tmp_path / "there" / "broken.safetensors"))
            await press(app, pilot, "enter")
            assert "is a file; give a folder" in screen_text(app).replace("\n", " ")
            app.screen.query_one(Field).value = str(tmp_path / "there")
            await press(app, pilot, "enter")
            await until(pilot, lambda: app.shared.library.scan is None)
            await settled(pilot, app)
            assert told(app, "1 new model: tiny", "1 that cannot be used")
            assert isinstance(app.screen, ReadText)
            assert "not usable" in screen_text(app)
            await press(app, pilot, "escape")
            assert "here" in row(app, "tiny")
            await choose(app, pilot, screen, "tiny")

    run(test())


def test_a_search_tells_how_far_it_is_goes_on_in_the_background_and_can_be_stopped(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        (tmp_path / "there" / str(number)).mkdir(parents=True)
    shutil.copytree(tiny, tmp_path / "there" / "tiny")
    may_go_on, places_in = threading.Event(), pairing.places_in

    def slow(folder: Path) -> Any:
        may_go_on.wait(0.1)
        return places_in(folder)

    monkeypatch.setattr(pairing, "places_in", slow)

    async def test() -> None:
        async with models() as (app, pilot, _):
            await pilot.press("s")
            await paste(app, pilot, str(tmp_path / "there"))
            await pilot.press("enter")
            await until(
                pilot, lambda: app.shared.library.scan is not None and app.shared.library.scan.found is not None
            )
            assert "folder" in screen_text(app).splitlines()[-2]
            assert "x Stop" in screen_text(app).splitlines()[-1]
            await pilot.press("s")
            assert told(app, "one search at a time")
            await pilot.press("escape")
            await until(pilot, lambda: " scan  " in screen_text(app))
            assert isinstance(app.screen, MainScreen)
            await pilot.press("M", "x")
            await until(pilot, lambda: app.shared.library.scan is None)
            await settled(pilot, app)
            assert told(app, "was stopped; nothing was added")
            assert "F1 Help" in screen_text(app).splitlines()[-1]
            assert " scan  " not in screen_text(app)
            await pilot.press("x")
            assert told(app, "Nothing is being looked for")
        assert not registry.read().models

    run(test())


# To pull one.


def test_a_pull_begins_when_its_licence_is_accepted(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    may_answer, prepare = threading.Event(), hub.prepare

    def slow(name: str) -> hub.Prepared:
        may_answer.wait(20)
        return prepare(name)

    monkeypatch.setattr(hub, "prepare", slow)

    async def test() -> None:
        async with models() as (app, pilot, screen):
            await choose(app, pilot, screen, "distillt5")
            await pilot.press("p")
            window = pull_window(app)
            await pilot.press("y")
            assert app.screen is window, "not before it is known how much is to come"
            assert "Ask [b]its[/b] authors." in screen_text(app)
            may_answer.set()
            await until(pilot, lambda: window._prepared is not None)
            text = screen_text(app)
            assert "Ask [b]its[/b] authors." in text
            assert "come from the hub into" in text
            assert "y  accept the licence and pull" in text
            await pilot.press("enter")
            assert app.screen is window, "a licence is accepted by y alone"
            await pilot.press("n")
            assert app.screen_stack[-1] is screen
            assert app.shared.library.pull is None
            assert not server.asked_for(WEIGHTS)
            await pilot.press("p")
            again = pull_window(app)
            await until(pilot, lambda: again._prepared is not None)
            await pilot.press("y")
            await until(pilot, lambda: app.shared.library.pull is None)
            await settled(pilot, app)
            assert told(app, "distillt5 is here.")
            assert "here" in row(app, "distillt5")
            assert "not here" not in row(app, "distillt5")
            await press(app, pilot, "p")
            assert told(app, "nothing to pull")

    run(test())


def test_a_pull_is_counted_by_the_byte_seen_from_the_main_screen_and_taken_up_again(server: Hub) -> None:
    held = threading.Event()
    server.held, server.cuts = held, [100_000]

    async def test() -> None:
        async with models() as (app, pilot, screen):
            app.shared.library._seconds = 0.0
            await choose(app, pilot, screen, "distillt5")
            await accept(app, pilot)
            here = len(FILES["config.json"]) + 100_000
            await until(pilot, lambda: bytes_here(app) == here)
            await pilot.press("escape")
            await pilot.pause()
            assert isinstance(app.screen, MainScreen)
            line = next(line for line in screen_text(app).splitlines() if "pull distillt5" in line)
            assert f"{100 * here // TOTAL} %" in line
            assert "98 of 222 KiB" in line
            await press(app, pilot, "M")
            again = app.screen_stack[-1]
            assert isinstance(again, ModelsScreen)
            assert row(app, "distillt5").startswith("◐ distillt5")
            await choose(app, pilot, again, "distillt5")
            assert "x stops the pull" in screen_text(app)
            await press(app, pilot, "p", "d")
            assert told(app, "one at a time")
            assert told(app, "is being pulled; stop that first")
            await pilot.press("x")
            assert app.shared.library.pull is not None
            assert "stopping" in str(app.shared.library.pull)
            await until(pilot, lambda: app.shared.library.pull is None)
            held.set()
            await settled(pilot, app)
            assert told(app, "The pull of distillt5 was stopped at 98 of 222 KiB", "kept for the next one")
            assert "incomplete" in row(app, "distillt5")
            await accept(app, pilot)
            await until(pilot, lambda: app.shared.library.pull is None)
            assert told(app, "distillt5 is here.")
            assert server.asked_for(f"storage/{WEIGHTS}")[-1]["range"] == "bytes=100000-"

    async def accept(app: T2IApp, pilot: Pilot[None]) -> None:
        await pilot.press("p")
        window = pull_window(app)
        await until(pilot, lambda: window._prepared is not None)
        await pilot.press("y")

    run(test())


def pull_window(app: T2IApp) -> PullWindow:
    screen = app.screen
    assert isinstance(screen, PullWindow)
    return screen


def bytes_here(app: T2IApp) -> int:
    pull = app.shared.library.pull
    return pull.progress.done_bytes if pull is not None and pull.progress is not None else -1


def test_what_the_hub_refuses_is_explained_and_nothing_begins(server: Hub) -> None:
    server.missing = True

    async def test() -> None:
        async with models() as (app, pilot, screen):
            await choose(app, pilot, screen, "distillt5")
            await pilot.press("p")
            await until(pilot, lambda: "Esc  back" in screen_text(app))
            assert "the hub has no" in screen_text(app).lower()
            await pilot.press("y")
            assert isinstance(app.screen, PullWindow)
            await pilot.press("escape")
            assert app.shared.library.pull is None

    run(test())


def test_a_pull_that_fails_is_said(server: Hub) -> None:
    server.sent = lambda data: data[:-1] + b"\xff" if data[-1:] != b"\xff" else data[:-1] + b"\0"

    async def test() -> None:
        async with models() as (app, pilot, screen):
            await choose(app, pilot, screen, "distillt5")
            await pilot.press("p")
            window = pull_window(app)
            await until(pilot, lambda: window._prepared is not None)
            await pilot.press("y")
            await until(pilot, lambda: app.shared.library.pull is None)
            await settled(pilot, app)
            assert told(app, WEIGHTS), notes(app)
            assert "incomplete" in row(app, "distillt5")

    run(test())


def test_leaving_the_app_waits_for_no_pull(server: Hub) -> None:
    held = threading.Event()
    server.held, server.cuts = held, [100_000]

    async def test() -> None:
        async with models() as (app, pilot, screen):
            await choose(app, pilot, screen, "distillt5")
            await pilot.press("p")
            window = pull_window(app)
            await until(pilot, lambda: window._prepared is not None)
            await pilot.press("y")
            await until(pilot, lambda: bytes_here(app) >= 0)
            await pilot.press("ctrl+q")
        held.set()

    run(test())


# To remove one.


def test_what_is_taken_off_the_list_stays_on_the_disk(tiny: Path) -> None:
    inventory.add(tiny, "mine")

    async def test() -> None:
        async with models() as (app, pilot, screen):
            await choose(app, pilot, screen, "mine")
            await press(app, pilot, "d")
            assert isinstance(app.screen, RemoveWindow)
            assert "Its files are yours and stay" in screen_text(app)
            await press(app, pilot, "n")
            assert "mine" in registry.read().models
            await press(app, pilot, "d", "f")
            await settled(pilot, app)
            assert "mine" not in registry.read().models
            assert "mine" not in [listing.name for listing in screen._listings]
            assert told(app, "mine is forgotten", "yours")
            assert screen.selected is not None

    run(test())
    assert (tiny / "model_index.json").is_file()


def test_what_was_pulled_is_deleted_after_asking(server: Hub, tmp_path: Path) -> None:
    prepared = hub.prepare("distillt5")
    steps = hub.pull(prepared)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        inventory.pulled("distillt5", end.value)
    assert hub.found_in_cache("distillt5")

    async def test() -> None:
        async with models() as (app, pilot, screen):
            await choose(app, pilot, screen, "distillt5")
            await press(app, pilot, "d")
            assert "It was pulled. This goes:" in screen_text(app)
            await press(app, pilot, "f")
            assert isinstance(app.screen, RemoveWindow), "there is nothing else to be deleted"
            await press(app, pilot, "y")
            await settled(pilot, app)
            assert told(app, "distillt5 is deleted", "free again")
            assert "not here" in row(app, "distillt5")

    run(test())
    assert hub.found_in_cache("distillt5") is None


def test_what_cannot_be_removed_is_explained(tiny: Path) -> None:
    inventory.add(tiny, "mine")

    async def test() -> None:
        async with models() as (app, pilot, screen):
            await press(app, pilot, "d")
            assert told(app, "part of the program; it stays")
            await choose(app, pilot, screen, "flux.1-schnell")
            await press(app, pilot, "d")
            assert told(app, "flux.1-schnell is not here")
            engine_opens(app, "mine")
            await pilot.pause()
            await choose(app, pilot, screen, "mine")
            await press(app, pilot, "d")
            assert told(app, "mine is open; open another one")
            assert app.screen is screen

    run(test())


# In words.


def test_a_state_is_told_by_a_word_and_by_a_mark_of_its_own() -> None:
    def state(listing: inventory.Listing = LISTING, *, opened: str = "", chosen: str = "", pulling: str = "") -> str:
        return state_of(listing, opened=opened, chosen=chosen, pulling=pulling)

    gone = replace(LISTING, here=False, parts=(), warning="")
    assert state() == "here"
    assert state(opened="mine") == state(opened="/models/a") == "open"
    assert state(chosen="mine") == "chosen"
    assert state(gone, chosen="mine") == "not here"
    assert state(gone, pulling="mine") == "pulling"
    assert state(replace(gone, pulled=True)) == state(replace(LISTING, here=False)) == "incomplete"
    assert state(replace(gone, warning="it is damaged.")) == "broken"


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", [20, 60, 76, 118, 200])
def test_rows_fit_every_width(width: int, ascii_only: bool) -> None:
    listings = [
        replace(LISTING, name="x" * 90),
        replace(LISTING, name="漢字" * 20, here=False, missing=("T5-XXL", "tokenizers")),
        replace(LISTING, precision="fp8 e4m3, scaled by row"),
    ]
    heading, texts = rows(listings, ["here", "incomplete", "open"], width, ascii_only=ascii_only)
    from rich.cells import cell_len

    assert all(cell_len(line) <= width for line in (heading, *texts))
    if width >= 200:
        assert texts[1].endswith("lacks T5-XXL, tokenizers")
        assert "fp8 e4m3, scaled" in texts[2]
    assert rows([], [], width, ascii_only=ascii_only)[1] == []


def test_the_details_name_every_place_in_full_at_any_width() -> None:
    far = replace(
        PART, title="T5-XXL", place="/mnt/" + "models/" * 12 + "t5xxl_fp8_e4m3fn.safetensors", note="as you said"
    )
    listing = replace(LISTING, parts=(PART, far, replace(PART, place="", title="CLIP-L")), missing=("CLIP-L",))
    for width in (20, 40, 76, 116, 200):
        text = about(listing, width)
        assert max(map(len, text.splitlines())) <= max(width, 60)
        joined = "".join(line.strip() for line in text.splitlines())
        assert far.place in joined
        assert "as you said" in " ".join(text.split())
        assert "missing" in text
    assert "transformer\n" in about(listing, 116) + "\n"  # as seen from the model's folder


def test_texts_are_folded_by_cells() -> None:
    assert fold("", 10) == [""]
    assert fold("one two three", 7) == ["one two", "three"]
    assert fold("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert fold("漢字漢字", 4) == ["漢字", "漢字"]


def test_how_far_something_is_in_words(tmp_path: Path) -> None:
    assert str(Pull("x")) == "beginning ..."
    progress = transfer.PullProgress(3 * GIB, 12 * GIB, 100 * 2**20, 92.16, "a")
    assert str(Pull("x", progress)) == "3.0 of 12.0 GiB  100 MiB/s, 1:32 left"
    assert str(Pull("x", replace(progress, seconds_left=None))) == "3.0 of 12.0 GiB  nothing arrives"
    assert Pull("x", progress).fraction == 0.25
    found = inventory.Scanned((LISTING,), (), (PART, PART), (), 1, 20)
    assert str(Scan(tmp_path)) == "beginning ..."
    assert str(Scan(Path("/a"), found)) == "1 folder, 20 files: 1 model, 2 parts  in '/a'"
    assert str(Scan(tmp_path, found, stopping=True)) == "stopping ..."
