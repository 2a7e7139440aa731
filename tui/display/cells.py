"""What the terminal shows, cell by cell, and the shortest text that makes it show something else.

A frame is compared with what was sent before: cursor moves, runs of cells that changed, and the shortest change of
style are all that is written. Colours are compared as they are after they were made fit for the terminal. What is too
much for a slow line is left out, for the next frame. Nothing here knows Textual's widgets: a frame is pieces of lines,
each a strip of segments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import inf
from typing import NamedTuple

from rich.cells import split_graphemes
from rich.color import Color, ColorSystem, ColorType
from rich.color_triplet import ColorTriplet
from rich.style import Style
from textual.strip import SGR_STYLES, Strip

from tui.display.palette import nearest

MAX_GAP = 4  # cells that did not change are written again rather than passed over, where that is no longer
PART = 16  # cells after which it is looked whether there is still room for more


class Look(NamedTuple):
    """A style as SGR parameters: colours (empty for the terminal's own), and all else in order."""

    foreground: str = ""
    background: str = ""
    attributes: tuple[str, ...] = ()


class Cell(NamedTuple):
    """A grapheme and its look. A wide one is followed by a cell with no text; `None` in a grid is not known."""

    text: str
    look: Look
    width: int = 1
    sure: bool = True  # every terminal moves its cursor by this width


Piece = tuple[int, int, Strip]  # row, column, what begins there
PLAIN = Look()
FOREGROUND, BACKGROUND = 38, 48
OFF = {  # what turns an attribute off
    "1": "22",
    "2": "22",
    "3": "23",
    "4": "24",
    "21": "24",
    "5": "25",
    "6": "25",
    "7": "27",
    "8": "28",
    "9": "29",
    "51": "54",
    "52": "54",
    "53": "55",
}
SEEN_ON_SPACES = {"4", "21", "7", "9", "51", "52", "53"}  # lines and reversal
UPPER, LOWER = HALVES = "\u2580", "\u2584"  # half blocks
PICTURE = 8  # runs of half blocks in a piece of a line that is a picture
PLACEHOLDER = "\U0010eeee"  # a cell of a picture that a terminal has (Kitty's protocol); its colour is a number


class Cells:
    """What one terminal shows."""

    def __init__(self, color_system: ColorSystem) -> None:
        self.color_system = color_system
        self.width = self.height = 0
        self.is_complete = True  # whether all of the last frame is shown
        self._room = inf  # characters that this frame may still take
        self.forget(0, 0)

    def forget(self, width: int, height: int) -> None:
        """Nothing is known of what the terminal shows, which has this size."""
        self.width, self.height = width, height
        self._rows: list[list[Cell | None]] = [[None] * width for _ in range(height)]
        self._strips: list[dict[int, Strip]] = [{} for _ in range(height)]  # what each row was made of
        self._graphics: dict[int, tuple[int, int]] = {}  # by row: columns where a strip with graphics of its own is
        self._x: int | None = None  # where the cursor is; not known behind what some terminals show wider
        self._y: int | None = None
        self._look: Look | None = None  # in which the terminal writes

    def update(
        self,
        pieces: Iterable[Piece],
        cursor: tuple[int, int] | None = None,
        *,
        limit: int | None = None,
        pictures_wait: bool = False,
    ) -> str:
        """What makes the terminal show these pieces, and the cursor at (column, row); empty where it does already.

        Of what takes more than about `limit` characters the rest is left out: the frame is not complete then. The line
        of the cursor comes first, then text, then pictures. What stands for a terminal's own picture is left out while
        `pictures_wait` to be sent.
        """
        out: list[str] = []
        pieces = [piece for piece in pieces if 0 <= piece[0] < self.height and 0 <= piece[1] < self.width]
        if self._graphics and any(self._covers_graphics(*piece) for piece in pieces):
            self.forget(self.width, self.height)  # a picture goes over rows of which nothing was sent
        self.is_complete = True
        self._room = inf
        # What is behind a terminal's own graphics would be written over them if it came later.
        if limit is not None and not any(has_graphics(strip) for _, _, strip in pieces):
            self._room = limit
            line = -1 if cursor is None else cursor[1]
            pieces.sort(key=lambda piece: self._rank(line, *piece))
        for row, column, strip in pieces:
            if not (pictures_wait and any(PLACEHOLDER in segment.text for segment in strip)):
                self._show(row, column, strip, out)
        if cursor is not None and cursor != (self._x, self._y) and cursor[0] < self.width and cursor[1] < self.height:
            self._move(*cursor, out)
        return "".join(out)

    def _rank(self, line: int, row: int, column: int, strip: Strip) -> int:
        """Which pieces of a frame come first: the cursor's line, text, a picture over text, the rest of pictures."""
        if row == line or not is_picture(strip):
            return int(row != line)
        shown = self._rows[row][column : column + strip.cell_length]
        return 3 if all(cell is not None and cell.text in (*HALVES, " ") for cell in shown) else 2

    def _covers_graphics(self, row: int, column: int, strip: Strip) -> bool:
        start, end = self._graphics.get(row, (0, 0))
        return column < end and start < column + strip.cell_length and not has_graphics(strip)

    def _show(self, row: int, column: int, strip: Strip, out: list[str]) -> None:
        known = self._strips[row]
        if known.get(column) is strip:
            return
        end = min(self.width, column + strip.cell_length)
        for other in [start for start, before in known.items() if start < end and column < start + before.cell_length]:
            del known[other]
        if has_graphics(strip):
            self._graphics[row] = column, end
            self._pass_on(row, column, end, strip, out)
            return
        cells = cells_of(strip, self.color_system)
        del cells[end - column :]
        if cells and cells[-1].width > 1:
            cells[-1] = blank(cells[-1].look)  # half of a wide character does not fit
        shown = self._rows[row]
        before = shown[column : column + len(cells)]
        if cells == before:
            known[column] = strip
            return
        count = self._write_changes(row, column, before, cells, out)
        if count == len(cells):
            known[column] = strip
        else:
            self.is_complete = False
        if count:
            self._break(row, column)
            self._break(row, column + count)
            shown[column : column + count] = cells[:count]

    def _write_changes(
        self, row: int, column: int, before: list[Cell | None], cells: list[Cell], out: list[str]
    ) -> int:
        """Write the cells that changed, as far as there is room; returns how many of all cells are right then."""
        for start, stop in runs(before, cells):
            if self._room == inf:
                self._write(row, column + start, cells[start:stop], out)
                continue
            while start < stop:
                if self._room <= 0:
                    return start
                end = min(stop, start + PART)
                while end < stop and not cells[end].text:
                    end += 1
                already = len(out)
                self._write(row, column + start, cells[start:end], out)
                self._room -= sum(map(len, out[already:]))
                start = end
        return len(cells)

    def _break(self, row: int, column: int) -> None:
        """Where a wide character is cut in two, what is left of it is the terminal's choice."""
        shown = self._rows[row]
        if not 0 < column < self.width or (cell := shown[column]) is None or cell.text:
            return
        for half in (column - 1, column):
            shown[half] = None
            known = self._strips[row]
            for start in [start for start, strip in known.items() if start <= half < start + strip.cell_length]:
                del known[start]

    def _pass_on(self, row: int, column: int, end: int, strip: Strip, out: list[str]) -> None:
        """A strip with control sequences of its own (a terminal's graphics): unchanged, and nothing is known after."""
        self._rows[row][column:end] = [None] * (end - column)
        self._x = self._y = None
        self._move(column, row, out)
        for text, style, control in strip:
            self._change_look(PLAIN if style is None or control else look_of(style, self.color_system), out)
            out.append(text)
        self._x = self._y = None

    def _write(self, row: int, column: int, cells: list[Cell], out: list[str]) -> None:
        """Cells from a column on."""
        for x, (text, look, width, sure) in enumerate(cells, column):
            if not text:
                continue
            if x != self._x or row != self._y:
                self._move(x, row, out)
            if look is not self._look and (self._look is None or not is_seen_so(text, look, self._look)):
                self._change_look(look, out)
            if width > 1 and len(text) > 1:  # a terminal that draws it narrower would leave what was there
                out.append(" " * width)
                self._x = None
                self._move(x, row, out)
            out.append(text)
            # Behind some characters, and in the last column, terminals do not agree on where the cursor is.
            self._x = x + width if sure and x + width < self.width else None

    def _move(self, x: int, y: int, out: list[str]) -> None:
        """The cursor to a cell, in as few bytes as every terminal understands."""
        if (x, y) == (self._x, self._y):
            return
        ways = [f"\x1b[{y + 1};{x + 1}H" if x else f"\x1b[{y + 1}H" if y else "\x1b[H"]
        if x == 0 and self._y is not None and y in (self._y, self._y + 1):
            ways.append("\r" if y == self._y else "\r\n")
        if self._x is not None and y == self._y:
            steps = x - self._x
            ways.append(f"\x1b[{abs(steps) if abs(steps) > 1 else ''}{'C' if steps > 0 else 'D'}")
            if 0 < -steps <= 3:
                ways.append("\b" * -steps)
        out.append(min(ways, key=len))
        self._x, self._y = x, y

    def _change_look(self, look: Look, out: list[str]) -> None:
        if look != self._look:
            out.append(change(self._look, look))
            self._look = look


def has_graphics(strip: Strip) -> bool:
    """Whether a strip has control sequences of its own, which are a terminal's graphics."""
    return any(segment.control for segment in strip)


def runs(before: list[Cell | None], cells: list[Cell]) -> Iterator[tuple[int, int]]:
    """Where cells differ, as (start, stop); short gaps of the same look are none. No run begins inside a character."""
    start = stop = -1
    for place, (old, new) in enumerate(zip(before, cells, strict=False)):
        if old == new:
            continue
        if start >= 0 and place - stop <= MAX_GAP:
            look = cells[stop - 1].look
            if all(cell.sure and cell.text and is_seen_so(cell.text, cell.look, look) for cell in cells[stop:place]):
                stop = place + 1
                continue
        if start >= 0:
            yield start, stop
        start, stop = place, place + 1
        while start and not cells[start].text:
            start -= 1
    if start >= 0:
        yield start, stop


def is_picture(strip: Strip) -> bool:
    """Whether a piece of a line is made of pixels: the dearest there is, and nobody waits for it to read on."""
    return sum(text[:1] in HALVES for text, _, _ in strip if text) >= PICTURE


def cells_of(strip: Strip, color_system: ColorSystem) -> list[Cell]:
    """The cells that a strip fills."""
    cells: list[Cell] = []
    for text, style, _ in strip:
        look = PLAIN if style is None else look_of(style, color_system)
        first = text[:1]
        if first == UPPER and (len(text) == 1 or text == UPPER * len(text)):  # what previews are made of
            cells += [half(UPPER, look)] * len(text)
        elif text.isascii() and text.isprintable():
            space = blank(look)
            cells += [space if character == " " else Cell(character, look) for character in text]
        elif first in HALVES and not text.strip(UPPER + LOWER):  # with 256 colours
            cells += [half(block, look) for block in text]
        elif is_sure(first) and text == first * len(text):  # lines and other blocks
            cells += [half(first, look)] * len(text)
        elif first == PLACEHOLDER and style is not None:
            look = look_of(style, ColorSystem.TRUECOLOR)  # a number is not made fit
            cells += [Cell(PLACEHOLDER + marks, look) for marks in text.split(PLACEHOLDER)[1:]]
        else:
            cells += clusters(text, look)
    return cells


def clusters(text: str, look: Look) -> Iterator[Cell]:
    """The cells of text that may be wide, or hold several code points a cell."""
    for start, end, width in split_graphemes(text)[0]:
        grapheme = text[start:end]
        if not width or (not grapheme.isprintable() and len(grapheme) == 1):
            continue  # nothing to be seen; Textual cleans what it prints
        if width == 1 and len(grapheme) == 1:
            yield half(grapheme, look)
            continue
        yield Cell(grapheme, look, width, sure=False)
        yield from [Cell("", look)] * (width - 1)


def is_seen_so(text: str, look: Look, other: Look) -> bool:
    """Whether a text is the same in another look: of a space only the background is seen."""
    if text != " ":
        return look == other
    return look == other or (look.background == other.background and not (look.attributes or other.attributes))


@lru_cache(4096)
def blank(look: Look) -> Cell:
    """A space: of its look only what is seen on it."""
    attributes = tuple(each for each in look.attributes if each in SEEN_ON_SPACES)
    return Cell(" ", Look(look.foreground if attributes else "", look.background, attributes))


def half(character: str, look: Look) -> Cell:
    """A character of one cell; half a block on its own colour is a space."""
    foreground, background, attributes = look
    if character in HALVES:
        if foreground[2:] == background[2:] and not attributes and background == as_background(foreground):
            return blank(look)
        return Cell(character, look)
    return blank(look) if character == " " else Cell(character, look, sure=is_sure(character))


def is_sure(character: str) -> bool:
    """Whether every terminal shows it in one cell."""
    return " " <= character < "\x7f" or "\xa0" <= character < "\u0300" or "\u2500" <= character <= "\u25fc"


def as_background(foreground: str) -> str:
    """The same colour as a background."""
    if not foreground:
        return "none"  # the terminal's own two colours are not the same
    if foreground.startswith("38;"):
        return "4" + foreground[1:]
    return str(int(foreground) + 10)


@lru_cache(16384)
def look_of(style: Style, color_system: ColorSystem) -> Look:
    """A style as the terminal gets it."""
    bits = style._attributes & style._set_attributes
    attributes = tuple(code for bit, code in enumerate(SGR_STYLES) if bits & (1 << bit)) if bits else ()
    color, background = style._color, style._bgcolor
    return Look(
        "" if color is None else color_code(color, color_system, FOREGROUND),
        "" if background is None else color_code(background, color_system, BACKGROUND),
        attributes,
    )


def color_code(color: Color, color_system: ColorSystem, place: int) -> str:
    """The parameters for a colour in front or behind; empty for the terminal's own."""
    triplet = color.triplet
    if triplet is None:
        return "" if color.is_default else ";".join(color.downgrade(color_system).get_ansi_codes(place == FOREGROUND))
    if color_system is ColorSystem.TRUECOLOR:
        red, green, blue = triplet
        return f"{place};2;{red};{green};{blue}"
    return palette_code(triplet, color_system, place)


@lru_cache(32768)  # Rich's own holds a thousand, and a preview has more
def palette_code(triplet: ColorTriplet, color_system: ColorSystem, place: int) -> str:
    """The same of a terminal with fewer colours."""
    if color_system is ColorSystem.EIGHT_BIT:  # Rich would snap each channel by itself
        return f"{place};5;{nearest(*triplet)}"
    color = Color("", ColorType.TRUECOLOR, None, triplet)
    return ";".join(color.downgrade(color_system).get_ansi_codes(place == FOREGROUND))


def change(before: Look | None, after: Look) -> str:
    """The shortest sequence from one look to another; from an unknown one everything is said."""
    if before is None or before.attributes or after.attributes:
        return _whole_change(before, after)
    if not after.foreground and not after.background:
        return "\x1b[m"
    if after.background == before.background:
        return f"\x1b[{after.foreground or '39'}m"
    if after.foreground == before.foreground:
        return f"\x1b[{after.background or '49'}m"
    return f"\x1b[{after.foreground or '39'};{after.background or '49'}m"


@lru_cache(16384)
def _whole_change(before: Look | None, after: Look) -> str:
    """The same where attributes come or go."""
    whole = ";".join(part for part in (*after.attributes, after.foreground, after.background) if part)
    fresh = f"\x1b[0;{whole}m" if whole else "\x1b[m"
    if before is None:
        return fresh
    gone = [each for each in before.attributes if each not in after.attributes]
    off = list(dict.fromkeys(OFF.get(each, "0") for each in gone))
    if "0" in off:
        return fresh
    # 22 ends bold and dim alike: what stays of the two is said again.
    again = [each for each in after.attributes if each not in before.attributes or OFF.get(each) in off]
    parts = [*off, *again]
    if after.foreground != before.foreground:
        parts.append(after.foreground or "39")
    if after.background != before.background:
        parts.append(after.background or "49")
    return min(f"\x1b[{';'.join(parts)}m", fresh, key=len)
