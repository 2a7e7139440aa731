"""A plan as text: does the picture fit, and why. The same lines for `t2i plan` and for the app's window."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from engine.events import PhasePlan, Plan, Turnaround
from engine.text import duration, printable, size

GLYPHS = {"weights": "\u2588", "activations": "\u2593", "allowance": "\u2592", "free": "\u2591", "budget": "\u2502"}
ASCII_GLYPHS = {"weights": "#", "activations": "=", "allowance": "+", "free": ".", "budget": "|"}
GAP = "  "  # between columns
MIN_BAR, MAX_BAR = 8, 60  # cells
LABEL = 14  # cells of what a fact is about, and the gap after it


def plan_lines(plan: Plan, width: int, ascii_only: bool) -> list[str]:
    """The whole plan: verdict, table of the phases, bars against the budget, and what else there is to know.

    No line is longer than `width` cells. `ascii_only`: no glyph of ours is beyond ASCII.
    """
    if width < 1:
        return []
    subject = f"{plan.model} {plan.size}, {_steps(plan.steps)}, {plan.precision}, on {plan.target}"
    parts = [
        [line for text in (subject, verdict(plan), *plan.elsewhere) for line in _wrapped(text, width)],
        _table(plan.phases, width),
        _bars(plan, width, ASCII_GLYPHS if ascii_only else GLYPHS),
        _facts(plan, width),
    ]
    lines: list[str] = []
    for part in parts:
        lines += ["", *part] if lines and part else part
    return [_cut(line, width) for line in lines]


def plan_summary(plan: Plan) -> str:
    """The plan in a few words: peak 9.1 of 12.0 GiB, 2.4 GiB streamed a step; before that what auto chose."""
    streamed = max((phase.streamed_bytes_per_step for phase in plan.phases), default=0)
    peak = f"peak {part_of(plan.peak_bytes, plan.budget_bytes)}"
    if plan.peak_bytes > plan.budget_bytes > 0:
        peak += ", over the budget"
    chosen = f"{plan.precision}, " if plan.precision_reason else ""
    return f"{chosen}{peak}, {size(streamed) if streamed else 'nothing'} streamed a step"


def verdict(plan: Plan) -> str:
    """Whether it fits, as a sentence with the figures that say so."""
    over = _over(plan)
    budget = f"the budget of {size(plan.budget_bytes)}"
    if plan.budget_bytes <= 0:
        said = f"The peak is {size(plan.peak_bytes)}{_in_phase(plan)}; there is no budget"
    elif len(over) == 1:
        too_much = size(over[0].peak_bytes - plan.budget_bytes)
        said = f"It does not fit: {over[0].name} needs {size(over[0].peak_bytes)}, {too_much} over {budget}"
    elif over:
        names = " and ".join([", ".join(phase.name for phase in over[:-1]), over[-1].name])
        said = f"It does not fit: {names} need up to {size(plan.peak_bytes)}, over {budget}"
    else:
        left = size(max(0, plan.budget_bytes - plan.peak_bytes))
        said = f"It fits: peak {size(plan.peak_bytes)}{_in_phase(plan)}, {left} under {budget}"
    if plan.host_bytes > plan.ram_budget_bytes > 0:
        ram = f"it needs {size(plan.host_bytes)} of RAM, over the budget of {size(plan.ram_budget_bytes)} there"
        said += f", and {ram}" if over else f". But {ram}"
    return f"{said}."


def part_of(part: int, whole: int) -> str:
    """Two sizes in a row: 9.1 of 12.0 GiB, 433 MiB of 12.0 GiB. A `whole` of 0 is left out."""
    if whole <= 0:
        return size(part)
    (number, unit), of_whole = size(part).split(), size(whole)
    return f"{number} of {of_whole}" if of_whole.endswith(f" {unit}") else f"{number} {unit} of {of_whole}"


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def _over(plan: Plan) -> list[PhasePlan]:
    return [phase for phase in plan.phases if phase.peak_bytes > plan.budget_bytes > 0]


def _in_phase(plan: Plan) -> str:
    highest = max(plan.phases, key=lambda phase: phase.peak_bytes, default=None)
    return "" if highest is None else f" in {highest.name}"


def _table(phases: Sequence[PhasePlan], width: int) -> list[str]:
    """A row for each phase; where that is too wide, a column for each, and where that is, too, a sentence."""
    names = ("phase", "weights", "+ activations", "+ allowance", "= peak", "streamed a step", "loaded once")
    rows = [
        (
            phase.name,
            size(phase.resident_bytes),
            size(phase.activation_bytes),
            size(phase.allowance_bytes),
            size(phase.peak_bytes),
            size(phase.streamed_bytes_per_step) if phase.streamed_bytes_per_step else "-",
            size(phase.loaded_bytes) if phase.loaded_bytes else "-",
        )
        for phase in phases
    ]
    above = [name.partition(" ")[0] if name[0].isalpha() and " " in name else "" for name in names]
    below = [name.removeprefix(f"{head} ") if head else name for name, head in zip(names, above, strict=True)]
    for table in ([above, below, *rows], list(zip(names, *rows, strict=True))):
        lines = _aligned(table)
        if all(len(line) <= width for line in lines):
            return lines
    sentences = (", ".join(f"{name} {cell}" for name, cell in zip(names[1:], row[1:], strict=True)) for row in rows)
    return [
        line
        for phase, sentence in zip(phases, sentences, strict=True)
        for line in _wrapped(f"{phase.name}: {sentence.replace(', +', ' +').replace(', =', ' =')}", width)
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column begins at its left end, the others end at their right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        GAP.join(
            f"{cell:>{width}}" if column else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _bars(plan: Plan, width: int, glyphs: dict[str, str]) -> list[str]:
    """A bar for each phase, all on one scale, and what their glyphs mean. Beyond the budget, words say so, too."""
    peaks = [phase.peak_bytes for phase in plan.phases]
    scale = max(plan.budget_bytes, *peaks, 1)
    texts = [_bar_text(peak, plan.budget_bytes) for peak in peaks]
    names = max((len(phase.name) for phase in plan.phases), default=0)
    cells = min(MAX_BAR, width - names - 2 * len(GAP) - 1 - max(map(len, texts), default=0))
    if cells < MIN_BAR:
        return [
            line
            for phase, text in zip(plan.phases, texts, strict=True)
            for line in _wrapped(f"{phase.name} {text}", width)
        ]
    edge = round(cells * plan.budget_bytes / scale)
    lines = []
    for phase, text in zip(plan.phases, texts, strict=True):
        bar = _bar(phase, scale, cells, edge, glyphs)
        if plan.budget_bytes > 0:
            bar = f"{bar[:edge]}{glyphs['budget']}{bar[edge:]}"
        lines.append(f"{phase.name:<{names}}{GAP}{bar}{GAP}{text}")
    kinds = ["weights", "activations", "allowance", "free", *(["budget"] if plan.budget_bytes > 0 else [])]
    meanings = [f"{glyphs[kind]} {kind}" for kind in kinds]
    if plan.budget_bytes > 0:
        meanings[-1] += f" {size(plan.budget_bytes)}"
    indent = " " * (names + len(GAP))
    return [*lines, *(f"{indent}{line}" for line in _filled(meanings, GAP, width - len(indent)))]


def _bar(phase: PhasePlan, scale: int, cells: int, edge: int, glyphs: dict[str, str]) -> str:
    """`cells` glyphs; up to `edge` what is not used is free."""
    bar, sum_bytes = "", 0
    parts = (phase.resident_bytes, phase.activation_bytes, phase.allowance_bytes)
    for glyph, part in zip((glyphs["weights"], glyphs["activations"], glyphs["allowance"]), parts, strict=True):
        sum_bytes += max(0, part)
        bar += glyph * (min(cells, round(cells * sum_bytes / scale)) - len(bar))
    if not bar and sum_bytes:
        bar = glyphs["weights"] if phase.resident_bytes else glyphs["activations"]
    return f"{bar}{glyphs['free'] * (edge - len(bar))}".ljust(cells)


def _bar_text(peak: int, budget: int) -> str:
    if peak > budget > 0:
        return f"{size(peak)}, OVER by {size(peak - budget)}"
    return size(peak)


def _facts(plan: Plan, width: int) -> list[str]:
    """RAM, text encoder, decoding, the way to the next picture, and notes."""
    card = plan.target != "cpu"
    ram = part_of(plan.host_bytes, plan.ram_budget_bytes)
    if plan.host_bytes > plan.ram_budget_bytes > 0:
        ram += f", OVER by {size(plan.host_bytes - plan.ram_budget_bytes)}"
    if plan.pinned_bytes:
        ram += f", {size(plan.pinned_bytes)} of it pinned"
    facts = [
        ("precision", plan.precision_reason),
        ("RAM", ram),
        ("text encoder", plan.text_encoder),
        ("decoding", f"in bands, {plan.tile}x{plan.tile} pixels at a time" if plan.tile else ""),
        ("time", _seconds(plan)),
        ("next picture", f"same prompt {_turnaround(plan.same_prompt, card)}"),
        ("", f"new prompt {_turnaround(plan.new_prompt, card)}"),
        *(("note", note) for note in plan.notes),
    ]
    lines: list[str] = []
    for label, text in facts:
        if not text.strip():
            continue
        if width < 2 * LABEL:
            lines += _wrapped(f"{label} {text}".strip(), width)
        else:
            first, *rest = _wrapped(text, width - LABEL)
            lines += [f"{label:<{LABEL}}{first}", *(" " * LABEL + line for line in rest)]
    return lines


def _seconds(plan: Plan) -> str:
    """What the phases of a picture take."""
    seconds = plan.new_prompt.seconds_by_phase
    steps = {"denoise": plan.steps}
    texts = (
        f"{phase} {f'{steps[phase]} x ' if phase in steps else ''}{duration(each / steps.get(phase, 1))}"
        for phase, each in seconds.items()
    )
    return ", ".join(texts)


def _turnaround(next_one: Turnaround, card: bool) -> str:
    moved = size(next_one.moved_bytes) if next_one.moved_bytes else "nothing"
    read = size(next_one.disk_bytes) if next_one.disk_bytes else "nothing"
    return f"~{duration(next_one.seconds)}, {f'{moved} to the card, ' if card else ''}{read} from disk"


def _cells(text: str) -> int:
    """Cells of a terminal that `text` takes at most: marks that combine count, too."""
    return len(text) + sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def _cut(text: str, width: int) -> str:
    """The first `width` cells of `text`."""
    if _cells(text) <= width:
        return text
    end = room = 0
    for character in text:
        room += _cells(character)
        if room > width:
            break
        end += 1
    return text[:end]


def _wrapped(text: str, width: int) -> list[str]:
    """`text` on lines of at most `width` cells, broken at blanks."""
    return _filled(printable(text).split(), " ", width)


def _filled(words: Sequence[str], gap: str, width: int) -> list[str]:
    """Words on lines of at most `width` cells; one that is longer is broken inside."""
    lines, line = [], ""
    for word in words:
        if line and _cells(line) + len(gap) + _cells(word) <= width:
            line += f"{gap}{word}"
            continue
        if line:
            lines.append(line)
        while _cells(word) > width:
            head = _cut(word, width) or word[0]
            lines.append(head)
            word = word[len(head) :]
        line = word
    return [*lines, line] if line else lines
