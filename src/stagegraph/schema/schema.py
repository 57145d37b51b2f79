"""The declared type of a node's input or output: its check, validation and JSON."""

from __future__ import annotations

import json
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Any, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import (
    CoreConfig,
    PydanticSerializationError,
    SchemaSerializer,
    from_json,
    to_json,
    to_jsonable_python,
)

from .serialize import Traits, alike, encodable, serializer_of, traits_of
from .types import Check, check, is_dict, is_list, is_mapping, is_sequence, is_set, type_name

# Only keys are cached for the next reading: cached values would stay in memory.
_BYTES = ConfigDict(
    arbitrary_types_allowed=True, ser_json_bytes="base64", val_json_bytes="base64", cache_strings="keys"
)
_WHOLE = CoreConfig(ser_json_inf_nan="strings")


class Schema:
    """One declared type: an instance check for every call, validation and JSON at the outer doors.

    JSON has three forms:
    - The record (`record`, `to_json`, `as_json`; read by `recall`) has the names of fields and leaves out
      computed fields, so that a value comes back as it was.
    - The public form (`show`, `show_json`, `shown`) is what the type's JSON schema says: aliases, and computed fields.
    - The form of an answer (`answer`) has the names that a value is made from: what a model is asked for.
    """

    def __init__(self, type_: Any) -> None:
        self.type = type_
        self.is_instance: Check = check(type_)
        """Whether a value is an instance of the type; neither copies nor coerces."""

    @property
    def name(self) -> str:
        """The type as it is written in code."""
        return type_name(self.type)

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        return self._configured[0]

    @cached_property
    def _configured(self) -> tuple[TypeAdapter[Any], CoreConfig]:
        try:
            return TypeAdapter(self.type, config=_BYTES), {**_WHOLE, "ser_json_bytes": "base64"}
        except PydanticUserError:  # a model has a configuration of its own
            return TypeAdapter(self.type), _WHOLE

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the type's JSON schema, or of its name where it has no JSON schema."""
        return blake2b(self._described.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()

    @cached_property
    def _described(self) -> str:
        try:
            return json.dumps(self.adapter.json_schema(), sort_keys=True, default=str)
        except Exception:  # noqa: BLE001 - a user's type may fail in any way here
            return str(self.type).replace("typing.", "") if get_args(self.type) else self.name

    @cached_property
    def serializer(self) -> SchemaSerializer:
        adapter, config = self._configured
        return serializer_of(adapter.core_schema, config)

    @cached_property
    def _asked(self) -> SchemaSerializer:
        adapter, config = self._configured
        return serializer_of(adapter.core_schema, config, asked=True)

    @cached_property
    def traits(self) -> Traits:
        """Facts about the JSON of the type's values."""
        try:
            return traits_of(self.adapter.core_schema)
        except PydanticUserError:  # the type has no JSON at all
            return Traits()

    def validate(self, raw: object) -> Any:
        """Turn outside data into the type; an instance passes unchanged.

        A type with `Annotated` is always validated, since only validation knows its constraints.
        """
        if self.is_instance(raw) and not self._annotated:
            return raw
        return self.adapter.validate_python(raw, by_alias=True, by_name=True)

    @cached_property
    def _annotated(self) -> bool:
        return _mentions_annotated(self.type)

    def record(self, value: object) -> bytes:
        """The record of an instance; a set is written in an arbitrary order.

        Raises:
            PydanticSerializationError: the value, or a part of it, has no JSON.
        """
        return self.serializer.to_json(value, by_alias=False, round_trip=True, warnings=False)

    def to_json(self, value: object) -> bytes:
        """The record with sorted sets, so that equal values have equal records in every process.

        Raises:
            PydanticSerializationError: the value, or a part of it, has no JSON.
        """
        if self._holds_sets:
            try:
                data = self.serializer.to_python(value, by_alias=False, round_trip=True, warnings=False)
                return to_json(ordered(data), bytes_mode="base64", inf_nan_mode="strings")
            except TypeError:  # a set of models: as dicts they cannot be in a set
                pass
        return self.record(value)

    @cached_property
    def _holds_sets(self) -> bool:
        return '"uniqueItems"' in self._described

    def as_json(self, value: object) -> str:
        """The record of any value; a value without JSON is written as far as possible."""
        return self.recorded(value, checked=False)[0]

    def recorded(self, value: object, *, checked: bool) -> tuple[str, bool]:
        """The same, and whether it survives the round trip; only looked at if *checked*."""
        try:
            text = self.record(value).decode()
            return text, not checked or self.round_trips(value, text)
        except (ValueError, TypeError):
            return _as_far_as_possible(value), False

    def round_trips(self, value: object, record: bytes | str) -> bool:
        """Whether a record holds the whole value: no secret, excluded field or subclass is lost in it."""
        traits = self.traits
        if not traits.hides and not (traits.classes and any(map(type.__subclasses__, traits.classes))):
            return True
        try:
            return alike(value, self.recall(from_json(record, cache_strings="keys")), equal=self.traits.hides)
        except ValidationError:
            return False

    def load(self, data: object) -> Any:
        """Read JSON data that was written elsewhere: by alias, or by the names of fields."""
        return self.adapter.validate_json(json.dumps(data), by_alias=True, by_name=True)

    def recall(self, data: object) -> Any:
        """Read a record."""
        if self.traits.clashes:
            try:
                return self.adapter.validate_json(json.dumps(data), by_alias=False, by_name=True)
            except ValidationError:
                pass
        try:
            return self.load(data)
        except ValidationError:
            numbers = _with_numbers(data)
            if numbers == data:
                raise
            return self.load(numbers)

    def show(self, value: object) -> Any:
        """The public form as plain data; a value of another type is written as far as possible."""
        if not self.is_instance(value):
            return plain(value)
        try:
            return from_json(self.show_json(value), cache_strings="keys")
        except PydanticSerializationError:  # perhaps only half a surrogate pair in a text
            return _legible(self.serializer.to_python(value, mode="json", by_alias=True, warnings=False))

    def show_json(self, value: object) -> bytes:
        """The public form as JSON.

        Raises:
            PydanticSerializationError: the value, or a part of it, has no JSON.
        """
        return self.serializer.to_json(value, by_alias=True, warnings=False)

    def shown(self, value: object) -> str:
        """The public form of any value as JSON; a value without JSON is written as far as possible."""
        try:
            return self.show_json(value).decode()
        except (ValueError, TypeError):
            return _as_far_as_possible(value)

    def answer(self, value: object) -> Any:
        """The form of an answer as plain data."""
        if not self.is_instance(value):
            return plain(value)
        return from_json(
            self._asked.to_json(value, by_alias=True, round_trip=True, warnings=False), cache_strings="keys"
        )


def plain(value: object) -> Any:
    """JSON data for any value; an object without JSON is written as its `repr`."""
    return _legible(to_jsonable_python(value, fallback=repr, serialize_unknown=True))


def _legible(data: object) -> Any:
    """JSON data with what no file can hold replaced: half surrogate pairs, and numbers that are not finite."""
    texts = json.loads(encodable(json.dumps(data, ensure_ascii=False)))
    return from_json(to_json(texts, inf_nan_mode="strings"), cache_strings="keys")


def _as_far_as_possible(value: object) -> str:
    try:
        return json.dumps(plain(value), ensure_ascii=False)
    except (ValueError, TypeError):
        return json.dumps(f"<{type(value).__name__}>")


def field_keys(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the name under which validation looks for it."""
    found: dict[str, str] = {}
    for name, info in model.model_fields.items():
        alias = info.validation_alias or info.alias
        if isinstance(alias, AliasChoices):
            alias = next((choice for choice in alias.choices if isinstance(choice, str)), None)
        found[name] = alias if isinstance(alias, str) else name
    return found


def ordered(data: Any) -> Any:
    """Plain data with each set as a sorted list: the order of a set differs between processes."""
    if is_set(data):
        return sorted(map(ordered, data), key=repr)
    if is_mapping(data):
        return {key: ordered(value) for key, value in data.items()}
    if is_sequence(data):
        return list(map(ordered, data))
    return data


_NO_NUMBERS = {text: float(text) for text in ("Infinity", "-Infinity", "NaN")}


def _with_numbers(data: Any) -> Any:
    """Data with numbers in place of their texts where they are not finite: a strict model does not read the texts."""
    if isinstance(data, str):
        return _NO_NUMBERS.get(data, data)
    if is_list(data):
        return list(map(_with_numbers, data))
    if is_dict(data):
        return {name: _with_numbers(value) for name, value in data.items()}
    return data


def _mentions_annotated(type_: Any) -> bool:
    return get_origin(type_) is Annotated or any(map(_mentions_annotated, get_args(type_)))
