"""Concurrency in a flow: structured, ordered, without a barrier, on a bounded number of workers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import wraps
from types import GeneratorType, TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, cast, overload

import anyio

from stagegraph.schema.errors import DeclarationError
from stagegraph.schema.types import is_list

from .branches import Branches, Outcome, close_calls
from .current import Suspended, current
from .group import Group, is_cancelled

P = ParamSpec("P")
In = TypeVar("In")
Out = TypeVar("Out")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
T6 = TypeVar("T6")


def _explained(function: Callable[P, T1]) -> Callable[P, T1]:
    """Say what to write where the items are missing: most likely the calls were made already."""

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T1:
        if args[1:] or "items" in options:
            return function(*args, **options)
        close_calls(args[0] if args and is_list(args[0]) else args)
        name = function.__name__
        msg = f"{name} takes the node itself and then the items: write `{name}(self.node, items)`, without calls"
        raise DeclarationError(msg)

    return call


@_explained
async def fan_out(
    node: Callable[[In], Awaitable[Out]],
    items: Iterable[In] | AsyncIterable[In],
    *,
    limit: int | None = None,
    key: Callable[[In], str] | None = None,
) -> list[Out]:
    """Run a node (or any async function of one value) over all items at once; the results keep the items' order.

    A branch starts its second stage as soon as its first is done, while others still wait: there is no barrier.

    Args:
        node: A node, a bound method or a plain async function.
        items: Any number of items, also from an async iterator; it is read only as fast as workers are free.
        limit: Number of branches that run at once; by default the runner's `fan_out_limit` (64).
        key: The name of an item in the calls' keys (`build[intro]` instead of `build[2]`).

    Raises:
        Exception: the first failure, after its siblings were cancelled; their finished calls stay in the record.
    """
    branches = Branches(node, items, limit, key)
    return await branches.results(branches.output)


@_explained
async def settle(
    node: Callable[[In], Awaitable[Out]],
    items: Iterable[In] | AsyncIterable[In],
    *,
    limit: int | None = None,
    key: Callable[[In], str] | None = None,
) -> list[Outcome[Out]]:
    """Like `fan_out`, but a failure cancels no other branch: each outcome has a value or an error."""
    branches = Branches(node, items, limit, key)
    return await branches.results(branches.outcome)


@_explained
def as_completed(
    node: Callable[[In], Awaitable[Out]],
    items: Iterable[In] | AsyncIterable[In],
    *,
    limit: int | None = None,
    key: Callable[[In], str] | None = None,
) -> AbstractAsyncContextManager[AsyncIterator[Outcome[Out]]]:
    """Iterate over outcomes as they arrive: `async with as_completed(self.search, queries) as outcomes: async for ...`.

    Leaving the block cancels the branches that still run. Outcomes may come in another order when a run is resumed or
    replayed, so calls in the loop have the outcome's item in their key, as those of its branch do.
    """
    return _AsCompleted(Branches(node, items, limit, key))


@overload
async def gather() -> tuple[()]: ...
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
async def gather(
    a: Awaitable[T1],
    b: Awaitable[T1],
    c: Awaitable[T1],
    d: Awaitable[T1],
    e: Awaitable[T1],
    f: Awaitable[T1],
    g: Awaitable[T1],
    /,
    *more: Awaitable[T1],
) -> tuple[T1, ...]: ...
async def gather(*awaitables: Awaitable[Any]) -> tuple[Any, ...]:
    """Await different calls at once: `tests, docs = await gather(self.tests(code), self.docs(code))`.

    Raises:
        Exception: the first failure, after the others were cancelled.
        DeclarationError: an argument cannot be awaited.
    """
    for awaitable in awaitables:
        if not inspect.isawaitable(awaitable):
            close_calls(awaitables)
            raise DeclarationError(_not_awaitable(awaitable))
    results: list[Any] = [None] * len(awaitables)
    call = current.get(None)

    async def one(index: int, awaitable: Awaitable[Any]) -> None:
        if call is not None:
            current.set(call.branch(str(index), index, len(awaitables)))
        results[index] = await awaitable

    try:
        async with Group() as group:
            for index, awaitable in enumerate(awaitables):
                group.start(one(index, awaitable))
    finally:
        close_calls(awaitables)  # a coroutine that never started would warn that it was never awaited
    return tuple(results)


def _not_awaitable(value: object) -> str:
    if isinstance(value, (list, tuple, set, GeneratorType)):
        if not isinstance(value, GeneratorType):
            close_calls(cast("Iterable[object]", value))
        what = type(cast("object", value)).__name__
        return f"gather takes awaitables one by one, not a {what} of them: write `gather(a, b)`, or `gather(*calls)`"
    if callable(value):
        return f"gather takes calls, but {value!r} was not called: write `gather(self.node(value), ...)`"
    return f"gather takes calls, as in `gather(self.node(value), ...)`, but {value!r} cannot be awaited"


class _AsCompleted(AbstractAsyncContextManager[AsyncIterator[Outcome[Out]]], AsyncIterator[Outcome[Out]]):
    """The block of `as_completed` and its iterator; calls in the body of its loop belong to the item of the outcome."""

    def __init__(self, branches: Branches[Any, Out]) -> None:
        self._branches = branches
        self._group = Group()
        self._entered = False
        self._problem: BaseException | None = None
        """A suspended branch, or a failure of the items."""

    async def __aenter__(self) -> AsyncIterator[Outcome[Out]]:
        if self._entered:
            msg = "this block of as_completed was entered before, and its items are used up: call as_completed again"
            raise DeclarationError(msg)
        self._entered = True
        self._send, self._receive = anyio.create_memory_object_stream[tuple[str, Outcome[Out]]](self._branches.limit)
        self._group.start(self._produce())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._enter(None)
        self._group.cancel()
        with self._send, self._receive:
            await self._group.__aexit__(kind, error, trace)

    async def __anext__(self) -> Outcome[Out]:
        self._enter(None)
        try:
            label, outcome = await self._receive.receive()
        except anyio.EndOfStream:
            if self._problem is not None:
                raise self._problem from None
            raise StopAsyncIteration from None
        self._enter((label, outcome.index))
        return outcome

    def _enter(self, item: tuple[str, int] | None) -> None:
        """Give the calls that are made next the label and index of an item, or none."""
        if (call := self._branches.call) is not None:
            current.set(call if item is None else call.branch(*item, self._branches.size))

    async def _produce(self) -> None:
        with self._send:
            try:
                await self._branches.run(self._one, lambda _index, _sent: None)
            except (Exception, Suspended, asyncio.CancelledError) as error:
                if is_cancelled(error):
                    raise
                self._problem = error

    async def _one(self, index: int, label: str, item: Any) -> None:
        await self._send.send((label, await self._branches.outcome(index, label, item)))

    if not TYPE_CHECKING:  # a type checker says it by itself

        def __aiter__(self) -> Self:
            if self._entered:
                return self
            msg = "as_completed is a block: write `async with as_completed(...) as outcomes:` around the `async for`"
            raise DeclarationError(msg)

        __iter__ = __await__ = __enter__ = __exit__ = __aiter__
