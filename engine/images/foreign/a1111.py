"""The form of A1111, which Forge, SD.Next, stable-diffusion.cpp, Civitai and many others write into `parameters`.

A prompt, `Negative prompt:` and another one, and a line of details (`Steps: 20, Sampler: Euler, ...`). Some write all
of it into one line, and some append lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress

from engine.images.foreign.names import KNOWN, WITHOUT_EFFECT
from engine.images.foreign.settings import OURS, Settings, kind_of, listed, parsed, plain_name, take_all

MAX_DETAILS_CHARACTERS = 10_000
MAX_UNREAD = 10  # pieces of text between details that are named
RAW_PROMPTS = {"Raw prompt": "prompt", "Raw negative prompt": "negative_prompt"}  # Fooocus: as they were typed

DETAIL = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
INLINE = re.compile(r"(?<=[\s.,;])Steps: ?[0-9]+\s*(?:,|$)")  # where the details of a single line begin
NEGATIVE_INLINE = re.compile(r"(?:^|(?<=[\s.,;]))Negative prompt:")
NEGATIVE = re.compile(r"^Negative prompt:", re.MULTILINE)
# Lines that extensions append: what prompts were before words in them were chosen.
TEMPLATES = re.compile(r"\n(?:Negative )?Template:|\nWildcard (?:negative )?prompt:")
# How programs call themselves in `App` or `Version`.
PROGRAMS = {
    OURS: OURS,
    r"stable-diffusion\.cpp": "stable-diffusion.cpp",
    "Fooocus": "Fooocus",
    "ComfyUI": "ComfyUI",
    r"SD\.Next": "SD.Next",
    "f[0-9]|neo": "Forge",
}


def read_lines(text: str) -> Settings | None:
    """The settings in a text of this form; None where it has no details."""
    words, line, inline = _parts(text.strip())
    details, unread = _details(TEMPLATES.split(line, maxsplit=1)[0].replace("\n", ", "))
    if not any(KNOWN.get(plain_name(key)) in ("steps", "seed", "size") for key in details):
        return None
    settings = Settings(_program(details))
    prompt, *negative = re.split(NEGATIVE_INLINE if inline else NEGATIVE, words, maxsplit=1)
    settings.values["prompt"] = prompt.strip()
    if negative and negative[0].strip():
        settings.values["negative_prompt"] = negative[0].strip()
    kept = {"Template": "template"} if settings.ours else RAW_PROMPTS
    settings.values |= {setting: _unquoted(details[name]) for name, setting in kept.items() if name in details}
    if not settings.ours:
        settings.read_emphasis()
    take_all(settings, {key: _unquoted(value) for key, value in details.items()})
    for piece in unread[:MAX_UNREAD]:
        settings.leave(json.dumps(piece, ensure_ascii=False))
    if "guidance" not in settings.values and _says_guidance(details):
        settings.values.pop("negative_prompt", None)  # of no effect there
        if "cfg" in settings.values:
            settings.values["guidance"] = settings.values.pop("cfg")
    return settings


def _parts(text: str) -> tuple[str, str, bool]:
    """The prompts, the details, and whether they are in one line.

    Details are what follows the last `Steps: ` that begins a line, or the last line, or the end of a line.
    """
    place = f"\n{text}".rfind("\nSteps: ")
    if place >= 0:
        return text[:place], text[place:], False
    words, _, line = text.rpartition("\n")
    first = DETAIL.match(line[:MAX_DETAILS_CHARACTERS])
    is_known = first is not None and plain_name(first[1]) in KNOWN.keys() | WITHOUT_EFFECT
    inline = None if is_known else INLINE.search(text)
    if inline is not None:
        return text[: inline.start()], text[inline.start() :], True
    return words, line, False


def _program(details: Mapping[str, str]) -> str:
    said = [_unquoted(details.get(name, "")) for name in ("App", "Version")]
    named = (name for start, name in PROGRAMS.items() if any(re.match(start, each) for each in said))
    return next(named, "A1111 or a relative")


def _says_guidance(details: Mapping[str, str]) -> bool:
    """Whether FLUX.1 was painted by a program that calls the distilled guidance CFG scale: SD.Next, Civitai's own."""
    resources = listed(parsed(details.get("Civitai resources", "")))
    said = [details.get("Civitai metadata", ""), *(str(each) for each in resources if kind_of(each) == "checkpoint")]
    return details.get("Pipeline", "").startswith("Flux") or any("flux" in each.lower() for each in said)


def _details(line: str) -> tuple[dict[str, str], list[str]]:
    """The pairs of a line such as `Steps: 4, Model: "a, b"`, quotes included, and what between them is no pair.

    The first of equal keys counts.
    """
    pairs: dict[str, str] = {}
    unread: list[str] = []
    if len(line) > MAX_DETAILS_CHARACTERS:
        end = max(line.rfind(",", 0, MAX_DETAILS_CHARACTERS), 0)  # no value is cut in two
        line, unread = line[:end], [line[end + 1 :].strip()]
    position = 0
    while position < len(line):
        match = DETAIL.match(line, position)
        if match is None:
            comma = line.find(",", position)
            end = comma if comma >= 0 else len(line)
            if piece := line[position:end].strip():
                unread.append(piece)
            position = end + 1
            continue
        value, position = match[2].strip(), match.end()
        if value[:1] in ("[", "{"):  # an object has commas of its own
            with suppress(ValueError, RecursionError):
                _, end = json.JSONDecoder().raw_decode(line, match.start(2))
                value, position = line[match.start(2) : end], end + 1
        pairs.setdefault(match[1], value)
    return pairs, unread


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        plain = parsed(value)
        return plain if isinstance(plain, str) else value
    return value
