"""What the progress displays show, from scripted events."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from engine.cli.progress import LineDisplay, PictureProgress, render
from engine.events import (
    Encoded,
    Event,
    ImageSaved,
    LoadProgress,
    MemoryUse,
    PhaseFinished,
    PhaseStarted,
    StepFinished,
)
from engine.text import printable


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def stamp(image: int = 0) -> dict[str, Any]:
    return {"image": image, "elapsed_seconds": 0.0, "memory": MemoryUse(512 * 2**20, 2**30, 3 * 2**30)}


def step(number: int, seconds: float, steps: int = 4) -> Event:
    return StepFinished(**stamp(), step=number, steps=steps, sigma=1.0, seconds=seconds, preview=None)


def shown(progress: PictureProgress, title: str, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(render(progress, title))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_phases_show_state_and_seconds_and_fit_80_columns() -> None:
    clock = Clock()
    progress = PictureProgress(clock)
    progress.start("load")
    clock.now += 2.5
    progress.apply(LoadProgress(**stamp(), component="transformer", done_bytes=2**30, total_bytes=23 * 2**30))
    progress.apply(PhaseStarted(**stamp(), phase="encode"))
    progress.apply(PhaseFinished(**stamp(), phase="encode", seconds=0.3))
    progress.apply(PhaseStarted(**stamp(), phase="denoise"))
    for number in (998, 999):
        progress.apply(step(number, 12.5, steps=1000))
    clock.now += 5
    progress.started -= 3718
    title, load, encode, denoise, decode, save, memory = shown(progress, "a [red] circle \x1b[2J " + "long " * 40)
    assert title.startswith("a [red] circle \\x1b[2J long")
    assert load.split() == ["load", "done", "2.5", "s", "transformer", "1.0", "GiB", "of", "23.0", "GiB"]
    assert encode.split() == ["encode", "done", "0.30", "s"]
    assert denoise.startswith("denoise  running  1:02:03")
    assert denoise.endswith("999 of 1000, 12.50 s/step, 7.5 s left")
    assert [decode.split(), save.split()] == [["decode", "waiting"], ["save", "waiting"]]
    assert memory == "memory 512 MiB RAM, 1.0 GiB VRAM (peak 3.0 GiB)"
    assert max(map(len, (title, load, denoise, memory))) <= 80


def test_the_first_step_does_not_count_once_there_is_another() -> None:
    progress = PictureProgress(Clock())
    seen = [(progress.seconds_per_step, progress.remaining_seconds)]
    for number, seconds in enumerate((9.0, 1.0, 3.0), start=1):
        progress.apply(step(number, seconds))
        seen.append((progress.seconds_per_step, progress.remaining_seconds))
    assert seen == [(None, None), (9.0, 27.0), (1.0, 2.0), (2.0, 2.0)]


def test_the_remaining_time_does_not_stand_still_during_a_step_nor_beyond_it() -> None:
    clock = Clock()
    progress = PictureProgress(clock)
    progress.apply(step(1, 2.0))
    seen = []
    for _ in range(4):
        clock.now += 1.0
        seen.append(progress.remaining_seconds)
    assert seen == [5.0, 4.0, 5.0, 6.0]  # what the running step takes longer, the next ones may, too
    progress.apply(step(4, 2.0))
    assert progress.remaining_seconds == 0.0


def test_loading_in_pieces_adds_up() -> None:
    clock = Clock()
    progress = PictureProgress(clock)
    for _ in range(2):
        progress.apply(LoadProgress(**stamp(), component="vae", done_bytes=0, total_bytes=1))
        clock.now += 1.0
        progress.apply(PhaseStarted(**stamp(), phase="decode"))
        progress.apply(PhaseFinished(**stamp(), phase="decode", seconds=0.1))
    assert progress.seconds["load"] == 2.0


def test_a_log_gets_a_line_every_two_seconds_of_steps_and_one_summary() -> None:
    clock, stream = Clock(), io.StringIO()
    display = LineDisplay(stream, clock)
    display.begin("a \x1b[31mred\ncircle", count=2)
    display.show(PhaseStarted(**stamp(), phase="denoise"))
    for number in range(1, 101):
        clock.now += 0.125
        display.show(step(number, 0.125, steps=100))
    saved = ImageSaved(
        **stamp(),
        path=Path("a.png"),
        seed=7,
        width=128,
        height=64,
        seconds_by_phase={"encode": 0.5, "denoise": 1.0},
    )
    display.show(saved)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "a \\x1b[31mred circle"
    assert lines[1] == "step 16 of 100, 0.12 s/step, 10.5 s left"
    assert len(lines) == 1 + 6 + 1
    assert lines[-1] == "picture 1 of 2: seed 7, 128x64, 1.50 s (encode 0.50, denoise 1.00)"


def test_a_hint_is_said_once_for_all_pictures_of_a_prompt() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream)
    for image in range(3):
        display.show(Encoded(**stamp(image), tokens=3, token_limit=64, cached=image > 0, hint="unknown words: xyz."))
    assert stream.getvalue() == "hint: unknown words: xyz.\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ein rotes Häuschen 赤い丸", "ein rotes Häuschen 赤い丸"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\nb\tc", "a b c"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\udc80", "\\udc80"),
        ("👩\u200d🎨 क्\u200dष", "👩\u200d🎨 क्\u200dष"),
    ],
)
def test_printable_keeps_writing_and_spells_out_control(text: str, expected: str) -> None:
    assert printable(text) == expected
