"""A trace as the rows of a journal: what Langfuse knows of a run, in the form in which everything else reads runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, cast

from stagegraph.call import Status
from stagegraph.journal import CallRow, FeedbackRow, RunRow

from .source import CORRECTION, Pages

__all__ = ["Row", "is_root", "meta", "pages_of"]

Row = Mapping[str, Any]

_KINDS = {"stage", "step", "graph"}


def meta(row: Row, name: str) -> Any:
    """One value of an observation's metadata; older servers give it as the JSON that was sent."""
    value = cast("dict[str, Any]", row.get("metadata") or {}).get(name)
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def is_root(row: Row) -> bool:
    """Whether an observation is a whole run."""
    return meta(row, "run_id") is not None and (row.get("parentObservationId") is None or meta(row, "path") == "")


def pages_of(observations: Iterable[Row], scores: Iterable[Row], skipped: Counter[str]) -> Pages | None:
    """The rows of one run from its trace, or `None` when there is none of ours in it."""
    rows = [row for row in observations if row.get("id")]
    own = [row for row in rows if meta(row, "key") is not None and meta(row, "run_id") is not None]
    latest: dict[str, Row] = {}
    for row in sorted(own, key=lambda one: (int(meta(one, "segment") or 0), str(one.get("startTime")))):
        latest[str(meta(row, "key"))] = row  # a call that was resumed counts as it went the last time
    root = next((row for row in latest.values() if is_root(row)), None)
    if root is None:
        skipped["a trace has no run in it (yet)"] += 1
        return None
    parents = _parents(rows, own)
    spent = _spent(rows, parents)
    ordered = sorted(latest.values(), key=lambda row: (row is not root, str(row.get("startTime")), str(row.get("id"))))
    run_id = str(meta(root, "run_id"))
    calls: list[CallRow] = []
    for position, row in enumerate(ordered):
        call = _call(row, root, position, run_id, parents, spent)
        if call is None:
            skipped["an observation was cut, or has no input"] += 1
            if row is root:
                return None
            continue
        calls.append(call)
    places = {str(row["id"]): str(meta(row, "key")) for row in own}
    return _run(root, run_id, calls), calls, _feedback(scores, run_id, places, calls[0].key)


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


def _spent(rows: Iterable[Row], parents: Mapping[str, str]) -> dict[str, tuple[dict[str, int], Decimal | None]]:
    """Key -> usage and cost of its model requests; the cost is unknown as soon as one of theirs is."""
    found: dict[str, tuple[dict[str, int], Decimal | None]] = {}
    for row in rows:
        if row.get("type") != "GENERATION" or (key := parents.get(str(row["id"]))) is None:
            continue
        usage, cost = found.get(key, ({"requests": 0}, Decimal(0)))
        details = cast("dict[str, Any]", row.get("usageDetails") or {})
        usage["requests"] += 1
        cached = int(details.get("input_cached_tokens") or 0)
        written = int(details.get("input_cache_creation") or 0)
        for name, count in (
            ("input_tokens", int(details.get("input") or 0) + cached + written),
            ("output_tokens", int(details.get("output") or 0)),
            ("cache_read_tokens", cached),
            ("cache_write_tokens", written),
        ):
            if count:
                usage[name] = usage.get(name, 0) + count
        price = row.get("totalCost")
        known = cost is not None and price is not None and (price or not details)
        found[key] = usage, cost + Decimal(str(price)) if known and cost is not None else None
    return found


def _call(  # noqa: PLR0917
    row: Row,
    root: Row,
    position: int,
    run_id: str,
    parents: Mapping[str, str],
    spent: Mapping[str, tuple[dict[str, int], Decimal | None]],
) -> CallRow | None:
    given, output = _json(row.get("input")), _json(row.get("output"))
    status = _status(row)
    if given is None or (status == "succeeded" and output is None):
        return None
    key, path = str(meta(row, "key")), str(meta(row, "path") or "")
    usage, cost = spent.get(key, ({}, Decimal(0)))
    above = parents.get(str(row.get("parentObservationId") or ""))
    type_, _, message = str(row.get("statusMessage") or "").partition(": ")
    started, ended = _seconds(row.get("startTime")), _seconds(row.get("endTime"))
    kind = meta(row, "kind")
    return CallRow(
        run_id=run_id,
        key=key,
        path=path,
        kind=kind if kind in _KINDS else "graph",
        parent=None if row is root else above if above is not None else str(meta(root, "key")),
        position=position,
        status=status,
        input=given,
        output=output if status == "succeeded" else None,
        error_type=type_ or "Error" if status == "failed" else None,
        error=message if status == "failed" else None,
        usage=json.dumps(usage),
        cost=None if cost is None else str(cost),
        started=started,
        duration=max(0.0, ended - started),
        attempts=int(meta(row, "attempts") or 1),
        replayed=bool(meta(row, "replayed")),
    )


def _run(root: Row, run_id: str, calls: list[CallRow]) -> RunRow:
    first = calls[0]
    told = cast("dict[str, Any]", root.get("metadata") or {})
    ours = {
        "run_id", "key", "path", "kind", "status", "segment", "resumed", "replayed", "attempts", "prompt_source",
        "fan_out_index", "fan_out_size", "resourceAttributes", "scopeAttributes",
    }  # fmt: skip
    labels = {
        "metadata": {name: meta(root, name) for name in told if name not in ours},
        "tags": list(root.get("tags") or ()),
        "session_id": root.get("sessionId"),
        "user_id": root.get("userId"),
    }
    usages = [json.loads(call.usage) for call in calls]
    costs = [call.cost for call in calls]
    return RunRow(
        run_id=run_id,
        graph=str(root.get("traceName") or root.get("name") or ""),
        status=first.status,
        started=first.started,
        duration=first.duration,
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
        subject = cast("dict[str, Any]", score.get("subject") or {})
        about = subject.get("id") if subject.get("kind") == "observation" else score.get("observationId")
        key = places.get(str(about)) if about is not None else None
        if about is not None and key is None:
            continue  # of an observation that is none of our calls
        correction = score.get("dataType") == "CORRECTION"
        given = cast("dict[str, Any]", score.get("metadata") or {}).get("given")
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
    told = meta(row, "status")
    if told in {"cancelled", "suspended", "running"}:
        return cast("Status", told)
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


def _seconds(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
