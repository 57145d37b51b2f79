"""One event loop in the background for all threads: a provider's client belongs to the loop that it was used on.

A user's function that blocks is called in a thread, so that it does not stop a loop.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio.to_thread

from stagegraph.schema.errors import NotRunningError

T = TypeVar("T")


class _Background:
    """The loop and its thread, made at the first use, and again after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._thread is None or not self._thread.is_alive():
                loop = self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=loop.run_forever, name="stagegraph", daemon=True)
                self._thread.start()
            return self._loop

    def is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or not thread.is_alive() or self.is_here():
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)
        if not thread.is_alive():
            loop.close()


_background = _Background()
atexit.register(_background.stop)


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start work on the background loop, with the caller's context variables."""
    return asyncio.run_coroutine_threadsafe(work, _background.loop())


def start_here(work: Coroutine[Any, Any, T], instead: str) -> Future[T]:
    """Start work on the background loop for a caller that is going to block.

    Raises:
        NotRunningError: the caller is on that loop, which would wait for itself; *instead* is what to write.
    """
    if _background.is_here():
        work.close()
        msg = f"a blocking call on the event loop that it would have to wait for: write `{instead}`"
        raise NotRunningError(msg)
    return submit(work)


def run_here(work: Coroutine[Any, Any, T], instead: str) -> T:
    """Run work on the background loop and block until it ends; an interrupted call cancels the work.

    Raises:
        NotRunningError: the caller is on that loop; *instead* is what to write.
    """
    future = start_here(work, instead)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def await_here(work: Coroutine[Any, Any, T]) -> T:
    """Run work on the background loop for async code on any loop; cancelling the caller cancels the work."""
    if _background.is_here():
        return await work
    return await asyncio.wrap_future(submit(work))


async def call_user(function: Callable[..., object], *args: Any) -> object:
    """What a user's function returns: an async one on this loop, another one in a thread, since it may block."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        found = function(*args)
    else:
        found = await anyio.to_thread.run_sync(function, *args)
    return await found if inspect.isawaitable(found) else found
