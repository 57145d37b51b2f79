"""A journal's file: opening it for writing or only for reading, waiting for others that write, and its errors."""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from stagegraph.schema.errors import JournalError

from .tables import APPLICATION_ID, VERSION, bring_up_to_date, missing_in

T = TypeVar("T")

_log = logging.getLogger("stagegraph")

_SAY_AFTER = 1.0
"""Seconds of waiting for another writer after which it is said."""
_MILLISECONDS_WITHOUT_WRITERS = 200
"""How long the end of a checkpoint may wait for readers while writers wait for it."""
_FEWEST_PAGES = 200
"""Pages that are given back to the file system in one transaction; fewer take as long."""
_FEW_PAGES = 5_000
"""How large an older file may be that is written anew on an event loop: that takes a part of a second."""
_ALL = 2**32
TURN = 0.05
"""Seconds that a transaction of a long work keeps others from writing, unless one step of it takes longer."""
PAUSE = 0.02
"""Seconds between short transactions of a long work, in which others may write."""
_INCREMENTAL = 2
"""The mode of a file whose free pages can be given back in steps."""


class JournalFile:
    """The file of a journal, whose lock others may hold.

    Whoever may wait for it does so for *timeout* seconds at most, which is said once each time. The event loop may not.
    """

    def __init__(self, path: Path, *, timeout: float, read_only: bool) -> None:
        self.path = path
        self.place = Path(os.path.realpath(path))
        """Where the file is, whatever links lead to it."""
        self.timeout = timeout
        self.read_only = read_only
        self.ready = False
        """Whether it is known as a journal of this version."""
        self._checking = threading.Lock()
        self._said = False

    def make_ready(self, *, wait: bool = True) -> None:
        """Make the file, or make sure that it is a journal of a known version; any other file is left unchanged.

        Without *wait*, a file that another program has locked is looked at when it is first used.

        Raises:
            JournalError: it is not, or the file system refuses.
        """
        with self._checking:
            if self.ready:
                return
            try:
                self._repeated(partial(self._check, wait=wait), wait=wait)
            except (sqlite3.Error, OSError, JournalError) as error:
                if not wait and is_busy(error.__cause__ or error):
                    return
                if isinstance(error, JournalError):
                    raise
                raise journal_error(self.path, error) from error
            self.ready = True

    def _check(self, *, wait: bool) -> None:
        if self.read_only:
            recognise(self.path)
        else:
            prepare(self.path, pages=_ALL if wait else _FEW_PAGES)

    def _repeated(self, attempt: Callable[[], T], *, wait: bool) -> T:
        """What *attempt* gives; with *wait*, it is repeated while the file is locked."""
        until = time.monotonic() + self.timeout
        while True:  # SQLite itself waits for most locks, not for all
            try:
                return attempt()
            except (sqlite3.Error, OSError, JournalError) as error:
                if not (wait and is_busy(error.__cause__ or error)) or time.monotonic() > until:
                    raise
                time.sleep(random.uniform(0.01, 0.1))  # noqa: S311 - so that several do not try in step

    def connect(self, *, wait: bool = True) -> sqlite3.Connection:
        """Open the file; without *wait*, it is `ready`."""
        if not self.ready:
            self.make_ready()
        timeout = self.timeout if wait else 0
        return self._repeated(partial(connect, self.path, timeout=timeout, read_only=self.read_only), wait=wait)

    def begin(self, connection: sqlite3.Connection, *, wait: bool = True) -> sqlite3.Connection:
        """Begin to write, with *wait* as soon as nobody else does; `with` the connection all is written, or nothing."""
        if not wait:
            connection.execute("BEGIN IMMEDIATE")
            return connection
        first = min(self.timeout, _SAY_AFTER)
        try:
            _begin(connection, first)
        except sqlite3.OperationalError as error:
            if not is_busy(error) or first == self.timeout:
                raise
            if not self._said:
                self._said = True
                _log.warning(
                    "%s: another program is writing to this journal; runs wait for it, %g seconds at most",
                    self.path,
                    self.timeout,
                )
            _begin(connection, self.timeout - first)
        self._said = False
        return connection


def _begin(connection: sqlite3.Connection, seconds: float) -> None:
    """Begin to write; afterwards nothing is waited for."""
    connection.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
    try:
        connection.execute("BEGIN IMMEDIATE")
    finally:
        connection.execute("PRAGMA busy_timeout = 0")


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
    connection.text_factory = _text
    return connection


