"""`t2i models pull`: the licence, the question, and the download as it comes."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli.console import CANCELLED, DONE, FAILED, StatusLine, is_terminal, say, write
from engine.cli.interrupts import Interrupts
from engine.cli.model_text import answer
from engine.request import RequestError
from engine.text import duration, printable, size

if TYPE_CHECKING:
    from engine.library.hub import Prepared, PullProgress


def run(name: str, *, yes: bool, as_json: bool) -> int:
    """Ask, download, and show the model; the exit code."""
    from engine.library import hub, inventory

    with Interrupts():
        prepared = hub.prepare(name)
        say(prepared.licence)
        if as_json:
            about = {"name": name, "licence": prepared.licence, "folder": str(prepared.folder)}
            amounts = {"here_bytes": prepared.here_bytes, "download_bytes": prepared.download_bytes}
            write(json.dumps({"event": "pull_begins", **about, **amounts}))
        if prepared.download_bytes:
            if not yes and not _agreed(prepared):
                return CANCELLED
            inventory.pulling(name, prepared.folder)
        try:
            where = _watched(prepared, as_json=as_json)
        except KeyboardInterrupt:
            say(f"what arrived is kept: t2i models pull {name} goes on from there.")
            return CANCELLED
        model = inventory.pulled(name, where) if prepared.download_bytes else inventory.show(name)
    answer("pulled", model, as_json=as_json)
    return DONE if model.here else FAILED


def _agreed(prepared: Prepared) -> bool:
    """Whether the person wants it, as far as that must be asked. Raises `RequestError` where nobody can be asked."""
    source = prepared.source
    here = f", {size(prepared.here_bytes)} are here" if prepared.here_bytes else ""
    amount = f"{size(prepared.download_bytes)} to download into {str(prepared.folder)!r}{here}"
    if not is_terminal():
        if source.restricted:
            raise RequestError(
                "yes", f"nobody can be asked to accept the licence of {source.name} here; if you do: --yes."
            )
        say(f"{amount}.")
        return True
    print(printable(f"{amount}. Go on? [y/N] "), end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        say("")  # not behind the question
        raise


def _watched(prepared: Prepared, *, as_json: bool) -> Path | dict[str, Path]:
    """Bring it and show how far it is."""
    from engine.library import hub

    with closing(hub.pull(prepared)) as steps, closing(StatusLine()) as line:
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                where: Path | dict[str, Path] = end.value
                return where
            line.show(f"{prepared.source.name}: {progress_text(progress)}")
            if as_json:
                write(json.dumps({"event": "pull_progress", **asdict(progress)}))


def progress_text(progress: PullProgress) -> str:
    """How far a download is, for people."""
    done, total = progress.done_bytes, progress.total_bytes
    share = f" ({100 * done // total} %)" if total else ""
    left = "" if progress.seconds_left is None else f", {duration(progress.seconds_left)} left"
    rate = f", {size(progress.bytes_per_second)}/s{left}" if done < total else ""
    return f"{size(done)} of {size(total)}{share}{rate}{', ' + progress.file if progress.file else ''}"
