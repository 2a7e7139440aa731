"""The models: which are here, what they are made of; to open, add, find, pull and remove them.

What takes time is done in threads; the search and the pull are the app's, and go on when this screen is left.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from engine.folders import shown_path
from engine.request import RequestError
from tui.bindings import MODELS_BAR, bindings_of
from tui.library import Scan, found_rows
from tui.listing import State, about, is_named, is_part, name_of, rows, state_of, title, why_it_stays
from tui.screens.dialogs import ReadText
from tui.screens.model_dialogs import AskPlace, PullWindow, RemoveWindow
from tui.shared import Shared
from tui.text import counted, printable, size
from tui.widgets.lines import HeaderLine, KeyBar, WorkLine

if TYPE_CHECKING:
    from engine.library.hub import Prepared
    from engine.library.inventory import Listing

T = TypeVar("T")


class ModelsScreen(Screen[None]):
    """A list, and below it everything about the model that is chosen there."""

    BINDINGS = bindings_of("models")
    VERTICAL_BREAKPOINTS = [(0, "-tiny-height"), (12, "-roomy")]
    DEFAULT_CSS = """
    ModelsScreen {
        #models, #about { border: round $border-blurred; background: $background; padding: 0; }
        #models:focus-within, #about:focus { border: round $primary; }
        #models, #about { border-title-color: $foreground; }
        #models { height: auto; max-height: 50%; }
        #columns { height: 1; color: $muted; text-wrap: nowrap; }
        #list { height: auto; max-height: 100%; border: none; padding: 0; background: $background; text-wrap: nowrap; }
        #list > .option-list--option-highlighted { text-style: bold; }
        #about { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
        &.-tiny-height #about, &.-tiny-height #header { display: none; }
        &.-tiny-height #models { max-height: 100%; height: 1fr; }
    }
    """

    def __init__(self, shared: Shared, open_model: Callable[[str], None]) -> None:
        """`open_model` makes the next pictures with a model."""
        super().__init__()
        self.shared, self._open_model = shared, open_model
        self._listings: list[Listing] = []
        self._states: list[State] = []
        self._described: Listing | None = None  # in the details
        self._problem = ""  # why there is no list, as a sentence
        self._busy = ""  # what a thread of this screen does

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        ascii_only = self.shared.profile.ascii
        yield HeaderLine(ascii_only=ascii_only, id="header")
        with Vertical(id="models"):
            yield Static(id="columns", markup=False)
            yield OptionList(id="list", markup=False, compact=True)
        with VerticalScroll(id="about"):
            yield Static(id="text", markup=False)
        yield WorkLine(ascii_only=ascii_only, id="scan")
        yield WorkLine(ascii_only=ascii_only, id="pull")
        yield KeyBar(id="keys")

    def on_mount(self) -> None:
        """Nothing is known yet."""
        self.list = self.query_one("#list", OptionList)
        self.query_one("#models").border_title = Content("models")
        self.list.focus()
        self._busy = "reading the list ..."
        self.update_work()
        self.refresh_list(select=self.shared.session.model)
        self.shared.models_changed.subscribe(self, self._changed)

    # The list.

    def refresh_list(self, *, select: str = "") -> None:
        """Read it anew; returns at once."""

        def read() -> tuple[list[Listing], str]:
            from engine.library import inventory, registry

            listings = inventory.listed()
            for place in dict.fromkeys(part.place for part in inventory.loose()):
                with suppress(RequestError):
                    listings.append(inventory.show(place))
            return listings, registry.known().problem

        self._run("models", read, lambda found: self._listed(*found, select), lambda why: self._listed([], why, select))

    def _listed(self, listings: list[Listing], problem: str, select: str) -> None:
        """All models; `problem` is a sentence, and `select` the model to go to."""
        if problem and listings and problem != self._problem:
            self.shared.say(problem, "warning")
        self._problem = problem
        before = self.selected
        wanted = select or (before.name if before is not None else "")
        self._listings = listings
        place = next((index for index, listing in enumerate(listings) if is_named(listing, wanted)), None)
        if place is None and listings:
            place = min(self.list.highlighted or 0, len(listings) - 1)  # where the one was that has gone
        self._show(place)
        self.update_work()

    def _find_states(self) -> list[State]:
        session, pull = self.shared.session, self.shared.pull
        pulling = pull.name if pull is not None else ""
        return [
            state_of(listing, opened=session.opened, chosen=session.model, pulling=pulling)
            for listing in self._listings
        ]

    def _show(self, place: int | None) -> None:
        """The rows, with this one highlighted."""
        self._states = self._find_states()
        width = self.list.scrollable_content_region.width or self.size.width - 2
        columns, texts = rows(self._listings, self._states, width, ascii_only=self.shared.profile.ascii)
        self.query_one("#columns", Static).update(Content(columns if self._listings else ""))
        if len(texts) == self.list.option_count:
            for index, text in enumerate(texts):
                self.list.replace_option_prompt_at_index(index, Content(text))
        else:
            self.list.set_options([Option(Content(text)) for text in texts])
        self.list.highlighted = place
        self._show_about()
        self.call_after_refresh(self._show_about)  # its room may be another now

    @property
    def selected(self) -> Listing | None:
        """The highlighted model."""
        place = self.list.highlighted
        return self._listings[place] if place is not None and place < len(self._listings) else None

    @on(OptionList.OptionHighlighted, "#list")
    def _show_about(self) -> None:
        listing, place = self.selected, self.list.highlighted
        pane = self.query_one("#about", VerticalScroll)
        if listing is None or place is None:
            name, advice, text = "", "", printable(self._problem or self._busy)
        else:
            name, advice = title(listing, self._states[place]), self._advice(listing)
            text = about(listing, max(20, pane.scrollable_content_region.width or self.size.width - 4))
            if text.count("\n") >= pane.size.height > 0:
                advice = f"{advice}, Tab reads on".removeprefix(", ")
        pane.border_title, pane.border_subtitle = Content(name), Content(advice)
        self.query_one("#text", Static).update(Content(text))
        if listing is not self._described:
            self._described = listing
            pane.scroll_home(animate=False)

    def _advice(self, listing: Listing) -> str:
        """What can be done with it."""
        keys, pull = self.shared.keys, self.shared.pull
        texts = []
        if self._can_open(listing) and not is_named(listing, self.shared.session.opened):
            texts.append("Enter opens it")
        if pull is not None and pull.name == listing.name:
            texts.append(f"{keys.shown('models.stop', letter=True)} stops the pull")
        elif listing.can_pull:
            texts.append(f"{keys.shown('models.pull')} brings it from the hub")
        return ", ".join(texts)

    def _can_open(self, listing: Listing) -> bool:
        """A simulated one needs no weights."""
        return not is_part(listing) and (listing.here or self.shared.session.simulate)

    def on_resize(self) -> None:
        """Columns and lines are made for the room that there is."""
        self.call_after_refresh(lambda: self._show(self.list.highlighted))

    # What goes on.

    def _changed(self, ended: object) -> None:
        if self._find_states() != self._states:
            self._show(self.list.highlighted)
        self.update_work()
        if ended is not None:
            self.refresh_list()
        if isinstance(ended, Scan) and self.is_current:
            self._show_scan(ended)

    def update_work(self) -> None:
        """What is above the list and below."""
        scan, pull, session = self.shared.scan, self.shared.pull, self.shared.session
        self.query_one("#scan", WorkLine).show(*("scan", str(scan)) if scan is not None else (self._busy, ""))
        self.query_one("#pull", WorkLine).show(
            *(f"pull {pull.name}", str(pull), pull.fraction) if pull is not None else ("", "")
        )
        here = sum(listing.here for listing in self._listings)
        left = (counted(len(self._listings), "model"), f"{here} here") if self._listings else ("models",)
        state = "is open" if session.opened == session.model else "comes next"
        self.query_one(HeaderLine).show(left, (f"{printable(Path(session.model).name or session.model)} {state}",))
        keys = self.shared.keys
        works = scan is not None or pull is not None
        bar = [*MODELS_BAR[:-1], "models.stop" if works else MODELS_BAR[-1]]
        shown = [(keys.shown(name, letter=name == "models.stop"), keys[name].label) for name in bar]
        shown[bar.index("models.open")] = ("Enter", keys["models.open"].label)
        self.query_one(KeyBar).show(tuple(shown))

    def action_stop(self) -> None:
        """The search if there is one, else the pull."""
        if self.shared.scan is not None:
            self.shared.library.stop_scan()
        elif self.shared.pull is not None:
            self.shared.library.stop_pull()
        else:
            self.shared.say("Nothing is being looked for or brought.")
        self.shared.models_changed.publish(None)

    def action_back(self) -> None:
        """To the prompt; a search and a pull go on."""
        self.dismiss()

    # To open one.

    @on(OptionList.OptionSelected, "#list")
    def action_open_model(self) -> None:
        """Make the next pictures with it, if it can be used."""
        listing = self._chosen()
        if listing is None:
            return
        if is_part(listing):
            self.shared.say(f"{name_of(listing)} is no model by itself: every model that it fits uses it.")
            return
        name, simulate = listing.name, self.shared.session.simulate
        if not listing.here and not simulate and listing.can_pull:
            self.shared.say(f"{name} is not here; {self.shared.keys.shown('models.pull')} brings it.", "warning")
            return

        def check() -> None:
            from engine.library.catalog import open_model

            open_model(name)

        def checked(_: None) -> None:
            if self.is_current:
                self.dismiss()
            self._open_model(name)

        self._begin(f"opening {name} ...")
        self._run("check", check, checked, self._failed)

    # To add and to find some.

    def action_add(self) -> None:
        """Ask for a file or a folder."""
        self._ask_place("")

    def _ask_place(self, text: str, problem: str = "") -> None:
        def answered(place: str | None) -> None:
            if place is None:
                return

            def add() -> Listing:
                from engine.library import inventory

                return inventory.add(Path(place).expanduser())

            def added(listing: Listing) -> None:
                what = "it goes with every model that it fits" if is_part(listing) else listing.kind
                self._done(f"{name_of(listing)} is in the list: {what}.", listing.name)

            def refused(problem: str) -> None:
                if self.is_current:
                    self._ask_place(place, problem)
                else:
                    self.shared.say(problem, "error")

            self._begin(f"looking at {place} ...")
            self._run("add", add, added, refused)

        question = "Add a model: its folder, or its file; or a part that completes others."
        self.app.push_screen(AskPlace(question, text, problem=problem), answered)

    def action_scan(self) -> None:
        """Ask for a folder, and look for models there and below."""
        library = self.shared.library
        if library.scan is not None:
            self.shared.say(f"{shown_path(library.scan.folder)} is being searched; one search at a time.")
            return

        def answered(place: str | None) -> None:
            if place is not None:
                library.look(Path(place).expanduser())
                self.shared.models_changed.publish(None)

        question = "Look for models in this folder and below; nothing is copied."
        self.app.push_screen(AskPlace(question, folders_only=True), answered)

    def _show_scan(self, scan: Scan) -> None:
        """What was found, one by one, where there is more to say than the note has room for."""
        lines = found_rows(scan)
        if lines:
            self.app.push_screen(ReadText(f"scan of {scan.folder}", lines))

    # To pull and to remove one.

    def action_pull(self) -> None:
        """Show the licence; what it was accepted for comes in the background."""
        listing = self._chosen()
        if listing is None:
            return
        library = self.shared.library
        if library.pull is not None:
            self.shared.say(f"{library.pull.name} is being pulled; one at a time.")
        elif not listing.can_pull:
            what = "is here" if listing.here else "is not in the model hub under a name that is known"
            self.shared.say(f"{listing.name} {what}; there is nothing to pull.")
        else:

            def answered(prepared: Prepared | None) -> None:
                if prepared is not None:
                    library.bring(listing.name, prepared)
                    self.shared.models_changed.publish(None)

            self.app.push_screen(PullWindow(listing), answered)

    def action_remove(self) -> None:
        """Ask, and take it off the list."""
        listing = self._chosen()
        if listing is None:
            return
        session, library = self.shared.session, self.shared.library
        if not listing.can_remove:
            self.shared.say(why_it_stays(listing))
        elif is_named(listing, session.model) or is_named(listing, session.opened):
            self.shared.say(f"{listing.name} is open; open another one before it is removed.", "warning")
        elif library.pull is not None and library.pull.name == listing.name:
            self.shared.say(f"{listing.name} is being pulled; stop that first.", "warning")
        else:

            def answered(what: str | None) -> None:
                if what is not None:
                    self._begin(f"removing {name_of(listing)} ...")
                    self._run("remove", lambda: remove(what == "files"), self._done, failed)

            def remove(files: bool) -> str:
                from engine.library import inventory

                sentence, freed = inventory.remove(listing.name, files=files)
                return f"{sentence} {size(freed)} are free again." if freed else sentence

            def failed(problem: str) -> None:
                self._failed(problem)
                self.refresh_list()

            self.app.push_screen(RemoveWindow(listing), answered)

    # What a thread does.

    def _run(self, name: str, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[str], None]) -> None:
        """`work` in a thread; then, here, what comes of it, or a sentence about why not."""

        def over(then: Callable[[], None]) -> None:
            self._begin("")
            then()

        def run() -> None:
            try:
                result = work()
                self.call_later(over, partial(done, result))
            except (RequestError, OSError) as error:
                self.call_later(over, partial(failed, str(error)))

        self.run_worker(run, name=name, thread=True, exit_on_error=False)

    def _begin(self, what: str) -> None:
        """A thread begins something, or has done it ("")."""
        self._busy = what
        self.update_work()

    def _done(self, sentence: str, select: str = "") -> None:
        """Something was done to the list."""
        self.shared.say(sentence)
        self.refresh_list(select=select)

    def _failed(self, problem: str) -> None:
        self.shared.say(problem, "error")

    def _chosen(self) -> Listing | None:
        listing = self.selected
        if listing is None:
            self.shared.say(self._problem or "There is no model here yet.")
        return listing
