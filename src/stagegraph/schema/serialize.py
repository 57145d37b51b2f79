"""How values of a type are written as JSON: as Pydantic does it, without losing numbers that are not finite."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import CoreConfig, PydanticSerializationError, SchemaSerializer

from .types import is_dict, is_sequence

_APART = frozenset({"metadata", "default", "expected", "members", "cls", "config", "function"})
"""Parts of a core schema that hold no core schemas."""
_BY_NAME = ("fields", "choices")
"""Parts of a core schema whose keys, if they have any, are names that a user chose."""

NO_JSON = "<without JSON: "
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


def json_of(adapter: TypeAdapter[Any], value: object, *, fallback: Callable[[Any], str] | None = None) -> str:
    """A value as JSON text; half a surrogate pair, which models do send, is replaced.

    *fallback* gives a text for an object without JSON.

    Raises:
        PydanticSerializationError: a part of the value has no JSON.
    """
    try:
        return adapter.dump_json(value, fallback=fallback, warnings=fallback is None).decode()
    except PydanticSerializationError:
        data = adapter.dump_python(value, mode="json", fallback=fallback, warnings=fallback is None)
        return encodable(json.dumps(data, ensure_ascii=False))


def without_json(value: object) -> str:
    """The text for an object without JSON: the same in every process."""
    return f"{NO_JSON}{type(value).__name__}>"


class Traits:
    """Facts about the JSON of the values of a type with this core schema."""

    def __init__(self, core: Any, type_: Any) -> None:
        nodes, own = list(_nodes(core)), list(_nodes(core, of=type_))
        fields = [one for node in nodes for one in _fields(node)]
        self.hides = any(map(_is_left_out, fields)) or any(map(_masks, nodes))
        """Whether a part of it may be left out or masked: a secret, an excluded field."""
        computed = any(node.get("computed_fields") for node in nodes)
        self.renames = computed or any("serialization_alias" in one for one in fields)
        """Whether the public form differs from the record: by an alias, or a computed field."""
        self.own_form = any(map(_written_by_a_user, own)) or any(
            _is_left_out(one) for node in own for one in _fields(node)
        )
        """Whether the type itself, apart from the classes in it, leaves a part out or writes it in a way of its own."""


def _nodes(core: Any, *, of: Any = None) -> Iterator[dict[str, Any]]:
    """All parts of a core schema; with *of*, those of classes other than that are left out."""
    if is_dict(core):
        if of is not None and core.get("type") in {"model", "dataclass"} and core["cls"] is not of:
            return
        yield core
        if _custom(core):
            return  # what a custom serializer writes is not known
        for key, part in core.items():
            if key not in _APART:
                named = key in _BY_NAME and is_dict(part)
                yield from _nodes(list(part.values()) if named else part, of=of)
    elif is_sequence(core):
        for part in core:
            yield from _nodes(part, of=of)


def _is_left_out(field: Mapping[str, Any]) -> bool:
    return bool(field.get("serialization_exclude")) or _by_a_user(field.get("serialization_exclude_if"))


def _written_by_a_user(node: Mapping[str, Any]) -> bool:
    how = node.get("serialization")
    if not is_dict(how) or how.get("type") not in {"function-plain", "function-wrap"}:
        return False
    return _masks(node) or _by_a_user(how["function"])


def _by_a_user(function: object) -> bool:
    """Whether a function that writes values is none of Pydantic's or Pydantic AI's own, which hide nothing."""
    return function is not None and not getattr(function, "__module__", "").startswith(("pydantic.", "pydantic_ai."))


def _custom(node: Mapping[str, Any]) -> bool:
    how = node.get("serialization")
    return is_dict(how) and how.get("type") == "function-plain"


def _masks(node: Mapping[str, Any]) -> bool:
    if not _custom(node):
        return False
    function = node["serialization"]["function"]
    return getattr(function, "__module__", "") == "pydantic.types" and "secret" in getattr(function, "__name__", "")


def _fields(node: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    fields: Any = node["fields"] if node.get("type") in _FIELDS else ()
    return fields.values() if is_dict(fields) else fields


def _alias(one: Mapping[str, Any]) -> str | None:
    """The first other name under which validation looks for a field; a path into deeper data is not a name."""
    alias: Any = one.get("validation_alias") or []
    if isinstance(alias, str):
        return alias
    paths = alias if alias and isinstance(alias[0], list) else [alias]
    return next((path[0] for path in paths if len(path) == 1), None)


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
    copied: dict[str, Any] = {}
    for key, part in core.items():
        if key in _BY_NAME and is_dict(part):
            copied[key] = {name: _rewritten(one, asked=asked) for name, one in part.items()}
        else:
            copied[key] = part if key in _APART else _rewritten(part, asked=asked)
    if is_dict(config := copied.get("config")):
        copied["config"] = {"ser_json_inf_nan": "strings", **config}
    if asked:
        for one in _fields(copied):
            one.pop("serialization_alias", None)
            if alias := _alias(one):
                one["serialization_alias"] = alias
    return copied
