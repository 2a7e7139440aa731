"""What `t2i models pull` brings from the model hub, and what is to be known before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the hub, and what is brought from it.

    `files` are patterns. Each entry of `needed` is a file that a complete copy has, or several (with `|`) of which it
    has one; the shards that an index names belong to it. `checks` are folders of tokenizers, and what raises
    `RequestError` for a wrong one.
    """

    id: str
    files: tuple[str, ...]
    needed: tuple[str, ...]
    part: str = ""  # its name in the result of a source that has several
    checks: tuple[tuple[str, Callable[[Path], None]], ...] = ()

    @property
    def page(self) -> str:
        return f"{HUB}/{self.id}"


@dataclass(frozen=True, slots=True)
class Source:
    """What one name brings. `approximate_bytes` is for a list; the hub is asked for the true size before a download."""

    name: str
    repositories: tuple[Repository, ...]
    licence: str  # for the person, before the first byte
    approximate_bytes: int
    gated: bool = False  # the hub wants an account that agreed to the licence
    restricted: bool = False  # the licence is to be accepted first: it forbids some uses, or nobody knows it
    brings: str = ""  # a part, or "tokenizers", by themselves; "": a model
