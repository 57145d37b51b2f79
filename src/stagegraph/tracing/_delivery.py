"""How a batch is brought to a server: again when that may help, in halves when a whole is too much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Delivery", "Refused", "Unreachable"]

T = TypeVar("T")

_ATTEMPTS = 4
_BACKOFF = 0.5
_LONGEST_WAIT = 30.0


class Unreachable(Exception):  # noqa: N818 - what happened, not what it is
    """The server did not take it now, and may later: *retry_after* seconds from now, if it says so."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Refused(Exception):  # noqa: N818
    """The server will not take *count* of the items (`None`: all); *as_a_whole*: but it may take parts of the batch."""

    def __init__(self, reason: str, *, count: int | None = None, as_a_whole: bool = False) -> None:
        super().__init__(reason)
        self.count = count
        self.as_a_whole = as_a_whole


class Delivery(Generic[T]):
    """Sends batches until each of their items is taken or lost.

    A batch is tried four times, and once while the server seems to be down. A server that says when to come back is
    believed any number of times.

    Args:
        send: Sends one batch; raises `Unreachable` or `Refused`.
        rest: Waits so many seconds before the next attempt; `False` when there will be none.
        done: Told how many items are done with, how many of these are lost, and why.
    """

    def __init__(
        self,
        send: Callable[[list[T]], None],
        *,
        rest: Callable[[float], bool],
        done: Callable[[int, int, str], None],
    ) -> None:
        self._send, self._rest, self._done = send, rest, done
        self._down = False

    def deliver(self, batch: list[T]) -> None:
        """Send a batch; whatever happens to it, `done` is told of each item once."""
        count = len(batch)
        try:
            self._send_patiently(batch)
        except Refused as error:
            if error.as_a_whole and count > 1:
                self.deliver(batch[: count // 2])
                self.deliver(batch[count // 2 :])
            else:
                self._done(count, count if error.count is None else error.count, str(error))
        except Unreachable as error:
            self._done(count, count, str(error))
        except Exception as error:  # noqa: BLE001 - others go on; the text may quote what is in the batch
            self._done(count, count, type(error).__name__)
        else:
            self._done(count, 0, "")

    def _send_patiently(self, batch: list[T]) -> None:
        attempts = 1 if self._down else _ATTEMPTS
        failures = 0
        while True:
            try:
                self._send(batch)
            except Unreachable as error:
                if error.retry_after is None:
                    failures += 1
                    wait = _BACKOFF * 2 ** (failures - 1)
                else:
                    wait = max(_BACKOFF, error.retry_after)
                if failures >= attempts or not self._rest(min(wait, _LONGEST_WAIT)):
                    self._down = True
                    raise
            except Refused:
                self._down = False
                raise
            else:
                self._down = False
                return
