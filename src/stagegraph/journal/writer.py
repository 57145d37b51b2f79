"""The one writer of a journal file: the rows of one turn of the event loop are committed together.

A commit goes to the write-ahead log, which is a copy into the system's cache: it takes some 30 us and is done on the
event loop, because a thread would take longer. A thread does what may take long: waiting for another process that is
writing, and moving the log into the file.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from stagegraph.record.rows import Row
from stagegraph.schema.errors import JournalError
from stagegraph.schema.serialize import escaped

from .file import connect, is_busy, journal_error
from .tables import statement_for

_ROWS_PER_CHECKPOINT = 2_000
_SIZE_PER_CHECKPOINT = 16_000_000
"""Characters."""
_MILLISECONDS_WITHOUT_WRITERS = 200
"""How long the end of a checkpoint may wait for readers while writers wait for it."""


_OF_A_ROW = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.NotSupportedError)


@dataclass(slots=True)
class Committed:
    """The outcome of writing some rows."""

    size: int = 0
    """Characters of text that were written."""
    refused: dict[int, str] = field(default_factory=dict[int, str])
    """Index of each row that can never be written -> the reason."""


def _is_of_file(error: Exception) -> bool:
    """Whether the file is the problem (full, locked, read-only, damaged), so that another try may succeed."""
    return isinstance(error, (sqlite3.DatabaseError, OSError)) and not isinstance(error, _OF_A_ROW)


def commit(connection: sqlite3.Connection, rows: list[Row]) -> Committed:
    """Write rows together.

    Raises:
        sqlite3.Error: the file is the problem; nothing was written.
    """
    if not rows:
        return Committed()
    try:
        with transaction(connection):
            return Committed(_write_alike(connection, rows))
    except Exception as error:
        if _is_of_file(error):
            raise
    with transaction(connection):
        return _write_each(connection, rows)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    """Commit everything inside, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def write_one(connection: sqlite3.Connection, row: Row) -> int:
    """Write one row; returns its size."""
    statement = statement_for(row)
    values = encodable(statement.values(row))
    connection.execute(statement.sql, values)
    return _size([values])


