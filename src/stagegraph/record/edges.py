"""The real data flow of a run: an object that came out of one call and went into another is an edge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import Enum
from types import NoneType
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from stagegraph.data.call import Call, key_order
from stagegraph.schema.types import is_mapping, is_sequence, is_set

_LONG = 64
"""Shorter texts prove nothing: JSON parsers and Python use one object for equal texts."""
_TICK = 2e-6
"""Calls are dated in whole microseconds: one that follows at once may seem to begin before the other ended."""


def follow_values(root: Call) -> list[tuple[str, str]]:
    """Pairs of keys, from the call that made a value to the leaf call that was given it, in key order.

    An object is followed by identity through models, dataclasses and containers. Where a call returned an object with
    the object of another call inside, the edge comes from the call that made the outer object.
    """
    return _Flow(root, id).edges()


def follow_contents(root: Call) -> list[tuple[str, str]]:
    """The same for a run from a journal, where an object is known by its content alone."""
    return _Flow(root, _content).edges()


def makers_of_output(root: Call) -> list[str]:
    """Keys of the leaf calls whose output is the output of the whole run, or a part of it, in key order."""
    ended = root.started + timedelta(seconds=root.duration)
    taker = dataclasses.replace(root, input=root.output, started=ended)
    for mark in (id, _content):  # values from a journal are known by their content alone
        found = {maker.key for maker in _Flow(root, mark).makers_of(taker)}
        if found:
            return sorted(found, key=key_order)
    return []


def _content(value: object) -> int:
    try:
        content: object = to_json(value, fallback=repr, serialize_unknown=True, bytes_mode="base64")
    except ValueError:  # half a surrogate pair
        content = repr(value)
    return hash((type(value).__name__, content))


class _Flow:
    """Which call made which value; *mark* identifies a value by identity or by content."""

    def __init__(self, root: Call, mark: Callable[[object], int]) -> None:
        self._mark = mark
        self._calls = [call for call in root.walk() if call is not root or not call.children]
        self._makers: dict[int, list[Call]] = {}
        for call in self._calls:
            if call.output is not None:
                for part in _traceable_parts(call.output):
                    self._makers.setdefault(mark(part), []).append(call)

    def edges(self) -> list[tuple[str, str]]:
        leaves = [call for call in self._calls if call.kind != "graph"]
        edges = {(maker.key, call.key) for call in leaves for maker in self.makers_of(call)}
        return sorted(edges, key=lambda edge: (key_order(edge[0]), key_order(edge[1])))

    def makers_of(self, call: Call) -> Iterator[Call]:
        """The calls that made the input of a call, or parts of it."""
        pending: list[Any] = [call.input]
        seen: set[int] = set()
        while pending:
            value = pending.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            maker = self._latest(value, call)
            if maker is None:
                pending.extend(_parts(value))
            elif maker.kind == "graph" and (inside := list(self._leaf_makers(value, call))):
                yield from inside
            else:
                yield maker

    def _leaf_makers(self, value: object, call: Call) -> Iterator[Call]:
        """The leaf calls that made the parts of a graph's output."""
        for part in _traceable_parts(value):
            maker = self._latest(part, call, leaves_only=True)
            if maker is not None:
                yield maker

    def _latest(self, value: object, call: Call, *, leaves_only: bool = False) -> Call | None:
        """The last call that made a value before *call* began; first one that made it as a whole, then as a part."""
        if not _followed(value, whole=True):
            return None
        mark = self._mark(value)
        made = [maker for maker in self._makers.get(mark, ()) if maker is not call and _before(maker, call)]
        leaves = [maker for maker in made if maker.kind != "graph"]
        whole = [maker for maker in leaves if self._mark(maker.output) == mark]
        options = whole or leaves or ([] if leaves_only else made)
        return max(options, key=_ended) if options else None


def _before(maker: Call, call: Call) -> bool:
    return _ended(maker) <= call.started.timestamp() + _TICK


def _ended(call: Call) -> float:
    return call.started.timestamp() + call.duration


def _traceable_parts(value: object) -> Iterator[object]:
    pending: list[object] = [value]
    seen: set[int] = set()
    while pending:
        part = pending.pop()
        if id(part) in seen or not _followed(part, whole=part is value):
            continue
        seen.add(id(part))
        yield part
        pending.extend(_parts(part))


def _followed(value: object, *, whole: bool) -> bool:
    if isinstance(value, (str, bytes)):
        return len(value) >= _LONG or (whole and len(value) > 1)
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        return not isinstance(value, type)
    if is_mapping(value) or is_sequence(value) or is_set(value):
        return len(value) > 0
    # Numbers, enum members, `None` and the like are the same object everywhere.
    return whole and not isinstance(value, (int, float, complex, type, Enum, NoneType))


def _parts(value: object) -> list[Any]:
    if isinstance(value, BaseModel):
        return list(vars(value).values()) + list((value.model_extra or {}).values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if is_mapping(value):
        return list(value.values())
    return list(value) if is_sequence(value) or is_set(value) else []
