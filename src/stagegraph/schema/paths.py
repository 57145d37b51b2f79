"""The fields of a JSON schema by dotted path: finding them, and changing their descriptions in a copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from .types import is_dict, is_list, is_mapping

MOST_FIELDS = 500
"""The most fields of one schema, the outermost first: types that contain each other have endless paths."""

_LOOKED_THROUGH = ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf")
"""Keys that are no part of a path: the items of a list, the values of a mapping, the options of a union."""
_REFERENCE = "#/$defs/"

Node = dict[str, Any]


def fields_in(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Dotted path -> the schema of the field there, in the order of the schema, outer ones before inner ones.

    Lists, unions and references are no part of a path. A type inside itself is not entered again; of several options
    with a field of one name, the first counts.
    """
    defs: Mapping[str, Any] = schema.get("$defs", {})
    found: dict[str, Mapping[str, Any]] = {}
    seen: set[tuple[str, str]] = set()
    waiting: deque[tuple[Any, str, frozenset[str]]] = deque([(schema, "", frozenset())])
    while waiting and len(found) < MOST_FIELDS:
        node, path, above = waiting.popleft()
        if is_list(node):
            waiting.extendleft((option, path, above) for option in reversed(node))
            continue
        if not is_mapping(node):
            continue
        name = _target(node)
        if name in defs and name not in above and (path, name) not in seen:
            seen.add((path, name))
            waiting.appendleft((defs[name], path, above | {name}))
        waiting.extendleft((node[key], path, above) for key in reversed(_LOOKED_THROUGH) if key in node)
        for name, field in node.get("properties", {}).items():
            if is_dict(field):
                place = _below(path, name)
                found.setdefault(place, field)
                waiting.append((field, place, above))
    return found


def described(schema: Mapping[str, Any], texts: Mapping[str, str]) -> Node:
    """A copy of a schema with *texts* (path -> text) as descriptions; an empty text removes a description.

    Where a type is used at two places and only one changes, that place refers to a changed copy of the type. A type
    that contains itself directly refers to its changed copy.
    """
    if not texts:
        return dict(schema)
    copy = _Copy(schema.get("$defs", {}), texts)
    root = copy.of({key: value for key, value in schema.items() if key != "$defs"}, "", {})
    defs = _used(root, copy.defs)
    return {**root, "$defs": defs} if defs else root


class _Copy:
    """One copy while it is made."""

    def __init__(self, defs: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        self.defs = dict(defs)
        self._texts = texts
        self._made: dict[tuple[str, str], str] = {}
        """A path and the type there -> the name of the type's copy."""

    def of(self, node: Any, path: str, above: Mapping[str, str]) -> Any:
        """The copy of a part at *path*; *above* has the types around it -> the names of their copies."""
        if is_list(node):
            return [self.of(option, path, above) for option in node]
        if not is_dict(node):
            return node
        new = dict(node)
        name = _target(new)
        if name in above:
            new["$ref"] = _REFERENCE + above[name]
        elif name in self.defs and self._changes_below(path):
            new["$ref"] = _REFERENCE + self._changed(name, path, above)
        for key in _LOOKED_THROUGH:
            if key in new:
                new[key] = self.of(new[key], path, above)
        if "discriminator" in new:
            new["discriminator"] = _pointed(new["discriminator"], node, new)
        if is_dict(fields := new.get("properties")):
            new["properties"] = {name: self._field(field, _below(path, name), above) for name, field in fields.items()}
        return new

    def _field(self, field: Any, path: str, above: Mapping[str, str]) -> Any:
        new = self.of(field, path, above)
        if path in self._texts and is_dict(new):
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
        self.defs[new] = body  # the name is taken before the copy is made
        self.defs[new] = self.of(body, path, {**above, name: new})
        return new

    def _changes_below(self, path: str) -> bool:
        return not path or any(place.startswith(f"{path}.") for place in self._texts)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _target(node: Mapping[str, Any]) -> str:
    """The name of the type that a node refers to; empty where it is no reference."""
    reference = node.get("$ref")
    return reference.removeprefix(_REFERENCE) if isinstance(reference, str) else ""


def _pointed(discriminator: Any, old: Node, new: Node) -> Any:
    """A discriminator that refers to the options by their new names."""
    options = [
        (str(before.get("$ref")), after.get("$ref"))
        for key in ("oneOf", "anyOf")
        for before, after in zip(old.get(key, []), new.get(key, []), strict=True)
    ]
    called = dict(options)
    mapping: Mapping[str, str] = discriminator.get("mapping", {})
    return {**discriminator, "mapping": {value: called.get(place, place) for value, place in mapping.items()}}


def _used(root: Node, defs: Mapping[str, Any]) -> Node:
    """The types that are still referred to, in their order."""
    used: set[str] = set()
    waiting: list[Any] = [root]
    while waiting:
        node = waiting.pop()
        if is_dict(node):
            name = _target(node)
            if name in defs and name not in used:
                used.add(name)
                waiting.append(defs[name])
            waiting.extend(node.values())
        elif is_list(node):
            waiting.extend(node)
    return {name: body for name, body in defs.items() if name in used}
