"""A grid whose pictures are on their way, and the sheet that shows them all once the last of them is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.folders import shown_path
from engine.request import RequestError
from tui.text import counted

if TYPE_CHECKING:
    from engine.grids import Axis


@dataclass
class Sheet:
    """Of each cell: None while its picture is on its way, "" where there will be none, else the picture's path."""

    axes: tuple[Axis, ...]
    cells: list[str | None]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is on its way any more."""
        return None not in self.cells

    def place(self, cell: int, picture: str | None) -> None:
        """What became of a cell; nothing where there is none such."""
        if cell < len(self.cells):
            self.cells[cell] = picture

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        from engine.grids import to_plain

        return {"axes": to_plain(self.axes), "cells": self.cells}

    @classmethod
    def from_dict(cls, values: Any) -> Sheet:
        """Of what `to_dict` gave, whoever wrote it. Raises `ValueError`, `TypeError` or `KeyError` for what is none."""
        from engine.grids import from_plain, headings

        axes, cells = from_plain(values["axes"]), values["cells"]
        columns, rows = headings(axes)
        if not all(cell is None or (isinstance(cell, str) and "\0" not in cell) for cell in cells):
            raise ValueError
        if len(cells) != len(columns) * len(rows):
            raise ValueError
        return cls(axes, list(cells))


def save(axes: Sequence[Axis], cells: Sequence[str | None]) -> tuple[str, bool]:
    """Put a grid's pictures on one sheet beside them; returns a sentence, and whether it is good news. In a thread.

    Where there is no picture there is no sheet, and no sentence.
    """
    from engine.images.save import Destination
    from engine.images.sheet import save_sheet

    pictures = [Path(cell) if cell and Path(cell).is_file() else None for cell in cells]
    made = [path for path in pictures if path is not None]
    if not made:
        return "", True
    try:
        path, notice = save_sheet(axes, pictures, Destination(made[0].parent))
    except (OSError, RequestError) as error:
        return f"The sheet could not be made ({error}); the pictures are saved.", False
    if notice:
        return notice, False
    empty = len(pictures) - len(made)
    but = f", but for {counted(empty, 'cell')} of {len(pictures)}" if empty else ""
    return f"The grid is on one sheet{but}: {shown_path(path)}.", True
