r"""One prompt that stands for several: `a {red|blue} circle` is a red circle, and a blue one.

    {red|blue}             each of them; groups may be nested and choices may be empty
    {2-4}                  2, 3 and 4
    {2$$red|green|blue}    each two of them, in their order, with ", " between them; {1-2$$...}: one or two
    {2$$ and $$red|...}    with " and " between them
    {__colour__}           each line of a wildcard file, see `engine.prompts.wildcards`

`\{`, `\|` and `\}` are the characters themselves, every other backslash stays, and so do all other braces without a `|`
between them or without a partner: nothing is an error. The leftmost group changes slowest, and a prompt that comes out
twice is kept once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice

from engine.request import MAX_PROMPT_CHARACTERS

MAX_VARIANTS = 64  # prompts
MAX_TEMPLATE_CHARACTERS = 50_000  # five times what `Request` takes; a longer template has no variants
MAX_SUMMARY, MAX_LABEL, MAX_LISTED = 76, 24, 8  # characters of it, characters of a choice, choices and groups

KEPT = MAX_VARIANTS + 1  # texts of a part of a prompt; the last one tells that there are more
TOKEN = re.compile(r"\\[{|}]|[{|}]")
NUMBERS = re.compile(r"\s*(0|[1-9][0-9]{0,3})\s*-\s*([1-9][0-9]{0,3})\s*")
PICKS = re.compile(r"\s*(?:([0-9]{1,2})|([0-9]{0,2})\s*-\s*([0-9]{0,2}))\s*\$\$(?:([^$]*)\$\$)?")
BETWEEN = ", "  # what is picked
MAX_PICKED = 16
MAX_COMBINATIONS = 2 * KEPT  # that are looked at; nearly always each of them is another text
# A wildcard: the name of a file, with folders perhaps.
WILDCARD = re.compile(r"__(?=[^\W_])((?:(?!__)[\w./ -]){0,99}[^\W_])__")


@dataclass(frozen=True, slots=True)
class Expansion:
    """The prompts that a template stands for, at least one."""

    prompts: tuple[str, ...]  # at most MAX_VARIANTS, without spaces at the ends
    choices: tuple[tuple[str, ...], ...]  # of each outermost group; at most MAX_VARIANTS of each
    total: int  # how many prompts there would be without the cap: up to 4000 digits
    capped: bool  # `prompts` are the first of more; the same prompt may then count twice in `total`

    @property
    def summary(self) -> str:
        """For the line under the prompt: "2 variants: oil painting / photo". Empty where there is one prompt only."""
        if len(self.prompts) < 2:
            return ""
        number = f"{self.total:,}" if self.total < 10**9 else "more than a billion"
        groups = [group for group in self.choices if len(group) > 1][:MAX_LISTED]
        text = f"the first {len(self.prompts)} of {number} variants" if self.capped else f"{number} variants"
        text += ": " + ", ".join(" / ".join(map(_label, group[:MAX_LISTED])) for group in groups)
        return _shortened(text, MAX_SUMMARY)


def pictures_of(text: str, count: int) -> str:
    """For the line below the prompt: how many pictures it stands for, where it has variants; or that it is too long."""
    if len(text) > MAX_PROMPT_CHARACTERS:
        return f"{len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed"
    if "{" not in text:
        return ""
    expansion = expand(text)
    every = f" x {count} = {len(expansion.prompts) * count} pictures" if expansion.summary and count > 1 else ""
    return expansion.summary + every


def expand(template: str, lines: Callable[[str], Sequence[str]] | None = None) -> Expansion:
    """The prompts of `template`. Its work depends on the template's length, not on their number.

    `lines` gives those of a wildcard file; without it wildcards are text. Raises what that raises, else nothing.
    """
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        return Expansion((template.strip(),), (), 1, capped=False)
    marks = _marks(template, with_wildcards=lines is not None)
    choices = []
    open_groups: list[list[list[str | _Part]]] = [[[]]]  # of each its alternatives, of each its parts; first the whole
    end = 0
    for token in TOKEN.finditer(template):
        escaped = len(token[0]) == 2
        if not escaped and token.start() not in marks:
            continue
        open_groups[-1][-1].append(template[end : token.start()])
        end = token.end()
        if escaped:
            open_groups[-1][-1].append(token[0][1])
        elif token[0] == "{":
            open_groups.append([[]])
        elif token[0] == "|":
            open_groups[-1].append([])
        else:
            group = _group(open_groups.pop(), lines)
            open_groups[-1][-1].append(group)
            if len(open_groups) == 1:
                choices.append(group.texts[:MAX_VARIANTS])
    open_groups[-1][-1].append(template[end:])
    whole = _sequence(open_groups[-1][-1])
    prompts = tuple(dict.fromkeys(text.strip() for text in whole.texts))[:MAX_VARIANTS]
    capped = len(whole.texts) == KEPT
    return Expansion(prompts, tuple(choices), whole.count if capped else len(prompts), capped)


def escape(text: str) -> str:
    """The template that stands for `text` alone, as when a finished picture's prompt is edited again."""
    return text if expand(text).prompts == (text.strip(),) else re.sub(r"[{|}]", r"\\\g<0>", text)


