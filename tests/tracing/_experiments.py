"""Experiments, as they follow from spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from _observations import iso
from _otlp import Span
from _queries import Query, Row, cursor_page, moment

__all__ = ["experiments"]

_AT: Final = "langfuse.experiment."


def experiments(spans: Sequence[Span], query: Query) -> Row:
    """One row an experiment id, of the group `core`."""
    begin = moment(query["fromStartTime"][0])
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
            }
        )
    page, meta = cursor_page(
        (row for row in rows if moment(row["startTime"]) >= begin), query, by="endTime", highest=100
    )
    return {"data": page, "meta": meta}
