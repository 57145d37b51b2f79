"""The branches of one fan-out: a bounded number of workers takes the items, and each item has an outcome."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sized,
)
from contextvars import copy_context
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar, cast

import anyio
from pydantic import BaseModel

from stagegraph.schema.errors import DeclarationError, StageError
from stagegraph.schema.types import is_list

from .current import OpenCall, Suspended, current
from .group import NOT_CANCELLED, Group, is_cancelled, watched, watched_task

In = TypeVar("In")
Out = TypeVar("Out")
Result = TypeVar("Result")

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


class Branches(Generic[In, Out]):
    """At most `limit` workers that take items from one shared iterator."""

    def __init__(
        self,
        node: Callable[[In], Awaitable[Out]],
        items: Iterable[In] | AsyncIterable[In],
        limit: int | None,
        key: Callable[[In], str] | None,
    ) -> None:
        _check(node, items, limit, key)
        self.node = node
        self.key = key
        self.call: OpenCall | None = current.get(None)
        self.limit = limit or (self.call.fan_out_limit if self.call else DEFAULT_LIMIT)
        self._names: dict[str, int] = {}
        """The label of each item that `key=` named -> its index."""
        self._items = enumerate(items) if isinstance(items, Iterable) else aiter(items)
        self.size = len(items) if isinstance(items, Sized) else None
        if self.call is not None and self.size is not None:
            self.call.fanned_out(node, self.size)

    async def results(self, one: Callable[[int, str, In], Coroutine[Any, Any, Result]]) -> list[Result]:
        """The results of *one* for all items, in their order."""
        found: dict[int, Result] = {}
        await self.run(one, found.__setitem__)
        return [found[index] for index in range(len(found))]

    async def run(
        self, one: Callable[[int, str, In], Coroutine[Any, Any, Result]], take: Callable[[int, Result], object]
    ) -> None:
        """Await *one* for every item, each in the context variables of the flow, although items share workers."""
        call, base, items = self.call, copy_context(), self._items

        async def work(pulled: tuple[int, In] | None, follow: Callable[[], tuple[int, In] | None]) -> None:
            while pulled is not None:
                index, item = pulled
                label = str(index) if self.key is None else self._named(index, self.key(item))
                context = base.copy()
                watch = watched(one(index, label, item), context)
                if call is not None:
                    branch = call.branch(label, index, self.size)
                    branch.watch = (watch, watched_task())
                    context.run(current.set, branch)
                try:
                    take(index, await watch)
                except Suspended as suspended:
                    group.failed(suspended)
                pulled = follow()

        async with Group() as group:
            if isinstance(items, AsyncIterator):
                await self._feed(items, group, work)
            else:
                for pulled in islice(items, self.limit):
                    group.start(work(pulled, lambda: next(items, None)))

    async def _feed(
        self, items: AsyncIterator[In], group: Group, work: Callable[..., Coroutine[Any, Any, None]]
    ) -> None:
        """Take an async item when a worker is free, always in this task, since the iterator may hold cancel scopes."""
        free, index = anyio.Semaphore(self.limit), 0
        try:
            with group.feeding:
                await free.acquire()
                async for item in items:
                    group.start(work((index, item), free.release))
                    index += 1
                    await free.acquire()
        finally:
            if isinstance(items, AsyncGenerator):  # a generator that is not exhausted would outlive the block
                await items.aclose()

    async def output(self, _index: int, _label: str, item: In) -> Out:
        """The output for one item."""
        return await self.called(item)

    async def outcome(self, index: int, label: str, item: In) -> Outcome[Out]:
        value, error = None, None
        try:
            value = await self.called(item)
        except Exception as failure:  # noqa: BLE001 - an outcome holds any error
            error = failure
        except asyncio.CancelledError as cancelled:
            if is_cancelled(cancelled):
                raise
            error = self._lost(label)
            error.__cause__ = cancelled
        return Outcome(index, self._branch_key(label), error, value)

    def called(self, item: In) -> Awaitable[Out]:
        """Call the node or function for one item.

        Raises:
            DeclarationError: it returned nothing that can be awaited.
        """
        work = self.node(item)
        if not inspect.isawaitable(work):
            name = getattr(self.node, "__name__", repr(self.node))
            msg = (
                f"a fan-out runs a node or an async function, but `{name}` is neither: it returned {work!r}; "
                "write `async def`, or a comprehension over the items"
            )
            raise DeclarationError(msg)
        return work

    def _lost(self, label: str) -> StageError:
        if self.call is not None:
            return self.call.lost()
        key = self._branch_key(label)
        return StageError(f"`{key}` failed: {NOT_CANCELLED}", key=key, path="")

    def _branch_key(self, label: str) -> str:
        if self.call is not None:
            return current.get().branch_key(self.node, label)
        return f"{getattr(self.node, '__name__', 'branch')}[{label}]"

    def _named(self, index: int, name: object) -> str:
        """The label of an item that has a name.

        Raises:
            DeclarationError: another item of the fan-out has the same name.
        """
        label = _label(name)
        first = self._names.setdefault(label, index)
        if first != index:
            msg = (
                f"`key=` gives items {first} and {index} the same name, {str(name)!r}: a name stands for one item in "
                "the keys of its calls; make it unique, or leave `key=` out, which numbers the items"
            )
            raise DeclarationError(msg)
        return label


def _check(node: object, items: object, limit: object, key: object) -> None:
    """Refuse the most likely mistakes.

    Raises:
        DeclarationError: with what to write instead.
    """
    kind = type(items).__name__
    if not callable(node):
        close_calls(node if is_list(node) else [node])
        msg = (
            "a fan-out takes the node itself and then the items, as in `fan_out(self.node, items)`, "
            f"but {type(node).__name__} is not a node: do not call it"
        )
    elif inspect.iscoroutine(items):
        items.close()
        msg = "a fan-out runs over items, but got a coroutine: write `await` before the call that returns the items"
    elif limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        msg = f"limit={limit!r}: the number of branches that run at once must be a whole number from 1, as in `limit=8`"
    elif key is not None and (not callable(key) or inspect.iscoroutinefunction(key)):
        msg = f"key={key!r}: write a function from an item to its name, as in `key=lambda item: item.id`"
    elif isinstance(items, Mapping):
        msg = f"a fan-out runs over items, and a {kind} would give its keys alone: write `.items()` or `.values()`"
    elif isinstance(items, (str, bytes, bytearray, BaseModel)):
        parts = "its fields" if isinstance(items, BaseModel) else "one character or byte after another"
        msg = f"a fan-out runs over items, and {kind} would give {parts}: write `[value]` if it is one item"
    elif not isinstance(items, (Iterable, AsyncIterable)):
        msg = f"a fan-out runs over items, but {items!r} cannot be iterated"
    else:
        return
    raise DeclarationError(msg)


def close_calls(calls: Iterable[object]) -> None:
    """Close the calls among some values that are not awaited: Python would warn, and an error says the same."""
    for call in calls:
        if inspect.iscoroutine(call):
            call.close()


def _label(name: object) -> str:
    """A name without characters that have a meaning in keys; a model may have chosen it. Two names have two labels."""
    text = "".join("_" if char in "[]#" or not char.isprintable() else char for char in str(name))
    if text == str(name) and len(text) <= _LABEL_LENGTH:
        return text
    return f"{text[:_LABEL_LENGTH]}~{hashlib.sha256(str(name).encode(errors='surrogatepass')).hexdigest()[:8]}"
