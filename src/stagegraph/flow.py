"""How a flow runs several things at once: structured, ordered, without a barrier, on a bounded number of workers."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sized
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast, overload

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from .errors import DeclarationError
from .frame import Frame, Suspended, current

__all__ = ["Outcome", "as_completed", "fan_out", "gather", "settle"]

In = TypeVar("In")
Out = TypeVar("Out")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
T6 = TypeVar("T6")

DEFAULT_LIMIT = 64
_LABEL_LENGTH = 80


@dataclass(frozen=True, slots=True, eq=False)
class Outcome(Generic[Out]):
    """What became of one item: a value or an error."""

    index: int
    """The item's place among the items, from 0."""
    key: str
    """Where it ran: `build[2]`."""
    error: Exception | None
    _value: Out | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.error is None

    @property
    def value(self) -> Out:
        """The value; where there is none, its error is raised."""
        if self.error is not None:
            raise self.error
        return cast("Out", self._value)


async def fan_out(
    node: Callable[[In], Awaitable[Out]],
    items: Iterable[In] | AsyncIterable[In],
    *,
    limit: int | None = None,
    key: Callable[[In], str] | None = None,
) -> list[Out]:
    """Run a node (or any async function of one value) over all items at once; the results keep the items' order.

    A branch that is done with its first stage goes on to its second while others still wait: there is no barrier.

    Args:
        node: A node, a bound method or a plain async function.
        items: Any number of items, also from an async iterator; it is read only as fast as workers are free.
        limit: How many branches run at once; the runner's `fan_out_limit` (64) without it.
        key: Names an item in the calls' keys (`build[intro]` for `build[2]`).

    Raises:
        Exception: the first failure, after its siblings were cancelled; their finished calls stay in the record.
    """
    results: list[Any] = []

    async def one(index: int, _label: str, item: In) -> None:
        results[index] = await node(item)

    await _Branches(node, items, limit, key).run(one, lambda: results.append(None))
    return cast("list[Out]", results)


async def settle(
    node: Callable[[In], Awaitable[Out]],
    items: Iterable[In] | AsyncIterable[In],
    *,
    limit: int | None = None,
    key: Callable[[In], str] | None = None,
) -> list[Outcome[Out]]:
    """Like `fan_out`, but a failure cancels nobody: each outcome holds a value or an error, in the items' order."""
    outcomes: list[Any] = []
    branches = _Branches(node, items, limit, key)

    async def one(index: int, label: str, item: In) -> None:
        outcomes[index] = await branches.outcome(index, label, item)

    await branches.run(one, lambda: outcomes.append(None))
    return cast("list[Outcome[Out]]", outcomes)


@asynccontextmanager
async def as_completed(
    node: Callable[[In], Awaitable[Out]],
    items: Iterable[In] | AsyncIterable[In],
    *,
    limit: int | None = None,
    key: Callable[[In], str] | None = None,
) -> AsyncGenerator[AsyncIterator[Outcome[Out]]]:
    """Hand out outcomes as they come: `async with as_completed(self.search, queries) as outcomes: async for ...`.

    Leaving the block cancels what is still running.
    """
    branches = _Branches(node, items, limit, key)
    send, receive = anyio.create_memory_object_stream[Outcome[Out]](max_buffer_size=branches.limit)
    failure: Exception | Suspended | None = None
    problem: list[BaseException] = []

    async def one(index: int, label: str, item: In) -> None:
        await send.send(await branches.outcome(index, label, item))

    async def produce() -> None:
        with send:
            try:
                await branches.run(one, lambda: None)
            except (Exception, Suspended, asyncio.CancelledError) as error:
                if _is_cancelled(error):
                    raise
                problem.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(produce)
        with receive:
            try:
                yield _Outcomes(receive, problem)
            except (Exception, Suspended) as error:  # noqa: BLE001 - raised again below, outside the group that would wrap it
                failure = error
            finally:
                group.cancel_scope.cancel()
    if failure is not None:
        raise failure


@overload
async def gather(a: Awaitable[T1], /) -> tuple[T1]: ...
@overload
async def gather(a: Awaitable[T1], b: Awaitable[T2], /) -> tuple[T1, T2]: ...
@overload
async def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], /) -> tuple[T1, T2, T3]: ...
@overload
async def gather(
    a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], /
) -> tuple[T1, T2, T3, T4]: ...
@overload
async def gather(
    a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], e: Awaitable[T5], /
) -> tuple[T1, T2, T3, T4, T5]: ...
@overload
async def gather(
    a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], e: Awaitable[T5], f: Awaitable[T6], /
) -> tuple[T1, T2, T3, T4, T5, T6]: ...
@overload
async def gather(*awaitables: Awaitable[T1]) -> tuple[T1, ...]: ...
async def gather(*awaitables: Awaitable[Any]) -> tuple[Any, ...]:
    """Await different things at once: `tests, docs = await gather(self.tests(code), self.docs(code))`.

    Raises:
        Exception: the first failure, after the others were cancelled.
    """
    results: list[Any] = [None] * len(awaitables)
    first_error: BaseException | None = None
    lost: BaseException | None = None
    pause: Suspended | None = None

    async def one(index: int, awaitable: Awaitable[Any]) -> None:
        nonlocal first_error, lost, pause
        try:
            results[index] = await awaitable
        except Suspended as suspended:
            pause = suspended
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled(error):
                lost = error
                raise
            first_error = first_error or error
            group.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as group:
            for index, awaitable in enumerate(awaitables):
                group.start_soon(one, index, awaitable)
    finally:
        for awaitable in awaitables:  # one that was cancelled before it began would warn that nobody awaited it
            if inspect.iscoroutine(awaitable):
                awaitable.close()
    if (problem := first_error or lost or pause) is not None:
        raise problem
    return tuple(results)


