"""`__colour__` in a prompt: a line of the file `colour.txt`, drawn by the picture's seed.

One line each; blank ones and those that begin with `#` are passed over. A line may have wildcards and variants of its
own, of which one is drawn, too. The files lie where the person says, in `wildcards` in the configuration folder, or
with another program.
"""

from __future__ import annotations

import difflib
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from engine.folders import config_dir, shown_path
from engine.prompts.variants import WILDCARD, expand
from engine.request import RequestError
from engine.text import quoted, some_of
from engine.untrusted import MalformedError, is_plain_name, read_file

MAX_BYTES = 4 * 2**20  # of one file
MAX_DRAWN = 500  # lines for one prompt: wildcards in wildcards may have no end
MAX_FILES = 5000  # that are looked at to name those that there are


class Wildcards:
    """The wildcard files in some folders; each is read once."""

    def __init__(self, *folders: Path, others: Callable[[], Sequence[Path]] = tuple) -> None:
        """`others` gives the folders that are looked into last; not called before there is a wildcard."""
        self._own = (*folders, config_dir() / "wildcards")
        self._others = others
        self._lines: dict[str, tuple[str, ...]] = {}

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """Where files are looked for, in this order."""
        return (*self._own, *self._others())

    def lines(self, name: str) -> tuple[str, ...]:
        """The lines of one file. Raises `RequestError` where it is not there, cannot be read, or has none."""
        if name not in self._lines:
            self._lines[name] = self._read(name)
        return self._lines[name]

    def draw(self, prompt: str, seed: int) -> str:
        """`prompt` with a line in the place of each wildcard: the same for the same seed and files."""
        dice = random.Random(seed)
        drawn = 0

        def line(wildcard: re.Match[str]) -> str:
            nonlocal drawn
            drawn += 1
            if drawn > MAX_DRAWN:
                raise RequestError("prompt", f"the wildcard {wildcard[0]} leads back to itself: see its file.")
            return WILDCARD.sub(line, dice.choice(expand(dice.choice(self.lines(wildcard[1]))).prompts))

        try:
            return WILDCARD.sub(line, prompt)
        except RecursionError:
            raise RequestError("prompt", "a wildcard of this prompt leads back to itself: see its file.") from None

    def _read(self, name: str) -> tuple[str, ...]:
        if all(map(is_plain_name, name.split("/"))):
            for folder in self.folders:
                path = folder / f"{name}.txt"
                try:
                    text = read_file(path, MAX_BYTES).decode("utf-8-sig")
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except (OSError, MalformedError, UnicodeDecodeError) as error:
                    reason = getattr(error, "strerror", None) or str(error)
                    if isinstance(error, UnicodeDecodeError):
                        reason = "it is not UTF-8 text"
                    raise RequestError("prompt", f"{shown_path(path)} cannot be read ({reason}).") from None
                lines = tuple(line.strip() for line in text.splitlines())
                lines = tuple(line for line in lines if line and not line.startswith("#"))
                if not lines:
                    raise RequestError("prompt", f"{shown_path(path)} has no line to be drawn.")
                return lines
        raise RequestError("prompt", f"there is no wildcard {quoted(name)}; {self._hint(name)}")

    def _hint(self, name: str) -> str:
        names = sorted(set(self._names()))
        if near := difflib.get_close_matches(name, names, n=1):
            return f"did you mean {quoted(near[0])}?"
        places = " or ".join(shown_path(folder) for folder in self._own)
        listed = f"there are {some_of(names)}" if names else f"write one line each into {name}.txt in {places}"
        return f"{listed}; with --no-variants it is painted as it stands."

    def _names(self) -> Iterator[str]:
        left = MAX_FILES
        for root in self.folders:
            for folder, _, files in os.walk(root):
                for file in files:
                    left -= 1
                    if left < 0:
                        return
                    if file.endswith(".txt"):
                        yield Path(folder, file).relative_to(root).with_suffix("").as_posix()


def has_wildcards(prompts: Sequence[str]) -> bool:
    """Whether there is something to draw in one of these prompts."""
    return any(WILDCARD.search(prompt) for prompt in prompts)
