"""What outlives the app: prompts, queue and results, the draft, favourites.

One SQLite file that several running apps share. Each app is a session; what a session leaves behind, be it by `close`
or because its process was killed, is taken over by the next one that calls `adopt`. Every change is a transaction of
its own, so a kill at any moment costs the unfinished change alone.

Meant for one thread. Nothing here raises because of the disk or the file: what went wrong becomes a notice.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import psutil

from engine.folders import shown_path
from engine.request import Request
from tui.jobs import Job

T = TypeVar("T")

FILES = ("history.sqlite3", "history-2.sqlite3", "history-3.sqlite3")  # a later one while the others are locked
SCHEMA_VERSION = 1
BUSY_SECONDS = 0.25  # the longest wait for another process's change
PROMPTS_KEPT = 10_000
RESULTS_KEPT = 5_000

STRICT = " STRICT" if sqlite3.sqlite_version_info >= (3, 37) else ""
SCHEMA = (  # text that may hold what UTF-8 cannot (lone surrogates) is a BLOB or ASCII JSON
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
QUEUE = """
    SELECT id, state, job FROM jobs WHERE session = ? AND finished IS NULL ORDER BY state != 'running', position
"""
RESULTS = "jobs WHERE finished NOT NULL ORDER BY finished DESC, rowid DESC"

LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)  # the last: a table is missing
REASONS = {
    sqlite3.SQLITE_BUSY: "another program has locked it",
    sqlite3.SQLITE_LOCKED: "another program has locked it",
    sqlite3.SQLITE_CORRUPT: "it is damaged",
    sqlite3.SQLITE_NOTADB: "it is damaged",
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

    def __init__(self, db: sqlite3.Connection, clock: Callable[[], float], notices: list[str]) -> None:
        self.notices = notices  # sentences for the person
        self._db = db
        self._clock = clock
        self._session = uuid.uuid4().hex
        self._started = _process_start(os.getpid()) or 0.0
        self._failing: set[tuple[str, str]] = set()  # (what, why): lasting failures that the person was told of
        self._unreadable: set[str] = set()  # ids of jobs that the person was told of

    @classmethod
    def open(cls, folder: Path, clock: Callable[[], float] = time.time) -> History:
        """The history in `folder`, which is made if need be. `clock` gives seconds since the epoch.

        A damaged file is set aside, a locked one is left alone and another is used, and where nothing can be written
        the history is in memory; `notices` says which.
        """
        notices: list[str] = []
        return cls(_open_database(folder, clock, notices), clock, notices)

    def close(self) -> None:
        """Leave the queue and what was saved to the next session."""
        self._write("UPDATE sessions SET ended = 1 WHERE id = ?", self._session)
        with suppress(sqlite3.Error):
            self._db.close()

    def take_notices(self) -> list[str]:
        """The notices since the last call. A failure that repeats gives one until something works again."""
        taken, self.notices[:] = self.notices[:], []
        return taken

    # Prompts

    def add_prompt(self, text: str) -> None:
        """Make `text` the newest prompt, whether or not it is there already."""
        self._write(ADD_PROMPT, _blob(text))

    def prompts(self, limit: int = 1000) -> list[str]:
        """The newest prompts, the newest first."""
        rows = self._read("SELECT text FROM prompts ORDER BY id DESC LIMIT ?", min(limit, PROMPTS_KEPT))
        return [text.decode("utf-8", "surrogatepass") for (text,) in rows]

    # This session

    def save(self, key: str, value: Any) -> None:
        """Keep a JSON value ("draft", "parameters", ...). Raises `TypeError` for what JSON cannot hold."""
        self._write("INSERT OR REPLACE INTO saved VALUES (?, ?, ?)", self._session, key, json.dumps(value))

    def load(self, key: str) -> Any:
        """What this session saved or adopted under `key`, or None."""
        rows = self._read("SELECT value FROM saved WHERE session = ? AND key = ?", self._session, key)
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

    def put_all(self, jobs: Sequence[Job], order: Sequence[str] | None = None) -> None:
        """Keep several jobs as they are now, and put the queue into `order`, at one go."""
        rows = [self._row(job) for job in jobs]

        def change() -> None:
            self._db.executemany(PUT_JOB, rows)
            if order is not None:
                self._order(order)

        self._change(change)

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
        self._change(lambda: self._order(ids))

    def _order(self, ids: Sequence[str]) -> None:
        query = "SELECT coalesce(min(position), 0) FROM jobs WHERE session = ?"
        start = self._db.execute(query, (self._session,)).fetchone()[0] - len(ids)
        rows = [(position, id, self._session) for position, id in enumerate(ids, start)]
        self._db.executemany("UPDATE jobs SET position = ? WHERE id = ? AND session = ?", rows)

    def remove(self, *ids: str) -> None:
        """Forget jobs or results; their pictures stay."""
        self._change(lambda: self._db.executemany("DELETE FROM jobs WHERE id = ?", [(id,) for id in ids]))

    def queue(self) -> list[Job]:
        """This session's jobs that are running or queued, in this order."""
        return self._jobs(self._read(QUEUE, self._session))

    def results(self, limit: int = 200) -> list[Job]:
        """What all sessions finished, failed at or cancelled, the newest first."""
        return self._jobs(self._read(f"SELECT id, state, job FROM {RESULTS} LIMIT ?", limit))

    # Favourites

    def is_favourite(self, path: Path) -> bool:
        """Whether `path`, spelled like this, is a favourite."""
        return bool(self._read("SELECT 1 FROM favourites WHERE path = ?", os.fsencode(path)))

    def set_favourite(self, path: Path, favourite: bool) -> None:
        """Make `path` a favourite, or no longer."""
        change = "INSERT OR IGNORE INTO favourites VALUES (?)" if favourite else "DELETE FROM favourites WHERE path = ?"
        self._write(change, os.fsencode(path))

    def favourites(self) -> set[Path]:
        """All favourites, whether or not their files are still there."""
        return {Path(os.fsdecode(path)) for (path,) in self._read("SELECT path FROM favourites")}

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

    def _write(self, statement: str, *parameters: Any) -> None:
        self._change(lambda: self._db.execute(statement, parameters))

    def _change(self, change: Callable[[], T]) -> T | None:
        """What `change` returns, once it is committed. Otherwise nothing has changed: None, and a notice."""
        try:
            with _transaction(self._db):
                self._db.execute(REGISTER, (self._session, os.getpid(), self._started, self._clock()))
                result = change()
        except sqlite3.Error as error:
            self._note_failure("written to", error)
            return None
        self._note_success("written to")
        return result

    def _note_failure(self, what: str, error: sqlite3.Error) -> None:
        failure = (what, _reason(error))
        if failure not in self._failing:
            self._failing.add(failure)
            consequence = "some of it is not shown" if what == "read" else "the last changes may not be kept"
            self.notices.append(f"The history could not be {what} ({failure[1]}): {consequence}.")

    def _note_success(self, what: str) -> None:
        lasting = REASONS[sqlite3.SQLITE_CORRUPT]  # another part of a damaged file may well work
        self._failing = {failure for failure in self._failing if failure[0] != what or failure[1] == lasting}

    def _adopt(self) -> Adopted | None:
        db, own = self._db, self._session
        query = "SELECT id, pid, started, ended FROM sessions WHERE id != ? ORDER BY active DESC, rowid DESC"
        values: dict[str, Any] = {}
        queue: list[tuple[str, str, str]] = []  # id, state, job
        for session, pid, started, ended in db.execute(query, (own,)).fetchall():
            if not ended and _is_alive(pid, started):
                continue
            left = db.execute("SELECT key, value FROM saved WHERE session = ?", (session,)).fetchall()
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
        place = f"UPDATE jobs SET position = {LAST_POSITION}, session = :session, state = 'queued' WHERE id = :id"
        db.executemany(place, [{"session": own, "id": id} for id, _, _ in queue])
        jobs = self._jobs((id, "queued", text) for id, _, text in queue)
        draft = values.pop("draft", "")
        return Adopted(draft if isinstance(draft, str) else "", values, jobs) if draft or values or jobs else None

    def _jobs(self, rows: Iterable[Any]) -> list[Job]:
        """Jobs from rows (id, state, job), without those that this version cannot read."""
        jobs, unreadable = [], set()
        for id, state, text in rows:
            try:
                values = json.loads(text)
                values["request"] = Request.from_dict(values["request"])
                values["path"] = None if values["path"] is None else Path(values["path"])
                jobs.append(Job(id=id, state=state, **values))
            except (ValueError, TypeError, KeyError):  # RequestError is a ValueError
                unreadable.add(id)
        if new := len(unreadable - self._unreadable):
            self._unreadable |= unreadable
            are = "1 stored job is" if new == 1 else f"{new} stored jobs are"
            self.notices.append(f"{are} left out: this version of the app cannot read what was asked for.")
        return jobs


