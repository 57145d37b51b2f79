"""What one stage says to its model, and how it is read from data that somebody else wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import to_jsonable_python

from stagegraph.schema.errors import PromptError, first_problem

__all__ = ["Demo", "Origin", "Prompt", "parsed"]


@dataclass(frozen=True, slots=True)
class Demo:
    """One worked example of a stage: typed data, turned into text by the stage's own renderer when it is used."""

    input: Any
    """A value of the stage's input type, or its JSON data; kept as JSON data."""
    output: Any

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            object.__setattr__(self, name, to_jsonable_python(getattr(self, name), by_alias=False, round_trip=True))


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one stage says to its model."""

    instructions: str | None = None
    """Takes the place of the agent's own literal instructions; `None` leaves them as the code has them."""
    demos: tuple[Demo, ...] = ()
    tools: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Tool name -> description; a tool that is not named keeps its own."""
    fields: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Field of the answer (`title`, `items.name`) -> description; a field that is not named keeps its own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "demos", tuple(self.demos))
        object.__setattr__(self, "tools", MappingProxyType(dict(self.tools)))
        object.__setattr__(self, "fields", MappingProxyType(dict(self.fields)))

    def data(self) -> dict[str, JsonValue]:
        """The prompt as plain data; what is empty is left out."""
        demos: list[JsonValue] = [{"input": demo.input, "output": demo.output} for demo in self.demos]
        parts: dict[str, JsonValue] = {}
        if self.instructions is not None:
            parts["instructions"] = self.instructions
        if demos:
            parts["demos"] = demos
        if self.tools:
            parts["tools"] = dict(self.tools)
        if self.fields:
            parts["fields"] = dict(self.fields)
        return parts


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a deployed prompt came from, so that what it did can be found under it."""

    name: str
    """Its name there."""
    version: int


class _DemoEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    input: Any
    output: Any


class _Entry(BaseModel):
    """What may stand under a stage's path in a prompts file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    instructions: str | None = None
    demos: list[_DemoEntry] = []
    tools: dict[str, str] = {}
    fields: dict[str, str] = {}


def parsed(path: str, data: object, file: str) -> Prompt:
    """The prompt of one stage from plain data.

    Raises:
        PromptError: it is none; the message names *file* and *path*.
    """
    try:
        entry = _Entry.model_validate({} if data is None else data)
        demos = tuple(Demo(demo.input, demo.output) for demo in entry.demos)
        prompt = Prompt(entry.instructions, demos, entry.tools, entry.fields)
        json.dumps(prompt.data(), ensure_ascii=False).encode()  # no request could carry a text that is no Unicode
    except (ValueError, RecursionError) as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else error
        msg = f"{file}: `{path}`: {reason}; a prompt has `instructions`, `demos`, `tools` and `fields`"
        raise PromptError(msg) from error
    return prompt
