"""The one writer of a journal file: a thread that commits what has gathered, all at once."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from pathlib import Path

from ._rows import CallRow, Row
from ._schema import connect, explained, upsert, values_of

__all__ = ["Batch", "Writer"]

_LARGEST = 5_000
"""Rows a transaction takes at most, so that other processes get their turn."""


class Batch:
    """Rows that were handed in together, and who waits for them."""

    __slots__ = ("loop", "rows", "waiter")

    def __init__(self, rows: list[Row], waiter: asyncio.Future[None] | None) -> None:
        self.rows = rows
        self.waiter = waiter
        self.loop = waiter.get_loop() if waiter is not None else None


class Writer:
    """Commits in a thread of its own, which starts with the first row and ends with `close`."""

    def __init__(self, path: Path, *, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def put(self, rows: list[Row], waiter: asyncio.Future[None] | None) -> None:
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="stagegraph journal", daemon=True)
                    self._thread.start()
        self._queue.put(Batch(rows, waiter))

    def close(self) -> None:
        """Write what is there and end the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _work(self) -> None:
        connection: sqlite3.Connection | None = None
        kept: list[Row] = []
        try:
            while True:
                batches, closing = self._gathered()
                rows = [*kept, *(row for batch in batches for row in batch.rows)]
                failure: Exception | None = None
                try:
                    if connection is None:
                        connection = connect(self._path, timeout=self._timeout)
                    _commit(connection, rows)
                    kept = []
                except (sqlite3.Error, ValueError) as error:
                    # The rows are kept and tried again with the next batch: a full disk may be made room on.
                    failure, kept = explained(self._path, error), rows
                _tell(batches, failure)
                if closing:
                    return
        finally:
            if connection is not None:
                connection.close()

    def _gathered(self) -> tuple[list[Batch], bool]:
        """Everything that waits by now; waits for the first."""
        batches: list[Batch] = []
        count = 0
        batch = self._queue.get()
        while batch is not None:
            batches.append(batch)
            count += len(batch.rows)
            if count >= _LARGEST:
                return batches, False
            try:
                batch = self._queue.get_nowait()
            except queue.Empty:
                return batches, False
        return batches, True


def _commit(connection: sqlite3.Connection, rows: list[Row]) -> None:
    if not rows:
        return
    latest = {(row.run_id, row.key): row for row in rows if isinstance(row, CallRow)}
    connection.execute("BEGIN IMMEDIATE")
    try:
        for row in rows:
            # A call that began and ended since the last commit is written once.
            if not isinstance(row, CallRow) or latest[row.run_id, row.key] is row:
                try:
                    connection.execute(upsert(type(row)), values_of(row))
                except UnicodeEncodeError:  # half a surrogate pair, as broken JSON may hold it
                    connection.execute(upsert(type(row)), [_encodable(value) for value in values_of(row)])
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _encodable(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _tell(batches: list[Batch], failure: Exception | None) -> None:
    """Wake the waiters, with one call into each event loop."""
    waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for batch in batches:
        if batch.waiter is not None and batch.loop is not None:
            waiting.setdefault(batch.loop, []).append(batch.waiter)
    for loop, waiters in waiting.items():
        try:
            loop.call_soon_threadsafe(_settle, waiters, failure)
        except RuntimeError:
            continue  # the loop was closed while its run was being cancelled


def _settle(waiters: list[asyncio.Future[None]], failure: Exception | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if failure is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(failure)
