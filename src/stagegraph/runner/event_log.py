"""The events of one run, in a bounded buffer that any number of readers read at their own speed."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import anyio

from stagegraph.data.events import MICROSECOND, CallFinished, EventsDropped, number_at

from .state import CallState

if TYPE_CHECKING:
    from stagegraph.data.events import Event

_BATCH = 256


class EventLog:
    """Writing never waits; a reader that falls behind by more than the buffer gets an `EventsDropped` with a count.

    Events are made when they are read: most runs have no reader.
    """

    def __init__(self, run_id: str, size: int | None) -> None:
        self.run_id = run_id
        self._entries: deque[tuple[type[Any], float, Mapping[str, object] | CallState]] = deque(maxlen=size)
        self._next = 0
        self.closed = False
        """Whether the run has ended."""
        self._changed: anyio.Event | None = None

    def put(self, event_type: type[Any], at: float, about: Mapping[str, object] | CallState) -> None:
        """Append one event of a moment in seconds since 1970, *about* its fields, or about a call that begins or ends.

        After the end, events of tasks that still run are ignored.
        """
        if self.closed:
            return
        self._entries.append((event_type, at, about))
        self._next += 1
        if self._changed is not None:
            self._wake()

    @property
    def newest(self) -> int:
        """The number of the newest event; -1 while there is none."""
        return number_at(self._entries[-1][1]) if self._entries else -1

    def seq_of(self, number: int) -> int:
        """The `seq` of the last event up to a number, among those in the buffer; -1 where they all come later."""
        for back, (_, at, _about) in enumerate(reversed(self._entries)):
            if number_at(at) <= number:
                return self._next - 1 - back
        told = self._entries and number == number_at(self._entries[0][1]) - 1  # that those before it are gone
        return self._next - len(self._entries) - 1 if told else -1

    def close(self) -> None:
        """No event follows; readers end after the last one."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def read(self, after: int = -1) -> AsyncIterator[Event]:
        """Every event with a `seq` above *after*, also future ones, until the run ends."""
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
        first = self._next - len(self._entries)
        if wanted < first:
            before = _time(self._entries[0][1]) - MICROSECOND
            return [EventsDropped(run_id=self.run_id, seq=first - 1, time=before, count=first - wanted)]
        entries = islice(self._entries, wanted - first, wanted - first + _BATCH)
        return [self._event(seq, *entry) for seq, entry in enumerate(entries, wanted)]

    def _event(self, seq: int, event_type: type[Any], at: float, about: Mapping[str, object] | CallState) -> Event:
        fields = _fields_of(about, event_type) if isinstance(about, CallState) else about
        return cast("Event", event_type(run_id=self.run_id, seq=seq, time=_time(at), **fields))

    async def _change(self, seconds: float | None) -> bool:
        """Wait for an event, or for so many seconds; whether there was one."""
        if self._changed is None:
            self._changed = anyio.Event()
        with anyio.move_on_after(seconds):
            await self._changed.wait()
            return True
        return False


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _fields_of(call: CallState, event_type: type[Any]) -> dict[str, object]:
    fields: dict[str, object] = {"key": call.key, "path": call.path, "kind": call.node.__node__.kind}
    if event_type is CallFinished:
        usage = call.use.usage
        fields |= {
            "status": call.status,
            "error": call.error.message if call.error else None,
            "duration": call.duration,
            "requests": usage.requests,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cost": call.use.cost,
        }
    return fields
