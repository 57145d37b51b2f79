"""Pages, filters and errors that the read endpoints share."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

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


def matches(rows: Iterable[Row], text: str) -> list[Row]:
    """The rows that fulfil every condition of a `filter` parameter; of the operators there is `=` on texts only."""
    try:
        conditions: list[Row] = json.loads(text)
        if any((one["type"], one["operator"]) != ("string", "=") for one in conditions):
            raise Refused(400, "Not served here")
        return [row for row in rows if all(row[one["column"]] == one["value"] for one in conditions)]
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(400, f"Invalid filter: {error!r}") from error
