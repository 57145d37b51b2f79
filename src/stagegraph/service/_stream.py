"""Events as they are sent: server-sent events with heartbeats, to a client that may leave and come back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stagegraph.data.events import CallFinished, CallRetried, Event, RunFinished

if TYPE_CHECKING:
    from stagegraph import LiveRun

    from ._watch import Watch

__all__ = ["EventStream", "after_id", "live_chunks", "watched_chunks"]

_STILL_HERE = b": still here\n\n"

_HIDDEN = "the details are in the service's own records"


class EventStream(Response):
    """A response that sends chunks as they come, and knows at once when the client has left.

    It reads and sends in one place, so that no task group or span is ever held over a `yield`.
    """

    def __init__(
        self, chunks: AsyncIterator[bytes], *, headers: dict[str, str], on_leave: Callable[[], None] | None = None
    ) -> None:
        told = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers}
        super().__init__(None, 200, told, "text/event-stream")
        del self.headers["content-length"]
        self._chunks = chunks
        self._on_leave = on_leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        complete = False
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_until_gone, receive, group.cancel_scope)
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for chunk in self._chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                complete = True
                group.cancel_scope.cancel()
        except* OSError:
            pass  # it left in the middle of a chunk
        finally:
            if not complete and self._on_leave is not None:
                self._on_leave()


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def live_chunks(live: LiveRun[Any, Any], after: int, heartbeat: float, *, errors: bool) -> AsyncIterator[bytes]:
    """The events of a run that is, or was, here."""
    prefix = f"{live.segment}-" if live.segment else ""
    async for batch in live.event_batches(after=after, every=heartbeat):
        yield b"".join(_chunk(event, prefix, errors=errors) for event in batch) or _STILL_HERE


async def watched_chunks(
    watch: Watch, after: int, heartbeat: float, *, errors: bool, here: Callable[[], LiveRun[Any, Any] | None]
) -> AsyncIterator[bytes]:
    """The events of a run that is in another process, until it comes *here*: then all of it from its new beginning."""
    yield b": this run is not here; its calls follow as they are recorded\n\n"
    last = monotonic()
    async for batch in watch.batches(after):
        if batch:
            yield b"".join(_chunk(event, f"{watch.name}-", errors=errors) for event in batch)
        elif (live := here()) is not None:
            async for chunk in live_chunks(live, -1, heartbeat, errors=errors):
                yield chunk
            return
        elif monotonic() - last >= heartbeat:
            yield _STILL_HERE
        else:
            continue
        last = monotonic()


def _chunk(event: Event, prefix: str, *, errors: bool) -> bytes:
    if not errors and isinstance(event, (CallFinished, CallRetried, RunFinished)) and event.error is not None:
        event = event.model_copy(update={"error": _HIDDEN})
    return f"id: {prefix}{event.seq}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()


def after_id(text: str | None, source: str) -> int:
    """The number of the last event that a client has, from the id it was sent.

    *source* is what ids begin with here: the segment of a run, or the name of a watch; any other id gives -1.
    """
    first, dash, second = (text or "").strip().partition("-")
    part, number = (first, second) if dash else ("0", first)
    if not (number.isascii() and number.isdecimal() and len(number) < 16):  # noqa: PLR2004
        return -1
    return int(number) if part == source else -1
