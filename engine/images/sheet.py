"""Pictures on one sheet, with labels: a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

    Font = FreeTypeFont | BitmapFont

MAX_SHEET_PIXELS = 64 * 10**6
MIN_CELL, MAX_CELL = 16, 1024  # pixels a side
GAP = 8  # pixels between pictures
MAX_LINES = 4  # of a label
FONT_PIXELS = (12, 40)
PAPER, INK, MISSING = "white", "black", (225, 225, 225)


def make_sheet(pictures: Sequence[Path | None], columns: Sequence[str], rows: Sequence[str], caption: str) -> Image:
    """The pictures row by row with a label above each column and before each row, and a caption over all.

    They are made smaller where the sheet would have more than MAX_SHEET_PIXELS. None is a picture that was not made.
    Raises `OSError` for a picture that cannot be read.
    """
    from PIL import Image, ImageDraw, ImageFont

    sizes = []
    for path in pictures:
        if path is not None:
            with Image.open(path) as picture:
                sizes.append(picture.size)
    largest = max(width for width, _ in sizes), max(height for _, height in sizes)
    room = (MAX_SHEET_PIXELS / len(pictures) / (largest[0] * largest[1])) ** 0.5
    scale = min(1.0, room, MAX_CELL / max(largest))
    cell_width, cell_height = (max(round(side * scale), MIN_CELL) for side in largest)
    font = ImageFont.load_default(min(max(cell_width // 16, FONT_PIXELS[0]), FONT_PIXELS[1]))
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    line = round(_height(ruler, font) * 1.3)
    heads = [_lines(ruler, font, label, cell_width) for label in columns]
    sides = [_lines(ruler, font, label, cell_width, max(1, cell_height // line)) for label in rows]
    left = max((round(ruler.textlength(text, font)) for side in sides for text in side), default=0)
    left += 2 * GAP if left else GAP
    width = left + len(columns) * (cell_width + GAP)
    title = _lines(ruler, font, caption, width - 2 * GAP)
    head = 2 * GAP + len(title) * line
    top = head + GAP + max(map(len, heads)) * line
    sheet = Image.new("RGB", (width, top + len(rows) * (cell_height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)

    def put(lines: Sequence[str], x: int, y: int) -> None:
        for number, text in enumerate(lines):
            draw.text((x, y + number * line), text, INK, font)

    put(title, GAP, GAP)
    for column, lines in enumerate(heads):
        put(lines, left + column * (cell_width + GAP), head)
    for row, lines in enumerate(sides):
        put(lines, GAP, top + row * (cell_height + GAP))
    for number, path in enumerate(pictures):
        row, column = divmod(number, len(columns))
        x, y = left + column * (cell_width + GAP), top + row * (cell_height + GAP)
        if path is None:
            draw.rectangle((x, y, x + cell_width - 1, y + cell_height - 1), MISSING)
            put(["not made"], x + GAP, y + GAP)
            continue
        with Image.open(path) as picture:
            shown = picture.convert("RGB")
        if scale < 1:
            shown = shown.resize([max(1, round(side * scale)) for side in shown.size], Image.Resampling.LANCZOS)
        sheet.paste(shown, (x + (cell_width - shown.width) // 2, y + (cell_height - shown.height) // 2))
    return sheet


def _height(ruler: ImageDraw, font: Font) -> float:
    _, top, _, bottom = ruler.textbbox((0, 0), "Ag", font)
    return bottom - top


def _lines(ruler: ImageDraw, font: Font, text: str, width: int, most: int = MAX_LINES) -> list[str]:
    """`text` in lines of at most `width` pixels; what has no room is left out, and dots say so."""
    lines = [""]
    for word in printable(text).split():
        if lines[-1] and ruler.textlength(f"{lines[-1]} {word}", font) > width:
            if len(lines) == most:
                lines[-1] += " ..."
                break
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [_cut(ruler, font, line, width) for line in lines] if text else []


def _cut(ruler: ImageDraw, font: Font, line: str, width: int) -> str:
    """A line of which no more is left than there is room for."""
    if ruler.textlength(line, font) <= width:
        return line
    low, high = 0, len(line)  # the longest beginning that goes with dots
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if ruler.textlength(line[:middle] + "...", font) <= width else (low, middle - 1)
    return line[:low] + "..."
