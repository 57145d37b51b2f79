"""Whether a value is of a declared type: an instance check for every call that neither copies nor coerces."""

from __future__ import annotations

import collections.abc
import types
import typing
from functools import cache
from typing import Annotated, Any, Literal, NewType, NotRequired, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel
from typing_extensions import TypeAliasType, get_type_hints, is_typeddict

__all__ = ["ALIASES", "Check", "check", "is_structured_dict"]

ALIASES = (TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType))  # the latter is what `type X = ...` makes

Check = collections.abc.Callable[[object], bool]


def check(type_: Any) -> Check:
    """The check of one type, put together once."""
    origin = get_origin(type_)
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
    if origin in (list, set, frozenset, collections.abc.Sequence, collections.abc.Set) and len(args) == 1:
        item = check(args[0])
        return lambda value: isinstance(value, origin) and all(map(item, cast("Any", value)))
    if origin in (dict, collections.abc.Mapping) and len(args) == 2:  # noqa: PLR2004 - a key and a value
        key, item = map(check, args)
        return lambda value: (
            isinstance(value, origin) and all(key(k) and item(v) for k, v in cast("Any", value).items())
        )
    if origin is tuple:
        return _check_tuple(args)
    return lambda value: isinstance(value, origin) if isinstance(origin, type) else True


def _check_plain(type_: Any) -> Check:
    if type_ is None:
        return lambda value: value is None
    if isinstance(type_, ALIASES):
        return _check_alias(type_)
    if isinstance(type_, NewType):
        return check(type_.__supertype__)
    if isinstance(type_, TypeVar):
        return check(type_.__bound__) if type_.__bound__ is not None else lambda _: True
    if type_ is float:  # PEP 484: an int is acceptable where a float is asked for
        return lambda value: isinstance(value, (float, int))
    if is_typeddict(type_):
        return _check_typeddict(type_)
    if type_ is Any or not isinstance(type_, type) or getattr(type_, "_is_protocol", False):
        return lambda _: True
    if issubclass(type_, BaseModel) and type_.__pydantic_generic_metadata__["origin"] is not None:
        return _check_generic(type_)
    if is_structured_dict(type_):
        return lambda value: isinstance(value, dict)
    return lambda value: isinstance(value, type_)


def is_structured_dict(type_: Any) -> bool:
    """Whether it is a `StructuredDict(...)` of Pydantic AI: a class that stands for plain dicts of some schema."""
    return isinstance(type_, type) and issubclass(type_, dict) and "__is_model_like__" in vars(cast("type", type_))


def _check_generic(type_: type[BaseModel]) -> Check:
    """A `Box[int]`, which may have been made as `Box(...)`: then it is what it holds that counts."""
    origin = cast("type[BaseModel]", type_.__pydantic_generic_metadata__["origin"])

    @cache
    def fields() -> dict[str, Check]:
        return {name: check(field.annotation) for name, field in type_.model_fields.items()}

    def accepts(value: object) -> bool:
        if isinstance(value, type_):
            return True
        return type(value) is origin and all(fits(getattr(value, name)) for name, fits in fields().items())

    return accepts


def _check_alias(alias: Any) -> Check:
    @cache
    def made() -> Check:  # made when it is needed, since an alias may stand for a type that contains it
        return check(alias.__value__)

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

    def accepts(value: object) -> bool:
        if not isinstance(value, dict):
            return False
        given = cast("dict[object, object]", value)
        required, checks = entries()
        return required <= given.keys() and all(fits(given[name]) for name, fits in checks.items() if name in given)

    return accepts


def _check_tuple(args: tuple[Any, ...]) -> Check:
    if len(args) == 2 and args[1] is Ellipsis:  # noqa: PLR2004 - tuple[X, ...]
        every = check(args[0])
        return lambda value: isinstance(value, tuple) and all(map(every, cast("Any", value)))
    items = [check(arg) for arg in args]
    return lambda value: (
        isinstance(value, tuple)
        and len(cast("Any", value)) == len(items)
        and all(item(v) for item, v in zip(items, cast("Any", value), strict=True))
    )
