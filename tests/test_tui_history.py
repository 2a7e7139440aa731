"""What outlives the app: nothing that was kept is lost, not by kill -9, nor by another app, nor by a broken file."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.request import Request
from tui import database
from tui.history import Adopted, History
from tui.jobs import STATES, Job, State

ROOT = Path(__file__).parent.parent
POSIX = os.name == "posix"
HOSTILE = {
    "nul": "a\0b\0",
    "only nul": "\0",
    "lone surrogates": "x\ud800 \udfff y\udc80",
    "every kind of space": " \t\r\n\v\f\x1c\x85\u2028\u2029\ufeff",
    "escapes": "\x1b[2J\x1b]0;title\x07\u202e\u200d",
    "sql": "'); DROP TABLE prompts; --\" ? :id %s",
    "scripts": "赤い円 नमस्ते دائرة 🔴👩‍👩‍👧 ﷺ e\u0301 é",
    "long": "赤" * 33_334 + "x",
    "empty": "",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def open_history(folder: Path) -> Iterator[Callable[..., History]]:
    """Opens sessions on one folder, each to be found in good order."""
    opened = []

    def open_one(clock: Callable[[], float] = time.time) -> History:
        opened.append(History.open(folder, clock))
        assert opened[-1].notices == []
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def a_job(prompt: str = "a red circle", state: State = "queued", **values: Any) -> Job:
    return Job(Request(prompt, seed=42), "demo", "", state=state, **values)


def prompts_of(jobs: list[Job]) -> list[str]:
    return [job.request.prompt for job in jobs]


def file_of(folder: Path) -> Path:
    return folder / "history.sqlite3"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ask(folder: Path, query: str, *parameters: Any) -> list[Any]:
    """What is in the file itself."""
    with closing(sqlite3.connect(file_of(folder), isolation_level=None)) as db:
        return db.execute(query, parameters).fetchall()


def assert_sentences(notices: list[str]) -> None:
    for notice in notices:
        assert notice.isprintable(), repr(notice)
        assert notice.endswith(".")


@contextmanager
def process(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another app: runs `code` with `folder` and `history`, then waits; has said "ready". Killed at the end."""
    start = (
        "import sys; from pathlib import Path; from engine.request import Request; from tui.jobs import Job\n"
        "from tui.history import History\n"
        "folder = Path(sys.argv[1])\n"
    )
    command = [sys.executable, "-c", f"{start}{code}\nprint('ready', flush=True)\nsys.stdin.read()", str(folder)]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert running.stdout is not None
        if "print('ready'" not in code:
            assert running.stdout.readline() == "ready\n"
        yield running
    finally:
        running.kill()
        running.communicate()


LEAVE_THINGS = """
history = History.open(folder)
assert not history.notices
history.save("draft", "half a sen")
history.save("parameters", {"steps": 4, "width": None})
for prompt in ("first", "second", "third"):
    history.put(Job(Request(prompt), "demo", "", id=prompt))
history.put(Job(Request("third"), "demo", "", id="third", state="running"))
history.put(Job(Request("over"), "demo", "", id="over", state="done"))
"""


def assert_left_things(adopted: Adopted | None) -> None:
    assert adopted is not None
    assert adopted.draft == "half a sen"
    assert adopted.values == {"parameters": {"steps": 4, "width": None}}
    assert [(job.id, job.state) for job in adopted.jobs] == [
        ("third", "queued"),
        ("first", "queued"),
        ("second", "queued"),
    ]


# Prompts


