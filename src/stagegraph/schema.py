"""The declared type of a node's input or output: checked, read and written in one place."""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from functools import cache, cached_property
from hashlib import blake2b
from typing import Annotated, Any, Literal, NewType, NotRequired, TypeVar, Union, cast, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ConfigDict, PydanticUserError, TypeAdapter
from pydantic_core import SchemaSerializer, to_json, to_jsonable_python
from typing_extensions import TypeAliasType, get_type_hints, is_typeddict

__all__ = ["Schema", "field_keys", "named_models", "ordered"]

_ALIASES = (TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType))  # the latter is what `type X = ...` makes
_BYTES = ConfigDict(arbitrary_types_allowed=True, ser_json_bytes="base64", val_json_bytes="base64")

Check = collections.abc.Callable[[object], bool]


class Schema:
    """One declared type: an instance check for every call, validation and JSON for the outer doors."""

    def __init__(self, type_: Any) -> None:
        self.type = type_
        self.accepts: Check = _check(type_)
        """Whether a value fits: an instance check that neither copies nor coerces."""

    @property
    def name(self) -> str:
        """How a person writes the type."""
        return type_name(self.type)

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        try:
            return TypeAdapter(self.type, config=_BYTES)
        except PydanticUserError:  # a model brings a configuration of its own
            return TypeAdapter(self.type)

    @cached_property
    def fingerprint(self) -> str:
        """The type's JSON schema as a hash; a type without one is known by its name."""
        return blake2b(self._described.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()

    @cached_property
    def _described(self) -> str:
        try:
            return json.dumps(self.adapter.json_schema(), sort_keys=True, default=str)
        except Exception:  # noqa: BLE001 - a user's type may fail in any way here
            return self.name

    def to_json(self, value: object) -> bytes:
        """JSON of a value that fits, the same in every process: a set comes in another order in each.

        Raises:
            PydanticSerializationError: the value, or something in it, cannot be written down.
        """
        if self._holds_sets:
            try:
                data = ordered(self.serializer.to_python(value, warnings=False))
            except TypeError:  # a set of models: as plain data they are in no set
                return self.serializer.to_json(value, warnings=False)
            return to_json(data, bytes_mode="base64")
        return self.serializer.to_json(value, warnings=False)

    @cached_property
    def _holds_sets(self) -> bool:
        return '"uniqueItems"' in self._described

    @cached_property
    def serializer(self) -> SchemaSerializer:
        return self.adapter.serializer  # pyright: ignore[reportReturnType] - a mock only until the type is complete

    def validate(self, raw: object) -> Any:
        """Turn outside data into the type; a value that fits already passes as it is.

        What stands in `Annotated` is known to validation alone, so such a type is always validated.
        """
        return raw if self.accepts(raw) and not self._annotated else self.adapter.validate_python(raw)

    @cached_property
    def _annotated(self) -> bool:
        return _mentions_annotated(self.type)

    def load(self, data: object) -> Any:
        """Read back what `dump` wrote."""
        return self.adapter.validate_json(json.dumps(data))

    def dump(self, value: object) -> Any:
        """Plain JSON data for a value; one that does not fit its type is written as it can be."""
        if self.accepts(value):
            return self.adapter.dump_python(value, mode="json", warnings=False)
        return to_jsonable_python(value, fallback=repr, serialize_unknown=True)


def field_keys(model: type[BaseModel]) -> dict[str, str]:
    """Field -> what the model wants it to be called when it is made."""
    found: dict[str, str] = {}
    for name, info in model.model_fields.items():
        alias = info.validation_alias or info.alias
        if isinstance(alias, AliasChoices):
            alias = next((choice for choice in alias.choices if isinstance(choice, str)), None)
        found[name] = alias if isinstance(alias, str) else name
    return found


def ordered(data: Any) -> Any:
    """Plain data with each set as a sorted list: a set comes in another order in each process."""
    if isinstance(data, (set, frozenset)):
        return sorted(map(ordered, cast("set[Any]", data)), key=repr)
    if isinstance(data, Mapping):
        return {key: ordered(value) for key, value in cast("Mapping[Any, Any]", data).items()}
    if isinstance(data, (list, tuple)):
        return [ordered(item) for item in cast("list[Any]", data)]
    return data


def type_name(type_: Any) -> str:
    if type_ is None or type_ is type(None):
        return "None"
    return type_.__name__ if isinstance(type_, type) and not get_args(type_) else str(type_).replace("typing.", "")


def _check(type_: Any) -> Check:
    origin = get_origin(type_)
    if origin is None:
        return _check_plain(type_)
    args = get_args(type_)
    if origin is Annotated:
        return _check(args[0])
    if origin in (Union, types.UnionType):
        options = [_check(arg) for arg in args]
        return lambda value: any(option(value) for option in options)
    if origin is Literal:
        return lambda value: any(value == arg and type(value) is type(arg) for arg in args)
    if origin in (list, set, frozenset, collections.abc.Sequence, collections.abc.Set) and len(args) == 1:
        item = _check(args[0])
        return lambda value: isinstance(value, origin) and all(map(item, cast("Any", value)))
    if origin in (dict, collections.abc.Mapping) and len(args) == 2:  # noqa: PLR2004 - a key and a value
        key, item = map(_check, args)
        return lambda value: (
            isinstance(value, origin) and all(key(k) and item(v) for k, v in cast("Any", value).items())
        )
    if origin is tuple:
        return _check_tuple(args)
    return lambda value: isinstance(value, origin) if isinstance(origin, type) else True


def _check_plain(type_: Any) -> Check:
    if type_ is None:
        return lambda value: value is None
    if isinstance(type_, _ALIASES):
        return _check_alias(type_)
    if isinstance(type_, NewType):
        return _check(type_.__supertype__)
    if isinstance(type_, TypeVar):
        return _check(type_.__bound__) if type_.__bound__ is not None else lambda _: True
    if type_ is float:  # PEP 484: an int is acceptable where a float is asked for
        return lambda value: isinstance(value, (float, int))
    if is_typeddict(type_):
        return _check_typeddict(type_)
    if type_ is Any or not isinstance(type_, type) or getattr(type_, "_is_protocol", False):
        return lambda _: True
    return lambda value: isinstance(value, type_)


def _check_alias(alias: Any) -> Check:
    @cache
    def check() -> Check:  # made when it is needed, since an alias may stand for a type that contains it
        return _check(alias.__value__)

    def accepts(value: object) -> bool:
        return check()(value)

    return accepts


def _check_typeddict(type_: Any) -> Check:
    @cache
    def entries() -> tuple[frozenset[str], dict[str, Check]]:
        required: frozenset[str] = type_.__required_keys__
        try:
            marked, hints = get_type_hints(type_, include_extras=True), get_type_hints(type_)
        except NameError:  # a type that is local to a function
            return frozenset(), {}
        optional = {name for name, hint in marked.items() if get_origin(hint) is NotRequired}
        return required - optional, {name: _check(hint) for name, hint in hints.items()}

    def accepts(value: object) -> bool:
        if not isinstance(value, dict):
            return False
        given = cast("dict[object, object]", value)
        required, checks = entries()
        return required <= given.keys() and all(fits(given[name]) for name, fits in checks.items() if name in given)

    return accepts


def _mentions_annotated(type_: Any) -> bool:
    return get_origin(type_) is Annotated or any(map(_mentions_annotated, get_args(type_)))


def _check_tuple(args: tuple[Any, ...]) -> Check:
    if len(args) == 2 and args[1] is Ellipsis:  # noqa: PLR2004 - tuple[X, ...]
        every = _check(args[0])
        return lambda value: isinstance(value, tuple) and all(map(every, cast("Any", value)))
    items = [_check(arg) for arg in args]
    return lambda value: (
        isinstance(value, tuple)
        and len(cast("Any", value)) == len(items)
        and all(item(v) for item, v in zip(items, cast("Any", value), strict=True))
    )


def named_models(type_: Any) -> set[type]:
    """The models and dataclasses that a type is or contains, however deep."""
    found: set[type] = set()
    pending: list[Any] = [type_]
    while pending:
        current = pending.pop()
        pending.extend(get_args(current))
        if not isinstance(current, type) or get_args(current) or current in found:
            continue
        fields = getattr(current, "model_fields", None)
        if fields is not None:
            found.add(current)
            pending.extend(field.annotation for field in fields.values())
        elif dataclasses.is_dataclass(current):
            found.add(current)
            pending.extend(field.type for field in dataclasses.fields(current))
    return found
