"""Kills at random moments, and what must hold afterwards: `python -m tests.bench.faults COUNT [--seed N]`.

In turns the command line, the app and the engine's process are killed (SIGKILL). What they had told before is looked
for afterwards: every announced picture is there and whole, every job, prompt and star is in the history, no process
stays behind, and the next start leaves no temporary file (their age is set back: an hour must pass before that).
The app is the real one without a terminal, its engine the real one with the demo model; only the imports of both were
done before, in the process that they are forked from. The command line starts from nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from tests.commands import isolated_environment
from tests.conftest import IMPORTED

PICTURES = 3  # that a run begins
COMMAND_SECONDS, APP_SECONDS = 5.0, 2.5  # within which it is killed; what has ended by then does not count
GONE_SECONDS = 10.0  # for an engine to leave after its app
PATIENCE = 120.0


@dataclass
class Told:
    """What was said to the person, and so must be true."""

    pictures: set[str] = field(default_factory=set)
    jobs: set[str] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)
    stars: set[str] = field(default_factory=set)
    engines: set[int] = field(default_factory=set)

    def take(self, what: str, value: Any) -> None:
        """One more."""
        getattr(self, what).add(value)


def main() -> None:
    """Kill, look, and print a line of the table; the exit code is 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = kill(arguments.count, arguments.seed, Path(scratch))
    print(f"| kills, seed {arguments.seed} | {', '.join(f'{v} {k}' for k, v in found.items())} |")
    sys.exit(any(found[what] for what in LOSSES))


LOSSES = (
    "pictures missing",
    "broken files",
    "prompts lost",
    "jobs lost",
    "stars lost",
    "orphans",
    "temporary files left",
    "hung",
)


def kill(count: int, seed: int, base: Path) -> Counter[str]:
    """`count` kills in the folders below `base`; what was found afterwards, by name."""
    environment = isolated_environment(base)
    os.environ.update({name: value for name, value in environment.items() if name.startswith("TEXTTOIMAGETOOL_")})
    for name in ("state", "cache", "config", "output"):
        (base / name).mkdir(exist_ok=True)
    chance, told = random.Random(seed), Told()
    found: Counter[str] = Counter(dict.fromkeys(("kills", "pictures", *LOSSES), 0))
    kinds: list[Callable[..., bool | None]] = [_kill_command, _kill_app, _kill_engine]
    number = 0
    while found["kills"] < count and not found["hung"]:
        kind = kinds[found["kills"] % len(kinds)]
        killed = kind(chance, number := number + 1, base, told)
        found["kills"] += killed is True
        found["hung"] += killed is None
        found["orphans"] += _orphans(told)
        found["jobs lost"] += len(told.jobs - _ids(base))  # at once, too: not only when they have been made
    for leftover in _temporary_files(base):
        with suppress(OSError):
            os.utime(leftover, (0, 0))
    found["hung"] += _run_app(chance, number + 1, told, "nothing") is None  # the next start, which makes what waits
    found.update(_look(base, told))
    return found


