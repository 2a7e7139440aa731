"""What the widgets show, each for itself: bars, phases, pictures of a few cells, the graphics card."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.geometry import Size
from textual.widget import Widget

from engine.cli.progress import PictureProgress
from engine.events import LoadProgress, MemoryUse, PhaseFinished, PhaseStarted, Preview, StepFinished
from tests.apps import run
from tui.card import Card
from tui.excerpt import excerpt
from tui.text import clean, duration, moment, shortened, size
from tui.thumbnails import Thumbnails, read_small
from tui.widgets.gauge import Gauge, Level
from tui.widgets.lines import WorkLine
from tui.widgets.picture import PictureView, fitted, strips
from tui.widgets.timeline import Speed, Timeline

GIB = 2**30
NOTHING: dict[str, Any] = {"image": 0, "elapsed_seconds": 0.0, "memory": MemoryUse(0)}


class Alone(App[None]):
    """One widget, as wide as the terminal."""

    def __init__(self, widget: Widget) -> None:
        super().__init__()
        self.widget = widget

    def compose(self) -> ComposeResult:
        yield self.widget

    def get_theme_variable_defaults(self) -> dict[str, str]:
        from tui.theme_loader import VARIABLE_DEFAULTS

        return VARIABLE_DEFAULTS


def lines_of(widget: Widget, terminal: tuple[int, int], show: Callable[[], None]) -> list[str]:
    """The widget's lines after `show`."""
    found: list[str] = []

    async def test() -> None:
        app = Alone(widget)
        async with app.run_test(size=terminal) as pilot:
            show()
            await pilot.pause()
            found.extend("".join(segment.text for segment in widget.render_line(y)) for y in range(widget.size.height))

    run(test())
    return found


def test_the_gauge_shows_used_peak_budget_and_total() -> None:
    gauge = Gauge()
    level = Level("VRAM", 6 * GIB, 12 * GIB, peak_bytes=9 * GIB, budget_bytes=11 * GIB, notes="GPU 97%")
    (line,) = lines_of(gauge, (120, 5), lambda: gauge.show(level))
    assert "6.0 GiB of 12.0 GiB" in line
    assert "budget 11.0 GiB" in line
    assert "peak 9.0 GiB" in line
    assert "GPU 97%" in line
    bar = line.split()[1]
    assert bar.index("┃") == pytest.approx(len(bar) * 9 / 12, abs=1.5)
    assert bar.count("▓") == pytest.approx(len(bar) / 2, abs=1.5)
    assert bar.endswith("╍")  # beyond the budget


@pytest.mark.parametrize("width", [1, 7, 20, 33, 59, 80, 300])
def test_the_gauge_fits_every_width(width: int) -> None:
    gauge = Gauge(ascii_only=True)
    level = Level("VRAM", 6 * GIB, 12 * GIB, peak_bytes=9 * GIB, budget_bytes=11 * GIB)
    for line in lines_of(gauge, (width, 5), lambda: gauge.show(level)):
        assert cell_len(line) == max(0, width - 2)
        assert line.isascii()


@pytest.mark.parametrize("level", [Level("RAM", 0, 0), Level("RAM", 20 * GIB, 12 * GIB, 30 * GIB, 40 * GIB)])
def test_figures_that_cannot_be_do_no_harm(level: Level) -> None:
    gauge = Gauge()
    (line,) = lines_of(gauge, (80, 5), lambda: gauge.show(level))
    assert cell_len(line) == 78


def progress_after(*events: object) -> PictureProgress:
    progress = PictureProgress(clock=lambda: 7.0)
    for event in events:
        progress.apply(event)  # type: ignore[arg-type]
    return progress


