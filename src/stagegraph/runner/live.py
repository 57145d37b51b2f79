"""A run in a task of its own: follow its events, wait for it, cancel it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from stagegraph.data.call import CallError
from stagegraph.data.events import number_at
from stagegraph.schema.errors import JournalError
from stagegraph.schema.tracebacks import UserFrames

if TYPE_CHECKING:
    from stagegraph.data.events import Event
    from stagegraph.record.run import Run

    from .event_log import EventLog
    from .run import ActiveRun

In = TypeVar("In")
Out = TypeVar("Out")


class LiveRun(Generic[In, Out]):
    """A run in a task of its own, made by `Runner.start`."""

    def __init__(self, active: ActiveRun, log: EventLog) -> None:
        self._active = active
        self._log = log
        self._result: Run[Any, Any] | None = None
        self._error: BaseException | None = None
        self.run_id = active.spec.run_id
        self.graph = active.state.name
        """The name of the graph, stage or step."""
        self.user_id = active.spec.user_id
        self.session_id = active.spec.session_id
        self.metadata = active.spec.metadata
        self.segment = active.state.segment
        """How often the run was resumed; each time, events are numbered from 0."""
        self.task = asyncio.create_task(self._complete(), name=f"stagegraph run {self.run_id}")
        """The task it runs in; it never raises, `result` does."""
        self.task.add_done_callback(self._see_off)

    @property
    def run(self) -> Run[In, Out]:
        """The record as it stands now, also while the run is running."""
        return cast("Run[In, Out]", self._active.record())

    @property
    def progress(self) -> Run[In, Out]:
        """The same without a copy of the calls so far, which takes long in a run with very many of them."""
        return cast("Run[In, Out]", self._active.record(frozen=False))

    @property
    def done(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.task.done()

    def events(self, *, after: int = -1) -> AsyncIterator[Event]:
        """Events from the beginning (or after event number *after*) until the run ends.

        Any number of readers may read at their own speed; none of them slows the run. A reader that is too far behind
        gets an `EventsDropped` in place of the events it missed.
        """
        return self._log.read(after)

    def event_batches(self, *, after: int = -1, every: float | None = None) -> AsyncIterator[list[Event]]:
        """Events in batches; an empty list after *every* so many seconds without an event."""
        return self._log.batches(after, every=every)

    async def first_event(self) -> int:
        """The least number of an event since the run was started or resumed here; earlier ones are in the journal."""
        if not self.segment:
            return 0
        await self._active.opened.wait()
        return number_at(self._active.state.resumed_at)

    def event_seq(self, number: int) -> int | None:
        """The `seq` after which a reader continues that has the events up to this number; `None` if none has it yet."""
        return self._log.seq_of(number) if number <= self._log.newest else None

    async def recorded(self) -> None:
        """Wait until the run is in the runner's journal, so that a crash cannot lose it; without one, until it began.

        Raises:
            JournalError: the journal does not let it begin.
        """
        await self._active.written()
        if isinstance(self._error, JournalError):
            raise self._error

    async def result(self) -> Run[In, Out]:
        """Wait for the end; cancelling the wait does not cancel the run.

        Raises:
            RunError: the run ended without an output, or was cancelled; `error.run` is its partial record.
        """
        await asyncio.wait([self.task])
        if self._error is not None:
            with UserFrames():
                raise self._error
        return cast("Run[In, Out]", self._result)

    async def cancel(self) -> None:
        """End the run now and wait until nothing of it is left; a finished run stays as it is."""
        self.stop()
        await asyncio.wait([self.task])

    def stop(self) -> None:
        """The same without waiting."""
        self._active.state.cancel_requested = True
        self.task.cancel()

    async def _complete(self) -> None:
        try:
            self._result = await self._active.complete()
        except asyncio.CancelledError:
            self._error = self._active.cancelled()
        except Exception as error:  # noqa: BLE001 - raised by `result`
            self._error = error

    def _see_off(self, task: asyncio.Task[None]) -> None:
        """End the events of a run that never began: it was cancelled first, or its journal refused it."""
        if not self._log.closed:
            self._active.never_began(CallError(type(self._error).__name__, str(self._error)) if self._error else None)
        if task.cancelled():
            self._error = self._active.cancelled()
