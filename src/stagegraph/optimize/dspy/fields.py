"""Typed values as DSPy's named fields: signatures of stages, and examples in DSPy's form and back."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeVar, cast, get_origin, overload

import dspy
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from stagegraph.data.examples import Example
from stagegraph.nodes.node import Node
from stagegraph.record.run import InputError
from stagegraph.schema.errors import DeclarationError, problems_of
from stagegraph.schema.schema import Schema, field_keys

untyped: Any = dspy
"""DSPy for members that it declares without types."""

I = TypeVar("I")  # noqa: E741 - an input type

STAGE_ID = "stage_id"
"""Marks each field of a signature with its stage's path, so that DSPy never mistakes two equal signatures."""
_RESERVED = {"signature", "instructions", "fields", "demos", "config", "lm"} | {
    "new_signature", "prediction", "augmented", "callbacks", "base", "self",
}  # fmt: skip
"""Names that `dspy.Predict`, `dspy.Signature` and demos need for themselves."""


class Fields:
    """The fields of one declared type, with conversion in both directions.

    Args:
        schema: The type of a node's input or output.
        whole: The name of the only field where the type is no model: `input` or `output`.
        taken: Names that this side may not use again; such a field is called `<whole>_<name>`.
    """

    def __init__(self, schema: Schema, whole: Literal["input", "output"], taken: frozenset[str] = frozenset()) -> None:
        self.schema = schema
        model = schema.type
        self.model: type[BaseModel] | None = (
            model if isinstance(model, type) and issubclass(model, BaseModel) and model.model_fields else None
        )
        own = list(self.model.model_fields) if self.model is not None else [whole]
        self.names = {f"{whole}_{name}" if name in taken else name: name for name in own}
        """Name in the signature -> name in the model."""

    def split(self, value: object) -> dict[str, Any]:
        """A value as its fields; nested models stay models."""
        if self.model is None:
            return dict.fromkeys(self.names, value)
        return {name: getattr(value, own, None) for name, own in self.names.items()}

    def data(self, fields: Mapping[str, Any]) -> Any:
        """Data that validates to the value with these fields."""
        if self.model is None:
            return fields[next(iter(self.names))]
        keys = field_keys(self.model)
        return {keys[own]: fields[name] for name, own in self.names.items() if name in fields}

    def join(self, fields: Mapping[str, Any]) -> Any:
        """The value with these fields; a `ValidationError` or `KeyError` where they do not fit."""
        data = self.data(fields)
        with suppress(ValidationError):
            return self.schema.validate(data)
        with suppress(TypeError):  # it is no JSON
            return self.schema.load(data)
        return self.schema.adapter.validate_python(data)

    def declared(self, name: str) -> tuple[Any, str]:
        """The type and the description of a field."""
        if self.model is None:
            return self.schema.type, ""
        field = self.model.model_fields[self.names[name]]
        return field.annotation, field.description or ""


def sides_of(path: str, stage: Node[Any, Any]) -> tuple[Fields, Fields]:
    """The fields of a stage's input and of its output, if DSPy can have fields with their names."""
    inputs = Fields(stage.__node__.input_type, "input")
    outputs = Fields(stage.__node__.output_type, "output", frozenset(inputs.names))
    for side in (inputs, outputs):
        for own in side.names.values():
            if own in _RESERVED or own.startswith(("_", "dspy_")):
                msg = (
                    f"stage `{path}`: the field `{own}` of {side.schema.name} cannot be a field of a DSPy signature, "
                    "which keeps that name for itself: rename it (an alias keeps the JSON as it is), or wrap the value "
                    "in another model"
                )
                raise DeclarationError(msg)
    if clash := inputs.names.keys() & outputs.names.keys():
        msg = f"stage `{path}`: its input and its output both need the field `{min(clash)}`: rename one of them"
        raise DeclarationError(msg)
    return inputs, outputs