@pytest.mark.parametrize("prompt", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_prompt_comes_back_exactly(open_history: Callable[..., History], folder: Path, prompt: str) -> None:
    open_history().add_prompt(prompt)
    assert open_history().prompts() == [prompt]
    assert ask(folder, "SELECT count(*) FROM prompts") == [(1,)]


def test_the_newest_prompt_is_first_and_none_is_there_twice(open_history: Callable[..., History]) -> None:
    one, other = open_history(), open_history()
    for prompt in ("red", "green", "Red", "blue"):
        one.add_prompt(prompt)
    other.add_prompt("red")
    other.add_prompt("red")
    assert one.prompts() == other.prompts() == ["red", "blue", "Red", "green"]
    assert one.prompts(limit=2) == ["red", "blue"]


def test_the_last_ten_thousand_prompts_are_kept(open_history: Callable[..., History], folder: Path) -> None:
    one = open_history()
    with database.transaction(one._db):  # one sync for all
        one._db.executemany(database.ADD_PROMPT, [(f"{number}".encode(),) for number in range(10_003)])
    newest = [f"{number}" for number in range(10_002, 2, -1)]
    assert one.prompts(limit=20_000) == newest
    assert open_history().prompts(limit=20_000) == newest
    assert ask(folder, "SELECT count(*) FROM prompts") == [(10_000,)]


# Values


def test_a_session_keeps_its_own_values(open_history: Callable[..., History]) -> None:
    one, other = open_history(), open_history()
    values: list[Any] = ["", "draft\0\ud800", {"a": [1, 2.5, None, True, "é"]}, [], 0, False, None, 2**70]
    for value in values:
        one.save("draft", value)
        assert one.load("draft") == value
        assert type(one.load("draft")) is type(value)
    assert other.load("draft") is None
    assert one.load("model") is None
    with pytest.raises(TypeError):
        one.save("draft", Path("x"))
    assert one.load("draft") == 2**70


# Jobs


@pytest.mark.parametrize("state", STATES)
def test_a_job_comes_back_whole(open_history: Callable[..., History], state: State) -> None:
    job = Job(
        Request("a red\0 circle 赤", steps=4, seed=2**64 - 1, width=64, height=2048, guidance=3.5, precision="bf16"),
        "/models/\udcff model",
        "/pictures/\udc80\n",
        state=state,
        created=1234.5678,
        message="no\ud800 luck\0",
        path=Path(os.fsdecode(b"/pictures/\xff\xfe \xe8\xb5.png")),
        seconds=0.1,
    )
    one = open_history()
    one.put(job)
    assert (one.queue() if state in ("queued", "running") else one.results()) == [job]
    assert (one.results() if state in ("queued", "running") else one.queue()) == []
    bare = replace(job, path=None, seconds=None, request=Request("x"))
    one.put(bare)
    assert one.queue() + one.results() == [bare]


def test_the_queue_is_in_order_and_what_runs_is_first(open_history: Callable[..., History]) -> None:
    one, other = open_history(), open_history()
    jobs = [a_job(name) for name in "abcde"]
    for job in jobs:
        one.put(job)
    other.put(a_job("another app's"))
    assert prompts_of(one.queue()) == list("abcde")
    one.set_order([jobs[index].id for index in (3, 1, 4, 0, 2)])
    assert prompts_of(one.queue()) == list("dbeac")
    one.put(replace(jobs[0], state="running"))
    assert prompts_of(one.queue()) == list("adbec")
    one.put(replace(jobs[0], message="still"))
    assert prompts_of(one.queue()) == list("dbeac")  # a change is no reason to lose one's place
    one.put(a_job("f"))
    assert prompts_of(one.queue()) == list("dbeacf")
    one.set_order([jobs[2].id, jobs[4].id, "gone"])  # who is not named comes after, as before
    assert prompts_of(one.queue()) == list("cedbaf")
    one.remove(jobs[3].id)
    one.put(replace(jobs[2], state="done"))
    assert prompts_of(one.queue()) == list("ebaf")
    one.put(jobs[2])  # again
    assert prompts_of(one.queue()) == list("ebafc")
    other.set_order([jobs[2].id])  # not its job
    assert prompts_of(one.queue()) == list("ebafc")
    assert prompts_of(other.queue()) == ["another app's"]


def test_results_are_everybodys_and_the_last_to_finish_is_first(open_history: Callable[..., History]) -> None:
    seconds = iter(range(1000))
    one, other = (open_history(clock=lambda: next(seconds)) for _ in range(2))
    jobs = {name: a_job(name) for name in "abcd"}
    for job in jobs.values():
        one.put(job)
    one.put(replace(jobs["c"], state="failed"))
    one.put(replace(jobs["a"], state="done"))
    other.put(a_job("x", "cancelled"))
    one.put(replace(jobs["b"], state="done"))
    assert prompts_of(one.results()) == prompts_of(other.results()) == list("bxac")
    one.put(replace(jobs["c"], state="failed", message="known only later"))
    assert prompts_of(one.results(limit=3)) == list("bxa")
    assert one.results()[-1].message == "known only later"
    one.put(replace(jobs["c"], state="queued"))
    assert prompts_of(one.results()) == list("bxa")
    one.put(replace(jobs["c"], state="done"))
    other.remove(jobs["b"].id)
    assert prompts_of(one.results()) == list("cxa")
    one.close()
    assert prompts_of(other.results()) == list("cxa")


def test_results_of_the_same_moment_are_in_the_order_they_came(open_history: Callable[..., History]) -> None:
    one = open_history(clock=lambda: 5.0)
    for name in "abc":
        one.put(a_job(name, "done"))
    assert prompts_of(one.results()) == list("cba")


def test_old_results_go_and_the_queue_stays(open_history: Callable[..., History], folder: Path) -> None:
    one = open_history()
    one.put(a_job("waits"))
    one.put_all([a_job(f"{number}", "done") for number in range(5_003)])
    later = open_history()
    kept = later.results(limit=10_000)
    assert prompts_of(kept) == [f"{number}" for number in range(5_002, 2, -1)]
    assert prompts_of(one.queue()) == ["waits"]
    assert len(later.results()) == 200


@pytest.mark.parametrize(
    "stored",
    [
        '{"request": {"prompt": "x", "steps": 0}, "model": "demo", "output": "", "path": null}',
        '{"request": {"prompt": "x", "of a later version": 1}, "model": "demo", "output": "", "path": null}',
        '{"request": {"prompt": "x"}, "model": "demo", "output": "", "path": null, "of a later version": 1}',
        '{"request": {"prompt": "x"}, "model": "demo", "output": "", "path": 5}',
        '{"request": ["x"], "model": "demo", "output": "", "path": null}',
        '{"request": {}, "path": null}',
        '["x"]',
        "7",
        "",
        "{",
    ],
)
def test_a_stored_job_that_cannot_be_read_is_left_out(
    open_history: Callable[..., History], folder: Path, stored: str
) -> None:
    one = open_history()
    for name, state in (("a", "queued"), ("bad", "queued"), ("c", "queued"), ("worse", "done"), ("d", "done")):
        one.put(a_job(name, state, id=name))  # type: ignore[arg-type]
    ask(folder, "UPDATE jobs SET job = ? WHERE id IN ('bad', 'worse')", stored)
    assert prompts_of(one.queue()) == ["a", "c"]
    notices = one.take_notices()
    assert len(notices) == 1
    assert "1 stored job is left out" in notices[0]
    assert_sentences(notices)
    assert prompts_of(one.queue()) == ["a", "c"]
    assert one.take_notices() == []
    assert prompts_of(one.results()) == ["d"]
    assert len(one.take_notices()) == 1
    one.close()
    later = open_history()
    adopted = later.adopt()
    assert adopted is not None
    assert prompts_of(adopted.jobs) == ["a", "c"]
    assert len(later.take_notices()) == 1


# Favourites


def test_favourites(open_history: Callable[..., History]) -> None:
    one, other = open_history(), open_history()
    paths = [Path("/a/b.png"), Path("relative é.png"), Path(os.fsdecode(b"/\xff.png"))]
    for path in paths:
        assert not one.is_favourite(path)
        one.set_favourite(path, True)
        one.set_favourite(path, True)
        assert other.is_favourite(path)
    other.set_favourite(paths[0], False)
    other.set_favourite(paths[0], False)
    assert not one.is_favourite(paths[0])
    assert one.favourites() == set(paths[1:])


# What a session leaves behind


def test_nothing_is_adopted_where_nothing_was_left(open_history: Callable[..., History]) -> None:
    assert open_history().adopt() is None
    one = open_history()
    one.put(a_job("over", "done"))
    one.add_prompt("x")
    one.save("draft", "")
    one.close()
    assert open_history().adopt() is None


def test_a_closed_session_leaves_its_things_to_the_next(open_history: Callable[..., History]) -> None:
    one = open_history()
    one.save("draft", "half\0 a \ud800")
    one.save("model", "demo")
    one.put(a_job("waits"))
    assert open_history().adopt() is None
    one.close()
    later = open_history()
    adopted = later.adopt()
    assert adopted is not None
    assert (adopted.draft, adopted.values, prompts_of(adopted.jobs)) == (
        "half\0 a \ud800",
        {"model": "demo"},
        ["waits"],
    )
    assert later.queue() == adopted.jobs
    assert (later.load("draft"), later.load("model")) == ("half\0 a \ud800", "demo")  # safe against the next kill
    assert later.adopt() is None
    assert open_history().adopt() is None


@pytest.mark.skipif(not POSIX, reason="Windows has no SIGKILL")
@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "zombie"])
def test_a_live_apps_things_are_its_own_until_it_is_killed(
    open_history: Callable[..., History], folder: Path, reaped: bool
) -> None:
    one = open_history()
    with process(LEAVE_THINGS, folder) as app:
        assert one.adopt() is None
        assert one.queue() == []
        assert prompts_of(one.results()) == ["over"]
        app.send_signal(signal.SIGKILL)
        if reaped:
            app.wait()
        else:
            os.waitid(os.P_PID, app.pid, os.WEXITED | os.WNOWAIT)
        assert_left_things(one.adopt())
    assert [job.id for job in one.queue()] == ["third", "first", "second"]
    assert one.adopt() is None


