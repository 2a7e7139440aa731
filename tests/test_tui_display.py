"""What is sent to the terminal: only what changed, right in every terminal, and never waited for."""

from __future__ import annotations

import os
import pty
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pyte
import pytest
from rich.color import Color, ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip

from engine.events import Preview
from tests.apps import notes, run, running, screen_text, until
from tui.app import SLOW_LINE
from tui.display.cells import PART, Cells, Look, Piece, change, look_of
from tui.display.driver import ANSWERS, TerminalDriver, pieces_of
from tui.display.graphics import Graphics
from tui.display.pace import Pace
from tui.display.palette import nearest
from tui.display.writer import QUESTION, Question, Writer
from tui.launch import _driver

WIDTH, HEIGHT = 40, 12
DEPTHS = [ColorSystem.STANDARD, ColorSystem.EIGHT_BIT, ColorSystem.TRUECOLOR]
TEXTS = ["a", "red circle", "  ", "▀▄▀", "█▌", "─╮", "日本", "é", "ü…", "→", "◾", "x日y", " · ", "ー"]


def seen(screen: pyte.Screen) -> list[list[tuple[Any, ...]]]:
    """What a person sees, cell by cell: of a space only the background, half a block on its own colour is a space."""
    rows: list[list[tuple[Any, ...]]] = []
    for y in range(screen.lines):
        row: list[tuple[Any, ...]] = []
        for x in range(screen.columns):
            cell = screen.buffer[y][x]
            foreground, background = (cell.bg, cell.fg) if cell.reverse else (cell.fg, cell.bg)
            lines = (cell.underscore, cell.strikethrough)
            if cell.data == " " or (cell.data in "▀▄" and foreground == background and foreground != "default"):
                row.append((" ", background, lines, foreground if any(lines) else ""))
            else:
                row.append((cell.data, background, lines, foreground, cell.bold, cell.italics))
        rows.append(row)
    return rows


def a_terminal(depth: ColorSystem) -> tuple[Cells, pyte.Screen, pyte.Stream]:
    """A terminal, what goes to it, and what is known of its cells: nothing yet."""
    cells = Cells(depth)
    cells.forget(WIDTH, HEIGHT)
    screen = pyte.Screen(WIDTH, HEIGHT)
    return cells, screen, pyte.Stream(screen)


def matched(style: Style, depth: ColorSystem) -> Style:
    """The same with numbers of the palette for its colours, where there are 256."""
    if depth is not ColorSystem.EIGHT_BIT:
        return style
    colours = [
        color if color is None or color.triplet is None else Color.from_ansi(nearest(*color.triplet))
        for color in (style.color, style.bgcolor)
    ]
    return style + Style(color=colours[0], bgcolor=colours[1])


def painted(pieces: list[Piece], depth: ColorSystem) -> pyte.Screen:
    """A terminal on which each strip was painted whole, as Textual does (but for the match of 256 colours)."""
    screen = pyte.Screen(WIDTH, HEIGHT)
    stream = pyte.Stream(screen)
    for row, column, strip in pieces:
        text = "".join(
            text if style is None else f"\x1b[{Strip.render_ansi(matched(style, depth), depth)}m{text}\x1b[m"
            for text, style, _ in strip
        )
        stream.feed(f"\x1b[m\x1b[{row + 1};{column + 1}H{text}")
    return screen


def a_style(chance: random.Random) -> Style | None:
    if chance.random() < 0.2:
        return None
    colours = ["default", "#102030", "#ff0000", "#fe0000", "color(12)", "color(200)", "bright_black", None]
    attributes: dict[str, Any] = {
        name: True for name in ("bold", "italic", "underline", "reverse", "strike") if chance.random() < 0.1
    }
    return Style(color=chance.choice(colours), bgcolor=chance.choice(colours), **attributes)


def a_line(chance: random.Random, width: int) -> Strip:
    """A strip of just this width."""
    segments: list[Segment] = []
    while sum(segment.cell_length for segment in segments) < width:
        segments.append(Segment(chance.choice(TEXTS), a_style(chance)))
    return Strip(segments).crop(0, width)


