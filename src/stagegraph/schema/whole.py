"""JSON that says what each part of a value is, for values that their plain JSON does not determine.

Lists, texts, finite numbers and the like stand for themselves. Everything else is an object with one key, the name of
its class after a `$`. A name leads to a class only if the declared type mentions that class, or one that it is derived
from: nothing is imported, and every object is made by validation. Secrets, and parts that a type leaves out or writes
in a way of its own, are not written in this form.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import BaseModel, RootModel

from .types import classes_in, is_dict, is_list, is_set

_SERIES: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
_MAPPINGS: dict[str, type] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
_PLAIN: dict[str, type] = {
    **{one.__name__: one for one in (bytes, complex, float, date, datetime, time, timedelta, Decimal, UUID)},
    "Path": type(Path()),
}
"""Classes whose values are determined by their plain JSON."""
_NAMES = {one: name for name, one in {**_SERIES, **_MAPPINGS, **_PLAIN}.items()}


class Whole:
    """The form for values of one declared type; *schema* makes the `Schema` of each class in it."""

    def __init__(self, declared: Any, schema: Callable[[type], Any]) -> None:
        self._declared = declared
        self._of = cache(schema)
        self._classes: dict[str, type | None] = {}
        """Those that the declared type mentions, by name; a name that two of them share leads to none."""

    def write(self, value: object) -> str:
        """The JSON text.

        Raises:
            ValueError: a part of the value is of a class that the declared type does not mention, or a secret.
        """
        if self._declared.traits.own_form and not isinstance(self._declared.type, type):
            msg = "the type leaves a part out, or writes it in a way of its own"
            raise ValueError(msg)
        return json.dumps(self._written(value), allow_nan=False, separators=(",", ":"))

    def read(self, text: str) -> Any:
        """The value; a text that was not written by `write` for these types raises any exception."""
        return self._declared.validate(self._read(json.loads(text)))

    def _written(self, value: Any) -> Any:
        cls = cast("type[Any]", type(value))
        if cls in {str, int, bool, type(None)} or (cls is float and math.isfinite(value)):
            return value
        if cls is list:
            return list(map(self._written, value))
        if cls is dict and all(type(key) is str and key[:1] != "$" for key in value):
            return self._pairs(value.items())
        if cls is datetime and isinstance(value.tzinfo, ZoneInfo):
            return {"$zoned": [value.replace(tzinfo=None).isoformat(), value.tzinfo.key, value.fold]}
        name = _NAMES.get(cls)
        return {f"${name}": self._builtin(name, value)} if name else {f"${self._name(cls)}": self._object(cls, value)}

    def _pairs(self, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        return {name: self._written(one) for name, one in pairs}

    def _builtin(self, name: str, value: Any) -> Any:
        if name in _SERIES:
            items = list(map(self._written, value))
            return sorted(items, key=json.dumps) if is_set(value) else items
        if name in _MAPPINGS:
            return [[self._written(key), self._written(one)] for key, one in value.items()]
        return json.loads(self._of(_PLAIN[name]).record(value))

    def _object(self, cls: type, value: Any) -> Any:
        if isinstance(value, Enum):
            return value.name
        if self._of(cls).traits.own_form:
            return json.loads(self._of(cls).record(value))
        if isinstance(value, RootModel):
            return [self._written(cast("Any", value.root))]  # pyright: ignore[reportUnknownMemberType]
        if isinstance(value, BaseModel):
            fields = [(name, getattr(value, name)) for name in type(value).model_fields if hasattr(value, name)]
            return self._pairs([*fields, *(value.model_extra or {}).items()])
        if dataclasses.is_dataclass(value):
            return self._pairs((one.name, getattr(value, one.name)) for one in dataclasses.fields(value) if one.init)
        return list(map(self._written, value))  # a named tuple

    def _read(self, data: Any) -> Any:
        if is_list(data):
            return list(map(self._read, data))
        if not is_dict(data):
            return data
        tag = next(iter(data), "")
        if tag[:1] != "$":
            return {key: self._read(one) for key, one in data.items()}
        name, inside = tag[1:], data[tag]
        if not name:  # the plain record of the declared type
            return self._declared.recall(json.dumps(inside))
        if name == "zoned":
            moment, key, fold = inside
            return datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo(key), fold=fold)
        if name in _SERIES:
            return _SERIES[name](map(self._read, inside))
        if name in _MAPPINGS:
            return _MAPPINGS[name]({self._read(key): self._read(one) for key, one in inside})
        return self._read_object(_PLAIN.get(name) or self._class(name), inside)

    def _read_object(self, cls: type, data: Any) -> Any:
        plain = self._of(cls)
        if issubclass(cls, Enum):
            return cls[data]
        if cls in _NAMES or plain.traits.own_form:
            return plain.recall(json.dumps(data))
        if is_dict(data):
            defaults = _defaults(cls)
            given = {name: self._read(one) for name, one in data.items() if not self._is_written(defaults, name, one)}
            made = plain.build(given)
            for name in given.keys() & defaults:
                if getattr(made, name) == given[name]:  # `1` where validation makes `1.0`, and the class does not
                    object.__setattr__(made, name, given[name])
            return made
        items = list(map(self._read, data))
        if issubclass(cls, RootModel):
            return plain.build(items[0])
        made = plain.build(items)
        return cast("Any", cls)._make(items) if made == tuple(items) else made  # a named tuple does not either

    def _is_written(self, defaults: dict[str, Any], name: str, data: Any) -> bool:
        """Whether a field has its default, which need not be what validation accepts: `comment: str = None`."""
        with suppress(ValueError):
            return name in defaults and json.dumps(self._written(defaults[name])) == json.dumps(data)
        return False

    def _name(self, cls: type) -> str:
        name = _name_of(cls)
        if self._class(name) is not cls:
            msg = f"{cls.__name__} is not the only class of its name here"
            raise ValueError(msg)
        return name

    def _class(self, name: str) -> type:
        if name not in self._classes:
            self._classes = {}  # again, since a subclass may be new
            for one in classes_in(self._declared.type, derived=True):
                self._classes[_name_of(one)] = None if _name_of(one) in self._classes else one
        found = self._classes.get(name)
        if found is None:
            msg = f"{self._declared.type} does not mention {name}"
            raise ValueError(msg)
        return found


def _defaults(cls: Any) -> dict[str, Any]:
    """The fields of a class with their defaults, or something that is no value where they have none."""
    if issubclass(cls, BaseModel):
        return {name: field.default for name, field in cls.model_fields.items()}
    return {field.name: field.default for field in dataclasses.fields(cls)}


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
