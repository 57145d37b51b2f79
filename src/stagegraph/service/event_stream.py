"""Server-sent events with heartbeats, for clients that may leave and come back.

FastAPI's own event streams (`fastapi.sse`) send each event by itself, at 80 microseconds an event instead of 3, and
their heartbeat has a fixed interval.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from stagegraph.data.events import CallFinished, CallRetried, Event, RunFinished

if TYPE_CHECKING:
    from stagegraph.runner.live import LiveRun

    from .journal_events import JournalEvents

_HEARTBEAT = b": still here\n\n"

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
                group.start_soon(self._cancel_if_left, receive, group.cancel_scope)
                await self.stream_response(send)
                complete = True
                group.cancel_scope.cancel()
        except* OSError:
            pass  # the client left in the middle of a chunk
        finally:
            if not complete and self._on_leave is not None:
                self._on_leave()

    @staticmethod
    async def _cancel_if_left(receive: Receive, scope: anyio.CancelScope) -> None:
        await disconnected(receive)
        scope.cancel()


async def disconnected(receive: Receive) -> None:
    """Wait until the client of a request leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True, slots=True)
class EventFormat:
    """How events are sent.

    Args:
        heartbeat: Seconds of silence after which a comment is sent.
        errors: Whether events contain the texts of errors.
    """

    heartbeat: float
    errors: bool

    async def live(self, live: LiveRun[Any, Any], after: int) -> AsyncIterator[bytes]:
        """The events of a run of this process."""
        prefix = f"{live.segment}-" if live.segment else ""
        async for batch in live.event_batches(after=after, every=self.heartbeat):
            yield b"".join(self._chunk(event, prefix) for event in batch) or _HEARTBEAT

    async def recorded(
        self, events: JournalEvents, after: int, find_live: Callable[[str], LiveRun[Any, Any] | None]
    ) -> AsyncIterator[bytes]:
        """The events of a run of another process; once this process resumes the run, all events from then on."""
        yield b": this run is in another process; its calls follow as they are recorded\n\n"
        last = monotonic()
        async for batch in events.batches(after):
            if batch:
                yield b"".join(self._chunk(event, f"{events.name}-") for event in batch)
            elif (live := find_live(events.log.run_id)) is not None:
                async for chunk in self.live(live, -1):
                    yield chunk
                return
            elif monotonic() - last >= self.heartbeat:
                yield _HEARTBEAT
            else:
                continue
            last = monotonic()

    def _chunk(self, event: Event, prefix: str) -> bytes:
        if not self.errors and isinstance(event, (CallFinished, CallRetried, RunFinished)) and event.error is not None:
            event = event.model_copy(update={"error": _HIDDEN})
        return f"id: {prefix}{event.seq}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()


def last_seen(last_event_id: str | None, prefix: str) -> int:
    """The number of the last event that a client has, from its `Last-Event-ID`.

    *prefix* is what ids begin with: the segment of a run, or the name of a `JournalEvents`; any other id gives -1.
    """
    first, dash, second = (last_event_id or "").strip().partition("-")
    part, number = (first, second) if dash else ("0", first)
    if not (number.isascii() and number.isdecimal() and len(number) < 16):  # noqa: PLR2004
        return -1
    return int(number) if part == prefix else -1