@pytest.mark.parametrize("depth", DEPTHS, ids=lambda depth: depth.name)
@pytest.mark.parametrize("seed", range(6))
def test_what_changed_is_all_that_a_terminal_needs(seed: int, depth: ColorSystem) -> None:
    chance = random.Random(seed)
    cells, screen, stream = a_terminal(depth)
    shown = {row: a_line(chance, WIDTH) for row in range(HEIGHT)}
    pieces = [(row, 0, line) for row, line in shown.items()]
    stream.feed(cells.update(pieces, (3, 3)))
    assert seen(screen) == seen(painted(pieces, depth))
    for _ in range(30):
        row, column = chance.randrange(HEIGHT), chance.randrange(0, WIDTH, 2)
        part = a_line(chance, chance.randint(1, WIDTH - column))
        line = shown[row]
        shown[row] = Strip.join([line.crop(0, column), part, line.crop(column + part.cell_length, WIDTH)])
        if chance.random() < 0.5:
            pieces = [(row, 0, shown[row])]
        else:  # pieces as widgets paint them; what a wide character loses beside them is painted, too
            ends = (0, column, column + part.cell_length, WIDTH)
            pieces = [(row, start, shown[row].crop(start, end)) for start, end in pairwise(ends)]
            pieces = [piece for piece in pieces if piece[2].cell_length]
        cursor = (chance.randrange(WIDTH), chance.randrange(HEIGHT))
        stream.feed(cells.update(pieces, cursor))
        assert (screen.cursor.x, screen.cursor.y) == cursor
        whole = [(row, 0, line) for row, line in shown.items()]
        assert seen(screen)[row] == seen(painted(whole, depth))[row]
        assert cells.update(whole, cursor) == ""


LONGEST = PART * 60  # characters of the cells after which it is looked whether there is room


@pytest.mark.parametrize("depth", DEPTHS, ids=lambda depth: depth.name)
@pytest.mark.parametrize("seed", range(4))
def test_frames_that_are_cut_leave_nothing_wrong(seed: int, depth: ColorSystem) -> None:
    chance = random.Random(seed)
    cells, screen, stream = a_terminal(depth)
    shown = {row: a_line(chance, WIDTH) for row in range(HEIGHT)}
    for _ in range(10):
        for _ in range(chance.randint(1, 6)):  # the next comes before the last is through
            row = chance.randrange(HEIGHT)
            shown[row] = a_line(chance, WIDTH) if chance.random() < 0.7 else shown[row]
            limit = chance.choice([1, 30, 300, 3000])
            cursor = (chance.randrange(WIDTH), chance.randrange(HEIGHT))
            sent = cells.update([(row, 0, line) for row, line in shown.items()], cursor, limit=limit)
            assert len(sent) < limit + LONGEST
            stream.feed(sent)
            assert (screen.cursor.x, screen.cursor.y) == cursor
        whole = [(row, 0, line) for row, line in shown.items()]
        frames = 0
        while frames == 0 or not cells.is_complete:
            stream.feed(cells.update(whole, cursor, limit=200))
            frames += 1
            assert frames < 500
        assert seen(screen) == seen(painted(whole, depth))
        assert cells.update(whole, cursor) == ""


def a_picture(chance: random.Random, width: int = 20) -> Strip:
    """A line of half blocks of which no two are alike."""
    colours = [chance.choices(range(256), k=6) for _ in range(width)]
    return Strip([Segment("▀", Style.parse("rgb({},{},{}) on rgb({},{},{})".format(*each))) for each in colours])


def test_what_is_typed_comes_before_text_and_text_before_pictures() -> None:
    chance = random.Random(0)
    cells = Cells(ColorSystem.TRUECOLOR)
    cells.forget(WIDTH, HEIGHT)
    frame = [(row, 0, a_picture(chance)) for row in range(4)]
    frame += [(row, 0, text_of(f"line {row}")) for row in range(4, 8)]
    order = ["line 7", "line 4", "line 5", "line 6", "▀"]
    sent = cells.update(frame, (1, 7), limit=2000)
    assert sorted(order, key=sent.index) == order
    assert not cells.is_complete
    rest = cells.update(frame, (1, 7), limit=2000)
    assert "line" not in rest
    assert (sent + rest).count("▀") == 80
    assert cells.update(frame, (1, 7), limit=1) == ""
    cells.update([(3, 0, text_of("a dialog over it"))], (1, 7))
    sent = cells.update([(row, 0, a_picture(chance)) for row in range(4)], (1, 7), limit=400)
    assert "\x1b[4H" in sent, "what is left of a dialog goes before a picture changes"


