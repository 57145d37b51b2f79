"""What DSPy's parallel executor needs from a program: an outage that is no score of 0, and no run made twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, NoReturn

import dspy
from dspy.utils.callback_context import ACTIVE_CALL_ID

from stagegraph.optimize.lms.loop import start_here

__all__ = ["Flights", "Outage", "TuningStopped", "in_executor", "untyped"]

untyped: Any = dspy
"""DSPy for members that it declares without types."""

_STRAGGLER = 115.0
"""Seconds. DSPy's executor submits an item again that takes 120 seconds, and possibly several times."""
_QUEUE = 1.0
"""Seconds in which a thread of the executor takes the next item from its queue, by far."""


class TuningStopped(BaseException):
    """A provider failed for good, or the metric did, in the middle of an optimization; the cause says which.

    DSPy's executor turns every `Exception` into a score of 0, which would blame a candidate for a rate limit. It does
    not catch this one. It is raised inside DSPy's executor only.
    """


def in_executor() -> bool:
    """Whether DSPy's parallel executor makes this call, directly or through a program around this one.

    For each item, the executor binds the id of the calling callback, and `None` where there is none. Callbacks bind
    the id of each call as well, and leave `None` behind.
    """
    context = copy_context()
    if ACTIVE_CALL_ID not in context:
        return False
    if context[ACTIVE_CALL_ID] is None:
        return not untyped.settings.callbacks
    return not untyped.settings.caller_modules  # the id of an evaluation, unless a program around this one is called


class Outage:
    """Ends an evaluation of a program, and keeps its queued items from running.

    An executor has no public way to empty its queue. So a thread that has ended its item refuses the next ones. The
    main thread has no queue: there, the evaluation has ended with its exception.
    """

    def __init__(self) -> None:
        self._ended: dict[int, tuple[float, Exception]] = {}

    def end(self, error: Exception) -> NoReturn:
        """End the evaluation that makes this call.

        Raises:
            TuningStopped: always.
        """
        if threading.current_thread() is not threading.main_thread():
            self._ended[threading.get_ident()] = time.monotonic(), error
        msg = f"{error} (the optimization stops here, since this says nothing about the candidate)"
        raise TuningStopped(msg) from error

    def check(self) -> None:
        """Refuse an item that was queued in an evaluation that has ended.

        Raises:
            TuningStopped: it was.
        """
        ended, error = self._ended.pop(threading.get_ident(), (0.0, None))
        if error is not None and time.monotonic() - ended < _QUEUE:
            self.end(error)


class Flights:
    """Calls in progress. A call that DSPy submits again because it is slow joins the first one instead."""

    def __init__(self, after: float = _STRAGGLER) -> None:
        self._after = after
        self._lock = threading.Lock()
        self.joined = 0
        """Calls that have joined another one."""
        self._flying: dict[Hashable, tuple[float, Future[Any]]] = {}

    def run(self, call: Hashable, work: Callable[[], Coroutine[Any, Any, Any]], instead: str) -> Any:
        """Do the work and wait for it, or wait for an equal call that has been in progress for long.

        Raises:
            NotRunningError: this is the event loop that the work needs; *instead* is what to write.
        """
        with self._lock:
            began, future = self._flying.get(call, (time.monotonic(), None))
            joins = future is not None and time.monotonic() - began >= self._after
            if future is None or not joins:
                future = start_here(work(), instead)
                self._flying[call] = (time.monotonic(), future)
            self.joined += joins
        try:
            return future.result()
        except BaseException:
            if not joins:
                future.cancel()
            raise
        finally:
            with self._lock:
                if not joins and self._flying.get(call, (0, None))[1] is future:
                    del self._flying[call]
