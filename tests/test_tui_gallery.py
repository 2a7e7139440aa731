"""The gallery, the full-screen view and the comparison, by keys, on folders with good, broken and hostile pictures."""

from __future__ import annotations

import os
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Static

from engine import folders
from engine.events import Preview
from engine.images.metadata import RECORD_KEY, Record, encode_png, read_record
from engine.images.texts import PNG_SIGNATURE
from engine.request import Option, Request
from tests.apps import notes, run, running, screen_text, settled, until
from tui.app import T2IApp
from tui.history import History
from tui.jobs import Job
from tui.screens import gallery as gallery_module
from tui.screens.compare import Compare, differences, words_apart
from tui.screens.dialogs import ReadText
from tui.screens.gallery import Gallery, pictures_in
from tui.screens.main import MainScreen
from tui.screens.viewer import Viewer
from tui.widgets.grid import PictureFile, PictureGrid
from tui.widgets.picture import PictureView

REQUEST = Request("a red circle", steps=4, seed=7, width=64, height=64, guidance=3.5, precision="fp32")
RECORD = Record(REQUEST, "demo", "", {"engine": "0.1.0"}, {"denoise": 1.0}, "cpu", {"threads": 1})
OPTIONS = (
    Option("steps", 4, 1, 50, 1),
    Option("width", 128, 64, 256, 16),
    Option("height", 128, 64, 256, 16),
    Option("guidance", 3.5, 0, 10),
    Option("precision", "fp32", choices=("fp32", "bf16")),
)
SIZES = ((1, 1), (80, 1), (1, 24), (17, 9), (300, 100), (80, 24))


def save(name: str, prompt: str = REQUEST.prompt, *, modified: float | None = None, **changes: Any) -> Path:
    """A small picture with a record, in the output folder."""
    folder = folders.default_output_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    record = replace(RECORD, request=replace(REQUEST, prompt=prompt, **changes))
    path.write_bytes(encode_png(Image.new("RGB", (64, 64), (200, 30, 30)), record))
    if modified is not None:
        os.utime(path, (modified, modified))
    return path


def save_evening() -> list[Path]:
    """Six numbered pictures, the newest first; each with a seed and a prompt of its own."""
    prompts = ("a red circle", "a blue circle", "a blue square", "Straße im Regen", "a green heart", "a small star")
    return [save(f"{n:06d}_seed{n}.png", prompt, seed=n) for n, prompt in enumerate(prompts, 1)][::-1]


async def open_gallery(app: T2IApp, pilot: Pilot[None]) -> Gallery:
    """From the prompt to the gallery, by keys; returns it when everything in sight is loaded."""
    await pilot.press("escape", "l")
    await settled(pilot, app)
    screen = app.screen
    assert isinstance(screen, Gallery)
    return screen


async def press(app: T2IApp, pilot: Pilot[None], *keys: str) -> None:
    await pilot.press(*keys)
    await settled(pilot, app)


def selected(app: T2IApp) -> str:
    """The name of the picture that keys work on."""
    screen = app.screen
    assert isinstance(screen, Gallery | Viewer | Compare)
    path = screen.selected_path()
    return "" if path is None else path.name


def on(app: T2IApp, kind: type[Screen[Any]]) -> bool:
    """Whether this kind of screen is on top."""
    return isinstance(app.screen, kind)


def side_by_side(app: T2IApp) -> bool:
    """Whether the comparison shows two pictures."""
    screen = app.screen
    assert isinstance(screen, Compare)
    return screen.side_by_side


def shown(app: T2IApp) -> list[str]:
    """The names of the pictures in the gallery, in its order."""
    screen = app.screen
    assert isinstance(screen, Gallery)
    return [file.path.name for file in screen.grid._files]


def count_calls(monkeypatch: pytest.MonkeyPatch, app: T2IApp) -> list[Path]:
    """The paths that thumbnails are asked for from now on."""
    asked: list[Path] = []
    get = app.shared.thumbnails.get

    def counted(path: Path, columns: int, rows: int) -> Preview | None:
        asked.append(path)
        return get(path, columns, rows)

    monkeypatch.setattr(app.shared.thumbnails, "get", counted)
    return asked


# The folder.


def test_pictures_are_listed_newest_first_by_number_and_else_by_time() -> None:
    save("000002_seed1.png", modified=1000)  # a clock that was wrong: the number counts
    save("000001_seed1.png", modified=3000)
    save("000010_seed1_x.PNG", modified=5000)
    save("favourite.png", modified=4000)
    save("from elsewhere.png", modified=6000)
    save("oldest.png", modified=1)
    save(".hidden.png")
    folder = folders.default_output_dir()
    (folder / ".trash").mkdir()
    (folder / "notes.txt").write_text("x")
    (folder / "folder.png").mkdir()
    (folder / "folder.png" / "inner.png").write_bytes(b"")
    (folder / "nowhere.png").symlink_to(folder / "gone")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")  # whoever opens it waits for ever
    names = [file.path.name for file in pictures_in(folder)]
    assert names == [
        "from elsewhere.png",
        "000010_seed1_x.PNG",
        "favourite.png",
        "000002_seed1.png",
        "000001_seed1.png",
        "oldest.png",
    ]


