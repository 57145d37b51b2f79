"""The real data flow of a run: an object that came out of one call and went into another is an edge."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from enum import Enum
from types import NoneType
from typing import Any, cast

from pydantic import BaseModel

from .call import Call, key_order

__all__ = ["follow_values"]

_LONG = 64
"""Shorter texts may be one object in many places (JSON parsers and Python share them), so they prove nothing."""
_TICK = 2e-6
"""Calls are dated in whole microseconds, so one that followed at once may seem to begin before the other ended."""


def follow_values(root: Call) -> list[tuple[str, str]]:
    """Pairs of keys, from the call that made a value to the leaf call that was given it, in key order.

    An object is followed by identity through models, dataclasses and containers. Where a call passed on what another
    call had made inside an object of its own, the edge comes from the call that made the outermost object.
    """
    calls = [call for call in root.walk() if call is not root or not call.children]
    makers: dict[int, list[Call]] = {}
    for call in calls:
        if call.output is not None:
            for part in _traceable_parts(call.output):
                makers.setdefault(id(part), []).append(call)
    edges = {(maker.key, call.key) for call in calls if call.kind != "graph" for maker in _makers_of(call, makers)}
    return sorted(edges, key=lambda edge: (key_order(edge[0]), key_order(edge[1])))


def _makers_of(call: Call, makers: Mapping[int, list[Call]]) -> Iterator[Call]:
    pending: list[Any] = [call.input]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        maker = _latest(makers.get(id(value), ()), value, call)
        if maker is None:
            pending.extend(_parts(value))
        elif maker.kind == "graph" and (inside := list(_leaf_makers(value, makers, call))):
            yield from inside
        else:
            yield maker


def _leaf_makers(value: object, makers: Mapping[int, list[Call]], call: Call) -> Iterator[Call]:
    """The leaf calls behind a value that a graph put together."""
    for part in _traceable_parts(value):
        leaves = [maker for maker in makers.get(id(part), ()) if maker.kind != "graph"]
        if (maker := _latest(leaves, part, call)) is not None:
            yield maker


def _latest(candidates: list[Call] | tuple[()], value: object, call: Call) -> Call | None:
    """Who made the value last before the call began; making it whole goes before having it as a part."""
    before = [maker for maker in candidates if maker is not call and _ended(maker) <= call.started.timestamp() + _TICK]
    leaves = [maker for maker in before if maker.kind != "graph"]
    whole = [maker for maker in leaves if maker.output is value]
    options = whole or leaves or before
    return max(options, key=_ended) if options else None


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
    if isinstance(value, (BaseModel, Mapping, list, tuple, set, frozenset)) or dataclasses.is_dataclass(value):
        return bool(cast("Any", value))
    # Numbers, enum members, `None` and the like are one object wherever they appear.
    return whole and not isinstance(value, (int, float, complex, type, Enum, NoneType))


def _parts(value: object) -> list[Any]:
    if isinstance(value, BaseModel):
        return list(vars(value).values()) + list((value.model_extra or {}).values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return list(cast("Mapping[Any, Any]", value).values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(cast("list[Any]", value))
    return []
