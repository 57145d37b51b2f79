"""What happens in a run that another process holds, as far as the journal that both share shows it."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio

from stagegraph import JournalError
from stagegraph.data.events import CallFinished, CallStarted, RunFinished, RunStarted
from stagegraph.data.usage import USAGE
from stagegraph.runner.event_log import EventLog

if TYPE_CHECKING:
    from stagegraph.data.call import Status
    from stagegraph.journal import CallRow, Journal, RunRow

__all__ = ["Watch"]

_PAUSE = 0.5
"""Seconds between two looks, however many readers there are."""
_SHARE = 20
"""A look that took long is followed by a pause so many times as long."""
_BUFFERED_EVENTS = 10_000


class Watch:
    """The calls of one run as they are recorded, for any number of readers.

    Events are numbered in the order in which they were seen here, so the numbers hold for this watch alone.
    """

    def __init__(self, journal: Journal, run_id: str) -> None:
        self.name = f"j{secrets.token_hex(4)}"
        """Tells its event ids from those of others."""
        self.log = EventLog(run_id, _BUFFERED_EVENTS)
        self._journal = journal
        self._seen: dict[str, Status] = {}
        """Key -> the status of which an event has told."""
        self._looking = anyio.Lock()
        self._next = 0.0
        self._begun = False

    async def batches(self, after: int) -> AsyncIterator[list[Any]]:
        """Events with a number above *after*, until the run ends; an empty list now and then when nothing happens."""
        await self._look()
        async for batch in self.log.batches(after, every=_PAUSE):
            yield batch
            if not batch:
                await self._look()

    async def _look(self) -> None:
        async with self._looking:
            began = monotonic()
            if self.log.closed or began < self._next:
                return
            try:
                row = await self._journal.run(self.log.run_id)
                calls = await self._journal.calls(self.log.run_id)
            except JournalError:
                return  # the next look may do better; until then the run is as it was
            finally:
                ended = monotonic()
                self._next = ended + max(_PAUSE, (ended - began) * _SHARE)
            if row is None:  # somebody has pruned it
                self.log.close()
                return
            self._tell(row, calls)

    def _tell(self, row: RunRow, calls: list[CallRow]) -> None:
        if not self._begun:
            self._begun = True
            self.log.put(RunStarted, at=_moment(row.started), graph=row.graph)
        news: list[tuple[float, int, CallRow]] = []
        for call in calls:
            before = self._seen.get(call.key)
            if before == call.status:
                continue
            if before is None or call.status == "running":
                news.append((call.started, 0, call))
            if call.status != "running":
                news.append((call.started + call.duration, 1, call))
            self._seen[call.key] = call.status
        for moment, ends, call in sorted(news, key=lambda one: (one[0], one[1], one[2].position * (1 - 2 * one[1]))):
            if ends:
                self._finished(call, moment)
            else:
                self.log.put(CallStarted, at=_moment(moment), key=call.key, path=call.path, kind=call.kind)
        if row.status != "running":
            output = json.loads(row.output) if row.status == "succeeded" and row.output is not None else None
            self.log.put(RunFinished, status=row.status, error=row.error, output=output, duration=row.duration)
            self.log.close()

    def _finished(self, call: CallRow, moment: float) -> None:
        usage = USAGE.validate_json(call.usage)
        self.log.put(
            CallFinished,
            at=_moment(moment),
            key=call.key,
            path=call.path,
            kind=call.kind,
            status=call.status,
            error=call.error,
            duration=call.duration,
            requests=usage.requests,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost=None if call.cost is None else Decimal(call.cost),
        )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