DENOISING = (
    LoadProgress(component="text_encoder", done_bytes=5, total_bytes=5, **NOTHING),
    PhaseStarted(phase="encode", **NOTHING),
    PhaseFinished(phase="encode", seconds=0.4, **NOTHING),
    PhaseStarted(phase="denoise", **NOTHING),
    StepFinished(step=1, steps=4, sigma=1.0, seconds=0.5, preview=None, **NOTHING),
    StepFinished(step=2, steps=4, sigma=0.7, seconds=0.5, preview=None, **NOTHING),
)


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("height", [1, 2, 6])
@pytest.mark.parametrize("width", [1, 20, 60, 80, 120, 200])
def test_the_timeline_fits_every_size(width: int, height: int, ascii_only: bool) -> None:
    timeline = Timeline(ascii_only=ascii_only)
    timeline.styles.height = height
    lines = lines_of(timeline, (width, 10), lambda: timeline.show(progress_after(*DENOISING), "hint: x" * 9))
    assert len(lines) == height
    assert {cell_len(line) for line in lines} == {max(0, width - 2)}
    assert not ascii_only or all(line.isascii() for line in lines)


def test_the_timeline_says_states_times_steps_and_what_is_left() -> None:
    timeline = Timeline()
    timeline.styles.height = 2
    first, second = lines_of(timeline, (100, 5), lambda: timeline.show(progress_after(*DENOISING)))
    assert "● encode 0.40 s" in first
    assert "▶ denoise 2/4" in first
    assert "○ decode" in first
    assert "━" in first
    assert "step 2/4  0.5 s/step, 1.0 s left" in second


def test_loading_says_how_many_bytes() -> None:
    timeline = Timeline()
    timeline.styles.height = 1
    loading = LoadProgress(component="text_encoder_2", done_bytes=3 * GIB, total_bytes=9 * GIB, **NOTHING)
    (line,) = lines_of(timeline, (80, 5), lambda: timeline.show(progress_after(loading)))
    assert "reading text encoder 2 3.0 GiB of 9.0 GiB" in line


def loading(done: float, component: str = "transformer", total: float = 24) -> LoadProgress:
    return LoadProgress(component=component, done_bytes=int(done * GIB), total_bytes=int(total * GIB), **NOTHING)


def test_loading_says_how_fast_and_how_long_it_still_takes() -> None:
    now = 0.0
    progress = PictureProgress(clock=lambda: now)
    timeline = Timeline()
    timeline.styles.height = 2

    def show() -> None:
        nonlocal now
        for now in (0.0, 1.0, 2.0):
            progress.apply(loading(2 * now))
            timeline.show(progress, "loading the model")

    _, line = lines_of(timeline, (100, 5), show)
    assert "reading transformer 4.0 GiB of 24.0 GiB  2.0 GiB/s, 10.0 s left  loading the model" in line


def test_the_speed_of_reading_is_that_of_late() -> None:
    speed = Speed()

    def after(*steps: tuple[float, LoadProgress]) -> float | None:
        for now, progress in steps:
            speed.take(now, progress)
        return speed.bytes_per_second

    assert after() is None
    assert after((0.0, loading(0)), (0.5, loading(1))) is None, "it is too early to say"
    steady = [(float(second), loading(1 + second / 10)) for second in range(1, 30)]
    assert after(*steady) == pytest.approx(GIB / 10, rel=0.01), "the first second is forgotten"
    assert after((31.0, loading(0))) is None, "it begins anew: what was converted is read"
    assert after((33.0, loading(4))) == 2 * GIB
    assert after((34.0, loading(4.5, "vae", 5))) is None, "another component"
    assert after((36.0, loading(4.5, "vae", 5))) is None, "nothing comes"


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", [1, 10, 40, 80, 120])
def test_a_line_of_work_fits_every_width(width: int, ascii_only: bool) -> None:
    line = WorkLine(ascii_only=ascii_only)
    text = "3.0 of 12.0 GiB  100 MiB/s, 1:32 left"
    (shown,) = lines_of(line, (width, 3), lambda: line.show("pull flux.1-dev", text, 0.25))
    assert cell_len(shown) == max(0, width - 2)
    assert not ascii_only or shown.isascii()
    if width >= 80:
        assert shown.rstrip().endswith(f"25 %  {text}")
        bar = shown.removeprefix("pull flux.1-dev ").partition(" ")[0]
        assert bar.count("#" if ascii_only else "\u2501") == len(bar) // 4


def test_a_line_of_work_gives_way_when_nothing_goes_on() -> None:
    line = WorkLine()
    assert lines_of(line, (80, 3), lambda: line.show("scan", "7 folders")) == ["scan  7 folders" + " " * 63]
    line = WorkLine()

    def begin_and_end() -> None:
        line.show("scan", "7 folders")
        line.show("", "")

    assert lines_of(line, (80, 3), begin_and_end) == []


