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

    `1` is neither `True` nor `1.0`, not a number is not a number, and fields that JSON leaves out count as well.
    """
    cls = cast("type[Any]", type(value))
    if cls is not type(again):
        return False
    if cls in _SIMPLE:
        return bool(value == again)
    if value is again:
        return True
    if isinstance(value, (float, complex, Decimal)):
        return repr(value) == repr(again)
    if isinstance(value, (datetime, time)):
        return _same_time(value, again)
    if is_set(value):
        known = {one: one for one in again}
        return len(value) == len(again) and all(same(one, known.get(one, _ABSENT)) for one in value)
    if _goes_inside(value):
        parts, others = _parts(value), _parts(again)
        return len(parts) == len(others) and all(map(same, parts, others))
    return bool(value == again) and same(getattr(value, "__dict__", None), getattr(again, "__dict__", None))


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


def _same_time(value: Any, again: Any) -> bool:
    """Whether two moments are equal as they are written: an equal moment in another time zone is another one."""
    zone, other = value.tzinfo, again.tzinfo
    fixed = isinstance(zone, (timezone, TzInfo)) and isinstance(other, (timezone, TzInfo))
    in_one = value.utcoffset() == again.utcoffset() if fixed else zone == other and type(zone) is type(other)
    return in_one and value.replace(tzinfo=None) == again.replace(tzinfo=None) and value.fold == again.fold
