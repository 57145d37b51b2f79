"""A runner from its start to its shutdown: what a crash left is finished, what goes on is waited for."""

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

from stagegraph.record.run import RunError
from stagegraph.schema.errors import BusyError, JournalError

from .recovery import TakesUp, finish_interrupted

if TYPE_CHECKING:
    from stagegraph.record.rows import Journal
    from stagegraph.record.run import Run

    from .live import LiveRun
    from .run import Running

__all__ = ["Lifetime"]

_log = logging.getLogger("stagegraph")

_LOOK_EVERY = 1.0
"""Seconds between two looks at what other processes wish of the runs here; only while there are any."""


class Lifetime:
    """The runs of one runner that are going on, and whether more may come.

    Args:
        drain_seconds: How long the end waits for them.
        attempts: How often a run that its process did not survive is taken up; 0 takes up none.
    """

    def __init__(self, drain_seconds: float, *, attempts: int) -> None:
        self.taking = True
        """Whether new runs may begin."""
        self._drain_seconds = drain_seconds
        self._attempts = attempts
        self._by_id: dict[str, LiveRun[Any, Any]] = {}
        """Those that go on by themselves."""
        self._awaited: dict[Running, anyio.CancelScope] = {}
        """Those that somebody waits for where they run: `await runner.run(...)` in a request, while a service lives."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where the service lives."""
        self._left: anyio.Event | None = None

    def check(self, run_id: str | None) -> None:
        """Refuse a run that may not begin.

        Raises:
            BusyError: the service is shutting down.
            JournalError: this very run is going on.
        """
        if not self.taking:
            msg = "this runner is shutting down and takes no more runs: ask another one, or again when it is back"
            raise BusyError(msg, retry_after=self._drain_seconds)
        if run_id in self._by_id:
            msg = f"run {run_id!r} is going on in another place of this process: wait for it, or cancel it"
            raise JournalError(msg)

    def add(self, live: LiveRun[Any, Any]) -> None:
        """Keep a run until it has ended."""

        def ended(_: asyncio.Task[None]) -> None:
            del self._by_id[live.run_id]
            self._note()

        self._by_id[live.run_id] = live
        live.task.add_done_callback(ended)

    async def within(self, running: Running) -> Run[Any, Any]:
        """A run to its end, in the task that asks for it.

        Raises:
            RunError: as ever; or the service ended first, or somebody cancelled the run from another process.
        """
        if self._loop is not asyncio.get_running_loop():
            return await running.complete()
        with anyio.CancelScope() as scope:
            self._awaited[running] = scope
            try:
                return await running.complete()
            finally:
                del self._awaited[running]
                self._note()
        run = running.record()
        why = "" if self.taking else ": this runner is shutting down"
        msg = f"the run of {run.graph} was cancelled{why}"
        raise RunError(msg, run=run)

    def _note(self) -> None:
        """Tell who waits that one has ended."""
        if self._left is not None:
            self._left.set()

    def get(self, run_id: str) -> LiveRun[Any, Any] | None:
        return self._by_id.get(run_id)

    def cancel(self) -> None:
        """End every run now."""
        for live in self._by_id.values():
            live.task.cancel()

    async def wait(self) -> None:
        """Until none is left, also of those that are started meanwhile; a wait that is cancelled cancels them."""
        try:
            while self._by_id:
                await asyncio.wait([live.task for live in self._by_id.values()])
        except asyncio.CancelledError:
            self.cancel()
            with anyio.CancelScope(shield=True):
                await self.wait()
            raise

    @asynccontextmanager
    async def span(self, runner: TakesUp) -> AsyncGenerator[None]:
        """Around everything that a service does."""
        self.taking = True
        draining: list[asyncio.Task[None]] = []

        def drain() -> None:
            self.taking = False
            if not draining:
                draining.append(asyncio.create_task(self._drain(), name="stagegraph drain"))

        finishing = asyncio.create_task(finish_interrupted(runner, self._attempts), name="stagegraph resume")
        obeying = asyncio.create_task(self._obey(runner.journal), name="stagegraph cancels")
        self._loop = asyncio.get_running_loop()
        try:
            with _on_signal(drain):
                yield
        finally:
            finishing.cancel()
            drain()
            await asyncio.wait([finishing, *draining])
            obeying.cancel()
            await asyncio.wait([obeying])
            self._loop = None
            if runner.journal is not None:
                await runner.journal.put()

    async def _drain(self) -> None:
        """Wait for what goes on, then end it; with a journal it stays where it can be taken up."""
        with anyio.move_on_after(self._drain_seconds):
            await self._ended()
        self.cancel()
        for scope in self._awaited.values():
            scope.cancel()
        await self._ended()

    async def _ended(self) -> None:
        while self._by_id or self._awaited:
            self._left = anyio.Event()
            await self._left.wait()

    async def _obey(self, journal: Journal | None) -> None:
        """End the runs here that somebody at another process wants to end."""
        while journal is not None:
            await anyio.sleep(_LOOK_EVERY)
            if not (self._by_id or self._awaited):
                continue
            try:
                wishes = {(row.run_id, row.segment) for row in await journal.cancels()}
            except JournalError as error:
                _log.warning("nobody can cancel runs from other processes just now: %s", error)
                continue
            for live in list(self._by_id.values()):
                if (live.run_id, live.segment) in wishes:
                    live.stop()
            for running, scope in self._awaited.items():
                if (running.terms.run_id, running.segment) in wishes:
                    running.leaves = lambda: False
                    scope.cancel()


@contextmanager
def _on_signal(drain: Callable[[], None]) -> Generator[None]:
    """Begin to drain as soon as the process is told to end.

    A server first waits for its open connections, which wait for runs: the drain has to begin before, or its deadline
    would not count. The server's own reaction to the signal follows as ever.
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
