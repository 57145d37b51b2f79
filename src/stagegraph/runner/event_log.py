"""The events of one run, in a bounded buffer that any number of readers read at their own speed."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import anyio

from stagegraph.data.events import EVENTS_PER_SEGMENT, EventsDropped

if TYPE_CHECKING:
    from stagegraph.data.events import Event

_BATCH = 256


class EventLog:
    """Writing never waits; a reader that falls behind by more than the buffer gets an `EventsDropped` with a count."""

    def __init__(self, run_id: str, size: int | None, segment: int = 0) -> None:
        self.run_id = run_id
        self._first_number = segment * EVENTS_PER_SEGMENT
        self._events: deque[Event] = deque(maxlen=size)
        self._numbers: deque[int] = deque(maxlen=size)
        self._next = 0
        self.closed = False
        """Whether the run has ended."""
        self._changed: anyio.Event | None = None

    def put(self, event_type: type[Any], /, *, at: datetime | None = None, before: int = -1, **fields: object) -> int:
        """Append one event, with the time *at* or now; after the end, events of tasks that still run are ignored.

        Returns its number: *before* where it was announced with that one already.
        """
        if self.closed:
            return -1
        event = event_type(run_id=self.run_id, seq=self._next, time=at or datetime.now(UTC), **fields)
        self._events.append(cast("Event", event))
        self._numbers.append(before if before >= 0 else self._first_number + self._next)
        self._next += 1
        self._wake()
        return self._numbers[-1]

    def number_of(self, event: Event) -> int:
        """The number over all segments of the run of an event that was just read."""
        first = self._next - len(self._events)
        return self._numbers[event.seq - first] if event.seq >= first else self._numbers[0] - 1

    @property
    def newest(self) -> int:
        """The number of the newest event; -1 while there is none."""
        return self._numbers[-1] if self._numbers else -1

    def has(self, number: int) -> bool:
        """Whether there has been an event with this number since the run was started or resumed."""
        return self._first_number <= number < self._first_number + self._next

    def close(self) -> None:
        """No event follows; readers end after the last one."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def read(self, after: int = -1) -> AsyncIterator[Event]:
        """Every event with a number above *after*, also future ones, until the run ends."""
        async for batch in self.batches(after):
            for event in batch:
                yield event

    async def batches(self, after: int = -1, *, every: float | None = None) -> AsyncIterator[list[Event]]:
        """Events in batches; an empty list after *every* so many seconds without an event."""
        wanted = max(after, -1) + 1
        while True:
            batch = self._from(wanted)
            if batch:
                wanted = batch[-1].seq + 1
                yield batch
            elif self.closed:
                return
            elif not await self._change(every):
                yield []

    def _from(self, wanted: int) -> list[Event]:
        first = self._next - len(self._events)
        if wanted >= first:
            return list(islice(self._events, wanted - first, wanted - first + _BATCH))
        missed = EventsDropped(run_id=self.run_id, seq=first - 1, time=datetime.now(UTC), count=first - wanted)
        return [missed]

    async def _change(self, seconds: float | None) -> bool:
        """Wait for an event, or for so many seconds; whether there was one."""
        if self._changed is None:
            self._changed = anyio.Event()
        with anyio.move_on_after(seconds):
            await self._changed.wait()
            return True
        return False
