"""The prompt in the person's own editor: what comes back, and what is said where nothing does."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from tui.editor import EditorError, edited

TEXT = "a red circle,\n赤い円 \udc80"  # the last is no character: it is not worth an error


def use_editor(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", shlex.join(command))


def test_what_was_written_in_the_editor_comes_back_and_no_file_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    script = "import sys; open(sys.argv[1], 'a', encoding='utf-8').write('\\nand a square\\n\\n')"
    use_editor(monkeypatch, sys.executable, "-c", script)
    assert edited(TEXT, nullcontext) == "a red circle,\n赤い円 ?\nand a square"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "sentence", "severity"),
    [
        ((), "Set $EDITOR to the program that you write with", "warning"),
        ((sys.executable, "-c", "raise SystemExit(3)"), "ended with exit code 3; the prompt is as it was.", "warning"),
        (("/nowhere/vim",), "/nowhere/vim could not be run: ", "error"),
    ],
)
def test_an_editor_that_writes_nothing_is_one_sentence(
    command: tuple[str, ...], sentence: str, severity: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    use_editor(monkeypatch, *command)
    with pytest.raises(EditorError) as refused:
        edited(TEXT, nullcontext)
    assert sentence in str(refused.value)
    assert refused.value.severity == severity
    assert not list(tmp_path.iterdir())
