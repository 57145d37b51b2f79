"""Experiments and their items, as they follow from spans and scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from _observations import iso
from _otlp import Span
from _queries import Query, Refused, Row, cursor_page, matches, moment
from _scores import Scores, shown

__all__ = ["experiment_items", "experiments"]

_AT: Final = "langfuse.experiment."
_ITEM_GROUPS: Final = {
    "core": (
        *("id", "traceId", "startTime", "endTime", "level", "environment"),
        *("experimentId", "experimentName", "experimentItemId"),
    ),
    "dataset": ("experimentDatasetId", "experimentItemVersion"),
    "io": ("input", "output", "expectedOutput"),
    "metadata": ("metadata",),
    "itemMetadata": ("experimentItemMetadata",),
    "experimentMetadata": ("experimentMetadata", "experimentDescription"),
    "scores": ("scores",),
}


def _json(text: Any) -> Any:
    return json.loads(text) if text else None


def _groups(query: Query, default: str, known: set[str]) -> list[str]:
    groups = query.get("fields", [default])[0].split(",")
    if unknown := set(groups) - known:
        raise Refused(400, f"Unknown field groups: {sorted(unknown)}")
    if "fromStartTime" not in query:
        raise Refused(400, "fromStartTime is required")
    return ["core", *groups]


def _during(row: Row, query: Query) -> bool:
    start = moment(row["startTime"])
    return start >= moment(query["fromStartTime"][0]) and all(start < moment(to) for to in query.get("toStartTime", []))


def _chosen(rows: list[Row], query: Query, names: dict[str, str]) -> list[Row]:
    if "filter" in query:
        return matches(rows, query["filter"][0])
    return [
        row
        for row in rows
        if _during(row, query)
        and all(row[key] in query[name][0].split(",") for name, key in names.items() if name in query)
    ]


def experiments(spans: Sequence[Span], scores: Scores, query: Query) -> Row:
    """One row an experiment id."""
    groups = _groups(query, "core", {"core", "metadata", "scores"})
    runs: dict[str, list[Span]] = {}
    for span in spans:
        if name := span.attributes.get(_AT + "id"):
            runs.setdefault(name, []).append(span)
    rows: list[Row] = []
    for key, group in runs.items():
        at = {name: value for span in group for name, value in span.attributes.items()}
        rows.append(
            {
                "id": key,
                "name": at.get(_AT + "name") or key,
                "description": at.get(_AT + "description"),
                "startTime": iso(min(span.start for span in group)),
                "endTime": iso(max(span.end for span in group)),
                "itemCount": len({span.attributes.get(_AT + "item.id") for span in group}),
                "datasetId": at.get(_AT + "dataset.id"),
                "metadata": _json(at.get(_AT + "metadata")),
                "scores": [
                    shown(one, ["details", "subject"]) for one in scores.rows.values() if one.get("datasetRunId") == key
                ],
            }
        )
    rows = _chosen(rows, query, {"id": "id", "name": "name", "datasetId": "datasetId"})
    page, meta = cursor_page(rows, query, by="endTime", highest=100)
    hidden = {"metadata", "scores"} - set(groups)
    return {"data": [{name: value for name, value in row.items() if name not in hidden} for row in page], "meta": meta}


def experiment_items(observations: Sequence[tuple[Span, Row]], scores: Scores, query: Query) -> Row:
    """One row an item: the observation that the span names as the item's root."""
    groups = _groups(query, "core,dataset", set(_ITEM_GROUPS))
    rows: list[Row] = []
    for span, row in observations:
        at = span.attributes
        if not at.get(_AT + "id") or at.get(_AT + "item.root_observation_id") != span.span_id:
            continue
        rows.append(
            {
                **{name: row[name] for name in ("id", "traceId", "startTime", "endTime", "level", "environment")},
                **{name: row[name] for name in ("input", "output", "metadata")},
                "experimentId": at[_AT + "id"],
                "experimentName": at.get(_AT + "name"),
                "experimentItemId": at.get(_AT + "item.id"),
                "experimentDatasetId": at.get(_AT + "dataset.id"),
                "experimentItemVersion": at.get(_AT + "item.version"),
                "expectedOutput": at.get(_AT + "item.expected_output"),
                "experimentItemMetadata": _json(at.get(_AT + "item.metadata")),
                "experimentMetadata": _json(at.get(_AT + "metadata")),
                "experimentDescription": at.get(_AT + "description"),
                "scores": [
                    shown(one, ["details", "subject"])
                    for one in scores.rows.values()
                    if one.get("traceId") == span.trace_id
                ],
            }
        )
    names = {"experimentId": "experimentId", "experimentName": "experimentName"}
    names |= {"experimentItemId": "experimentItemId", "datasetId": "experimentDatasetId"}
    page, meta = cursor_page(_chosen(rows, query, names), query, by="startTime", highest=100)
    shown_names = {name for group in groups for name in _ITEM_GROUPS[group]}
    return {"data": [{name: value for name, value in row.items() if name in shown_names} for row in page], "meta": meta}
