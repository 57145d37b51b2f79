"""The one writer of a journal file: what finishes in one turn of the event loop is committed together.

A commit goes to the write-ahead log, which is a copy into the system's cache: it takes some 30 us and is done right on
the event loop, because handing it to a thread and back takes longer. What may take long is left to a thread: waiting
for another process that is writing, and moving the log into the file.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from ._rows import Row
from ._schema import connect, explained, is_busy, statement_for

__all__ = ["Writer"]

_ROWS_PER_CHECKPOINT = 2_000

Waiter = asyncio.Future[None]


class Writer:
    """Commits rows in the order in which they were handed in."""

    def __init__(self, path: Path, *, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._lock = threading.Lock()
        """Guards everything below: event loops of several threads may share a journal."""
        self._rows: list[Row] = []
        self._waiters: list[Waiter] = []
        self._flushing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop that is to flush, until it begins to."""
        self._connection: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._since_checkpoint = 0

    def put(self, rows: list[Row], waiter: Waiter | None) -> None:
        with self._lock:
            self._rows += rows
            if waiter is not None:
                self._waiters.append(waiter)
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
        elif self._since_checkpoint >= _ROWS_PER_CHECKPOINT:
            self._since_checkpoint = 0
            self._in_thread(self._checkpoint)

    def _wait_and_write(self) -> None:
        self._write(self._timeout)

    def _write(self, timeout: float) -> bool:
        """Commit everything that waits; `False` when another process is writing and there is no time to wait for it."""
        with self._lock:
            rows, waiters = self._rows, self._waiters
            failure: Exception | None = None
            try:
                if self._connection is None:
                    self._connection = connect(self._path, timeout=self._timeout)
                    self._connection.execute("PRAGMA wal_autocheckpoint = 0")
                self._connection.execute(f"PRAGMA busy_timeout = {int(timeout * 1000)}")
                _commit(self._connection, rows)
                self._rows = []
            except (sqlite3.Error, ValueError) as error:
                if timeout == 0 and is_busy(error):
                    return False  # `_flushing` stays set: what comes now waits for the thread
                # The rows are kept and tried again with the next ones: a full disk may be made room on.
                failure = explained(self._path, error)
            self._since_checkpoint += len(rows)
            self._waiters = []
            self._flushing = False
        _tell(waiters, failure)
        return True

    def _checkpoint(self) -> None:
        """Move the log into the file, so that it does not grow without end; nobody waits for it."""
        try:
            connection = connect(self._path, timeout=self._timeout)
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            finally:
                connection.close()
        except sqlite3.Error:
            return  # the next one will; what was committed is in the log

    def _in_thread(self, work: Callable[[], None]) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="stagegraph journal")
            self._thread.submit(work)


def _commit(connection: sqlite3.Connection, rows: list[Row]) -> None:
    if not rows:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement, alike in groupby(rows, key=statement_for):
            values = [statement.values(row) for row in alike]
            try:
                connection.executemany(statement.sql, values)
            except UnicodeEncodeError:  # half a surrogate pair, as broken JSON may hold it
                connection.executemany(statement.sql, [tuple(map(_encodable, row)) for row in values])
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _encodable(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _tell(waiters: list[Waiter], failure: Exception | None) -> None:
    """Wake the waiters, each on its own event loop."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    elsewhere: dict[asyncio.AbstractEventLoop, list[Waiter]] = {}
    for waiter in waiters:
        if waiter.get_loop() is here:
            _settle([waiter], failure)
        else:
            elsewhere.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, theirs in elsewhere.items():
        if not loop.is_closed():  # a loop that was closed has nobody left to wait
            loop.call_soon_threadsafe(_settle, theirs, failure)


def _settle(waiters: list[Waiter], failure: Exception | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if failure is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(failure)
