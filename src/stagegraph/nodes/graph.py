"""A class that declares nodes and describes in `async def flow` how data moves through them."""

from __future__ import annotations

import inspect
import sys
from abc import abstractmethod
from collections.abc import Mapping
from functools import cache, cached_property
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, ForwardRef, Generic, Literal, TypeVar, cast, get_args, get_origin

from pydantic_ai.agent import AbstractAgent
from typing_extensions import Format, get_annotations, get_original_bases, get_type_hints, is_protocol, is_typeddict
from typing_extensions import TypeVar as TypeVarWithDefault

from stagegraph.schema.errors import DeclarationError
from stagegraph.schema.schema import Schema
from stagegraph.schema.types import bare, type_name

from .node import Declaration, Node, reject_reserved

In_contra = TypeVarWithDefault("In_contra", contravariant=True)
Out_co = TypeVarWithDefault("Out_co", covariant=True)


class BaseGraph(Node[In_contra, Out_co], Generic[In_contra, Out_co]):
    """Nodes as attributes, and a `flow` that calls them; `stagegraph.Graph` adds the methods that run it."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if isinstance(value, Node):
                reject_reserved(cls, name)
                continue
            mistake = _mistake(cls, name, value)
            if mistake is not None and name not in get_annotations(cls, format=Format.FORWARDREF):
                msg = f"{cls.__name__}.{name} {mistake}"
                raise DeclarationError(msg)
        if (flow := vars(cls).get("flow")) is not None:
            _check_flow(cls, flow)

    @abstractmethod
    async def flow(self, value: In_contra, /) -> Out_co:
        """How data moves: ordinary Python that awaits the graph's own nodes."""
        raise NotImplementedError

    @cached_property
    def __node__(self) -> Declaration:
        cls = type(self)
        return Declaration(self, "graph", cls.__name__, lambda: _schemas_of(cls)[0], lambda: _schemas_of(cls)[1])

    def __repr__(self) -> str:
        return f"<graph {self.__node__.name}>"


_ARGUMENTS = {"Stage": "Input, Agent(...)", "Step": "function"}


def _mistake(cls: type[BaseGraph[Any, Any]], name: str, value: object) -> str | None:
    """What to write instead of an attribute that is no node, but may have been meant as one."""
    if isinstance(value, type) and issubclass(value, Node) and not name[0].isupper():
        names = {base.__name__ for base in value.__mro__}
        inside = next((text for kind, text in _ARGUMENTS.items() if kind in names), "")
        return f"is the class {value.__name__}, not a node: write `{name} = {value.__name__}({inside})`"
    used = any(getattr(node, "agent", None) is value for node in vars(cls).values())
    if isinstance(value, AbstractAgent) and name[0] != "_" and not used:
        return (
            "is a Pydantic AI agent, not a stage, so nothing of it is recorded, traced or tuned: "
            f"write `{name} = Stage(Input, agent)`, or `_{name}` for an agent that is no part of the graph"
        )
    return None


def _check_flow(cls: type[BaseGraph[Any, Any]], flow: Any) -> None:
    if not inspect.iscoroutinefunction(flow):
        msg = f"{cls.__name__}.flow must be `async def flow(self, value) -> output`, with no `yield` in it"
        raise DeclarationError(msg)
    try:
        inspect.signature(flow).bind(None, None)
    except TypeError:
        msg = (
            f"{cls.__name__}.flow{inspect.signature(flow)} must take one value beside `self`: put several values into "
            "one model, and what is no input (a database, a user) into the run's `deps`"
        )
        raise DeclarationError(msg) from None


@cache
def _schemas_of(cls: type) -> tuple[Schema, Schema]:
    """The `[In, Out]` of a graph class, computed once per class: a service may create a graph for every request."""
    takes, gives = _given(cls, BaseGraph)
    _check_hints(cls, takes, gives)
    return Schema(takes), Schema(gives)


def _check_hints(cls: Any, takes: Any, gives: Any) -> None:
    """Refuse a flow that is annotated otherwise than its graph, where the classes alone show it."""
    try:
        hints = get_type_hints(cls.flow)
    except (NameError, TypeError, AttributeError):
        return  # some type is known to type checkers alone
    own = {"takes": hints.get(list(inspect.signature(cls.flow).parameters)[1]), "returns": hints.get("return")}
    for (verb, written), declared in zip(own.items(), (takes, gives), strict=True):
        if _unrelated(written, declared):
            msg = (
                f"the flow of {cls.__name__} {verb} {type_name(written)}, but the class is written as a "
                f"Graph[{type_name(takes)}, {type_name(gives)}]: write {type_name(declared)} in both places"
            )
            raise DeclarationError(msg)


def _unrelated(written: Any, declared: Any) -> bool:
    """Whether no value is of both types, as far as two classes tell."""
    one, other = (get_origin(bare(type_)) or bare(type_) for type_ in (written, declared))
    for class_ in (one, other):
        if not isinstance(class_, type) or class_ in {Any, UnionType} or is_typeddict(class_) or is_protocol(class_):
            return False
    numbers = all(issubclass(class_, (int, float, complex)) for class_ in (one, other))  # an int may stand for a float
    return not (numbers or issubclass(one, other) or issubclass(other, one))


def _given(cls: Any, top: type) -> tuple[Any, Any]:
    """The types of *cls*, also through generic base classes; another base class may have types of its own."""
    bases: tuple[Any, ...] = get_original_bases(cls)
    for base in bases:
        origin: Any = get_origin(base) or base
        if not (isinstance(origin, type) and issubclass(origin, top)):
            continue
        given = tuple(_evaluated(arg, cls) if _is_forward(arg) else arg for arg in get_args(base))
        if not given and (origin is top or top in origin.__bases__):
            return Any, Any
        if origin is top:
            return given[0], given[1]
        takes, gives = _given(origin, top)
        parameters: tuple[Any, ...] = getattr(cast("Any", origin), "__parameters__", ())
        named = dict(zip(parameters, given, strict=False))
        return _substituted(takes, named), _substituted(gives, named)
    return Any, Any


def _substituted(type_: Any, given: Mapping[Any, Any]) -> Any:
    if isinstance(type_, TypeVar):
        return given.get(type_, type_)
    parameters = getattr(type_, "__parameters__", ())
    return type_[tuple(given.get(p, p) for p in parameters)] if parameters else type_


def _is_forward(type_: Any) -> bool:
    """Whether a type is, or contains, the name of a type that may be defined later."""
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
