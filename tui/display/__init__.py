"""The way to the terminal: what it shows (cells), how bytes get there without waiting (writer), and both (driver)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from textual._compositor import ChopsUpdate, LayoutUpdate


@runtime_checkable
class Display(Protocol):
    """What the app asks of a driver that sends differences; on Windows there is none."""

    sent_bytes: int  # of all frames

    @property
    def bytes_per_second(self) -> float | None:
        """What the line carries; None where nobody knows."""

    @property
    def has_room(self) -> bool:
        """Whether a frame would not wait behind others, or their rest."""

    @property
    def is_slow(self) -> bool:
        """Whether the terminal takes frames late."""

    def show(self, update: LayoutUpdate | ChopsUpdate, cursor: tuple[int, int], size: tuple[int, int]) -> None:
        """Send what of a frame the terminal does not show; nothing while it is behind, and all of it afterwards.

        On a slow line a part of it, and the rest with the next frames.
        """

    def forget(self) -> None:
        """Something else has written to the terminal: the next frame is sent whole."""
