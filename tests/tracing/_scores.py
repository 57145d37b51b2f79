"""Scores, kept and answered as a Langfuse server does."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, cast

from _observations import PROJECT
from _queries import Query, Refused, Row, cursor_page, moment, now

__all__ = ["Scores"]

_GROUPS: Final = {
    "details": ("comment", "configId", "metadata"),
    "subject": ("subject",),
    "annotation": ("authorUserId", "queueId"),
}
_TEXTS: Final = frozenset({"CATEGORICAL", "TEXT", "CORRECTION"})


def _kind(body: Row) -> str:
    return str(body.get("dataType") or ("CATEGORICAL" if isinstance(body.get("value"), str) else "NUMERIC"))


def _fault(body: Row) -> str | None:
    """Why a server rejects this score, if it does."""
    kind, value = _kind(body), body.get("value")
    if not body.get("name") or value is None:
        return "name and value are required"
    if isinstance(value, str) != (kind in _TEXTS):
        return f"value {value!r} does not fit data type {kind}"
    if kind == "BOOLEAN" and value not in {0, 1}:
        return "a boolean score is 0 or 1"
    if len([name for name in ("traceId", "sessionId", "datasetRunId") if body.get(name)]) != 1:
        return "exactly one of traceId, sessionId and datasetRunId is required"
    if body.get("observationId") and not body.get("traceId"):
        return "observationId needs traceId"
    return None


def _list(query: Query, name: str) -> list[str]:
    return [part for text in query.get(name, []) for part in text.split(",")]


def _subject(score: Row) -> Row:
    if score.get("observationId"):
        return {"kind": "observation", "id": score["observationId"], "traceId": score["traceId"]}
    kinds = {"traceId": "trace", "sessionId": "session", "datasetRunId": "experiment"}
    name = next(name for name in kinds if score.get(name))
    return {"kind": kinds[name], "id": score[name]}


@dataclass
class Scores:
    """The accepted scores."""

    sent: list[Row] = field(default_factory=list[Row])
    """The bodies in the order they came."""
    by_id: dict[str, Row] = field(default_factory=dict[str, Row])
    """The last body of each id."""
    rows: dict[str, Row] = field(default_factory=dict[str, Row])
    """The same with the times that the server adds."""

    def accept(self, bodies: Any, rejected: Collection[str]) -> tuple[int, Row]:
        """Keep what is valid; 202 when that is all, else 207 with counts and one error a rejected score."""
        if not isinstance(bodies, list):
            raise Refused(400, "Expected a list of scores")
        errors: list[Row] = []
        for body in cast("list[Row]", bodies):
            fault = "rejected by the test" if body.get("name") in rejected else _fault(body)
            if fault:
                errors.append({"message": fault})
                continue
            key = str(body.get("id") or uuid.uuid4().hex)
            created = self.rows.get(key, {}).get("createdAt", now())
            given = moment(body["timestamp"]).astimezone(UTC) if "timestamp" in body else datetime.now(UTC)
            times = {"timestamp": given.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
            self.sent.append(body)
            self.by_id[key] = body
            self.rows[key] = {**body, **times, "id": key, "createdAt": created, "updatedAt": now()}
        if not errors:
            return 202, {"message": "Accepted"}
        return 207, {
            "accepted": len(cast("list[Row]", bodies)) - len(errors),
            "rejected": len(errors),
            "errors": errors,
        }

    def listed(self, query: Query) -> Row:
        """One page, newest first."""
        groups = _list(query, "fields")
        if unknown := set(groups) - {*_GROUPS, "core"}:
            raise Refused(400, f"Unknown field groups: {sorted(unknown)}")
        page, meta = cursor_page(
            (one for one in self.rows.values() if one.get("traceId") in query.get("traceId", [one.get("traceId")])),
            query,
            by="timestamp",
            highest=100,
        )
        return {
            "data": [_shown(score, groups) for score in page],
            "meta": {"limit": int(query.get("limit", ["50"])[0]), **meta},
        }


def _shown(score: Row, groups: Iterable[str]) -> Row:
    """The polymorphic row of version 3."""
    metadata = score.get("metadata")
    value = bool(score["value"]) if _kind(score) == "BOOLEAN" else score["value"]
    whole: Row = {
        **{name: score.get(name) for name in ("comment", "configId", "authorUserId", "queueId")},
        "metadata": metadata if isinstance(metadata, dict | None) else {"metadata": metadata},
        "subject": _subject(score),
    }
    row: Row = {name: score[name] for name in ("id", "name", "timestamp", "createdAt", "updatedAt")}
    row |= {"projectId": PROJECT, "value": value, "dataType": _kind(score), "source": score.get("source") or "API"}
    row["environment"] = score.get("environment") or "default"
    return row | {name: whole[name] for group in groups for name in _GROUPS.get(group, ())}
