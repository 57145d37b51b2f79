"""What one observation of a trace says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

__all__ = ["OURS", "Row", "cut_metadata", "is_root", "label_of", "meta", "told"]

Row = Mapping[str, Any]

OURS = {
    "run_id", "key", "path", "kind", "status", "segment", "resumed", "replayed", "attempts", "prompt_source",
    "fan_out_index", "fan_out_size", "resourceAttributes", "scopeAttributes", "input_truncated", "output_truncated",
}  # fmt: skip
_CUT = 200
"""Characters of a value of the metadata that a server shows without being asked for the whole."""


def meta(row: Row, name: str) -> Any:
    """One value of an observation's metadata; older servers give it as the JSON that was sent."""
    known = told(row)
    value = known.get(name)
    if isinstance(value, str) and str(known.get("kind"))[:1] == '"':
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def told(row: Row) -> dict[str, Any]:
    """The metadata."""
    known: Any = row.get("metadata")
    return cast("dict[str, Any]", known) if isinstance(known, dict) else {}


def is_root(row: Row) -> bool:
    """Whether an observation is a whole run."""
    return meta(row, "run_id") is not None and (row.get("parentObservationId") is None or meta(row, "path") == "")


def label_of(root: Row) -> str:
    """The name of what was run."""
    name = str(root.get("name") or "")
    return str(root.get("traceName") or (name if meta(root, "path") == "" else name.partition(":")[2]))


def cut_metadata(rows: Iterable[Row]) -> list[str]:
    """Names of what a caller told about the run and a server did not show whole."""
    found = {name for row in rows if is_root(row) for name, value in told(row).items() if _is_cut(value)}
    return sorted(found - OURS)


def _is_cut(value: object) -> bool:
    return isinstance(value, str) and len(value) >= _CUT
