"""What waits to be sent: bounded in count and bytes, sent by one thread, given up after a while, counted when lost."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Outbox", "Refused", "Unreachable"]

T = TypeVar("T")

log = logging.getLogger("stagegraph.tracing")

_ATTEMPTS = 4
_BACKOFF = 0.5
_LONGEST_WAIT = 30.0


class Unreachable(Exception):  # noqa: N818 - what happened, not what it is
    """The server did not take it now, and may later."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Refused(Exception):  # noqa: N818
    """The server will not take it."""


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
    ) -> None:
        self._send = send
        self._what = what
        self._max_items, self._max_bytes = max_items, max_bytes
        self._batch_items, self._batch_bytes = batch_items, batch_bytes
        self._delay = delay
        self._exit_seconds = exit_seconds
        self.lost = 0
        """Items that could not be sent."""
        self._told = False
        self._on_fork = on_fork
        self._reset()
        alive = weakref.WeakMethod(self._forked)
        os.register_at_fork(after_in_child=lambda: (forked := alive()) and forked())

    def _forked(self) -> None:
        self._reset()
        self._on_fork()

    def _reset(self) -> None:
        """Begin empty: also in a forked child, whose parent sends what it had and whose threads are gone."""
        self._changed = threading.Condition()
        self._queue: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._in_flight = 0
        self._hurry = 0
        self._closed = False
        self._down = False
        self._thread: threading.Thread | None = None

    def put(self, item: T, size: int) -> None:
        """Let an item of about *size* bytes wait for its turn."""
        with self._changed:
            full = len(self._queue) >= self._max_items or self._bytes + size > self._max_bytes
            if full or self._closed:
                self.lose(1, "too many wait already" if full else "the program is ending")
                return
            self._queue.append((item, size))
            self._bytes += size
            if self._thread is None:
                self._start()
            elif len(self._queue) == 1 or len(self._queue) >= self._batch_items or self._bytes >= self._batch_bytes:
                self._changed.notify_all()

    def _start(self) -> None:
        alive = weakref.WeakMethod(self.close)
        atexit.register(lambda: (close := alive()) and close())
        self._thread = threading.Thread(target=self._work, name=f"stagegraph-{self._what}", daemon=True)
        self._thread.start()

    def flush(self, seconds: float) -> bool:
        """Send what waits now, for so long at most; whether nothing waits any more."""
        with self._changed:
            self._hurry += 1
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._queue and not self._in_flight, seconds)
            self._hurry -= 1
            return done

    def close(self, seconds: float | None = None) -> None:
        """Send what waits, for so long at most (`exit_seconds`), and take nothing more."""
        with self._changed:
            thread, self._closed = self._thread, True
            self._changed.notify_all()
        if thread is None or thread is threading.current_thread():
            return
        thread.join(self._exit_seconds if seconds is None else seconds)
        with self._changed:
            if left := len(self._queue) + self._in_flight:
                self._queue.clear()
                self._bytes = self._in_flight = 0
                self.lose(left, "the program ended before they could be sent")

    def _work(self) -> None:
        mine = self._changed
        while batch := self._next():
            try:
                self._deliver(batch)
            finally:
                with mine:
                    self._in_flight = 0
                    mine.notify_all()

    def _next(self) -> list[T]:
        """The next batch; empty when the outbox is closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            until = time.monotonic() + self._delay
            while not (self._closed or self._hurry or self._full_batch()):
                if (left := until - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            batch: list[T] = []
            total = 0
            while self._queue and len(batch) < self._batch_items and (not batch or total < self._batch_bytes):
                item, size = self._queue.popleft()
                batch.append(item)
                total += size
            self._bytes -= total
            self._in_flight = len(batch)
            return batch

    def _full_batch(self) -> bool:
        return len(self._queue) >= self._batch_items or self._bytes >= self._batch_bytes

    def _deliver(self, batch: list[T]) -> None:
        attempts = 1 if self._down else _ATTEMPTS
        reason = ""
        for attempt in range(attempts):
            try:
                self._send(batch)
            except Unreachable as error:
                reason = str(error)
                wait = error.retry_after if error.retry_after is not None else _BACKOFF * 2**attempt
                if attempt + 1 < attempts and not self._rest(min(wait, _LONGEST_WAIT)):
                    break
            except Refused as error:
                reason = str(error)
                break
            except Exception as error:  # noqa: BLE001 - whatever went wrong, the thread goes on
                reason = f"{type(error).__name__}: {error}"
                break
            else:
                self._down = False
                return
        self._down = True
        with self._changed:
            if self._in_flight:
                self.lose(len(batch), reason)

    def _rest(self, seconds: float) -> bool:
        """Wait before the next attempt; `False` when the program ends meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)
            return not self._closed

    def lose(self, count: int, reason: str) -> None:
        """Count what will not arrive."""
        self.lost += count
        if not self._told:
            self._told = True
            log.warning("%s are not reaching Langfuse (%s); runs go on, and this is said once", self._what, reason)
