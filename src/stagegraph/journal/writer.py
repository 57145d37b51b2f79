"""The one writer of a journal file: the rows of one turn of the event loop are committed together.

A commit goes to the write-ahead log, which is a copy into the system's cache: it takes some 30 us and is done on the
event loop, because a thread would take longer. A thread does what may take long: waiting for another process that is
writing, and moving the log into the file.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import fields
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from stagegraph.record.rows import CallRow, OpRow, Row, RunRow
from stagegraph.schema.errors import JournalError
from stagegraph.schema.serialize import escaped

from .file import JournalFile, checkpoint, is_busy, journal_error
from .tables import statement_for

_BYTES_PER_CHECKPOINT = 16_000_000
_SECONDS_BETWEEN_LOOKS = 0.01
"""How long the size of the log is taken for known; most commits take a thousandth of that."""
_OF_HOLDER = (RunRow, CallRow, OpRow)
"""The rows that only the holder of a run writes."""
_HELD_BY = "SELECT 1 FROM runs INDEXED BY runs_running WHERE status = 'running' AND owner = ? AND run_id = ?"
_LOST = (
    "another process has taken the run over, because the lock of this one was gone (its file beside the journal was "
    "removed, or the journal was closed): the run ends here and goes on there"
)
_OF_A_ROW = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.NotSupportedError)


def _is_of_file(error: Exception) -> bool:
    """Whether the file is the problem (full, locked, read-only, damaged), so that another try may succeed."""
    return isinstance(error, (sqlite3.DatabaseError, OSError)) and not isinstance(error, _OF_A_ROW)


def _write(connection: sqlite3.Connection, row: Row) -> None:
    statement = statement_for(row)
    values = statement.values(row)
    try:
        connection.execute(statement.sql, values)
    except UnicodeEncodeError:
        connection.execute(statement.sql, encodable(values))


def encodable(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values without half surrogate pairs, which SQLite refuses."""
    return tuple(escaped(value) if isinstance(value, str) else value for value in values)


def _holds(connection: sqlite3.Connection, owner: str, run_id: str) -> bool:
    return connection.execute(_HELD_BY, (owner, escaped(run_id))).fetchone() is not None


def _why(connection: sqlite3.Connection, row: Row, error: Exception) -> str:
    """The reason, with the name of the column if it can be found."""
    for one in fields(row):
        try:
            connection.execute("SELECT ?", encodable((getattr(row, one.name),)))
        except Exception as refusal:  # noqa: BLE001 - it only shows which value it is
            return f"its `{one.name}` is nothing that a journal can hold ({refusal})"
    return str(error)


Waiter = asyncio.Future[None]
Refusal = Callable[[sqlite3.Connection], str | None]
"""Why a row must not be written, as the file stands when it would be; `None` where it may be."""
Outcome = tuple[Waiter, JournalError | None]
"""The result for one waiter."""


class Batch(NamedTuple):
    """The rows of one `put`."""

    rows: tuple[Row, ...]
    waiter: Waiter | None
    refusal: Refusal | None = None


