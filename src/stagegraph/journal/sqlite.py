"""The embedded journal: one SQLite file, one writer, group commit."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread

from stagegraph.data.files import DEFAULT_JOURNAL
from stagegraph.record.rows import GONE, CallRow, CancelRow, DamagedError, FeedbackRow, OpRow, Row, RunFilter, RunRow
from stagegraph.schema.errors import DeclarationError, JournalError

from .file import PAUSE, TURN, JournalFile, checkpoint, free_pages, journal_error, shrink
from .owner import OwnerLock, Prunable, is_alive, prunable, refusal_to_claim
from .search import search
from .tables import TABLES, R, reader
from .writer import Writer, encodable, running_loop

if TYPE_CHECKING:
    from .redact import Redact

T = TypeVar("T")
_log = logging.getLogger("stagegraph")


class SqliteJournal:
    """A journal in one SQLite file, readable and writable by its owner only.

    Write-ahead logging with `synchronous=NORMAL`: the records survive a killed process; a power cut may lose the last
    moments, but not the file. Several processes may share a file; each run belongs to one of them at a time: an empty
    file beside the journal, `<name>-owner-<id>`, is locked as long as its process lives, whatever container or host
    name the process has. A new or empty file gets mode 0600; an existing journal keeps its mode.

    Args:
        path: The file; it is made if it does not exist. The default is the one that the command line reads, too; its
            folder is also made.
        redact: Takes every value (JSON data: inputs, outputs, messages, prompts, scores) and every error text before
            it is written, and returns what may be written. The original is lost: a replayed call returns what was
            written, a run whose input or prompts changed cannot be resumed, and a recorded answer that can no longer be
            read is requested again after a crash. Identifiers are not redacted: run ids, the `key=` names of branches
            (`build[<name>]`), names of scores, tool call ids. Keep secrets out of those. When the function fails,
            nothing is written, and the run ends with a `JournalError`.
        timeout: Seconds to wait for another process that is writing, or that brings the file up to date. The event
            loop never waits.
        read_only: Read an existing journal without writing anything, such as on a read-only file system.

    Raises:
        JournalError: the file is not a journal, was written by a newer version, or cannot be opened.
        DeclarationError: *path* is `:memory:`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = DEFAULT_JOURNAL,
        *,
        redact: Redact | None = None,
        timeout: float = 60.0,
        read_only: bool = False,
    ) -> None:
        if os.fspath(path) == ":memory:":
            msg = "SqliteJournal keeps runs in a file; for a journal in memory write MemoryJournal()"
            raise DeclarationError(msg)
        self.path = Path(path)
        if path == DEFAULT_JOURNAL and not read_only:
            self.path.parent.mkdir(exist_ok=True)
        self._redact = redact
        self._damaged: set[str] = set()
        """What was said about damaged records."""
        self._read_only = read_only
        self._file = JournalFile(self.path, timeout=timeout, read_only=read_only)
        self._file.make_ready(wait=running_loop() is None)
        self._writer = Writer(self._file)
        self._owner: OwnerLock | None = None
        _open_journals.add(self)

    @property
    def owner(self) -> str:
        self._check_writable()
        if self._owner is None:
            try:
                self._owner = OwnerLock(self._file.place)
            except OSError as error:
                msg = f"{self.path}: a lock that says who runs a run cannot be had beside the journal: {error}"
                raise JournalError(msg) from error
            self._writer.owner = self._owner.name
        return self._owner.name

    def forked(self) -> None:
        """In a child process: leave connections and runs to the parent."""
        _of_parents.append(self._writer)
        self._file = JournalFile(self.path, timeout=self._file.timeout, read_only=self._read_only)
        self._writer = Writer(self._file)
        if self._owner is not None:
            self._owner.disown()
            self._owner = None

    def put(self, *rows: Row) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writer.put(self._written(rows), waiter)
        return waiter

    def put_soon(self, *rows: Row) -> None:
        self._writer.put(self._written(rows), None)

    def _written(self, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        if rows:
            self._check_writable()
        if self._redact is None:
            return rows
        from .redact import redacted  # noqa: PLC0415 - it loads Pydantic AI, for which a list of runs need not wait

        return tuple(row for row in (redacted(row, self._redact) for row in rows) if row is not None)

    def _check_writable(self) -> None:
        if self._read_only:
            msg = f"{self.path}: this journal was opened to look into it (`read_only`); nothing can be recorded"
            raise JournalError(msg)

    async def claim(self, row: RunRow, *, fresh: bool) -> None:
        [written] = self._written((row,))
        decided: list[Row | None] = []
        """First comes how the run was before, once it is taken, or `None`, if the claim was cancelled before that."""

        def refusal(connection: sqlite3.Connection) -> str | None:
            known = next(self._found(RunRow, connection, "run_id = ?", (row.run_id,)), None)
            seen = None if known is None else self._seen(known)
            if why := refusal_to_claim(row, seen, fresh=fresh, held=row.run_id in self._writer.held):
                return why
            decided.append(known or replace(written, status="cancelled", owner=None))
            return None if decided[0] is not None else "it was cancelled"

        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writer.put((written,), waiter, refusal)
        try:
            await waiter
        except asyncio.CancelledError:
            decided.append(None)
            if (before := decided[0]) is not None:
                self._writer.put((before,), None)
            raise

    def _seen(self, row: RunRow) -> RunRow:
        """A row with an owner only as long as that owner lives."""
        if row.owner is None or is_alive(self._file.place, row.owner):
            return row
        return replace(row, owner=GONE)

    async def run(self, run_id: str) -> RunRow | None:
        found = await self._select(RunRow, "run_id = ?", run_id)
        return self._seen(found[0]) if found else None

    async def runs(self, wanted: RunFilter) -> list[RunRow]:
        where, values = search(wanted)

        def read(connection: sqlite3.Connection) -> list[RunRow]:
            found = map(self._seen, self._found(RunRow, connection, where, values, damaged=False))
            return list(islice((row for row in found if wanted.describes(row)), wanted.limit))

        return await self._in_thread(read)

    def _found(
        self,
        row_type: type[R],
        connection: sqlite3.Connection,
        where: str,
        values: tuple[Any, ...] = (),
        *,
        damaged: bool = True,
    ) -> Iterator[R]:
        """The rows of a table; unless they are wanted, *damaged* ones are left out, and each is said once.

        Raises:
            DamagedError: one of them is damaged.
        """
        query = f"SELECT * FROM {TABLES[row_type][0]} WHERE {where}"  # noqa: S608 - our own words
        cursor = connection.execute(query, encodable(values))
        read = reader(row_type, cursor)
        for found in cursor:
            try:
                yield read(found)
            except DamagedError as error:
                if damaged:
                    raise
                if str(error) not in self._damaged:
                    self._damaged.add(str(error))
                    _log.warning("%s: left out: %s", self.path, error)

    async def calls(self, run_id: str) -> list[CallRow]:
        return await self._select(CallRow, "run_id = ? ORDER BY position", run_id)

    async def ops(self, run_id: str) -> list[OpRow]:
        return await self._select(OpRow, "run_id = ?", run_id)

    async def feedback(self, run_id: str) -> list[FeedbackRow]:
        return await self._select(FeedbackRow, "run_id = ? ORDER BY time", run_id, damaged=False)

    async def cancels(self) -> list[CancelRow]:
        held = "SELECT run_id FROM runs WHERE status = 'running' AND owner IS NOT NULL"
        return await self._select(CancelRow, f"run_id IN ({held})", damaged=False)

    async def prune(self, *, older_than: float | None = None, keep: int | None = None) -> int:
        self._check_writable()
        stopped = threading.Event()

        def read(connection: sqlite3.Connection, only: str | None = None) -> dict[str, Prunable]:
            query = """
                SELECT run_id, status, owner, started + ifnull(duration, 0) FROM runs WHERE (? IS NULL OR run_id = ?)
                AND typeof(started) = 'real' AND typeof(ifnull(duration, 0.0)) = 'real'
            """  # the others are damaged
            return {
                run_id: Prunable(run_id, status, owner is not None and is_alive(self._file.place, str(owner)), ended)
                for run_id, status, owner, ended in connection.execute(query, (only, only))
            }

        def delete(connection: sqlite3.Connection) -> int:
            found = read(connection)
            doomed = deque(prunable(found.values(), older_than=older_than, keep=keep))
            pruned = 0
            while doomed and not stopped.is_set():
                free = free_pages(connection)
                with self._file.begin(connection):
                    until = time.monotonic() + TURN
                    while doomed and time.monotonic() < until:
                        run_id = doomed.popleft()
                        if read(connection, run_id) == {run_id: found[run_id]}:  # else it has gone on meanwhile
                            for table, _ in TABLES.values():
                                connection.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))  # noqa: S608 - our own names
                            pruned += 1
                time.sleep(PAUSE)
                connection.execute(f"PRAGMA busy_timeout = {int(self._file.timeout * 1000)}")
                shrink(connection, free_pages(connection) - free)
            if pruned:
                checkpoint(connection)
            return pruned

        try:
            return await self._in_thread(delete)
        finally:
            stopped.set()

    async def aclose(self) -> None:
        try:
            await anyio.to_thread.run_sync(self._writer.close)
        finally:
            if self._owner is not None:
                self._owner.release()
                self._owner = None

    async def _select(self, row_type: type[R], where: str, *values: str, damaged: bool = True) -> list[R]:
        return await self._in_thread(lambda c: list(self._found(row_type, c, where, values, damaged=damaged)))

    async def _in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Use the file off the event loop, after all earlier rows were written; who is cancelled does not wait."""
        if not self._read_only:
            await self.put()

        def connected() -> T:
            try:
                with closing(self._file.connect()) as connection:
                    return work(connection)
            except (sqlite3.Error, OSError) as error:
                raise journal_error(self.path, error) from error

        return await anyio.to_thread.run_sync(connected, abandon_on_cancel=True)


_open_journals: weakref.WeakSet[SqliteJournal] = weakref.WeakSet()
_of_parents: list[Writer] = []
"""The writers of the process that this one was forked from: closing their files here could harm it."""


def _forked() -> None:
    for journal in list(_open_journals):
        journal.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