def text_of(text: str, style: str = "") -> Strip:
    return Strip([Segment(text, Style.parse(style) if style else None)])


def test_what_a_terminal_would_obey_is_not_sent_as_text() -> None:
    cells = Cells(ColorSystem.EIGHT_BIT)
    cells.forget(80, 1)
    sent = cells.update([(0, 0, Strip([Segment(each) for each in ("a", "\x9b", "31m", "\x85", "\x7f", "é")]))])
    assert not any(each in sent for each in "\x9b\x85\x7f")
    assert "é" in sent


def test_a_letter_costs_a_few_bytes_and_nothing_costs_nothing() -> None:
    cells = Cells(ColorSystem.EIGHT_BIT)
    cells.forget(80, 24)
    cells.update([(row, 0, text_of("x" * 80, "#ff0000 on #000000")) for row in range(24)], (0, 0))
    line = "x" * 40 + "y" + "x" * 39
    assert len(cells.update([(5, 0, text_of(line, "#ff0000 on #000000"))], (41, 5))) <= 10
    assert cells.update([(5, 0, text_of(line, "#ff0000 on #000000"))], (41, 5)) == ""
    assert cells.update([(5, 0, text_of(line, "#fe0000 on #000000"))], (41, 5)) == "", "the same of 256 colours"


def test_letters_beside_a_character_of_doubtful_width_need_no_cursor_of_their_own() -> None:
    cells = Cells(ColorSystem.TRUECOLOR)
    cells.forget(20, 1)
    sent = cells.update([(0, 0, text_of("\u25cf load \u2500\u2500 \u65e5 \u00fcber"))])
    assert "\u25cf load \u2500\u2500 \u65e5\x1b[1;13H \u00fcber" in sent


def test_a_terminals_own_graphics_pass_unchanged() -> None:
    cells = Cells(ColorSystem.TRUECOLOR)
    cells.forget(20, 3)
    cells.update([(row, 0, text_of(" " * 20)) for row in range(3)])
    graphics = Strip([Segment("\x1b_Ga=T;AAAA\x1b\\", None, [(1, 2)]), Segment("    ")], 4)  # type: ignore[list-item]
    sent = cells.update([(1, 2, graphics)])
    assert "\x1b[2;3H" in sent
    assert "\x1b_Ga=T;AAAA\x1b\\" in sent
    assert cells.update([(0, 0, text_of(" " * 20))], (0, 0)) == "\x1b[H", "rows that are not theirs are known"
    again = cells.update([(row, 0, text_of(" " * 20)) for row in range(3)], (0, 0))
    assert again.count(" " * 20) == 3, "a picture covers more rows than the one that brought it"


def test_text_beside_graphics_has_the_colours_of_other_text() -> None:
    cells = Cells(ColorSystem.EIGHT_BIT)
    cells.forget(20, 2)
    red = Style.parse("#dc323c")  # which Rich makes another of than the app
    graphics = Segment("\x1b_Ga=T;AAAA\x1b\\", None, [(1, 2)])  # type: ignore[list-item]
    sent = cells.update([(0, 0, Strip([Segment("text", red)])), (1, 0, Strip([graphics, Segment("text", red)]))])
    assert sent.count(f"38;5;{nearest(0xDC, 0x32, 0x3C)}m") == 2
    assert sent.count("38;5;") == 2


def test_a_cluster_that_a_terminal_draws_narrower_leaves_nothing_beside_it() -> None:
    cells = Cells(ColorSystem.TRUECOLOR)
    cells.forget(10, 1)
    screen = pyte.Screen(10, 1)
    stream = pyte.Stream(screen)
    stream.feed(cells.update([(0, 0, text_of("abcdefghij"))]))
    stream.feed(cells.update([(0, 0, text_of("\u2764\ufe0fcdefghij"))]))
    assert "b" not in screen.display[0]
    assert screen.display[0].rstrip().endswith("cdefghij")