@pytest.mark.skipif(not POSIX, reason="Windows has no SIGKILL")
def test_an_app_that_is_killed_after_it_adopted_loses_nothing(
    open_history: Callable[..., History], folder: Path
) -> None:
    with process(LEAVE_THINGS, folder):
        pass
    with process("history = History.open(folder)\nassert history.adopt()", folder):
        pass
    adopted = open_history().adopt()
    assert adopted is not None
    assert (adopted.draft, list(adopted.values)) == ("half a sen", ["parameters"])
    assert [job.id for job in adopted.jobs] == ["third", "first", "second"]


@pytest.mark.skipif(not POSIX, reason="Windows has no SIGKILL")
def test_of_apps_that_start_at_once_one_adopts_everything(folder: Path) -> None:
    with process(LEAVE_THINGS, folder):
        pass
    code = (
        "history = History.open(folder); print('ready', flush=True); sys.stdin.readline()\n"
        "adopted = history.adopt()\n"
        "print(len(adopted.jobs) if adopted else 0, bool(adopted and adopted.draft), history.notices, flush=True)"
    )
    with process(code, folder) as a, process(code, folder) as b, process(code, folder) as c:
        said = []
        for app in (a, b, c):
            assert app.stdout is not None
            assert app.stdout.readline() == "ready\n"
        for app in (a, b, c):
            assert app.stdin is not None
            app.stdin.write("go\n")
            app.stdin.flush()
        for app in (a, b, c):
            assert app.stdout is not None
            said.append(app.stdout.readline())
    assert sorted(said) == ["0 False []\n", "0 False []\n", "3 True []\n"]


def test_another_process_with_the_same_number_is_not_the_old_one(
    open_history: Callable[..., History], folder: Path
) -> None:
    """The number is this very process's, which is alive; only its start tells them apart."""
    one = open_history()
    one.put(a_job("waits"))
    later = open_history()
    ask(folder, "UPDATE sessions SET started = started + 1 WHERE pid = ?", os.getpid())
    assert later.adopt() is None  # what the system says may be off by a second
    ask(folder, "UPDATE sessions SET started = started - 60 WHERE pid = ?", os.getpid())
    adopted = later.adopt()
    assert adopted is not None
    assert prompts_of(adopted.jobs) == ["waits"]


@pytest.mark.parametrize("pid", [-1, 0, 2**31 - 1, 2**62])
def test_a_number_that_no_app_can_have_is_a_dead_one(
    open_history: Callable[..., History], folder: Path, pid: int
) -> None:
    one = open_history()
    one.save("draft", "x")
    ask(folder, "UPDATE sessions SET pid = ?, started = 0.5", pid)
    adopted = open_history().adopt()
    assert adopted is not None
    assert adopted.draft == "x"


def test_of_several_dead_sessions_the_last_active_gives_its_draft_and_all_give_their_jobs(
    open_history: Callable[..., History],
) -> None:
    seconds = iter(range(1000))
    clock = lambda: next(seconds)  # noqa: E731
    old, middle, jobs_only = (open_history(clock) for _ in range(3))
    middle.save("model", "middle's")
    middle.save("draft", "middle's draft")
    for name, state in (("m1", "queued"), ("m2", "running"), ("m3", "queued")):
        middle.put(a_job(name, state))  # type: ignore[arg-type]
    old.save("model", "old's")
    old.save("draft", "old's draft")
    old.put(a_job("o1"))
    jobs_only.put(a_job("j1", "running"))
    middle.save("draft", "middle's second draft")
    jobs_only.put(a_job("j2"))
    for one in (middle, old, jobs_only):
        ask_ended(one)
    later = open_history(clock)
    later.put(a_job("own"))
    adopted = later.adopt()
    assert adopted is not None
    assert (adopted.draft, adopted.values) == ("middle's second draft", {"model": "middle's"})
    assert prompts_of(adopted.jobs) == ["j1", "m2", "j2", "m1", "m3", "o1"]
    assert {job.state for job in adopted.jobs} == {"queued"}
    assert prompts_of(later.queue()) == ["own", *prompts_of(adopted.jobs)]
    assert later.prompts() == ["old's draft"]


def ask_ended(one: History) -> None:
    """End a session without the activity of `close`."""
    one._db.execute("UPDATE sessions SET ended = 1 WHERE id = ?", (one._session,))


def test_stored_values_that_are_no_json_are_none(open_history: Callable[..., History], folder: Path) -> None:
    one = open_history()
    one.save("draft", "x")
    one.save("model", "demo")
    ask(folder, "UPDATE saved SET value = '{' WHERE key = 'draft'")
    assert one.load("draft") is None
    one.close()
    assert open_history().adopt() == Adopted("", {"model": "demo"}, [])


# Killed


@pytest.mark.skipif(not POSIX, reason="Windows has no SIGKILL")
@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.6])
def test_what_was_kept_before_kill_9_is_there(
    open_history: Callable[..., History], folder: Path, seconds: float
) -> None:
    code = (
        "import itertools\n"
        "history = History.open(folder); print('ready', flush=True)\n"
        "for number in itertools.count():\n"
        "    history.add_prompt(f'{number} ' + 'x' * (number % 5000))\n"
        "    history.put(Job(Request(f'{number}'), 'demo', '', id=f'{number}'))\n"
        "    history.set_order([f'{number}'])\n"
        "    history.save('draft', number)\n"
        "    assert not history.notices\n"
        "    print(number, flush=True)"
    )
    with process(code, folder) as app:
        assert app.stdout is not None
        assert app.stdout.readline() == "ready\n"
        said = app.stdout.readline()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            said = app.stdout.readline()
        app.kill()
        rest = app.stdout.read()
        last = int(((said + rest).rpartition("\n")[0]).splitlines()[-1])
    assert last > 0
    later = open_history()
    assert ask(folder, "PRAGMA integrity_check") == [("ok",)]
    adopted = later.adopt()
    assert adopted is not None
    assert later.load("draft") in (last, last + 1)
    kept = [int(prompt.split()[0]) for prompt in later.prompts(limit=100_000)]
    assert kept[:1] in ([last], [last + 1])
    assert kept == list(range(kept[0], max(-1, kept[0] - 10_000), -1))
    numbers = [int(job.id) for job in adopted.jobs]
    assert set(numbers) - {last + 1} == set(range(last + 1))
    assert [number for number in numbers if number <= last] == list(range(last, -1, -1))


