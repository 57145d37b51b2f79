"""A trace as the rows of a journal: what Langfuse knows of a run, in the form in which everything else reads runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from math import isfinite
from typing import Any, cast

from stagegraph.data.call import Status
from stagegraph.journal import CallRow, FeedbackRow, RunRow

from ._observation import OURS, Row, is_root, label_of, meta, told
from ._placing import placed
from ._spans import as_told
from .source import CORRECTION, Pages

__all__ = ["pages_of"]

_KINDS = {"stage", "step", "graph"}


def pages_of(observations: Iterable[Row], scores: Iterable[Row], skipped: Counter[str]) -> Pages | None:
    """The rows of one run from its trace, or `None` when there is none of ours in it."""
    rows = [row for row in observations if row.get("id")]
    own = [row for row in rows if meta(row, "key") is not None and meta(row, "run_id") is not None]
    latest: dict[str, Row] = {}
    for row in sorted(own, key=lambda one: (_count(meta(one, "segment")), str(one.get("startTime")))):
        latest[str(meta(row, "key"))] = row  # a call that was resumed counts as it went the last time
    root = latest.get("") or next((row for row in latest.values() if is_root(row)), None)
    if root is None:
        skipped["a trace has no run in it (yet)"] += 1
        return None
    run_id, root_key = str(meta(root, "run_id")), str(meta(root, "key"))
    parents = _parents(rows, own)
    spent = _spent(rows, parents)
    usable: dict[str, CallRow] = {}
    for key, row in latest.items():
        call = _call(row, run_id, spent)
        if call is not None:
            usable[key] = call
            continue
        skipped["an observation was cut, or has no input"] += 1
        if row is root:
            return None
    above = {key: parents.get(str(latest[key].get("parentObservationId") or "")) for key in usable}
    calls = placed(usable, above, root_key)
    places = {str(row["id"]): str(meta(row, "key")) for row in own}
    resumed = sorted({_seconds(row.get("startTime")) for row in own if meta(row, "segment") and is_root(row)})
    begun = min(_seconds(row.get("startTime")) for row in own if row is root or is_root(row))
    return _run(root, run_id, calls, resumed, begun), calls, _feedback(scores, run_id, places, root_key)


def _parents(rows: Iterable[Row], own: Iterable[Row]) -> dict[str, str]:
    """Id of any observation -> key of the call it happened in (or, for a call, that it is)."""
    keys = {str(row["id"]): str(meta(row, "key")) for row in own}
    above = {str(row["id"]): str(row.get("parentObservationId") or "") for row in rows}
    found: dict[str, str] = {}
    for start in above:
        place, seen = start, set[str]()
        while place not in keys and place in above and place not in seen:
            seen.add(place)
            place = above[place]
        if place in keys:
            found[start] = keys[place]
    return found


_Spent = dict[str | None, tuple[dict[str, int], Decimal | None]]


def _spent(rows: Iterable[Row], parents: Mapping[str, str]) -> _Spent:
    """Key -> usage and cost of its model requests; the cost is unknown as soon as one of theirs is.

    Under `None` stands what is said of all other calls: nothing is known of them when a request belongs to any.
    """
    found: _Spent = {None: ({}, Decimal(0))}
    for row in rows:
        counts: Any = row.get("usageDetails")
        details = cast("dict[str, Any]", counts) if isinstance(counts, dict) else {}
        type_ = row.get("type")
        request = type_ == "GENERATION" or (type_ is None and details)
        if not details and not row.get("output"):
            continue  # a request that was not answered costs nothing
        if not request:
            continue
        key = parents.get(str(row["id"]))
        if key is None:
            found[None] = {}, None
            continue
        usage, cost = found.get(key, ({"requests": 0}, Decimal(0)))
        usage["requests"] += 1
        cached, written = _count(details.get("input_cached_tokens")), _count(details.get("input_cache_creation"))
        for name, count in (
            ("input_tokens", _count(details.get("input")) + cached + written),
            ("output_tokens", _count(details.get("output"))),
            ("cache_read_tokens", cached),
            ("cache_write_tokens", written),
        ):
            if count:
                usage[name] = usage.get(name, 0) + count
        price = row.get("totalCost")
        known = isinstance(price, (int, float)) and (price or not details)
        found[key] = usage, cost + Decimal(str(price)) if known and cost is not None else None
    return found


def _call(row: Row, run_id: str, spent: _Spent) -> CallRow | None:
    """One call, still without its place; `None` when its input or output is not whole."""
    given, output = _json(row.get("input")), _json(row.get("output"))
    status = _status(row)
    if given is None or (status == "succeeded" and output is None):
        return None
    if meta(row, "input_truncated") is not None or meta(row, "output_truncated") is not None:
        return None
    key, path = str(meta(row, "key")), str(meta(row, "path") or "")
    kind = meta(row, "kind")
    usage, cost = spent.get(key) or (spent[None] if kind == "stage" else ({}, Decimal(0)))
    type_, _, message = str(row.get("statusMessage") or "").partition(": ")
    started, ended = _seconds(row.get("startTime")), _seconds(row.get("endTime"))
    return CallRow(
        run_id=run_id,
        key=key,
        path=path,
        kind=kind if kind in _KINDS else "graph",
        parent=None,
        position=0,
        status=status,
        input=given,
        output=output if status == "succeeded" else None,
        error_type=type_ or "Error" if status == "failed" else None,
        error=message if status == "failed" else None,
        usage=json.dumps(usage),
        cost=None if cost is None else str(cost),
        started=started,
        duration=max(0.0, ended - started),
        attempts=_count(meta(row, "attempts")) or 1,
        replayed=bool(meta(row, "replayed")),
    )


def _run(root: Row, run_id: str, calls: list[CallRow], resumed: list[float], begun: float) -> RunRow:
    first = calls[0]
    tags: Any = root.get("tags")
    labels = {
        "metadata": {as_told(name): meta(root, name) for name in told(root) if name not in OURS},
        "tags": [str(tag) for tag in cast("list[Any]", tags)] if isinstance(tags, list) else [],
        "session_id": root.get("sessionId"),
        "user_id": root.get("userId"),
        "resumed": resumed,
    }
    usages = [json.loads(call.usage) for call in calls]
    costs = [call.cost for call in calls]
    return RunRow(
        run_id=run_id,
        graph=label_of(root),
        status=first.status,
        started=begun,
        duration=max(0.0, first.started + first.duration - begun),
        input=first.input,
        output=first.output,
        error_type=first.error_type,
        error=first.error,
        prompts_digest=str(root.get("version") or ""),
        labels=json.dumps(labels),
        requests=sum(usage.get("requests", 0) for usage in usages),
        input_tokens=sum(usage.get("input_tokens", 0) for usage in usages),
        output_tokens=sum(usage.get("output_tokens", 0) for usage in usages),
        cost=None if None in costs else str(sum((Decimal(cost or 0) for cost in costs), Decimal(0))),
    )


def _feedback(scores: Iterable[Row], run_id: str, places: Mapping[str, str], root_key: str) -> list[FeedbackRow]:
    found: list[FeedbackRow] = []
    for score in scores:
        whom: Any = score.get("subject")
        subject = cast("dict[str, Any]", whom) if isinstance(whom, dict) else {}
        about = subject.get("id") if subject.get("kind") == "observation" else score.get("observationId")
        key = places.get(str(about)) if about is not None else None
        if about is not None and key is None:
            continue  # of an observation that is none of our calls
        correction = score.get("dataType") == "CORRECTION"
        given = told(score).get("given")
        found.append(
            FeedbackRow(
                id=str(score.get("id")),
                run_id=run_id,
                key=None if key == root_key else key,
                name=CORRECTION if correction else str(score.get("name")),
                value=json.dumps(score.get("value")),
                comment=score.get("comment"),
                time=_seconds(given or score.get("timestamp")),
            )
        )
    return sorted(found, key=lambda row: row.time)


def _status(row: Row) -> Status:
    state = meta(row, "status")
    if state in {"cancelled", "suspended", "running"}:
        return cast("Status", state)
    return "failed" if row.get("level") == "ERROR" else "succeeded"


def _json(value: object) -> str | None:
    """A value as JSON text, if it is one."""
    if value is None:
        return None
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        json.loads(value)
    except ValueError:
        return None
    return value


def _count(value: object) -> int:
    return int(value) if isinstance(value, (int, float)) and isfinite(value) else 0


def _seconds(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