class _Outcomes(AsyncIterator[Outcome[Out]]):
    """What `as_completed` hands out; a suspended branch, or items that failed to come, are met at the end."""

    def __init__(self, receive: MemoryObjectReceiveStream[Outcome[Out]], problem: list[BaseException]) -> None:
        self._receive = receive
        self._problem = problem

    async def __anext__(self) -> Outcome[Out]:
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            if self._problem:
                raise self._problem[0] from None
            raise StopAsyncIteration from None


class _Branches(Generic[In, Out]):
    """Items on their way through at most `limit` workers that share one iterator."""

    def __init__(
        self,
        node: Callable[[In], Awaitable[Out]],
        items: Iterable[In] | AsyncIterable[In],
        limit: int | None,
        key: Callable[[In], str] | None,
    ) -> None:
        self.node = node
        self.key = key
        self.frame: Frame | None = current.get(None)
        self.limit = limit if limit is not None else self.frame.fan_out_limit if self.frame else DEFAULT_LIMIT
        if self.limit < 1:
            msg = f"limit={self.limit}: at least one branch must be allowed to run"
            raise DeclarationError(msg)
        if isinstance(items, Iterable):
            self._items: Iterator[In] | None = iter(items)
        elif isinstance(items, AsyncIterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            self._items = None
            self._async_items = aiter(items)
        else:
            msg = f"a fan-out runs over items, and {items!r} cannot be iterated"
            raise DeclarationError(msg)
        self._size = len(items) if isinstance(items, Sized) else None
        if self.frame is not None and self._size is not None:
            self.frame.fanned_out(node, self._size)
        self._count = 0

    async def run(self, one: Callable[[int, str, In], Awaitable[None]], announce: Callable[[], None]) -> None:
        """Take every item through *one*; *announce* is called once an item, in order, before it starts."""
        first_error: BaseException | None = None
        lost: BaseException | None = None
        pause: Suspended | None = None
        frame = self.frame

        def fail(error: BaseException) -> None:
            nonlocal first_error
            first_error = first_error or error
            group.cancel_scope.cancel()

        async def work(pulled: tuple[int, In] | None, follow: Callable[[], tuple[int, In] | None]) -> None:
            nonlocal lost, pause
            try:
                while pulled is not None:
                    index, item = pulled
                    label = str(index) if self.key is None else _label(self.key(item))
                    if frame is not None:
                        current.set(frame.branch(label, index, self._size))
                    try:
                        await one(index, label, item)
                    except Suspended as suspended:
                        pause = suspended  # the siblings finish first
                    if frame is not None:
                        current.set(frame)  # what the items' own code calls belongs to no branch
                    pulled = follow()
            except (Exception, asyncio.CancelledError) as error:
                if _is_cancelled(error):
                    lost = error
                    raise
                fail(error)

        async with anyio.create_task_group() as group:
            try:
                if self._items is not None:
                    for _ in range(self.limit):
                        if (pulled := self._pull(announce)) is None:
                            break
                        group.start_soon(work, pulled, lambda: self._pull(announce))
                else:
                    await self._feed(lambda item, done: group.start_soon(work, self._taken(item, announce), done))
            except Exception as error:  # noqa: BLE001 - the items themselves failed to come
                fail(error)
        if (problem := first_error or lost or pause) is not None:
            raise problem

    async def _feed(self, start: Callable[[In, Callable[[], None]], object]) -> None:
        """Ask for an async item when a worker is free, always in this task: its cancel scopes may not change tasks."""
        free = anyio.Semaphore(self.limit)
        items = self._async_items
        try:
            await free.acquire()
            async for item in items:
                start(item, free.release)
                await free.acquire()
        finally:
            if isinstance(items, AsyncGenerator):  # one that is left half-way would outlive the block
                await items.aclose()

    async def outcome(self, index: int, label: str, item: In) -> Outcome[Out]:
        try:
            return Outcome(index, self._branch_key(label), None, await self.node(item))
        except Exception as error:  # noqa: BLE001 - the whole point: an outcome holds any error
            return Outcome(index, self._branch_key(label), error)

    def _branch_key(self, label: str) -> str:
        if self.frame is not None:
            return self.frame.branch_key(self.node, label)
        return f"{getattr(self.node, '__name__', 'branch')}[{label}]"

    def _pull(self, announce: Callable[[], None]) -> tuple[int, In] | None:
        for item in cast("Iterator[In]", self._items):
            return self._taken(item, announce)
        return None

    def _taken(self, item: In, announce: Callable[[], None]) -> tuple[int, In]:
        self._count += 1
        announce()
        return self._count - 1, item


def _is_cancelled(error: BaseException) -> bool:
    """Whether *error* seems to be the cancellation of this very task.

    A `CancelledError` may also come out of something that was awaited. A task group takes it for its own and drops it,
    so what ended that way is remembered, too: its place among the results must not be left empty without a word.
    """
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _label(name: object) -> str:
    """An item's name as it may stand between brackets: a model may have chosen it."""
    text = "".join("_" if char in "[]#" or not char.isprintable() else char for char in str(name))
    if len(text) <= _LABEL_LENGTH:
        return text
    return f"{text[:_LABEL_LENGTH]}~{hashlib.sha256(str(name).encode(errors='replace')).hexdigest()[:8]}"