def encodable(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values without half surrogate pairs, which SQLite refuses."""
    return tuple(escaped(value) if isinstance(value, str) else value for value in values)


def _write_alike(connection: sqlite3.Connection, rows: list[Row]) -> int:
    size = 0
    for statement, alike in groupby(rows, key=statement_for):
        values = [statement.values(row) for row in alike]
        connection.executemany(statement.sql, values)
        size += _size(values)
    return size


def _write_each(connection: sqlite3.Connection, rows: list[Row]) -> Committed:
    done = Committed()
    for place, row in enumerate(rows):
        try:
            done.size += write_one(connection, row)
        except Exception as error:
            if _is_of_file(error):
                raise
            done.refused[place] = _why(connection, row, error)
    return done


def _size(rows: Iterable[tuple[Any, ...]]) -> int:
    return sum(len(value) for row in rows for value in row if isinstance(value, str))


def _why(connection: sqlite3.Connection, row: Row, error: Exception) -> str:
    """The reason, with the name of the column if it can be found."""
    for one in fields(row):
        try:
            connection.execute("SELECT ?", encodable((getattr(row, one.name),)))
        except Exception as refusal:  # noqa: BLE001 - it only shows which value it is
            return f"its `{one.name}` is nothing that a journal can hold ({refusal})"
    return str(error)


Waiter = asyncio.Future[None]


class Batch(NamedTuple):
    """The rows of one `put`."""

    rows: list[Row]
    waiter: Waiter | None


class Outcome(NamedTuple):
    """The result for one waiter."""

    waiter: Waiter
    failure: JournalError | None


class Writer:
    """Commits rows in the order in which they were put.

    Where the file is the problem (such as a full disk), the rows are kept and tried again with the next ones. A row
    that can never be written is left out, which is an error for its waiter; the others are written.
    """

    def __init__(self, path: Path, *, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._lock = threading.Lock()
        """Guards everything below: event loops of several threads may share a journal."""
        self._batches: list[Batch] = []
        self._lost: dict[str, JournalError] = {}
        """Run id -> the error of a row without a waiter that was left out; raised for the run's next waiter."""
        self._flushing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop that will flush, until it does."""
        self._connection: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._rows_in_log = 0
        self._size_in_log = 0

    def put(self, rows: list[Row], waiter: Waiter | None) -> None:
        with self._lock:
            self._batches.append(Batch(rows, waiter))
            if self._flushing and (self._loop is None or not self._loop.is_closed()):
                return  # a closed loop will never flush
            self._flushing = True
            self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Write the remaining rows and close the file."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown()
        if self._batches:
            self._write(self._timeout)
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        if (connection := getattr(self, "_connection", None)) is not None:
            connection.close()  # no warning where a program forgets to close its journal

    def _flush(self) -> None:
        self._loop = None
        if not self._write(0):
            self._in_thread(partial(self._write, self._timeout))
        elif self._rows_in_log >= _ROWS_PER_CHECKPOINT or self._size_in_log >= _SIZE_PER_CHECKPOINT:
            self._rows_in_log = self._size_in_log = 0
            self._in_thread(self._checkpoint)

    def _write(self, timeout: float) -> bool:
        """Commit all waiting rows; `False` when another process is writing and *timeout* is 0."""
        with self._lock:
            batches = self._batches
            try:
                outcomes = self._committed(batches, timeout)
            except Exception as error:  # noqa: BLE001 - every waiter needs an outcome
                if timeout == 0 and is_busy(error):
                    return False  # `_flushing` stays set: new rows wait for the thread
                outcomes = self._put_off(batches, journal_error(self._path, error))
            except BaseException as error:
                _wake(self._put_off(batches, JournalError(f"{self._path}: writing was broken off by {error!r}")))
                raise
            self._flushing = False
        _wake(outcomes)
        return True

    def _committed(self, batches: list[Batch], timeout: float) -> list[Outcome]:
        """Write all rows; returns the outcome for each waiter."""
        if self._connection is None:
            self._connection = connect(self._path, timeout=self._timeout)
            self._connection.execute("PRAGMA wal_autocheckpoint = 0")
        self._connection.execute(f"PRAGMA busy_timeout = {int(timeout * 1000)}")
        rows = [row for batch in batches for row in batch.rows]
        done = commit(self._connection, rows)
        self._batches = []
        self._rows_in_log += len(rows)
        self._size_in_log += done.size
        if not (done.refused or self._lost):
            return [Outcome(batch.waiter, None) for batch in batches if batch.waiter is not None]
        return self._outcomes(batches, done.refused)

    def _outcomes(self, batches: list[Batch], refused: Mapping[int, str]) -> list[Outcome]:
        """The outcomes where some rows were left out."""
        outcomes: list[Outcome] = []
        place = -1
        for batch in batches:
            failure: JournalError | None = None
            for row in batch.rows:
                place += 1
                if place in refused:
                    msg = f"{self._path}: a record of run {row.run_id!r} was left out: {refused[place]}"
                    self._lost[row.run_id] = JournalError(msg)
                if batch.waiter is not None:
                    failure = self._lost.pop(row.run_id, failure)
            if batch.waiter is not None:
                outcomes.append(Outcome(batch.waiter, failure))
        return outcomes

    def _put_off(self, batches: list[Batch], failure: JournalError) -> list[Outcome]:
        """Keep the rows, without waiters, for the next try."""
        self._batches = [Batch(batch.rows, None) for batch in batches if batch.rows]
        self._flushing = False
        return [Outcome(batch.waiter, failure) for batch in batches if batch.waiter is not None]

    def _checkpoint(self) -> None:
        """Move the log into the file, so that it does not grow for ever."""
        try:
            with closing(connect(self._path, timeout=self._timeout)) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                # Almost all is done beside the writers; the log only starts again at a moment without them.
                connection.execute(f"PRAGMA busy_timeout = {_MILLISECONDS_WITHOUT_WRITERS}")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error:
            return  # the rows are safe in the log; the next checkpoint moves them

    def _in_thread(self, work: Callable[[], object]) -> None:
        try:
            with self._lock:
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, thread_name_prefix="stagegraph journal")
                self._thread.submit(work)
        except RuntimeError:  # the interpreter is shutting down and starts no threads
            work()


def _wake(outcomes: list[Outcome]) -> None:
    """Settle the waiters, each on its own event loop."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    elsewhere: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for one in outcomes:
        elsewhere.setdefault(one.waiter.get_loop(), []).append(one)
    for loop, theirs in elsewhere.items():
        if loop is here:
            _settle(theirs)
        elif not loop.is_closed():  # nothing waits on a closed loop
            loop.call_soon_threadsafe(_settle, theirs)


def _settle(outcomes: list[Outcome]) -> None:
    for waiter, failure in outcomes:
        if waiter.done():
            continue
        if failure is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(failure)
