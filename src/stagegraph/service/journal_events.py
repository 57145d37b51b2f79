"""The events of a run that another process runs, read from the journal that both share."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio

from stagegraph.data.events import EVENTS_PER_SEGMENT, CallFinished, CallStarted, RunFinished, RunStarted
from stagegraph.data.usage import USAGE
from stagegraph.record.rows import DamagedError
from stagegraph.runner.event_log import EventLog
from stagegraph.schema.errors import JournalError

if TYPE_CHECKING:
    from stagegraph.data.events import Event
    from stagegraph.record.rows import CallRow, Journal, RunRow

_log = logging.getLogger("stagegraph.service")

_PAUSE = 0.5
"""Seconds between two reads of the journal, however many readers there are."""
_PAUSE_FACTOR = 20
"""A read that took long is followed by a pause this many times as long."""
_BUFFERED_EVENTS = 10_000


class JournalEvents:
    """The calls of one run as they are recorded, for any number of readers.

    Rows have the numbers that their events have in the process that runs the run.
    """

    def __init__(self, journal: Journal, run_id: str, size: int | None = _BUFFERED_EVENTS) -> None:
        self.log = EventLog(run_id, size)
        self._journal = journal
        self._seen: set[int] = set()
        """The numbers of the events in the log."""
        self._reading = anyio.Lock()
        self._next_read = 0.0
        self._started = False

    async def batches(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """Events with their numbers until the run ends; an empty list when there are none for a while."""
        await self.read()
        async for batch in self.log.batches(every=_PAUSE):
            yield [(self.log.number_of(event), event) for event in batch]
            if not batch:
                await self.read()

    async def read(self) -> None:
        """Read what was recorded since the last time."""
        async with self._reading:
            began = monotonic()
            if self.log.closed or began < self._next_read:
                return
            try:
                row = await self._journal.run(self.log.run_id)
                calls = await self._journal.calls(self.log.run_id)
            except DamagedError as error:
                _log.error("the events of a run end here: %s", error)
                self.log.close()
                return
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
        found = [(number, ended, call) for call in calls for number, ended in _numbers(call)]
        for number, ended, call in sorted(found, key=lambda one: one[0]):
            if number not in self._seen:
                self._seen.add(number)
                self._put(call, number, ended=ended)
        if row.status != "running":
            output = json.loads(row.output) if row.status == "succeeded" and row.output is not None else None
            result: dict[str, Any] = {name: getattr(row, name) for name in ("status", "error", "duration")}
            last = (row.segment + 1) * EVENTS_PER_SEGMENT - 1
            roots = [call.end_event for call in calls if call.parent is None and call.end_event >= 0]
            self.log.put(RunFinished, before=roots[0] + 1 if roots else last, output=output, **result)
            self.log.close()

    def _put(self, call: CallRow, number: int, *, ended: bool) -> None:
        node = {name: getattr(call, name) for name in ("key", "path", "kind")}
        if not ended:
            self.log.put(CallStarted, at=_time(call.started), before=number, **node)
            return
        usage = USAGE.validate_json(call.usage)
        counts = {name: getattr(usage, name) for name in ("requests", "input_tokens", "output_tokens")}
        result = {name: getattr(call, name) for name in ("error", "duration", "cost")}
        result["status"] = "succeeded" if call.status == "running" else call.status
        self.log.put(CallFinished, at=_time(call.started + call.duration), before=number, **node, **counts, **result)


def _numbers(call: CallRow) -> Iterator[tuple[int, bool]]:
    """The numbers of a call's events, and whether it is that of its end.

    A graph that runs again after its run was resumed still has the event of its first end. The rows of older versions
    have no numbers: their calls begin one after the other, and end in the opposite order.
    """
    yield (call.start_event if call.start_event >= 0 else call.position + 1), False
    if call.status != "running" or call.end_event >= 0:
        yield (call.end_event if call.end_event >= 0 else EVENTS_PER_SEGMENT // 2 - call.position), True


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
