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
import stat
import sys
import threading
import time
import uuid
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import psutil

from engine.files import make_folder, open_own, remove_leftovers, sync_file, sync_folder
from engine.folders import shown_path
from engine.request import Request
from tui.jobs import STATES, Job

T = TypeVar("T")

FILES = ("history.sqlite3", "history-2.sqlite3", "history-3.sqlite3")  # a later one while the others cannot be used
BUSY_SECONDS = 0.25  # the longest wait for another process's change
LOOK_SECONDS = 30.0  # between two looks for a place, where the history is in memory
LEAVING_SECONDS = 2.0  # and the last one, where changes of this session still wait
PROMPTS_KEPT = 10_000
RESULTS_KEPT = 5_000
MAX_TEXT = 1_000_000  # bytes or characters of a value; ours have a third of it at most
MAX_POSITION = 2**53
LOG_PAGES = 1000  # after which SQLite brings its log into the database
MOST_LOG_PAGES = 8 * LOG_PAGES  # the same where nothing but what is typed was written: it takes the disk's time
FRESH_SECONDS = 1.0  # so long a file may be empty because another app is about to fill it

STRICT = " STRICT" if sqlite3.sqlite_version_info >= (3, 37) else ""
SCHEMA = (  # of version 1; text that may hold what UTF-8 cannot (lone surrogates) is a BLOB or ASCII JSON
    f"CREATE TABLE prompts (id INTEGER PRIMARY KEY, text BLOB NOT NULL UNIQUE){STRICT}",
    f"CREATE TABLE favourites (path BLOB PRIMARY KEY){STRICT}",
    f"""CREATE TABLE sessions (
        id TEXT PRIMARY KEY, pid INTEGER NOT NULL, started REAL NOT NULL,
        active REAL NOT NULL, ended INTEGER NOT NULL DEFAULT 0){STRICT}""",
    f"""CREATE TABLE saved (
        session TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (session, key)){STRICT}""",
    # `finished` is when a job was done, failed or cancelled: NULL while it is queued or running.
    f"""CREATE TABLE jobs (
        id TEXT PRIMARY KEY, session TEXT NOT NULL, state TEXT NOT NULL, position INTEGER NOT NULL,
        finished REAL, job TEXT NOT NULL){STRICT}""",
    "CREATE INDEX jobs_finished ON jobs (finished)",
    "CREATE INDEX jobs_position ON jobs (session, position)",
)
VERSIONS = (SCHEMA,)  # statements that make each version out of the one before, the first out of nothing
SCHEMA_VERSION = len(VERSIONS)
TABLES = ("favourites", "sessions", "saved", "jobs")  # and prompts: what a history holds
SAVE = "INSERT OR REPLACE INTO saved VALUES (?, ?, ?)"
REGISTER = """
    INSERT INTO sessions (id, pid, started, active) VALUES (?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET active = excluded.active
"""
ADD_PROMPT = "INSERT OR REPLACE INTO prompts (text) VALUES (?)"  # under a new id, the highest
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
RESULTS = "jobs WHERE finished NOT NULL ORDER BY finished DESC, rowid DESC"

LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)  # the last: a table is missing
DAMAGED = "it is damaged"
UNFIT_ROW = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError)  # no time will make it fit
REASONS = {
    sqlite3.SQLITE_BUSY: "another program has locked it",
    sqlite3.SQLITE_LOCKED: "another program has locked it",
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
    sqlite3.SQLITE_ERROR: "its tables are not this program's",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk reports an error",
    sqlite3.SQLITE_READONLY: "it may not be written to",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
}


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
        self._path, self._file = path, _identity(path)  # None: in memory
        self._folder: Path | None = folder  # None: closed
        self._next_look = time.monotonic() + LOOK_SECONDS  # for a place, where the history is in memory
        self._clock = clock
        self._waiting: dict[Hashable, Callable[[], object]] = {}  # changes that could not be written yet, by subject
        self._session = uuid.uuid4().hex
        self._started = _process_start(os.getpid()) or 0.0
        self._log = LogSync()
        self._failing: set[tuple[str, str]] = set()  # (what, why): lasting failures that the person was told of
        self._unreadable: set[tuple[str, Any]] = set()  # rows that the person was told of: (what, id)

    @classmethod
    def open(cls, folder: Path, clock: Callable[[], float] = time.time) -> History:
        """The history in `folder`, which is made if need be. `clock` gives seconds since the epoch.

        A damaged file is set aside; a locked one, or one of a newer version, is left alone and another is used; and
        where nothing can be written the history is in memory: `notices` says which.
        """
        notices: list[str] = []
        return cls(folder, *_open_database(folder, clock, notices), clock, notices)

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
        self._write(("prompt", text), ADD_PROMPT, _blob(text))

    def prompts(self, limit: int = 1000) -> list[str]:
        """The newest prompts, the newest first."""
        query = f"SELECT id, CASE WHEN length(text) <= {MAX_TEXT} THEN text END FROM prompts ORDER BY id DESC LIMIT ?"
        found: list[str] = []
        unreadable = []
        for id, text in self._read(query, min(limit, PROMPTS_KEPT)):
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

    def put(self, job: Job) -> None:
        """Keep `job` as it is now. A new one, or one that is queued again, goes to the end of this session's queue."""
        self.put_all([job])

    def put_all(self, jobs: Sequence[Job], order: Sequence[str] | None = None, prompt: str | None = None) -> None:
        """Keep several jobs as they are now, put the queue into `order`, and make `prompt` the newest: one sync."""
        rows = [self._row(job) for job in jobs]

        def change() -> None:
            if prompt is not None:
                self._db.execute(ADD_PROMPT, (_blob(prompt),))
            self._db.executemany(PUT_JOB, rows)
            if order is not None:
                self._order(order)

        self._change(change, ("jobs", prompt, *(job.id for job in jobs)))

    def _row(self, job: Job) -> dict[str, Any]:
        values = {field.name: getattr(job, field.name) for field in fields(job) if field.name not in ("id", "state")}
        values["request"] = job.request.to_dict()
        values["path"] = None if job.path is None else str(job.path)
        finished = None if job.state in ("queued", "running") else self._clock()
        row = {"id": job.id, "session": self._session, "state": job.state, "finished": finished}
        row["job"] = json.dumps(values)
        return row

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

    def results(self, limit: int = 200) -> list[Job]:
        """What all sessions finished, failed at or cancelled, the newest first."""
        return self._jobs(self._read(f"SELECT {JOB} FROM {RESULTS} LIMIT ?", limit))

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
            soon = soon and not self._waiting and self._path is not None and _has_log(self._db)
            with _unsynced(self._db) if soon else nullcontext(), _transaction(self._db):
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
        if (now := _identity(self._path)) == self._file:
            return
        rows, gone = _rows(self._db), shown_path(self._path)
        if now is not None and sys.version_info >= (3, 12):  # or closing deletes the other file's log, by its name
            self._db.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
        self._db.close()
        self._db, self._path = _open_database(self._path.parent, self._clock, self.notices)
        self._file = _identity(self._path)
        self._waiting = {"all": lambda: _insert(self._db, rows), **self._waiting}
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
            db, path = _open_files(self._folder, self._clock, notices)
        except (OSError, ValueError, sqlite3.Error):
            return
        rows = _rows(self._db)
        self._db.close()
        self._db, self._path, self._file = db, path, _identity(path)
        self._waiting = {"all": lambda: _insert(self._db, rows), **self._waiting}
        self.notices += [*notices, f"There is a place for the history again: all of it goes to {shown_path(path)}."]

    def _note_failure(self, what: str, error: sqlite3.Error) -> None:
        failure = (what, _reason(error))
        if failure not in self._failing:
            self._failing.add(failure)
            consequence = "some of it is not shown" if what == "read" else "it will be tried again with the next change"
            self.notices.append(f"The history could not be {what} ({failure[1]}): {consequence}.")

    def _note_success(self, what: str) -> None:
        lasting = DAMAGED  # another part of a damaged file may well work
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
                db.execute(ADD_PROMPT, (_blob(draft),))
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
                jobs.append(_job(id, state, text))
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


