"""The declared type of a node's input or output: its check, validation and JSON."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import (
    CoreConfig,
    PydanticSerializationError,
    SchemaError,
    SchemaSerializer,
    core_schema,
    from_json,
    to_json,
    to_jsonable_python,
)

from .closed import closed
from .same import lazy, same
from .serialize import Traits, encodable, serializer_of
from .types import Check, check, is_mapping, is_sequence, is_set, type_name
from .whole import Whole

# Only keys are cached for the next reading: cached values would stay in memory.
_BYTES = ConfigDict(
    arbitrary_types_allowed=True, ser_json_bytes="base64", val_json_bytes="base64", cache_strings="keys"
)
_WHOLE = CoreConfig(ser_json_inf_nan="strings")
_WHOLE_BYTES = CoreConfig(ser_json_inf_nan="strings", ser_json_bytes="base64")
_MOST_DIGITS = sys.int_info.default_max_str_digits


class Record(NamedTuple):
    """What is written down of a value."""

    plain: str
    """JSON, for readers: by the names of fields, without computed fields; as far as possible where it has no JSON."""
    whole: str | None
    """The value in the form of `whole.Whole`, where its plain JSON does not determine it; empty where neither does."""

    @property
    def holds(self) -> bool:
        """Whether the value can be made from the record, type included: only then may it stand for the value."""
        return self.whole != ""

    @property
    def identity(self) -> bytes | None:
        """What a value and no other has; `None` without a record that holds it."""
        if self.whole is None:
            return self.plain.encode()
        return f"${self.whole}".encode() if self.whole else None


class Schema:
    """One declared type: an instance check for every call, validation and JSON at the outer doors.

    JSON has three forms:
    - The record (`recorded`, read by `recall`) has the names of fields and leaves out computed fields, so that a value
      comes back as it was. Where that is not enough, it has the value in a second form, and it is proved that the value
      comes back.
    - The public form (`show`, `show_json`, `published`) is what the type's JSON schema says: aliases, computed fields.
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

    @property
    def adapter(self) -> TypeAdapter[Any]:
        """Pydantic's adapter.

        Raises:
            PydanticUserError: Pydantic does not know the type.
        """
        made = self._configured[0]
        if isinstance(made, str):
            raise PydanticUserError(made, code=None)
        return made

    @cached_property
    def _configured(self) -> tuple[TypeAdapter[Any] | str, CoreConfig]:
        """The adapter, or why there is none, and the configuration of serializers."""
        failure = ""
        for given, config in ((_BYTES, _WHOLE_BYTES), (None, _WHOLE)):  # a model may have a configuration of its own
            try:
                return TypeAdapter(self.type, config=given), config
            except (PydanticUserError, SchemaError) as error:
                failure = error.message if isinstance(error, PydanticUserError) else str(error)
        return failure, _WHOLE_BYTES

    @cached_property
    def _core(self) -> Any:
        made = self._configured[0]
        return core_schema.any_schema() if isinstance(made, str) else made.core_schema

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
        return serializer_of(self._core, self._configured[1])

    @cached_property
    def _asked(self) -> SchemaSerializer:
        return serializer_of(self._core, self._configured[1], asked=True)

    @cached_property
    def traits(self) -> Traits:
        """Facts about the JSON of the type's values."""
        found = Traits(self._core, self.type)
        found.hides |= isinstance(self._configured[0], str)
        return found

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

    @cached_property
    def _closed(self) -> Check | None:
        return closed(self._core)

    @cached_property
    def _whole(self) -> Whole:
        return Whole(self, Schema)

    def record(self, value: object) -> bytes:
        """The plain record of an instance; a set is written in an arbitrary order.

        Raises:
            PydanticSerializationError: the value, or a part of it, has no JSON.
        """
        return self.serializer.to_json(value, by_alias=False, round_trip=True, warnings=False)

    def check_written(self, value: object) -> None:
        """Refuse an instance that can be written down as a text about it only.

        Raises:
            PydanticSerializationError: the value, or a part of it, has no JSON.
        """
        try:
            _ = lazy(value) or self.record(value)
        except PydanticSerializationError as error:
            if "surrogates" not in str(error):  # which are replaced
                raise

    def _sorted_record(self, value: object) -> bytes:
        """The same with sorted sets, so that equal values have equal records in every process."""
        if not self._holds_sets:
            return self.record(value)
        data = self.serializer.to_python(value, by_alias=False, round_trip=True, warnings=False)
        return to_json(ordered(data), bytes_mode="base64", inf_nan_mode="strings")

    @cached_property
    def _holds_sets(self) -> bool:
        return '"uniqueItems"' in self._described

    def recorded(self, value: object) -> Record:
        """The record of any value; that of a closed type needs no proof that it comes back."""
        try:
            exact = self._closed is not None and self._closed(value)
            if not exact and lazy(value):
                return Record(_as_far_as_possible(value), "")
            plain = (self.record(value) if exact else self._sorted_record(value)).decode()
            if len(plain) > _MOST_DIGITS:
                _check_readable(plain)
            if exact or self._comes_back(value, plain):
                return Record(plain, None)
        except (ValueError, TypeError, RecursionError):
            plain = _as_far_as_possible(value)
        try:
            whole = self._whole.write(value)
        except (ValueError, TypeError, RecursionError):
            return Record(plain, "")
        return Record(plain, whole if self._comes_back(value, plain, whole) else "")

    def published(self, value: object) -> Record:
        """The same with the public form in place of the plain record, which is the second form where it is needed."""
        found = self.recorded(value)
        if not self.traits.renames or lazy(value):
            return found
        try:
            shown = self.show_json(value).decode()
        except (ValueError, TypeError, RecursionError):
            return found
        if not found.whole and self._comes_back(value, shown):
            return Record(shown, None)
        return Record(shown, f'{{"$":{found.plain}}}' if found.whole is None else found.whole)

    def _comes_back(self, value: object, plain: str, whole: str | None = None) -> bool:
        try:
            return same(value, self.recall(plain, whole))
        except Exception:  # noqa: BLE001 - a user's type may compare in any way
            return False

    def load(self, data: object) -> Any:
        """Read JSON data that was written elsewhere: by alias, or by the names of fields."""
        return self.adapter.validate_json(json.dumps(data), by_alias=True, by_name=True)

    def build(self, fields: object) -> Any:
        """Validate the fields of an instance, by name, each a value already."""
        return self.adapter.validate_python(fields, by_alias=False, by_name=True)

    def recall(self, text: str, whole: str | None = None) -> Any:
        """Read a record: its plain JSON, or its second form where it has one.

        Raises:
            ValueError: it cannot be read back.
        """
        try:
            return self._whole.read(whole) if whole else self._recalled(text)
        except ValueError:
            raise
        except Exception as error:
            msg = f"this is no {self.name}: {type(error).__name__}: {error}"
            raise ValueError(msg) from error

    def _recalled(self, text: str) -> Any:
        read = self.adapter.validate_json
        with suppress(ValidationError):  # else the alias of one field could be taken for the name of another
            return read(text, by_alias=False, by_name=True, extra="forbid")
        return read(text, by_alias=True, by_name=True)

    def show(self, value: object) -> Any:
        """The public form as plain data; a value of another type is written as far as possible."""
        if not self.is_instance(value) or (self._closed is None and lazy(value)):
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

    def answer(self, value: object) -> Any:
        """The form of an answer as plain data."""
        if not self.is_instance(value):
            return plain(value)
        return from_json(
            self._asked.to_json(value, by_alias=True, round_trip=True, warnings=False), cache_strings="keys"
        )