@pytest.mark.parametrize(
    ("before", "after", "sent"),
    [
        (None, Look(), "\x1b[m"),
        (None, Look("38;5;1", "", ("1",)), "\x1b[0;1;38;5;1m"),
        (Look("31", "42"), Look("31", "43"), "\x1b[43m"),
        (Look("31", "42"), Look("", "42"), "\x1b[39m"),
        (Look("31", "42", ("1",)), Look("31", "42"), "\x1b[22m"),
        (Look("31", "42", ("1", "2")), Look("31", "42", ("2",)), "\x1b[22;2m"),
        (Look("38;2;1;2;3", "48;2;1;2;3", ("1", "4")), Look(), "\x1b[m"),
    ],
)
def test_the_shortest_change_of_style_is_sent(before: Look | None, after: Look, sent: str) -> None:
    assert change(before, after) == sent


def test_colours_are_compared_as_the_terminal_gets_them() -> None:
    near, other = Style.parse("#102030 on #000000"), Style.parse("#112030 on #000000")
    assert look_of(near, ColorSystem.EIGHT_BIT) == look_of(other, ColorSystem.EIGHT_BIT)
    assert look_of(near, ColorSystem.TRUECOLOR) != look_of(other, ColorSystem.TRUECOLOR)


# The app, on a terminal that plays what it is sent.

KEYS = [*"abc ", *"left up down backspace escape f1 f9 ctrl+r tab enter pagedown question_mark".split()]


class Shown:
    """In the place of the driver: frames go to a function, and the terminal has always room."""

    sent_bytes, has_room, bytes_per_second = 0, True, None

    def __init__(self, show: Callable[..., None]) -> None:
        self.show, self.is_slow = show, False

    def forget(self) -> None:
        """Nothing is remembered."""


def words(lines: Iterable[str]) -> list[list[str]]:
    """What is written on each line; half a block on its own colour is a space."""
    return [line.replace("▀", " ").split() for line in lines]


@pytest.mark.parametrize("limit", [None, 700], ids=["whole", "cut"])
@pytest.mark.parametrize("depth", DEPTHS, ids=lambda depth: depth.name)
def test_a_session_leaves_the_terminal_as_a_whole_frame_would(depth: ColorSystem, limit: int | None) -> None:
    async def session() -> None:
        chance = random.Random(depth.value)
        async with running((80, 24), engine=False) as (app, pilot):
            screen = pyte.Screen(80, 24)
            stream = pyte.Stream(screen)
            cells = Cells(depth)
            sizes: list[int] = []

            class Played(Shown):
                def forget(self) -> None:
                    cells.forget(*app.size)

            def show(update: Any, cursor: tuple[int, int], size: tuple[int, int]) -> None:
                if (cells.width, cells.height) != tuple(size):
                    cells.forget(*size)
                    screen.resize(size[1], size[0])
                text = cells.update(pieces_of(update), cursor, limit=limit)
                sizes.append(len(text))
                stream.feed(text)
                if not cells.is_complete:
                    app.call_later(app.catch_up)

            app.terminal = Played(show)
            app.repaint()
            for number in range(40):
                await pilot.press(chance.choice(KEYS))
                app.main.picture.show(Preview(32, 32, chance.randbytes(3 * 32 * 32)), f"step {number}")
                if number == 20:
                    await pilot.resize_terminal(100, 30)
                    app.repaint()
            while sizes:  # behind a dialog a preview is painted some frames after it was given
                sizes.clear()
                await pilot.pause(0.3)
            assert cells.is_complete
            shown = seen(screen)
            app.repaint()
            await until(pilot, lambda: cells.is_complete)
            assert shown == seen(screen)
            assert words(screen.display) == words(screen_text(app).split("\n"))
            app.catch_up()
            assert sizes[-1] == 0, "a frame that is shown already costs nothing"

    run(session())


def test_what_lies_around_a_dialog_is_painted_again_with_it() -> None:
    async def dialog() -> None:
        async with running((80, 24), engine=False) as (app, pilot):
            painted: list[str] = []

            def show(update: Any, cursor: tuple[int, int], size: tuple[int, int]) -> None:
                painted[:] = ["".join(segment.text for _, _, strip in pieces_of(update) for segment in strip)]

            app.terminal = Shown(show)
            await pilot.press("f9")
            await pilot.pause()
            app.repaint()
            assert "parameters" in painted[0]
            assert "prompt" in painted[0]

    run(dialog())