def _kill_command(chance: random.Random, number: int, base: Path, told: Told) -> bool:
    """`t2i generate --json`, in the middle; says whether it was still running."""
    command = [sys.executable, "-m", "engine", "generate", "-p", f"a red circle, number {number}", "-q", "--json"]
    command += ["--count", str(PICTURES), "--steps", str(chance.choice((1, 4, 40)))]
    moment = chance.uniform(0, COMMAND_SECONDS)
    process = subprocess.Popen(
        command, env=isolated_environment(base), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.kill()
    printed = process.communicate()[0].decode()
    for line in printed.splitlines(keepends=True):
        if line.endswith("\n") and (said := json.loads(line))["event"] == "image_saved":
            told.take("pictures", said["path"])
    return process.returncode != 0


def _kill_app(chance: random.Random, number: int, base: Path, told: Told) -> bool | None:
    return _run_app(chance, number, told, "app")


def _kill_engine(chance: random.Random, number: int, base: Path, told: Told) -> bool | None:
    return _run_app(chance, number, told, "engine")


def _run_app(chance: random.Random, number: int, told: Told, victim: str) -> bool | None:
    """The app until it is done or killed; says whether the victim still ran. None: it hung, or ended in an error."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED, "tui.app"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_drive, args=(theirs, dict(os.environ), number, chance.randrange(2**32)))
    process.start()
    theirs.close()
    moment = time.monotonic() + chance.uniform(0, APP_SECONDS)
    deadline = time.monotonic() + PATIENCE
    engine, killed = 0, False
    with ours, suppress(EOFError):
        while time.monotonic() < deadline:
            if victim != "nothing" and not killed and time.monotonic() >= moment:
                pid = process.pid if victim == "app" else engine
                if pid and (victim == "app" or psutil.pid_exists(pid)):
                    killed = True
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if ours.poll(0.01):
                what, value = ours.recv()
                told.take(what, value)
                engine = value if what == "engines" else engine
    hung = time.monotonic() >= deadline
    if hung:
        process.kill()
    process.join()
    return None if hung or (victim != "app" and process.exitcode != 0) else killed


def _drive(told: Connection, environment: dict[str, str], number: int, seed: int) -> None:
    """In the app's process: what waits from before and some pictures more, each with a star; tell what was told."""
    import engine.process

    os.environ.update(environment)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    context = multiprocessing.get_context("forkserver")
    forking = SimpleNamespace(get_context=lambda method: context)
    engine.process.multiprocessing = forking  # type: ignore[assignment, attr-defined]
    asyncio.run(_paint(lambda what, value: told.send((what, value)), number, random.Random(seed)))


async def _paint(tell: Callable[[str, Any], None], number: int, chance: random.Random) -> None:
    from tui.launch import open_app

    app = open_app({"preview": "off"})
    async with app.run_test(size=(80, 24)) as pilot:
        session = app.session
        session.parameters.restore({"chosen": {"steps": chance.choice((1, 4, 40))}, "seed": None, "count": 1})
        for picture in range(PICTURES):
            prompt = f"a blue square, number {number}.{picture}"
            app.main.prompt.put(prompt)
            await pilot.press("enter")
            for job in (*session.queue, *([session.running] if session.running else []), *session.results):
                if job.request.prompt == prompt:
                    tell("jobs", job.id)
            tell("prompts", prompt)
        starred, pid = set[Path](), None
        while session.queue or session.running is not None:
            if app.client.pid not in (None, pid):
                tell("engines", pid := app.client.pid)
            if session.paused:  # it waits from the time before, or the engine died twice
                session.paused = False
                app.dispatcher.go_on()
            for job in session.results:
                if job.path is not None and job.path not in starred:
                    starred.add(job.path)
                    tell("pictures", str(job.path))
                    session.history.set_favourite(job.path, True)
                    tell("stars", str(job.path))
            await pilot.pause(0.01)
        await app.action_quit()


def _orphans(told: Told) -> int:
    """Engines whose app has gone, and that did not follow."""
    alive = [psutil.Process(pid) for pid in told.engines if psutil.pid_exists(pid)]
    _, stay = psutil.wait_procs(alive, timeout=GONE_SECONDS)
    stay = [process for process in stay if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    for process in stay:
        process.kill()
    told.engines.clear()
    return len(stay)


def _ids(base: Path) -> set[str]:
    """Of all jobs in the history, waiting ones and results."""
    file = base / "state" / "history.sqlite3"
    if not file.exists():
        return set()
    with closing(sqlite3.connect(file)) as db:
        return {str(row[0]) for row in db.execute("SELECT id FROM jobs")}


def _temporary_files(base: Path) -> list[Path]:
    return [*base.rglob("*.tmp"), *base.rglob(".t2i-*")]


def _look(base: Path, told: Told) -> Counter[str]:
    """What was told and is not true."""
    from engine.images.metadata import read_record
    from tui.history import History

    found: Counter[str] = Counter()
    files = {str(path) for path in (base / "output").glob("*.png")}
    for path in files:
        try:
            read_record(Path(path))
        except ValueError:
            found["broken files"] += 1
    history = History.open(base / "state")
    try:
        made = {job.id for job in history.results(1_000_000) if job.path is not None or job.message}
        found["prompts lost"] = len(told.prompts - set(history.prompts(1_000_000)))
        found["stars lost"] = len(told.stars - {str(path) for path in history.favourites()})
    finally:
        history.close()
    found["pictures"] = len(told.pictures)
    found["pictures missing"] = len(told.pictures - files)
    found["jobs lost"] = len(told.jobs - made)  # a picture, or why there is none
    found["temporary files left"] = len(_temporary_files(base))
    return found


if __name__ == "__main__":
    main()
