"""What outlives the app: prompts, queue and results, the draft, favourites.

One SQLite file that several running apps share. Each app is a session; what a session leaves behind, be it by `close`
or because its process was killed, is taken over by the next one that calls `adopt`. Every change is a transaction of
its own and on the disk when its call returns, so that neither a kill nor a power cut costs more than the unfinished
change. What is typed alone does not wait for the disk (`save_soon`). A change that the disk refuses, or a lock, is kept
and made with the next that succeeds.

Meant for one thread. Nothing here raises because of the disk or the file: what went wrong becomes a notice. A row that
cannot be read, whoever wrote it, is left out.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from engine.folders import shown_path
from tui import database
from tui.jobs import Job, job_from_dict, job_to_dict

T = TypeVar("T")

LOOK_SECONDS = 30.0  # between two looks for a place, where the history is in memory
LEAVING_SECONDS = 2.0  # and the last one, where changes of this session still wait
MAX_TEXT = 1_000_000  # bytes or characters of a value; ours have a third of it at most
SAVE = "INSERT OR REPLACE INTO saved VALUES (?, ?, ?)"
REGISTER = """
    INSERT INTO sessions (id, pid, started, active) VALUES (?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET active = excluded.active
"""
LAST_POSITION = "(SELECT coalesce(max(position), 0) + 1 FROM jobs WHERE session = :session)"
# A job keeps its place in the queue, and a result its time, however often it is put.
PUT_JOB = f"""
    INSERT INTO jobs VALUES (:id, :session, :state, {LAST_POSITION}, :finished, :job)
    ON CONFLICT (id) DO UPDATE SET
        position = CASE WHEN session = :session AND finished IS NULL THEN position ELSE excluded.position END,
        finished = CASE WHEN :finished IS NULL THEN NULL ELSE coalesce(finished, :finished) END,
        session = :session, state = :state, job = :job
"""
JOB = f"id, state, CASE WHEN length(job) <= {MAX_TEXT} THEN job END"
VALUE = f"CASE WHEN length(value) <= {MAX_TEXT} THEN value END"
QUEUE = f"SELECT {JOB} FROM jobs WHERE session = ? AND finished IS NULL ORDER BY state != 'running', position"
UNFIT_ROW = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError)  # no time will make it fit


@dataclass(frozen=True, slots=True)
class Adopted:
    """What earlier sessions left behind; it belongs to this one now."""

    draft: str
    values: dict[str, Any]  # whatever else was saved, by key
    jobs: list[Job]  # all queued, the one that was running first


class History:
    """This session's part of the shared file. Open it with `History.open`; use it from one thread."""

    def __init__(
        self,
        folder: Path,
        db: sqlite3.Connection,
        path: Path | None,
        clock: Callable[[], float],
        notices: list[str],
    ) -> None:
        self.notices = notices  # sentences for the person
        self._db = db
        self._path, self._file = path, database.identity(path)  # None: in memory
        self._folder: Path | None = folder  # None: closed
        self._next_look = time.monotonic() + LOOK_SECONDS  # for a place, where the history is in memory
        self._clock = clock
        self._waiting: dict[Hashable, Callable[[], object]] = {}  # changes that could not be written yet, by subject
        self._session = uuid.uuid4().hex
        self._started = _process_start(os.getpid()) or 0.0
        self._log = database.LogSync()
        self._failing: set[tuple[str, str]] = set()  # (what, why): lasting failures that the person was told of
        self._unreadable: set[tuple[str, Any]] = set()  # rows that the person was told of: (what, id)

    @classmethod
    def open(cls, folder: Path, clock: Callable[[], float] = time.time) -> History:
        """The history in `folder`, which is made if need be. `clock` gives seconds since the epoch.

        A damaged file is set aside; a locked one, or one of a newer version, is left alone and another is used; and
        where nothing can be written the history is in memory: `notices` says which.
        """
        notices: list[str] = []
        return cls(folder, *database.open_database(folder, clock, notices), clock, notices)

    def close(self) -> None:
        """Leave the queue and what was saved to the next session."""
        self._next_look = -math.inf
        if self._waiting:
            with suppress(sqlite3.Error):
                self._db.execute(f"PRAGMA busy_timeout = {LEAVING_SECONDS * 1000:.0f}")
        self._write(("ended",), "UPDATE sessions SET ended = 1 WHERE id = ?", self._session)
        if self._waiting:
            self.notices.append("What the history could not be given is lost; pictures are where they were saved.")
        self._folder = None
        with suppress(sqlite3.Error):
            self._db.close()

    def take_notices(self) -> list[str]:
        """The notices since the last call. A failure that repeats gives one until something works again."""
        taken, self.notices[:] = self.notices[:], []
        return taken

    # Prompts

    def add_prompt(self, text: str) -> None:
        """Make `text` the newest prompt, whether or not it is there already."""
        self._write(("prompt", text), database.ADD_PROMPT, _blob(text))

    def prompts(self, limit: int = 1000) -> list[str]:
        """The newest prompts, the newest first."""
        query = f"SELECT id, CASE WHEN length(text) <= {MAX_TEXT} THEN text END FROM prompts ORDER BY id DESC LIMIT ?"
        found: list[str] = []
        unreadable = []
        for id, text in self._read(query, min(limit, database.PROMPTS_KEPT)):
            try:
                found.append(text.decode("utf-8", "surrogatepass"))
            except (UnicodeDecodeError, AttributeError):
                unreadable.append(id)
        self._note_unreadable("prompt", unreadable)
        return found

    # This session

    def save(self, key: str, value: Any) -> None:
        """Keep a JSON value ("draft", "parameters", ...). Raises `TypeError` for what JSON cannot hold."""
        self._write(("saved", key), SAVE, self._session, key, json.dumps(value))

    def save_soon(self, key: str, value: Any) -> None:
        """As `save`, but the disk is not waited for: a kill costs nothing, a power cut the last moment."""
        self._write(("saved", key), SAVE, self._session, key, json.dumps(value), soon=True)

    def load(self, key: str) -> Any:
        """What this session saved or adopted under `key`, or None."""
        rows = self._read(f"SELECT {VALUE} FROM saved WHERE session = ? AND key = ?", self._session, key)
        return _parsed(rows[0][0]) if rows else None

    def adopt(self) -> Adopted | None:
        """Take over what sessions without a living process left behind, or None if that is nothing.

        Jobs come from all of them; draft and values from the one that was active last and saved any. The others'
        drafts go to the prompts. All in one transaction: of two apps that start at once, one gets everything.
        """
        return self._change(self._adopt)

    # Jobs

    def put(self, job: Job, course: dict[str, Any] | None = None) -> None:
        """Keep `job` as it is now, and its `course` (JSON values). A new one, or one that is queued again, goes to the
        end of this session's queue."""
        self.put_all([job], course=course)

    def put_all(
        self,
        jobs: Sequence[Job],
        order: Sequence[str] | None = None,
        prompt: str | None = None,
        course: dict[str, Any] | None = None,
    ) -> None:
        """Keep several jobs as they are now, put the queue into `order`, and make `prompt` the newest: one sync."""
        rows = [self._row(job) for job in jobs]
        courses = [(job.id, json.dumps(course)) for job in jobs] if course is not None else []

        def change() -> None:
            if prompt is not None:
                self._db.execute(database.ADD_PROMPT, (_blob(prompt),))
            self._db.executemany(PUT_JOB, rows)
            self._db.executemany("INSERT OR REPLACE INTO courses VALUES (?, ?)", courses)
            if order is not None:
                self._order(order)

        self._change(change, ("jobs", prompt, *(job.id for job in jobs)))

    def _row(self, job: Job) -> dict[str, Any]:
        finished = None if job.state in ("queued", "running") else self._clock()
        row = {"id": job.id, "session": self._session, "state": job.state, "finished": finished}
        return {**row, "job": json.dumps(job_to_dict(job))}

    def set_order(self, ids: Sequence[str]) -> None:
        """Put these jobs of this session's queue first, in this order."""
        self._change(lambda: self._order(ids), ("order",))

    def _order(self, ids: Sequence[str]) -> None:
        query = "SELECT coalesce(min(position), 0) FROM jobs WHERE session = ?"
        start = self._db.execute(query, (self._session,)).fetchone()[0] - len(ids)
        rows = [(position, id, self._session) for position, id in enumerate(ids, start)]
        self._db.executemany("UPDATE jobs SET position = ? WHERE id = ? AND session = ?", rows)

    def remove(self, *ids: str) -> None:
        """Forget jobs or results; their pictures stay."""
        rows = [(id,) for id in ids]
        self._change(lambda: self._db.executemany("DELETE FROM jobs WHERE id = ?", rows), ("gone", *ids))

    def queue(self) -> list[Job]:
        """This session's jobs that are running or queued, in this order."""
        return self._jobs(self._read(QUEUE, self._session))

    def course(self, job_id: str) -> Any:
        """What was kept of a job's course, as JSON values that are not trusted; None where nothing was."""
        length = f"CASE WHEN length(course) <= {MAX_TEXT} THEN course END"
        rows = self._read(f"SELECT {length} FROM courses WHERE job = ?", job_id)
        return _parsed(rows[0][0]) if rows else None

    def results(self, limit: int = 200) -> list[Job]:
        """What all sessions finished, failed at or cancelled, the newest first."""
        return self._jobs(self._read(f"SELECT {JOB} FROM {database.RESULTS} LIMIT ?", limit))

    # Favourites

    def is_favourite(self, path: Path) -> bool:
        """Whether `path`, spelled like this, is a favourite."""
        return bool(self._read("SELECT 1 FROM favourites WHERE path = ?", os.fsencode(path)))

    def set_favourite(self, path: Path, favourite: bool) -> None:
        """Make `path` a favourite, or no longer."""
        change = "INSERT OR IGNORE INTO favourites VALUES (?)" if favourite else "DELETE FROM favourites WHERE path = ?"
        self._write(("favourite", path), change, os.fsencode(path))

    def favourites(self) -> set[Path]:
        """All favourites, whether or not their files are still there."""
        rows = self._read("SELECT path FROM favourites")
        return {Path(os.fsdecode(path)) for (path,) in rows if isinstance(path, bytes) and b"\0" not in path}

    # Inside

    def _read(self, query: str, *parameters: Any) -> list[Any]:
        """All rows; none, and a notice, where the file cannot be read."""
        try:
            rows = self._db.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            self._note_failure("read", error)
            return []
        self._note_success("read")
        return rows

    def _write(self, subject: Hashable, statement: str, *parameters: Any, soon: bool = False) -> None:
        self._change(lambda: self._db.execute(statement, parameters), subject, soon=soon)

    def _change(self, change: Callable[[], T], subject: Hashable = None, *, soon: bool = False) -> T | None:
        """What `change` returns, once it is on the disk, with all that waited. Otherwise nothing has changed: None, and
        a notice; with a `subject` it waits for the next one that succeeds, in place of an earlier one of that subject.
        With `soon` it is on the disk a little later, where that can be.
        """
        try:
            self._follow()
            soon = soon and not self._waiting and self._path is not None and database.has_log(self._db)
            with database.unsynced(self._db) if soon else nullcontext(), database.transaction(self._db):
                self._db.execute(REGISTER, (self._session, os.getpid(), self._started, self._clock()))
                for waiting in self._waiting.values():
                    with suppress(*UNFIT_ROW):
                        waiting()
                result = change()
        except sqlite3.Error as error:
            if subject is not None and not isinstance(error, UNFIT_ROW):
                self._waiting.pop(subject, None)
                self._waiting[subject] = change
            self._note_failure("written to", error)
            return None
        self._waiting.clear()
        self._note_success("written to")
        if soon:
            self._log.sync(Path(f"{self._path}-wal"))
        return result

    def _follow(self) -> None:
        """Where the file was removed, or another lies in its place: use that, or a new one, with all that ours held."""
        if self._path is None:
            self._leave_memory()
            return
        if (now := database.identity(self._path)) == self._file:
            return
        rows, gone = database.rows(self._db), shown_path(self._path)
        if now is not None and sys.version_info >= (3, 12):  # or closing deletes the other file's log, by its name
            self._db.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
        self._db.close()
        self._db, self._path = database.open_database(self._path.parent, self._clock, self.notices)
        self._file = database.identity(self._path)
        self._waiting = {"all": lambda: database.insert(self._db, rows), **self._waiting}
        if self._path is not None:
            place = shown_path(self._path)
            self.notices.append(f"The history {gone} was removed while the app was open; what it held is in {place}.")

    def _leave_memory(self) -> None:
        """Where the history is in memory: put it on the disk as soon as there is a place."""
        if self._folder is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        notices: list[str] = []
        try:
            db, path = database.open_files(self._folder, self._clock, notices)
        except (OSError, ValueError, sqlite3.Error):
            return
        rows = database.rows(self._db)
        self._db.close()
        self._db, self._path, self._file = db, path, database.identity(path)
        self._waiting = {"all": lambda: database.insert(self._db, rows), **self._waiting}
        self.notices += [*notices, f"There is a place for the history again: all of it goes to {shown_path(path)}."]

    def _note_failure(self, what: str, error: sqlite3.Error) -> None:
        failure = (what, database.reason(error))
        if failure not in self._failing:
            self._failing.add(failure)
            consequence = "some of it is not shown" if what == "read" else "it will be tried again with the next change"
            self.notices.append(f"The history could not be {what} ({failure[1]}): {consequence}.")

    def _note_success(self, what: str) -> None:
        lasting = database.DAMAGED  # another part of a damaged file may well work
        self._failing = {failure for failure in self._failing if failure[0] != what or failure[1] == lasting}

    def _adopt(self) -> Adopted | None:
        db, own = self._db, self._session
        query = "SELECT id, pid, started, ended FROM sessions WHERE id != ? ORDER BY active DESC, rowid DESC"
        values: dict[str, Any] = {}
        queue: list[tuple[str, str, str]] = []  # id, state, job
        for session, pid, started, ended in db.execute(query, (own,)).fetchall():
            if not ended and _is_alive(pid, started):
                continue
            left = db.execute(f"SELECT key, {VALUE} FROM saved WHERE session = ?", (session,)).fetchall()
            saved = {key: _parsed(value) for key, value in left}
            if not values:
                values = saved
                db.execute("UPDATE OR IGNORE saved SET session = ? WHERE session = ?", (own, session))
            elif isinstance(draft := saved.get("draft"), str) and draft.strip():
                db.execute(database.ADD_PROMPT, (_blob(draft),))
            queue += db.execute(QUEUE, (session,)).fetchall()
            db.execute("DELETE FROM saved WHERE session = ?", (session,))
            db.execute("DELETE FROM sessions WHERE id = ?", (session,))
        queue.sort(key=lambda row: row[1] != "running")
        state = "CASE state WHEN 'running' THEN 'queued' ELSE state END"  # one that we do not know is not ours to run
        place = f"UPDATE jobs SET position = {LAST_POSITION}, session = :session, state = {state} WHERE id = :id"
        db.executemany(place, [{"session": own, "id": id} for id, _, _ in queue])
        jobs = self._jobs((id, "queued" if state == "running" else state, text) for id, state, text in queue)
        draft = values.pop("draft", "")
        return Adopted(draft if isinstance(draft, str) else "", values, jobs) if draft or values or jobs else None

    def _jobs(self, rows: Iterable[Any]) -> list[Job]:
        """Jobs from rows (id, state, job), without those that this version cannot read."""
        jobs, unreadable = [], []
        for id, state, text in rows:
            try:
                values = _parsed(text if isinstance(text, str) and text.isascii() else None)  # as ours all are
                jobs.append(job_from_dict(id, state, values))
            except (ValueError, TypeError, KeyError, RecursionError):  # RequestError is a ValueError
                unreadable.append(id)
        self._note_unreadable("job", unreadable)
        return jobs

    def _note_unreadable(self, what: str, ids: Iterable[Any]) -> None:
        new = {(what, id) for id in ids} - self._unreadable
        if new:
            self._unreadable |= new
            are = f"1 stored {what} is" if len(new) == 1 else f"{len(new)} stored {what}s are"
            self.notices.append(f"{are} left out: this version of the app cannot read what was written there.")


def _blob(text: str) -> bytes:
    """Any Python text, lone surrogates included."""
    return text.encode("utf-8", "surrogatepass")


def _parsed(text: str | None) -> Any:
    """The JSON value in `text`, or None if it holds none."""
    with suppress(ValueError, TypeError, RecursionError):
        return json.loads(text or "")
    return None


def _process_start(pid: int) -> float | None:
    """When a running process started, in seconds on a scale of the system's own; None where there is none."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        # On Linux psutil adds the boot time, and that moves whenever the clock is set.
        return process.create_time() - (psutil.boot_time() if psutil.LINUX else 0)
    except (psutil.NoSuchProcess, ValueError, TypeError, OverflowError):  # no pid at all
        return None


def _is_alive(pid: int, started: float) -> bool:
    """Whether the process `pid` runs and is still the one that started then."""
    try:
        start = _process_start(pid)
    except psutil.AccessDenied:  # there is one, and nobody can tell: leave its things alone
        return True
    return (
        start is not None and isinstance(started, int | float) and abs(start - started) < 2
    )  # seconds: boot times are rounded
