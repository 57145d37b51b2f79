"""How values of a type are written as JSON: as Pydantic does it, without losing numbers that are not finite."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic_core import CoreConfig, PydanticSerializationError, SchemaSerializer

from .types import is_dict, is_mapping, is_sequence

_APART = frozenset({"metadata", "default", "expected", "members", "cls", "config", "function"})
"""Parts of a core schema that hold no core schemas."""

_LEFT_OUT = {"serialization_exclude", "serialization_exclude_if"}
_FIELDS = ("model-fields", "typed-dict", "dataclass-args")


def encodable(text: str) -> str:
    """A text that can be written to a file: half a surrogate pair, which models do send, is replaced."""
    return text.encode(errors="replace").decode()


def escaped(text: str) -> str:
    """The same, with the half written as its escape, for texts that people read."""
    return text.encode(errors="backslashreplace").decode()


def hashed(*texts: str) -> str:
    """A hash of several texts as 24 hexadecimal digits, equal in every process."""
    digest = blake2b(digest_size=12)
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def json_of(adapter: TypeAdapter[Any], value: object) -> str:
    """A value as JSON text; half a surrogate pair, which models do send, is replaced.

    Raises:
        PydanticSerializationError: a part of the value has no JSON.
    """
    try:
        return adapter.dump_json(value).decode()
    except PydanticSerializationError:
        return encodable(json.dumps(adapter.dump_python(value, mode="json"), ensure_ascii=False))


@dataclass(slots=True)
class Traits:
    """Facts about the JSON of a type's values."""

    hides: bool = False
    """Whether a part of it may be left out or masked on purpose: a secret, an excluded field."""
    clashes: bool = False
    """Whether the alias of one field is the name of another."""
    classes: set[type] = field(default_factory=set[type])
    """The models and dataclasses in it: of an instance of a subclass, only their own fields are written."""


def traits_of(core: Any) -> Traits:
    """The traits of a core schema."""
    found = Traits()
    for node in _nodes(core):
        kind = node.get("type")
        if kind in ("model", "dataclass"):
            found.classes.add(node["cls"])
        elif kind in _FIELDS:
            named = list(_fields(node))
            names = {name for name, _ in named}
            found.clashes |= any(names & set(_aliases(one)) - {name} for name, one in named)
            found.hides |= any(one.keys() & _LEFT_OUT for _, one in named)
        elif kind == "union":  # an infinite number is written as a text, and would be read as a text
            found.hides |= {"float", "str"} <= {_kind(choice) for choice in node["choices"]}
        found.hides |= _masks(node)
    return found


def _nodes(core: Any) -> Iterator[dict[str, Any]]:
    if is_dict(core):
        yield core
        if _custom(core):
            return  # what a custom serializer writes is not known
        for key, part in core.items():
            if key not in _APART:
                yield from _nodes(part)
    elif is_sequence(core):
        for part in core:
            yield from _nodes(part)


def _custom(node: Mapping[str, Any]) -> bool:
    how = node.get("serialization")
    return is_dict(how) and how.get("type") == "function-plain"


def _masks(node: Mapping[str, Any]) -> bool:
    if not _custom(node):
        return False
    function = node["serialization"]["function"]
    return getattr(function, "__module__", "") == "pydantic.types" and "secret" in getattr(function, "__name__", "")


def _kind(choice: Any) -> str:
    schema = choice[0] if is_sequence(choice) else choice
    return schema.get("type", "")


def _fields(node: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    fields: object = node["fields"]
    if is_dict(fields):
        return fields.items()
    return [(one["name"], one) for one in node["fields"]]


def _aliases(one: Mapping[str, Any]) -> list[str]:
    """The other names under which validation looks for a field; a path into deeper data is not a name."""
    alias: Any = one.get("validation_alias")
    if isinstance(alias, str):
        return [alias]
    choices: list[Any] = alias if alias and isinstance(alias[0], list) else []
    return [path[0] for path in choices if len(path) == 1]


def serializer_of(core: Any, config: CoreConfig, *, asked: bool = False) -> SchemaSerializer:
    """A serializer that writes numbers that are not finite as texts, which a validator reads; a model may configure it.

    Args:
        core: The core schema of the type.
        config: For types without a configuration of their own.
        asked: Whether fields get the names that validation looks for, instead of their serialization aliases.
    """
    rewritten = _rewritten(core, asked=asked)
    try:
        return SchemaSerializer(rewritten, config, _use_prebuilt=False)  # else the serializer of each model is used
    except TypeError:  # a Pydantic without the argument uses no prebuilt serializers
        return SchemaSerializer(rewritten, config)


def _rewritten(core: Any, *, asked: bool) -> Any:
    if is_sequence(core):
        return type(core)(_rewritten(part, asked=asked) for part in core)
    if not is_dict(core):
        return core
    copied = {key: part if key in _APART else _rewritten(part, asked=asked) for key, part in core.items()}
    if is_dict(config := copied.get("config")):
        copied["config"] = {"ser_json_inf_nan": "strings", **config}
    if asked and copied.get("type") in _FIELDS:
        for _, one in _fields(copied):
            aliases = _aliases(one)
            one.pop("serialization_alias", None)
            if aliases:
                one["serialization_alias"] = aliases[0]
    return copied


def alike(value: object, again: object, *, equal: bool) -> bool:
    """Whether *again* is *value* read back: equal, or without *equal* of the same classes at any depth."""
    if equal:
        try:
            return bool(value == again)
        except Exception:  # noqa: BLE001 - a user's type may compare in any way
            return False
    return _same_classes(value, again)


def _same_classes(value: Any, again: Any) -> bool:
    if isinstance(value, BaseModel):
        if _class_of(value) is not _class_of(again):
            return False
        names = type(value).model_fields
        return all(_same_classes(getattr(value, name, None), getattr(again, name, None)) for name in names)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value) is not type(again):
            return False
        fields = dataclasses.fields(value)
        return all(_same_classes(getattr(value, one.name, None), getattr(again, one.name, None)) for one in fields)
    if is_mapping(value):
        return is_mapping(again) and all(map(_same_classes, value.values(), again.values()))
    if is_sequence(value):
        return is_sequence(again) and all(map(_same_classes, value, again))
    return True


def _class_of(value: object) -> type:
    """The class without its parameters: `Box(inside=1)` counts as a `Box[int]`."""
    origin = getattr(type(value), "__pydantic_generic_metadata__", {}).get("origin")
    return origin or type(value)