def signature_of(path: str, inputs: Fields, outputs: Fields, instructions: str) -> type[dspy.Signature]:
    """A new signature of one stage: its fields are marked with its path, its instructions are the stage's text."""
    fields: dict[str, tuple[Any, FieldInfo]] = {}
    for side, make in ((inputs, untyped.InputField), (outputs, untyped.OutputField)):
        for name in side.names:
            type_, description = side.declared(name)
            field = make(desc=description) if description else make()
            field.json_schema_extra[STAGE_ID] = path
            known = isinstance(type_, (type, types.UnionType)) or get_origin(type_) is not None
            fields[name] = (type_ if known else Any, field)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a field may be called `copy` or `schema`: nobody calls those
        try:
            return untyped.Signature(fields, instructions)
        except Exception:  # noqa: BLE001 - DSPy only shows the types, so one without a Pydantic schema does not matter
            return untyped.Signature({name: (Any, field) for name, (_, field) in fields.items()}, instructions)


@overload
def to_dspy(given: Example[Any], graph: Node[Any, Any]) -> dspy.Example: ...
@overload
def to_dspy(given: Iterable[Example[Any]], graph: Node[Any, Any]) -> list[dspy.Example]: ...
def to_dspy(given: Example[Any] | Iterable[Example[Any]], graph: Node[Any, Any]) -> dspy.Example | list[dspy.Example]:
    """One or more examples for DSPy: the fields of the graph's input model (or `input`) are the inputs.

    The rest are labels: `expected`, or one label for each entry where what is expected is a mapping.

    Raises:
        InputError: an input is of a subclass with more fields, which would be lost.
    """
    if not isinstance(given, Example):
        return [to_dspy(one, graph) for one in given]
    fields = Fields(graph.__node__.input_type, "input")
    known = fields.model.model_fields if fields.model is not None else {}
    value = cast("object", given.input)
    lost = [name for name in getattr(type(value), "model_fields", ()) if known and name not in known]
    if lost:
        msg = (
            f"example {given.id!r}: a dspy.Example has the fields of {fields.schema.name} alone, and would lose "
            f"`{lost[0]}` of {type(value).__name__}: `tune` and `evaluate` take such an input whole"
        )
        raise InputError(msg)
    inputs, expected = fields.split(value), cast("object", given.expected)
    labels: dict[str, Any] = {} if expected is None else {"expected": expected}
    if isinstance(expected, Mapping) and expected:
        entries = cast("Mapping[object, Any]", expected)
        if _are_labels(entries, inputs):
            labels = {str(name): value for name, value in entries.items()}
    # DSPy hides names that begin with `dspy_`, and copies them.
    about = {"dspy_id": given.id, "dspy_metadata": dict(given.metadata)}
    return untyped.Example(**inputs, **labels, **about).with_inputs(*inputs)


def _are_labels(names: Iterable[object], inputs: Mapping[str, Any]) -> bool:
    """Whether each of the names can be a label beside the inputs."""
    return all(
        isinstance(name, str)
        and name.isidentifier()
        and not name.startswith(("_", "dspy_"))
        and name not in {*inputs, "expected"}
        for name in names
    )


@overload
def from_dspy(given: dspy.Example, graph: Node[I, Any]) -> Example[I]: ...
@overload
def from_dspy(given: Iterable[dspy.Example], graph: Node[I, Any]) -> list[Example[I]]: ...
def from_dspy(given: dspy.Example | Iterable[dspy.Example], graph: Node[I, Any]) -> Example[I] | list[Example[I]]:
    """One or more examples from DSPy: those of `to_dspy`, or any `dspy.Example` with the inputs of *graph*.

    Raises:
        InputError: the inputs do not fit the graph.
    """
    if not isinstance(given, dspy.Example):
        return [from_dspy(one, graph) for one in given]
    example: Any = given
    inputs, fields = Fields(graph.__node__.input_type, "input"), dict[str, Any](example.items())
    try:
        value = inputs.join(fields)
    except (ValidationError, KeyError) as error:
        reason = problems_of(error) if isinstance(error, ValidationError) else f"it has no {error}"
        msg = f"a dspy.Example does not fit {graph.__node__.name}: {reason}"
        raise InputError(msg) from error
    labels = {name: label for name, label in fields.items() if name not in inputs.names}
    expected = labels["expected"] if labels.keys() == {"expected"} else (labels or None)
    hidden: dict[str, Any] = example.toDict() if "dspy_id" in example else {}
    return Example(value, expected, str(hidden.get("dspy_id") or ""), hidden.get("dspy_metadata") or {})
