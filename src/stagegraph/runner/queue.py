"""The queue of one runner: how many runs may run at once, how many may wait, and when others are refused."""

from __future__ import annotations

import time
from collections import deque

import anyio

from stagegraph.schema.errors import BusyError, DeclarationError

_FIRST_GUESS = 1.0
"""Assumed seconds of a run before the first one has ended."""
_LONGEST_WAIT = 60.0
_WEIGHT = 0.2
"""Of the newest run in the moving average of durations."""


class Queue:
    """The seats of one runner, first come, first served; without *max_runs* their number is not limited."""

    def __init__(self, max_runs: int | None, max_queued: int | None) -> None:
        if max_queued is not None and (max_runs is None or max_queued < 0):
            wrong = "0 or more may wait" if max_runs is not None else "runs only wait where `max_runs` limits them"
            msg = f"Runner(max_runs={max_runs}, max_queued={max_queued}): {wrong}"
            raise DeclarationError(msg)
        self._max_runs = max_runs
        self._max_queued = max_queued or 0
        self._waiting: deque[Seat] = deque()
        self._mean_seconds = _FIRST_GUESS
        self.running = 0
        """How many runs hold a seat."""

    @property
    def queued(self) -> int:
        """How many runs wait for a seat."""
        return len(self._waiting)

    def admit(self, *, patient: bool = False) -> Seat:
        """A seat, free or still waited for; does not wait itself. A *patient* run waits however long the queue is.

        Raises:
            BusyError: all seats are taken, and the queue is full.
        """
        if self._max_runs is None or self.running < self._max_runs:
            self.running += 1
            return Seat(self, free=True)
        if not patient and len(self._waiting) >= self._max_queued:
            waiting = f" and {len(self._waiting)} wait" if self._waiting else ""
            msg = f"{self.running} runs are going on{waiting}, and no more may: try again later, or raise `max_runs`"
            raise BusyError(msg, retry_after=self._wait())
        seat = Seat(self, free=False)
        self._waiting.append(seat)
        return seat

    def _wait(self) -> float:
        """Estimated seconds until one more run gets a seat."""
        likely = self._mean_seconds * (len(self._waiting) + 1) / (self._max_runs or 1)
        return min(max(likely, 1.0), _LONGEST_WAIT)

    def left(self, seat: Seat) -> None:
        """Give a seat to the next run in the queue."""
        if seat.since is None:
            self._waiting.remove(seat)
            return
        self._mean_seconds += _WEIGHT * (time.monotonic() - seat.since - self._mean_seconds)
        if self._waiting:
            self._waiting.popleft().free()
        else:
            self.running -= 1


class Seat:
    """One run's place among the running runs, or in the queue."""

    __slots__ = ("_free", "_left", "_queue", "since")

    def __init__(self, queue: Queue, *, free: bool) -> None:
        self._queue = queue
        self._free: anyio.Event | None = None
        self._left = False
        self.since: float | None = time.monotonic() if free else None
        """When it was taken; `None` while it is waited for."""

    def free(self) -> None:
        """The seat is this run's now."""
        self.since = time.monotonic()
        if self._free is not None:
            self._free.set()

    async def taken(self) -> None:
        """Wait until the seat is this run's."""
        if self.since is None:
            self._free = anyio.Event()
            await self._free.wait()

    def leave(self) -> None:
        """Give the seat to the next run; once."""
        if not self._left:
            self._left = True
            self._queue.left(self)
