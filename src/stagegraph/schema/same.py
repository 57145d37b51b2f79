"""Whether a value that was read back is the value that was recorded."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Collection, Iterator
from datetime import datetime, time, timezone
from decimal import Decimal
from functools import cached_property
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import TzInfo

from .types import is_mapping, is_sequence, is_set

_ABSENT = object()
_SIMPLE = {str, int, bool, bytes, type(None)}


def same(value: Any, again: Any) -> bool:
    """Whether two values are the same in every part: of one class at any depth, equal, in one order.

    `1` is neither `True` nor `1.0`, not a number is not a number, an equal moment in another time zone is another one,
    and fields that JSON leaves out count as well.
    """
    return _compared(value) == _compared(again)


def _compared(value: Any) -> tuple[Any, ...]:
    """What is equal for the same values only."""
    cls = cast("type[Any]", type(value))
    if cls in _SIMPLE:
        return cls, value
    if isinstance(value, (float, complex, Decimal)):
        return cls, repr(value)
    if isinstance(value, (datetime, time)):
        zone = value.utcoffset() if isinstance(value.tzinfo, (timezone, TzInfo)) else value.tzinfo
        return cls, value.replace(tzinfo=None), value.fold, type(zone), zone
    if is_set(value):
        return cls, frozenset(map(_compared, value))
    if _goes_inside(value):
        return cls, *map(_compared, _parts(value))
    return cls, value, _compared(getattr(value, "__dict__", None))


def lazy(value: Any) -> bool:
    """Whether a value, or a part of it, can be gone through only once: who writes it down has used it up."""
    pending, seen = [value], set[int]()
    while pending:
        one = pending.pop()
        if isinstance(one, Iterator):
            return True
        if id(one) not in seen and _goes_inside(one):
            seen.add(id(one))
            pending += [part for part in _parts(one) if type(part) not in _SIMPLE]
    return False


def _goes_inside(value: object) -> bool:
    """Whether a value is nothing but its class and its parts."""
    known = isinstance(value, (BaseModel, dict, list, tuple, set, frozenset, deque)) or dataclasses.is_dataclass(value)
    return known and not isinstance(value, type)


def _parts(value: Any) -> list[Any]:
    """All that an instance of its class may differ in, in order."""
    whole, cls = value, cast("Any", type(value))
    state: dict[str, Any] = getattr(whole, "__dict__", {})
    names: Collection[str] = ()
    parts: list[Any]
    if is_mapping(value):
        parts = [*value, *value.values(), getattr(whole, "default_factory", None)]
    elif is_sequence(value) or is_set(value) or isinstance(value, deque):
        parts = [*value, getattr(whole, "maxlen", None)]
    elif isinstance(value, BaseModel):
        names = cls.__pydantic_fields__
        parts = [value.__pydantic_extra__, value.__pydantic_private__, *(state.get(name, _ABSENT) for name in names)]
    else:
        names = [field.name for field in dataclasses.fields(value)]
        parts = [getattr(whole, name, _ABSENT) for name in names]
    for name in sorted(state) if len(state) > len(names) else ():
        if name not in names and name != "__orig_class__" and not isinstance(getattr(cls, name, 0), cached_property):
            parts += [name, state[name]]
    return parts
