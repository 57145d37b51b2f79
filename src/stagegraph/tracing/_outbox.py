"""What waits to be sent: bounded in count and bytes, sent by one thread, given up after a while, counted when lost."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Generic, TypeVar

from ._delivery import Delivery
from ._process import close_at_exit, empty_in_children

__all__ = ["Outbox"]

T = TypeVar("T")

log = logging.getLogger("stagegraph.tracing")


class Outbox(Generic[T]):
    """Items on their way to a server. Putting one in never waits and never fails.

    Args:
        send: Sends one batch in the outbox's own thread; raises `Unreachable` or `Refused`.
        what: How the items are called when some are lost.
        max_items: More do not wait; what comes when it is full is lost.
        max_bytes: The same for their size.
        delay: Seconds that an item waits for company.
        exit_seconds: How long the process may be held up at its end.
        on_fork: Called in a forked child.
        on_end: Called by the thread when it has nothing more to send.
    """

    def __init__(
        self,
        send: Callable[[list[T]], None],
        *,
        what: str,
        max_items: int = 20_000,
        max_bytes: int = 64_000_000,
        batch_items: int = 512,
        batch_bytes: int = 2_000_000,
        delay: float = 1.0,
        exit_seconds: float = 2.0,
        on_fork: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._send = send
        self._what = what
        self._max_items, self._max_bytes = max_items, max_bytes
        self._batch_items, self._batch_bytes = batch_items, batch_bytes
        self._delay = delay
        self._exit_seconds = exit_seconds
        self._on_fork, self._on_end = on_fork, on_end
        self._told = False
        self._until: float | None = None
        """When closed: until when what waits may still be sent."""
        self._begin()
        empty_in_children(self)

    def _begin(self) -> None:
        self.lost = 0
        """Items that could not be sent, in this process."""
        self._changed = threading.Condition()
        self._queue: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._entered = 0
        self._settled = 0
        """How many of those that entered were sent or lost; between the two are those that wait or are being sent."""
        self._hurry = 0
        self._delivery = Delivery(self._send, rest=self._rest, done=self._done)
        self._thread: threading.Thread | None = None

    def forked(self) -> None:
        """Begin empty in a forked child: the parent sends what it had, and its threads are not here."""
        self._begin()
        self._on_fork()

    def put(self, item: T, size: int) -> None:
        """Let an item of about *size* bytes wait for its turn."""
        with self._changed:
            obstacle = self._obstacle(size)
            if obstacle is None:
                self._queue.append((item, size))
                self._bytes += size
                self._entered += 1
                if len(self._queue) == 1 or self._full_batch():
                    self._changed.notify_all()
        if obstacle is not None:
            self.lose(1, obstacle)

    def _obstacle(self, size: int) -> str | None:
        """Why an item cannot wait; `None` when it can, and there is a thread to send it."""
        if self._until is not None:
            return "tracing is closed"
        if len(self._queue) >= self._max_items or self._bytes + size > self._max_bytes:
            return "too many wait already"
        if self._thread is None:
            thread = threading.Thread(target=self._work, name=f"stagegraph-{self._what}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # too many threads, or the interpreter is about to end
                return str(error)
            self._thread = thread
            close_at_exit()
        return None

    def lose(self, count: int, reason: str) -> None:
        """Count what will not arrive; the first time, say so."""
        with self._changed:
            self.lost += count
        self._tell(reason)

    def _tell(self, reason: str) -> None:
        """Warn once, without the lock held: handlers of the log are not ours, and may wait for other threads."""
        with self._changed:
            first, self._told = not self._told, True
        if first:
            with suppress(Exception):
                log.warning("%s are not reaching Langfuse (%s); runs go on, and this is said once", self._what, reason)

    def flush(self, seconds: float) -> bool:
        """Send what waits now, for so long at most; whether all of it went and nothing was lost meanwhile."""
        with self._changed:
            goal, lost = self._entered, self.lost
            self._hurry += 1
            self._changed.notify_all()
            try:
                done = self._changed.wait_for(lambda: self._settled >= goal, min(seconds, threading.TIMEOUT_MAX))
            finally:
                self._hurry -= 1
            return done and self.lost == lost

    def close(self, seconds: float | None = None) -> None:
        """Send what waits, for so long at most (`exit_seconds`), and take nothing more."""
        self.settle(self.end(seconds))

    def end(self, seconds: float | None = None) -> float:
        """Take nothing more; gives the moment until which what waits may still be sent."""
        with self._changed:
            self._until = monotonic() + (self._exit_seconds if seconds is None else seconds)
            self._changed.notify_all()
            return self._until

    def settle(self, until: float) -> None:
        """Wait until all is sent or *until* has come; what is left then is lost."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        with self._changed:
            self._changed.wait_for(lambda: self._settled == self._entered, _left(until))
            left = self._entered - self._settled
            self.lost += left
            self._queue.clear()
            self._bytes = 0
            self._settled = self._entered
            self._changed.notify_all()
            if left:
                self._thread = None  # it may hang for as long as it likes
        if left:
            self._tell("the program ended before they could be sent")
        else:
            thread.join(_left(until))

    def _work(self) -> None:
        while batch := self._next():
            self._delivery.deliver(batch)
        with suppress(Exception):
            self._on_end()

    def _next(self) -> list[T]:
        """The next batch; empty when the outbox is closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._until is not None)
            due = monotonic() + self._delay
            self._changed.wait_for(
                lambda: self._until is not None or self._hurry or self._full_batch(), due - monotonic()
            )
            batch: list[T] = []
            total = 0
            while self._queue and len(batch) < self._batch_items and (not batch or total < self._batch_bytes):
                item, size = self._queue.popleft()
                batch.append(item)
                total += size
            self._bytes -= total
            return batch

    def _full_batch(self) -> bool:
        return len(self._queue) >= self._batch_items or self._bytes >= self._batch_bytes

    def _done(self, count: int, lost: int, reason: str) -> None:
        """Account for so many of a batch."""
        if lost:
            self._tell(reason)
        with self._changed:
            if self._settled + count <= self._entered:  # otherwise `settle` has given them up, and counted them
                self._settled += count
                self.lost += lost
                self._changed.notify_all()

    def _rest(self, seconds: float) -> bool:
        """Wait before the next attempt, at most until the outbox is closed; `False` when it would come too late."""
        with self._changed:
            if self._until is None:
                self._changed.wait_for(lambda: self._until is not None, seconds)
                return self._until is None or monotonic() < self._until
            if monotonic() + seconds > self._until:
                return False
            self._changed.wait_for(lambda: self._settled == self._entered, seconds)
            return self._settled < self._entered


def _left(until: float) -> float:
    return min(max(0.0, until - monotonic()), threading.TIMEOUT_MAX)
