"""Examples in DSPy's form and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast, overload

import dspy
from pydantic import ValidationError

from stagegraph.data.examples import Example
from stagegraph.nodes.node import Node
from stagegraph.record.run import InputError
from stagegraph.schema.errors import problems_of

from .fields import Fields

__all__ = ["from_dspy", "to_dspy"]

I = TypeVar("I")  # noqa: E741 - an input type


@overload
def to_dspy(given: Example[Any], graph: Node[Any, Any]) -> dspy.Example: ...
@overload
def to_dspy(given: Iterable[Example[Any]], graph: Node[Any, Any]) -> list[dspy.Example]: ...
def to_dspy(given: Example[Any] | Iterable[Example[Any]], graph: Node[Any, Any]) -> dspy.Example | list[dspy.Example]:
    """One example, or many, as DSPy has them: the fields of the graph's input model (or `input`) as inputs.

    The rest are labels: what is expected is the label `expected`, or, when it is a mapping, one label for each of its
    entries.
    """
    takes = Fields(graph.__node__.input_type, "input")
    if isinstance(given, Example):
        return _to_dspy(given, takes)
    return [_to_dspy(example, takes) for example in given]


def _to_dspy(example: Example[Any], takes: Fields) -> dspy.Example:
    inputs = takes.split(example.input)
    labels: dict[str, Any] = {} if example.expected is None else {"expected": example.expected}
    if isinstance(cast("object", example.expected), Mapping) and example.expected:
        expected = cast("Mapping[object, object]", example.expected)
        plain = all(isinstance(key, str) and key.isidentifier() and key[:1] != "_" for key in expected)
        plain = plain and not any(str(key).startswith("dspy_") for key in expected)  # DSPy hides such names
        if plain and not expected.keys() & (inputs.keys() | {"expected"}):
            labels = {str(key): value for key, value in expected.items()}
    # Names with `dspy_` are DSPy's own and show up nowhere, but they survive copying.
    about = {"dspy_id": example.id, "dspy_metadata": dict(example.metadata)}
    return cast("Any", dspy.Example(**inputs, **labels, **about)).with_inputs(*inputs)


@overload
def from_dspy(given: dspy.Example, graph: Node[I, Any]) -> Example[I]: ...
@overload
def from_dspy(given: Iterable[dspy.Example], graph: Node[I, Any]) -> list[Example[I]]: ...
def from_dspy(given: dspy.Example | Iterable[dspy.Example], graph: Node[I, Any]) -> Example[I] | list[Example[I]]:
    """What `to_dspy` made, or any `dspy.Example` that has the inputs of *graph*, as examples.

    Raises:
        InputError: the inputs do not fit the graph.
    """
    takes = Fields(graph.__node__.input_type, "input")
    if isinstance(given, dspy.Example):
        return _from_dspy(given, takes, graph)
    return [_from_dspy(one, takes, graph) for one in given]


def _from_dspy(given: dspy.Example, takes: Fields, graph: Node[Any, Any]) -> Example[Any]:
    fields = dict(cast("Any", given).items())
    try:
        value = takes.join(fields)
    except (ValidationError, KeyError) as error:
        reason = problems_of(error) if isinstance(error, ValidationError) else f"it has no {error}"
        msg = f"a dspy.Example does not fit {graph.__node__.name}: {reason}"
        raise InputError(msg) from error
    labels = {name: label for name, label in fields.items() if name not in takes.names}
    expected = labels["expected"] if labels.keys() == {"expected"} else (labels or None)
    hidden = cast("dict[str, Any]", cast("Any", given).toDict()) if "dspy_id" in given else {}
    return Example(value, expected, str(hidden.get("dspy_id") or ""), hidden.get("dspy_metadata") or {})
