"""The picture of a job: as it comes, as it is in its file, or in words where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from textual.geometry import Size

from engine.events import Preview
from tui.jobs import Job
from tui.profile import PreviewSize
from tui.shared import Shared
from tui.text import duration
from tui.widgets.picture import PictureView

PREVIEWS: tuple[PreviewSize, ...] = ("off", "low", "high")


class JobPicture(PictureView):
    """Takes what it shows from the session; pictures are read in a thread."""

    def __init__(self, shared: Shared, *, id: str | None = None) -> None:
        super().__init__(rendering=shared.profile.rendering, id=id)
        self._shared = shared
        self.preview_size = shared.profile.preview
        self._path: Path | None = None  # of the picture that is shown, or on its way
        self._loading = 0  # the number of the latest load: at a start one may be under way for a room of no size

    def cycle_preview(self) -> PreviewSize:
        """Live preview off, low, high; returns what it is now."""
        self.preview_size = PREVIEWS[(PREVIEWS.index(self.preview_size) + 1) % len(PREVIEWS)]
        return self.preview_size

    def _limit(self, *, live: bool) -> None:
        """How large it is drawn: as there is room, but over SSH a frame costs seconds of a slow line.

        A multiplexer on this machine draws each frame anew, so there it is only the live preview that is kept small.
        """
        profile, size = self._shared.profile, self.preview_size
        profile = replace(profile, preview=size if size != "off" else "low" if profile.slow else "high")
        capped = profile.ssh or (profile.slow and live) or size == "low"
        self.limit = Size(profile.preview_columns, profile.preview_rows) if capped else Size(0, 0)

    def forget(self) -> None:
        """The file, or the room for its picture, is not what it was: load it anew the next time."""
        self._path = None

    def show_live(self) -> bool:
        """The picture in work as it is now; whether there is something to show."""
        session = self._shared.session
        if self.preview_size == "off" or session.running is None or session.preview is None:
            return False
        self._path = None
        self._limit(live=True)
        self.show(session.preview, f"step {session.progress.step} of {session.progress.steps}")
        return True

    def show_text(self, text: str) -> None:
        """Words in place of a picture."""
        self._path = None
        self.show(None, text)

    def clear_text(self) -> None:
        """No words in place of a picture."""
        if self._frame is None:
            self.show_text("")

    def show_file(self, job: Job, path: Path) -> None:
        """The picture of a job that is done, as soon as it is read."""
        if path == self._path:
            return
        self._limit(live=False)
        self._path, room = path, self.room
        self._loading += 1
        number = self._loading
        caption = f"seed {job.request.seed}" + (f"  {duration(job.seconds)}" if job.seconds is not None else "")

        def load() -> None:
            frame = self._shared.thumbnails.get(path, room.width, room.height)
            self.app.call_later(self._loaded, number, path, frame, caption)

        self.app.run_worker(load, name="thumbnail", thread=True, exit_on_error=False)

    def _loaded(self, number: int, path: Path, frame: Preview | None, caption: str) -> None:
        if number == self._loading and path == self._path:
            self.show(frame, caption if frame is not None else f"{path.name} cannot be shown")
