"""Pages, filters and errors that the read endpoints share."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, cast

__all__ = ["Query", "Refused", "Row", "cursor_page", "matches", "moment", "now", "numbered_page"]

Row = dict[str, Any]
"""One JSON object."""

Query = Mapping[str, Sequence[str]]
"""The decoded query string."""


class Refused(Exception):  # noqa: N818 - it is an answer, not an error of the server
    """An answer other than the usual one: status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def moment(text: str) -> datetime:
    """An ISO 8601 time; one without an offset is refused as the API does."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(400, f"Invalid ISO 8601 time: {text!r}") from None
    if parsed.tzinfo is None:
        raise Refused(400, f"Time without offset: {text!r}")
    return parsed


def now() -> str:
    """The current time as the server writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _limit(query: Query, default: int, highest: int) -> int:
    limit = int(query.get("limit", [str(default)])[0])
    if not 0 < limit <= highest:
        raise Refused(400, f"limit must be between 1 and {highest}, not {limit}")
    return limit


def cursor_page(rows: Iterable[Row], query: Query, *, by: str, highest: int) -> tuple[list[Row], Row]:
    """The rows after the cursor, newest first, and the `meta` object; new rows never shift a later page."""
    limit = _limit(query, 50, highest)

    def place(row: Row) -> list[str]:
        return [row[by], row["id"]]

    ordered = sorted(rows, key=place, reverse=True)
    if cursor := query.get("cursor"):
        try:
            after: list[str] = json.loads(base64.urlsafe_b64decode(cursor[0]))
        except ValueError:
            raise Refused(400, "Invalid cursor") from None
        ordered = [row for row in ordered if place(row) < after]
    page, meta = ordered[:limit], cast("Row", {})
    if len(ordered) > limit:
        meta["cursor"] = base64.urlsafe_b64encode(json.dumps(place(page[-1])).encode()).decode()
    return page, meta


def numbered_page(rows: Sequence[Row], query: Query) -> Row:
    """The answer of an endpoint with page numbers."""
    limit, page = _limit(query, 50, 100), int(query.get("page", ["1"])[0])
    pages = math.ceil(len(rows) / limit)
    meta = {"page": page, "limit": limit, "totalItems": len(rows), "totalPages": pages}
    return {"data": list(rows[(page - 1) * limit : page * limit]), "meta": meta}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_ON_TEXT: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "=": str.__eq__,
    "contains": str.__contains__,
    "does not contain": lambda have, want: want not in have,
    "starts with": str.startswith,
    "ends with": str.endswith,
    "matches": str.__contains__,
}
_ON_ORDER: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "=": lambda have, want: have == want,
    ">": lambda have, want: have > want,
    "<": lambda have, want: have < want,
    ">=": lambda have, want: have >= want,
    "<=": lambda have, want: have <= want,
}
_COLUMNS: Final = {
    "traceTags": "tags",
    "providedModelName": "model",
    "experimentId": "experimentId",
}
_USAGE: Final = {"inputTokens": "input", "outputTokens": "output", "totalTokens": "total", "tokens": "total"}
_COSTS: Final = {"inputCost": "input", "outputCost": "output"}


def _column(row: Row, name: str) -> Any:
    if name in _USAGE:
        return row["usageDetails"].get(_USAGE[name])
    if name in _COSTS:
        return row["costDetails"].get(_COSTS[name])
    name = _COLUMNS.get(name, name)
    if name not in row:
        raise Refused(400, f"Unknown filter column {name!r}")
    return row[name]


def _holds(row: Row, condition: Row) -> bool:
    kind, operator, want = str(condition["type"]), str(condition["operator"]), condition.get("value")
    have: Any = _column(row, str(condition["column"]))
    if kind in {"stringObject", "numberObject", "categoryOptions"}:
        have = cast("Row", have or {}).get(condition["key"])
        kind = {"stringObject": "string", "numberObject": "number", "categoryOptions": "stringOptions"}[kind]
    match kind:
        case "null":
            return (have is None) == (operator == "is null")
        case "string" if operator in {"is set", "is not set"}:
            return (have is not None) == (operator == "is set")
        case "string" if operator in _ON_TEXT:
            return have is not None and _ON_TEXT[operator](_text(have), str(want))
        case "number" if operator in _ON_ORDER:
            return isinstance(have, int | float) and _ON_ORDER[operator](have, want)
        case "datetime" if operator in _ON_ORDER:
            return have is not None and _ON_ORDER[operator](moment(have), moment(str(want)))
        case "boolean" if operator in {"=", "<>"}:
            return (have == want) == (operator == "=")
        case "stringOptions" if operator in {"any of", "none of"}:
            return (have in cast("list[Any]", want)) == (operator == "any of")
        case "arrayOptions" if operator in {"any of", "none of", "all of"}:
            found = set(cast("list[Any]", have or [])) & set(cast("list[Any]", want))
            return (
                len(found) == len(set(cast("list[Any]", want)))
                if operator == "all of"
                else bool(found) == (operator == "any of")
            )
        case _:
            raise Refused(400, f"Invalid filter: {kind} {operator!r}")


def matches(rows: Iterable[Row], text: str) -> list[Row]:
    """The rows that fulfil every condition of a `filter` parameter."""
    try:
        conditions: list[Row] = json.loads(text)
        searched = [one for one in conditions if one["column"] in {"input", "output"}]
        if searched and not any(one["operator"] in {"=", "matches"} for one in searched):
            raise Refused(400, "A filter on input or output needs at least one of = and matches")
        return [row for row in rows if all(_holds(row, condition) for condition in conditions)]
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(400, f"Invalid filter: {error!r}") from error
