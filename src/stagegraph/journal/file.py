"""A journal's file: its tables, opening it for writing or only for reading, and its errors."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable, Container
from contextlib import closing, suppress
from dataclasses import MISSING, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from stagegraph.record.rows import CallRow, CancelRow, FeedbackRow, OpRow, Row, RunRow
from stagegraph.schema.errors import JournalError

APPLICATION_ID = 0x53474A31
"""Marks the file as a journal (`SGJ1`)."""
_APPLICATION_ID_AT = 68
"""Its place in the header of an SQLite file."""
VERSION = 3
"""2 has `cancels`, 3 `origin` and `transient` of calls; an older file gets what is missing when it is opened."""

TABLES: dict[type[Row], tuple[str, tuple[str, ...]]] = {
    RunRow: ("runs", ("run_id",)),
    CallRow: ("calls", ("run_id", "key")),
    OpRow: ("ops", ("run_id", "key", "identity", "op")),
    FeedbackRow: ("feedback", ("id",)),
    CancelRow: ("cancels", ("run_id", "segment")),
}
"""Row type -> table and primary key; the fields of a row are the columns."""
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS runs_started ON runs (started)",
    "CREATE INDEX IF NOT EXISTS feedback_run ON feedback (run_id)",
)
_SQL_TYPES = {"int": "INTEGER", "float": "REAL", "bool": "INTEGER"}
_NAMES = {row_type: tuple(field.name for field in fields(row_type)) for row_type in TABLES}
_DEFAULTS = {
    row_type: {field.name: field.default for field in fields(row_type) if field.default is not MISSING}
    for row_type in TABLES
}
"""The value of an empty column."""
_FLAGS = {row_type: [field.name for field in fields(row_type) if field.type == "bool"] for row_type in TABLES}
_OF_STAGES_AND_FAILURES = {
    *("error_type", "error", "origin", "transient"),
    *("usage", "attempts", "messages", "prompt", "pending"),
}

R = TypeVar("R", RunRow, CallRow, OpRow, FeedbackRow, CancelRow)


class Statement(NamedTuple):
    """The SQL that writes rows with the same columns, and their values; a row with the same key is replaced."""

    sql: str
    values: Callable[[Row], tuple[Any, ...]]


def _statement(row_type: type[Row], left_out: Container[str] = ()) -> Statement:
    names = [name for name in _NAMES[row_type] if name not in left_out]
    sql = f"INSERT OR REPLACE INTO {TABLES[row_type][0]} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - our own names
    return Statement(sql, attrgetter(*names))


_STATEMENTS = {row_type: _statement(row_type) for row_type in TABLES}
_PLAIN_CALL = _statement(CallRow, _OF_STAGES_AND_FAILURES)


def statement_for(row: Row) -> Statement:
    """The statement that writes a row.

    A third of the time to write a row goes into columns that most calls leave empty: those are left out.
    """
    if isinstance(row, CallRow) and row.kind != "stage" and row.error_type is None:
        return _PLAIN_CALL
    return _STATEMENTS[type(row)]


def row_of(row_type: type[R], found: sqlite3.Row) -> R:
    """A row from the columns of its table."""
    values: dict[str, Any] = dict(zip(found.keys(), found, strict=True))
    for name, default in _DEFAULTS[row_type].items():
        if values.get(name) is None:  # also a column that a file of an older version lacks, which is only read
            values[name] = default
    for flag in _FLAGS[row_type]:
        values[flag] = bool(values[flag])
    return row_type(**values)


def connect(path: Path, *, timeout: float, read_only: bool = False) -> sqlite3.Connection:
    """Open a journal's file."""
    if read_only:
        return _connect_read_only(path, timeout)
    connection = _open(path, "mode=rw", timeout)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _connect_read_only(path: Path, timeout: float) -> sqlite3.Connection:
    """Open a file so that nothing is written, not even the files that SQLite puts beside it."""
    log = Path(f"{path}-wal")
    if log.exists():  # a process has the file open, or was killed: the log has the newest rows
        connection = _open(path, "mode=ro", timeout)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        except sqlite3.OperationalError as error:
            connection.close()
            if is_busy(error):
                raise
            if log.stat().st_size > 0:
                msg = (
                    f"{path}: the newest records are in {log.name}, which cannot be read where nothing can be "
                    "written; copy both files to another folder"
                )
                raise JournalError(msg) from error
        else:
            return connection
    return _open(path, "mode=ro&immutable=1", timeout)


