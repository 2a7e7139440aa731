"""The prompt in the person's own editor."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from tui.editor import EditorError, edited, editor_command


@pytest.mark.parametrize(
    ("env", "here", "command"),
    [
        ({"VISUAL": "code --wait", "EDITOR": "vim"}, "nano vi", ["code", "--wait"]),
        ({"VISUAL": "", "EDITOR": "'my editor' -n"}, "nano vi", ["my editor", "-n"]),
        ({"EDITOR": " "}, "nano vi", ["nano"]),
        ({}, "nano vi", ["nano"]),
        ({}, "vi", ["vi"]),
    ],
)
def test_the_editor_is_the_persons_or_a_usual_one_that_is_there(
    env: dict[str, str], here: str, command: list[str]
) -> None:
    assert editor_command(env, lambda name: name if name in here.split() else None) == command


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({}, "There is neither nano nor vi here; set $EDITOR to the program that you write with."),
        ({"EDITOR": "vim 'x"}, "$EDITOR has a quote that does not end; correct it in your shell."),
    ],
)
def test_where_there_is_no_editor_a_sentence_says_what_to_do(env: dict[str, str], sentence: str) -> None:
    with pytest.raises(EditorError) as raised:
        editor_command(env, lambda _: None)
    assert str(raised.value) == sentence


def test_a_text_goes_through_the_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "editor.py"
    program.write_text(
        "import sys; path = sys.argv[1]; text = open(path).read(); open(path, 'w').write(text + ' above')"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} {program}")
    assert edited("a red circle", nullcontext) == "a red circle above"
    monkeypatch.setenv("VISUAL", f"{sys.executable} -c 'raise SystemExit(3)'")
    with pytest.raises(EditorError, match="ended with exit code 3; the prompt is as it was"):
        edited("a red circle", nullcontext)