# The way there.


class Line:
    """A pseudo-terminal whose other end reads when it is told to, and answers questions if it is a terminal's."""

    def __init__(self, *, answers: bool = True, rest: Callable[[int], bytes] = lambda size: b"") -> None:
        self.master, self.slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.answers = answers
        self.room, self.gone = threading.Event(), threading.Event()
        self.writer = Writer(self.slave, room=self.room.set, gone=self.gone.set, rest=rest)

    def read(self) -> bytes:
        data = b""
        while True:
            try:
                part = os.read(self.master, 65536)
            except BlockingIOError:
                break
            data += part
        if self.answers:
            for _ in range(data.count(QUESTION)):
                self.writer.answered()
        return data

    def flow(self) -> None:
        """Read until all is written."""
        while not self.writer.drain(0):
            self.read()

    def frame(self, size: int) -> bool:
        """Send a frame if there is room for one, as the driver does."""
        if not self.writer.has_room():
            return False
        self.writer.write(b"x" * size)
        self.writer.ask(size)
        return True


@pytest.fixture
def line() -> Iterator[Callable[..., Line]]:
    lines: list[Line] = []

    def make(**options: Any) -> Line:
        lines.append(Line(**options))
        return lines[-1]

    yield make
    for each in lines:
        each.writer.close(0.0)
        for end in (each.master, each.slave):
            os.close(end)


def test_a_terminal_that_takes_nothing_is_not_waited_for(line: Callable[..., Line]) -> None:
    frozen = line()
    began = time.monotonic()
    sent = sum(frozen.frame(5000) for _ in range(200))
    for _ in range(20):
        frozen.writer.write(b"\x07")  # what must not be left out is kept
    assert sent < 5, "frames are left out"
    assert time.monotonic() - began < 5
    data = b""
    while not frozen.room.is_set():  # it reads again
        data += frozen.read()
        time.sleep(0.001)
    assert frozen.frame(10), "and there is room at once"
    assert frozen.writer.drain(5)
    data += frozen.read()
    assert data.count(b"\x07") == 20
    assert data.count(b"x") == sent * 5000 + 10


def test_a_frame_is_no_larger_than_the_line_carries_in_a_moment(line: Callable[..., Line]) -> None:
    slow = line()
    writer = slow.writer
    assert writer.frame_bytes is None, "nothing is known"

    def sent(size: int, seconds: float) -> None:
        """A frame whose answer took so long."""
        writer.write(b"x" * size)
        writer.ask(size)
        writer.drain(5)
        writer._asked[0] = writer._asked[0]._replace(asked=time.monotonic() - seconds)
        writer._answered_at = 0.0
        slow.read()

    sent(200, 0.15)
    assert writer.frame_bytes is None, "the way alone took that long"
    sent(8000, 1.15)
    assert writer.bytes_per_second == pytest.approx(8000, rel=0.2)
    assert writer.frame_bytes == pytest.approx(2000, rel=0.2)
    for _ in range(12):
        sent(4000, 0.16)
    assert (writer.frame_bytes or 0) > 20_000, "the line is another one"
    sent(2000, 3600)
    for _ in range(25):
        sent(1024, 0.16)
    assert (writer.frame_bytes or 0) > 5_000, "the lid was closed"


def test_the_next_frame_follows_when_the_line_has_carried_the_last(line: Callable[..., Line]) -> None:
    slow = line()
    writer = slow.writer
    writer.write(b"x")
    writer.ask(2000)
    writer.drain(5)
    writer._asked[0] = writer._asked[0]._replace(asked=time.monotonic() - 0.1)
    slow.read()
    writer._carried, writer._busy = 40_000.0, 1.0
    assert slow.frame(10_000)
    assert writer.drain(5)
    assert not slow.frame(1), "a quarter of a second"
    writer._line_free = time.monotonic()
    assert slow.frame(1), "though no answer can be here yet"
    writer._asked[0] = writer._asked[0]._replace(late=time.monotonic())
    assert not slow.frame(1), "it is late: the line is slower than it was"


