"""The tools and answer fields of an agent as a model sees them, as far as they are known before a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from pydantic_ai._output import OutputSchema  # the only way from an output spec to the schema that a model receives
from pydantic_ai.toolsets import (
    AbstractToolset,
    ApprovalRequiredToolset,
    CombinedToolset,
    ExternalToolset,
    FilteredToolset,
    FunctionToolset,
    PrefixedToolset,
    RenamedToolset,
    WrapperToolset,
)

from stagegraph.schema.paths import described, fields_in

if TYPE_CHECKING:
    from pydantic_ai.agent import AbstractAgent
    from pydantic_ai.models import ModelRequestParameters


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool or a field with its description in the code."""

    text: str
    """The description; empty if the code has none."""
    schema: Mapping[str, Any]
    """The JSON schema of the tool's parameters, or of the field."""


def fields_of(agent: AbstractAgent[Any, Any]) -> dict[str, Offered]:
    """Dotted path -> field of the answer; empty for an agent that answers in text."""
    spec = OutputSchema[Any].build(agent.output_type)
    given = [one.object_def.json_schema for one in spec.toolset.processors.values()] if spec.toolset else []
    if not given and spec.object_def is not None:
        given = [spec.object_def.json_schema]
    found: dict[str, Offered] = {}
    for schema in given:
        around = envelope(schema)
        for path, field in fields_in(schema).items():
            if path.startswith(around):
                text = field.get("description", "")
                found.setdefault(path.removeprefix(around), Offered(str(text), field))
    return found


def tools_of(agent: AbstractAgent[Any, Any]) -> tuple[dict[str, Offered], bool]:
    """Name -> tool, and whether the list is complete: tools of servers and functions are known at run time only."""
    return _all_of(agent.toolsets)


def _all_of(toolsets: Sequence[AbstractToolset[Any]]) -> tuple[dict[str, Offered], bool]:
    parts = [_tools_in(toolset) for toolset in toolsets]
    return {name: tool for tools, _ in parts for name, tool in tools.items()}, all(whole for _, whole in parts)


def _tools_in(toolset: AbstractToolset[Any]) -> tuple[dict[str, Offered], bool]:
    if isinstance(toolset, (FunctionToolset, ExternalToolset)):
        function = isinstance(toolset, FunctionToolset)
        found = [tool.tool_def for tool in toolset.tools.values()] if function else toolset.tool_defs
        return {tool.name: Offered(tool.description or "", tool.parameters_json_schema) for tool in found}, True
    if isinstance(toolset, CombinedToolset):
        return _all_of(toolset.toolsets)
    if not isinstance(toolset, WrapperToolset):
        return {}, False
    tools, whole = _tools_in(toolset.wrapped)
    if isinstance(toolset, PrefixedToolset):
        return {f"{toolset.prefix}_{name}": tool for name, tool in tools.items()}, whole
    if isinstance(toolset, RenamedToolset):
        new = {old: name for name, old in toolset.name_map.items()}
        return {new.get(name, name): tool for name, tool in tools.items()}, whole
    return tools, whole and isinstance(toolset, (FilteredToolset, ApprovalRequiredToolset))


def with_fields(parameters: ModelRequestParameters, texts: Mapping[str, str]) -> ModelRequestParameters:
    """The request with other descriptions of the answer's fields (path -> text), in every output mode."""

    def changed(schema: Mapping[str, Any]) -> dict[str, Any]:
        around = envelope(schema)
        return described(schema, {around + path: text for path, text in texts.items()})

    tools = [
        replace(tool, parameters_json_schema=changed(tool.parameters_json_schema)) for tool in parameters.output_tools
    ]
    answer = parameters.output_object
    if answer is not None:
        answer = replace(answer, json_schema=changed(answer.json_schema))
    return replace(parameters, output_tools=tools, output_object=answer)


def envelope(schema: Mapping[str, Any]) -> str:
    """The prefix of paths that Pydantic AI's wrapper around some types adds: `response.`, `result.data.` or nothing.

    A type that is not a model is wrapped in `response`; one of several types is wrapped in `result`, with its kind.
    """
    properties = cast("Mapping[str, Any]", schema.get("properties", {}))
    if list(properties) == ["result"] and "anyOf" in properties["result"]:
        return "result.data."
    if list(properties) == ["response"] and "title" not in schema:
        return "response."
    return ""