class LogSync:
    """Brings SQLite's log to the disk in a thread, so that nobody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: Path | None = None
        self._runs = False

    def sync(self, log: Path) -> None:
        """All that the log has now."""
        with self._lock:
            self._wanted = log
            if self._runs:
                return
            self._runs = True
        threading.Thread(target=self._run, name="history-log", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                log, self._wanted = self._wanted, None
                if log is None:
                    self._runs = False
                    return
            with suppress(OSError):  # then the next change that is waited for says so
                sync_file(log)  # no lock of SQLite's is on this file: closing it takes none away


def _job(id: Any, state: Any, text: Any) -> Job:
    """The job of a row. Raises `ValueError`, `TypeError`, `KeyError` or `RecursionError` for what is none."""
    if not isinstance(text, str) or not text.isascii():  # ours are; others may hold bytes that are no text at all
        raise ValueError
    values = json.loads(text)
    values["request"] = Request.from_dict(values["request"])
    values["path"] = None if values["path"] is None else Path(values["path"])
    job = Job(id=id, state=state, **values)
    texts = (job.id, job.model, job.output, job.message)
    if job.state not in STATES or not all(isinstance(value, str) for value in texts):
        raise ValueError
    if "\0" in job.output or b"\0" in os.fsencode(job.path or "") or type(job.simulated) is not bool:
        raise ValueError  # as `os.fsencode` does for what no path can hold
    if type(job.peak_bytes) is float:
        raise ValueError
    measured = [value for value in (job.seconds, job.peak_bytes) if value is not None]
    if not all(map(_is_number, (job.created, *measured))):
        raise ValueError
    return job


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 2**63  # type: ignore[operator]


class _LeftAloneError(Exception):
    """A file that must not be used and is not broken; says why."""


def _open_database(
    folder: Path, clock: Callable[[], float], notices: list[str]
) -> tuple[sqlite3.Connection, Path | None]:
    """As `_open_files`, or a database in memory."""
    try:
        return _open_files(folder, clock, notices)
    except (OSError, ValueError, sqlite3.Error) as error:
        notices.append(
            f"No history can be kept in {shown_path(folder)} ({_reason(error)}): "
            "unless that changes, prompts, queue and results will be gone when the app closes."
        )
    db = sqlite3.connect(":memory:", isolation_level=None)
    _prepare(db)
    return db, None


def _open_files(folder: Path, clock: Callable[[], float], notices: list[str]) -> tuple[sqlite3.Connection, Path]:
    """The first of FILES that can be used; `notices` is told of everything unusual.

    Raises `sqlite3.Error`, `OSError` or `ValueError` where none can be.
    """
    make_folder(folder)
    remove_leftovers(folder)
    paths = [folder / name for name in FILES]
    alone: list[str] = []  # why the ones before are left alone
    for place, path in enumerate(paths):
        try:
            db = _connect_anew(path, clock, notices)
        except _LeftAloneError as error:
            alone.append(str(error))
            continue
        if alone:
            used = f"{shown_path(path)} is used instead"
            notices.append(f"The history {shown_path(paths[0])} is left alone ({alone[0]}); {used}.")
        for other in paths[place + 1 :]:
            with suppress(sqlite3.Error, OSError):
                _take_over(db, other)
        return db, path
    raise ValueError(f"none of its files can be used: {alone[0]}")


def _connect_anew(path: Path, clock: Callable[[], float], notices: list[str]) -> sqlite3.Connection:
    """Like `_connect`, with a broken file set aside first. Raises `_LeftAloneError`, `sqlite3.Error` or `OSError`."""
    try:
        try:
            return _connect(path, notices)
        except sqlite3.Error as error:
            if _code(error) not in BROKEN:
                raise
            _check_unused(path)
            aside = shown_path(_set_aside(path, clock()))
            problem = f"The history {shown_path(path)} cannot be used ({_reason(error)})"
            notices.append(f"{problem}; it is kept as {aside}, and a new one begins.")
        return _connect(path, notices)
    except sqlite3.Error as error:
        if _code(error) in LOCKED:
            raise _LeftAloneError(_reason(error)) from None
        raise


def _connect(path: Path, notices: list[str]) -> sqlite3.Connection:
    """The database at `path`, made if need be and fit for use. Raises what `_connect_anew` does."""
    emptied = False
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode):
            kinds = {stat.S_IFDIR: "it is a folder", stat.S_IFLNK: "it is a link"}
            raise _LeftAloneError(kinds.get(stat.S_IFMT(about.st_mode), "it is no ordinary file"))
        emptied = about.st_size == 0 and time.time() - about.st_mtime > FRESH_SECONDS
    except FileNotFoundError:
        with suppress(FileExistsError):
            # Private from the start; SQLite's files beside it take over its mode. Only a new file may be opened like
            # this: closing one that is in use would drop this process's locks on it.
            os.close(open_own(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            sync_folder(path.parent)
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        was_new = _prepare(db)
    except BaseException:
        db.close()
        raise
    if emptied and was_new:
        notices.append(f"The history {shown_path(path)} was there and empty (0 bytes); a new one begins in it.")
    return db


def _prepare(db: sqlite3.Connection) -> bool:
    """Check, set up and trim a database, and try that it can be written; whether it was new.

    Raises `_LeftAloneError` or `sqlite3.Error`.
    """
    db.text_factory = lambda data: data.decode("utf-8", "replace")  # one bad text must not cost the others
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise _LeftAloneError("a newer version of this program wrote it")
    if version < 0:
        raise sqlite3.DatabaseError("another program made it")
    if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise sqlite3.DatabaseError(DAMAGED)
    db.execute("PRAGMA synchronous = EXTRA")  # what is told is on the disk, with or without WAL
    with _transaction(db):
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise sqlite3.DatabaseError("another program made it")
        for statements in VERSIONS[version:]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # always: the trial that it can be written
        older = "(SELECT id FROM {} LIMIT -1 OFFSET ?)"
        db.execute(f"DELETE FROM prompts WHERE id IN {older.format('prompts ORDER BY id DESC')}", (PROMPTS_KEPT,))
        db.execute(f"DELETE FROM jobs WHERE id IN {older.format(RESULTS)}", (RESULTS_KEPT,))
        # Not ours, and a place after the last one that there can be would be no number any more.
        db.execute("UPDATE jobs SET position = 0 WHERE position NOT BETWEEN ? AND ?", (-MAX_POSITION, MAX_POSITION))
    with suppress(sqlite3.OperationalError):  # no WAL now (another app has a lock) or here: the plain journal will do
        db.execute("PRAGMA journal_mode = WAL")
    return bool(version == 0)


def _take_over(db: sqlite3.Connection, other: Path) -> None:
    """Move here what a session wrote into another file, while this one could not be used.

    Raises `sqlite3.Error` where that is not possible now. A kill in between leaves it in both: then it is done again.
    """
    if not stat.S_ISREG(other.lstat().st_mode):
        return
    with closing(sqlite3.connect(other, timeout=0, isolation_level=None)) as source:
        source.execute("PRAGMA locking_mode = EXCLUSIVE")  # nobody else has it open
        with _transaction(source):
            if source.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                return
            rows = _rows(source)
            if any(rows.values()):
                with _transaction(db):
                    _insert(db, rows)
            for table in rows:
                source.execute(f"DELETE FROM {table}")


def _rows(db: sqlite3.Connection) -> dict[str, list[Any]]:
    """All that a history holds, by table. Raises `sqlite3.Error`."""
    rows = {table: db.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall() for table in TABLES}
    return {"prompts": db.execute("SELECT text FROM prompts ORDER BY id").fetchall(), **rows}


def _insert(db: sqlite3.Connection, rows: dict[str, list[Any]]) -> None:
    """Add what is not there yet; prompts become the newest."""
    for table, values in rows.items():
        marks = ", ".join("?" * len(values[0])) if values else ""
        added = ADD_PROMPT if table == "prompts" else f"INSERT OR IGNORE INTO {table} VALUES ({marks})"
        if values:
            db.executemany(added, values)


def _identity(path: Path | None) -> tuple[int, int] | None:
    """What tells a file from another one of its name; None where there is none."""
    with suppress(OSError):
        if path is not None:
            about = path.stat()
            return about.st_dev, about.st_ino
    return None


def _check_unused(path: Path) -> None:
    """Raise SQLite's "locked" where another app has the file open: it would go on to delete our file's log."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as db:
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            if _code(error) in LOCKED:
                raise


