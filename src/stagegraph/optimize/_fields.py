"""A node's input or output as named fields, as DSPy has them: a model's own fields, or one field for the whole."""

from __future__ import annotations

import types
import warnings
from collections.abc import Mapping
from typing import Any, Literal, cast, get_origin

import dspy
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from stagegraph.schema.errors import DeclarationError
from stagegraph.schema.schema import Schema, field_keys

__all__ = ["STAGE_ID", "Fields", "reject_reserved", "signature_of"]

STAGE_ID = "stage_id"
"""Marks each field of a signature with its stage's path, so that DSPy never takes two equal signatures for one."""

_RESERVED = {"signature", "instructions", "fields", "demos", "config", "lm"} | {
    "new_signature", "prediction", "augmented", "callbacks", "base", "self",
}  # fmt: skip
"""What `dspy.Predict`, `dspy.Signature` and demos keep for themselves."""


class Fields:
    """The fields of one declared type, and the way there and back.

    Args:
        schema: The type of a node's input or output.
        whole: What the one field of a type that is no model is called: `input` or `output`.
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
        """A value as its fields; models inside stay models."""
        if self.model is None:
            return dict.fromkeys(self.names, value)
        return {name: getattr(value, own, None) for name, own in self.names.items()}

    def data(self, fields: Mapping[str, Any]) -> Any:
        """What validates to the value that has these fields."""
        if self.model is None:
            return fields[next(iter(self.names))]
        keys = field_keys(self.model)
        return {keys[own]: fields[name] for name, own in self.names.items() if name in fields}

    def join(self, fields: Mapping[str, Any]) -> Any:
        """The value that has these fields.

        Raises:
            ValidationError: they do not fit; `KeyError`: the only one is missing.
        """
        data = self.data(fields)
        try:
            return self.schema.validate(data)
        except ValidationError:
            return self.schema.load(data) if _is_plain(data) else self.schema.adapter.validate_python(data)

    def infos(self) -> dict[str, tuple[Any, str | None]]:
        """Name in the signature -> its type and description."""
        if self.model is None:
            return dict.fromkeys(self.names, (self.schema.type, None))
        fields = self.model.model_fields
        return {name: (fields[own].annotation, fields[own].description) for name, own in self.names.items()}


def _is_plain(data: object) -> bool:
    if isinstance(data, (list, tuple)):
        return all(map(_is_plain, cast("list[object]", data)))
    if isinstance(data, dict):
        return all(map(_is_plain, cast("dict[object, object]", data).values()))
    return data is None or isinstance(data, (str, int, float, bool))


def reject_reserved(fields: Fields, what: str) -> None:
    """Refuse names that DSPy keeps for itself.

    Raises:
        DeclarationError: it names the type, the field and what to do.
    """
    for own in fields.names.values():
        if own in _RESERVED or own.startswith(("_", "dspy_")):
            msg = (
                f"{what}: the field `{own}` of {fields.schema.name} cannot be a field of a DSPy signature, which keeps "
                "that name for itself: rename it (an alias keeps the JSON as it is), or wrap the value in another model"
            )
            raise DeclarationError(msg)


def signature_of(path: str, takes: Fields, gives: Fields, instructions: str) -> type[dspy.Signature]:
    """A fresh signature of one stage: its fields marked with its path, its text as the instructions."""
    fields: dict[str, tuple[Any, FieldInfo]] = {}
    untyped = cast("Any", dspy)
    for side, make in ((takes, untyped.InputField), (gives, untyped.OutputField)):
        for name, (type_, description) in side.infos().items():
            field = cast("FieldInfo", make(desc=description) if description else make())
            cast("dict[str, Any]", field.json_schema_extra)[STAGE_ID] = path
            known = isinstance(type_, (type, types.UnionType)) or get_origin(type_) is not None
            fields[name] = (type_ if known else Any, field)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a field may be called `copy` or `schema`: nobody asks for those
        try:
            return _made(fields, instructions)
        except Exception:  # noqa: BLE001 - a type that pydantic has no schema for is no obstacle, DSPy only shows it
            return _made({name: (Any, field) for name, (_, field) in fields.items()}, instructions)


def _made(fields: dict[str, tuple[Any, FieldInfo]], instructions: str) -> type[dspy.Signature]:
    return cast("Any", dspy.Signature)(fields, instructions)
