"""How values of a type are written as JSON: as Pydantic does it, and whole wherever JSON can say it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import CoreConfig, SchemaSerializer

__all__ = ["Traits", "alike", "encodable", "escaped", "hashed", "serializer_of", "traits_of"]

_APART = frozenset({"metadata", "default", "expected", "members", "cls", "config", "function"})
"""Parts of a core schema that hold no core schemas."""

_LEFT_OUT = {"serialization_exclude", "serialization_exclude_if"}
_FIELDS = ("model-fields", "typed-dict", "dataclass-args")


def encodable(text: str) -> str:
    """A text that can be written to a file: half a surrogate pair, which a model may well send, is replaced."""
    return text.encode(errors="replace").decode()


def escaped(text: str) -> str:
    """The same with the half shown as its escape, for texts that people read."""
    return text.encode(errors="backslashreplace").decode()


def hashed(*texts: str) -> str:
    """24 hexadecimal digits of several texts, equal in every process."""
    digest = blake2b(digest_size=12)
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


@dataclass(slots=True)
class Traits:
    """What a type says about the JSON of its values."""

    hides: bool = False
    """Whether something in it may be left out or masked on purpose: a secret, an excluded field."""
    clashes: bool = False
    """Whether one field has for its alias what another one has for its name."""
    classes: set[type] = field(default_factory=set[type])
    """The models and dataclasses in it: of an instance of a subclass, only what they declare is written."""


def traits_of(core: Any) -> Traits:
    """Read a core schema through."""
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
        elif kind == "union":  # an infinite number is written as text, and would be read as one
            found.hides |= {"float", "str"} <= {_kind(choice) for choice in node["choices"]}
        found.hides |= _masks(node)
    return found


def _nodes(core: Any) -> Iterator[dict[str, Any]]:
    if isinstance(core, Mapping):
        node = cast("dict[str, Any]", core)
        yield node
        if _written_by_hand(node):
            return  # what a serializer of the user's own makes of it, nobody else can know
        for key, part in node.items():
            if key not in _APART:
                yield from _nodes(part)
    elif isinstance(core, (list, tuple)):
        for part in cast("list[Any]", core):
            yield from _nodes(part)


def _written_by_hand(node: Mapping[str, Any]) -> bool:
    how = node.get("serialization")
    return isinstance(how, dict) and cast("dict[str, Any]", how).get("type") == "function-plain"


def _masks(node: Mapping[str, Any]) -> bool:
    if not _written_by_hand(node):
        return False
    function = node["serialization"]["function"]
    return getattr(function, "__module__", "") == "pydantic.types" and "secret" in getattr(function, "__name__", "")


def _kind(choice: Any) -> str:
    schema = cast("tuple[Any, ...]", choice)[0] if isinstance(choice, tuple) else choice
    return cast("dict[str, Any]", schema).get("type", "")


def _fields(node: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    fields = node["fields"]
    if isinstance(fields, dict):
        return cast("dict[str, dict[str, Any]]", fields).items()
    return [(one["name"], one) for one in fields]


def _aliases(one: Mapping[str, Any]) -> list[str]:
    """The names under which a field is looked for, besides its own; what lies deeper in the data has none."""
    alias: Any = one.get("validation_alias")
    if isinstance(alias, str):
        return [alias]
    choices: list[Any] = alias if alias and isinstance(alias[0], list) else []
    return [path[0] for path in choices if len(path) == 1]


def serializer_of(core: Any, config: CoreConfig, *, asked: bool = False) -> SchemaSerializer:
    """A serializer that writes what is no finite number as text, as a validator reads it, unless a model says else.

    Args:
        core: The core schema of the type.
        config: For what brings no configuration of its own.
        asked: Whether aliases are those that a model of the type is made from, not those that it is shown with.
    """
    rewritten = _rewritten(core, asked=asked)
    try:
        return SchemaSerializer(rewritten, config, _use_prebuilt=False)  # each model's own would go first
    except TypeError:  # a Pydantic without the argument has none that was built before
        return SchemaSerializer(rewritten, config)


def _rewritten(core: Any, *, asked: bool) -> Any:
    if isinstance(core, list):
        return [_rewritten(part, asked=asked) for part in cast("list[Any]", core)]
    if isinstance(core, tuple):
        return tuple(_rewritten(part, asked=asked) for part in cast("tuple[Any, ...]", core))
    if not isinstance(core, Mapping):
        return core
    node = cast("dict[str, Any]", core)
    copied = {key: part if key in _APART else _rewritten(part, asked=asked) for key, part in node.items()}
    if isinstance(config := copied.get("config"), dict):
        copied["config"] = {"ser_json_inf_nan": "strings", **cast("dict[str, Any]", config)}
    if asked and copied.get("type") in _FIELDS:
        for _, one in _fields(copied):
            aliases = _aliases(one)
            one.pop("serialization_alias", None)
            if aliases:
                one["serialization_alias"] = aliases[0]
    return copied


def alike(value: object, again: object, *, equal: bool) -> bool:
    """Whether what was read back is what was written: equal, or else of the same classes all through."""
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
    if isinstance(value, Mapping):
        inside = cast("Mapping[Any, Any]", value)
        return isinstance(again, Mapping) and all(map(_same_classes, inside.values(), again.values()))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    if isinstance(value, (list, tuple)):
        return isinstance(again, (list, tuple)) and all(
            map(_same_classes, cast("list[Any]", value), cast("list[Any]", again))
        )
    return True


def _class_of(value: object) -> type:
    """The class, or the generic one that it is a form of: `Box(inside=1)` does for a `Box[int]`."""
    origin = getattr(type(value), "__pydantic_generic_metadata__", {}).get("origin")
    return origin or type(value)