def test_what_sets_a_terminal_up_holds_back_no_frame(line: Callable[..., Line]) -> None:
    fresh = line()
    with fresh.writer._lock:  # its thread does not come to anything meanwhile
        fresh.writer.write(b"\x1b[?1049h")
        assert fresh.frame(3000)
        assert not fresh.frame(3000)


def test_only_one_frame_is_on_its_way_to_a_terminal_that_answers(line: Callable[..., Line]) -> None:
    slow = line()
    assert slow.frame(3000)
    assert slow.writer.drain(5)
    slow.read()  # and it has answered
    assert slow.frame(3000)
    assert slow.writer.drain(5), "the line has taken it"
    assert not slow.frame(3000), "but nobody has seen it yet"
    slow.read()
    assert slow.room.wait(5)
    assert slow.frame(3000)


def test_an_answer_that_is_under_way_is_waited_for_before_another_program_reads(line: Callable[..., Line]) -> None:
    late = line()
    assert late.frame(3000)
    assert late.writer.drain(5)
    late.read()
    assert late.frame(3000)
    assert late.writer.drain(5)
    threading.Timer(0.05, late.read).start()
    late.writer.settle()
    assert not late.writer._asked
    late.writer.write(b"x")
    late.writer.ask(3000)
    assert not late.writer._asked, "and nothing is asked any more"


def test_a_lost_answer_is_not_waited_for_as_long_as_a_frozen_line(line: Callable[..., Line]) -> None:
    lossy = line()
    assert lossy.frame(3000)
    lossy.flow()
    lossy.read()
    lossy.answers = False
    for seconds in (3, 6, 12, 24, 30, 30):
        assert lossy.frame(3000)
        lossy.flow()
        (question,) = lossy.writer._asked
        lossy.writer._asked[0] = question._replace(asked=question.asked - seconds + 2.5, late=0.0)
        assert not lossy.frame(0), "an answer may come"
        lossy.writer._asked[0] = question._replace(asked=question.asked - seconds)
        assert lossy.frame(0), "none will"
    quickest = lossy.writer.quickest
    lossy.writer.answered()
    assert lossy.writer._patience == 3
    assert lossy.writer.quickest == quickest, "it may be the answer to an earlier question"


def test_a_terminal_that_answers_nothing_gets_a_bounded_rate(line: Callable[..., Line]) -> None:
    silent = line(answers=False)
    sent = 0
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        sent += silent.frame(4000)
        silent.read()
        time.sleep(0.002)
    assert 4 <= sent <= 12


def test_a_terminal_that_is_gone_is_told_once(line: Callable[..., Line]) -> None:
    lost = line()
    os.close(lost.master)
    lost.writer.write(b"x")
    assert lost.gone.wait(5)
    lost.writer.write(b"x")
    assert lost.writer.drain(0.1)
    lost.master = os.open("/dev/null", os.O_RDONLY)


def test_a_line_is_slow_when_answers_are_late_again_and_again(line: Callable[..., Line]) -> None:
    writer = line().writer
    for seconds, slow in ((0.1, False), (9.0, False), (0.2, False), (2.0, False), (2.0, False), (2.0, True)):
        writer._asked.append(Question(0, 0, time.monotonic() - seconds, 0.0))
        writer.answered()
        assert writer.is_slow == slow


def test_previews_cost_no_more_than_the_line_is_given() -> None:
    pace = Pace(2, 1000)
    assert pace.is_due(0.0, 0, room=True)
    assert not pace.is_due(0.4, 100, room=True), "two a second"
    assert not pace.is_due(0.5, 100, room=False), "the terminal is behind"
    assert pace.is_due(0.6, 100, room=True)
    assert not pace.is_due(2.5, 2100, room=True), "the last one cost two seconds"
    assert pace.is_due(2.7, 2100, room=True)
    assert not pace.is_due(3.7, 2600, room=True, line=800), "half of the line is for what is typed"
    assert pace.is_due(4.0, 2600, room=True, line=800)
    assert Pace(2, None).is_due(0.0, 0, room=True)


