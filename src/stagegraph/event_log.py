"""The events of one run: kept in a bounded buffer, read by any number of readers at their own speed."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import anyio

from .events import EventsDropped

if TYPE_CHECKING:
    from .events import Event

__all__ = ["EventLog"]


class EventLog:
    """Writing never waits: a reader that falls behind by more than the buffer is told how many events it missed."""

    def __init__(self, run_id: str, size: int) -> None:
        self.run_id = run_id
        self._events: deque[Event] = deque(maxlen=size)
        self._next = 0
        self.closed = False
        """Whether the run has ended."""
        self._changed: anyio.Event | None = None

    def put(self, event_type: type[Any], /, **fields: object) -> None:
        """Write one event of this kind; none follows the end, whatever a task that got away still does."""
        if self.closed:
            return
        event = event_type(run_id=self.run_id, seq=self._next, time=datetime.now(UTC), **fields)
        self._events.append(cast("Event", event))
        self._next += 1
        self._wake()

    def close(self) -> None:
        """No event follows; readers end after what is there."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def read(self, after: int = -1) -> AsyncIterator[Event]:
        """Every event with a number above *after*, those to come as well, until the run ends."""
        wanted = max(after, -1) + 1
        while True:
            while wanted < self._next:
                first = self._next - len(self._events)
                if wanted < first:
                    missed, wanted = first - wanted, first
                    now = datetime.now(UTC)
                    yield EventsDropped(run_id=self.run_id, seq=first - 1, time=now, count=missed)
                    continue
                event = self._events[wanted - first]
                wanted += 1
                yield event
            if self.closed:
                return
            if self._changed is None:
                self._changed = anyio.Event()
            await self._changed.wait()
