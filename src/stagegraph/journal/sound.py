"""Whether a row that is read is one that a journal writes: disks fail, and other programs write into files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args

from pydantic_core import from_json

from stagegraph.data.call import Kind, Status, is_usage, load_pending
from stagegraph.record.rows import CallRow, CancelRow, DamagedError, FeedbackRow, Labels, OpRow, Row, RunRow
from stagegraph.schema.types import is_dict


def _is_json(value: str) -> bool:
    try:
        from_json(value, cache_strings="none")
    except ValueError:  # it takes no half surrogate pairs, and less depth
        try:
            json.loads(value)
        except ValueError as error:
            return not isinstance(error, json.JSONDecodeError)  # else a number of more digits than Python reads
    return True


def _is_source(value: str) -> bool:
    run_id, key = json.loads(value)
    return isinstance(run_id, str) and isinstance(key, str)


_CHECKS: dict[str, Callable[[Any], object]] = {
    "labels": Labels.from_json,
    "usage": is_usage,
    "parts": lambda value: is_dict(from_json(value)),
    "messages": lambda value: value[0] == "[" and _is_json(value),
    "pending": load_pending,
    "source": _is_source,
    "value": lambda value: isinstance(json.loads(value), (bool, int, float, str)),
    "Json": _is_json,
    "float": lambda value: abs(value) < 6e10,  # noqa: PLR2004 - seconds until the years that no calendar has
    "Status": get_args(Status).__contains__,
    "Kind": get_args(Kind).__contains__,
}
"""Name or type of a column -> the check of its values, which returns `False` or fails for a damaged one."""
_TYPES = {"int": (int,), "bool": (int,), "float": (float, int)}


class _Columns:
    """How the columns of a table are checked."""

    def __init__(self, row_type: type[Row]) -> None:
        self.types: dict[str, tuple[type, ...]] = {}
        self.checks: list[tuple[str, object, Callable[[Any], object]]] = []
        """Name, the default, which needs no check, and the check."""
        for one in fields(row_type):
            type_ = str(one.type).removesuffix(" | None")
            nothing = () if type_ == one.type else (type(None),)
            self.types[one.name] = (*_TYPES.get(type_, (str,)), *nothing)
            if (check := _CHECKS.get(one.name) or _CHECKS.get(type_)) is not None:
                self.checks.append((one.name, None if one.default is MISSING else one.default, check))
        self.seen: set[tuple[type, ...]] = set()
        """The types of the values of sound rows."""

    def damaged(self, values: Mapping[str, Any]) -> str | None:
        """The name of a column with a value that no journal writes."""
        found: tuple[type, ...] = tuple([values[name].__class__ for name in self.types])
        if found not in self.seen:
            for name, types in self.types.items():
                if not isinstance(values[name], types):
                    return name
            self.seen.add(found)
        for name, default, check in self.checks:
            value = values[name]
            if value is None or value == default:
                continue
            try:
                sound = check(value)
            except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
                return name
            if sound is False:
                return name
        return None


_COLUMNS = {row_type: _Columns(row_type) for row_type in (RunRow, CallRow, OpRow, FeedbackRow, CancelRow)}


def check_row(row_type: type[Row], values: Mapping[str, Any]) -> None:
    """Refuse values that no journal writes.

    Raises:
        DamagedError: it names the record and its column.
    """
    if (name := _COLUMNS[row_type].damaged(values)) is not None:
        call = f"call {values['key']!r} of " if values.get("key") else ""
        msg = f"the record of {call}run {values['run_id']!r} is damaged: its `{name}` is {values[name]!r:.60}"
        raise DamagedError(msg)
