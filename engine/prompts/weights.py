"""Words that other programs take out of a prompt and obey, and that are painted like any others here."""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine.text import some_of

MAX_NAMED = 150  # characters
IDLE = re.compile(
    r"\((?=[^()\n]*[^\W\d])[^():\n]*[^():\d\s]\s*:\s*[0-9]{1,2}(?:\.[0-9]{1,3})?\)"  # (words:1.3); not a ratio, a time
    r"|<(?:lora|lyco|lycoris|hypernet):[^<>\n]{1,200}>"
    r"|\bBREAK\b"
)


def idle_words(prompts: Iterable[str]) -> tuple[str, ...]:
    """The weights, adapters and breaks in these prompts, each once: `(red:1.4)`, `<lora:ink:0.8>`, `BREAK`."""
    return tuple(dict.fromkeys(match[0] for prompt in prompts for match in IDLE.finditer(prompt)))


def idle_notice(prompts: Iterable[str]) -> str:
    """One sentence about them; "" where there are none."""
    words = idle_words(prompts)
    if not words:
        return ""
    what = "means nothing here and is" if len(words) == 1 else "mean nothing here and are"
    return f"{some_of(words, MAX_NAMED)} {what} painted as text."