class Writer:
    """Commits rows in the order in which they were put.

    Where the file is the problem (such as a full disk), the rows are kept and tried again with the next ones. A row
    that can never be written is left out, which is an error for its waiter; the others are written.
    """

    def __init__(self, file: JournalFile) -> None:
        self.owner: str | None = None
        """The name under which runs are held here now."""
        self.held: dict[str, str] = {}
        """Run id -> the name under which it is held here, from its first row in the file until the end of the run is
        recorded or refused."""
        self._file = file
        self._lock = threading.Lock()
        """Guards what is put: event loops of several threads may share a journal. Nobody waits while holding it."""
        self._batches: list[Batch] = []
        self._flushing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop that will flush, until it does."""
        self._thread: ThreadPoolExecutor | None = None
        self._turn = threading.Lock()
        """Guards what is written; who holds it may wait for other programs, so that an event loop only tries it."""
        self._kept: list[Batch] = []
        """What could not be written so far."""
        self._lost: dict[str, JournalError] = {}
        """Run id -> the error of a row without a waiter that was left out; raised for the run's next waiter."""
        self._connection: sqlite3.Connection | None = None
        self._log = Path(f"{file.place}-wal")
        self._largest_log: float = _BYTES_PER_CHECKPOINT
        """The size of the log from which on it is moved into the file."""
        self._next_look = 0.0

    def put(self, rows: tuple[Row, ...], waiter: Waiter | None, refusal: Refusal | None = None) -> None:
        with self._lock:
            self._batches.append(Batch(rows, waiter, refusal))
            if self._flushing and (self._loop is None or not self._loop.is_closed()):
                return  # a closed loop will never flush
            self._flushing = True
            self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Write the remaining rows and close the file.

        Raises:
            JournalError: they could not be written.
        """
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown()
        with self._lock:
            self._batches.append(Batch((), None))
        self._write()
        with self._turn:
            connection, self._connection = self._connection, None
            left = sum(len(batch.rows) for batch in self._kept)
        if connection is not None:
            connection.close()
        if left:
            msg = f"{self._file.path}: the journal was closed before its last {left} records could be written"
            raise JournalError(msg)

    def __del__(self) -> None:
        if (connection := getattr(self, "_connection", None)) is not None:
            connection.close()  # no warning where a program forgets to close its journal

    def _flush(self) -> None:
        self._loop = None
        if not self._write(wait=False):
            self._in_thread(self._write)
        elif (now := monotonic()) > self._next_look:
            self._next_look = now + _SECONDS_BETWEEN_LOOKS
            if self._size_of_log() > self._largest_log:
                self._largest_log = inf
                self._in_thread(self._checkpoint)

    def _size_of_log(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            return 0

    def _write(self, *, wait: bool = True) -> bool:
        """Commit all rows; without *wait*, `False` when another process or thread is writing."""
        if not (wait or self._file.ready) or not self._turn.acquire(blocking=wait):
            return False  # `_flushing` stays set: new rows wait for the thread
        try:
            while batches := self._taken():
                try:
                    outcomes = self._committed(batches, wait=wait)
                except Exception as error:  # noqa: BLE001 - every waiter needs an outcome
                    if not wait and is_busy(error):
                        with self._lock:
                            self._batches = batches + self._batches
                        return False
                    known = isinstance(error, JournalError)
                    outcomes = self._put_off(batches, error if known else journal_error(self._file.path, error))
                except BaseException as error:
                    msg = f"{self._file.path}: writing was broken off by {error!r}"
                    _wake(self._put_off(batches, JournalError(msg)))
                    self._flushing = False
                    raise
                _wake(outcomes)
        finally:
            self._turn.release()
        return True

    def _taken(self) -> list[Batch]:
        """The batches that wait, each with a refusal by itself; the flush is over when there are none."""
        with self._lock:
            found = self._batches
            end = next((place for place, batch in enumerate(found) if batch.refusal is not None), len(found)) or 1
            batches, self._batches = found[:end], found[end:]
            self._flushing = bool(batches)
        return batches

    def _committed(self, batches: list[Batch], *, wait: bool) -> list[Outcome]:
        """Write all rows; returns the outcome for each waiter."""
        refusal = batches[0].refusal
        if refusal is None:
            batches = [*self._kept, *batches]
        rows = [row for batch in batches for row in batch.rows]
        refused = self._commit(rows, refusal, wait=wait) if rows else {}
        if refusal is None:
            self._kept = []
        for place, row in enumerate(rows):
            if isinstance(row, RunRow):
                if row.owner is not None and row.owner == self.owner:
                    if row.run_id not in self.held and place not in refused:
                        self.held[row.run_id] = row.owner
                        self._lost.pop(row.run_id, None)
                elif row.owner != self.held.get(row.run_id):
                    self.held.pop(row.run_id, None)
        if refused or self._lost:
            return self._outcomes(batches, refused)
        return [(batch.waiter, None) for batch in batches if batch.waiter is not None]

    def _commit(self, rows: list[Row], refusal: Refusal | None, *, wait: bool) -> dict[int, str]:
        """Write rows together; returns the index of each row that is not written now or ever -> the reason.

        Raises:
            sqlite3.Error: the file is the problem; nothing was written.
        """
        if self._connection is None:
            self._connection = self._file.connect(wait=wait)
            self._connection.execute("PRAGMA wal_autocheckpoint = 0")
            self._connection.execute("PRAGMA busy_timeout = 0")
        connection = self._connection
        refused: dict[int, str] = {}
        with self._file.begin(connection, wait=wait):
            if refusal is not None and (why := refusal(connection)) is not None:
                return {0: why}
            lost = self._lost_among(connection, rows)
            for place, row in enumerate(rows):
                if lost and row.run_id in lost and isinstance(row, _OF_HOLDER):
                    refused[place] = _LOST
                    continue
                try:
                    _write(connection, row)
                except Exception as error:
                    if _is_of_file(error):
                        raise
                    refused[place] = _why(connection, row, error)
        return refused

    def _lost_among(self, connection: sqlite3.Connection, rows: list[Row]) -> set[str]:
        """The runs that were held here, and that another owner has taken over since."""
        return {
            run_id
            for run_id in {row.run_id for row in rows}
            if (owner := self.held.get(run_id)) is not None and not _holds(connection, owner, run_id)
        }

    def _outcomes(self, batches: list[Batch], refused: Mapping[int, str]) -> list[Outcome]:
        """The outcomes where some rows were left out."""
        outcomes: list[Outcome] = []
        place = -1
        for batch in batches:
            failure: JournalError | None = None
            for row in batch.rows:
                place += 1
                if place in refused and batch.refusal is not None:
                    failure = JournalError(refused[place])
                elif place in refused:
                    msg = f"{self._file.path}: a record of run {row.run_id!r} was left out: {refused[place]}"
                    self._lost[row.run_id] = JournalError(msg)
                if batch.waiter is not None and batch.refusal is None:
                    failure = self._lost.pop(row.run_id, failure)
            if batch.waiter is not None:
                outcomes.append((batch.waiter, failure))
        return outcomes

    def _put_off(self, batches: list[Batch], failure: JournalError) -> list[Outcome]:
        """Keep the rows, without waiters, for the next try."""
        self._kept += [Batch(batch.rows, None) for batch in batches if batch.rows and batch.refusal is None]
        return [(batch.waiter, failure) for batch in batches if batch.waiter is not None]

    def _checkpoint(self) -> None:
        """Move the log into the file, so that it does not grow for ever."""
        try:
            with closing(self._file.connect()) as connection:
                checkpoint(connection)
        except (sqlite3.Error, JournalError):
            pass  # the rows are safe in the log; the next checkpoint moves them
        self._largest_log = self._size_of_log() + _BYTES_PER_CHECKPOINT

    def _in_thread(self, work: Callable[[], object]) -> None:
        """Do something in the thread of those who wait."""
        try:
            with self._lock:
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, thread_name_prefix="stagegraph journal")
                self._thread.submit(work)
        except RuntimeError:  # the interpreter is shutting down and starts no threads
            work()


def running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _wake(outcomes: Iterable[Outcome]) -> None:
    """Settle the waiters, each on its own event loop."""
    here = running_loop()
    for waiter, failure in outcomes:
        loop = waiter.get_loop()
        if loop is here:
            _settle(waiter, failure)
        elif not loop.is_closed():  # nothing waits on a closed loop
            loop.call_soon_threadsafe(_settle, waiter, failure)


def _settle(waiter: Waiter, failure: JournalError | None) -> None:
    if waiter.done():
        return
    if failure is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(failure)