def frame(width: int, height: int) -> Preview:
    return Preview(width, height, bytes(range(256)) * (width * height * 3 // 256) + bytes(width * height * 3 % 256))


@pytest.mark.parametrize("room", [Size(0, 0), Size(1, 1), Size(30, 15), Size(64, 5), Size(5, 64)])
@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (64, 16), (3, 50)])
def test_a_picture_fits_its_room_and_keeps_its_proportions(room: Size, shape: tuple[int, int]) -> None:
    columns, rows = fitted(frame(*shape), room)
    assert columns <= room.width
    assert rows <= room.height
    made = strips(frame(*shape), room)
    assert len(made) == rows
    assert {strip.cell_length for strip in made} <= {columns}
    if min(columns, rows) > 4:
        assert columns / (2 * rows) == pytest.approx(shape[0] / shape[1], rel=0.35)


def test_two_pixels_make_a_cell() -> None:
    red_over_blue = Preview(1, 2, b"\xff\0\0\0\0\xff")
    (strip,) = strips(red_over_blue, Size(1, 1))
    (segment,) = strip
    assert segment.text == "▀"
    assert segment.style is not None
    assert segment.style.color is not None
    assert segment.style.bgcolor is not None
    assert segment.style.color.triplet == (255, 0, 0)
    assert segment.style.bgcolor.triplet == (0, 0, 255)


def test_equal_neighbours_are_sent_as_one() -> None:
    (strip,) = strips(Preview(2, 2, bytes(12)), Size(40, 1))
    assert len(list(strip)) == 1


def test_letters_stand_for_brightness_where_there_are_no_colours() -> None:
    (strip,) = strips(Preview(2, 1, b"\0\0\0\xff\xff\xff"), Size(2, 1), "letters")
    assert strip.text == " @"


def test_a_new_caption_alone_does_not_paint_the_picture_again() -> None:
    view = PictureView()
    painted: list[int] = []
    original = view.render_line

    def counted(y: int) -> object:
        painted.append(y)
        return original(y)

    async def test() -> None:
        app = Alone(view)
        async with app.run_test(size=(40, 20)) as pilot:
            picture = frame(16, 16)
            view.show(picture, "step 1")
            await pilot.pause()
            view.render_line = counted  # type: ignore[method-assign, assignment]
            view.show(picture, "step 2")
            await pilot.pause()
            assert len(set(painted)) == 1

    run(test())


def test_thumbnails_of_anything_but_sound_pictures_are_none(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.new("RGB", (64, 32), "red").save(good)
    small = Thumbnails().get(good, 16, 16)
    assert small is not None
    assert (small.width, small.height) == (16, 8)
    assert small.rgb[:3] == b"\xff\0\0"
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "jpeg.png", "JPEG")
    bomb = bytearray(good.read_bytes())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2  # claims 3.6 thousand million pixels
    (tmp_path / "bomb.png").write_bytes(bomb)
    for name in ("cut.png", "text.png", "folder.png", "jpeg.png", "bomb.png", "missing.png"):
        assert read_small(tmp_path / name, 16, 16) is None, name


def test_a_thumbnail_follows_its_file(tmp_path: Path) -> None:
    path, thumbnails = tmp_path / "a.png", Thumbnails()
    Image.new("RGB", (4, 4), "red").save(path)
    first = thumbnails.get(path, 4, 4)
    assert thumbnails.get(path, 4, 4) is first
    Image.new("RGB", (4, 4), "blue").save(path)
    import os

    os.utime(path, ns=(1, 1))
    second = thumbnails.get(path, 4, 4)
    assert second is not None
    assert second.rgb[:3] == b"\0\0\xff"


def nvml(**answers: object) -> types.ModuleType:
    """A driver that answers, or raises what it is given. There is no card on the machines that test this."""
    module = types.ModuleType("pynvml")

    def answer(name: str) -> Callable[..., object]:
        def call(*_: object) -> object:
            value = answers.get(name)
            if isinstance(value, Exception):
                raise value
            return value

        return call

    names = ("Init", "DeviceGetHandleByUUID", "DeviceGetMemoryInfo", "DeviceGetName")
    for name in (*names, "DeviceGetUtilizationRates", "DeviceGetTemperature", "DeviceGetPowerUsage"):
        setattr(module, f"nvml{name}", answer(name))
    module.NVML_TEMPERATURE_GPU = 0  # type: ignore[attr-defined]
    return module


