"""Which runs to list, in SQL."""

from __future__ import annotations

from collections.abc import Iterable

from stagegraph.record.rows import CORRECTION, RunFilter
from stagegraph.schema.types import is_sequence

_LABEL = "(CASE WHEN json_valid(labels) THEN {} ELSE 1 END)"
"""What is no JSON is left to who reads the row."""
_NUMBER = "CASE value WHEN 'true' THEN 1 WHEN 'false' THEN 0 ELSE CAST(value AS REAL) END"


def search(wanted: RunFilter) -> tuple[str, tuple[object, ...]]:
    """The condition for the rows of runs and their order, the newest first, with its values.

    It may find more: of what is in a run's labels, and of who holds it, the row itself tells.
    """
    running = wanted.status in {"running", "interrupted"}
    asked: list[tuple[str, object]] = [
        ("graph = ?", wanted.graph),
        ("status = 'running'" if running else "status = ?", () if running else wanted.status),  # as the index has it
        ("started >= ?", wanted.since),
        ("started <= ?", wanted.until),
        ("(started, run_id) < (?, ?)", wanted.before),
        (_LABEL.format("json_extract(labels, '$.user_id') = ?"), wanted.user),
        (_LABEL.format("json_extract(labels, '$.session_id') = ?"), wanted.session),
        *((_LABEL.format("? IN (SELECT value FROM json_each(labels, '$.tags'))"), tag) for tag in wanted.tags),
    ]
    limits = [(f"{_NUMBER} >= ?", wanted.min_score), (f"{_NUMBER} <= ?", wanted.max_score)]
    limited = any(limit is not None for _, limit in limits)
    if limited or wanted.feedback is not None:
        named = ("name != ?", CORRECTION) if wanted.feedback is None else ("name = ?", wanted.feedback)
        scores, values = _where([named, ("value NOT LIKE '\"%'", () if limited else None), *limits])
        asked.append((f"run_id IN (SELECT run_id FROM feedback WHERE {scores})", values))  # noqa: S608 - our own words
    conditions, values = _where(asked)
    return f"{conditions} ORDER BY started DESC, run_id DESC", values


def _where(asked: Iterable[tuple[str, object]]) -> tuple[str, tuple[object, ...]]:
    """The conditions with a value, or several, and the values."""
    conditions: list[str] = []
    values: list[object] = []
    for condition, value in asked:
        if value is not None:
            conditions.append(condition)
            values += value if is_sequence(value) else (value,)
    return " AND ".join(conditions) or "TRUE", tuple(values)
