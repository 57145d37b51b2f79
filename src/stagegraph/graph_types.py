"""The input and output types of a graph class, from what it wrote between the brackets of its base class."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from typing_extensions import get_original_bases

from .errors import DeclarationError
from .schema import Schema

__all__ = ["schemas_of"]


@cache
def schemas_of(cls: type, base: type) -> tuple[Schema, Schema]:
    """The `[In, Out]` that a class gave to *base*, worked out once: graphs may be made for every request."""
    takes, gives = _given(cls, base)
    return Schema(takes), Schema(gives)


def _given(cls: Any, top: type) -> tuple[Any, Any]:
    """Through generic base classes as well; another base class may have types of its own."""
    bases: tuple[Any, ...] = get_original_bases(cls)
    for base in bases:
        origin: Any = get_origin(base) or base
        if origin is top:
            given_types = [_evaluated(arg, cls) if _is_forward(arg) else arg for arg in get_args(base)]
            return (given_types[0], given_types[1]) if given_types else (Any, Any)
        if isinstance(origin, type) and issubclass(origin, top):
            takes, gives = _given(origin, top)
            parameters: tuple[Any, ...] = getattr(cast("Any", origin), "__parameters__", ())
            given = dict(zip(parameters, get_args(base), strict=False))
            return _substituted(takes, given), _substituted(gives, given)
    return Any, Any


def _substituted(type_: Any, given: Mapping[Any, Any]) -> Any:
    if isinstance(type_, TypeVar):
        return given.get(type_, type_)
    parameters = getattr(type_, "__parameters__", ())
    return type_[tuple(given.get(p, p) for p in parameters)] if parameters else type_


def _is_forward(type_: Any) -> bool:
    """Whether a type is, or holds, the name of one that may be defined later."""
    if isinstance(type_, list):  # the parameters of a `Callable`
        return any(map(_is_forward, cast("list[Any]", type_)))
    if get_origin(type_) is Literal:
        return False
    args = get_args(type_)[:1] if get_origin(type_) is Annotated else get_args(type_)
    return isinstance(type_, (str, ForwardRef)) or any(map(_is_forward, args))


def _evaluated(type_: Any, cls: type) -> Any:
    holder = SimpleNamespace(__annotations__={"type": type_})
    try:
        return get_type_hints(holder, globalns=vars(sys.modules[cls.__module__]), include_extras=True)["type"]
    except Exception as error:
        shown = type_.__forward_arg__ if isinstance(type_, ForwardRef) else type_
        why = f" ({error})" if shown != getattr(error, "name", None) else ""
        msg = f"{cls.__name__}: the type {shown!r} is not known at module level{why}; define it before the graph"
        raise DeclarationError(msg) from error
