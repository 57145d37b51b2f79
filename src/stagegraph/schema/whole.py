"""JSON that says what each part of a value is, for values that their plain JSON does not determine.

A list, a text, a finite number and the like stand for themselves; everything else is an object with one key, the name of
its class after a `$`. A name leads to a class only if the declared type mentions that class, or one that it is derived
from: nothing is imported, and every object is made by validation. Secrets, and what a type leaves out or writes in a way
of its own, are not written in this form.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args, get_origin
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import BaseModel, RootModel
from typing_extensions import TypeAliasType, get_type_hints

from .types import is_dict, is_list, is_mapping, is_set

_SERIES: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
_MAPPINGS: dict[str, type] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
_PLAIN: dict[str, type] = {
    **{one.__name__: one for one in (bytes, complex, date, datetime, time, timedelta, Decimal, UUID)},
    "Path": type(Path()),
}
"""Classes whose values are determined by their own plain JSON."""
_NAMES = {one: name for name, one in {**_SERIES, **_MAPPINGS, **_PLAIN}.items()}
_NOT_OURS = sys.stdlib_module_names | {"pydantic"}
"""Of a class of these packages, the subclasses are not what somebody means who declares it."""


class Plain(Protocol):
    """A class and the plain JSON of its values (`Schema`)."""

    type: Any

    def record(self, value: object) -> bytes: ...
    def recall(self, data: object) -> Any: ...
    def validate(self, raw: object) -> Any: ...
    def build(self, fields: object) -> Any:
        """Validate the fields of an instance, by name, each a value already."""
        ...

    @property
    def own_form(self) -> bool:
        """Whether it leaves a part of a value out, or writes it in a way of its own, as a secret."""
        ...


class Whole:
    """The form for values of one declared type; *plain* gives the same for each class in it."""

    def __init__(self, declared: Plain, plain: Callable[[type], Plain]) -> None:
        self._declared = declared
        self._plain = plain
        self._known: dict[type, Plain] = {}
        self._classes: dict[str, type | None] = {}

    def write(self, value: object) -> str:
        """The JSON text.

        Raises:
            ValueError: a part of the value is of a class that the declared type does not mention, or a secret.
        """
        if self._declared.own_form:
            msg = "the type leaves a part out, or writes it in a way of its own"
            raise ValueError(msg)
        return json.dumps(self._written(value), allow_nan=False)

    def read(self, text: str) -> Any:
        """The value.

        Raises:
            Exception: the text was not written by `write`, or the types have changed; anything a validator may raise.
        """
        return self._declared.validate(self._read(json.loads(text)))

    def _written(self, value: Any) -> Any:
        cls = type(value)
        if cls in {str, int, bool, type(None)} or (cls is float and math.isfinite(value)):
            return value
        if cls is list:
            return list(map(self._written, value))
        if cls is dict and all(type(key) is str and key[:1] != "$" for key in value):
            return {key: self._written(one) for key, one in value.items()}
        name, data = self._tagged(cls, value)
        return {f"${name}": data}

    def _tagged(self, cls: type, value: Any) -> tuple[str, Any]:
        if cls is float:
            return "float", str(value)
        name = _NAMES.get(cls)
        if name in _SERIES:
            items = list(map(self._written, value))
            return name, sorted(items, key=json.dumps) if is_set(value) else items
        if name in _MAPPINGS:
            return name, [[self._written(key), self._written(one)] for key, one in value.items()]
        if cls is datetime and isinstance(value.tzinfo, ZoneInfo) and value.tzinfo.key:
            return "zoned", [value.replace(tzinfo=None).isoformat(), value.tzinfo.key, value.fold]
        if name is not None:
            return name, json.loads(self._of(cls).record(value))
        name, plain = self._name(cls), self._of(cls)
        if isinstance(value, Enum):
            return name, value.name
        if plain.own_form:
            return name, json.loads(plain.record(value))
        if isinstance(value, RootModel):
            return name, [self._written(value.root)]
        if isinstance(value, BaseModel):
            fields = {field: getattr(value, field) for field in cls.model_fields if hasattr(value, field)}
            return name, self._pairs({**fields, **(value.model_extra or {})})
        if dataclasses.is_dataclass(value):
            fields = [one.name for one in dataclasses.fields(value) if one.init]
            return name, self._pairs({field: getattr(value, field) for field in fields})
        if isinstance(value, tuple):  # a named one
            return name, list(map(self._written, value))
        return name, json.loads(plain.record(value))

    def _pairs(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._written(one) for name, one in fields.items()}

    def _read(self, data: Any) -> Any:
        if is_list(data):
            return list(map(self._read, data))
        if not is_dict(data):
            return data
        tag = next(iter(data), "")
        if tag[:1] != "$":
            return {key: self._read(one) for key, one in data.items()}
        return self._untagged(tag[1:], data[tag])

    def _untagged(self, name: str, data: Any) -> Any:
        if name == "float":
            return float(data)
        if name in _SERIES:
            return _SERIES[name](map(self._read, data))
        if name in _MAPPINGS:
            return _MAPPINGS[name]({self._read(key): self._read(one) for key, one in data})
        if name == "zoned":
            moment, key, fold = data
            return datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo(key), fold=fold)
        if name in _PLAIN:
            return self._of(_PLAIN[name]).recall(data)
        cls = self._class(name)
        plain = self._of(cls)
        if issubclass(cls, Enum):
            return cls[data]
        if plain.own_form:
            return plain.recall(data)
        if issubclass(cls, RootModel):
            return plain.build(self._read(data[0]))
        if is_dict(data):
            return plain.build({field: self._read(one) for field, one in data.items()})
        return plain.build(self._read(data)) if is_list(data) else plain.recall(data)

    def _of(self, cls: type) -> Plain:
        if cls not in self._known:
            self._known[cls] = self._plain(cls)
        return self._known[cls]

    def _name(self, cls: type) -> str:
        name = _name_of(cls)
        if self._class(name) is not cls:
            msg = f"{cls.__name__} is not the only class of its name here"
            raise ValueError(msg)
        return name

    def _class(self, name: str) -> type:
        if name not in self._classes:
            self._classes = _reachable(self._declared.type)  # again, since a subclass may be new
        found = self._classes.get(name)
        if found is None:
            msg = f"{self._declared.type} does not mention {name}"
            raise ValueError(msg)
        return found


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _reachable(type_: Any) -> dict[str, type | None]:
    """Name -> class for every class that a declared type mentions at any depth, and what is derived from those.

    A name that two classes share leads to none.
    """
    found: dict[type, None] = {}
    names: dict[str, type | None] = {}
    pending: list[Any] = [type_]
    seen: dict[int, Any] = {}
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        pending += one if is_list(one) else [get_origin(one), *get_args(one), *_mentioned(one)]
        if isinstance(one, Enum):
            pending.append(type(one))  # an option of a `Literal`
        if isinstance(one, type) and not get_args(one):
            found[one] = None
    for one in found:
        name = _name_of(one)
        names[name] = None if name in names else one
    return names


def _mentioned(one: Any) -> list[Any]:
    """What a type leads to besides its own arguments."""
    if isinstance(one, TypeVar):
        return [one.__bound__, *one.__constraints__, getattr(one, "__default__", None)]
    if not isinstance(one, type) or (one is not BaseModel and one.__module__.partition(".")[0] in _NOT_OURS):
        return [getattr(one, "__supertype__", None), getattr(one, "__value__", None)]
    if issubclass(one, BaseModel):
        generic = getattr(one, "__pydantic_generic_metadata__", {"origin": None, "args": ()})  # `BaseModel` has none
        inside = [generic["origin"], *generic["args"], *(field.annotation for field in one.model_fields.values())]
    else:
        try:
            inside = list(get_type_hints(one, include_extras=True).values())
        except (NameError, TypeError):  # a type that is local to a function
            inside = []
    return inside + type.__subclasses__(one)
