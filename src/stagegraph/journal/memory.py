"""A journal in memory, for tests and for the cache of tuning; it ends with the process."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from stagegraph.record.rows import GONE, CallRow, CancelRow, FeedbackRow, OpRow, Row, RunFilter, RunRow, feedback_of
from stagegraph.schema.errors import JournalError

from .owner import Prunable, prunable, refusal_to_claim


class MemoryJournal:
    """Keeps runs in dictionaries."""

    def __init__(self) -> None:
        self.owner = secrets.token_hex(16)
        """It lives as long as the journal: whatever another owner held is free."""
        self._runs: dict[str, RunRow] = {}
        self._calls: dict[str, dict[str, CallRow]] = {}
        self._ops: dict[str, dict[tuple[str, str, str], OpRow]] = {}
        self._feedback: dict[str, dict[str, FeedbackRow]] = {}
        self._cancels: dict[str, CancelRow] = {}

    async def put(self, *rows: Row) -> None:
        self.put_soon(*rows)

    def put_soon(self, *rows: Row) -> None:
        for row in rows:
            match row:
                case RunRow():
                    self._runs[row.run_id] = row
                case CallRow():
                    self._calls.setdefault(row.run_id, {})[row.key] = row
                case OpRow():
                    self._ops.setdefault(row.run_id, {})[row.key, row.identity, row.op] = row
                case CancelRow():
                    self._cancels[row.run_id] = row
                case FeedbackRow():
                    self._feedback.setdefault(row.run_id, {})[row.id] = row

    async def claim(self, row: RunRow, *, fresh: bool) -> None:
        refusal = refusal_to_claim(row, await self.run(row.run_id), fresh=fresh)
        if refusal is not None:
            raise JournalError(refusal)
        self._runs[row.run_id] = row

    async def run(self, run_id: str) -> RunRow | None:
        row = self._runs.get(run_id)
        return None if row is None else self._seen(row)

    def _seen(self, row: RunRow) -> RunRow:
        """A row with an owner only as long as that owner lives."""
        return row if row.owner in {None, self.owner} else replace(row, owner=GONE)

    async def runs(self, wanted: RunFilter) -> list[RunRow]:
        seen = map(self._seen, self._runs.values())
        newest = sorted(seen, key=lambda row: (row.started, row.run_id), reverse=True)
        found = [
            row
            for row in newest
            if wanted.describes(row) and wanted.has_score(map(feedback_of, self._feedback.get(row.run_id, {}).values()))
        ]
        return found[: wanted.limit]

    async def calls(self, run_id: str) -> list[CallRow]:
        return sorted(self._calls.get(run_id, {}).values(), key=lambda row: row.position)

    async def ops(self, run_id: str) -> list[OpRow]:
        return list(self._ops.get(run_id, {}).values())

    async def feedback(self, run_id: str) -> list[FeedbackRow]:
        return sorted(self._feedback.get(run_id, {}).values(), key=lambda row: row.time)

    async def cancels(self) -> list[CancelRow]:
        held = {row.run_id for row in self._runs.values() if row.owner is not None}
        return [row for row in self._cancels.values() if row.run_id in held]

    async def prune(self, *, older_than: float | None = None, keep: int | None = None) -> int:
        runs = [
            Prunable(r.run_id, r.status, r.owner == self.owner, r.started + r.duration) for r in self._runs.values()
        ]
        doomed = prunable(runs, older_than=older_than, keep=keep)
        tables: tuple[dict[str, Any], ...] = (self._runs, self._calls, self._ops, self._feedback, self._cancels)
        for run_id in doomed:
            for table in tables:
                table.pop(run_id, None)
        return len(doomed)

    async def aclose(self) -> None:
        """Nothing to close."""
