"""A journal's file: opening it for writing or only for reading, and its errors."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing, suppress
from pathlib import Path

from stagegraph.schema.errors import JournalError

from .tables import APPLICATION_ID, VERSION, make_tables

_APPLICATION_ID_AT = 68
"""Its place in the header of an SQLite file."""


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
                make_tables(connection)
    except (sqlite3.Error, OSError) as error:
        raise journal_error(path, error) from error


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