def _open_database(folder: Path, clock: Callable[[], float], notices: list[str]) -> sqlite3.Connection:
    """The first of FILES that can be used, or one in memory; `notices` is told of everything unusual."""
    first = folder / FILES[0]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (folder / name for name in FILES):
            try:
                db = _connect_anew(path, clock, notices)
            except sqlite3.Error as error:
                if _code(error) not in LOCKED:
                    raise
                continue
            if path != first:
                used = f"{shown_path(path)} is used instead"
                notices.append(f"Another program has locked the history {shown_path(first)}; {used}.")
            return db
        raise sqlite3.OperationalError("other programs have locked all its files")
    except (OSError, ValueError, sqlite3.Error) as error:
        notices.append(
            f"No history can be kept in {shown_path(folder)} ({_reason(error)}): "
            "prompts, queue and results will be gone when the app closes."
        )
    db = sqlite3.connect(":memory:", isolation_level=None)
    _prepare(db)
    return db


def _connect_anew(path: Path, clock: Callable[[], float], notices: list[str]) -> sqlite3.Connection:
    """Like `_connect`, with a broken file set aside first. Raises `sqlite3.Error` or `OSError`."""
    try:
        return _connect(path)
    except sqlite3.Error as error:
        if _code(error) not in BROKEN:
            raise
        _check_unused(path)
        aside = shown_path(_set_aside(path, clock()))
        problem = f"The history {shown_path(path)} cannot be used ({_reason(error)})"
        notices.append(f"{problem}; it is kept as {aside}, and a new one begins.")
    return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    """The database at `path`, made if need be and fit for use. Raises `sqlite3.Error` or `OSError`."""
    with suppress(FileExistsError):
        # Private from the start; SQLite's files beside it take over its mode. Only a new file may be opened like
        # this: closing one that is in use would drop this process's locks on it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        _prepare(db)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection) -> None:
    """Check, set up and trim a database, and try that it can be written. Raises `sqlite3.Error`."""
    if db.execute("PRAGMA user_version").fetchone()[0] not in (0, SCHEMA_VERSION):
        raise sqlite3.DatabaseError("another version of the app wrote it")
    if (fault := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise sqlite3.DatabaseError(fault)
    db.execute("PRAGMA synchronous = NORMAL")
    with _transaction(db):
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            if db.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise sqlite3.DatabaseError("another program made it")
            for statement in SCHEMA:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # always: the trial that it can be written
        older = "(SELECT id FROM {} LIMIT -1 OFFSET ?)"
        db.execute(f"DELETE FROM prompts WHERE id IN {older.format('prompts ORDER BY id DESC')}", (PROMPTS_KEPT,))
        db.execute(f"DELETE FROM jobs WHERE id IN {older.format(RESULTS)}", (RESULTS_KEPT,))
    with suppress(sqlite3.OperationalError):  # no WAL now (another app has a lock) or here: the plain journal will do
        db.execute("PRAGMA journal_mode = WAL")


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


def _parsed(text: str) -> Any:
    """The JSON value in `text`, or None if it holds none."""
    with suppress(ValueError):
        return json.loads(text)
    return None


def _process_start(pid: int) -> float | None:
    """When a running process started, in seconds on a scale of the system's own; None where there is none."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        # On Linux psutil adds the boot time, and that moves whenever the clock is set.
        return process.create_time() - (psutil.boot_time() if psutil.LINUX else 0)
    except (psutil.NoSuchProcess, ValueError):  # ValueError: no pid at all
        return None


def _is_alive(pid: int, started: float) -> bool:
    """Whether the process `pid` runs and is still the one that started then."""
    try:
        start = _process_start(pid)
    except psutil.AccessDenied:  # there is one, and nobody can tell: leave its things alone
        return True
    return start is not None and abs(start - started) < 2  # seconds: boot times are rounded
