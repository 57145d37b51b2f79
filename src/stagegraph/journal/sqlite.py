"""The embedded journal: one SQLite file, one writer, group commit."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread

from stagegraph.record.rows import CallRow, CancelRow, FeedbackRow, OpRow, Row, RunFilter, RunRow
from stagegraph.schema.errors import DeclarationError, JournalError

from .file import connect, journal_error, prepare, recognise, shrink
from .owner import Prunable, prunable, refusal_to_claim
from .redact import Redact, redacted
from .tables import TABLES, R, row_of
from .writer import Writer, encodable, transaction, write_one

T = TypeVar("T")


DEFAULT_PATH = ".stagegraph/runs.db"


class SqliteJournal:
    """A journal in one SQLite file, readable and writable by its owner only.

    Write-ahead logging with `synchronous=NORMAL`: the records survive a killed process; a power cut may lose the last
    moments, but not the file. Several processes may share a file; each run belongs to one of them at a time. A new or
    empty file gets mode 0600; an existing journal keeps its mode.

    Args:
        path: The file; it is made if it does not exist. The default is the one that the command line reads, too; its
            folder is also made.
        redact: Takes every value (JSON data: inputs, outputs, messages, prompts, scores) and every error text before
            it is written, and returns what may be written. The original is lost: a replayed call returns what was
            written, a run whose input or prompts changed cannot be resumed, and a recorded answer that can no longer be
            read is requested again after a crash. Identifiers are not redacted: run ids, the `key=` names of branches
            (`build[<name>]`), names of scores, tool call ids. Keep secrets out of those. When the function fails,
            nothing is written, and the run ends with a `JournalError`.
        timeout: Seconds to wait for another process that is writing.
        read_only: Read an existing journal without writing anything, such as on a read-only file system.

    Raises:
        JournalError: the file is not a journal, was written by a newer version, or cannot be opened.
        DeclarationError: *path* is `:memory:`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = DEFAULT_PATH,
        *,
        redact: Redact | None = None,
        timeout: float = 10.0,
        read_only: bool = False,
    ) -> None:
        if os.fspath(path) == ":memory:":
            msg = "SqliteJournal keeps runs in a file; for a journal in memory write MemoryJournal()"
            raise DeclarationError(msg)
        self.path = Path(path)
        if path == DEFAULT_PATH and not read_only:
            self.path.parent.mkdir(exist_ok=True)
        self._redact = redact
        self._timeout = timeout
        self._read_only = read_only
        if read_only:
            recognise(self.path, timeout=timeout)
        else:
            prepare(self.path, timeout=timeout)
        self._writer = Writer(self.path, timeout=timeout)

    async def put(self, *rows: Row) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writer.put(self._written(rows), waiter)
        await waiter

    def put_soon(self, *rows: Row) -> None:
        self._writer.put(self._written(rows), None)

    def _written(self, rows: tuple[Row, ...]) -> list[Row]:
        if rows:
            self._check_writable()
        if self._redact is None:
            return list(rows)
        return [row for row in (redacted(row, self._redact) for row in rows) if row is not None]

    def _check_writable(self) -> None:
        if self._read_only:
            msg = f"{self.path}: this journal was opened to look into it (`read_only`); nothing can be recorded"
            raise JournalError(msg)

    async def claim(self, row: RunRow, *, fresh: bool, take_over: bool = False) -> None:
        [written] = self._written((row,))

        def take(connection: sqlite3.Connection) -> str | None:
            with transaction(connection):
                found = connection.execute("SELECT * FROM runs WHERE run_id = ?", encodable((row.run_id,))).fetchone()
                known = None if found is None else row_of(RunRow, found)
                refusal = refusal_to_claim(row, known, fresh=fresh, take_over=take_over)
                if refusal is None:
                    write_one(connection, written)
            return refusal

        refusal = await self._in_thread(take)
        if refusal is not None:
            raise JournalError(refusal)

    async def run(self, run_id: str) -> RunRow | None:
        found = await self._select(RunRow, "run_id = ?", (run_id,))
        return found[0] if found else None

    async def runs(self, wanted: RunFilter) -> list[RunRow]:
        def read(connection: sqlite3.Connection) -> list[RunRow]:
            found: list[RunRow] = []
            for values in connection.execute("SELECT * FROM runs ORDER BY started DESC"):
                row = row_of(RunRow, values)
                scores = connection.execute("SELECT * FROM feedback WHERE run_id = ?", (row.run_id,))
                if wanted.matches(row, (row_of(FeedbackRow, score) for score in scores)):
                    found.append(row)
                if len(found) >= wanted.limit:
                    break
            return found

        return await self._in_thread(read)

    async def calls(self, run_id: str) -> list[CallRow]:
        return await self._select(CallRow, "run_id = ? ORDER BY position", (run_id,))

    async def ops(self, run_id: str) -> list[OpRow]:
        return await self._select(OpRow, "run_id = ?", (run_id,))

    async def feedback(self, run_id: str) -> list[FeedbackRow]:
        return await self._select(FeedbackRow, "run_id = ? ORDER BY time", (run_id,))

    async def cancels(self) -> list[CancelRow]:
        return await self._select(CancelRow, "run_id IN (SELECT run_id FROM runs WHERE owner IS NOT NULL)", ())

    async def prune(self, *, older_than: float | None = None, keep: int | None = None) -> int:
        self._check_writable()

        def delete(connection: sqlite3.Connection) -> int:
            with transaction(connection):
                query = "SELECT run_id, status, owner, started + duration FROM runs"
                runs = [Prunable(*values) for values in connection.execute(query)]
                doomed = [(run_id,) for run_id in prunable(runs, older_than=older_than, keep=keep)]
                for table, _ in TABLES.values():
                    connection.executemany(f"DELETE FROM {table} WHERE run_id = ?", doomed)  # noqa: S608 - our own names
            if doomed:
                shrink(connection)
            return len(doomed)

        return await self._in_thread(delete)

    async def aclose(self) -> None:
        await anyio.to_thread.run_sync(self._writer.close)

    async def _select(self, row_type: type[R], where: str, values: tuple[Any, ...]) -> list[R]:
        table, _ = TABLES[row_type]
        query = f"SELECT * FROM {table} WHERE {where}"  # noqa: S608 - our own names
        return await self._in_thread(lambda c: [row_of(row_type, row) for row in c.execute(query, encodable(values))])

    async def _in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Use the file off the event loop, after all earlier rows were written."""
        if not self._read_only:
            await self.put()

        def connected() -> T:
            try:
                with closing(connect(self.path, timeout=self._timeout, read_only=self._read_only)) as connection:
                    return work(connection)
            except (sqlite3.Error, OSError) as error:
                raise journal_error(self.path, error) from error

        return await anyio.to_thread.run_sync(connected)
