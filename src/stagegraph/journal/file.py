"""A journal's file: made or recognised, opened to write or only to look, and what to do when that fails."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing, suppress
from dataclasses import fields
from pathlib import Path

from stagegraph.schema.errors import JournalError

from .tables import APPLICATION_ID, INDEXES, SQL_TYPES, TABLES, VERSION

__all__ = ["connect", "explained", "is_busy", "prepare", "recognise", "shrink"]

_APPLICATION_ID_AT = 68
"""Where it stands in the header of an SQLite file."""


def connect(path: Path, *, timeout: float, read_only: bool = False) -> sqlite3.Connection:
    if read_only:
        return _connect_to_look(path, timeout)
    connection = _open(path, "mode=rw", timeout)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _connect_to_look(path: Path, timeout: float) -> sqlite3.Connection:
    """Open a file so that nothing is written, not even the files that SQLite puts beside it."""
    log = Path(f"{path}-wal")
    if log.exists():  # somebody has the file open, or was killed: what is in the log counts
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
    """Make the file, or make sure that it is a journal that this version can read; another file stays as it is.

    Raises:
        JournalError: it is not, or the file system refuses.
    """
    try:
        with suppress(FileExistsError):
            path.touch(mode=0o600, exist_ok=False)  # before SQLite makes it with the process's own mode
        found = path.stat()
        if found.st_size == 0 and stat.S_ISREG(found.st_mode) and found.st_mode & 0o077:
            path.chmod(0o600)  # nothing is in it yet; who opens a journal to others later means it
        if found.st_size > 0 and not _is_marked(path):
            recognise(path, timeout=timeout, may_be_empty=True)
        with closing(connect(path, timeout=timeout)) as connection:
            if _version(path, connection) == VERSION:
                return
            connection.execute("BEGIN IMMEDIATE")
            for row_type, (table, key) in TABLES.items():
                columns = ", ".join(f"{f.name} {SQL_TYPES.get(str(f.type), 'TEXT')}" for f in fields(row_type))
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {table} ({columns}, PRIMARY KEY ({', '.join(key)})) WITHOUT ROWID"
                )
            for index in INDEXES:
                connection.execute(index)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise explained(path, error) from error


def recognise(path: Path, *, timeout: float, may_be_empty: bool = False) -> None:
    """Make sure, without writing anything, that a file is a journal that this version can read, or *may_be_empty*.

    Raises:
        JournalError: it is not, or cannot be read.
    """
    try:
        with closing(connect(path, timeout=timeout, read_only=True)) as connection:
            if _version(path, connection) == 0 and not may_be_empty:
                msg = f"{path}: an empty file, no journal yet; choose another file"
                raise JournalError(msg)
    except (sqlite3.Error, OSError) as error:
        raise explained(path, error) from error


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(_APPLICATION_ID_AT)
        return file.read(4) == APPLICATION_ID.to_bytes(4, "big")


def _version(path: Path, connection: sqlite3.Connection) -> int:
    """Which tables a journal has; 0 for an empty database.

    Raises:
        JournalError: it is none, or of a newer version.
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
