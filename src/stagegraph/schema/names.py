"""Names for messages: of a declared type, and the name that a misspelt one is close to."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable
from typing import Annotated, Any, ForwardRef, Literal, NewType, Union, get_args, get_origin

from .checks import ALIASES, is_structured_dict

__all__ = ["bare", "closest", "named_models", "type_name"]


def type_name(type_: Any) -> str:
    """A type as it stands in the code, without modules and without what `Annotated` adds."""
    if type_ is None or type_ is type(None):
        return "None"
    if type_ is Ellipsis:
        return "..."
    origin, args = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return type_name(args[0])
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(type_name, args)))
    if origin is Literal or any(isinstance(arg, list) for arg in args):
        return str(type_).replace("typing.", "")
    if args and isinstance(origin, type):
        return f"{_word(type_, origin)}[{', '.join(map(type_name, args))}]"
    if isinstance(type_, ForwardRef):
        return type_.__forward_arg__
    if is_structured_dict(type_):
        return "dict"
    if isinstance(type_, (type, NewType, *ALIASES)):
        return type_.__name__
    return str(type_).replace("typing.", "")


def _word(type_: Any, origin: type) -> str:
    """`List` and `list` are one type with two names; what stands in `collections.abc` has its own."""
    return origin.__name__ if isinstance(type_, types.GenericAlias) else getattr(type_, "__name__", origin.__name__)


def bare(type_: Any) -> Any:
    """A type without what `Annotated` adds."""
    while get_origin(type_) is Annotated:
        type_ = get_args(type_)[0]
    return type_


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


def closest(name: str, options: Iterable[str]) -> str:
    """`; did you mean `plan`?`, or nothing."""
    near = difflib.get_close_matches(name, [option for option in options if option], n=1)
    return f"; did you mean `{near[0]}`?" if near else ""
