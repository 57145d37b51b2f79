"""A journal in memory: for tests, and for the tuner's cache. It ends with the process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from stagegraph.record.rows import CallRow, CancelRow, FeedbackRow, OpRow, Row, RunFilter, RunRow
from stagegraph.schema.errors import JournalError

from .owner import host_elsewhere, is_alive
from .prune import Standing, forgettable

__all__ = ["MemoryJournal", "fits"]


class MemoryJournal:
    """Keeps runs in dictionaries."""

    def __init__(self) -> None:
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

    async def claim(self, row: RunRow, *, fresh: bool, take_over: bool = False) -> None:
        known = self._runs.get(row.run_id)
        refusal = refusal_to_claim(row, known, fresh=fresh, take_over=take_over)
        if refusal is not None:
            raise JournalError(refusal)
        self._runs[row.run_id] = row

    async def run(self, run_id: str) -> RunRow | None:
        return self._runs.get(run_id)

    async def runs(self, wanted: RunFilter) -> list[RunRow]:
        newest = sorted(self._runs.values(), key=lambda row: row.started, reverse=True)
        found = [row for row in newest if fits(row, self._feedback.get(row.run_id, {}).values(), wanted)]
        return found[: wanted.limit]

    async def calls(self, run_id: str) -> list[CallRow]:
        return sorted(self._calls.get(run_id, {}).values(), key=lambda row: row.position)

    async def ops(self, run_id: str) -> list[OpRow]:
        return list(self._ops.get(run_id, {}).values())

    async def feedback(self, run_id: str) -> list[FeedbackRow]:
        return sorted(self._feedback.get(run_id, {}).values(), key=lambda row: row.time)

    async def cancels(self) -> list[CancelRow]:
        return [row for row in self._cancels.values() if self._runs[row.run_id].owner is not None]

    async def prune(self, *, older_than: float | None = None, keep: int | None = None) -> int:
        before = time.time() - older_than if older_than is not None else None
        standings = [Standing(r.run_id, r.status, r.owner, r.started + r.duration) for r in self._runs.values()]
        doomed = forgettable(standings, before=before, keep=keep)
        tables: tuple[dict[str, Any], ...] = (self._runs, self._calls, self._ops, self._feedback, self._cancels)
        for run_id in doomed:
            for table in tables:
                table.pop(run_id, None)
        return len(doomed)

    async def aclose(self) -> None:
        """Nothing to close."""


def refusal_to_claim(row: RunRow, known: RunRow | None, *, fresh: bool, take_over: bool) -> str | None:
    """Why a run cannot be begun or taken over, if it cannot."""
    run_id = row.run_id
    if fresh:
        return None if known is None else f"the run id {run_id!r} is taken; resume that run, or choose another id"
    if known is None:
        return f"there is no run {run_id!r} in this journal"
    host = None if known.owner is None else host_elsewhere(known.owner)
    if host is not None and not take_over:
        return (
            f"run {run_id!r} is going on in another place ({known.owner}); wait for it, or cancel it there. Nobody "
            f"here can tell whether that process still runs on host {host!r}: when it is gone for good, take the run "
            "over with "
            f"`runner.resume({run_id!r}, take_over=True)` or `stagegraph resume {run_id} --take-over`"
        )
    if known.owner is not None and host is None and is_alive(known.owner):
        return f"run {run_id!r} is going on in another place ({known.owner}); wait for it, or cancel it there"
    if known.status == "succeeded" or _resumed(row) != _resumed(known) + 1:
        return f"run {run_id!r} was taken up in another place, or finished, meanwhile; read it again"
    return None


def _resumed(row: RunRow) -> int:
    """How often a run was taken up."""
    return len(json.loads(row.labels).get("resumed", ()))


def fits(row: RunRow, feedback: Iterable[FeedbackRow], wanted: RunFilter) -> bool:
    """Whether a run is among the wanted ones."""
    if wanted.graph is not None and row.graph != wanted.graph:
        return False
    if wanted.status is not None and row.status != wanted.status:
        return False
    if wanted.since is not None and row.started < wanted.since:
        return False
    if wanted.until is not None and row.started > wanted.until:
        return False
    if wanted.feedback is None and wanted.min_score is None and wanted.max_score is None:
        return True
    named = [score for score in feedback if wanted.feedback in (None, score.name)]
    return any(_in_range(json.loads(score.value), wanted) for score in named)


def _in_range(value: object, wanted: RunFilter) -> bool:
    if wanted.min_score is None and wanted.max_score is None:
        return True
    if not isinstance(value, (int, float)):
        return False
    return (wanted.min_score is None or value >= wanted.min_score) and (
        wanted.max_score is None or value <= wanted.max_score
    )