def _text(raw: bytes) -> str | bytes:
    """A text; what is damaged stays as it is, so that it is refused with its record alone."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def prepare(path: Path, *, pages: int) -> None:
    """Make the file of a journal, or bring it up to date; one of at most so many *pages* is also written anew.

    Nothing is waited for.

    Raises:
        JournalError: it is something else, or a process that runs an older version has it open.
        sqlite3.Error, OSError: it cannot be opened or written.
    """
    with suppress(FileExistsError):
        path.touch(mode=0o600, exist_ok=False)  # before SQLite makes it with the process's own mode
    found = path.stat()
    if found.st_size == 0 and stat.S_ISREG(found.st_mode) and found.st_mode & 0o077:
        path.chmod(0o600)  # it is still empty; a wider mode that is set later is on purpose
    version = recognise(path, may_be_empty=True) if found.st_size > 0 else 0
    if version == VERSION:
        with closing(connect(path, timeout=0)) as connection:
            if not missing_in(connection):
                return
    with closing(_open(path, "mode=rw", 0)) as connection:
        try:
            _alone(connection)
        except sqlite3.OperationalError as error:
            if version and is_busy(error):
                msg = (
                    f"{path}: written by an older stagegraph (schema {version}, this one writes {VERSION}), and a "
                    "process still has it open: end that process; until then the file stays as it is"
                )
                raise JournalError(msg) from error
            raise
        bring_up_to_date(connection)
        connection.execute("COMMIT")
        steps = connection.execute("PRAGMA auto_vacuum").fetchone()[0] == _INCREMENTAL
        if not steps and connection.execute("PRAGMA page_count").fetchone()[0] <= pages:
            with suppress(sqlite3.Error):  # it needs room on the disk
                connection.execute("VACUUM")  # once, so that space can be given back in steps from now on
        connection.execute("PRAGMA locking_mode = NORMAL")
        connection.execute("PRAGMA journal_mode = WAL")  # here, since it fails where two connections do it at once


def _alone(connection: sqlite3.Connection) -> None:
    """Begin to write to a file that no other process has open, so that the owners of runs in it are dead."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")  # which an empty file obeys
    connection.execute("BEGIN EXCLUSIVE")


def recognise(path: Path, *, may_be_empty: bool = False) -> int:
    """The version of a journal, or 0 of an empty database (*may_be_empty*); nothing is written.

    Raises:
        JournalError: it is not a journal of a known version.
        sqlite3.Error, OSError: it cannot be read.
    """
    with closing(connect(path, timeout=0, read_only=True)) as connection:
        found, version, tables = (
            connection.execute(question).fetchone()[0]
            for question in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
        )
    if found != APPLICATION_ID and (found or tables):
        msg = f"{path}: a database of another program, not a journal; choose another file"
        raise JournalError(msg)
    if version > VERSION:
        msg = (
            f"{path}: written by a newer stagegraph (schema {version}, this one reads {VERSION}); "
            "upgrade stagegraph, or choose another file"
        )
        raise JournalError(msg)
    if found != APPLICATION_ID and not may_be_empty:
        msg = f"{path}: an empty file, no journal yet; choose another file"
        raise JournalError(msg)
    return version if found == APPLICATION_ID else 0


def checkpoint(connection: sqlite3.Connection) -> None:
    """Move the log into the file; almost all of it is done beside the writers."""
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    connection.execute(f"PRAGMA busy_timeout = {_MILLISECONDS_WITHOUT_WRITERS}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # starts the log again at a moment without writers


def free_pages(connection: sqlite3.Connection) -> int:
    """How many pages of the file are for new rows."""
    return connection.execute("PRAGMA freelist_count").fetchone()[0]


def shrink(connection: sqlite3.Connection, pages: int) -> None:
    """Give back the space of deleted rows, in short transactions.

    It is fast as long as few pages are free: SQLite goes through all of them for each one. A file that was made by an
    older version, and could not be written anew, keeps them for new rows.
    """
    if connection.execute("PRAGMA auto_vacuum").fetchone()[0] == _INCREMENTAL:
        step = _FEWEST_PAGES
        while pages > 0:
            began = time.monotonic()
            connection.executescript(f"PRAGMA incremental_vacuum({step})")  # `execute` stops after one
            pages -= step
            step = max(_FEWEST_PAGES, int(step * TURN / (time.monotonic() - began)))
            time.sleep(PAUSE)


def _code(error: BaseException) -> int:
    """SQLite's primary result code; 0 for an error of the file system, or of Python's own module."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_busy(error: BaseException) -> bool:
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
    sqlite3.SQLITE_CANTOPEN: "the file was removed, or its folder does not exist or cannot be written",
}


def journal_error(path: Path, error: Exception) -> JournalError:
    """An error of SQLite or the file system, with what to do about it."""
    text = str(error) if isinstance(error, sqlite3.Error) else getattr(error, "strerror", None) or str(error)
    return JournalError(f"{path}: the journal failed: {text}; {_REMEDIES.get(_code(error), 'check the path')}")
