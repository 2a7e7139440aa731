"""What is read in the prompt and in fields is what is there: characters that cannot be seen are marked and counted."""

from __future__ import annotations

from collections.abc import Callable

from textual.app import App, ComposeResult
from textual.pilot import Pilot

from tests.apps import run
from tui.text import marked
from tui.widgets.field import Field
from tui.widgets.prompt import PromptArea

NEEDED = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f680 \u2764\ufe0f"
HIDDEN = "a \u202eder\u202c sq\u200bua\ufe0fre"


class Editors(App[None]):
    """The prompt and a field, 30 cells wide."""

    CSS = "PromptArea { height: 6; border: round; } Field { height: 1; }"

    def compose(self) -> ComposeResult:
        yield PromptArea(list, lambda: None, id="prompt")
        yield Field(HIDDEN, id="field")


def in_editors(test: Callable[[Pilot[None], PromptArea, Field], object]) -> None:
    async def body() -> None:
        async with Editors().run_test(size=(30, 10)) as pilot:
            await test(pilot, pilot.app.query_one(PromptArea), pilot.app.query_one(Field))  # type: ignore[misc]

    run(body())


def painted(widget: PromptArea | Field) -> list[str]:
    return [widget.render_line(y).text.rstrip() for y in range(widget.size.height)]


def test_a_mark_stands_for_each_hidden_character_and_none_for_what_scripts_need() -> None:
    assert marked(HIDDEN) == ("a ?der? sq?ua?re", [2, 6, 10, 13])
    assert marked(NEEDED) == (NEEDED, [])


def test_hidden_characters_of_a_prompt_are_marked_and_counted_and_stay_in_it() -> None:
    async def test(pilot: Pilot[None], prompt: PromptArea, field: Field) -> None:
        prompt.put(HIDDEN)
        await pilot.pause()
        assert painted(prompt)[0] == "a ?der? sq?ua?re"
        reversed_ones = [s.text for s in prompt.render_line(0) if s.style is not None and s.style.reverse]
        assert "".join(reversed_ones).count("?") == 4
        assert str(prompt.border_subtitle) == "4 hidden characters: U+202E, U+202C, U+200B, ..."
        assert prompt.text == HIDDEN
        assert prompt.get_column_width(0, len(HIDDEN)) == 16
        prompt.put(NEEDED)
        await pilot.pause()
        assert painted(prompt)[0] == NEEDED
        assert str(prompt.border_subtitle) == ""
        assert painted(field)[0] == "a ?der? sq?ua?re"
        assert field.value == HIDDEN

    in_editors(test)


def test_marks_take_part_in_wrapping_and_in_moving() -> None:
    async def test(pilot: Pilot[None], prompt: PromptArea, field: Field) -> None:
        prompt.focus()
        prompt.put("\u200b" * 40 + "end")
        await pilot.pause()
        first, second, *_ = painted(prompt)
        assert set(first) == {"?"}
        assert first + second == "?" * 40 + "end"
        await pilot.press("backspace", "left", "left")
        assert prompt.cursor_location == (0, 40)
        await pilot.press("delete", "x")
        assert prompt.text == "\u200b" * 40 + "xn"
        await pilot.press("up")
        assert prompt.cursor_location == (0, 41 - len(first))
        prompt.move_cursor((0, len(first)))
        await pilot.press("home", "delete")
        assert prompt.text == "\u200b" * 39 + "xn"

    in_editors(test)
