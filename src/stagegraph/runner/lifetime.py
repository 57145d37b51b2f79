"""A runner from its start to its shutdown: it finishes interrupted runs, and waits for running ones at the end."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import anyio

from stagegraph.schema.errors import BusyError, JournalError

from .recovery import TakeUp, finish_interrupted

if TYPE_CHECKING:
    from stagegraph.record.rows import Journal
    from stagegraph.record.run import Run

    from .live import LiveRun
    from .run import ActiveRun

_log = logging.getLogger("stagegraph")

_LOOK_EVERY = 1.0
"""Seconds between two checks for runs that other processes want to cancel; only while runs are running here."""


class Lifetime:
    """The running runs of one runner, and whether new ones may begin.

    Args:
        drain_seconds: How long a shutdown waits for them.
        attempts: How often a run whose process crashed is resumed; 0 resumes none.
        at_once: How many interrupted runs are finished at the same time; `None` is no limit.
    """

    def __init__(self, drain_seconds: float, *, attempts: int, at_once: int | None = None) -> None:
        self.taking = True
        """Whether new runs may begin."""
        self._drain_seconds = drain_seconds
        self._attempts = attempts
        self._at_once = at_once
        self._live: dict[str, LiveRun[Any, Any]] = {}
        """Runs in tasks of their own."""
        self._running: dict[ActiveRun, Callable[[], object]] = {}
        """These, and those in the task of their caller (`await runner.run(...)` in a request); what ends each."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop of the service."""
        self._left: anyio.Event | None = None
        """Somebody waits until no run is left."""

    def check(self, run_id: str | None) -> None:
        """Refuse a run that may not begin.

        Raises:
            BusyError: the service is shutting down.
            JournalError: the run is running already.
        """
        if not self.taking:
            msg = "this runner is shutting down and takes no more runs: ask another one, or again when it is back"
            raise BusyError(msg, retry_after=self._drain_seconds)
        if run_id in self._live:
            msg = f"run {run_id!r} is already running in this process: wait for it, or cancel it"
            raise JournalError(msg)

    def add(self, active: ActiveRun, live: LiveRun[Any, Any]) -> None:
        """Keep a run until it has ended."""

        def ended(_: asyncio.Task[None]) -> None:
            del self._live[live.run_id]
            self._leave(active)

        self._live[live.run_id] = live
        self._running[active] = live.task.cancel
        live.task.add_done_callback(ended)

    async def within(self, active: ActiveRun) -> Run[Any, Any]:
        """Complete a run in the task of its caller.

        Raises:
            RunError: the run failed, the service ended first, or another process cancelled the run.
        """
        if self._loop is not asyncio.get_running_loop():
            return await active.complete()
        with anyio.CancelScope() as scope:
            self._running[active] = scope.cancel
            try:
                return await active.complete()
            finally:
                self._leave(active)
        raise active.cancelled("" if self.taking else ": this runner is shutting down")

    def _leave(self, active: ActiveRun) -> None:
        del self._running[active]
        if self._left is not None and not self._running:
            self._left.set()
            self._left = None

    def get(self, run_id: str) -> LiveRun[Any, Any] | None:
        return self._live.get(run_id)

    def cancel(self) -> None:
        """End every run now."""
        for end in list(self._running.values()):
            end()

    async def wait(self) -> None:
        """Wait until no run is left, also of those that begin meanwhile; cancelling the wait cancels the runs."""
        try:
            while self._running:
                self._left = self._left or anyio.Event()
                await self._left.wait()
        except asyncio.CancelledError:
            self.cancel()
            with anyio.CancelScope(shield=True):
                await self.wait()
            raise

    @asynccontextmanager
    async def span(self, journal: Journal | None, take_up: TakeUp) -> AsyncGenerator[None]:
        """Around the whole life of a service, which may *take_up* interrupted runs."""
        self.taking = True
        self._loop = asyncio.get_running_loop()
        finishing = self._loop.create_task(finish_interrupted(journal, take_up, self._attempts, self._at_once))
        obeying = self._loop.create_task(self._obey(journal))
        draining: list[asyncio.Task[None]] = []

        def drain() -> None:
            self.taking = False
            finishing.cancel()
            if not draining:
                draining.append(asyncio.create_task(self._drain()))

        try:
            with _on_signal(drain):
                yield
        finally:
            drain()
            await asyncio.wait([finishing, *draining])
            obeying.cancel()
            await asyncio.wait([obeying])
            self._loop = None
            if journal is not None:
                await journal.put()

    async def _drain(self) -> None:
        """Wait for the running runs, then cancel them; recorded ones can be resumed."""
        with anyio.move_on_after(self._drain_seconds):
            await self.wait()

    async def _obey(self, journal: Journal | None) -> None:
        """Cancel the runs here that another process wants to cancel."""
        while journal is not None:
            await anyio.sleep(_LOOK_EVERY)
            if not self._running:
                continue
            try:
                wishes = {(row.run_id, row.segment) for row in await journal.cancels()}
            except JournalError as error:
                _log.warning("runs cannot be cancelled from other processes just now: %s", error)
                continue
            for active, end in list(self._running.items()):
                if (active.spec.run_id, active.state.segment) in wishes:
                    active.state.cancel_requested = True
                    end()


@contextmanager
def _on_signal(drain: Callable[[], None]) -> Generator[None]:
    """Begin to drain as soon as the process gets the signal to end.

    A server first waits for its open connections, which wait for runs. The drain has to begin before that, or its
    deadline would not count. The server's own signal handler runs as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def react(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(drain)
        own = before[signal.Signals(number)]
        if callable(own):
            own(number, frame)

    ours = [number for number, own in before.items() if callable(own) and own is not signal.default_int_handler]
    for number in ours:
        signal.signal(number, react)
    try:
        yield
    finally:
        for number in ours:
            if signal.getsignal(number) is react:
                signal.signal(number, before[number])