def test_what_helps_on_a_slow_line_is_said_once() -> None:
    async def session() -> None:
        async with running(engine=False) as (app, pilot):
            app._tell_if_slow()
            assert SLOW_LINE not in notes(app)
            app.terminal = Shown(lambda *frame: None)
            app.terminal.is_slow = True
            app._tell_if_slow()
            app._tell_if_slow()
            await pilot.pause()
            assert notes(app).count(SLOW_LINE) == 1

    run(session())


# A terminal's own pictures.


def a_kitty_picture(number: int, parts: int = 3) -> list[str]:
    """As textual-image writes one."""
    data = [f"\x1b_Gi={number},m={int(part + 1 < parts)},f=100,q=2;{'A' * 4096}\x1b\\" for part in range(parts)]
    return [*data, f"\x1b_Ga=p,i={number},c=10,r=5,U=1,q=2\x1b\\"]


def sent_by(graphics: Graphics, limit: int = 1) -> str:
    """All that it gives."""
    return "".join(iter(lambda: graphics.take(limit).decode(), ""))


def test_what_packages_write_to_standard_output_goes_the_apps_way() -> None:
    before, woken = sys.__stdout__, []
    graphics = Graphics(lambda: woken.append(1))
    graphics.start()
    try:
        assert sys.__stdout__ is not None
        for part in a_kitty_picture(7):
            sys.__stdout__.write(part)
            sys.__stdout__.flush()
        assert sys.__stdout__.encoding == getattr(before, "encoding", None)
        assert len(woken) == 4
        assert graphics.take(5000).count(b"\x1b_G") == 2
        assert sent_by(graphics).count("\x1b_G") == 2
    finally:
        assert graphics.stop() == b""
    assert graphics.is_empty
    assert sys.__stdout__ is before


def test_a_picture_that_is_taken_back_is_not_sent() -> None:
    graphics = Graphics(lambda: None)
    for number in (1, 2):
        for part in a_kitty_picture(number):
            graphics.write(part)
    graphics.write("\x1b_Ga=d,I=1\x1b\\")
    assert "i=1," not in (sent := sent_by(graphics))
    assert sent.count("i=2,") == 4


@pytest.mark.parametrize("tmux", [False, True])
def test_a_picture_that_is_half_sent_is_ended_before_it_is_taken_back(tmux: bool) -> None:
    def write(part: str) -> None:
        graphics.write("\x1bPtmux;" + part.replace("\x1b", "\x1b\x1b") + "\x1b\\" if tmux else part)

    graphics = Graphics(lambda: None)
    for part in a_kitty_picture(1):
        write(part)
    assert b"m=1" in graphics.take(1)
    write("\x1b_Ga=d,I=1\x1b\\")
    rest = sent_by(graphics)
    assert "m=1" not in rest
    assert rest.index("m=0") < rest.index("a=d")
    assert "a=p" not in rest
    for part in a_kitty_picture(2):
        write(part)
    graphics.take(1)
    assert graphics.stop().count(b"m=0") == 1, "the app leaves"


def test_pictures_wait_for_frames_and_what_stands_for_them_waits_for_them(line: Callable[..., Line]) -> None:
    graphics = Graphics(lambda: kitty.writer.wake())
    kitty = line(rest=graphics.take)
    assert kitty.frame(3000)
    kitty.flow()
    for part in a_kitty_picture(1, 20):
        graphics.write(part)
    data = b""
    while b"a=p" not in data:
        kitty.writer.write(b"x")  # what is typed is not behind all of it
        data += kitty.read()
        time.sleep(0.002)
    assert data.index(b"x") < data.index(b"m=0")
    while not graphics.is_empty:
        kitty.read()
        time.sleep(0.002)
    assert kitty.room.wait(5), "they can be shown"


def test_a_picture_lets_every_frame_before_it(line: Callable[..., Line]) -> None:
    graphics = Graphics(lambda: kitty.writer.wake())
    kitty = line(rest=graphics.take)
    kitty.writer._carried, kitty.writer._busy = 20_000.0, 1.0  # what the line was seen to carry
    ended, shown = threading.Event(), 0

    def carry() -> None:
        """A terminal behind such a line."""
        read = b""
        while b"m=0" not in read:
            time.sleep(0.02)
            with suppress(BlockingIOError):
                read += (piece := os.read(kitty.master, 400))
                for _ in range(piece.count(QUESTION)):
                    kitty.writer.answered()
        ended.set()

    for part in a_kitty_picture(1, 12):
        graphics.write(part)
    terminal = threading.Thread(target=carry)
    terminal.start()
    kitty.writer.want_room()
    offers = 0
    while not ended.is_set():
        if kitty.room.wait(0.1):
            kitty.room.clear()
            time.sleep(0.005)  # the app makes its frame
            offers += 1
            shown += kitty.frame(300)
        kitty.writer.want_room()  # and has the next
    terminal.join()
    assert shown > 2
    assert shown >= offers - 1, "a picture takes no frame's turn"


