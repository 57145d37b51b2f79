"""The newest prompt of a chat as the input of a graph."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue, ValidationError
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    TextContent,
    UserContent,
    UserPromptPart,
)
from typing_extensions import get_type_hints, is_typeddict

from stagegraph.nodes.graph import BaseGraph
from stagegraph.record.run import InputError
from stagegraph.schema.errors import problems_of

from .tool import object_schema


def read_input(graph: BaseGraph[Any, Any], messages: Sequence[ModelMessage]) -> Any:
    """The newest user prompt as the graph's input.

    Raises:
        InputError: it does not fit the input type.
    """
    own = graph.__node__
    prompt = _newest_prompt(messages)
    if prompt is None:
        msg = f"{own.name} has no input: the last message contains no user prompt"
        raise InputError(msg)
    if isinstance(prompt, str):
        return _from_text(graph, prompt, messages[:-1])
    if own.input_type.is_instance(prompt):
        return prompt
    texts = [part if isinstance(part, str) else part.content for part in prompt if isinstance(part, (str, TextContent))]
    if len(texts) < len(prompt):
        msg = f"{own.name} takes {own.input_type.name}, and cannot be given files in a message"
        raise InputError(msg)
    return _from_text(graph, "\n".join(texts), messages[:-1])


def _newest_prompt(messages: Sequence[ModelMessage]) -> str | Sequence[UserContent] | None:
    last = messages[-1] if messages else None
    if not isinstance(last, ModelRequest):
        return None
    return next((part.content for part in reversed(last.parts) if isinstance(part, UserPromptPart)), None)


def _from_text(graph: BaseGraph[Any, Any], text: str, before: Sequence[ModelMessage]) -> Any:
    """A text as JSON data, or else as the only text field; the messages *before* fill the field for the history."""
    input_type = graph.__node__.input_type
    if input_type.type is str:
        return text
    history = _history_field(input_type.type)
    given = {} if history is None else {history: ModelMessagesTypeAdapter.dump_python(list(before), mode="json")}
    field = text_field(object_schema(input_type), without=history)
    problem: ValidationError | None = None
    try:
        data: JsonValue = json.loads(text)
    except ValueError:
        pass  # it is not JSON
    else:
        try:
            return input_type.load({**given, **data} if isinstance(data, dict) else data)
        except ValidationError as error:
            problem = error
    try:
        if field is not None:
            return input_type.load({**given, field: text})
        return input_type.adapter.validate_python(text)
    except ValidationError as error:
        problem = problem or error
    msg = f"{graph.__node__.name} takes {input_type.name}: write it as JSON; {problems_of(problem)}"
    raise InputError(msg) from problem


def _history_field(type_: Any) -> str | None:
    """The field of the type `list[ModelMessage]`: it gets the earlier messages."""
    fields: dict[str, Any] | None = getattr(type_, "model_fields", None)
    if fields is not None:
        hints = {field.alias or name: field.annotation for name, field in fields.items()}
    elif dataclasses.is_dataclass(type_) or is_typeddict(type_):
        hints = get_type_hints(type_)
    else:
        return None
    return next((name for name, hint in hints.items() if hint == list[ModelMessage]), None)


def text_field(schema: Mapping[str, Any] | None, *, without: str | None = None) -> str | None:
    """The field that a plain text fills: the only required one, or else the only one, if it is a text."""
    if schema is None:
        return None
    properties = {name: one for name, one in schema["properties"].items() if name != without}
    required = [name for name in schema.get("required", ()) if name != without]
    candidates = required or [name for name, one in properties.items() if _is_text(one)]
    return candidates[0] if len(candidates) == 1 and _is_text(properties[candidates[0]]) else None


def _is_text(schema: dict[str, Any] | bool) -> bool:
    """Whether a JSON schema allows a text."""
    return not isinstance(schema, bool) and (
        schema.get("type") == "string" or any(_is_text(one) for one in schema.get("anyOf", ()))
    )
