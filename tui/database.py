"""The file of the history: its tables, how it is opened, and what is done where it cannot be used as it is.

A damaged file is set aside. A locked one, or one of a newer version, is left alone: the next of `FILES` is used, and
taken over as soon as the first can be used again. What the rows mean is known to `history.py`.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from engine.files import make_folder, open_own, remove_leftovers, sync_file, sync_folder
from engine.folders import shown_path

FILES = ("history.sqlite3", "history-2.sqlite3", "history-3.sqlite3")  # a later one while the others cannot be used
BUSY_SECONDS = 0.25  # the longest wait for another process's change
PROMPTS_KEPT = 10_000
RESULTS_KEPT = 5_000
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
COURSES = (  # of version 2: a job's memory over time, which goes when the job does
    f"CREATE TABLE courses (job TEXT PRIMARY KEY, course TEXT NOT NULL){STRICT}",
    "CREATE TRIGGER job_gone AFTER DELETE ON jobs BEGIN DELETE FROM courses WHERE job = OLD.id; END",
)
VERSIONS = (SCHEMA, COURSES)  # statements that make each version out of the one before, the first out of nothing
SCHEMA_VERSION = len(VERSIONS)
TABLES = ("favourites", "sessions", "saved", "jobs", "courses")  # and prompts: what a history holds
ADD_PROMPT = "INSERT OR REPLACE INTO prompts (text) VALUES (?)"  # under a new id, the highest
RESULTS = "jobs WHERE finished NOT NULL ORDER BY finished DESC, rowid DESC"

LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)  # the last: a table is missing
DAMAGED = "it is damaged"
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


class _LeftAloneError(Exception):
    """A file that must not be used and is not broken; says why."""


def open_database(
    folder: Path, clock: Callable[[], float], notices: list[str]
) -> tuple[sqlite3.Connection, Path | None]:
    """As `open_files`, or a database in memory."""
    try:
        return open_files(folder, clock, notices)
    except (OSError, ValueError, sqlite3.Error) as error:
        notices.append(
            f"No history can be kept in {shown_path(folder)} ({reason(error)}): "
            "unless that changes, prompts, queue and results will be gone when the app closes."
        )
    db = sqlite3.connect(":memory:", isolation_level=None)
    _prepare(db)
    return db, None


def open_files(folder: Path, clock: Callable[[], float], notices: list[str]) -> tuple[sqlite3.Connection, Path]:
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
            problem = f"The history {shown_path(path)} cannot be used ({reason(error)})"
            notices.append(f"{problem}; it is kept as {aside}, and a new one begins.")
        return _connect(path, notices)
    except sqlite3.Error as error:
        if _code(error) in LOCKED:
            raise _LeftAloneError(reason(error)) from None
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
    with transaction(db):
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise sqlite3.DatabaseError("another program made it")
        _bring_up_to_date(db, version)
        older = "(SELECT id FROM {} LIMIT -1 OFFSET ?)"
        db.execute(f"DELETE FROM prompts WHERE id IN {older.format('prompts ORDER BY id DESC')}", (PROMPTS_KEPT,))
        db.execute(f"DELETE FROM jobs WHERE id IN {older.format(RESULTS)}", (RESULTS_KEPT,))
        # Not ours, and a place after the last one that there can be would be no number any more.
        db.execute("UPDATE jobs SET position = 0 WHERE position NOT BETWEEN ? AND ?", (-MAX_POSITION, MAX_POSITION))
    with suppress(sqlite3.OperationalError):  # no WAL now (another app has a lock) or here: the plain journal will do
        db.execute("PRAGMA journal_mode = WAL")
    return bool(version == 0)


def _bring_up_to_date(db: sqlite3.Connection, version: int) -> None:
    for statements in VERSIONS[version:]:
        for statement in statements:
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # always: the trial that it can be written


def _take_over(db: sqlite3.Connection, other: Path) -> None:
    """Move here what a session wrote into another file, while this one could not be used.

    Raises `sqlite3.Error` where that is not possible now. A kill in between leaves it in both: then it is done again.
    """
    if not stat.S_ISREG(other.lstat().st_mode):
        return
    with closing(sqlite3.connect(other, timeout=0, isolation_level=None)) as source:
        source.execute("PRAGMA locking_mode = EXCLUSIVE")  # nobody else has it open
        with transaction(source):
            version = source.execute("PRAGMA user_version").fetchone()[0]
            if not 0 < version <= SCHEMA_VERSION:
                return
            _bring_up_to_date(source, version)
            held = rows(source)
            if any(held.values()):
                with transaction(db):
                    insert(db, held)
            for table in held:
                source.execute(f"DELETE FROM {table}")


def rows(db: sqlite3.Connection) -> dict[str, list[Any]]:
    """All that a history holds, by table. Raises `sqlite3.Error`."""
    others = {table: db.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall() for table in TABLES}
    return {"prompts": db.execute("SELECT text FROM prompts ORDER BY id").fetchall(), **others}


def insert(db: sqlite3.Connection, rows: dict[str, list[Any]]) -> None:
    """Add what is not there yet; prompts become the newest."""
    for table, values in rows.items():
        marks = ", ".join("?" * len(values[0])) if values else ""
        added = ADD_PROMPT if table == "prompts" else f"INSERT OR IGNORE INTO {table} VALUES ({marks})"
        if values:
            db.executemany(added, values)


def identity(path: Path | None) -> tuple[int, int] | None:
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


def has_log(db: sqlite3.Connection) -> bool:
    return bool(db.execute("PRAGMA journal_mode").fetchone()[0] == "wal")


@contextmanager
def unsynced(db: sqlite3.Connection) -> Iterator[None]:
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
def transaction(db: sqlite3.Connection) -> Iterator[None]:
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


def reason(error: Exception) -> str:
    """Why it failed, in a few words: `the disk is full`."""
    if isinstance(error, OSError):
        return (error.strerror or "unknown reason").lower()
    if isinstance(error, sqlite3.Error) and hasattr(error, "sqlite_errorcode") and _code(error) in REASONS:
        return REASONS[_code(error)]
    return "".join(c if c.isprintable() else " " for c in str(error))[:200]


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