def _set_aside(path: Path, now: float) -> Path:
    """Rename a database and SQLite's files beside it; returns the new name. Raises `OSError`."""
    stem = f"{path.stem}-broken-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}"
    aside, count = path.with_name(f"{stem}{path.suffix}"), 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{stem}-{count}{path.suffix}")
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    return aside


def _has_log(db: sqlite3.Connection) -> bool:
    return bool(db.execute("PRAGMA journal_mode").fetchone()[0] == "wal")


@contextmanager
def _unsynced(db: sqlite3.Connection) -> Iterator[None]:
    """Only for a database with a log: what is not synced of it when the power is cut is left out; the rest is whole.

    The log's beginning is synced all the same, and where the log has grown long, all of it with the database.
    """
    db.execute(f"PRAGMA wal_autocheckpoint = {MOST_LOG_PAGES}")
    db.execute("PRAGMA synchronous = NORMAL")
    try:
        yield
    finally:
        db.execute("PRAGMA synchronous = EXTRA")
        db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; errors of ours have none and mean that the file is broken."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF


def _reason(error: Exception) -> str:
    """Why it failed, in a few words: `the disk is full`."""
    if isinstance(error, OSError):
        return (error.strerror or "unknown reason").lower()
    if isinstance(error, sqlite3.Error) and hasattr(error, "sqlite_errorcode") and _code(error) in REASONS:
        return REASONS[_code(error)]
    return "".join(c if c.isprintable() else " " for c in str(error))[:200]


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
    return start is not None and _is_number(started) and abs(start - started) < 2  # seconds: boot times are rounded