# Broken files


def assert_began_anew(folder: Path, damaged: bytes, reason: str = "") -> None:
    """Opening sets the file aside untouched, says so, and works; the next opening has nothing to say."""
    for session in range(2):
        one = History.open(folder)
        if session == 0:
            assert len(one.notices) == 1
            aside = [name for name in names(folder) if "broken" in name and name.endswith(".sqlite3")]
            assert len(aside) == 1
            assert str(folder / aside[0]) in one.notices[0]
            assert reason in one.notices[0]
            assert_sentences(one.notices)
            assert (folder / aside[0]).read_bytes() == damaged
            assert one.prompts() == []
            one.add_prompt("new")
        else:
            assert one.notices == []
            assert one.prompts() == ["new"]
        one.close()
    assert names(folder) == [*aside, "history.sqlite3"]


def filled(folder: Path) -> bytes:
    """A closed history of some 50 pages."""
    one = History.open(folder)
    for number in range(100):
        one.add_prompt(f"{number} " + "x" * 1000)
        one.put(a_job(f"{number}", "done"))
    one.close()
    assert names(folder) == ["history.sqlite3"]
    return file_of(folder).read_bytes()


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough for one's header" * 50, b"xy", b"SQLite format 3\0"]
)
def test_a_file_that_is_no_database_is_set_aside(folder: Path, content: bytes) -> None:
    folder.mkdir()
    file_of(folder).write_bytes(content)
    assert_began_anew(folder, content, "damaged")


def test_a_damaged_page_is_found_at_opening(folder: Path) -> None:
    content = bytearray(filled(folder))
    content[4096 * 20 : 4096 * 21] = os.urandom(4096)
    file_of(folder).write_bytes(content)
    assert_began_anew(folder, bytes(content))


@pytest.mark.parametrize("size", [2, 99, 100, 512, 4095, 4096, 5000, 40_000, -4096])
def test_a_truncated_file_is_set_aside(folder: Path, size: int) -> None:
    content = filled(folder)[:size]
    file_of(folder).write_bytes(content)
    assert_began_anew(folder, content)


@pytest.mark.parametrize("version", [database.SCHEMA_VERSION + 1, 2**31 - 1])
def test_a_history_of_a_newer_version_is_left_alone_and_another_is_used_beside_it(folder: Path, version: int) -> None:
    filled(folder)
    ask(folder, f"PRAGMA user_version = {version}")
    ask(folder, "PRAGMA wal_checkpoint(TRUNCATE)")
    newer = file_of(folder).read_bytes()
    for session in range(2):
        one = History.open(folder)
        (notice,) = one.take_notices()
        assert "newer version" in notice
        assert "history-2.sqlite3" in notice
        assert one.prompts() == ["beside"] * session
        one.add_prompt("beside")
        one.put(a_job("beside", "done", id="beside"))
        one.close()
    assert file_of(folder).read_bytes() == newer
    ask(folder, f"PRAGMA user_version = {database.SCHEMA_VERSION}")  # the program was brought up to date
    one = History.open(folder)
    assert one.notices == []
    assert one.prompts()[:2] == ["beside", "99 " + "x" * 1000]
    assert prompts_of(one.results())[:2] == ["beside", "99"]
    one.close()


