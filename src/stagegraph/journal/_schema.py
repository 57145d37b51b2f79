"""The tables of a journal file, made from the rows themselves."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container
from contextlib import closing
from dataclasses import MISSING, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from stagegraph.errors import JournalError

from ._rows import CallRow, CancelRow, FeedbackRow, OpRow, Row, RunRow

__all__ = ["TABLES", "Statement", "connect", "explained", "is_busy", "prepare", "row_of", "shrink", "statement_for"]

APPLICATION_ID = 0x53474A31
"""Marks the file as ours (`SGJ1`)."""
VERSION = 2
"""2 has `cancels`; an older file gets what it lacks when it is opened."""

TABLES: dict[type[Row], tuple[str, tuple[str, ...]]] = {
    RunRow: ("runs", ("run_id",)),
    CallRow: ("calls", ("run_id", "key")),
    OpRow: ("ops", ("run_id", "key", "identity", "op")),
    FeedbackRow: ("feedback", ("id",)),
    CancelRow: ("cancels", ("run_id", "segment")),
}
"""Row type -> table and primary key."""
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS runs_started ON runs (started)",
    "CREATE INDEX IF NOT EXISTS feedback_run ON feedback (run_id)",
)
_SQL_TYPES = {"int": "INTEGER", "float": "REAL", "bool": "INTEGER"}
_NAMES = {row_type: tuple(field.name for field in fields(row_type)) for row_type in TABLES}

R = TypeVar("R", RunRow, CallRow, OpRow, FeedbackRow, CancelRow)


_DEFAULTS = {
    row_type: {field.name: field.default for field in fields(row_type) if field.default is not MISSING}
    for row_type in TABLES
}
"""What an empty column stands for."""
_OF_STAGES_AND_FAILURES = {"error_type", "error", "usage", "attempts", "messages", "prompt", "pending"}


class Statement(NamedTuple):
    """How rows of one shape are written: in the place of what was there."""

    sql: str
    values: Callable[[Row], tuple[Any, ...]]


def _statement(row_type: type[Row], left_out: Container[str] = ()) -> Statement:
    names = [name for name in _NAMES[row_type] if name not in left_out]
    sql = f"INSERT OR REPLACE INTO {TABLES[row_type][0]} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - our own names
    return Statement(sql, attrgetter(*names))


_STATEMENTS = {row_type: _statement(row_type) for row_type in TABLES}
_PLAIN_CALL = _statement(CallRow, _OF_STAGES_AND_FAILURES)


def statement_for(row: Row) -> Statement:
    """A third of the time to write a row goes into columns that most calls leave empty: for those they are left out."""
    if isinstance(row, CallRow) and row.kind != "stage" and row.error_type is None:
        return _PLAIN_CALL
    return _STATEMENTS[type(row)]


def row_of(row_type: type[R], found: sqlite3.Row) -> R:
    values: dict[str, Any] = {name: found[name] for name in _NAMES[row_type]}
    for name, default in _DEFAULTS[row_type].items():
        if values[name] is None:
            values[name] = default
    if "replayed" in values:
        values["replayed"] = bool(values["replayed"])
    return row_type(**values)


def connect(path: Path, *, timeout: float, read_only: bool = False) -> sqlite3.Connection:
    mode = "ro" if read_only else "rw"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def prepare(path: Path, *, timeout: float) -> None:
    """Make the file, or make sure that it is a journal that this version can read.

    Raises:
        JournalError: it is not, or the file system refuses.
    """
    try:
        path.touch(mode=0o600)  # before SQLite makes it with the process's own mode
        with closing(connect(path, timeout=timeout)) as connection:
            found = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            empty = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
            if found != APPLICATION_ID and not empty:
                msg = f"{path}: a database of another program, not a journal; choose another file"
                raise JournalError(msg)
            if version > VERSION:
                msg = (
                    f"{path}: written by a newer stagegraph (schema {version}, this one reads {VERSION}); "
                    "upgrade stagegraph, or choose another file"
                )
                raise JournalError(msg)
            if found == APPLICATION_ID and version == VERSION:
                return
            connection.execute("BEGIN IMMEDIATE")
            for row_type, (table, key) in TABLES.items():
                columns = ", ".join(f"{f.name} {_SQL_TYPES.get(str(f.type), 'TEXT')}" for f in fields(row_type))
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {table} ({columns}, PRIMARY KEY ({', '.join(key)})) WITHOUT ROWID"
                )
            for index in _INDEXES:
                connection.execute(index)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise explained(path, error) from error


def shrink(connection: sqlite3.Connection) -> None:
    """Give back the room of what was deleted; while somebody else reads or writes it stays, and is used again."""
    try:
        connection.execute("VACUUM")  # copies the file through the log, which would keep that size
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise


def is_busy(error: Exception) -> bool:
    """Whether another connection holds the file just now."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def explained(path: Path, error: Exception) -> JournalError:
    """What SQLite said, with what to do about it."""
    text = str(error) if isinstance(error, sqlite3.Error) else getattr(error, "strerror", None) or str(error)
    remedies = {
        "locked": "another program holds the file; close it, and resume the run",
        "readonly": "the file or its folder cannot be written; fix the permissions, and resume the run",
        "full": "make room on the disk, and resume the run",
        "malformed": "the file is damaged: move it away and keep it; `sqlite3 FILE .recover` saves what can be read",
        "not a database": "the file is no journal; choose another file",
        "unable to open": "check that the folder exists and can be written",
    }
    remedy = next((remedy for sign, remedy in remedies.items() if sign in text.lower()), "check the path")
    return JournalError(f"{path}: the journal failed: {text}; {remedy}")
