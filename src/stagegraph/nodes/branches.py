"""The branches of one fan-out: a bounded number of workers takes the items, and each item has an outcome."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sized,
)
from contextvars import copy_context
from dataclasses import dataclass
from inspect import isawaitable
from itertools import islice
from typing import Any, Generic, TypeVar, cast

import anyio
from pydantic import BaseModel

from stagegraph.schema.errors import DeclarationError, StageError

from .current import OpenCall, Suspended, current
from .group import NOT_CANCELLED, Group, is_cancelled, watched

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
        self._names: dict[str, int] = {}
        """The label of each item that `key=` named -> its index."""
        _reject_unlikely(items)
        if isinstance(items, Iterable):
            self._items: Iterator[tuple[int, In]] | None = enumerate(items)
        elif isinstance(items, AsyncIterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            self._items = None
            self._async_items = aiter(items)
        else:
            msg = f"a fan-out runs over items, but {items!r} cannot be iterated"
            raise DeclarationError(msg)
        self.size = len(items) if isinstance(items, Sized) else None
        if self.call is not None and self.size is not None:
            self.call.fanned_out(node, self.size)

    async def run(self, one: Callable[[int, str, In], Coroutine[Any, Any, None]]) -> None:
        """Await *one* for every item, each in the context variables of the flow, although items share workers."""
        call, base, numbered = self.call, copy_context(), self._items

        async def work(pulled: tuple[int, In] | None, follow: Callable[[], tuple[int, In] | None]) -> None:
            while pulled is not None:
                index, item = pulled
                label = str(index) if self.key is None else self._named(index, self.key(item))
                context = base.copy()
                watch = watched(one(index, label, item), context)
                if call is not None:
                    branch = call.branch(label, index, self.size)
                    branch.watch = watch
                    context.run(current.set, branch)
                try:
                    await watch
                except Suspended as suspended:
                    group.failed(suspended)
                pulled = follow()

        async with Group() as group:
            if numbered is None:
                await self._feed(group, work)
            else:
                for pulled in islice(numbered, self.limit):
                    group.start(work(pulled, lambda: next(numbered, None)))

    async def _feed(self, group: Group, work: Callable[..., Coroutine[Any, Any, None]]) -> None:
        """Take an async item when a worker is free, always in this task, since the iterator may hold cancel scopes."""
        free, items, index = anyio.Semaphore(self.limit), self._async_items, 0
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
        if not isawaitable(work):
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


def _reject_unlikely(items: object) -> None:
    """Refuse what can be iterated, but is one value."""
    kind = type(items).__name__
    if isinstance(items, Mapping):
        msg = f"a fan-out runs over items, and a {kind} would give its keys alone: write `.items()` or `.values()`"
    elif isinstance(items, (str, bytes, bytearray, BaseModel)):
        parts = "its fields" if isinstance(items, BaseModel) else "one character or byte after another"
        msg = f"a fan-out runs over items, and {kind} would give {parts}: write `[value]` if it is one item"
    else:
        return
    raise DeclarationError(msg)


def _label(name: object) -> str:
    """A name without characters that have a meaning in keys; a model may have chosen it. Two names have two labels."""
    text = "".join("_" if char in "[]#" or not char.isprintable() else char for char in str(name))
    if text == str(name) and len(text) <= _LABEL_LENGTH:
        return text
    return f"{text[:_LABEL_LENGTH]}~{hashlib.sha256(str(name).encode(errors='surrogatepass')).hexdigest()[:8]}"
