"""The app as a person uses it: the real one, on the real engine and the demo model, driven by keys."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest
from PIL import Image
from textual import events
from textual.pilot import Pilot

from engine import folders
from engine.events import Preview
from engine.images.metadata import read_record
from engine.process import EngineProcess, JobEvent, Message
from engine.request import Request, RequestError
from tests.apps import notes, run, running, screen_text, settled, until
from tests.engines import serve_and_stand_still
from tests.tiny import save_tiny
from tui.app import T2IApp
from tui.history import History
from tui.jobs import Job
from tui.screens.dialogs import AskText, Confirm, ParametersWindow, ReadText, SearchPrompts, found
from tui.widgets.joblist import THUMBNAIL
from tui.widgets.parameters import ParametersPanel

PROMPT = "a red circle above a blue square"


async def write(app: T2IApp, pilot: Pilot[None], text: str) -> None:
    """Put a text into the prompt as a paste does."""
    app.main.prompt.focus()
    app.main.prompt.clear()
    await pilot.pause()
    app.post_message(events.Paste(text))
    await pilot.pause()


async def generate(app: T2IApp, pilot: Pilot[None], text: str = PROMPT) -> None:
    """Write a prompt, press Enter, wait until nothing runs or waits any more."""
    await write(app, pilot, text)
    await pilot.press("enter")
    await until(pilot, lambda: app.session.running is None and not app.session.queue)


def test_a_prompt_becomes_a_picture_with_the_prompt_in_it() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            assert app.focused is app.main.prompt
            await pilot.press(*"a red heart".replace(" ", "_").replace("_", " "))
            assert app.main.prompt.text == "a red heart"
            await pilot.press("enter")
            await until(pilot, lambda: app.session.results)
            job = app.session.results[0]
            assert job.state == "done"
            assert job.path is not None
            record = read_record(job.path)
            assert record.request.prompt == "a red heart"
            assert record.request.seed == job.request.seed == app.session.last_seed
            assert app.main.prompt.text == "a red heart"  # it stays for the next change
            await settled(pilot, app)
            text = screen_text(app)
            assert "● encode" in text
            assert "● save" in text
            assert "▀▀▀▀" in text
            assert str(job.request.seed) in text

    run(test())


def test_the_parameters_are_those_that_the_model_announces(tmp_path: Path) -> None:
    save_tiny(tmp_path / "schnell", guided=False)

    async def test() -> None:
        async with running(model=str(tmp_path / "schnell")) as (app, pilot):
            offered = app.session.parameters.names()
            assert "guidance" not in offered
            assert {"steps", "size", "cfg", "precision", "seed", "count"} <= set(offered)
            await generate(app, pilot)
            assert app.session.results[0].state == "done"
        async with running() as (app, pilot):
            assert app.session.model == str(tmp_path / "schnell")  # the last used one
        async with running(model="demo") as (app, pilot):
            names = app.session.parameters.names()
            assert names == [
                *("steps", "size", "guidance", "cfg", "negative_prompt", "guidance_schedule", "cfg_zero", "apg"),
                *("precision", "distill", "seed", "count"),
            ]

    run(test())


@pytest.mark.parametrize("phase", ["load", "encode", "denoise", "decode", "save"])
def test_the_engine_is_killed_and_nothing_is_lost(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Or it might be done with the picture before this process gets to kill it.
    monkeypatch.setattr("engine.process.serve", partial(serve_and_stand_still, phase))

    async def test() -> None:
        async with running() as (app, pilot):
            session = app.session
            killed: list[int] = []
            if phase == "load":
                app.client.stop()  # the first picture starts another, which is killed with its first words

            receive = session.receive

            def receive_and_kill(message: Message) -> str:
                said = receive(message)
                started = isinstance(message, JobEvent) and getattr(message.event, "phase", None) == phase
                if app.client.pid is not None and not killed and (started or phase == "load"):
                    killed.append(app.client.pid)
                    psutil.Process(app.client.pid).kill()
                return said

            session.receive = receive_and_kill  # type: ignore[method-assign]
            session.parameters.write("steps", "1")
            for text in (PROMPT, "a white star"):
                await write(app, pilot, text)
                await pilot.press("enter")
            await until(pilot, lambda: len(session.results) == 2)
            assert killed
            assert app.client.pid != killed[0]
            assert any("killed by SIGKILL" in note for note in notes(app))
            states = {job.request.prompt: job.state for job in session.results}
            assert states["a white star"] == "done"  # the queue went on in a fresh process
            assert states[PROMPT] == ("done" if phase in ("decode", "save") else "failed")
            assert app.main.prompt.text == "a white star"
            assert not list(app.output_folder.glob("*.tmp"))
            done = [job for job in session.results if job.state == "done"]
            assert [read_record(job.path).request.prompt for job in done if job.path] == [
                j.request.prompt for j in done
            ]

    run(test())


def test_the_queue_waits_when_the_engine_dies_again_and_again() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            session = app.session
            session.parameters.write("steps", "1000")
            for text in ("first", "second", "third", "fourth"):
                await write(app, pilot, text)
                await pilot.press("enter")
            for made in (1, 2):
                await until(pilot, lambda: session.progress.step > 1)
                assert app.client.pid is not None
                psutil.Process(app.client.pid).kill()
                await until(pilot, lambda made=made: len(session.results) == made)  # type: ignore[misc]
            assert session.paused
            assert [job.request.prompt for job in session.queue] == ["third", "fourth"]
            assert any("so the queue waits" in note for note in notes(app))

    run(test())


def test_a_failed_job_is_tried_again_by_remix() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            await write(app, pilot, PROMPT)
            app.session.parameters.write("steps", "500")
            await pilot.press("enter")
            await until(pilot, lambda: app.session.progress.step > 1)
            assert app.client.pid is not None
            psutil.Process(app.client.pid).kill()
            await until(pilot, lambda: app.session.results)
            assert app.session.results[0].state == "failed"
            assert "denoise" in app.session.results[0].message
            await pilot.press("escape", "home", "r")
            await until(pilot, lambda: app.session.progress.step > 1)
            assert app.session.running is not None
            assert app.session.running.request == app.session.results[0].request
            await app.action_quit()

    run(test())


def test_cancelling_first_waits_for_the_step_and_then_does_not() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            pid = app.client.pid
            app.session.parameters.write("steps", "1000")
            for presses in (["ctrl+c"], ["ctrl+c", "ctrl+c"], ["f8"], ["escape", "x"]):
                await write(app, pilot, PROMPT)
                await pilot.press("enter")
                await until(pilot, lambda: app.session.progress.step > 1)
                await pilot.press(*presses)
                await until(pilot, lambda: app.session.running is None)
                assert app.session.results[0].state == "cancelled"
                assert "cancelled at" in app.session.results[0].message
            assert len(app.session.results) == 4
            assert app.client.pid == pid  # process and weights stay

    run(test())


def test_the_queue_is_seen_reordered_and_emptied_while_one_runs() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            session = app.session
            session.parameters.write("steps", "1000")
            for prompt in ("first", "second", "third", "fourth"):
                await write(app, pilot, prompt)
                await pilot.press("enter")
            waiting = lambda: [job.request.prompt for job in session.queue]  # noqa: E731
            assert waiting() == ["second", "third", "fourth"]
            assert "3 waiting" in screen_text(app)
            await pilot.press("escape", "home", "down", "down", "down", "K")
            assert waiting() == ["second", "fourth", "third"]
            selected = app.main.selected_job()
            assert selected is not None
            assert selected.request.prompt == "fourth"  # the highlight goes with the job
            await pilot.press("J")
            assert waiting() == ["second", "third", "fourth"]
            await pilot.press("d")
            assert waiting() == ["second", "third"]
            await pilot.press("space")
            assert session.paused
            await pilot.press("x", "x")
            await until(pilot, lambda: session.running is None)
            assert waiting() == ["second", "third"]  # paused: nothing new begins
            await pilot.press("X")
            assert isinstance(app.screen, Confirm)
            await pilot.press("n")
            assert len(session.queue) == 2
            await pilot.press("X", "y")
            assert not session.queue

    run(test())


def test_q_asks_while_something_is_left_undone() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await pilot.press(*"red", "escape", "q")
            assert isinstance(app.screen, Confirm)
            assert "What is typed" in screen_text(app)
            await pilot.press("n")
            app.session.paused = app.session.held = True
            app.main.prompt.submit()
            await until(pilot, lambda: app.session.queue)
            await pilot.press("q")
            assert "What waits" in screen_text(app)
            await pilot.press("n")
            await pilot.press("X", "y", "q")  # the prompt was sent: nothing is left
            await until(pilot, lambda: not app.is_running)

    run(test())


def test_seeds_are_locked_changed_and_drawn_anew() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            session = app.session
            await pilot.press("escape", "s")
            assert any("No seed was used yet" in note for note in notes(app))
            session.last_seed = 41
            await pilot.press("s")
            assert session.parameters.seed == 41
            assert "seed 41 LOCK" in screen_text(app)
            await pilot.press("=", "=", "-")
            assert session.parameters.seed == 42
            await write(app, pilot, PROMPT)
            await pilot.press("enter")
            assert session.running is not None
            assert session.running.request.seed == 42
            await pilot.press("escape", "n")
            assert session.queue[0].request.seed not in (41, 42)
            session.last_seed = 42
            session.parameters.seed = 42
            await pilot.press("s")
            assert session.parameters.seed is None

    run(test())


def test_variants_are_shown_before_and_the_template_stays_in_the_file() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            template = "a {red|green} circle"
            await write(app, pilot, template)
            assert "2 variants: red / green" in screen_text(app)
            await pilot.press("escape", ">")
            assert "x 2 = 4 pictures" in screen_text(app)
            await pilot.press("<", "g")
            await until(pilot, lambda: len(app.session.results) == 2)
            requests = [read_record(job.path).request for job in app.session.results if job.path]
            assert [request.prompt for request in requests] == ["a green circle", "a red circle"]
            assert {request.template for request in requests} == {template}
            assert requests[0].seed == requests[1].seed  # so that only the words differ
            await write(app, pilot, "")
            await pilot.press("escape", "home", "r")
            assert app.main.prompt.text == template

    run(test())


def test_everything_of_a_picture_is_taken_over_and_braces_stay_literal() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            parameters = app.session.parameters
            for name, text in (("steps", "2"), ("size", "96x64"), ("guidance", "2"), ("seed", "77")):
                parameters.write(name, text)
            await generate(app, pilot, r"a red circle \{really|perhaps\}")
            assert app.session.results[0].request.prompt == "a red circle {really|perhaps}"
            for name in parameters.names():
                parameters.reset(name)
            await write(app, pilot, "")
            await pilot.press("escape", "home", "a")
            assert app.main.prompt.text == r"a red circle \{really\|perhaps\}"
            assert parameters.chosen == {"steps": 2, "width": 96, "height": 64, "guidance": 2.0}
            assert parameters.seed == 77
            await pilot.press("enter")
            await until(pilot, lambda: len(app.session.results) == 2)
            first, second = (Path(str(job.path)) for job in app.session.results)
            from PIL import Image

            assert Image.open(first).tobytes() == Image.open(second).tobytes()

    run(test())


def test_prompts_are_walked_through_and_searched() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            prompt = app.main.prompt
            for text in ("one red circle", "two\nblue squares", "three green stars"):
                await write(app, pilot, text)
                await pilot.press("enter")
            await write(app, pilot, "my draft")
            await pilot.press("up")
            assert prompt.text == "three green stars"
            await pilot.press("up")
            assert prompt.text == "two\nblue squares"
            await pilot.press("up", "up", "up")
            assert prompt.text == "one red circle"
            for _ in range(8):
                await pilot.press("down")
            assert prompt.text == "my draft"
            await pilot.press("ctrl+r")
            assert isinstance(app.screen, SearchPrompts)
            await pilot.press(*"blsq", "enter")
            assert prompt.text == "two\nblue squares"
            await pilot.press("ctrl+r", "escape")
            assert prompt.text == "two\nblue squares"

    run(test())


HOSTILE = {
    "closing tag": "a cat [/b] on a mat",
    "action link": "[@click=app.quit]x[/]",
    "style": "[bold red on white]x[/] [x](1.2) [not closed",
    "escape sequences": "red \x1b[31m circle \x1b]0;title\x07 \x1b[2J",
    "wide": "日本の赤い円 🟥👩‍🚀 e\u0301",
    "right to left": "دائرة حمراء \u202e reversed \u2066",
    "braces": "{" * 50 + "a|b" + "}" * 30 + "{|}",
    "many lines": "\n" * 200 + "circle",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_prompts_are_only_text(text: str) -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await write(app, pilot, text)
            await pilot.press("enter")
            assert app.session.running is not None, notes(app)
            await pilot.press("enter", "escape", "i")  # as a note, in the list, in a window
            assert isinstance(app.screen, ReadText)
            await pilot.press("escape", "h", "escape")
            for size in ((30, 8), (120, 40)):
                await pilot.resize_terminal(*size)
                shown = screen_text(app)
                assert "\x1b" not in shown
                assert "\x07" not in shown
            job = app.session.running
            app.session._finish("failed", f"in denoise: {text}")
            app.shared.say(f"failed: {text}", "error")
            app.main.update()
            await pilot.pause()
            assert app.is_running
            assert job.request.prompt.strip()

    run(test())


def test_a_prompt_of_100_kb_is_refused_with_a_sentence_and_stays() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            text = "red circle " * 9400
            await write(app, pilot, text)
            await pilot.press("enter")
            assert any("at most 10000" in note for note in notes(app))
            assert app.main.prompt.text == text
            assert app.session.running is None

    run(test())


@pytest.mark.parametrize("trouble", ["missing", "file"])
def test_an_output_folder_that_cannot_be_used_gets_another(trouble: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            place = tmp_path / "pictures"
            if trouble == "file":
                place.write_text("in the way")
            app.session.output = str(place)
            await write(app, pilot, PROMPT)
            await pilot.press("enter")
            await until(pilot, lambda: app.session.paused)
            assert [job.request.prompt for job in app.session.queue] == [PROMPT]
            assert isinstance(app.screen, AskText)  # another place is offered
            other = tmp_path / "other"
            other.mkdir()
            await pilot.press("ctrl+u")  # to the beginning of the line
            app.post_message(events.Paste(str(other)))
            await pilot.press("enter")
            assert app.session.output == str(other)
            await until(pilot, lambda: app.session.results)
            assert app.session.results[0].state == "done"
            assert app.session.results[0].path is not None
            assert app.session.results[0].path.parent == other

    run(test())


def test_the_window_shrinks_to_nothing_and_grows_again_while_denoising() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            app.session.parameters.write("steps", "100")
            await write(app, pilot, PROMPT)
            await pilot.press("enter")
            await until(pilot, lambda: app.session.progress.step > 1)
            for size in ((1, 1), (200, 60), (59, 15), (1, 60), (300, 1), (80, 24)):
                await pilot.resize_terminal(*size)
                step = app.session.progress.step
                await until(pilot, lambda step=step: app.session.progress.step > step or app.session.running is None)  # type: ignore[misc]
            assert "denoise" in screen_text(app)
            await until(pilot, lambda: app.session.running is None)
            assert app.session.results[0].state == "done"

    run(test())


def test_what_had_the_focus_and_is_hidden_leaves_it_to_the_prompt() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await pilot.press("escape")
            await pilot.click("#picture")  # where there is nothing to click on, nothing changes
            assert app.main.jobs.has_focus
            await pilot.resize_terminal(30, 8)
            await pilot.press(*"red")
            assert app.main.prompt.text == "red"
            await pilot.resize_terminal(80, 24)
            assert app.main.prompt.has_focus
            assert "Enter Generate" in screen_text(app).splitlines()[-1]

    run(test())


def test_a_long_prompt_is_whole_and_takes_the_rows_it_needs_at_every_size() -> None:
    text = "a red circle above a green square beside a blue triangle under a yellow diamond and so on until the end"
    sizes = [(60, 16), (80, 24), (60, 16), (30, 8), (120, 40), (64, 16), (60, 24), (30, 8), (80, 24), (70, 30)]

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            prompt = app.main.prompt
            prompt.put(text)
            for size in sizes:
                await pilot.resize_terminal(*size)
                await pilot.pause()
                lines = [line.strip("\u2502 ") for line in screen_text(app).splitlines()]
                assert text in " ".join(lines), size
                if size[0] >= 60:
                    assert prompt.size.height == len([line for line in lines if line and line in text]), size

    run(test())


def test_a_small_terminal_shows_prompt_and_one_status_line() -> None:
    async def test() -> None:
        async with running((50, 12), engine=False) as (app, pilot):
            await write(app, pilot, PROMPT)
            visible = {widget.id for widget in app.main.query("*") if widget.display and widget.region.area}
            assert visible & {"header", "prompt", "timeline", "gauge", "jobs", "picture", "keys"} == {
                "prompt",
                "timeline",
            }
            assert screen_text(app).splitlines()[0].startswith(PROMPT)

    run(test())


@pytest.mark.parametrize("size", [(60, 16), (80, 24), (120, 40), (200, 60)])
def test_everything_has_its_place_at_every_usual_size(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with running(size, engine=False) as (app, _pilot):
            memory = "plot" if size[1] >= 22 else "gauge"
            for name in ("header", "prompt", "forecast", "timeline", memory, "jobs", "picture", "keys"):
                region = app.main.query_one(f"#{name}").region
                assert region.area > 0, name
                assert region.right <= size[0]
                assert region.bottom <= size[1]
            assert app.main.query_one("#parameters").display == (size[0] >= 160)

    run(test())


def test_parameters_are_changed_in_their_window_and_kept() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            await pilot.press("f9")
            assert isinstance(app.screen, ParametersWindow)
            assert isinstance(app.focused, ParametersPanel)
            to_precision = ["down"] * app.session.parameters.names().index("precision")
            await pilot.press("8", "enter", *to_precision, "right", "escape")
            assert app.session.parameters.value("steps") == 8
            assert app.session.parameters.value("precision") == "fp32"
            assert "steps 8" in screen_text(app)
        async with running() as (app, pilot):
            assert app.session.parameters.value("steps") == 8
            assert app.session.parameters.value("precision") == "fp32"

    run(test())


def test_a_draft_that_is_typed_without_a_pause_is_kept_all_the_same() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await pilot.press("a")
            timer = app.main._draft_timer
            assert timer is not None
            for key in "bcd":
                await pilot.press(key)
                assert app.main._draft_timer is timer, "another letter puts it off"
            await until(pilot, lambda: app.session.history.load("draft") == "abcd")
            await pilot.press("e")
            assert app.main._draft_timer not in (None, timer)

    run(test())


def test_draft_queue_and_parameters_come_back() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            for text in ("runs", "waits"):
                await write(app, pilot, text)
                await pilot.press("enter")
            await write(app, pilot, "not sent yet [/b]")
            app.session.parameters.seed = 5
            await pilot.press("ctrl+q")
        async with running() as (app, pilot):
            assert app.main.prompt.text == "not sent yet [/b]"
            assert [job.request.prompt for job in app.session.queue] == ["runs", "waits"]
            assert app.session.parameters.seed == 5
            assert app.session.paused  # nothing runs before the person says so
            assert screen_text(app).count("paused, 2 waiting: Esc and then Space goes on") == 1
            await pilot.press("escape")
            assert screen_text(app).count("paused, 2 waiting: Space goes on") == 1
            assert not notes(app)  # it stands there
            await pilot.press("space")
            await until(pilot, lambda: len(app.session.results) == 2)
            assert {job.state for job in app.session.results} == {"done"}

    run(test())


def test_favourites_and_trash() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            await generate(app, pilot)
            path = app.session.results[0].path
            assert path is not None
            await pilot.press("escape", "home", "f")
            assert app.session.history.is_favourite(path)
            assert "★" in screen_text(app)
            await pilot.press("d")
            assert not path.exists()
            assert (path.parent / ".trash" / path.name).is_file()
            assert not app.session.results

    run(test())


def put_results(prompts: Sequence[str], size: tuple[int, int] = (64, 64)) -> list[Path]:
    """Pictures that an earlier evening made, one of each prompt, the last one newest."""
    folder = folders.default_output_dir()
    folder.mkdir(parents=True)
    history = History.open(folders.state_dir())
    paths = []
    for number, prompt in enumerate(prompts):
        path = folder / f"{number:06d}_seed4123456789.png"
        Image.new("RGB", size, (200, 30, 30)).save(path)
        history.put(Job(Request(prompt, seed=4123456789), "demo", "", state="done", path=path, seconds=1.0))
        paths.append(path)
    history.close()
    return paths


def test_of_three_variants_the_list_shows_the_words_that_differ_and_seeds_only_where_there_is_room() -> None:
    put_results([f"a red circle above a {colour} square in the rain at night" for colour in ("green", "blue", "grey")])

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await pilot.press("escape")
            await settled(pilot, app)
            lines = [line[:48] for line in screen_text(app).splitlines() if "1.0 s" in line]
            rows = [next(line for line in lines if colour in line) for colour in ("green", "blue", "grey")]
            assert len(set(rows)) == 3
            assert not any("4123456789" in row for row in rows)
            await pilot.resize_terminal(120, 40)
            await settled(pilot, app)
            assert screen_text(app).count("4123456789") == 4  # three rows, and the picture's caption

    run(test())


def test_on_a_wide_terminal_the_list_has_thumbnails_of_what_is_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = put_results([f"picture {number}" for number in range(40)])
    paths[-2].write_bytes(b"no picture")

    async def test() -> None:
        async with running((119, 40), engine=False) as (app, pilot):
            asked: list[Path] = []
            get = app.shared.thumbnails.get

            def counted(path: Path, columns: int, rows: int) -> Preview | None:
                if (columns, rows) == THUMBNAIL:
                    asked.append(path)
                return get(path, columns, rows)

            monkeypatch.setattr(app.shared.thumbnails, "get", counted)
            await pilot.press("escape")
            await settled(pilot, app)
            assert not asked
            await pilot.resize_terminal(120, 40)
            await settled(pilot, app)
            left = [line[:72] for line in screen_text(app).splitlines()]
            first = next(number for number, line in enumerate(left) if "1.0 s" in line)
            assert all("▀" * THUMBNAIL.width in line for line in left[first : first + THUMBNAIL.height])
            assert "picture 39" in left[first + 1]
            assert "▀" not in "".join(left[first + THUMBNAIL.height : first + 2 * THUMBNAIL.height])
            assert set(asked) < set(paths[20:])
            await pilot.press("end")
            await settled(pilot, app)
            assert paths[0] in asked
            assert len(asked) == len(set(asked)) < 25
            await pilot.resize_terminal(80, 24)
            await settled(pilot, app)
            assert app.main.selected_path() == paths[0]
            assert "▀" not in "".join(line[:47] for line in screen_text(app).splitlines())

    run(test())


@pytest.mark.parametrize(("slow", "expected"), [(False, True), (True, False)])
def test_a_picture_takes_the_room_that_there_is_but_not_over_ssh(
    slow: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slow:
        monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 1 192.0.2.2 22")
    put_results(["a red circle"], (512, 512))

    async def test() -> None:
        async with running((200, 60), engine=False) as (app, pilot):
            await pilot.press("escape")
            await settled(pilot, app)
            rows = [line[100:] for line in screen_text(app).splitlines() if line[100:].count("▀") > 6]
            assert (len(rows) > 32) == expected
            assert len(rows) >= 32

    run(test())


def test_the_info_window_shows_what_is_in_the_file() -> None:
    async def test() -> None:
        async with running((120, 40)) as (app, pilot):
            app.session.parameters.write("seed", "12345")
            await generate(app, pilot)
            await pilot.press("escape", "home", "i")
            assert isinstance(app.screen, ReadText)
            text = screen_text(app)
            assert PROMPT in text
            assert "12345" in text
            await pilot.press("escape")
            assert app.session.results[0].path is not None
            app.session.results[0].path.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
            await pilot.press("i")
            assert any("ends too early" in note for note in notes(app))

    run(test())


def test_a_picture_that_cannot_be_opened_here_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 50000 192.0.2.1 22")
    monkeypatch.delenv("DISPLAY", raising=False)

    async def test() -> None:
        async with running((120, 40)) as (app, pilot):
            assert "ssh" in screen_text(app)
            await generate(app, pilot)
            await pilot.press("escape", "home", "y")
            await until(pilot, lambda: app.screen.query("Toast"))
            await pilot.press("o")
            assert isinstance(app.screen, ReadText)
            await until(pilot, lambda: not app.screen.query("Toast"))  # it would lie over the line to copy
            text = screen_text(app)
            assert "scp" in text
            assert "192.0.2.1" in text
            path = app.session.results[0].path
            assert path is not None
            assert app.clipboard == str(path)

    run(test())


def test_settings_that_are_broken_are_said_once_each_and_the_app_runs() -> None:
    config = folders.config_dir()
    (config / "themes").mkdir(parents=True)
    (config / "config.toml").write_text('them = "dark"\nfps = 900')
    (config / "keymap.toml").write_text('"job.cancl" = "x"\n"job.cancel" = "ctrl+m"')
    (config / "themes" / "mine.toml").write_text("dark = 3")

    async def test() -> None:
        async with running(engine=False) as (app, _pilot):
            said = notes(app)
            assert len([note for note in said if "config.toml" in note and "them" in note and "fps" in note]) == 1
            assert len([note for note in said if "keymap.toml" in note and "job.cancel" in note]) == 1
            assert len([note for note in said if "mine.toml" in note]) == 1
            assert app.theme == "dark"

    run(test())


def test_an_unknown_theme_is_said_and_the_usual_one_taken() -> None:
    async def test() -> None:
        async with running(engine=False, theme="drak") as (app, _pilot):
            assert any("drak" in note for note in notes(app))
            assert app.theme == "dark"

    run(test())


@pytest.mark.parametrize("theme", ["dark", "light", "contrast", "ansi", "darkroom", "blueprint"])
def test_the_app_wears_every_theme(theme: str) -> None:
    async def test() -> None:
        async with running((200, 60), engine=False, theme=theme) as (app, pilot):
            await write(app, pilot, PROMPT)
            await pilot.press("enter", "f9", "escape", "f1")
            assert app.theme == theme
            assert isinstance(app.screen, ReadText)

    run(test())


def test_a_chosen_theme_is_remembered() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            app.theme = "darkroom"
            await pilot.pause()
            await pilot.press("ctrl+q")
        from tui.launch import open_app

        app = open_app({})
        async with app.run_test():
            assert app.theme == "darkroom"

    run(test())


def test_ascii_means_ascii() -> None:
    async def test() -> None:
        async with running((120, 40), ascii=True) as (app, pilot):
            await generate(app, pilot)
            await settled(pilot, app)
            body = [
                line for line in screen_text(app).splitlines() if not line.startswith(("\u256d", "\u2570", "\u2502"))
            ]
            assert "* encode" in "\n".join(body)
            assert "▀" not in "\n".join(body)

    run(test())


def test_a_broken_history_is_set_aside_and_said() -> None:
    state = folders.state_dir()
    state.mkdir(parents=True)
    (state / "history.sqlite3").write_bytes(b"this is no database" * 100)

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            assert any("history-broken" in note for note in notes(app))
            await write(app, pilot, PROMPT)
            await pilot.press("enter")
            assert app.session.history.prompts() == [PROMPT]
        assert list(state.glob("history-broken-*"))

    run(test())


def test_a_missing_model_is_said_and_the_queue_waits(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(model=str(tmp_path / "gone")) as (app, pilot):
            assert app.session.engine_state == "refused"
            assert any("is no model" in note for note in notes(app)), notes(app)
            await write(app, pilot, PROMPT)
            await pilot.press("enter")
            await until(pilot, lambda: app.session.queue)
            assert [job.request.prompt for job in app.session.queue] == [PROMPT]
            save_tiny(tmp_path / "gone", guided=False)  # a disk is plugged in again
            await pilot.press("escape", "space")
            await until(pilot, lambda: app.session.results)
            assert app.session.results[0].state == "done"

    run(test())


def test_a_history_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "state"
    blocked.write_text("a file where the folder should be")
    history = History.open(blocked)
    assert history.take_notices()
    history.add_prompt("kept in memory")
    assert history.prompts() == ["kept in memory"]


def test_the_app_never_imports_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, asyncio\n"
        "from tui.launch import open_app\n"
        "app = open_app({})\n"
        "async def go():\n"
        "    async with app.run_test() as pilot:\n"
        "        while app.session.engine_state != 'ready': await pilot.pause(0.05)\n"
        "        await pilot.press('a', 'enter')\n"
        "        while not app.session.results: await pilot.pause(0.05)\n"
        "        assert app.session.results[0].state == 'done', app.session.results\n"
        "asyncio.run(go())\n"
        "print(*sorted({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_a_request_of_the_app_is_checked_before_it_is_queued() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await pilot.press("enter")
            assert any("Prompt is empty" in note for note in notes(app))
            app.session.parameters.count = 1000
            await write(app, pilot, "{a|b}")
            await pilot.press("enter")
            assert any("more than 1000 pictures" in note for note in notes(app))
            assert app.session.running is None
            assert app.session.history.prompts() == []

    run(test())
    with pytest.raises(RequestError):
        Request("")


def test_news_of_a_process_that_has_gone_harm_no_job_that_began_since(monkeypatch: pytest.MonkeyPatch) -> None:
    death = EngineProcess.death

    def slow_death(engine: EngineProcess) -> str:
        time.sleep(1)  # in the reader's thread; finding the reason takes a while where a process hangs
        return death(engine)

    monkeypatch.setattr(EngineProcess, "death", slow_death)

    async def test() -> None:
        async with running() as (app, pilot):
            assert app.client.pid is not None
            psutil.Process(app.client.pid).kill()
            await until(pilot, lambda: app.client.is_dying)
            await write(app, pilot, PROMPT)
            await pilot.press("enter")
            await until(pilot, lambda: app.session.results)
            assert [job.state for job in app.session.results] == ["done"]
            assert app.session.engine_state != "gone"

    run(test())


def test_a_queue_of_another_model_is_painted_by_that_model(tmp_path: Path) -> None:
    save_tiny(tmp_path / "other", guided=True)

    async def test() -> None:
        async with running(model=str(tmp_path / "other"), engine=False) as (app, pilot):
            await write(app, pilot, PROMPT)
            app.session.paused = True
            app.session.enqueue(PROMPT)
        async with running(model="demo") as (app, pilot):
            await generate_all(app, pilot)
            paths = [job.path for job in app.session.results]
            assert [read_record(path).model for path in paths if path] == [str(tmp_path / "other")]
            await until(pilot, lambda: app.session.engine_state == "ready")  # with the model of the next picture again
            assert app.session.opened == "demo"

    run(test())


async def generate_all(app: T2IApp, pilot: Pilot[None]) -> None:
    """Go on with what waits from last time."""
    await pilot.press("escape", "space")
    await until(pilot, lambda: app.session.results and not app.session.queue and app.session.running is None)


def test_cancelling_is_said_in_the_timeline_and_the_engine_may_die_of_it() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            app.session.parameters.write("steps", "1000")
            await write(app, pilot, PROMPT)
            await pilot.press("enter")
            await until(pilot, lambda: app.session.progress.step > 1)
            await pilot.press("ctrl+c", "ctrl+c")
            await until(pilot, lambda: app.session.running is None)
            text = screen_text(app)
            assert "✗ denoise" in text
            assert "▶" not in text
            await pilot.press("enter")
            await until(pilot, lambda: app.session.progress.step > 1)
            assert app.client.pid is not None
            engine = psutil.Process(app.client.pid)
            engine.suspend()
            await pilot.press("ctrl+c", "ctrl+c")
            engine.kill()
            await until(pilot, lambda: len(app.session.results) == 2)
            assert app.session.results[0].state == "cancelled"
            assert not app.session.queue

    run(test())


def test_the_highlight_goes_to_what_was_begun_unless_another_row_was_chosen() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            await generate(app, pilot)
            await pilot.press("escape", "n")
            await until(pilot, lambda: len(app.session.results) == 2)
            assert app.main.selected_job() == app.session.results[0]
            app.session.parameters.write("steps", "40")
            await write(app, pilot, PROMPT)
            await pilot.press("enter", "escape", "end")
            oldest = app.session.results[-1]
            assert app.main.selected_job() == oldest
            await until(pilot, lambda: len(app.session.results) == 3)
            assert app.main.selected_job() == oldest

    run(test())


def test_a_second_press_does_not_cancel_the_next_job() -> None:
    async def test() -> None:
        async with running() as (app, pilot):
            session = app.session
            session.parameters.write("steps", "1000")
            for text in ("first", "second"):
                await write(app, pilot, text)
                await pilot.press("enter")
            await until(pilot, lambda: session.progress.step > 1)
            await pilot.press("ctrl+c")
            await until(pilot, lambda: len(session.results) == 1 and session.running is not None)
            await pilot.press("ctrl+c")
            assert not session.cancelling
            await app.action_quit()

    run(test())


def test_the_messages_can_be_read_again() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            app.shared.say("first [/b]")
            app.shared.say("second")
            await pilot.press("escape", "m")
            assert isinstance(app.screen, ReadText)
            text = screen_text(app)
            assert text.index("second") < text.index("First [/b]")
            await pilot.press("m")
            assert app.main.is_current

    run(test())


def test_earlier_prompts_are_found_by_words_and_by_letters() -> None:
    prompts = ["a red circle", "the blue square in red", "rubber ducks", "x" * 100_000]
    assert found("red", prompts) == ["a red circle", "the blue square in red", "rubber ducks"]
    assert found("red blue", prompts) == ["the blue square in red"]
    assert found("RBD", prompts) == ["rubber ducks"]
    assert found("", prompts) == prompts
    assert found("x" * 200, prompts) == ["x" * 100_000]
