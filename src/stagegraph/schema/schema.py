"""The declared type of a node's input or output: checked, read and written in one place."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Any, cast, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import (
    CoreConfig,
    PydanticSerializationError,
    SchemaSerializer,
    from_json,
    to_json,
    to_jsonable_python,
)

from .checks import Check, check
from .names import type_name
from .serialize import Traits, alike, encodable, serializer_of, traits_of

__all__ = ["Schema", "as_json", "field_keys", "ordered", "plain", "recorded", "shown_json"]

# Values are no names: kept for the next time that they are read, each would stay in memory.
_BYTES = ConfigDict(
    arbitrary_types_allowed=True, ser_json_bytes="base64", val_json_bytes="base64", cache_strings="keys"
)
_WHOLE = CoreConfig(ser_json_inf_nan="strings")


class Schema:
    """One declared type: an instance check for every call, validation and JSON for the outer doors.

    JSON has three forms. The record (`to_json`, `dump`, `recall`) goes by the names of fields and leaves out what is
    computed, so that a value comes back as it was. What others see (`show`) is what the type's own JSON schema says:
    aliases, and computed fields. What a model is asked for (`answer`) is what the value would be made from.
    """

    def __init__(self, type_: Any) -> None:
        self.type = type_
        self.is_instance: Check = check(type_)
        """Whether a value fits: an instance check that neither copies nor coerces."""

    @property
    def name(self) -> str:
        """How a person writes the type."""
        return type_name(self.type)

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        return self._configured[0]

    @cached_property
    def _configured(self) -> tuple[TypeAdapter[Any], CoreConfig]:
        try:
            return TypeAdapter(self.type, config=_BYTES), {**_WHOLE, "ser_json_bytes": "base64"}
        except PydanticUserError:  # a model brings a configuration of its own
            return TypeAdapter(self.type), _WHOLE

    @cached_property
    def fingerprint(self) -> str:
        """The type's JSON schema as a hash; a type without one is known by its name."""
        return blake2b(self._described.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()

    @cached_property
    def _described(self) -> str:
        try:
            return json.dumps(self.adapter.json_schema(), sort_keys=True, default=str)
        except Exception:  # noqa: BLE001 - a user's type may fail in any way here
            return str(self.type).replace("typing.", "") if get_args(self.type) else self.name

    def to_json(self, value: object) -> bytes:
        """The record of a value that fits, the same in every process: a set comes in another order in each.

        Raises:
            PydanticSerializationError: the value, or something in it, cannot be written down.
        """
        if self._holds_sets:
            try:
                data = self.serializer.to_python(value, by_alias=False, round_trip=True, warnings=False)
                return to_json(ordered(data), bytes_mode="base64", inf_nan_mode="strings")
            except TypeError:  # a set of models: as plain data they are in no set
                pass
        return self.record(value)

    def record(self, value: object) -> bytes:
        """The same, with sets as they come."""
        return self.serializer.to_json(value, by_alias=False, round_trip=True, warnings=False)

    @cached_property
    def _holds_sets(self) -> bool:
        return '"uniqueItems"' in self._described

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
        """What the type says about the JSON of its values."""
        try:
            return traits_of(self.adapter.core_schema)
        except PydanticUserError:  # it cannot be written anyway
            return Traits()

    def round_trips(self, value: object, record: bytes | str) -> bool:
        """Whether this record of a value says all there is: no secret, excluded field or subclass is lost in it."""
        traits = self.traits
        if not traits.hides and not (traits.classes and any(map(type.__subclasses__, traits.classes))):
            return True
        try:
            return alike(value, self.recall(from_json(record, cache_strings="keys")), equal=self.traits.hides)
        except ValidationError:
            return False

    def validate(self, raw: object) -> Any:
        """Turn outside data into the type; a value that fits already passes as it is.

        What stands in `Annotated` is known to validation alone, so such a type is always validated.
        """
        if self.is_instance(raw) and not self._annotated:
            return raw
        return self.adapter.validate_python(raw, by_alias=True, by_name=True)

    @cached_property
    def _annotated(self) -> bool:
        return _mentions_annotated(self.type)

    def load(self, data: object) -> Any:
        """Read JSON data that others wrote: by alias, or by the names of fields."""
        return self.adapter.validate_json(json.dumps(data), by_alias=True, by_name=True)

    def recall(self, data: object) -> Any:
        """Read back what `dump` wrote."""
        if self.traits.clashes:
            try:
                return self.adapter.validate_json(json.dumps(data), by_alias=False, by_name=True)
            except ValidationError:
                pass
        try:
            return self.load(data)
        except ValidationError:
            numbers = _with_numbers(data)
            if numbers is data:
                raise
            return self.load(numbers)

    def dump(self, value: object) -> Any:
        """The record as plain data; a value that does not fit its type is written as it can be."""
        return from_json(self.record(value), cache_strings="keys") if self.is_instance(value) else plain(value)

    def show(self, value: object) -> Any:
        """Plain data for those outside, as the type's JSON schema says it is."""
        if not self.is_instance(value):
            return plain(value)
        try:
            return from_json(self.show_json(value), cache_strings="keys")
        except PydanticSerializationError:  # it may be no more than half a surrogate pair in a text
            return legible(self.serializer.to_python(value, mode="json", by_alias=True, warnings=False))

    def show_json(self, value: object) -> bytes:
        """The same as JSON.

        Raises:
            PydanticSerializationError: the value, or something in it, cannot be written down.
        """
        return self.serializer.to_json(value, by_alias=True, warnings=False)

    def answer(self, value: object) -> Any:
        """Plain data by the names that the type's values are made from: what a model would answer."""
        if not self.is_instance(value):
            return plain(value)
        return from_json(
            self._asked.to_json(value, by_alias=True, round_trip=True, warnings=False), cache_strings="keys"
        )


def plain(value: object) -> Any:
    """JSON data for anything: what has no JSON is shown as Python shows it."""
    data = to_jsonable_python(value, fallback=repr, serialize_unknown=True)
    return legible(data)


def legible(data: object) -> Any:
    """JSON data with what no file could hold replaced: half surrogate pairs, and numbers that are not finite."""
    texts = json.loads(encodable(json.dumps(data, ensure_ascii=False)))
    return from_json(to_json(texts, inf_nan_mode="strings"), cache_strings="keys")


def field_keys(model: type[BaseModel]) -> dict[str, str]:
    """Field -> what the model wants it to be called when it is made."""
    found: dict[str, str] = {}
    for name, info in model.model_fields.items():
        alias = info.validation_alias or info.alias
        if isinstance(alias, AliasChoices):
            alias = next((choice for choice in alias.choices if isinstance(choice, str)), None)
        found[name] = alias if isinstance(alias, str) else name
    return found


def ordered(data: Any) -> Any:
    """Plain data with each set as a sorted list: a set comes in another order in each process."""
    if isinstance(data, (set, frozenset)):
        return sorted(map(ordered, cast("set[Any]", data)), key=repr)
    if isinstance(data, Mapping):
        return {key: ordered(value) for key, value in cast("Mapping[Any, Any]", data).items()}
    if isinstance(data, (list, tuple)):
        return [ordered(item) for item in cast("list[Any]", data)]
    return data


_NO_NUMBERS = {text: float(text) for text in ("Infinity", "-Infinity", "NaN")}


def _with_numbers(data: Any) -> Any:
    """The same with numbers for the texts that stand for what is no finite number: a strict model reads no text."""
    if isinstance(data, str):
        return _NO_NUMBERS.get(data, data)
    if isinstance(data, list):
        items = cast("list[Any]", data)
        found = [_with_numbers(item) for item in items]
        return items if all(map(operator.is_, items, found)) else found
    if isinstance(data, dict):
        before = cast("dict[str, Any]", data)
        after = {name: _with_numbers(value) for name, value in before.items()}
        return before if all(map(operator.is_, before.values(), after.values())) else after
    return data


def _mentions_annotated(type_: Any) -> bool:
    return get_origin(type_) is Annotated or any(map(_mentions_annotated, get_args(type_)))


def as_json(schema: Schema, value: object) -> str:
    """A value as JSON through its type; one that does not fit is written as it can be."""
    return recorded(schema, value, checked=False)[0]


def shown_json(schema: Schema, value: object) -> str:
    """The same for those outside: as the type's JSON schema says."""
    try:
        return schema.show_json(value).decode()
    except (PydanticSerializationError, ValueError, TypeError):
        return _as_it_can_be(value)


def recorded(schema: Schema, value: object, *, checked: bool) -> tuple[str, bool]:
    """The JSON of a value, and whether it comes back from it as it was, if that is *checked*."""
    try:
        text = schema.record(value).decode()
        return text, not checked or schema.round_trips(value, text)
    except (PydanticSerializationError, ValueError, TypeError):
        return _as_it_can_be(value), False


def _as_it_can_be(value: object) -> str:
    try:
        return json.dumps(plain(value), ensure_ascii=False)
    except (PydanticSerializationError, ValueError, TypeError):
        return json.dumps(f"<{type(value).__name__}>")