def test_a_card_tells_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = types.SimpleNamespace(used=3 * GIB, total=12 * GIB)
    driver = nvml(
        DeviceGetMemoryInfo=memory,
        DeviceGetName=b"NVIDIA GeForce RTX 3060",
        DeviceGetUtilizationRates=types.SimpleNamespace(gpu=97),
        DeviceGetTemperature=71,
        DeviceGetPowerUsage=RuntimeError("not supported"),
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    sample = Card("GPU-1").sample()
    assert sample is not None
    assert (sample.name, sample.used_bytes, sample.total_bytes) == ("NVIDIA GeForce RTX 3060", 3 * GIB, 12 * GIB)
    assert (sample.utilization, sample.temperature, sample.watts) == (97, 71, None)


def test_a_card_that_cannot_be_asked_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(DeviceGetMemoryInfo=RuntimeError("card lost")))
    assert Card("GPU-1").sample() is None
    monkeypatch.setitem(sys.modules, "pynvml", nvml(Init=RuntimeError("no driver")))
    assert Card("GPU-1").sample() is None


def test_without_a_driver_the_real_library_says_none() -> None:
    pytest.importorskip("pynvml")
    assert Card("GPU-00000000-0000-0000-0000-000000000000").sample() is None


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("short", 10, "short"),
        ("a long text", 6, "a lon…"),
        ("日本語の文", 5, "日本…"),
        ("x", 0, ""),
        ("a\nb\x1b", 20, "a b\\x1b"),
    ],
)
def test_texts_are_shortened_by_cells(text: str, width: int, expected: str) -> None:
    assert shortened(text, width) == expected
    assert cell_len(shortened(text, width)) <= width


def test_text_for_the_prompt_has_no_control_characters() -> None:
    assert clean("a\r\nb\tc\x1b[31m\x00\x9b\u2028\ud800") == "a\nb c[31m"
    assert clean("日本 👩‍🚀 é") == "日本 👩‍🚀 é"


def test_a_time_is_said_and_one_that_no_calendar_has_does_no_harm() -> None:
    assert len(moment(0)) == len("1970-01-01 00:00")
    assert moment(1e30) == moment(-1e30) == "at some time"


def test_figures_are_for_people() -> None:
    assert [duration(seconds) for seconds in (0.4, 9.6, 59.99, 185, 3600)] == [
        "0.40 s",
        "9.6 s",
        "60.0 s",
        "3:05",
        "1:00:00",
    ]
    assert [size(count) for count in (5, 2048, 3 * 2**20, 11.9 * GIB)] == ["5 bytes", "2 KiB", "3 MiB", "11.9 GiB"]


@pytest.mark.parametrize(
    ("text", "neighbours", "width", "expected"),
    [
        ("a red circle", ("a red square",), 20, "a red circle"),
        ("a red circle above a green square", ("a blue circle",), 20, "a red circle above…"),
        ("a red circle above a green square", ("a red circle above a blue square",), 24, "a red circ… green square"),
        ("a red circle above a green square", ("a red circle above a blue square", "x"), 10, "…green sq…"),
        ("the same and the same again", ("the same and the same again",), 12, "the same an…"),
        ("a circle", ("a circle in the rain",), 5, "a ci…"),
        ("雨雨雨雨雨雨 夜 赤", ("雨雨雨雨雨雨 夜 青",), 12, "雨雨雨雨… 赤"),
        ("", ("a",), 5, ""),
        ("a [b]\x1bc[/b]", (), 3, "a…"),
    ],
)
def test_an_excerpt_shows_where_a_prompt_differs(
    text: str, neighbours: tuple[str, ...], width: int, expected: str
) -> None:
    assert excerpt(text, neighbours, width) == expected
    for cells in range(1, 40):
        assert cell_len(excerpt(text, neighbours, cells)) <= cells