def plain(value: object) -> Any:
    """JSON data for any value; an object without JSON, or that can be gone through only once, as its `repr`."""
    if lazy(value):
        return repr(value)
    return _legible(to_jsonable_python(value, fallback=repr, serialize_unknown=True))


def _legible(data: object) -> Any:
    """JSON data with what no file can hold replaced: half surrogate pairs, and numbers that are not finite."""
    texts = json.loads(encodable(json.dumps(data, ensure_ascii=False)))
    return from_json(to_json(texts, inf_nan_mode="strings"), cache_strings="keys")


def _as_far_as_possible(value: object) -> str:
    try:
        return json.dumps(plain(value), ensure_ascii=False)
    except Exception:  # noqa: BLE001 - a user's `__repr__` may raise
        return json.dumps(f"<{type(value).__name__}>")


def _check_readable(text: str) -> None:
    """Refuse a JSON text that Python cannot read.

    Raises:
        ValueError: it has an integer of more digits than Python reads.
    """
    for place in range(_MOST_DIGITS, len(text), _MOST_DIGITS):  # each longer integer is at one of these places
        if text[place - 9 : place + 1].isdigit() or text[place : place + 10].isdigit():
            json.loads(text)
            break


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


def _mentions_annotated(type_: Any) -> bool:
    return get_origin(type_) is Annotated or any(map(_mentions_annotated, get_args(type_)))
