"""Sentences for the person: where they stand, and what they never cover."""

from __future__ import annotations

from textual.pilot import Pilot

from engine import folders
from tests.apps import run, running, screen_text, until
from tui.app import T2IApp
from tui.screens.dialogs import ReadText

LONG = "what is wrong, the range that is allowed and what to do about it, in a sentence that takes more than one row"


async def said(app: T2IApp, pilot: Pilot[None], sentence: str) -> list[str]:
    """The rows of the screen after a sentence was said."""
    app.shared.say(sentence)
    await pilot.pause()
    await pilot.pause()
    return screen_text(app).splitlines()


def top(app: T2IApp) -> int:
    """The first row of the notes."""
    return min(note.region.y for note in app.screen.query("Toast"))


def test_a_note_takes_the_place_of_the_keys_and_covers_nothing_else() -> None:
    async def test() -> None:
        for size in ((80, 24), (60, 16), (120, 40)):
            async with running(size, engine=False) as (app, pilot):
                before = screen_text(app).splitlines()
                rows = await said(app, pilot, "The seed stays 7.")
                assert rows[:-1] == before[:-1]
                assert rows[-1] == " The seed stays 7."
                rows = await said(app, pilot, LONG)
                assert " ".join(" ".join(rows[-3:]).split()).endswith(LONG[1:])
                assert app.main.jobs.region.bottom <= top(app)
                app.clear_notifications()
                await pilot.pause()
                await pilot.pause()
                assert screen_text(app).splitlines() == before

    run(test())


def test_a_note_covers_no_line_of_a_window_of_the_gallery_or_of_its_keys() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await pilot.press("f1")
            await said(app, pilot, LONG)
            assert "Esc closes" in screen_text(app)
            assert LONG[1:40] in screen_text(app)
            await pilot.press("escape", "escape", "l")
            status = app.screen.query_one("#status")
            await said(app, pilot, LONG)
            assert status.region.bottom <= top(app)

    run(test())


def test_a_note_stays_on_the_screen_on_which_it_was_said() -> None:
    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await said(app, pilot, "The seed stays 7.")
            await pilot.press("f1")
            assert not app.screen.query("Toast")
            await said(app, pilot, "The seed stays 8.")
            await said(app, pilot, "The seed stays 8.")  # it stands there already
            assert screen_text(app).count("The seed stays 8.") == 1
            await pilot.press("escape")
            await pilot.pause()
            assert "The seed stays 7." in screen_text(app)
            assert "The seed stays 8." not in screen_text(app)
            rows = await said(app, pilot, "The seed stays 8.")  # here it was not said yet
            assert rows[-1] == " The seed stays 8."

    run(test())


def test_at_a_start_with_broken_settings_all_sentences_are_in_the_window_alone() -> None:
    config = folders.config_dir()
    (config / "themes").mkdir(parents=True)
    (config / "config.toml").write_text('them = "dark"\nfps = 900')
    (config / "keymap.toml").write_text('"job.cancl" = "x"')
    (config / "themes" / "mine.toml").write_text("dark = 3")

    async def test() -> None:
        async with running(engine=False) as (app, pilot):
            await until(pilot, lambda: "mine.toml" in screen_text(app))
            assert isinstance(app.screen, ReadText)
            assert not app.screen.query("Toast")
            for sentence in ("fps must be", "job.cancl", "mine.toml"):
                assert screen_text(app).count(sentence) == 1

    run(test())
