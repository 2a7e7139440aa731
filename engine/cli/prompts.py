"""Prompts as they are given, from a file or from standard input, and the jobs that they stand for."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.request import Request, RequestError

if TYPE_CHECKING:
    from engine.prompts.wildcards import Wildcards

EXAMPLE = 't2i generate "a large red circle above a small blue square on a white background"'
MAX_BYTES = 16 * 2**20  # more is no list of prompts (a device, a video), and would fill the RAM


@dataclass(frozen=True, slots=True)
class Job:
    """One request, and where its prompt was read ("line 3 of prompts.txt"; empty for the command line)."""

    request: Request
    place: str = ""
    label: str = ""  # what is particular to it in a grid


def read_prompts(path: str | None) -> list[tuple[str, str]]:
    """The lines of a text file (None: of standard input) that are neither blank nor comments, each as (place, prompt).

    A comment begins with `#`, a prompt that does with `\\#`. The place is for messages: "line 3 of prompts.txt".
    Raises `RequestError` for what is no text or has no prompt.
    """
    name = path if path is not None else "standard input"
    data = _read(name, path)
    # PowerShell's `>` writes UTF-16 with a byte order mark; everything else in use is UTF-8.
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        broken = data.count(b"\n", 0, error.start) + 1
        raise RequestError("prompt", f"line {broken} of {name} is not UTF-8 text.") from None
    prompts = []
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        place = f"line {number} of {name}"
        if "\0" in line:
            raise RequestError("prompt", f"{place} is not text.")
        prompt = line.strip()
        if prompt and not prompt.startswith("#"):
            prompts.append((place, prompt[1:] if prompt.startswith("\\#") else prompt))
    if not prompts:
        raise RequestError("prompt", f"{name} holds no prompt; write one a line.")
    return prompts


def expanded(
    prompts: Sequence[tuple[str, str]], template: Request, wildcards: Wildcards | None
) -> tuple[list[Job], list[str]]:
    """The jobs of all variants of some prompts, each as `template` says but for its own, and what to say about them.

    Without `wildcards` every prompt is painted as it stands. One that has some is a job for each picture: what is drawn
    goes by its seed, which `template` has.
    """
    from engine.prompts.variants import expand
    from engine.prompts.wildcards import has_wildcards

    jobs, notes = [], []
    assert template.seed is not None
    for place, text in prompts:
        with at(place):
            if wildcards is None:
                jobs.append(Job(replace(template, prompt=text), place))
                continue
            expansion = expand(text, wildcards.lines)
            if expansion.capped or (expansion.summary and len(prompts) == 1):
                notes.append(f"{place}: {expansion.summary}" if place else expansion.summary)
            written = expansion.prompts if expansion.prompts != (text.strip(),) else (text,)
            for prompt in written:
                if has_wildcards([prompt]):
                    for number in range(template.count):
                        seed = template.seed + number
                        drawn = replace(template, prompt=wildcards.draw(prompt, seed), seed=seed, count=1)
                        jobs.append(Job(replace(drawn, template=text), place))
                else:
                    several = text if len(written) > 1 else None
                    jobs.append(Job(replace(template, prompt=prompt, template=several), place))
    return jobs, notes


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put the place of a prompt ("line 3 of prompts.txt") in front of what is wrong with it."""
    try:
        yield
    except RequestError as error:
        raise RequestError(error.field, f"{place}: {error}" if place else str(error)) from None


def _read(name: str, path: str | None) -> bytes:
    try:
        if path is not None:
            with open(path, "rb") as stream:
                data = stream.read(MAX_BYTES + 1)
        elif sys.stdin is None:
            data = b""
        else:
            if sys.stdin.isatty() and sys.stderr is not None:
                end = "Ctrl+Z and Enter" if os.name == "nt" else "Ctrl+D"
                print(f"write prompts, one a line; end with {end}:", file=sys.stderr, flush=True)
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, or a closed standard input
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError("prompts-file", f"cannot read {name}: {reason}.") from None
    if len(data) > MAX_BYTES:
        raise RequestError("prompts-file", f"{name} is larger than {MAX_BYTES // 2**20} MiB; split it.")
    return data
