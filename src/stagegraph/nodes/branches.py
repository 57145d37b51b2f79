"""The branches of one fan-out: a bounded number of workers takes the items, and each item has an outcome."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import anyio
from anyio.abc import TaskGroup

from stagegraph.schema.errors import DeclarationError

from .current import OpenCall, Suspended, current

In = TypeVar("In")
Out = TypeVar("Out")

DEFAULT_LIMIT = 64
_LABEL_LENGTH = 80


@dataclass(frozen=True, slots=True, eq=False)
class Outcome(Generic[Out]):
    """The result of one item: a value or an error."""

    index: int
    """The item's index, from 0."""
    key: str
    """The key of its call: `build[2]`."""
    error: Exception | None
    _value: Out | None = None

    @property
    def ok(self) -> bool:
        """Whether the outcome has a value."""
        return self.error is None

    @property
    def value(self) -> Out:
        """The value; raises the error if the outcome has no value."""
        if self.error is not None:
            raise self.error
        return cast("Out", self._value)


class Failures:
    """The failures of one task group's members; the first is raised when all members have ended."""

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._lost: BaseException | None = None
        self._pause: Suspended | None = None

    def add(self, error: BaseException, group: anyio.CancelScope) -> None:
        """Keep the error of one member: the first failure cancels the others, a suspended one lets them finish.

        Raises:
            CancelledError: the member itself was cancelled.
        """
        if isinstance(error, Suspended):
            self._pause = error
        elif is_cancelled(error):
            self._lost = error
            raise error
        else:
            self._error = self._error or error
            group.cancel()

    def raise_first(self) -> None:
        """Raise the first failure; without a failure, the cancellation or suspension of a member, if any."""
        if (problem := self._error or self._lost or self._pause) is not None:
            raise problem


def is_cancelled(error: BaseException) -> bool:
    """Whether *error* is the cancellation of the current task.

    A `CancelledError` may also come from an awaited object. A task group takes it for its own and drops it, so the
    group's owner keeps it and raises it at the end: no result may be missing without an error.
    """
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


class Branches(Generic[In, Out]):
    """At most `limit` workers that take items from one shared iterator."""

    def __init__(
        self,
        node: Callable[[In], Awaitable[Out]],
        items: Iterable[In] | AsyncIterable[In],
        limit: int | None,
        key: Callable[[In], str] | None,
    ) -> None:
        self.node = node
        self.key = key
        self.call: OpenCall[Any, Any, Any] | None = current.get(None)
        self.limit = limit if limit is not None else self.call.fan_out_limit if self.call else DEFAULT_LIMIT
        if self.limit < 1:
            msg = f"limit={self.limit}: at least one branch must be allowed to run"
            raise DeclarationError(msg)
        if isinstance(items, Iterable):
            self._items: Iterator[In] | None = iter(items)
        elif isinstance(items, AsyncIterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            self._items = None
            self._async_items = aiter(items)
        else:
            msg = f"a fan-out runs over items, but {items!r} cannot be iterated"
            raise DeclarationError(msg)
        self._size = len(items) if isinstance(items, Sized) else None
        if self.call is not None and self._size is not None:
            self.call.fanned_out(node, self._size)
        self._count = 0

    async def run(self, one: Callable[[int, str, In], Awaitable[None]], announce: Callable[[], None]) -> None:
        """Await *one* for every item; *announce* is called once for each item, in order, before it starts."""
        call = self.call
        failures = Failures()

        async def work(pulled: tuple[int, In] | None, follow: Callable[[], tuple[int, In] | None]) -> None:
            try:
                while pulled is not None:
                    index, item = pulled
                    label = str(index) if self.key is None else _label(self.key(item))
                    if call is not None:
                        current.set(call.branch(label, index, self._size))
                    try:
                        await one(index, label, item)
                    except Suspended as suspended:
                        failures.add(suspended, group.cancel_scope)
                    if call is not None:
                        current.set(call)  # calls made by the iterator of the items belong to no branch
                    pulled = follow()
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - raised when all have ended
                failures.add(error, group.cancel_scope)

        async with anyio.create_task_group() as group:
            try:
                await self._start(group, work, announce)
            except Exception as error:  # noqa: BLE001 - the iterator of the items failed
                failures.add(error, group.cancel_scope)
        failures.raise_first()

    async def _start(
        self, group: TaskGroup, work: Callable[..., Coroutine[Any, Any, None]], announce: Callable[[], None]
    ) -> None:
        def start(item: In, done: Callable[[], None]) -> None:
            group.start_soon(work, self._taken(item, announce), done)

        if self._items is None:
            await self._feed(start)
            return
        for _ in range(self.limit):
            if (pulled := self._pull(announce)) is None:
                break
            group.start_soon(work, pulled, lambda: self._pull(announce))

    async def _feed(self, start: Callable[[In, Callable[[], None]], None]) -> None:
        """Take an async item when a worker is free, always in this task, since the iterator may hold cancel scopes."""
        free = anyio.Semaphore(self.limit)
        items = self._async_items
        try:
            await free.acquire()
            async for item in items:
                start(item, free.release)
                await free.acquire()
        finally:
            if isinstance(items, AsyncGenerator):  # a generator that is not exhausted would outlive the block
                await items.aclose()

    async def outcome(self, index: int, label: str, item: In) -> Outcome[Out]:
        try:
            value = await self.node(item)
        except Exception as error:  # noqa: BLE001 - an outcome holds any error
            return Outcome(index, self._branch_key(label), error)
        return Outcome(index, self._branch_key(label), None, value)

    def _branch_key(self, label: str) -> str:
        if self.call is not None:
            return current.get().branch_key(self.node, label)
        return f"{getattr(self.node, '__name__', 'branch')}[{label}]"

    def _pull(self, announce: Callable[[], None]) -> tuple[int, In] | None:
        for item in cast("Iterator[In]", self._items):
            return self._taken(item, announce)
        return None

    def _taken(self, item: In, announce: Callable[[], None]) -> tuple[int, In]:
        self._count += 1
        announce()
        return self._count - 1, item


def _label(name: object) -> str:
    """A name without characters that have a meaning in keys; a model may have chosen the name."""
    text = "".join("_" if char in "[]#" or not char.isprintable() else char for char in str(name))
    if len(text) <= _LABEL_LENGTH:
        return text
    return f"{text[:_LABEL_LENGTH]}~{hashlib.sha256(str(name).encode(errors='replace')).hexdigest()[:8]}"
