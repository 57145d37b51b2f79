"""The events of a run that another process runs, read from the journal that both share."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

import anyio

from stagegraph.data.events import CallFinished, CallStarted, RunFinished, RunStarted
from stagegraph.data.usage import USAGE
from stagegraph.runner.event_log import EventLog
from stagegraph.schema.errors import JournalError

if TYPE_CHECKING:
    from stagegraph.data.call import Status
    from stagegraph.data.events import Event
    from stagegraph.record.rows import CallRow, Journal, RunRow

_PAUSE = 0.5
"""Seconds between two reads of the journal, however many readers there are."""
_PAUSE_FACTOR = 20
"""A read that took long is followed by a pause this many times as long."""
_BUFFERED_EVENTS = 10_000


class JournalEvents:
    """The calls of one run as they are recorded, for any number of readers.

    Events are numbered in the order in which this object saw them, so that the numbers are valid for it alone.
    """

    def __init__(self, journal: Journal, run_id: str) -> None:
        self.name = f"j{secrets.token_hex(4)}"
        """Prefix of its event ids, which distinguishes them from those of other objects and processes."""
        self.log = EventLog(run_id, _BUFFERED_EVENTS)
        self._journal = journal
        self._seen: dict[str, Status] = {}
        """Key -> the status that the newest event of this call has."""
        self._reading = anyio.Lock()
        self._next_read = 0.0
        self._started = False

    async def batches(self, after: int) -> AsyncIterator[list[Event]]:
        """Events with a number above *after*, until the run ends; an empty list when there are none for a while."""
        await self._read()
        async for batch in self.log.batches(after, every=_PAUSE):
            yield batch
            if not batch:
                await self._read()

    async def _read(self) -> None:
        async with self._reading:
            began = monotonic()
            if self.log.closed or began < self._next_read:
                return
            try:
                row = await self._journal.run(self.log.run_id)
                calls = await self._journal.calls(self.log.run_id)
            except JournalError:
                return  # the next read may succeed; until then there is no news
            finally:
                ended = monotonic()
                self._next_read = ended + max(_PAUSE, (ended - began) * _PAUSE_FACTOR)
            if row is None:  # the run was pruned
                self.log.close()
                return
            self._add(row, calls)

    def _add(self, row: RunRow, calls: list[CallRow]) -> None:
        if not self._started:
            self._started = True
            self.log.put(RunStarted, at=_time(row.started), graph=row.graph)
        # A parent starts before its children and ends after them, also where the clock shows the same time.
        news: list[tuple[float, bool, int, CallRow]] = []
        for call in calls:
            before = self._seen.get(call.key)
            if before == call.status:
                continue
            if before is None or call.status == "running":
                news.append((call.started, False, call.position, call))
            if call.status != "running":
                news.append((call.started + call.duration, True, -call.position, call))
            self._seen[call.key] = call.status
        for seconds, ended, _, call in sorted(news, key=lambda one: one[:3]):
            self._put(call, seconds, ended=ended)
        if row.status != "running":
            output = json.loads(row.output) if row.status == "succeeded" and row.output is not None else None
            self.log.put(RunFinished, status=row.status, error=row.error, output=output, duration=row.duration)
            self.log.close()

    def _put(self, call: CallRow, seconds: float, *, ended: bool) -> None:
        node = {name: getattr(call, name) for name in ("key", "path", "kind")}
        if not ended:
            self.log.put(CallStarted, at=_time(seconds), **node)
            return
        usage = USAGE.validate_json(call.usage)
        counts = {name: getattr(usage, name) for name in ("requests", "input_tokens", "output_tokens")}
        result = {name: getattr(call, name) for name in ("status", "error", "duration", "cost")}
        self.log.put(CallFinished, at=_time(seconds), **node, **counts, **result)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