def test_what_stands_for_a_picture_keeps_its_number() -> None:
    cells = Cells(ColorSystem.EIGHT_BIT)
    cells.forget(10, 1)
    stands = text_of("\U0010eeee\u0305\u0305\u0305\U0010eeee\u0305\u030d\u0305", "rgb(1,2,3)")
    assert cells.update([(0, 0, stands)], pictures_wait=True) == ""
    sent = cells.update([(0, 0, stands)])
    assert "38;2;1;2;3m\U0010eeee\u0305\u0305\u0305\U0010eeee\u0305\u030d\u0305" in sent


@pytest.mark.parametrize(
    ("data", "typed"),
    [
        (b"a\x1b[0nb", b"ab"),
        (b"\x1b[?62;22;52c", b""),
        (b"\x1b[>1;10;0c\x1b[?1;2cx", b"x"),
        (b"\x1b]11;rgb:0000/0000/0000\x1b\\y", b"y"),
        (b"\x1bP>|XTerm(370)\x1b\\z", b"z"),
        (b"\x1b_Gi=31;OK\x1b\\", b""),
        (b"\x1b[?0u\x1b[6;16;8t\x1b[4;600;800t\x1b[?997;1nx", b"x"),
        (b"\x1b[48;24;80;480;640t\x1b[?2026;2$y", b"\x1b[48;24;80;480;640t\x1b[?2026;2$y"),
        (b"\x1b[A\x1b[1;2R\x1b[97u\x1b[200~text\x1b[201~", b"\x1b[A\x1b[1;2R\x1b[97u\x1b[200~text\x1b[201~"),
        ("ü日".encode(), "ü日".encode()),
    ],
)
def test_answers_are_never_text(data: bytes, typed: bytes) -> None:
    """In whatever pieces they arrive; keys are left as they are."""
    assert ANSWERS.sub(b"", data) == typed
    driver = object.__new__(TerminalDriver)
    driver.writer = None
    for size in (1, 2, 3, len(data)):
        held, found = b"", b""
        for start in range(0, len(data), size):
            passed, held = driver._without_answers(held + data[start : start + size], final=False)
            found += passed
        found += driver._without_answers(held, final=True)[0]
        assert found == typed


@pytest.mark.parametrize(("slow", "seconds"), [(False, 0.1), (True, 0.25)])
def test_the_rest_of_a_key_is_waited_for_longer_over_ssh(slow: bool, seconds: float) -> None:
    driver = _driver(slow=slow)
    assert driver is TerminalDriver
    assert driver.rest_seconds == seconds


def test_a_frame_is_left_out_while_the_terminal_is_behind() -> None:
    from textual._compositor import LayoutUpdate

    class Full:
        is_gone, room, frame_bytes = False, True, None

        def has_room(self) -> bool:
            return self.room

        def write(self, data: bytes) -> None:
            self.sent = data

        def ask(self, size: int) -> None: ...

    driver, writer = object.__new__(TerminalDriver), Full()
    driver.writer = writer  # type: ignore[assignment]
    driver.graphics = Graphics(lambda: None)
    driver.cells = Cells(ColorSystem.TRUECOLOR)
    driver.cells.forget(10, 1)

    class App:
        _sync_available = False

    driver._app = App()  # type: ignore[assignment]
    frame = LayoutUpdate([[text_of("0123456789")]], Region(0, 0, 10, 1))
    writer.room = False
    driver.show(frame, (0, 0), (10, 1))
    assert not hasattr(writer, "sent")
    writer.room = True
    driver.show(frame, (0, 0), (10, 1))
    assert b"0123456789" in writer.sent, "nothing was believed to be shown"
