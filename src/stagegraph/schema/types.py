"""Declared types: the instance check of one, and its name in messages."""

from __future__ import annotations

import collections.abc
import dataclasses
import sys
import types
import typing
from contextlib import suppress
from enum import Enum
from functools import cache
from typing import Annotated, Any, ForwardRef, Literal, NewType, NotRequired, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from typing_extensions import TypeAliasType, TypeIs, get_type_hints, is_typeddict

_ALIASES = (TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType))  # the latter is what `type X = ...` makes
_COLLECTIONS = (list, set, frozenset, collections.abc.Sequence, collections.abc.Set)
_MAPPINGS = (dict, collections.abc.Mapping)

_NOT_OURS = sys.stdlib_module_names | {"pydantic"}

Check = collections.abc.Callable[[Any], bool]

_is: collections.abc.Callable[[Any, Any], bool] = isinstance
"""`isinstance` for values whose items stay `Any`: a type checker would narrow them to a container of unknown items."""


def is_dict(value: object) -> TypeIs[dict[str, Any]]:
    """Whether data from JSON or YAML is an object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeIs[list[Any]]:
    """Whether data is a list, with items of any type."""
    return isinstance(value, list)


def is_mapping(value: object) -> TypeIs[collections.abc.Mapping[Any, Any]]:
    """Whether data is a mapping, with keys and values of any type."""
    return isinstance(value, collections.abc.Mapping)


def is_sequence(value: object) -> TypeIs[list[Any] | tuple[Any, ...]]:
    """Whether data is a list or a tuple, with items of any type."""
    return isinstance(value, (list, tuple))


def is_set(value: object) -> TypeIs[set[Any] | frozenset[Any]]:
    """Whether data is a set, with items of any type."""
    return isinstance(value, (set, frozenset))


def check(type_: Any) -> Check:
    """A function that checks whether a value is an instance of a type; it neither copies nor coerces."""
    origin: Any = get_origin(type_)
    if origin is None:
        return _check_plain(type_)
    args = get_args(type_)
    if origin is Annotated:
        return check(args[0])
    if origin in (Union, types.UnionType):
        options = [check(arg) for arg in args]
        return lambda value: any(option(value) for option in options)
    if origin is Literal:
        return lambda value: any(value == arg and type(value) is type(arg) for arg in args)
    if origin is tuple:
        return _check_tuple(args)
    if origin in _COLLECTIONS and len(args) == 1:
        every = _check_every(args[0])
        return lambda value: _is(value, origin) and every(value)
    if origin in _MAPPINGS and len(args) == 2:  # noqa: PLR2004 - a key and a value
        keys, items = map(_check_every, args)
        return lambda value: _is(value, origin) and keys(value) and items(value.values())
    return lambda value: isinstance(value, origin) if isinstance(origin, type) else True


def _check_every(type_: Any) -> Check:
    """A check of several values, most of which are of one class."""
    one, exact = check(type_), {type_} if isinstance(type_, type) else set[type]()
    return lambda values: set(map(type, values)) == exact or all(map(one, values))


def _check_plain(type_: Any) -> Check:
    if isinstance(type_, _ALIASES):
        return _check_alias(type_)
    if isinstance(type_, NewType):
        return check(type_.__supertype__)
    if isinstance(type_, TypeVar):
        return check(type_.__bound__) if type_.__bound__ is not None else _anything
    if type_ is None:
        return lambda value: value is None
    if type_ is float:  # PEP 484: an int is acceptable where a float is declared
        return lambda value: isinstance(value, (float, int))
    if is_typeddict(type_):
        return _check_typeddict(type_)
    return _check_class(type_)


def _check_class(type_: Any) -> Check:
    if type_ is Any or not isinstance(type_, type) or getattr(type_, "_is_protocol", False):
        return _anything
    if issubclass(type_, BaseModel) and type_ is not BaseModel and type_.__pydantic_generic_metadata__["origin"]:
        return _check_generic(type_)
    if _is_structured_dict(type_):
        return lambda value: isinstance(value, dict)
    return lambda value: isinstance(value, type_)


def _anything(_value: object) -> bool:
    return True


def _is_structured_dict(type_: Any) -> bool:
    """Whether it is a `StructuredDict(...)` of Pydantic AI: a class that stands for plain dicts with a JSON schema."""
    return hasattr(type_, "__is_model_like__") and isinstance(type_, type) and issubclass(type_, dict)


def _check_generic(type_: type[BaseModel]) -> Check:
    """A `Box[int]`: also a plain `Box(...)` whose fields hold values of the declared types."""
    origin: Any = type_.__pydantic_generic_metadata__["origin"]
    fields = cache(lambda: {name: check(field.annotation) for name, field in type_.model_fields.items()})

    def accepts(value: object) -> bool:
        if isinstance(value, type_):
            return True
        return type(value) is origin and all(fits(getattr(value, name)) for name, fits in fields().items())

    return accepts


def _check_alias(alias: Any) -> Check:
    made = cache(lambda: check(alias.__value__))  # at the first use, since an alias may contain itself

    def accepts(value: object) -> bool:
        return made()(value)

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
        return required - optional, {name: check(hint) for name, hint in hints.items()}

    def accepts(value: Any) -> bool:
        required, checks = entries()
        if not _is(value, dict) or not required <= value.keys():
            return False
        return all(fits(value[name]) for name, fits in checks.items() if name in value)

    return accepts


def _check_tuple(args: tuple[Any, ...]) -> Check:
    if len(args) == 2 and args[1] is Ellipsis:  # noqa: PLR2004 - tuple[X, ...]
        every = _check_every(args[0])
        return lambda value: _is(value, tuple) and every(value)
    items = [check(arg) for arg in args]
    return lambda value: (
        _is(value, tuple) and len(value) == len(items) and all(item(v) for item, v in zip(items, value, strict=True))
    )


def type_name(type_: Any) -> str:
    """A type as it is written in code, without modules and without what `Annotated` adds."""
    if type_ is None or type_ is type(None):
        return "None"
    if type_ is Ellipsis:
        return "..."
    origin, args = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return type_name(args[0])
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(type_name, args)))
    if args and isinstance(origin, type) and not any(isinstance(arg, list) for arg in args):
        # `List` and `list` are one type with two names; a type of `collections.abc` has its own.
        name = origin.__name__ if isinstance(type_, types.GenericAlias) else getattr(type_, "__name__", origin.__name__)
        return f"{name}[{', '.join(map(type_name, args))}]"
    if isinstance(type_, ForwardRef):
        return type_.__forward_arg__
    if _is_structured_dict(type_):
        return "dict"
    if isinstance(type_, (type, NewType, *_ALIASES)) and not args:
        return type_.__name__
    return str(type_).replace("typing.", "")


def bare(type_: Any) -> Any:
    """A type without what `Annotated` adds."""
    while get_origin(type_) is Annotated:
        type_ = get_args(type_)[0]
    return type_


def named_models(type_: Any) -> set[type]:
    """The models and dataclasses that a type is or contains, at any depth."""
    return {one for one in classes_in(type_) if hasattr(one, "model_fields") or dataclasses.is_dataclass(one)}


def classes_in(type_: Any, *, derived: bool = False) -> list[type]:
    """Every class that a type mentions at any depth; *derived*: and what is derived from those."""
    pending: list[Any] = [type_]
    seen: dict[int, Any] = {}
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        pending += one if is_list(one) else [get_origin(one), *get_args(one), *_mentioned(one)]
        if derived and isinstance(one, type) and not _is_foreign(one):
            pending += type.__subclasses__(one)
    return [one for one in seen.values() if isinstance(one, type) and not get_args(one)]


def _mentioned(one: Any) -> list[Any]:
    """What a type leads to besides its own arguments; an option of a `Literal` leads to its class."""
    if isinstance(one, TypeVar):
        return [one.__bound__, *one.__constraints__]
    if not isinstance(one, type):
        alias = [getattr(one, "__supertype__", None), getattr(one, "__value__", None)]
        return [type(one)] if isinstance(one, Enum) else alias
    if _is_foreign(one):
        return []
    if issubclass(one, BaseModel):
        generic = getattr(one, "__pydantic_generic_metadata__", {"origin": None, "args": ()})  # `BaseModel` has none
        return [generic["origin"], *generic["args"], *(field.annotation for field in one.model_fields.values())]
    with suppress(NameError, TypeError):  # a type that is local to a function
        return list(get_type_hints(one, include_extras=True).values())
    return []


def _is_foreign(cls: type) -> bool:
    """Whether somebody who declares the class does not mean what is inside it, or derived from it."""
    return cls is not BaseModel and cls.__module__.partition(".")[0] in _NOT_OURS