@dataclass(frozen=True, slots=True)
class _Part:
    """What a part of a template may become."""

    texts: tuple[str, ...]  # the first KEPT different ones
    count: int  # of all; where there are fewer than KEPT, of the different ones


def _marks(template: str, *, with_wildcards: bool) -> set[int]:
    """Where the braces and bars are that make groups; all others are text."""
    marks: set[int] = set()
    open_groups: list[list[int]] = []  # of each the places of its brace and its bars
    for token in TOKEN.finditer(template):
        if token[0] == "{":
            open_groups.append([token.start()])
        elif token[0] == "|" and open_groups:
            open_groups[-1].append(token.start())
        elif token[0] == "}" and open_groups:
            group = open_groups.pop()
            inside = template[group[0] + 1 : min(token.start(), group[0] + 120)]  # a number, a name: no more
            is_wildcard = with_wildcards and WILDCARD.fullmatch(inside.strip()) is not None
            if len(group) > 1 or _numbers(inside) or is_wildcard:
                marks.update(group, [token.start()])
    return marks


def _numbers(text: str) -> range:
    """The whole numbers of "2-4"; none of any other text."""
    ends = NUMBERS.fullmatch(text)
    return range(int(ends[1]), int(ends[2]) + 1) if ends and int(ends[1]) < int(ends[2]) else range(0)


def _group(alternatives: list[list[str | _Part]], lines: Callable[[str], Sequence[str]] | None) -> _Part:
    """What stands between two braces."""
    first = alternatives[0][0]  # text, if only an empty one
    assert isinstance(first, str)
    if len(alternatives) > 1:
        if picks := PICKS.match(first):
            alternatives[0][0] = first[picks.end() :]
            exactly, low, high, between = picks.groups()
            numbers = int(exactly or low or 0), int(exactly or high or MAX_PICKED)
            return _picked(alternatives, *numbers, BETWEEN if between is None else between)
        return _either(alternatives)
    if whole := _numbers(first):
        return _part(map(str, whole[:KEPT]), len(whole))
    assert lines is not None
    found = lines(first.strip().strip("_"))
    return _part(chain.from_iterable(expand(line).prompts for line in found), len(found))


def _picked(alternatives: list[list[str | _Part]], low: int, high: int, between: str) -> _Part:
    """Some of the alternatives in their order, first the fewest. More than MAX_PICKED are never picked."""
    parts = [*dict.fromkeys(_sequence(parts) for parts in alternatives)]
    high = min(high, len(parts), MAX_PICKED)
    low = min(low, high)
    sets = chain.from_iterable(combinations(parts, number) for number in range(low, high + 1))
    joined = (_sequence([piece for part in chosen for piece in (between, part)][1:]) for chosen in sets)
    counts = [1] + [0] * high  # of the ways to pick so many
    for part in parts:
        for number in range(high, 0, -1):
            counts[number] += counts[number - 1] * part.count
    return _part(chain.from_iterable(each.texts for each in islice(joined, MAX_COMBINATIONS)), sum(counts[low:]))


def _either(alternatives: list[list[str | _Part]]) -> _Part:
    parts = [_sequence(parts) for parts in alternatives]
    return _part(chain.from_iterable(part.texts for part in parts), sum(part.count for part in parts))


def _sequence(parts: list[str | _Part]) -> _Part:
    """What parts in a row become. From the right, so that little is copied.

    A part with two texts or more makes the number of texts grow. Once there are KEPT of them, only the first text of
    each part further left is still of use: with it alone there are KEPT.
    """
    whole = _Part(("",), 1)
    before: list[str] = []  # text to the left of `whole`, its pieces from right to left
    count = 1
    for part in reversed(parts):
        if isinstance(part, str):
            before.append(part)
            continue
        count *= part.count
        if len(part.texts) == 1 or len(whole.texts) == KEPT:
            before.append(part.texts[0])
        else:
            right = _prefixed(before, whole.texts)
            whole = _part((left + text for left in part.texts for text in right), count)
            count, before = whole.count, []
    return _Part(tuple(_prefixed(before, whole.texts)), count)


def _prefixed(pieces: list[str], texts: Iterable[str]) -> list[str]:
    prefix = "".join(reversed(pieces))
    return [prefix + text for text in texts]


def _part(texts: Iterable[str], count: int) -> _Part:
    """A part with the first KEPT different ones of `texts`; `count` is taken where there are that many."""
    different: dict[str, None] = {}
    for text in texts:
        different[text] = None
        if len(different) == KEPT:
            return _Part(tuple(different), count)
    return _Part(tuple(different), len(different))


def _label(choice: str) -> str:
    from engine.text import printable  # for the display alone, and not before the first paint

    return printable(_shortened(" ".join(choice.split()), MAX_LABEL)) or "(nothing)"


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 3] + "..."