def test_the_gallery_shows_thumbnails_captions_and_the_selected_one() -> None:
    paths = save_evening()

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            screen = await open_gallery(app, pilot)
            assert screen.selected_path() == paths[0]
            assert shown(app) == [path.name for path in paths]
            lines = screen_text(app).splitlines()
            assert lines[0].split() == ["6", "pictures", *str(folders.default_output_dir()).split()]
            assert lines[1].split() == ["▀" * 16] * 4
            assert lines[9].split()[:3] == ["▶a", "small", "star"]
            assert lines[9].count("▶") == 1
            assert "a green heart" in lines[9]
            made = time.strftime("%Y-%m-%d %H:%M", time.localtime(paths[0].stat().st_mtime)).split()
            assert lines[-2].split() == ["1/6", *made, "a", "small", "star", paths[0].name]
            assert "Esc Back" in lines[-1]

    run(test())


def test_a_folder_that_is_missing_empty_or_no_folder_is_one_sentence(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            (tmp_path / "file").write_text("x")
            (tmp_path / "empty").mkdir()
            for name, sentence in (
                ("[b]gone[/b]", "There is no folder '"),
                ("file", "cannot be read (not a directory)"),
                ("empty", "There are no pictures in '"),
                ("nul\0", "cannot be read"),
                ("long" * 100, "cannot be read"),
            ):
                app.push_screen(Gallery(app.shared, tmp_path / name))
                await settled(pilot, app)
                assert selected(app) == ""
                middle = " ".join(screen_text(app).split())
                assert sentence in middle
                assert "[b]gone[/b]" in middle or name != "[b]gone[/b]"
                await press(app, pilot, *("enter", "down", "end", "pageup", "f", "d", "i", "r", "c", "asterisk", "y"))
                assert on(app, Gallery)
                assert notes(app)[-1] == "There is no picture here yet."
                app.clear_notifications()
                await press(app, pilot, "escape")
                assert on(app, MainScreen)

    run(test())


def test_a_folder_that_may_not_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> list[PictureFile]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(gallery_module, "pictures_in", refuse)

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await open_gallery(app, pilot)
            text = " ".join(screen_text(app).split())
            assert "cannot be read (permission denied); O on the main screen chooses another folder." in text

    run(test())


def test_a_new_picture_is_noticed_and_the_selection_stays_on_its_picture() -> None:
    paths = save_evening()

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            screen = await open_gallery(app, pilot)
            await pilot.press("right")
            assert selected(app) == paths[1].name
            save("000007_seed7.png", "just made", seed=7)
            screen.refresh_folder()
            await settled(pilot, app)
            assert shown(app)[:2] == ["000007_seed7.png", paths[0].name]
            assert selected(app) == paths[1].name
            assert "just made" in screen_text(app)
            paths[1].unlink()
            screen.refresh_folder()
            await settled(pilot, app)
            assert selected(app) == paths[2].name  # the one that took its place

    run(test())


def test_a_listing_that_comes_late_does_not_bring_the_past_back(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = save_evening()
    going_on = threading.Event()
    listings: list[list[PictureFile]] = []

    def list_slowly(folder: Path) -> list[PictureFile]:
        files = pictures_in(folder)
        listings.append(files)
        assert len(listings) > 1 or going_on.wait(60)
        return files

    monkeypatch.setattr(gallery_module, "pictures_in", list_slowly)

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await pilot.press("escape", "l")
            await until(pilot, lambda: listings)
            paths[0].unlink()
            screen = app.screen
            assert isinstance(screen, Gallery)
            screen.refresh_folder()
            await until(pilot, lambda: shown(app))
            going_on.set()
            await settled(pilot, app)
            assert shown(app) == [path.name for path in paths[1:]]

    run(test())


def test_a_picture_that_was_replaced_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    save("x.png", "before", modified=1000)

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            screen = await open_gallery(app, pilot)
            assert "▶before" in screen_text(app)
            asked = count_calls(monkeypatch, app)
            path = save("x.png", "after", modified=2000)
            screen.refresh_folder()
            await settled(pilot, app)
            assert asked == [path]
            assert "▶after" in screen_text(app)

    run(test())


def test_of_two_thousand_pictures_only_those_in_sight_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    data = save("000001_seed7.png").read_bytes()
    for number in range(2, 2001):
        (folders.default_output_dir() / f"{number:06d}_seed7.png").write_bytes(data)
    read: list[Path] = []

    def counted(path: Path) -> Record:
        read.append(path)
        return read_record(path)

    monkeypatch.setattr(gallery_module, "read_record", counted)

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            asked = count_calls(monkeypatch, app)
            await open_gallery(app, pilot)
            in_sight = 4 * 3  # the last row is cut off
            assert len(asked) == len(read) == in_sight
            await press(app, pilot, "end")
            assert selected(app) == "000001_seed7.png"
            assert "2000/2000" in screen_text(app)
            assert len(asked) == len(read) <= 2 * in_sight
            await press(app, pilot, "home", "pagedown")
            assert selected(app) == "001992_seed7.png"
            assert len(asked) == len(read) <= 3 * in_sight

    run(test())


def test_keys_work_while_a_thumbnail_hangs_and_what_came_too_late_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(1, 101):
        save(f"{number:06d}_seed7.png")
    going_on = threading.Event()
    asked: list[Path] = []

    async def test() -> None:
        async with running(engine=False) as (app, pilot):

            def hang(path: Path, columns: int, rows: int) -> Preview | None:
                asked.append(path)
                assert going_on.wait(60)
                return Preview(1, 1, b"\xff\0\0")

            monkeypatch.setattr(app.shared.thumbnails, "get", hang)
            await pilot.press("escape", "l")
            await until(pilot, lambda: asked)
            await pilot.press("end")
            assert selected(app) == "000001_seed7.png"
            await until(pilot, lambda: len(asked) == 2)
            going_on.set()
            await settled(pilot, app)
            numbers = [int(path.name[:6]) for path in asked]
            assert numbers[0] == 100
            assert max(numbers[1:]) <= 8  # nothing more of the first page
            assert screen_text(app).count("▀") == 16 * 8 * 8  # what was in sight at last, all of it

    run(test())


# Keys.


def test_arrows_pages_and_ends_move_the_selection_and_stop_at_the_edges() -> None:
    for number in range(1, 31):
        save(f"{number:06d}_seed7.png")

    async def test() -> None:
        async with running(engine=False) as (app, pilot):  # 4 columns, 2 whole rows
            screen = await open_gallery(app, pilot)
            for key, place in (
                *(("left", 0), ("up", 0), ("right", 1), ("down", 5), ("down", 9), ("up", 5), ("pagedown", 13)),
                *(("pageup", 5), ("end", 29), ("down", 29), ("right", 29), ("up", 25), ("home", 0), ("pageup", 0)),
                *(("end", 29), ("left", 28), ("up", 24), ("right", 25), ("right", 26), ("down", 29)),
            ):
                await press(app, pilot, key)
                assert (key, screen.grid.place) == (key, place)
                assert f"{place + 1}/30" in screen_text(app)
                assert screen_text(app).count("▶a red") == 1  # in sight

    run(test())


def test_a_terminal_that_grows_is_filled_with_pictures_from_the_end_of_the_list() -> None:
    for number in range(1, 31):
        save(f"{number:06d}_seed7.png")

    async def test() -> None:
        async with running((20, 13), engine=False) as (app, pilot):
            await open_gallery(app, pilot)
            await press(app, pilot, "end")
            assert screen_text(app).count("a red circle") == 1
            await pilot.resize_terminal(80, 24)
            await settled(pilot, app)
            assert (
                screen_text(app).count("a red circle") == 7
            )  # 30 are seven rows of four and two more; and the line of state

    run(test())


def test_the_mouse_selects_and_a_double_click_fills_the_terminal() -> None:
    paths = save_evening()

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await open_gallery(app, pilot)
            await pilot.click(PictureGrid, offset=(4 + 18 + 5, 5))
            assert selected(app) == paths[1].name
            await pilot.click(PictureGrid, offset=(1, 5))  # the margin
            await pilot.click(PictureGrid, offset=(4 + 3 * 18, 12))  # no picture there
            assert selected(app) == paths[1].name
            await pilot.click(PictureGrid, offset=(4 + 5, 12), times=2)
            assert on(app, Viewer)
            assert selected(app) == paths[4].name

    run(test())


def test_the_filter_finds_all_words_in_any_case_while_one_types() -> None:
    save_evening()

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            screen = await open_gallery(app, pilot)
            await press(app, pilot, "slash", "d", "asterisk", "q")  # commands elsewhere
            assert screen.filter.value == "d*q"
            assert shown(app) == []
            assert "No picture has these words in its prompt." in screen_text(app)
            for text, found in (
                ("circle BLUE", ["000002_seed2.png"]),
                ("strasse", ["000004_seed4.png"]),  # written with a sharp s
                ("  ", [f"00000{n}_seed{n}.png" for n in range(6, 0, -1)]),
                ("a b", ["000003_seed3.png", "000002_seed2.png"]),
            ):
                screen.filter.value = text
                await settled(pilot, app)
                assert shown(app) == found
            assert "2 of 6 pictures │ with 'a b'" in screen_text(app)
            await press(app, pilot, "enter")
            assert app.focused is screen.grid
            assert shown(app) == ["000003_seed3.png", "000002_seed2.png"]
            await press(app, pilot, "right", "slash", "escape")
            assert len(shown(app)) == 6
            assert selected(app) == "000002_seed2.png"
            assert on(app, Gallery)
            await press(app, pilot, "slash", "x", "down")
            assert app.focused is screen.grid
            await press(app, pilot, "escape")
            assert on(app, MainScreen)

    run(test())


def test_a_filter_reads_each_file_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 101):
        save(f"{number:06d}_seed7.png", f"prompt {number}")
    read: list[Path] = []

    def counted(path: Path) -> Record:
        read.append(path)
        return read_record(path)

    monkeypatch.setattr(gallery_module, "read_record", counted)
    monkeypatch.setattr(gallery_module, "BATCH_SECONDS", 0)

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            screen = await open_gallery(app, pilot)
            assert len(read) == 12
            await press(app, pilot, "slash", *"prompt 17")
            assert shown(app) == ["000017_seed7.png"]
            assert sorted(read) == sorted(set(read))
            assert len(read) == 100
            await press(app, pilot, "escape", "slash", "9")
            assert len(shown(app)) == 19
            assert len(read) == 100
            save("000101_seed7.png", "prompt 19, later")
            screen.refresh_folder()
            await settled(pilot, app)
            assert shown(app)[0] == "000101_seed7.png"
            assert len(read) == 101

    run(test())


def test_stars_are_given_shown_and_filtered_by() -> None:
    paths = save_evening()

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await open_gallery(app, pilot)
            await press(app, pilot, "asterisk")
            assert shown(app) == []
            sentence = "No picture here has a star: f gives one, * shows all pictures again."
            assert sentence in " ".join(screen_text(app).split())
            await press(app, pilot, "asterisk", "right", "f")
            assert app.session.history.favourites() == {paths[1]}
            assert "▶★ a green" in screen_text(app)
            await press(app, pilot, "end", "f", "asterisk")
            assert shown(app) == [paths[1].name, paths[5].name]
            assert "2 of 6 pictures │ with a star" in screen_text(app)
            await press(app, pilot, "slash", *"heart", "enter")
            assert shown(app) == [paths[1].name]
            await press(app, pilot, "f")
            assert shown(app) == []
            assert "words in its prompt and a star" in screen_text(app)
            assert app.session.history.favourites() == {paths[5]}

    run(test())


def test_a_star_from_the_main_screen_is_seen_in_the_gallery() -> None:
    path = save("000001_seed7.png")
    history = History.open(folders.state_dir())
    history.put(Job(REQUEST, "demo", "", state="done", path=path, seconds=1.0))
    history.close()

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await press(app, pilot, "escape", "f")
            await open_gallery(app, pilot)
            assert "▶★ a red" in screen_text(app)

    run(test())


def test_a_star_belongs_to_the_file_however_the_folder_is_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    path = save("000001_seed7.png")
    monkeypatch.chdir(path.parent.parent)

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            app.session.history.set_favourite(path, True)
            app.push_screen(Gallery(app.shared, Path(path.parent.name)))
            await settled(pilot, app)
            assert "▶★ a red" in screen_text(app)

    run(test())


# What can be done with a picture.


def test_a_picture_goes_to_the_trash_without_a_question() -> None:
    paths = save_evening()
    history = History.open(folders.state_dir())
    history.put(Job(REQUEST, "demo", "", state="done", path=paths[1], seconds=1.0))
    history.close()

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await open_gallery(app, pilot)
            await press(app, pilot, "right", "d")
            assert notes(app)[-1] == f"Moved {paths[1].name} to the trash folder; U brings it back."
            assert not paths[1].exists()
            assert (folders.default_output_dir() / ".trash" / paths[1].name).is_file()
            assert shown(app) == [path.name for path in paths if path != paths[1]]
            assert selected(app) == paths[2].name
            assert app.session.results == []
            assert app.main.jobs.option_count == 0

    run(test())


def test_what_went_to_the_trash_comes_back_one_key_after_the_other_and_replaces_nothing() -> None:
    paths = save_evening()
    history = History.open(folders.state_dir())
    for number, path in enumerate(paths[::-1]):
        history.put(Job(REQUEST, "demo", "", state="done", path=path, seconds=1.0, created=number))
    history.close()

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            names = [path.name for path in paths]
            await press(app, pilot, "escape", "U")
            assert "nothing to bring back" in notes(app)[-1]
            await press(app, pilot, "down", "down", "f", "d")  # in the main list
            assert app.main.selected_path() == paths[3]  # what took its place
            await press(app, pilot, "end", "d")
            assert app.main.selected_path() == paths[4]
            await open_gallery(app, pilot)
            await press(app, pilot, "home", "t", "space", "d")  # two at once
            assert shown(app) == [names[3], names[4]]
            paths[0].write_bytes(b"another's")
            await press(app, pilot, "U")
            assert paths[0].read_bytes() == b"another's"
            renamed = "000006_seed6-2.png"
            assert notes(app)[-1] == (
                f"2 pictures are back; {renamed} was {names[0]}, a name that another file has by now."
            )
            assert selected(app) == renamed
            await press(app, pilot, "U")
            assert notes(app)[-1] == f"{names[5]} is back."
            assert selected(app) == names[5]
            await press(app, pilot, "escape", "escape", "U")
            assert app.main.selected_path() == paths[2]
            assert app.session.history.is_favourite(paths[2])
            assert [job.path for job in app.session.results] == [paths[0].with_name(renamed), *paths[1:]]
            assert len(app.session.history.results()) == 6
            assert not list((folders.default_output_dir() / ".trash").iterdir())

    run(test())


def test_several_pictures_are_marked_and_starred_or_compared() -> None:
    paths = save_evening()

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await open_gallery(app, pilot)
            await press(app, pilot, "space", "right", "t", "t")
            assert "3 marked" in screen_text(app).splitlines()[0]
            assert screen_text(app).count("\u25a0") == 3
            await press(app, pilot, "f")
            assert app.session.history.favourites() == {paths[0], paths[2], paths[3]}
            await press(app, pilot, "f")
            assert app.session.history.favourites() == set()
            await press(app, pilot, "slash", *"heart", "enter", "f")  # the marked ones are not in sight
            assert app.session.history.favourites() == {paths[1]}
            await press(app, pilot, "slash", "escape", "c")
            assert on(app, Compare)
            assert "(+1)" in screen_text(app)
            assert app.shared.marked == []
            await press(app, pilot, "n")  # the third in the place of the second
            assert f"B {paths[3].name}" in screen_text(app)
            await press(app, pilot, "right", "k")  # B stays
            assert on(app, Compare)
            assert not paths[0].exists()
            assert f"A {paths[2].name}" in screen_text(app)
            await press(app, pilot, "U")
            assert paths[0].is_file()
            await press(app, pilot, "k", "k")
            assert on(app, Gallery)
            assert [paths[2].exists(), paths[0].exists()] == [False, False]
            assert selected(app) == paths[3].name
            await press(app, pilot, "space", "T")
            assert "marked" not in screen_text(app).splitlines()[0]

    run(test())


def test_words_that_differ_are_in_reverse() -> None:
    for pair, words in (
        (("a red circle, at night", "a blue circle, at night"), (["red"], ["blue"])),
        (("a circle", "a big circle"), ([], ["big "])),
        (("", "a circle"), ([], [])),
    ):
        texts = words_apart(*pair)
        assert [text.plain for text in texts] == [text or "none" for text in pair]
        marked = tuple([text.plain[s.start : s.end] for s in text.spans if s.style == "reverse"] for text in texts)
        assert marked == words


def test_remix_puts_prompt_and_parameters_back_on_the_main_screen() -> None:
    save("000001_seed42.png", "a [b]{red|blue}[/b] heart", seed=42, steps=9, width=128, guidance=5.0)

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            app.session.parameters.announce(OPTIONS)
            await open_gallery(app, pilot)
            await press(app, pilot, "r")
            assert on(app, MainScreen)
            assert app.focused is app.main.prompt
            assert app.main.prompt.text == r"a [b]\{red\|blue\}[/b] heart"  # as it is, not as a template
            assert app.session.parameters.chosen == {"steps": 9, "height": 64, "guidance": 5.0}
            assert app.session.parameters.seed is None
            await open_gallery(app, pilot)
            await press(app, pilot, "a")
            assert app.session.parameters.seed == 42

    run(test())


def test_what_a_picture_of_another_program_says_is_taken_over_and_the_rest_is_named() -> None:
    path = save("000001_seed42.png")
    info = PngInfo()
    line = "Steps: 20, Sampler: DPM++ 2M, Seed: -1, Size: 1000x1000, Guidance: 2.5, Model: x, "
    line += "Version: stable-diffusion.cpp"
    info.add_text("parameters", f"ein K\u00e4tzchen <lora:ink:1>\n{line}")
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            app.session.parameters.announce(OPTIONS)
            await open_gallery(app, pilot)
            await press(app, pilot, "u")
            assert notes(app)[-1] == "This picture does not say its seed."
            await press(app, pilot, "i")
            text = screen_text(app)
            assert "stable-diffusion.cpp" in text
            assert "not repeated LoRA ink, sampler DPM++ 2M, size 1000x1000" in text
            await press(app, pilot, "escape", "a")
            assert app.main.prompt.text == "ein K\u00e4tzchen"
            assert app.session.parameters.chosen == {"steps": 20, "guidance": 2.5}
            assert notes(app)[-1] == (
                "Taken over from stable-diffusion.cpp: prompt, steps, guidance; "
                "left out: LoRA ink, sampler DPM++ 2M, size 1000x1000, model x."
            )

    run(test())


# Pictures that nobody vouches for.


def hostile_pictures() -> dict[str, bytes]:
    """Files by name, none of them what it seems to be."""
    good = encode_png(Image.new("RGB", (64, 64)), RECORD)
    claims_much = PNG_SIGNATURE
    for kind, body in (
        (b"IHDR", (60_000).to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    ):
        claims_much += len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    return {
        "empty.png": b"",
        "text.png": b"[bold red]not a picture[/]",
        "truncated.png": good[: len(good) // 2],
        "no pixels.png": good[:-40],
        "only a signature.png": PNG_SIGNATURE,
        "huge.png": claims_much,
        "[b][@click=app.quit]name[].png": good,
    }


def test_hostile_pictures_are_listed_and_break_nothing() -> None:
    prompts = (
        "[/b]",
        "[@click=app.quit]x[/]",
        "\x1b[2J\x1b]0;owned\x07\u202e",
        "$x [red",
        "e\u0301👩‍👩‍👧 赤い円" * 300,
        "a\nb\tc",
    )
    for number, prompt in enumerate(prompts, 1):
        save(f"{number:06d}_seed7.png", prompt)
    folder = folders.default_output_dir()
    for name, data in hostile_pictures().items():
        (folder / name).write_bytes(data)
    info = PngInfo()
    info.add_itxt(RECORD_KEY, '{"request": [[[')
    Image.new("P", (3, 500)).save(folder / "odd.png", pnginfo=info)
    if os.name == "posix":
        (folder / "line\nbreak \x1b[31m.png").write_bytes(b"")
        Path(os.fsdecode(bytes(folder) + b"/\xff\xfe.png")).write_bytes(b"")

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            screen = await open_gallery(app, pilot)
            names, seen = shown(app), ""
            assert len(names) >= len(prompts) + len(hostile_pictures()) + 1
            for place, name in enumerate(names):
                screen.grid.select(place)
                await settled(pilot, app)
                assert selected(app) == name
                sound = name == "odd.png" or name.startswith(("[b]", "00000"))
                assert (screen.grid._tiles[screen.grid._files[place]] is not None) == sound
                seen += check_screen(app)
                screen.action_favourite()
                for action in (screen.action_view, screen.action_info):
                    action()
                    await settled(pilot, app)
                    seen += check_screen(app)
                    if app.screen is not screen:
                        app.screen.dismiss()
                app.push_screen(Compare(app.shared, screen.grid._files[place].path, screen.grid._files[place - 1].path))
                await settled(pilot, app)
                seen += check_screen(app)
                app.screen.dismiss()
                await pilot.pause()
                assert app.screen is screen
            assert "[/b]" in seen
            assert "[@click=app." in seen
            assert "\\x1b[2J" in seen
            assert "cannot be shown" in seen
            assert " ? " in seen
            assert app.is_running

    run(test())


def check_screen(app: T2IApp) -> str:
    """The screen's text, after a look that it holds nothing that a terminal would obey."""
    text = screen_text(app)
    assert [c for c in text if not (c.isprintable() or c in "\n\u200d")] == []
    return text


# The picture that fills the terminal.


def test_the_viewer_goes_through_the_pictures_and_the_gallery_follows() -> None:
    paths = save_evening()

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await open_gallery(app, pilot)
            await press(app, pilot, "right", "enter")
            assert on(app, Viewer)
            assert selected(app) == paths[1].name
            for key, place in (
                *(("right", 2), ("pagedown", 3), ("left", 2), ("pageup", 1), ("left", 0), ("left", 0)),
                *(("right", 1), ("right", 2), ("right", 3), ("right", 4), ("right", 5), ("right", 5)),
            ):
                await press(app, pilot, key)
                assert (key, selected(app)) == (key, paths[place].name)
                assert paths[place].name in screen_text(app)
            lines = screen_text(app).splitlines()
            assert lines[-1].strip() == f"{paths[5].name}  seed 1  64x64  a red circle"
            assert lines[0].strip() == "▀" * 46  # as wide as 23 lines of two pixels are high
            for key in ("escape", "v", "q", "enter"):
                await press(app, pilot, key)
                assert on(app, Gallery)
                assert selected(app) == paths[5].name
                await press(app, pilot, "v")
                assert on(app, Viewer)
            await press(app, pilot, "f", "i")
            assert app.session.history.is_favourite(paths[5])
            assert on(app, ReadText)
            assert "a red circle" in screen_text(app)
            await press(app, pilot, "escape")
            assert screen_text(app).splitlines()[-1].strip().startswith(f"★ {paths[5].name}")
            await press(app, pilot, "escape")
            assert "★ a red" in screen_text(app)

    run(test())


def test_a_picture_that_loads_slowly_does_not_take_the_place_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = save_evening()
    going_on = threading.Event()

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await open_gallery(app, pilot)

            def slow_first(path: Path, columns: int, rows: int) -> Preview | None:
                assert path != paths[0] or going_on.wait(60)
                return Preview(1, 1, b"\xff\0\0")

            monkeypatch.setattr(app.shared.thumbnails, "get", slow_first)
            await pilot.press("enter", "right")
            await until(pilot, lambda: "a green heart" in screen_text(app))
            going_on.set()
            await settled(pilot, app)
            assert selected(app) == paths[1].name
            viewer = app.screen
            assert isinstance(viewer, Viewer)
            assert viewer._loaded is not None
            assert viewer._loaded[1] == read_record(paths[1])
            assert "a green heart" in screen_text(app)

    run(test())


def test_a_picture_deleted_in_the_viewer_gives_way_to_its_neighbour() -> None:
    paths = save_evening()[:3]

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await open_gallery(app, pilot)
            await press(app, pilot, "slash", *"a", "enter")
            for path in save_evening()[3:]:
                path.unlink()
            await press(app, pilot, "right", "enter", "d")
            assert not paths[1].exists()
            assert selected(app) == paths[2].name
            await press(app, pilot, "d")
            assert selected(app) == paths[0].name
            await press(app, pilot, "d")
            assert on(app, Gallery)
            assert shown(app) == []

    run(test())


def test_the_viewer_shows_the_main_screens_pictures_in_its_order() -> None:
    paths = save_evening()[:3]
    history = History.open(folders.state_dir())
    for number, path in enumerate(paths[::-1]):
        history.put(Job(REQUEST, "demo", "", state="done", path=path, seconds=1.0, created=number))
    history.close()

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await press(app, pilot, "escape", "home", "v")
            assert on(app, Viewer)
            assert selected(app) == paths[0].name
            await press(app, pilot, "right", "d")
            assert selected(app) == paths[2].name
            assert [job.path for job in app.session.results] == [paths[0], paths[2]]
            await press(app, pilot, "left")
            assert selected(app) == paths[0].name
            await press(app, pilot, "q")
            assert on(app, MainScreen)
            assert app.is_running

    run(test())


def test_a_terminal_with_pictures_of_its_own_gets_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pixels(Static):
        """Like the widget of textual-image: it has an `image`."""

        image: Any = None

    path = save("000001_seed7.png")
    save("000000_seed7.png").write_bytes(b"x")

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            monkeypatch.setattr(app.shared, "images", Pixels)
            await open_gallery(app, pilot)
            await press(app, pilot, "enter")
            assert list(app.screen.query(PictureView)) == []
            widget = app.screen.query_one(Pixels)
            picture = widget.image
            assert (picture.size, picture.mode) == ((64, 64), "RGB")
            assert screen_text(app).splitlines()[-1].strip().startswith(path.name)
            await press(app, pilot, "right")
            assert not widget.image
            assert screen_text(app).splitlines()[-1].strip() == "000000_seed7.png cannot be shown"
            await press(app, pilot, "left")
            assert widget.image.size == (64, 64)
            await press(app, pilot, "escape")
            assert not widget.image  # the terminal forgets it, too

    run(test())


# Two pictures.


def test_comparing_shows_both_pictures_and_only_what_differs() -> None:
    long = "a circle " + "in the rain " * 20 + "at night"
    save("000002_seed2.png", "a red circle", seed=2)
    save("000001_seed1.png", long, seed=1, steps=9)

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await open_gallery(app, pilot)
            await press(app, pilot, "c", "right", "c")
            assert on(app, Compare)
            assert side_by_side(app)
            assert selected(app) == "000002_seed2.png"
            await until(pilot, lambda: "▀" in screen_text(app))
            app.clear_notifications()
            await pilot.pause()
            text = screen_text(app)
            assert text.splitlines()[0].split() == ["▀" * len(text.split()[0])] * 2
            assert "▶ A 000002_seed2.png" in text
            assert "B 000001_seed1.png" in text
            words = " ".join(text.split())
            assert "prompt A: a red circle" in words
            assert f"prompt B: {long}" in words
            assert "seed: 2 → 1" in words
            assert "steps: 4 → 9" in words
            assert "width" not in words
            await press(app, pilot, "right")
            assert selected(app) == "000001_seed1.png"
            assert "▶ B 000001_seed1.png" in screen_text(app)
            await press(app, pilot, "escape")
            assert on(app, Gallery)

    run(test())


def test_one_picture_at_a_time_flips_at_the_same_place() -> None:
    save("000002_seed2.png")
    save("000001_seed1.png")

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            paths = [folders.default_output_dir() / f"00000{n}_seed{n}.png" for n in (2, 1)]
            app.push_screen(Compare(app.shared, paths[0], paths[1]))
            await settled(pilot, app)
            assert on(app, Compare)
            assert "same settings" in screen_text(app)
            await press(app, pilot, "tab")
            assert not side_by_side(app)
            first = screen_text(app).splitlines()
            assert "A 000002_seed2.png" in "\n".join(first)
            assert "B 0" not in "\n".join(first)
            await press(app, pilot, "space")
            second = screen_text(app).splitlines()
            assert selected(app) == paths[1].name
            assert [line for line in first if "▀" in line] == [line for line in second if "▀" in line]
            assert "B 000001_seed1.png" in "\n".join(second)
            await press(app, pilot, "space")
            assert screen_text(app).splitlines() == first
            await press(app, pilot, "tab")
            assert side_by_side(app)
            await press(app, pilot, "space")  # from side by side, too
            assert not side_by_side(app)
            await pilot.resize_terminal(59, 20)
            await press(app, pilot, "tab")
            assert not side_by_side(app)
            assert notes(app)[-1] == "Two pictures side by side need 60 columns."

    run(test())


def test_a_small_terminal_begins_with_one_picture_and_shows_both_when_it_grows() -> None:
    paths = save_evening()

    async def test() -> None:
        async with running((59, 20), engine=False) as (app, pilot):
            app.push_screen(Compare(app.shared, paths[0], paths[1]))
            await settled(pilot, app)
            assert on(app, Compare)
            assert not side_by_side(app)
            assert f"A {paths[0].name}" in screen_text(app)
            assert f"B {paths[1].name}" not in screen_text(app)
            await pilot.resize_terminal(60, 20)
            await settled(pilot, app)
            assert side_by_side(app)
            assert f"B {paths[1].name}" in screen_text(app)

    run(test())


def test_the_better_one_is_taken_over_and_the_worse_one_deleted() -> None:
    paths = save_evening()

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            app.session.parameters.announce(OPTIONS)
            await open_gallery(app, pilot)
            await press(app, pilot, "c", "right", "c", "space", "d")
            assert on(app, Gallery)
            assert not paths[1].exists()
            assert paths[1].name not in shown(app)
            await press(app, pilot, "home", "c", "right", "c", "right", "a")
            assert on(app, MainScreen)
            assert app.main.prompt.text == "Straße im Regen"
            assert app.session.parameters.seed == 4

    run(test())


def test_differences_say_why_there_are_none_and_pass_over_what_always_differs() -> None:
    path = Path("x.png")
    other = replace(
        RECORD,
        request=replace(REQUEST, precision="bf16", guidance=None, template="{a|b}"),
        seconds_by_phase={"denoise": 9.0},
        reproduce={"threads": 2},
    )
    assert differences((path, path), (RECORD, RECORD), "->") == ["same settings"]
    assert differences((path, path), (RECORD, replace(RECORD, seconds_by_phase={})), "->") == ["same settings"]
    assert differences((path, path), (RECORD, other), "->") == [
        "guidance: 3.5 -> none",
        "precision: fp32 -> bf16",
        "threads: 1 -> 2",
        "template A: none",
        "template B: {a|b}",
    ]
    assert differences((path, path), (RECORD, "'x.png' is not a PNG picture."), "->") == [
        "B: 'x.png' is not a PNG picture."
    ]


def test_captions_show_the_words_that_differ_and_no_seeds() -> None:
    beginning = "a very long beginning of a prompt with"
    for number, colour in enumerate(("red", "green", "blue"), 1):
        save(f"{number:06d}_seed4123456789.png", f"{beginning} a {colour} hat", seed=4123456789)

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await open_gallery(app, pilot)
            captions = screen_text(app).splitlines()[9]
            assert all(f"{colour} hat" in captions for colour in ("red", "green", "blue"))
            assert captions.count("a ver") >= 1
            assert "4123456789" not in captions

    run(test())


# Terminals.


@pytest.mark.parametrize("screen", ["gallery", "filter", "viewer", "compare", "empty"])
def test_every_size_is_survived(screen: str) -> None:
    paths = save_evening() if screen != "empty" else []
    keys = {"filter": "slash", "viewer": "enter"}.get(screen)

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await open_gallery(app, pilot)
            if keys:
                await press(app, pilot, keys)
            if screen == "compare":
                app.push_screen(Compare(app.shared, paths[0], paths[1]))
                await settled(pilot, app)
            before = screen_text(app)
            for columns, rows in SIZES:
                await pilot.resize_terminal(columns, rows)
                await settled(pilot, app)
                assert len(screen_text(app).splitlines()) <= rows
                await press(app, pilot, "end", "space", "home")
            app.clear_notifications()
            await pilot.pause()
            if screen in ("viewer", "empty", "gallery"):
                assert screen_text(app) == before

    run(test())


@pytest.mark.parametrize("kind", ["ascii", "no colour"])
def test_without_colours_or_unicode_pictures_are_letters(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")  # which the app changes, and gets back after the test
    paths = [save(f"{n:06d}_seed{n}.png", f"a heart {'and a heart ' * 9}", seed=n) for n in (6, 5)]
    ascii_only = kind == "ascii"

    async def test() -> None:
        async with running(engine=False, ascii=ascii_only, color="truecolor" if ascii_only else "none") as (app, pilot):
            await open_gallery(app, pilot)
            await press(app, pilot, "f", "right")
            text = screen_text(app)
            assert "▀" not in text
            assert "-" * 16 in text or ":" * 16 in text or "=" * 16 in text
            assert (">a heart and" if kind == "ascii" else "▶a heart and") in text
            texts = [text]
            await press(app, pilot, "enter")
            texts.append(screen_text(app))
            await press(app, pilot, "escape")
            app.push_screen(Compare(app.shared, paths[0], paths[1]))
            await settled(pilot, app)
            texts.append(screen_text(app))
            if kind == "ascii":
                assert [c for c in "".join(texts) if not c.isascii()] == []

    run(test())