def _open(path: Path, mode: str, timeout: float) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


def prepare(path: Path, *, timeout: float) -> None:
    """Make the file, or make sure that it is a journal of a known version; any other file is left unchanged.

    Raises:
        JournalError: it is not, or the file system refuses.
    """
    try:
        with suppress(FileExistsError):
            path.touch(mode=0o600, exist_ok=False)  # before SQLite makes it with the process's own mode
        found = path.stat()
        if found.st_size == 0 and stat.S_ISREG(found.st_mode) and found.st_mode & 0o077:
            path.chmod(0o600)  # it is still empty; a wider mode that is set later is on purpose
        if found.st_size > 0 and not _is_marked(path):
            recognise(path, timeout=timeout, may_be_empty=True)
        with closing(connect(path, timeout=timeout)) as connection:
            if _version(path, connection) != VERSION:
                _make_tables(connection)
    except (sqlite3.Error, OSError) as error:
        raise journal_error(path, error) from error


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for row_type, (table, key) in TABLES.items():
        types = {field.name: _SQL_TYPES.get(str(field.type), "TEXT") for field in fields(row_type)}
        columns = ", ".join(f"{name} {type_}" for name, type_ in types.items())
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {table} ({columns}, PRIMARY KEY ({', '.join(key)})) WITHOUT ROWID"
        )
        present = {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}
        for name in types.keys() - present:  # the file is of an older version
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {types[name]}")
    for index in _INDEXES:
        connection.execute(index)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def recognise(path: Path, *, timeout: float, may_be_empty: bool = False) -> None:
    """Make sure, without writing, that a file is a journal of a known version, or an empty database (*may_be_empty*).

    Raises:
        JournalError: it is not, or cannot be read.
    """
    try:
        with closing(connect(path, timeout=timeout, read_only=True)) as connection:
            if _version(path, connection) == 0 and not may_be_empty:
                msg = f"{path}: an empty file, no journal yet; choose another file"
                raise JournalError(msg)
    except (sqlite3.Error, OSError) as error:
        raise journal_error(path, error) from error


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(_APPLICATION_ID_AT)
        return file.read(4) == APPLICATION_ID.to_bytes(4, "big")


def _version(path: Path, connection: sqlite3.Connection) -> int:
    """The version of a journal's tables; 0 for an empty database.

    Raises:
        JournalError: the file is not a journal, or of a newer version.
    """
    found = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    empty = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    if found != APPLICATION_ID and not (found == 0 and empty):
        msg = f"{path}: a database of another program, not a journal; choose another file"
        raise JournalError(msg)
    if version > VERSION:
        msg = (
            f"{path}: written by a newer stagegraph (schema {version}, this one reads {VERSION}); "
            "upgrade stagegraph, or choose another file"
        )
        raise JournalError(msg)
    return version if found == APPLICATION_ID else 0


def shrink(connection: sqlite3.Connection) -> None:
    """Give back the space of deleted rows; while another connection reads or writes, it is kept for new rows."""
    try:
        connection.execute("VACUUM")  # copies the file through the log, which would keep that size
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise


def _code(error: Exception) -> int:
    """SQLite's primary result code; 0 for an error of the file system, or of Python's own module."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_busy(error: Exception) -> bool:
    """Whether another connection has locked the file."""
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


_LOCKED = "another program holds the file; close it, and resume the run"
_REMEDIES = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_READONLY: "the file or its folder cannot be written; fix the permissions, and resume the run",
    sqlite3.SQLITE_FULL: "make room on the disk, and resume the run",
    sqlite3.SQLITE_CORRUPT: (
        "the file is damaged: move it away and keep it; `sqlite3 FILE .recover` saves what can be read"
    ),
    sqlite3.SQLITE_NOTADB: "the file is no journal; choose another file",
    sqlite3.SQLITE_CANTOPEN: "check that the folder exists and can be written",
}


def journal_error(path: Path, error: Exception) -> JournalError:
    """An error of SQLite or the file system, with what to do about it."""
    text = str(error) if isinstance(error, sqlite3.Error) else getattr(error, "strerror", None) or str(error)
    return JournalError(f"{path}: the journal failed: {text}; {_REMEDIES.get(_code(error), 'check the path')}")
