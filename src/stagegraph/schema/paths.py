"""The fields of a JSON schema by dotted path: found, and described otherwise in a copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, cast

__all__ = ["MOST_FIELDS", "described", "fields_in"]

MOST_FIELDS = 500
"""Fields of one schema that have a path, the outermost first: types that contain each other have no end of them."""

_LOOKED_THROUGH = ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf")
"""What a path does not mention: the items of a list, the values of a mapping, the options of a union."""
_REFERENCE = "#/$defs/"

Node = dict[str, Any]


def fields_in(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Dotted path -> the schema of the field there, in the order of the schema, outer ones before inner ones.

    Lists, unions and references are looked through. A type inside itself is not gone through again; of several
    options with a field of one name, the first counts.
    """
    defs: Mapping[str, Any] = schema.get("$defs", {})
    found: dict[str, Mapping[str, Any]] = {}
    seen: set[tuple[str, str]] = set()
    waiting: deque[tuple[Any, str, frozenset[str]]] = deque([(schema, "", frozenset())])
    while waiting and len(found) < MOST_FIELDS:
        node, path, above = waiting.popleft()
        if isinstance(node, list):
            waiting.extendleft((option, path, above) for option in reversed(cast("list[Any]", node)))
            continue
        if not isinstance(node, Mapping):
            continue
        node = cast("Mapping[str, Any]", node)
        name = _target(node)
        if name in defs and name not in above and (path, name) not in seen:
            seen.add((path, name))
            waiting.appendleft((defs[name], path, above | {name}))
        waiting.extendleft((node[key], path, above) for key in reversed(_LOOKED_THROUGH) if key in node)
        for name, field in cast("Mapping[str, Any]", node.get("properties", {})).items():
            if isinstance(field, dict):
                field = cast("Node", field)
                place = _below(path, name)
                found.setdefault(place, field)
                waiting.append((field, place, above))
    return found


def described(schema: Mapping[str, Any], texts: Mapping[str, str]) -> Node:
    """A copy of a schema whose fields are described by *texts* (path -> text); an empty text removes a description.

    Where one type is used at two places and only one is changed, that place refers to a changed copy of it. A type
    that contains itself directly refers to its changed self.
    """
    if not texts:
        return dict(schema)
    copy = _Copy(schema.get("$defs", {}), texts)
    root = copy.of({key: value for key, value in schema.items() if key != "$defs"}, "", {})
    defs = _used(root, copy.defs)
    return {**root, "$defs": defs} if defs else root


class _Copy:
    """One copy in the making."""

    def __init__(self, defs: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        self.defs = dict(defs)
        self._texts = texts
        self._made: dict[tuple[str, str], str] = {}
        """A place and the type there -> what its copy is called."""

    def of(self, node: Any, path: str, above: Mapping[str, str]) -> Any:
        """The copy of a part at *path*; *above* has the types that it stands in, and what they are called now."""
        if isinstance(node, list):
            return [self.of(option, path, above) for option in cast("list[Any]", node)]
        if not isinstance(node, dict):
            return node
        new = dict(cast("Node", node))
        name = _target(new)
        if name in above:
            new["$ref"] = _REFERENCE + above[name]
        elif name in self.defs and self._changes_below(path):
            new["$ref"] = _REFERENCE + self._changed(name, path, above)
        for key in _LOOKED_THROUGH:
            if key in new:
                new[key] = self.of(new[key], path, above)
        if "discriminator" in new:
            new["discriminator"] = _pointed(new["discriminator"], cast("Node", node), new)
        if isinstance(new.get("properties"), dict):
            fields = cast("Node", new["properties"])
            new["properties"] = {name: self._field(field, _below(path, name), above) for name, field in fields.items()}
        return new

    def _field(self, field: Any, path: str, above: Mapping[str, str]) -> Any:
        new = self.of(field, path, above)
        if path in self._texts and isinstance(new, dict):
            new = cast("Node", new)
            new["description"] = self._texts[path]
            if not new["description"]:
                del new["description"]
        return new

    def _changed(self, name: str, path: str, above: Mapping[str, str]) -> str:
        if (path, name) in self._made:
            return self._made[path, name]
        number = 2
        while f"{name}_{number}" in self.defs:
            number += 1
        new = self._made[path, name] = f"{name}_{number}"
        body = self.defs[name]
        self.defs[new] = body  # taken, before its own copy is made
        self.defs[new] = self.of(body, path, {**above, name: new})
        return new

    def _changes_below(self, path: str) -> bool:
        return not path or any(place.startswith(f"{path}.") for place in self._texts)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _target(node: Mapping[str, Any]) -> str:
    """The name of the type that a reference is to; empty when it is none."""
    reference = node.get("$ref")
    return reference.removeprefix(_REFERENCE) if isinstance(reference, str) else ""


def _pointed(discriminator: Any, old: Node, new: Node) -> Any:
    """A discriminator that points at the options as they are called now."""
    options = [
        (str(before.get("$ref")), after.get("$ref"))
        for key in ("oneOf", "anyOf")
        for before, after in zip(old.get(key, []), new.get(key, []), strict=True)
    ]
    called = dict(options)
    mapping: Mapping[str, str] = discriminator.get("mapping", {})
    return {**discriminator, "mapping": {value: called.get(place, place) for value, place in mapping.items()}}


def _used(root: Node, defs: Mapping[str, Any]) -> Node:
    """The types that are still referred to, in the order they had."""
    used: set[str] = set()
    waiting: list[Any] = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            node = cast("Node", node)
            name = _target(node)
            if name in defs and name not in used:
                used.add(name)
                waiting.append(defs[name])
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(cast("list[Any]", node))
    return {name: body for name, body in defs.items() if name in used}
