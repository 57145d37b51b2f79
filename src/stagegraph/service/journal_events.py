"""The events of a run that another process runs, read from the journal that both share."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from time import monotonic
from typing import TYPE_CHECKING

import anyio

from stagegraph.data.events import CallFinished, CallStarted, RunFinished, RunStarted
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

    The times of a call, which give its events their numbers, are the same here and in the process that runs the run.
    """

    def __init__(self, journal: Journal, run_id: str, size: int | None = _BUFFERED_EVENTS) -> None:
        self.log = EventLog(run_id, size)
        self._journal = journal
        self._seen: set[tuple[float, str, str]] = set()
        """Time, type, and key of the call of the events in the log."""
        self._reading = anyio.Lock()
        self._next_read = 0.0
        self._started = False

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Events until the run ends; an empty list when there are none for a while."""
        await self.read()
        async for batch in self.log.batches(every=_PAUSE):
            yield batch
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
            self.log.put(RunStarted, row.started, {"graph": row.graph})
        found = sorted((one for call in calls for one in _events(call)), key=lambda one: one[0])
        for at, event_type, call in found:
            if (event := (at, event_type.__name__, call.key)) not in self._seen:
                self._seen.add(event)
                self.log.put(event_type, at, _fields(call, event_type))
        if row.status != "running":
            output = json.loads(row.output) if row.status == "succeeded" and row.output is not None else None
            result = {name: getattr(row, name) for name in ("status", "error", "duration")}
            ends = row.read_labels().ended
            ended = ends[-1] if len(ends) > row.segment else row.started + row.duration
            self.log.put(RunFinished, ended, {"output": output, **result})
            self.log.close()


def _events(call: CallRow) -> Iterator[tuple[float, type[CallStarted | CallFinished], CallRow]]:
    yield call.started, CallStarted, call
    if call.status != "running":
        yield call.started + call.duration, CallFinished, call


def _fields(call: CallRow, event_type: type[CallStarted | CallFinished]) -> dict[str, object]:
    fields = {name: getattr(call, name) for name in ("key", "path", "kind")}
    if event_type is CallFinished:
        usage = USAGE.validate_json(call.usage)
        fields |= {name: getattr(usage, name) for name in ("requests", "input_tokens", "output_tokens")}
        fields |= {name: getattr(call, name) for name in ("status", "error", "duration", "cost")}
    return fields
