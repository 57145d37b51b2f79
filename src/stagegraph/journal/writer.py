"""The one writer of a journal file: what finishes in one turn of the event loop is committed together.

A commit goes to the write-ahead log, which is a copy into the system's cache: it takes some 30 us and is done right on
the event loop, because handing it to a thread and back takes longer. What may take long is left to a thread: waiting
for another process that is writing, and moving the log into the file.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from stagegraph.record.rows import Row
from stagegraph.schema.errors import JournalError

from .commit import commit
from .file import connect, explained, is_busy

__all__ = ["Writer"]

_ROWS_PER_CHECKPOINT = 2_000
_SIZE_PER_CHECKPOINT = 16_000_000
"""Characters."""
_MILLISECONDS_WITHOUT_WRITERS = 200
"""How long the end of a checkpoint may wait for readers, and make writers wait."""

Waiter = asyncio.Future[None]


class Batch(NamedTuple):
    """What was handed in at once."""

    rows: list[Row]
    waiter: Waiter | None


class Told(NamedTuple):
    """What somebody who waits hears."""

    waiter: Waiter
    failure: JournalError | None


class Writer:
    """Commits rows in the order in which they were handed in.

    Where the file is at fault (a full disk may be made room on), its rows are kept and tried again with the next ones.
    A row that can never be written is left out, and whoever waits for it is told: the others are written.
    """

    def __init__(self, path: Path, *, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._lock = threading.Lock()
        """Guards everything below: event loops of several threads may share a journal."""
        self._batches: list[Batch] = []
        self._lost: dict[str, JournalError] = {}
        """Run id -> why a row for which nobody waited was left out: the run's next waiter hears of it."""
        self._flushing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop that is to flush, until it begins to."""
        self._connection: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._rows_in_log = 0
        self._size_in_log = 0

    def put(self, rows: list[Row], waiter: Waiter | None) -> None:
        with self._lock:
            self._batches.append(Batch(rows, waiter))
            if self._flushing and (self._loop is None or not self._loop.is_closed()):
                return  # a loop that was closed before it came to it never will
            self._flushing = True
            self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Write what is there and let go of the file."""
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
            connection.close()  # a program that forgets to close its journal hears no warning of it

    def _flush(self) -> None:
        self._loop = None
        if not self._write(0):
            self._in_thread(self._wait_and_write)
        elif self._rows_in_log >= _ROWS_PER_CHECKPOINT or self._size_in_log >= _SIZE_PER_CHECKPOINT:
            self._rows_in_log = self._size_in_log = 0
            self._in_thread(self._checkpoint)

    def _wait_and_write(self) -> None:
        self._write(self._timeout)

    def _write(self, timeout: float) -> bool:
        """Commit everything that waits; `False` when another process is writing and there is no time to wait for it."""
        with self._lock:
            batches = self._batches
            try:
                told = self._committed(batches, timeout)
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait have to hear of it
                if timeout == 0 and is_busy(error):
                    return False  # `_flushing` stays set: what comes now waits for the thread
                told = self._put_off(batches, explained(self._path, error))
            except BaseException as error:
                _tell(self._put_off(batches, JournalError(f"{self._path}: writing was broken off by {error!r}")))
                raise
            self._flushing = False
        _tell(told)
        return True

    def _committed(self, batches: list[Batch], timeout: float) -> list[Told]:
        """Write all of it; gives what each of those who wait is told."""
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
            return [Told(batch.waiter, None) for batch in batches if batch.waiter is not None]
        return self._outcomes(batches, done.refused)

    def _outcomes(self, batches: list[Batch], refused: Mapping[int, str]) -> list[Told]:
        """The same where some rows were left out."""
        told: list[Told] = []
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
                told.append(Told(batch.waiter, failure))
        return told

    def _put_off(self, batches: list[Batch], failure: JournalError) -> list[Told]:
        """Keep the rows for the next try; nobody waits for that."""
        self._batches = [Batch(batch.rows, None) for batch in batches if batch.rows]
        self._flushing = False
        return [Told(batch.waiter, failure) for batch in batches if batch.waiter is not None]

    def _checkpoint(self) -> None:
        """Move the log into the file, so that it does not grow without end; nobody waits for it."""
        try:
            connection = connect(self._path, timeout=self._timeout)
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                # Almost all is done beside the writers; without a moment that is theirs, the log never begins anew.
                connection.execute(f"PRAGMA busy_timeout = {_MILLISECONDS_WITHOUT_WRITERS}")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                connection.close()
        except sqlite3.Error:
            return  # the next one will; what was committed is in the log

    def _in_thread(self, work: Callable[[], None]) -> None:
        try:
            with self._lock:
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, thread_name_prefix="stagegraph journal")
                self._thread.submit(work)
        except RuntimeError:  # the interpreter is going down and begins no thread any more
            work()


def _tell(told: list[Told]) -> None:
    """Wake those who wait, each on its own event loop."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    elsewhere: dict[asyncio.AbstractEventLoop, list[Told]] = {}
    for one in told:
        if one.waiter.get_loop() is here:
            _settle([one])
        else:
            elsewhere.setdefault(one.waiter.get_loop(), []).append(one)
    for loop, theirs in elsewhere.items():
        if not loop.is_closed():  # a loop that was closed has nobody left to wait
            loop.call_soon_threadsafe(_settle, theirs)


def _settle(told: list[Told]) -> None:
    for waiter, failure in told:
        if waiter.done():
            continue
        if failure is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(failure)
