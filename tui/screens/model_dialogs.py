"""What is asked about models: a place on disk, a licence, what is to be removed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import Input, Static

from engine.folders import shown_path
from engine.request import RequestError
from tui.listing import is_part, name_of
from tui.screens.dialogs import Window
from tui.text import printable, size
from tui.widgets.field import Field

if TYPE_CHECKING:
    from engine.library.hub import Prepared
    from engine.library.inventory import Listing

MAX_ENTRIES = 5000  # of a folder, that are looked at to complete a path


class AskPlace(Window[str]):
    """A file or a folder that is there, as it was typed."""

    DEFAULT_CSS = "AskPlace #problem { color: $error; }"

    def __init__(self, question: str, text: str = "", *, problem: str = "", folders_only: bool = False) -> None:
        """`problem` is what was wrong with `text` before."""
        super().__init__()
        self._question, self._text, self._problem, self._folders_only = question, text, problem, folders_only

    def compose(self) -> ComposeResult:
        """The question, the field, what is wrong with it, and the keys."""
        with Vertical(classes="window large"):
            yield Static(Content(printable(self._question)))
            field = Field(self._text)
            field.suggester = PathSuggester(folders_only=self._folders_only)
            yield field
            yield Static(Content(printable(self._problem)), id="problem")
            yield Static(Content("Enter takes it     right arrow completes it     Esc leaves"), classes="muted")

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        if event.value != self._text:
            self.query_one("#problem", Static).update(Content(""))

    @on(Input.Submitted)
    def _done(self, event: Input.Submitted) -> None:
        text = event.value.strip()
        problem = self._wrong(text)
        if problem:
            self.query_one("#problem", Static).update(Content(printable(problem)))
        else:
            self.dismiss(text)

    def _wrong(self, text: str) -> str:
        """What is wrong with a place, as a sentence; empty where nothing is."""
        if not text:
            return "Type where it lies."
        try:
            path = Path(text).expanduser()
            if path.is_dir():
                return ""
            if path.is_file():
                return f"{shown_path(path)} is a file; give a folder." if self._folders_only else ""
            return f"There is nothing at {shown_path(path)}."
        except (OSError, ValueError, RuntimeError):  # a name too long, a null byte, the home of nobody
            return f"{shown_path(text)} is no path that this system knows."


class PathSuggester(Suggester):
    """The first entry of the folder that begins as what was typed."""

    def __init__(self, *, folders_only: bool) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._folders_only = folders_only

    async def get_suggestion(self, value: str) -> str | None:
        """In a thread: a folder may lie on a slow disk."""
        return await asyncio.to_thread(completed, value, folders_only=self._folders_only)


def completed(text: str, *, folders_only: bool) -> str | None:
    """`text` with the rest of the first name that it can mean, folders before files; None where it means nothing."""
    folder, _, beginning = text.rpartition(os.sep)
    if not folder and not text.startswith(os.sep):
        return None
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(os.path.expanduser(folder) or os.sep) as entries:
            for _, entry in zip(range(MAX_ENTRIES), entries, strict=False):
                if entry.name.startswith(beginning) and (beginning or not entry.name.startswith(".")):
                    (folders if entry.is_dir() else files).append(entry.name)
    except (OSError, ValueError):
        return None
    names = [name + os.sep for name in sorted(folders)] + ([] if folders_only else sorted(files))
    return f"{folder}{os.sep}{names[0]}" if names and names[0].isprintable() else None


class PullWindow(Window["Prepared"]):
    """A licence, and how much is to come; y accepts both. Nothing is brought before."""

    BINDINGS = [Binding("y", "accept", "Yes"), Binding("n,q", "close", "No")]

    def __init__(self, listing: Listing) -> None:
        super().__init__()
        self._listing = listing
        self._prepared: Prepared | None = None

    def compose(self) -> ComposeResult:
        """Licence, amount, keys."""
        with Vertical(classes="window large") as window:
            window.border_title = Content(f"pull {printable(self._listing.name)}")
            yield Static(Content(printable(self._listing.licence)), id="licence")
            yield Static(Content("\nAsking the hub how much there is to bring ..."), id="amount")
            yield Static(Content("\nn  no"), classes="muted", id="answers")

    def on_mount(self) -> None:
        """Ask in a thread of our own: leaving the app would wait for a worker of Textual's."""
        from threading import Thread

        Thread(target=self._ask, name="prepare", daemon=True).start()

    def _ask(self) -> None:
        prepared, problem = None, ""
        try:
            from engine.library import hub

            prepared = hub.prepare(self._listing.name)
        except RequestError as error:
            problem = str(error)
        except Exception as error:
            problem = f"The hub cannot be asked: {' '.join(str(error).split())[:300]}"
        self.call_later(self._asked, prepared, problem)

    def _asked(self, prepared: Prepared | None, problem: str) -> None:
        """What the hub answered; `problem` is a sentence."""
        self._prepared = prepared
        if prepared is None:
            amount, answers = problem[:1].upper() + problem[1:], "Esc  back"
        else:
            come, here = prepared.download_bytes, prepared.here_bytes
            place = shown_path(prepared.folder)
            if not come:
                amount = f"All of it is here already, {size(here)} in {place}."
            elif here:
                amount = f"{size(come)} come from the hub into {place}; {size(here)} are there already."
            else:
                amount = f"{size(come)} come from the hub into {place}."
            answers = "y  accept the licence and pull     n  no"
        self.query_one("#amount", Static).update(Content("\n" + printable(amount)))
        self.query_one("#answers", Static).update(Content("\n" + answers))

    def action_accept(self) -> None:
        """Begin, once it is known what."""
        if self._prepared is not None:
            self.dismiss(self._prepared)


class RemoveWindow(ModalScreen[Literal["list", "files"] | None]):
    """What is to be removed: the name, or what was pulled or made as well. The person's own files never are."""

    BINDINGS = [
        Binding("y", "answer('y')", "Yes"),
        Binding("f", "answer('f')", "Files"),
        Binding("n,escape,q", "answer('n')", "No"),
    ]

    def __init__(self, listing: Listing) -> None:
        super().__init__()
        self._listing = listing
        self._answers: dict[str, Literal["list", "files"]] = {"y": "files" if listing.pulled else "list"}
        if not is_part(listing) and not listing.pulled:  # we may keep another form of it
            self._answers["f"] = "files"

    def compose(self) -> ComposeResult:
        """The question, what would be deleted, and the keys."""
        listing = self._listing
        if listing.pulled:
            amount = f"{size(listing.nbytes)} in {shown_path(listing.place)}" if listing.here else "what came of it"
            question = f"Delete {name_of(listing)}?"
            files = f"It was pulled. This goes: {amount}, and the FP8 form that was made of it, if there is one."
            answers = "y  delete it     n  no"
        else:
            question = f"Take {name_of(listing)} off the list?"
            files = f"Its files are yours and stay in {shown_path(listing.place)}."
            answers = "y  off the list     n  no"
        with Vertical(classes="window large"):
            yield Static(Content(printable(question)))
            yield Static(Content(printable(files)))
            if "f" in self._answers:
                yield Static(
                    Content("f takes it off and deletes the FP8 form that was made of it in the cache folder.")
                )
                answers = "y  off the list     f  and its FP8 form     n  no"
            yield Static(Content(f"\n{answers}"), classes="muted")

    def action_answer(self, key: str) -> None:
        """Close with the answer."""
        if key == "n" or key in self._answers:
            self.dismiss(self._answers.get(key))
