"""The texts that one stage sends to its model, and the checks that they fit the stage."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from stagegraph.schema.errors import PromptError, closest, first_problem

if TYPE_CHECKING:
    from stagegraph.schema.schema import Schema

_STRICT = ConfigDict(extra="forbid")
_LISTED = 20
"""Maximum number of names in an error."""


@dataclass(frozen=True, slots=True)
class Demo:
    """One worked example of a stage: JSON data, which the stage's own renderer turns into text."""

    __pydantic_config__ = _STRICT

    input: Any
    """A value of the stage's input type, or its JSON data; kept as JSON data."""
    output: Any

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            object.__setattr__(self, name, to_jsonable_python(getattr(self, name), by_alias=False, round_trip=True))


@dataclass(frozen=True, slots=True)
class Prompt:
    """The texts that one stage sends to its model."""

    __pydantic_config__ = _STRICT

    instructions: str | None = None
    """Replaces the agent's own literal instructions; `None` keeps those of the code."""
    demos: tuple[Demo, ...] = ()
    tools: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Tool name -> description; the other tools keep theirs."""
    fields: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Field of the answer (`title`, `items.name`) -> description; the other fields keep theirs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "demos", tuple(self.demos))
        object.__setattr__(self, "tools", MappingProxyType(dict(self.tools)))
        object.__setattr__(self, "fields", MappingProxyType(dict(self.fields)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.instructions, self.demos, dict(self.tools), dict(self.fields))

    def data(self) -> dict[str, JsonValue]:
        """The prompt as plain data, without its empty parts."""
        parts: dict[str, JsonValue] = {
            "instructions": self.instructions,
            "demos": [{"input": demo.input, "output": demo.output} for demo in self.demos],
            "tools": dict(self.tools),
            "fields": dict(self.fields),
        }
        return {name: part for name, part in parts.items() if part or part == ""}


@dataclass(frozen=True, slots=True)
class Origin:
    """The deployed prompt that a text came from, such as one in Langfuse."""

    name: str
    version: int


@cache
def _adapter() -> TypeAdapter[Prompt]:
    return TypeAdapter(Prompt)


def parsed(path: str, data: object, file: str) -> Prompt:
    """The prompt of one stage from plain data.

    Raises:
        PromptError: the data is not a prompt; the message names *file* and *path*.
    """
    try:
        prompt = _adapter().validate_python({} if data is None else data)
        json.dumps(prompt.data(), ensure_ascii=False).encode()  # a text that is not valid Unicode cannot be sent
    except (ValueError, RecursionError) as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else error
        msg = f"{file}: `{path}`: {reason}; a prompt has `instructions`, `demos`, `tools` and `fields`"
        raise PromptError(msg) from error
    return prompt


class _Types(Protocol):
    @cached_property
    def input_type(self) -> Schema: ...
    @cached_property
    def output_type(self) -> Schema: ...


class PromptedStage(Protocol):
    """The part of a stage that prompts use; a `Stage` satisfies it."""

    @cached_property
    def __node__(self) -> _Types: ...  # type checkers distinguish a property from a cached one
    @property
    def instructions(self) -> str: ...
    @cached_property
    def fields(self) -> Mapping[str, object]: ...
    @property
    def tools(self) -> tuple[Mapping[str, object], bool]: ...


def unknown_stages(paths: Iterable[str], stages: Iterable[str]) -> list[str]:
    """One problem for each path that is not the path of a stage."""
    known = list(stages)
    return [f"there is no stage `{path}`{_near(path, known)}" for path in paths if path not in known]


def misfits(path: str, prompt: Prompt, stage: PromptedStage, *, demos: bool = True, tools: bool = True) -> list[str]:
    """One problem for each field that the stage's answer does not have, each demo that is not of its types, each tool.

    The tools of a server or a function are known at run time only: an agent with such tools has no problems with tools.
    """
    problems = _unknown(path, "output field", prompt.fields, stage.fields) if prompt.fields else []
    types = stage.__node__
    for number, demo in enumerate(prompt.demos if demos else (), 1):
        for type_, value, what in ((types.input_type, demo.input, "input"), (types.output_type, demo.output, "output")):
            try:
                type_.load(value)
            except ValidationError as error:
                problems.append(f"`{path}`, {what} of demo {number} does not fit {type_.name}: {first_problem(error)}")
    if tools and prompt.tools:
        known, complete = stage.tools
        problems += _unknown(path, "tool", prompt.tools, known) if complete else []
    return problems


def _unknown(path: str, what: str, names: Iterable[str], known: Mapping[str, object]) -> list[str]:
    there = ", ".join(f"`{name}`" for name in list(known)[:_LISTED]) or "none"
    if len(known) > _LISTED:
        there += f" and {len(known) - _LISTED} more"
    wrong = [name for name in names if name not in known]
    return [f"`{path}` has no {what} `{name}`{_near(name, known)}; there are: {there}" for name in wrong]


def _near(name: str, known: Iterable[str]) -> str:
    hint = closest(name, known).removeprefix("; ")
    return f" ({hint})" if hint else ""
