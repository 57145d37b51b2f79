"""What an input type looks like from outside: as arguments of a tool, and where a person's text belongs in it."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, cast

from stagegraph.nodes.graph import BaseGraph

if TYPE_CHECKING:
    from stagegraph.schema.schema import Schema

__all__ = ["INPUT", "described", "object_schema", "snake_case", "text_field"]

INPUT = "input"
"""The one argument of a graph whose input has no fields."""


def object_schema(schema: Schema) -> dict[str, Any] | None:
    """The JSON schema of a type with named fields; `None` for any other type."""
    found: dict[str, Any] = schema.adapter.json_schema()
    reference = found.get("$ref")
    if isinstance(reference, str):  # a type that contains itself
        definitions = found["$defs"]
        found = {**definitions[reference.removeprefix("#/$defs/")], "$defs": definitions}
    return found if found.get("type") == "object" and "properties" in found else None


def text_field(shape: dict[str, Any] | None, *, without: str | None = None) -> str | None:
    """The field that a plain text fills: the only required one, or the only one, if it is a text."""
    if shape is None:
        return None
    properties = {name: one for name, one in shape["properties"].items() if name != without}
    required = [name for name in shape.get("required", ()) if name != without]
    candidates = required or [name for name, one in properties.items() if _is_text(one)]
    return candidates[0] if len(candidates) == 1 and _is_text(properties[candidates[0]]) else None


def _is_text(schema: object) -> bool:
    if not isinstance(schema, dict):
        return False
    given = cast("dict[str, Any]", schema)
    return given.get("type") == "string" or any(map(_is_text, given.get("anyOf", ())))


def snake_case(label: str) -> str:
    """`SpecToReview` as a tool's name: `spec_to_review`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+", "_", label)
    return words.strip("_").lower()[:64]


def described(graph: BaseGraph[Any, Any]) -> str:
    """What the graph says about itself; else what goes in and what comes out."""
    own = type(graph).__doc__
    return (
        inspect.cleandoc(own)
        if own
        else f"{graph.__node__.name}: gives {graph.__node__.output_type.name} for {graph.__node__.input_type.name}."
    )
