"""Closed types: their plain JSON determines every value, so that a record of one needs no proof.

A model of texts, numbers, lists and other such models is closed, as long as a value consists of exactly those classes:
an instance of a subclass, or `True` where a number is declared, is not covered. A union, a set or a validator is open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, Flag
from typing import Any
from uuid import UUID

from pydantic_core import TzInfo

from .types import Check

_ABSENT = object()
_LEAVES: dict[str, type] = {
    "none": type(None),
    "str": str,
    "int": int,
    "bool": bool,
    "date": date,
    "uuid": UUID,
}
_CONSTRAINTS = {"gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern", "regex_engine"}
_ANY = {"type", "ref", "metadata", "strict", "frozen", "title", *_CONSTRAINTS}
_CONFIG = {
    *("title", "frozen", "strict", "from_attributes", "loc_by_alias", "extra_fields_behavior"),
    *("validate_by_name", "validate_by_alias", "populate_by_name", "serialize_by_alias"),
}
"""What a configuration may say without an effect on JSON by the names of fields."""
_KEYS: dict[str, set[str]] = {
    **{kind: set() for kind in (*_LEAVES, "float", "decimal")},
    "datetime": {"microseconds_precision"},
    "definitions": {"schema", "definitions"},
    "definition-ref": {"schema_ref"},
    "nullable": {"schema"},
    "default": {"schema", "default", "default_factory", "default_factory_takes_data", "validate_default"},
    "list": {"items_schema"},
    "dict": {"keys_schema", "values_schema"},
    "literal": {"expected"},
    "enum": {"cls", "members", "sub_type"},
    "model": {"cls", "schema", "config", "root_model", "custom_init", "generic_origin"},
    "model-fields": {"fields", "model_name", "computed_fields"},
    "model-field": {"schema", "validation_alias", "serialization_alias"},
    "dataclass": {"cls", "schema", "config", "fields", "post_init", "slots", "generic_origin"},
    "dataclass-args": {"fields", "dataclass_name", "computed_fields", "collect_init_only"},
    "dataclass-field": {"name", "schema", "init", "kw_only", "validation_alias", "serialization_alias"},
}
"""Kind of a core schema -> the keys that are known to leave it closed; any other kind or key makes a type open."""


class _OpenError(Exception):
    """A part of the type is open."""


def closed(core: Any) -> Check | None:
    """A check whether plain JSON determines a value of the type with this core schema; `None` if the type is open."""
    try:
        return _Checks().of(core)
    except _OpenError:
        return None


class _Checks:
    """The checks of the parts of one type."""

    def __init__(self) -> None:
        self._defined: dict[str, Any] = {}
        self._made: dict[str, Check] = {}

    def of(self, node: Mapping[str, Any]) -> Check:
        kind: str = node["type"]
        if kind not in _KEYS or node.keys() - _ANY - _KEYS[kind]:
            raise _OpenError
        if kind in _LEAVES:
            return _exactly(_LEAVES[kind])
        make: Callable[[Mapping[str, Any]], Check] = getattr(self, f"_{kind.replace('-', '_')}")
        return make(node)

    def _definitions(self, node: Mapping[str, Any]) -> Check:
        self._defined.update((one["ref"], one) for one in node["definitions"])
        return self.of(node["schema"])

    def _definition_ref(self, node: Mapping[str, Any]) -> Check:
        ref: str = node["schema_ref"]
        if ref not in self._made:
            self._made[ref] = lambda value: self._made[ref](value)  # the type may contain itself
            self._made[ref] = self.of(self._defined[ref])
        return self._made[ref]

    def _float(self, _node: Mapping[str, Any]) -> Check:
        return lambda value: type(value) is float and value - value == 0  # a finite one

    def _decimal(self, _node: Mapping[str, Any]) -> Check:
        return lambda value: type(value) is Decimal and value.is_finite()

    def _datetime(self, _node: Mapping[str, Any]) -> Check:
        def exact(value: Any) -> bool:
            zone = value.tzinfo if type(value) is datetime else _ABSENT
            return (zone is None or zone is UTC or type(zone) is TzInfo) and not value.fold

        return exact

    def _nullable(self, node: Mapping[str, Any]) -> Check:
        inner = self.of(node["schema"])
        return lambda value: value is None or inner(value)

    def _default(self, node: Mapping[str, Any]) -> Check:
        return self.of(node["schema"])

    def _list(self, node: Mapping[str, Any]) -> Check:
        item = self.of(node.get("items_schema", {"type": "any"}))
        return lambda value: type(value) is list and all(map(item, value))

    def _dict(self, node: Mapping[str, Any]) -> Check:
        if node.get("keys_schema", {"type": "any"})["type"] != "str":
            raise _OpenError
        key, item = self.of(node["keys_schema"]), self.of(node.get("values_schema", {"type": "any"}))
        return lambda value: type(value) is dict and all(map(key, value)) and all(map(item, value.values()))

    def _literal(self, node: Mapping[str, Any]) -> Check:
        return _exactly(_one_of(node["expected"]))

    def _enum(self, node: Mapping[str, Any]) -> Check:
        cls: type[Enum] = node["cls"]
        _one_of([member.value for member in cls])
        if issubclass(cls, Flag):
            raise _OpenError
        return _exactly(cls)

    def _model(self, node: Mapping[str, Any]) -> Check:
        config, cls = node.get("config", {}), node["cls"]
        odd = node.get("root_model") or node.get("custom_init") or getattr(cls, "__private_attributes__", None)
        if odd or config.keys() - _CONFIG or config.get("extra_fields_behavior") == "allow":
            raise _OpenError
        return self._instance(cls, node["schema"], lambda fields: fields.items())

    def _dataclass(self, node: Mapping[str, Any]) -> Check:
        if node.get("post_init") or node.get("config", {}).keys() - _CONFIG:
            raise _OpenError
        return self._instance(node["cls"], node["schema"], lambda fields: ((one["name"], one) for one in fields))

    def _instance(self, cls: type, inner: Mapping[str, Any], named: Callable[[Any], Any]) -> Check:
        if inner["type"] not in {"model-fields", "dataclass-args"} or inner.keys() - _ANY - _KEYS[inner["type"]]:
            raise _OpenError
        fields: list[tuple[str, Check]] = []
        for name, one in named(inner["fields"]):
            if one.keys() - _ANY - _KEYS[one["type"]] or not one.get("init", True):
                raise _OpenError
            fields.append((name, self.of(one["schema"])))

        def exact(value: Any) -> bool:
            if type(value) is not cls or len(getattr(value, "__dict__", fields)) != len(fields):
                return False
            for name, fits in fields:  # noqa: SIM110 - a generator takes twice as long
                if not fits(getattr(value, name, _ABSENT)):
                    return False
            return True

        return exact


def _exactly(cls: type) -> Check:
    return lambda value: type(value) is cls


def _one_of(options: list[Any]) -> type:
    """The class of all options, if JSON keeps them apart."""
    kinds = set(map(type, options))
    if kinds not in ({str}, {int}):
        raise _OpenError
    return kinds.pop()
