"""How often a preview is drawn: as often as is wished, and never for more bytes than the line is to be given."""

from __future__ import annotations

LINE_SHARE = 0.5  # of what a line carries, for previews at most


class Pace:
    """Says when the next preview is due, by what was sent since the last one: the next costs about the same."""

    def __init__(self, per_second: float, bytes_per_second: int | None) -> None:
        """Both are upper bounds; None: bytes cost nothing."""
        self._seconds, self._rate = 1 / per_second, bytes_per_second
        self._at: float | None = None
        self._sent = 0

    def is_due(self, now: float, sent: int, *, room: bool, line: float | None = None) -> bool:
        """Whether a preview may be drawn now; then it is.

        `sent` is all bytes until now, `room` says that nothing waits, and `line` is what the line carries in a second,
        where that was measured.
        """
        if not room:
            return False
        if self._at is not None:
            rate = min(self._rate, LINE_SHARE * line) if self._rate and line else self._rate
            wait = max(self._seconds, (sent - self._sent) / rate if rate else 0.0)
            if now - self._at < wait:
                return False
        self._at, self._sent = now, sent
        return True
