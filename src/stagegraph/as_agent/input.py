"""What a person wrote in a chat, as the input that a graph takes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, cast

from pydantic import ValidationError
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

from .shape import object_schema, text_field

__all__ = ["read_input"]

_NO_JSON = object()


def read_input(graph: BaseGraph[Any, Any], messages: Sequence[ModelMessage]) -> Any:
    """The newest user prompt as the graph's input.

    Raises:
        InputError: it cannot be one; the message says what would be.
    """
    prompt = _newest_prompt(messages)
    if prompt is None:
        msg = f"{graph.__node__.name} was asked nothing: there is no user prompt in the last message"
        raise InputError(msg)
    if isinstance(prompt, str):
        return _from_text(graph, prompt, messages[:-1])
    if graph.__node__.input_type.is_instance(prompt):
        return prompt
    texts = [part if isinstance(part, str) else part.content for part in prompt if isinstance(part, (str, TextContent))]
    if len(texts) < len(prompt):
        msg = f"{graph.__node__.name} takes {graph.__node__.input_type.name}, and cannot be given files in a message"
        raise InputError(msg)
    return _from_text(graph, "\n".join(texts), messages[:-1])


def _newest_prompt(messages: Sequence[ModelMessage]) -> str | Sequence[UserContent] | None:
    last = messages[-1] if messages else None
    if not isinstance(last, ModelRequest):
        return None
    return next((part.content for part in reversed(last.parts) if isinstance(part, UserPromptPart)), None)


def _from_text(graph: BaseGraph[Any, Any], text: str, before: Sequence[ModelMessage]) -> Any:
    takes = graph.__node__.input_type
    if takes.type is str:
        return text
    history = _history_field(takes.type)
    told = {} if history is None else {history: ModelMessagesTypeAdapter.dump_python(list(before), mode="json")}
    field = text_field(object_schema(takes), without=history)
    problem: ValidationError | None = None
    data = _json_data(text)
    if data is not _NO_JSON:
        try:
            return takes.load({**told, **cast("dict[str, Any]", data)} if isinstance(data, dict) else data)
        except ValidationError as error:
            problem = error
    try:
        return takes.load({**told, field: text}) if field is not None else takes.adapter.validate_python(text)
    except ValidationError as error:
        problem = problem or error
    msg = f"{graph.__node__.name} takes {takes.name}: write it as JSON; {problems_of(problem)}"
    raise InputError(msg) from problem


def _json_data(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return _NO_JSON


def _history_field(type_: Any) -> str | None:
    """The field that is declared as `list[ModelMessage]`: it gets what was said before."""
    fields: dict[str, Any] | None = getattr(type_, "model_fields", None)
    if fields is not None:
        hints = {field.alias or name: field.annotation for name, field in fields.items()}
    elif dataclasses.is_dataclass(type_) or is_typeddict(type_):
        hints = get_type_hints(type_)
    else:
        return None
    return next((name for name, hint in hints.items() if hint == list[ModelMessage]), None)