def test_an_older_history_is_brought_up_to_date(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(folder)
    further = ("CREATE TABLE notes (text TEXT)", "INSERT INTO notes VALUES ('made')")
    monkeypatch.setattr(database, "VERSIONS", (*database.VERSIONS, further))
    monkeypatch.setattr(database, "SCHEMA_VERSION", database.SCHEMA_VERSION + 1)
    for _ in range(2):
        one = History.open(folder)
        assert one.notices == []
        assert len(one.prompts()) == len(one.results()) == 100
        one.close()
    assert ask(folder, "SELECT text FROM notes") == [("made",)]
    assert ask(folder, "PRAGMA user_version") == [(database.SCHEMA_VERSION,)]


def test_a_history_of_the_first_version_is_read_and_taken_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as old:  # as the program was: a history, and one that was used while that was locked
        old.setattr(database, "VERSIONS", (database.SCHEMA,))
        old.setattr(database, "SCHEMA_VERSION", 1)
        old.setattr(database, "TABLES", ("favourites", "sessions", "saved", "jobs"))
        for name, prompt in (("history-2.sqlite3", "beside"), ("history.sqlite3", "first")):
            folder.mkdir(exist_ok=True)
            db = database._connect(folder / name, [])
            db.execute(database.ADD_PROMPT, (prompt.encode(),))
            db.close()
    one = History.open(folder)
    assert (one.notices, one.prompts()) == ([], ["beside", "first"])
    one.put(a_job("new", "done", id="new"), {"samples": [1]})
    assert one.course("new") == {"samples": [1]}
    one.close()


def test_a_course_is_kept_with_its_job_and_goes_with_it(open_history: Callable[..., History], folder: Path) -> None:
    one = open_history()
    job = a_job("one", "done", id="one")
    one.put(job, {"samples": [[1, 2]]})
    one.put(replace(job, message="told later"))
    other = open_history()
    assert other.course("one") == {"samples": [[1, 2]]}
    assert other.course("none") is None
    ask(folder, "UPDATE courses SET course = ?", "{no json")
    assert other.course("one") is None
    other.remove("one")
    assert ask(folder, "SELECT * FROM courses") == []


@pytest.mark.parametrize("version", [-1, 0, database.SCHEMA_VERSION])
def test_another_programs_database_is_set_aside(folder: Path, version: int) -> None:
    folder.mkdir()
    ask(folder, "CREATE TABLE mine (x)")
    ask(folder, f"PRAGMA user_version = {version}")
    reason = "not this program's" if version > 0 else "another program"
    assert_began_anew(folder, file_of(folder).read_bytes(), reason)


def test_a_history_of_zero_bytes_is_said(folder: Path) -> None:
    folder.mkdir()
    file_of(folder).touch()
    os.utime(file_of(folder), (1e9, 1e9))
    one = History.open(folder)
    (notice,) = one.take_notices()
    assert "0 bytes" in notice
    one.add_prompt("new")
    one.close()
    one = History.open(folder)
    assert (one.notices, one.prompts()) == ([], ["new"])
    one.close()


def test_rows_that_cannot_be_read_cost_themselves_alone_and_are_said_once(folder: Path) -> None:
    """Whoever wrote them: the app opens, and everything else is there."""
    one = History.open(folder)
    for number in range(5):
        one.add_prompt(f"prompt {number}")
    good = a_job("good", "done", id="good", seconds=2.5, path=Path("/pictures/1.png"))
    one.put(good)
    stored = json.loads(ask(folder, "SELECT job FROM jobs")[0][0])
    faults: dict[str, list[Any]] = {
        "seconds": ["2.5", [], -1, True, 10**30, math.inf, math.nan],
        "created": ["today", None, 10**400],
        "peak_bytes": ["1", 2**70, {}, 1.5],
        "path": ["a\0b", "a\ud800b", 7, ["x"]],
        "model": [None, 7, {}],
        "output": ["a\0b", None],
        "message": [None, 5],
        "simulated": ["yes", 1, None],
    }
    texts = [json.dumps({**stored, name: value}) for name, values in faults.items() for value in values]
    texts += ["[" * 100_000, '{"request":' * 100_000, "1" * 5000, "x" * 2_000_000, "赤"]
    rows = [("done", text) for text in texts]
    rows += [(state, json.dumps(stored)) for state in ("finished", "", "\u202e")]
    with closing(sqlite3.connect(file_of(folder))) as db, db:
        put = f"INSERT INTO jobs VALUES (?, ?, ?, {2**63 - 1}, 1.0, CAST(? AS TEXT))"
        db.executemany(put, [(f"bad {place}", one._session, *row) for place, row in enumerate(rows)])
        db.execute(put, ("bytes", one._session, "done", b'{"request": {"prompt": "\xff\xfe"}}'))
        db.executemany("INSERT INTO prompts (text) VALUES (?)", [(b"\xff\xfe",), (b"x" * 2_000_000,)])
        db.execute("INSERT INTO favourites VALUES (?)", (b"a\0b",))
        saved = [("gone", "draft", "[" * 100_000), ("gone", "output", "{")]
        db.executemany("INSERT INTO saved VALUES (?, ?, ?)", saved)
        db.execute("INSERT INTO sessions VALUES ('gone', ?, ?, ?, 0)", (2**63 - 1, math.inf, -math.inf))
    one.close()
    one = History.open(folder)
    assert one.adopt() == Adopted("", {"output": None}, [])
    assert one.results() == [good]
    assert one.prompts() == [f"prompt {number}" for number in range(4, -1, -1)]
    assert one.favourites() == set()
    notices = one.take_notices()
    assert sorted(notice[:2] for notice in notices) == ["2 ", str(len(rows) + 1)]
    assert_sentences(notices)
    one.put(a_job("next", id="next"))  # whose place comes after the last
    assert [job.id for job in one.queue()] == ["next"]
    one.results()
    one.prompts()
    assert one.take_notices() == []
    one.close()


def test_files_that_break_in_the_same_second_are_all_kept(folder: Path) -> None:
    folder.mkdir()
    for number in range(3):
        file_of(folder).write_text(f"broken {number}")
        History.open(folder, clock=lambda: 1e9).close()
    broken = [path.read_text() for path in sorted(folder.glob("history-broken-*.sqlite3"))]
    assert sorted(broken) == ["broken 0", "broken 1", "broken 2"]


@pytest.mark.skipif(not POSIX, reason="Windows has no SIGKILL")
def test_what_another_program_has_open_is_left_alone_and_goes_aside_whole_later(folder: Path) -> None:
    """Its last changes are in the log beside the file."""
    filled(folder)
    code = (
        "import sqlite3; db = sqlite3.connect(folder / 'history.sqlite3', isolation_level=None)\n"
        "db.execute('PRAGMA user_version = -1000'); db.execute('DELETE FROM prompts')"
    )
    with process(code, folder):
        one = History.open(folder)
        assert len(one.notices) == 1
        assert "history-2.sqlite3" in one.notices[0]
        one.close()
        assert names(folder) == ["history-2.sqlite3", *(f"history.sqlite3{suffix}" for suffix in ("", "-shm", "-wal"))]
    one = History.open(folder)
    assert len(one.notices) == 1
    (aside,) = folder.glob("history-broken-*.sqlite3")
    assert str(aside) in one.notices[0]
    with closing(sqlite3.connect(aside)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (-1000,)
        assert db.execute("SELECT count(*) FROM prompts").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM jobs").fetchone() == (100,)
    assert one.results() == []
    one.close()
    assert ask(folder, "PRAGMA integrity_check") == [("ok",)]


def test_a_file_that_breaks_while_in_use_stops_nobody(folder: Path) -> None:
    one = History.open(folder)
    for number in range(100):  # more than SQLite keeps in memory
        one.add_prompt(f"{number} " + "x" * 100_000)
    one.close()
    one = History.open(folder)
    size = file_of(folder).stat().st_size
    with open(file_of(folder), "r+b") as file:
        file.write(os.urandom(size))
    use_everything(one)
    assert any("damaged" in notice for notice in one.notices)
    assert_sentences(one.notices)
    assert len(one.notices) == len(set(one.notices)) <= 3
    one.close()
    one = History.open(folder)
    assert any("begins" in notice for notice in one.notices)
    one.close()


def use_everything(one: History) -> None:
    """Every call, twice."""
    for _ in range(2):
        one.add_prompt("x")
        one.prompts()
        one.save("draft", "x")
        one.load("draft")
        one.adopt()
        one.put(a_job())
        one.set_order(["x", "y"])
        one.remove("x")
        one.queue()
        one.results()
        one.set_favourite(Path("x"), True)
        one.is_favourite(Path("x"))
        one.favourites()


# Locked files

ROLLBACK_JOURNAL = "PRAGMA journal_mode = DELETE"
LOCKS = {
    "a writer": ["BEGIN IMMEDIATE"],
    "an exclusive connection": ["PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"],
    "a rollback journal": [ROLLBACK_JOURNAL, "BEGIN EXCLUSIVE"],
}


@contextmanager
def locked(folder: Path, statements: list[str], name: str = "history.sqlite3") -> Iterator[None]:
    """Another process holds a lock on the file."""
    code = (
        f"import sqlite3; db = sqlite3.connect(folder / {name!r}, isolation_level=None)\n"
        f"for statement in {statements!r}: db.execute(statement)"
    )
    with process(code, folder):
        yield


@pytest.mark.parametrize("statements", LOCKS.values(), ids=LOCKS.keys())
def test_a_locked_history_is_left_alone_and_another_is_used(folder: Path, statements: list[str]) -> None:
    before = History.open(folder)
    before.add_prompt("before")
    before.close()
    for session in range(2):
        with locked(folder, statements):
            start = time.monotonic()
            one = History.open(folder)
            assert time.monotonic() - start < 3 * database.BUSY_SECONDS
            assert len(one.notices) == 1
            assert str(file_of(folder)) in one.notices[0]
            assert str(folder / "history-2.sqlite3") in one.notices[0]
            assert_sentences(one.notices)
            assert one.prompts() == ["elsewhere"] * session
            one.add_prompt("elsewhere")
            one.close()
    after = History.open(folder)
    assert after.notices == []
    assert after.prompts() == ["elsewhere", "before"]  # taken over
    after.close()
    after = History.open(folder)
    assert after.prompts() == ["elsewhere", "before"]
    after.close()


def test_what_another_app_wrote_beside_a_locked_history_is_its_own_until_it_is_closed(folder: Path) -> None:
    History.open(folder).close()
    code = (
        "history = History.open(folder); history.put(Job(Request('waits'), 'demo', '')); history.save('draft', 'half')"
    )
    with locked(folder, LOCKS["a writer"]):
        other = process(code, folder)
        other.__enter__()
    try:
        one = History.open(folder)
        assert one.notices == []
        assert one.adopt() is None
        one.close()
    finally:
        other.__exit__(None, None, None)
    one = History.open(folder)
    adopted = one.adopt()
    assert adopted is not None
    assert (adopted.draft, prompts_of(adopted.jobs)) == ("half", ["waits"])
    one.close()


def test_with_every_file_locked_the_app_still_works(folder: Path) -> None:
    folder.mkdir()
    lock = LOCKS["an exclusive connection"]
    with locked(folder, lock), locked(folder, lock, database.FILES[1]), locked(folder, lock, database.FILES[2]):
        assert_in_memory(folder, "locked")


def test_what_happens_while_the_history_is_locked_is_written_with_the_next_change(folder: Path) -> None:
    one = History.open(folder)
    one.add_prompt("before")
    running = a_job("running", "running", id="running")
    one.put_all([running, a_job("first", id="first"), a_job("second", id="second"), a_job("gone", id="gone")])
    for round in range(2):
        with locked(folder, LOCKS["a writer"]):
            start = time.monotonic()
            one.add_prompt(f"meanwhile {round}")
            assert time.monotonic() - start < 2 * database.BUSY_SECONDS
            assert "before" in one.prompts()  # reading works, and does not make the next failure a new one
            one.put(replace(running, state="done"))
            one.set_order(["second", "first"])
            one.remove("gone")
            one.set_favourite(Path("star"), True)
            for length in range(3):
                one.save("draft", "x" * length)
            assert one.adopt() is None
            notices = one.take_notices()
            assert len(notices) == 1
            assert "locked" in notices[0]
            assert_sentences(notices)
        if round == 0:
            one.add_prompt("after")
            assert one.prompts() == ["after", "meanwhile 0", "before"]
            assert one.take_notices() == []
    one.close()  # which is the last change
    one = History.open(folder)
    assert one.prompts() == ["meanwhile 1", "after", "meanwhile 0", "before"]
    assert prompts_of(one.results()) == ["running"]
    assert one.favourites() == {Path("star")}
    adopted = one.adopt()
    assert adopted is not None
    assert (adopted.draft, prompts_of(adopted.jobs)) == ("xx", ["second", "first"])
    one.close()


@pytest.mark.skipif(not POSIX, reason="Windows removes nothing that is open")
@pytest.mark.parametrize("how", ["at leaving", "in between", "removed"])
def test_a_history_in_memory_goes_to_the_disk_as_soon_as_there_is_a_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "removed":
        one = History.open(folder)
        one.add_prompt("early")
        shutil.rmtree(folder)
    folder.write_text("a file")
    if how != "removed":
        one = History.open(folder)
    done, waits = a_job("done", "done", id="done"), a_job("waits", id="waits")
    one.put_all([done, waits])
    one.add_prompt("before")
    assert "will be gone" in one.take_notices()[0]
    folder.unlink()
    one.add_prompt("after")
    assert not folder.exists(), "it does not look each time"
    if how == "in between":
        monkeypatch.setattr(one, "_next_look", 0.0)
        one.set_favourite(Path("star"), True)
        (told,) = one.take_notices()
        assert_sentences([told])
        assert f"all of it goes to '{file_of(folder)}'" in told
    one.close()
    one.add_prompt("too late")
    one = History.open(folder)
    assert one.notices == []
    assert one.prompts() == ["after", "before", *(["early"] if how == "removed" else [])]
    assert one.results() == [done]
    assert one.favourites() == ({Path("star")} if how == "in between" else set())
    adopted = one.adopt()
    assert adopted is not None
    assert adopted.jobs == [waits]
    one.close()


def test_a_waiting_job_in_a_state_that_is_not_ours_is_not_run(folder: Path) -> None:
    one = History.open(folder)
    one.put_all([a_job("held", id="held"), a_job("waits", id="waits")])
    one.close()
    ask(folder, "UPDATE jobs SET state = 'held' WHERE id = 'held'")
    one = History.open(folder)
    adopted = one.adopt()
    assert adopted is not None
    assert [job.id for job in adopted.jobs] == ["waits"]
    assert "1 stored job is left out" in one.notices[0]
    one.close()
    assert ask(folder, "SELECT state FROM jobs WHERE id = 'held'") == [("held",)]


@pytest.mark.parametrize("instead", ["nothing", "a new history"])
def test_a_state_folder_that_is_removed_in_mid_session_is_said_and_made_anew(folder: Path, instead: str) -> None:
    one = History.open(folder)
    one.add_prompt("before")
    done, waits = a_job("done", "done", id="done"), a_job("waits", id="waits")
    one.put_all([done, waits])
    one.set_favourite(Path("star"), True)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    if instead == "a new history":
        History.open(folder).close()
    one.save("draft", "half")
    notices = one.take_notices()
    assert len(notices) == 1
    assert "removed while the app was open" in notices[0]
    assert_sentences(notices)
    one.add_prompt("after")
    assert one.take_notices() == []
    one.close()
    one = History.open(folder)
    assert one.prompts() == ["after", "before"]
    assert one.results() == [done]
    assert one.favourites() == {Path("star")}
    adopted = one.adopt()
    assert adopted is not None
    assert (adopted.draft, adopted.jobs) == ("half", [waits])
    one.close()
    assert names(folder) == ["history.sqlite3"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(not POSIX, reason="Windows removes nothing that is open")
def test_where_no_new_file_can_be_made_what_was_in_the_old_one_stays_in_memory(folder: Path) -> None:
    one = History.open(folder)
    one.add_prompt("before")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("a file")
    one.add_prompt("after")
    (notice,) = one.take_notices()
    assert "will be gone" in notice
    assert one.prompts() == ["after", "before"]
    one.close()


def test_opening_does_not_drop_the_locks_of_its_own_process(folder: Path) -> None:
    """POSIX drops a process's locks on a file when any descriptor of it is closed."""
    History.open(folder).close()
    with closing(sqlite3.connect(file_of(folder), isolation_level=None)) as db:
        for statement in LOCKS["a rollback journal"]:
            db.execute(statement)
        History.open(folder).close()
        code = "print(History.open(folder).notices, flush=True)\nprint('ready', flush=True)"
        with process(code, folder) as app:
            assert app.stdout is not None
            assert "locked" in app.stdout.readline()


def test_apps_that_make_the_history_at_once_share_one(folder: Path) -> None:
    code = (
        "print('ready', flush=True); sys.stdin.readline()\n"
        "history = History.open(folder); history.add_prompt(sys.argv[0] + str(id(folder)))\n"
        "import os; history.add_prompt(str(os.getpid())); print(history.notices, flush=True)"
    )
    with process(code, folder) as a, process(code, folder) as b, process(code, folder) as c:
        for app in (a, b, c):
            assert app.stdout is not None
            assert app.stdout.readline() == "ready\n"
        for app in (a, b, c):
            assert app.stdin is not None
            app.stdin.write("go\n")
            app.stdin.flush()
        for app in (a, b, c):
            assert app.stdout is not None
            assert app.stdout.readline() == "[]\n"
        one = History.open(folder)
        assert {str(app.pid) for app in (a, b, c)} <= set(one.prompts())
        one.close()


# Places that take no history


def assert_in_memory(folder: Path, reason: str) -> None:
    """Opening says that nothing will be kept, and why; everything works as long as the app is open."""
    one = History.open(folder)
    assert len(one.notices) == 1
    assert "will be gone" in one.notices[0]
    assert reason in one.notices[0]
    assert_sentences(one.take_notices())
    use_everything(one)
    job = a_job()
    one.put(job)
    assert one.queue()[-1] == job
    assert one.prompts() == ["x"]
    assert one.favourites() == {Path("x")}
    assert one.take_notices() == []
    one.close()


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert_in_memory(tmp_path / "file", "not a folder")
    assert_in_memory(tmp_path / "file" / "below", "not a" if POSIX else "")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_in_place_of_the_file(folder: Path) -> None:
    file_of(folder).mkdir(parents=True)
    one = History.open(folder)
    (notice,) = one.take_notices()
    assert "it is a folder" in notice
    assert "history-2.sqlite3" in notice
    one.add_prompt("kept")
    one.close()
    assert History.open(folder).prompts() == ["kept"]
    for name in database.FILES[1:]:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
    assert_in_memory(folder, "it is a folder")


def test_a_folder_whose_name_is_hostile(tmp_path: Path) -> None:
    assert_in_memory(tmp_path / "nul\0", "null")
    assert_in_memory(tmp_path / ("x" * 300), "too long" if POSIX else "")
    if POSIX:
        one = History.open(tmp_path / os.fsdecode(b"\xff\x1b[2J\n?mode=ro&x=%00#"))
        assert one.notices == []
        one.close()
        assert (tmp_path / os.fsdecode(b"\xff\x1b[2J\n?mode=ro&x=%00#") / "history.sqlite3").is_file()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which even root cannot write")
def test_a_folder_that_takes_no_files() -> None:
    assert_in_memory(Path("/proc/self"), "no such file")


@contextmanager
def nobody() -> Iterator[None]:
    """Root is stopped by no permission, so root becomes nobody for the moment."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.skipif(not POSIX, reason="Windows has no such permissions")
@pytest.mark.parametrize("there", [False, True], ids=["no history", "a history"])
def test_a_folder_without_permission_to_write(there: bool) -> None:
    with tempfile.TemporaryDirectory() as name:  # its parents are open to all, unlike those of pytest's own folders
        folder = Path(name)
        if there:
            filled(folder)
            file_of(folder).chmod(0o444)
        folder.chmod(0o555)
        with nobody():
            assert_in_memory(folder, "")
        assert names(folder) == ["history.sqlite3"] * there


FULL_DISK = (  # a real limit: no file may grow beyond it
    "import resource\n"
    "def fill(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
    "sys.path.append('tests')\n"
    "from tests.test_tui_history import use_everything\n"
)


@pytest.mark.skipif(not POSIX, reason="limits on file sizes are a POSIX thing")
@pytest.mark.parametrize("size", [0, 100, 5000, 40_000])
@pytest.mark.parametrize("there", [False, True], ids=["no history", "a history"])
def test_a_disk_that_is_full_from_the_start(folder: Path, size: int, there: bool) -> None:
    if there:
        before = filled(folder)
    code = f"{FULL_DISK}fill({size}); history = History.open(folder); print(*history.notices, flush=True)\n"
    code += "use_everything(history); print(*history.take_notices()[1:], flush=True); print('ready', flush=True)"
    with process(code, folder) as app:
        assert app.stdout is not None
        opening = app.stdout.readline()
        if "will be gone" in opening:
            assert app.stdout.readline() == "\n"  # everything works, in memory
        else:  # there was room for opening, but not for more
            assert opening == "\n"
            assert size > 5000
        if size <= 5000:
            assert "will be gone" in opening
    if there:
        assert file_of(folder).read_bytes() == before
    one = History.open(folder)
    assert one.notices == []
    one.close()


@pytest.mark.skipif(not POSIX, reason="limits on file sizes are a POSIX thing")
def test_a_full_disk_is_noticed_at_opening_though_another_app_has_made_every_file(folder: Path) -> None:
    other = History.open(folder)
    other.add_prompt("before")
    code = f"{FULL_DISK}fill(0); history = History.open(folder); print(*history.notices, flush=True); print('ready')"
    with process(code, folder) as app:
        assert app.stdout is not None
        assert "will be gone" in app.stdout.readline()
    other.add_prompt("after")
    assert other.prompts() == ["after", "before"]
    assert other.notices == []
    other.close()


@pytest.mark.skipif(not POSIX, reason="limits on file sizes are a POSIX thing")
def test_what_happens_while_the_disk_is_full_is_written_with_the_next_change(folder: Path) -> None:
    code = (
        f"{FULL_DISK}history = History.open(folder); history.add_prompt('before')\n"
        "fill(0)\n"
        "for n in range(3): history.add_prompt(f'{n}'); assert history.prompts() == ['before']\n"
        "notices = history.take_notices(); assert len(notices) == 1, notices\n"
        "assert 'written to (the disk' in notices[0], notices\n"
        "history.put(Job(Request('done'), 'demo', '', state='done')); assert not history.take_notices()\n"
        "fill(resource.RLIM_INFINITY)\n"
        "history.add_prompt('after'); assert history.prompts() == ['after', '2', '1', '0', 'before']\n"
        "fill(0); history.add_prompt('last'); assert len(history.take_notices()) == 1\n"
        "fill(resource.RLIM_INFINITY); history.close()"
    )
    with process(code, folder):
        pass
    one = History.open(folder)
    assert (one.notices, one.prompts()) == ([], ["last", "after", "2", "1", "0", "before"])
    assert prompts_of(one.results()) == ["done"]
    one.close()


@pytest.mark.skipif(not POSIX, reason="Windows has no such permissions")
def test_the_history_is_private_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        one = History.open(tmp_path / "parent" / "state")
        one.add_prompt("private")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "parent" / "state").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "parent" / "state").iterdir()}
    assert modes == {f"history.sqlite3{suffix}": 0o600 for suffix in ("", "-wal", "-shm")}
    one.close()


# The caller's errors


def test_a_callers_error_is_raised_and_leaves_no_change_half_done(open_history: Callable[..., History]) -> None:
    one = open_history()
    for job_id in "ab":
        one.put(a_job(job_id, id=job_id))
    with pytest.raises(UnicodeEncodeError):
        one.set_order(["b", "\ud800"])
    one.add_prompt("after")
    assert one.notices == []
    assert prompts_of(one.queue()) == ["a", "b"]
    assert open_history().prompts() == ["after"]


# Closing


def test_a_closed_history_stops_nobody(open_history: Callable[..., History], folder: Path) -> None:
    one = open_history()
    one.close()
    one.close()
    use_everything(one)
    assert_sentences(one.notices)
    assert open_history().prompts() == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_every_change_is_synced_before_its_call_returns(folder: Path, tmp_path: Path) -> None:
    """As the system sees it, from a state folder that nobody has made yet."""
    code = (
        "import os, sys; from pathlib import Path; from engine.request import Request; from tui.jobs import Job\n"
        "from tui.history import History\n"
        "def told(what): os.write(1, f'told {what};'.encode())\n"
        "history = History.open(Path(sys.argv[1])); told('opened')\n"
        "history.put(Job(Request('waits'), 'demo', '')); told('job')\n"
        "history.put(Job(Request('done'), 'demo', '', state='done')); told('result')\n"
        "history.set_favourite(Path('x'), True); told('star')\n"
        "history.add_prompt('a prompt'); told('prompt')\n"
        "os._exit(0)"
    )
    trace = tmp_path / "trace"
    traced = ["strace", "-f", "-y", "-o", str(trace), "-e", "trace=fsync,fdatasync,write,pwrite64,mkdir"]
    run = subprocess.run([*traced, sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    if run.returncode or "told prompt" not in run.stdout:
        pytest.skip(f"strace may not trace here: {run.stderr[-200:]}")
    opening, *changes = re.split(r"write\(1<.*told .*\n", trace.read_text())
    assert re.search(rf'mkdir\("{re.escape(str(folder))}".*\n.*fsync\(\d+<{re.escape(str(folder.parent))}>\)', opening)
    assert re.search(rf"fsync\(\d+<{re.escape(str(folder))}>\)", opening)
    assert len(changes) == 5
    for place, change in enumerate(changes[:-1]):
        calls = re.findall(r"(fsync|fdatasync|pwrite64)\(\d+<([^>]*)>", change)
        assert calls[-1] == ("fdatasync", f"{file_of(folder)}-wal"), calls
        assert place or ("fdatasync", str(folder)) in calls  # the log's own name


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_slow_disk_holds_up_nobody_who_types(folder: Path, tmp_path: Path) -> None:
    """The log is synced by another thread, however often; 1,500 drafts are more than SQLite's log is to have pages."""
    code = (
        "import os, sys, threading; from pathlib import Path; from tui.history import History\n"
        "history = History.open(Path(sys.argv[1])); history.adopt(); os.write(1, b'told opened;')\n"
        "for number in range(1500): history.save_soon('draft', f'{number} letters')\n"
        "os.write(1, b'told draft;')\n"
        "for thread in threading.enumerate(): thread is threading.current_thread() or thread.join()\n"
        "os.kill(os.getpid(), 9)"
    )
    trace = tmp_path / "trace"
    traced = ["strace", "-f", "-y", "-o", str(trace), "-e", "trace=fsync,fdatasync,write"]
    run = subprocess.run([*traced, sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    if "told draft" not in run.stdout:
        pytest.skip(f"strace may not trace here: {run.stderr[-200:]}")
    _, typing, after = re.split(r"(?m)^.*write\(1<.*told .*\n", trace.read_text())
    main = trace.read_text().split()[0]
    synced = re.findall(rf"(?m)^(\d+) +(?:fsync|fdatasync)\(\d+<{re.escape(str(file_of(folder)))}-wal>", typing + after)
    assert synced
    assert main not in synced
    assert not re.findall(rf"(?m)^{main} +f(?:data)?sync", typing)
    left = History.open(folder).adopt()
    assert left is not None
    assert left.draft == "1499 letters"


def test_hours_of_typing_do_not_let_the_log_grow(
    open_history: Callable[..., History], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "MOST_LOG_PAGES", 20)
    one, log = open_history(), Path(f"{file_of(folder)}-wal")
    for number in range(200):
        one.save_soon("draft", f"{number} letters")
        assert log.stat().st_size < 40 * 4200
    assert one.load("draft") == "199 letters"


def test_a_draft_is_synced_at_once_where_sqlite_has_no_log(open_history: Callable[..., History], folder: Path) -> None:
    one = open_history()
    one._db.execute("PRAGMA journal_mode = DELETE")
    statements: list[str] = []
    one._db.set_trace_callback(statements.append)
    one.save_soon("draft", "a red circle")
    assert not [each for each in statements if "synchronous" in each]
    assert one.load("draft") == "a red circle"


def test_it_is_written_as_promised(open_history: Callable[..., History], folder: Path) -> None:
    one = open_history()
    assert one._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert one._db.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA: synced when it is told
    assert ask(folder, "PRAGMA user_version") == [(database.SCHEMA_VERSION,)]
    one.save_soon("draft", "typed")
    assert one._db.execute("PRAGMA synchronous").fetchone() == (3,)
    assert one._db.execute("PRAGMA wal_autocheckpoint").fetchone() == (1000,)
    one.put_all([a_job()], prompt="with its prompt")
    assert one.prompts() == ["with its prompt"]
    stored = json.loads(ask(folder, "SELECT job FROM jobs")[0][0])
    assert Request.from_dict(stored["request"]) == a_job().request
    assert math.isclose(stored["created"], time.time(), abs_tol=60)
