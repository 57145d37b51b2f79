"""How many runs and model requests go on at once, how many runs may wait, and what everybody else is told."""

from __future__ import annotations

import asyncio
import time
from collections import deque

import anyio

from stagegraph.schema.errors import BusyError, DeclarationError

__all__ = ["Admission", "Seat", "Slots"]

_FIRST_GUESS = 1.0
"""Seconds that a run is taken to last before the first has ended."""
_LONGEST_WAIT = 60.0
_WEIGHT = 0.2
"""Of the newest run in the average of how long runs last."""


class Admission:
    """The seats of one runner, handed out first come, first served; without *max_runs* there is one for everybody."""

    def __init__(self, max_runs: int | None, max_queued: int | None) -> None:
        if max_queued is not None and (max_runs is None or max_queued < 0):
            wrong = "0 or more may wait" if max_runs is not None else "runs only wait where `max_runs` limits them"
            msg = f"Runner(max_runs={max_runs}, max_queued={max_queued}): {wrong}"
            raise DeclarationError(msg)
        self._max_runs = max_runs
        self._max_queued = max_queued or 0
        self._queue: deque[Seat] = deque()
        self._lasting = _FIRST_GUESS
        self.running = 0
        """How many runs hold a seat."""

    @property
    def queued(self) -> int:
        """How many runs wait for a seat."""
        return len(self._queue)

    def admit(self, *, patient: bool = False) -> Seat:
        """A seat, free or to come; never a wait here. One who is *patient* may wait however many do.

        Raises:
            BusyError: all seats are taken, and as many runs wait as may.
        """
        if self._max_runs is None or self.running < self._max_runs:
            self.running += 1
            return Seat(self, free=True)
        if not patient and len(self._queue) >= self._max_queued:
            waiting = f" and {len(self._queue)} wait" if self._queue else ""
            msg = f"{self.running} runs are going on{waiting}, and no more may: try again later, or raise `max_runs`"
            raise BusyError(msg, retry_after=self._wait())
        seat = Seat(self, free=False)
        self._queue.append(seat)
        return seat

    def _wait(self) -> float:
        """Seconds until a seat is likely to be free for one more."""
        likely = self._lasting * (len(self._queue) + 1) / (self._max_runs or 1)
        return min(max(likely, 1.0), _LONGEST_WAIT)

    def left(self, seat: Seat) -> None:
        """Give a seat to the next in line."""
        if seat.since is None:
            self._queue.remove(seat)
            return
        self._lasting += _WEIGHT * (time.monotonic() - seat.since - self._lasting)
        if self._queue:
            self._queue.popleft().free()
        else:
            self.running -= 1


class Seat:
    """One run's place among those that go on, or in the line for it."""

    __slots__ = ("_admission", "_free", "_left", "since")

    def __init__(self, admission: Admission, *, free: bool) -> None:
        self._admission = admission
        self._free: anyio.Event | None = None
        self._left = False
        self.since: float | None = time.monotonic() if free else None
        """When it was taken; `None` while it is waited for."""

    def free(self) -> None:
        """It is this one's turn."""
        self.since = time.monotonic()
        if self._free is not None:
            self._free.set()

    async def taken(self) -> None:
        """Wait for this one's turn."""
        if self.since is None:
            self._free = anyio.Event()
            await self._free.wait()

    def leave(self) -> None:
        """Let the next one in; once."""
        if not self._left:
            self._left = True
            self._admission.left(self)


class Slots:
    """How many model requests may be in flight, of all runs of a runner together."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._made: tuple[asyncio.AbstractEventLoop, anyio.Semaphore] | None = None

    def here(self) -> anyio.Semaphore | None:
        """The slots of the running event loop, to which a semaphore belongs."""
        if self._most is None:
            return None
        loop = asyncio.get_running_loop()
        if self._made is None or self._made[0] is not loop:
            self._made = (loop, anyio.Semaphore(self._most))
        return self._made[1]
