"""Hostile files of every kind: accepted, or refused in a sentence. `python -m tests.bench.hostile` tries many more."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import pytest

from engine.request import RequestError
from tests.conftest import IMPORTED

COUNT, SEED = 96, 0  # of all kinds in turn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watches by /proc, and by limits that Linux has")


def forked(work: Callable[..., None], *arguments: Any) -> Any:
    """What `work` sends from a process that may fork others, as the one of the tests may not."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def judge(folder: Path, connection: Connection) -> None:
    from tests.bench import hostile
    from tests.strangers import KINDS

    range_ = hostile.Range(folder, folder / "kept")
    range_.prepare([*KINDS])
    connection.send([*hostile.run(range_, hostile.inputs(COUNT, SEED, [*KINDS]))])


def test_hostile_files_are_accepted_or_refused_in_a_sentence(tmp_path: Path) -> None:
    verdicts = forked(judge, tmp_path)
    assert [f"{v.input.command}\n{v.changes}\n{v.about}" for v in verdicts if v.outcome == "violation"] == []
    assert len(verdicts) == COUNT
    refused = {verdict.input.kind for verdict in verdicts if verdict.outcome == "refused"}
    accepted = {verdict.input.kind for verdict in verdicts if verdict.outcome == "accepted"}
    assert min(len(refused), len(accepted)) >= 12  # they reach the readers, and not only their doors


# What must not happen, and what is said of it.


def connect(place: Path) -> None:
    with socket.socket() as end:
        end.connect_ex(("127.0.0.1", 9))


def allocate(place: Path) -> None:
    size = 8 * 10**8  # a process that was forked has less in memory than it seems at first
    assert len(b"x" * size) == size


def run_code(place: Path) -> None:
    exec(compile("1", str(place / "input" / "evil_code.py"), "exec"))


def unpickle(place: Path) -> None:
    import pickle

    pickle.loads(b"cposix\ngetpid\n)R.")


def refuse(text: str, *, machine: bool = False) -> Callable[[Path], None]:
    def read(place: Path) -> None:
        raise RequestError("model", text, machine)

    return read


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a traceback": (lambda place: os.environ["NO_SUCH_VARIABLE"], "KeyError"),
    "a process": (lambda place: subprocess.run(["true"]), "started a process"),
    "a connection": (connect, "went to the network"),
    "a file elsewhere": (lambda place: Path("/etc/hostname").open().close(), "opened /etc/hostname"),
    "a secret": (lambda place: (place / "input/../outside/secret.txt").read_text(), "/outside/secret.txt"),
    "a change of the input": (lambda place: (place / "input" / "x").write_text("x"), "wrote to"),
    "a write through a link": (lambda place: (place / "state" / "link").write_text("x"), "wrote to"),
    "code": (run_code, "ran code of the folder"),
    "a pickle": (unpickle, "pickle.find_class"),
    "memory": (allocate, "GB of memory"),
    "time": (lambda place: time.sleep(5), "took more than"),
    "a hang that hears no alarm": (lambda place: os.kill(os.getpid(), 19), "hangs"),
    "a death": (lambda place: os.abort(), "died"),
    "a long sentence": (refuse("x" * 401), "401 characters"),
    "control characters": (refuse("\x1b[2J"), "control characters"),
    "a fault of the machine": (refuse("no room", machine=True), "fault of the machine"),
}


def misbehave(folder: Path, connection: Connection) -> None:
    from tests import strangers, watching
    from tests.bench import hostile

    hostile.MAX_SECONDS, hostile.GRACE_SECONDS = 4, 1
    hostile.MAX_BYTES = watching.memory("VmRSS") + 4 * 10**8
    names = [*WRONG]

    def make(place: Path, kit: object) -> None:
        (place / "input" / "x.txt").write_text("x")
        (place / "state" / "link").symlink_to(place / "outside" / "secret.txt")

    def read(place: Path, rng: Random) -> tuple[str, ...]:
        number = int(place.name)
        if number >= 0:
            WRONG[names[number]][0](place)
        return ()

    strangers.KINDS["wrong"] = strangers.Kind("wrong", make, ("input/x.txt",), read)
    range_ = hostile.Range(folder, folder / "kept")
    range_.prepare(["wrong"])
    verdicts = [*hostile.run(range_, hostile.inputs(len(names), 0, ["wrong"]))]
    connection.send({names[verdict.input.number]: verdict.about for verdict in verdicts})


def test_what_must_not_happen_is_noticed(tmp_path: Path) -> None:
    said = forked(misbehave, tmp_path)
    assert {name: text for name, (_, text) in WRONG.items() if text not in said[name]} == {}, said
    assert len([*(tmp_path / "kept").iterdir()]) == len(WRONG)
