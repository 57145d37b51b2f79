"""The tasks of one block of concurrency, and the one rule by which a cancellation is told from a failure.

A `CancelledError` ends a task that somebody cancelled. It also comes out of an awaited object that was cancelled, and
then it is a failure like any other. Afterwards `Task.cancelling` cannot tell the two apart: by then the scopes inside
have taken back what they counted, and anyio's nested task groups more than that. So a cancellation is marked where it
enters a task: in a member of a block, a run, or a call in a task of the user's own. What is called there sees the mark.
The owner of a block waits for its members alone: what interrupts that wait comes from outside.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import cache, partial
from types import TracebackType, coroutine
from typing import Any, Self, TypeVar

import anyio

from .current import Suspended

T = TypeVar("T")

if sys.version_info >= (3, 12):
    watched_task = asyncio.current_task
    """The task whose cancellations a watch sees: an eager one begins while the task around it is running."""
else:

    def watched_task() -> None:
        """No task begins inside another one: a watch that is running is that of the running task."""


NOT_CANCELLED = (
    "it awaited something that was cancelled, although the call itself was not; "
    "catch `asyncio.CancelledError` where that is awaited"
)

_REACHED = "stagegraph_reached"
"""The attribute of a `CancelledError` that reached its task as a cancellation."""


def is_cancelled(error: BaseException | None) -> bool:
    """Whether *error* is a cancellation of the current task, and not what came out of an awaited object."""
    task = asyncio.current_task()
    if not isinstance(error, asyncio.CancelledError) or task is None:
        return False
    if task.cancelling() or anyio.current_effective_deadline() == -math.inf:
        return True
    return _REACHED in vars(error) or is_cancelled(error.__context__)  # raised while a cancellation was handled


@coroutine
def watched(work: Coroutine[Any, Any, T], context: Context | None = None) -> Generator[Any, Any, T]:
    """Await *work*, in a context of its own if one is given, and mark the cancellations that reach it.

    It is running (`gi_running`) whenever its task is: what is awaited then is a part of the work.
    """
    resume: Callable[[Any], Any] = work.send
    given: list[Any] = [None]  # a list, so that no frame keeps an exception that has its traceback
    while True:
        try:
            waits_for = resume(given.pop()) if context is None else context.run(resume, given.pop())
        except StopIteration as end:
            return end.value
        try:
            given, resume = [(yield waits_for)], work.send
        except GeneratorExit:
            _ = work.close() if context is None else context.run(work.close)
            raise
        except BaseException as error:  # noqa: BLE001 - it is thrown into the work
            task = asyncio.current_task()
            if task is not None and isinstance(error, asyncio.CancelledError) and task.cancelling():
                vars(error)[_REACHED] = True
            given, resume = [error], work.throw


async def whole(work: Coroutine[Any, Any, T]) -> tuple[T, asyncio.CancelledError | None]:
    """Await *work* to its end, whoever cancels meanwhile; returns that cancellation, for the caller to raise."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as outside:
                cancelled = outside
    return task.result(), cancelled


@cache
def scope_type() -> type[anyio.CancelScope]:
    """The class of a cancel scope here; `anyio.CancelScope()` itself asks for the event loop's library each time."""
    return type(anyio.CancelScope())


class Group:
    """The tasks of one block: none outlives it, and the first failure ends the others.

    Each member has a cancel scope of its own, so that a member may shield what it must finish.
    """

    def __init__(self) -> None:
        self.feeding = anyio.CancelScope()
        """Around the part of the block that waits for something else than its members."""
        self._members: set[asyncio.Task[None]] = set()
        self._scopes: set[anyio.CancelScope] = set()
        """Those of the members that have begun."""
        self._ending = False
        self._failure: BaseException | None = None
        self._pause: Suspended | None = None

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        """Run *work* in a task of its own."""
        task = asyncio.create_task(self._run(work))
        self._members.add(task)
        task.add_done_callback(partial(self._ended, work))

    def cancel(self) -> None:
        """End all members."""
        self._ending = True
        self.feeding.cancel()
        for scope in list(self._scopes):
            scope.cancel()

    def failed(self, error: BaseException) -> None:
        """Keep the error of a member: the first failure ends the others, a suspended one lets them finish."""
        if isinstance(error, Suspended):
            self._pause = error
        elif not (self._ending and isinstance(error, asyncio.CancelledError)):
            self._failure = self._failure or error
            self.cancel()

    async def _run(self, work: Coroutine[Any, Any, object]) -> None:
        if self._ending:
            return
        with scope_type()() as scope:
            self._scopes.add(scope)
            try:
                await watched(work)
            except BaseException as error:  # noqa: BLE001 - raised by the owner when all have ended
                self.failed(error)
            self._scopes.discard(scope)

    def _ended(self, work: Coroutine[Any, Any, object], task: asyncio.Task[None]) -> None:
        self._members.discard(task)
        work.close()  # one that never began would warn that it was never awaited
        if task.cancelled():  # before it began, by somebody else
            self.failed(asyncio.CancelledError())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cancelled = error if isinstance(error, asyncio.CancelledError) else None
        if error is not None:
            self.cancel()
        while self._members:
            try:
                with anyio.CancelScope(shield=cancelled is not None):
                    await asyncio.wait(self._members)
            except asyncio.CancelledError as outside:
                cancelled = outside
                self.cancel()
        problem = cancelled or (self._failure or self._pause if error is None else None)
        if problem is not None:
            raise problem
