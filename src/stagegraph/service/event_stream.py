"""Server-sent events with heartbeats, for clients that may leave and come back.

FastAPI's own event streams (`fastapi.sse`) send each event by itself, at 80 microseconds an event instead of 3, and
their heartbeat has a fixed interval.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from stagegraph.data.events import CallFinished, CallRetried, Event, RunFinished

from .journal_events import JournalEvents

if TYPE_CHECKING:
    from stagegraph.record.rows import Journal
    from stagegraph.runner.live import LiveRun

_HEARTBEAT = b": still here\n\n"

_ID = re.compile("[0-9]{1,18}")
_HIDDEN = "the details are in the service's own records"


class EventStream(StreamingResponse):
    """A response that sends chunks as they come, and notices at once when the client leaves.

    It reads and sends in one place, so that no task group or span is held open over a `yield`.
    """

    def __init__(
        self, chunks: AsyncIterator[bytes], run_id: str, *, on_leave: Callable[[], None] | None = None
    ) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Run-Id": run_id}
        super().__init__(chunks, headers=headers, media_type="text/event-stream")
        self._on_leave = on_leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        complete = False
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(cancel_if_left, receive, group.cancel_scope)
                await self.stream_response(send)
                complete = True
                group.cancel_scope.cancel()
        except* OSError:
            pass  # the client left in the middle of a chunk
        finally:
            if not complete and self._on_leave is not None:
                self._on_leave()


async def cancel_if_left(receive: Receive, scope: anyio.CancelScope) -> None:
    """Wait until the client of a request leaves, and end what *scope* is around."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


@dataclass(frozen=True, slots=True)
class EventFormat:
    """How events are sent.

    An event's id is its number, which is its time to the microsecond. The rows of calls have the same times, so every
    process, and a later one, continues after it. A stream is in the order of these numbers.

    Args:
        journal: Of the runs, if there is one.
        heartbeat: Seconds of silence after which a comment is sent.
        errors: Whether events contain the texts of errors.
    """

    journal: Journal | None
    heartbeat: float
    errors: bool

    async def live(self, live: LiveRun[Any, Any], seen: int) -> AsyncIterator[bytes]:
        """The events of a run of this process after the number *seen*; before a resume they are in the journal."""
        first = await live.first_event()
        after = live.event_seq(seen) if seen >= first else None
        if after is None:
            after = -1
            async for chunk in self._before(live, seen if seen < first else -1, first):
                yield chunk
        async for batch in live.event_batches(after=after, every=self.heartbeat):
            yield b"".join(self._chunk(event) for event in batch if event.number >= first) or _HEARTBEAT

    async def _before(self, live: LiveRun[Any, Any], seen: int, first: int) -> AsyncIterator[bytes]:
        """What was recorded of a run before it was resumed here."""
        if self.journal is None or first == 0:
            return
        past = JournalEvents(self.journal, live.run_id, None)
        async for batch in past.batches():
            yield b"".join(self._chunk(event) for event in batch if seen < event.number < first)
            if not batch or batch[-1].number >= past.log.newest:
                return

    async def recorded(
        self, events: JournalEvents, seen: int, find_live: Callable[[str], LiveRun[Any, Any] | None]
    ) -> AsyncIterator[bytes]:
        """The same of a run of another process; once this process resumes the run, it follows it here."""
        yield b": this run is in another process; its calls follow as they are recorded\n\n"
        last, newest = monotonic(), seen
        async for batch in events.batches():
            if events.log.closed and newest == seen > events.log.newest:
                seen = -1  # the run has no such event
            chunks: list[bytes] = []
            for event in batch:
                if event.number > seen or (event.number != seen and isinstance(event, RunFinished)):
                    newest = max(newest, event.number)
                    chunks.append(self._chunk(event, newest))
            if chunks:
                yield b"".join(chunks)
            elif batch:
                continue
            elif (live := find_live(events.log.run_id)) is not None:
                async for chunk in self.live(live, newest):
                    yield chunk
                return
            elif monotonic() - last >= self.heartbeat:
                yield _HEARTBEAT
            else:
                continue
            last = monotonic()

    def _chunk(self, event: Event, number: int | None = None) -> bytes:
        if not self.errors and isinstance(event, (CallFinished, CallRetried, RunFinished)) and event.error is not None:
            event = event.model_copy(update={"error": _HIDDEN})
        return f"id: {number or event.number}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()


def last_seen(*last_ids: str | None) -> int:
    """The number of the event that the first of these ids names; -1 where none names an event."""
    return next((int(one) for one in last_ids if one is not None and _ID.fullmatch(one.strip())), -1)
