"""A runner from its start to its shutdown: what a crash left is finished, what goes on is waited for."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from .errors import BusyError, JournalError, StagegraphError
from .journal._owner import is_alive
from .journal._rows import Journal, RunFilter, RunRow

if TYPE_CHECKING:
    from .live import LiveRun

__all__ = ["DepsOf", "Lifetime", "is_interrupted"]

_log = logging.getLogger("stagegraph")

_AT_ONCE = 8
"""How many interrupted runs are taken up at the same time."""
_MANY = 1_000_000


def is_interrupted(row: RunRow) -> bool:
    """Whether a run should go on and nobody runs it: its process is gone."""
    return row.status == "running" and (row.owner is None or not is_alive(row.owner))


DepsOf = Callable[[RunRow], Awaitable[object]]
"""From what is recorded of an interrupted run to the deps that it goes on with."""


class Resumes(Protocol):
    """A runner, as far as this file knows it."""

    journal: Journal | None

    def take_up(self, row: RunRow) -> Coroutine[Any, Any, object] | None:
        """Finish an interrupted run, if its graph is known here."""
        ...


class Lifetime:
    """The runs of one runner that go on by themselves, and whether more may come."""

    def __init__(self, drain_seconds: float, *, resume_interrupted: bool) -> None:
        self.taking = True
        """Whether new runs may begin."""
        self._drain_seconds = drain_seconds
        self._resume_interrupted = resume_interrupted
        self._by_id: dict[str, LiveRun[Any, Any]] = {}

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
        self._by_id[live.run_id] = live
        live.task.add_done_callback(lambda _: self._by_id.pop(live.run_id))

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
    async def span(self, runner: Resumes) -> AsyncGenerator[None]:
        """Around everything that a service does."""
        self.taking = True
        draining: list[asyncio.Task[None]] = []

        def drain() -> None:
            self.taking = False
            if not draining:
                draining.append(asyncio.create_task(self._drain(), name="stagegraph drain"))

        resuming = [asyncio.create_task(_resume(runner), name="stagegraph resume")] if self._resume_interrupted else []
        try:
            with _on_signal(drain):
                yield
        finally:
            for one in resuming:
                one.cancel()
            drain()
            await asyncio.wait([*resuming, *draining])
            if runner.journal is not None:
                await runner.journal.put()

    async def _drain(self) -> None:
        """Wait for what goes on, then end it; with a journal it stays where it can be taken up."""
        with anyio.move_on_after(self._drain_seconds):
            while self._by_id:
                await asyncio.wait([live.task for live in self._by_id.values()])
        self.cancel()
        await self.wait()


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


async def _resume(runner: Resumes) -> None:
    """Finish the runs that a crash or a shutdown interrupted, some at a time; another process may be at it as well."""
    journal = runner.journal
    rows = [] if journal is None else await journal.runs(RunFilter(status="running", limit=_MANY))
    waiting = iter([row for row in reversed(rows) if is_interrupted(row)])
    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(_take_up(runner, waiting))


async def _take_up(runner: Resumes, rows: Iterable[RunRow]) -> None:
    for row in rows:
        finishing = runner.take_up(row)
        if finishing is None:
            _log.warning("run %s of %s was interrupted, and nothing here can take it up", row.run_id, row.graph)
            continue
        try:
            await finishing
        except JournalError as error:
            _log.info("run %s was not taken up: %s", row.run_id, error)  # another process was first
        except StagegraphError as error:
            _log.warning("run %s was taken up and ended with %s", row.run_id, type(error).__name__)
        except Exception as error:  # noqa: BLE001 - the next one may do better
            _log.warning("run %s could not be taken up: %s", row.run_id, type(error).__name__)
