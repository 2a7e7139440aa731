"""Models, parts, scans and converted weights as text for people; a model also as JSON."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli.console import write
from engine.text import printable, size

if TYPE_CHECKING:
    from engine.library.caches import Cached
    from engine.library.inventory import Listing, Part, Scanned

COLUMNS = 80
MAX_SENTENCES = 20  # about files that cannot be used
MANY = 4  # such files of one kind are counted, not listed
REFUSED = re.compile(r"(?P<file>'.*'|\".*\") is (?P<what>[^']+, which cannot be run here; .*)")


def list_lines(models: Sequence[Listing], loose: Sequence[Part], *, with_parts: bool) -> Iterator[str]:
    """A table of models, in 80 columns but for long paths."""
    rows = [(model.name, model.kind or "?", model.precision, size(model.nbytes), state_of(model)) for model in models]
    rows.insert(0, ("name", "kind", "weights", "size", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    widths[0] = min(widths[0], COLUMNS - sum(widths[1:]) - len("incomplete") - 8)
    for model, row in zip((None, *models), rows, strict=True):
        name, kind, precision, amount, state = row
        if len(name) > widths[0]:
            yield printable(name)
            name = ""
        cells = f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {precision:<{widths[2]}}  {amount:>{widths[3]}}  {state}"
        yield printable(cells.rstrip())
        if model is not None:
            if model.place and model.kind != "demo":
                yield printable(f"    {model.place}")
            if text := _what_is_wrong(model):
                yield printable(f"    {text}")
    if loose:
        yield ""
    if loose and with_parts:
        yield "parts that complete models:"
        yield from _part_rows(loose)
    elif loose:
        yield f"{len(loose)} part{'' if len(loose) == 1 else 's'} that may complete models: t2i models list --parts"


def state_of(model: Listing) -> str:
    """Of a model, in a word or two."""
    if model.here:
        return "ready"
    if model.can_pull:
        return "to pull" if not model.pulled else "begun"
    return "incomplete" if model.missing else "unusable"


def _what_is_wrong(model: Listing) -> str:
    if model.missing and not model.can_pull:
        return _lacks(model)
    return model.warning


def _lacks(model: Listing) -> str:
    alone = all("tokenizer" in word for word in model.missing)
    return f"lacks {', '.join(model.missing)}{': t2i models pull tokenizers' if alone else ''}"


def model_lines(model: Listing) -> Iterator[str]:
    """Everything about a model."""
    from engine.library.listings import title_of_kind

    what = title_of_kind(model.kind)
    yield printable(f"{model.name}: {what + ', ' if what else ''}{state_of(model)}")
    if model.place and model.place != model.name:
        yield printable(f"    {model.place}")
    facts = [size(model.nbytes) if model.nbytes else "", model.layout, model.precision]
    if any(facts):
        yield printable(f"    {', '.join(fact for fact in facts if fact)}")
    if model.can_pull:
        yield f"    t2i models pull {model.name} downloads {'the rest' if model.pulled else 'it'}"
    elif model.missing:
        yield printable(f"    {_lacks(model)}")
    for sentence in (model.warning, model.licence):
        if sentence:
            yield printable(f"    {sentence}")
    if model.parts:
        yield ""
        yield from _part_rows(model.parts, model.place)


def _part_rows(parts: Sequence[Part], beside: str = "") -> Iterator[str]:
    """A table of parts and where each lies, as seen from the folder `beside`."""
    rows = [(part.title, part.layout, part.precision, size(part.nbytes) if part.nbytes else "-") for part in parts]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for part, row in zip(parts, rows, strict=True):
        title, layout, precision, amount = row
        cells = f"  {title:<{widths[0]}}  {layout:<{widths[1]}}  {precision:<{widths[2]}}  {amount:>{widths[3]}}"
        note = part.note or ("" if part.place else "not here")
        yield printable(f"{cells}  {note}".rstrip())
        if place := _seen_from(beside, part.place):
            yield printable(f"      {place}")


def _seen_from(beside: str, place: str) -> str:
    """Where a part lies, without the folder that it is in where that was said; empty where it is the same."""
    if beside and place and Path(place).is_relative_to(beside):
        place = str(Path(place).relative_to(beside))
        return "" if place == "." else place
    return place


def scan_lines(found: Scanned) -> Iterator[str]:
    """What was found in a folder."""
    from engine.library.listings import title_of_kind

    for title, models in (("added:", found.added), ("known already:", found.known)):
        if models:
            yield title
            for model in models:
                what = f"{title_of_kind(model.kind)}, {model.precision}, {size(model.nbytes)}"
                yield printable(f"  {model.name}: {what}, {state_of(model)}")
                yield printable(f"      {model.place}")
                if text := _what_is_wrong(model):
                    yield printable(f"      {text}")
    if found.loose:
        yield "parts that complete models:"
        yield from _part_rows(found.loose)
    if found.refused:
        yield "cannot be used:"
        sentences = [*_grouped(found.refused)]
        for sentence in sentences[:MAX_SENTENCES]:
            yield printable(f"  {sentence}")
        if len(sentences) > MAX_SENTENCES:
            yield f"  and {len(sentences) - MAX_SENTENCES} more (--json has all)"
    if not found.added and not found.known:
        yield "no FLUX.1 was found."
    unreadable = f"; {found.unreadable} of them cannot be read" if found.unreadable else ""
    yield f"looked at {counted(found)}{unreadable}."


def counted(found: Scanned) -> str:
    """How far a scan is, in words."""
    folders = f"{found.folders} folder{'' if found.folders == 1 else 's'}"
    return f"{folders} with {found.files} file{'' if found.files == 1 else 's'} of weights"


def _grouped(sentences: Sequence[str]) -> Iterator[str]:
    """Sentences about files, many that say the same as one: a folder may hold hundreds of LoRAs."""
    files: dict[str, list[str]] = defaultdict(list)
    for sentence in sentences:
        if match := REFUSED.fullmatch(sentence):
            files[match["what"]].append(match["file"])
    for sentence in sentences:
        match = REFUSED.fullmatch(sentence)
        if match is None or len(files[match["what"]]) < MANY:
            yield sentence
        elif files[match["what"]][0] == match["file"]:
            others = len(files[match["what"]]) - 1
            yield f"{match['file']} is {match['what'].removesuffix('.')} ({others} other files are the same)."


def cache_lines(found: Sequence[Cached], others: Mapping[str, int]) -> Iterator[str]:
    """A table of converted weights, and what can go."""
    unused = sum(cached.nbytes for cached in found if cached.reason)
    rows = [(cached.name, cached.form or "?", cached.component or "?", size(cached.nbytes)) for cached in found]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for cached, row in zip(found, rows, strict=True):
        name, form, component, amount = row
        cells = f"{name:<{widths[0]}}  {form:<{widths[1]}}  {component:<{widths[2]}}  {amount:>{widths[3]}}"
        yield printable(f"{cells}  {cached.reason or 'in use'}")
        if cached.models or cached.source:
            yield printable(f"    of {', '.join(cached.models) or cached.source}")
    total = sum(cached.nbytes for cached in found)
    yield f"{count_of(len(found), 'file')} of converted weights, {size(total)}." if found else "no converted weights."
    if unused:
        yield f"{size(unused)} can go: t2i models cache --remove unused"
    if small := ", ".join(f"{title} {size(nbytes)}" for title, nbytes in others.items() if nbytes):
        yield f"Beside them: {small}."


def removed_sentence(gone: Sequence[Cached]) -> str:
    """What was freed."""
    if not gone:
        return "there was nothing to remove."
    freed = sum(cached.nbytes for cached in gone)
    return f"{count_of(len(gone), 'file')} of converted weights removed, {size(freed)} freed."


def count_of(number: int, what: str) -> str:
    """So many of something, in words."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def answer(event: str, model: Listing, *, as_json: bool) -> None:
    """Show one model, as what came of a command."""
    if as_json:
        write_model(event, model)
    else:
        for line in model_lines(model):
            write(line)


def write_model(event: str, model: Listing) -> None:
    """One model as a line of JSON."""
    write(json.dumps({"event": event, **asdict(model)}))
