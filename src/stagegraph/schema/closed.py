"""Closed types: their plain JSON determines every value, so that a record of one needs no proof.

A model of texts, numbers, lists and other such models is closed, as long as a value consists of exactly those classes:
an instance of a subclass, or `True` where a number is declared, is not covered. A union, a set or a validator is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import TzInfo

from .types import Check

_LEAVES: dict[str, type] = {"none": type(None), "str": str, "int": int, "bool": bool, "model-fields": object}
_ANYTHING = {"type": "any"}
_ANY = {
    *("type", "ref", "metadata", "strict", "frozen", "gt", "ge", "lt", "le", "multiple_of"),
    *("min_length", "max_length", "pattern", "validation_alias", "serialization_alias"),
}
_KEYS: dict[str, set[str]] = {
    **{kind: set() for kind in (*_LEAVES, "float")},
    "definitions": {"schema", "definitions"},
    "definition-ref": {"schema_ref"},
    "nullable": {"schema"},
    "default": {"schema", "default", "default_factory", "default_factory_takes_data", "validate_default"},
    "list": {"items_schema"},
    "dict": {"keys_schema", "values_schema"},
    "literal": {"expected"},
    "enum": {"cls", "members", "sub_type"},
    "datetime": {"microseconds_precision"},
    "model": {"cls", "schema", "config", "root_model", "custom_init", "generic_origin"},
    "model-fields": {"fields", "model_name", "computed_fields"},
    "model-field": {"schema"},
}
"""Kind of a core schema -> the keys that leave it closed, besides those of any kind; all others make a type open."""
_CONFIG = {
    *("title", "frozen", "strict", "from_attributes", "extra_fields_behavior"),
    *("validate_by_name", "validate_by_alias", "populate_by_name", "serialize_by_alias"),
}
"""The same for the configuration of a model."""

_Kind = type | Check
"""A class, whose own instances are meant, or a check."""


class _OpenError(Exception):
    """A part of the type is open."""


def closed(core: Any) -> Check | None:
    """A check whether plain JSON determines a value of the type with this core schema; `None` if the type is open."""
    try:
        return _check(_Kinds().of(core))
    except _OpenError:
        return None


class _Kinds:
    """What the parts of one type are made of."""

    def __init__(self) -> None:
        self._defined: dict[str, Any] = {}
        self._made: dict[str, Check] = {}

    def of(self, node: Mapping[str, Any], expected: str | None = None) -> _Kind:
        kind: str = node["type"]
        if kind not in _KEYS or node.keys() - _ANY - _KEYS[kind] or expected not in {None, kind}:
            raise _OpenError
        if kind in _LEAVES:
            return _LEAVES[kind]
        if kind in {"default", "model-field"}:
            return self.of(node["schema"])
        make: Callable[[Mapping[str, Any]], _Kind] = getattr(self, f"_{kind.replace('-', '_')}")
        return make(node)

    def _definitions(self, node: Mapping[str, Any]) -> _Kind:
        self._defined.update((one["ref"], one) for one in node["definitions"])
        return self.of(node["schema"])

    def _definition_ref(self, node: Mapping[str, Any]) -> _Kind:
        ref, made = node["schema_ref"], self._made
        if ref not in made:
            made[ref] = lambda value: made[ref](value)  # noqa: PLW0108 - replaced below: the type may contain itself
            made[ref] = _check(self.of(self._defined[ref]))
        return made[ref]

    def _float(self, _node: Mapping[str, Any]) -> Check:
        return lambda value: type(value) is float and value - value == 0  # a finite one

    def _nullable(self, node: Mapping[str, Any]) -> Check:
        inner = _check(self.of(node["schema"]))
        return lambda value: value is None or inner(value)

    def _list(self, node: Mapping[str, Any]) -> Check:
        fit = _all(self.of(node.get("items_schema", _ANYTHING)))
        return lambda value: value.__class__ is list and fit(value)

    def _dict(self, node: Mapping[str, Any]) -> Check:
        if self.of(node.get("keys_schema", _ANYTHING)) is not str:
            raise _OpenError
        fit = _all(self.of(node.get("values_schema", _ANYTHING)))
        named = _all(str)
        return lambda value: value.__class__ is dict and named(value) and fit(value.values())

    def _datetime(self, _node: Mapping[str, Any]) -> Check:
        def fits(value: Any) -> bool:
            zone = value.tzinfo if type(value) is datetime else ...
            return (zone is None or zone is UTC or type(zone) is TzInfo) and not value.fold

        return fits

    def _enum(self, node: Mapping[str, Any]) -> _Kind:
        self._literal({"expected": [member.value for member in node["cls"]]})
        kind: type = node["cls"]
        return kind

    def _literal(self, node: Mapping[str, Any]) -> _Kind:
        if {type(option) for option in node["expected"]} != {str}:
            raise _OpenError
        return str

    def _model(self, node: Mapping[str, Any]) -> _Kind:
        config, cls, inner = node.get("config", {}), node["cls"], node["schema"]
        odd = node.get("root_model") or node.get("custom_init") or getattr(cls, "__private_attributes__", None)
        if odd or config.keys() - _CONFIG or config.get("extra_fields_behavior") == "allow":
            raise _OpenError
        self.of(inner, "model-fields")
        fields = {name: self.of(one, "model-field") for name, one in inner["fields"].items()}
        exact = [(name, kind) for name, kind in fields.items() if isinstance(kind, type)]
        checked = [(name, kind) for name, kind in fields.items() if not isinstance(kind, type)]

        def fits(value: Any) -> bool:
            state: Mapping[str, Any] = value.__dict__ if type(value) is cls else {}
            if len(state) != len(fields) or (not state and type(value) is not cls):
                return False
            for name, kind in exact:
                if type(state.get(name, ...)) is not kind:
                    return False
            for name, fit in checked:  # noqa: SIM110 - a generator takes longer
                if not fit(state.get(name, ...)):
                    return False
            return True

        return fits


def _check(kind: _Kind) -> Check:
    return (lambda value: type(value) is kind) if isinstance(kind, type) else kind


def _all(kind: _Kind) -> Callable[[Iterable[Any]], bool]:
    """A check of several values."""
    if isinstance(kind, type):
        one = {kind}
        return lambda values: set(map(type, values)) <= one
    return lambda values: all(map(kind, values))
