"""A Langfuse trace as the rows of a journal, the form in which all other code reads runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any

from stagegraph.data.call import Kind, Status, key_order
from stagegraph.journal import CallRow, FeedbackRow, RunRow
from stagegraph.record.rows import CORRECTION
from stagegraph.record.source import RunRows
from stagegraph.schema.types import is_list

from .attributes import USAGE_PARTS, is_reserved, without_prefix

if TYPE_CHECKING:
    from langfuse.api import ObservationV2, ScoreV3

_KINDS: dict[str, Kind] = {"stage": "stage", "step": "step", "graph": "graph"}
_OPEN: dict[str, Status] = {"cancelled": "cancelled", "suspended": "suspended", "running": "running"}
"""Statuses of a call that the level of its observation does not show."""
_TRUNCATED = {"input_truncated", "output_truncated", "input_whole_truncated", "output_whole_truncated"}
_REASONING = "reasoning_tokens"
NO_RUN = "a trace contains no run (yet)"
_CUT = 200
"""Characters of a metadata value that a server returns unless the whole value is requested."""


def meta(row: ObservationV2, name: str) -> Any:
    """One value of an observation's metadata; older servers return it as the JSON that was sent."""
    known = row.metadata or {}
    value = known.get(name)
    if isinstance(value, str) and str(known.get("kind"))[:1] == '"':
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def is_root(row: ObservationV2) -> bool:
    """Whether an observation is that of a whole run."""
    of_run = row.parent_observation_id is None or meta(row, "path") == "" or row.is_root_observation
    return meta(row, "run_id") is not None and bool(of_run)


def name_of(root: ObservationV2) -> str:
    """The name of the node that ran."""
    name = root.name or ""
    return root.trace_name or (name if meta(root, "path") == "" else name.partition(":")[2])


def cut_metadata(rows: Iterable[ObservationV2]) -> list[str]:
    """Names in the caller's metadata whose values the server may have truncated."""
    told = (row.metadata or {} for row in rows if is_root(row))
    found = {name for one in told for name, value in one.items() if isinstance(value, str) and len(value) >= _CUT}
    return sorted(filter(_of_caller, found))


def _of_caller(name: str) -> bool:
    """Whether a name in the metadata of a run's observation was set by the caller."""
    return not is_reserved(name) and name not in _TRUNCATED


def rows_of(
    rows: Iterable[ObservationV2], scores: Iterable[ScoreV3], skipped: Counter[str], run_id: str
) -> RunRows | None:
    """The rows of one run from its trace, or `None` when the trace does not contain it."""
    rows = list(rows)
    own = [row for row in rows if meta(row, "key") is not None and meta(row, "run_id") == run_id]
    latest: dict[str, ObservationV2] = {}
    for row in sorted(own, key=lambda one: (_count(meta(one, "segment")), one.start_time)):
        latest[str(meta(row, "key"))] = row  # of a resumed call, the last observation counts
    root = latest.get("") or next((row for row in latest.values() if is_root(row)), None)
    if root is None:
        skipped[NO_RUN] += 1
        return None
    root_key = str(meta(root, "key"))
    parents = _parents(rows, own)
    spent = _spent(rows, parents)
    usable: dict[str, CallRow] = {}
    for key, row in latest.items():
        call = _call(row, run_id, spent)
        if call is not None:
            usable[key] = call
            continue
        skipped["an observation is truncated, or has no input"] += 1
        if row is root:
            return None
    above = {key: parents.get(latest[key].parent_observation_id or "") for key in usable}
    calls = _placed(usable, above, root_key)
    places = {row.id: str(meta(row, "key")) for row in own}
    resumed = sorted({row.start_time.timestamp() for row in own if meta(row, "segment") and is_root(row)})
    begun = min(row.start_time.timestamp() for row in own if row is root or is_root(row))
    return _run(root, run_id, calls, resumed, begun), calls, _feedback(scores, run_id, places, root_key)


def _parents(rows: Iterable[ObservationV2], own: Iterable[ObservationV2]) -> dict[str, str]:
    """Id of any observation -> key of the call that contains it, or, for a call's own observation, of that call."""
    keys = {row.id: str(meta(row, "key")) for row in own}
    above = {row.id: row.parent_observation_id or "" for row in rows}
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


def _spent(rows: Iterable[ObservationV2], parents: Mapping[str, str]) -> _Spent:
    """Key -> usage and cost of its model requests; the cost is `None` if that of one request is unknown.

    The value under `None` applies to all other calls: it is unknown if a request cannot be assigned to a call.
    """
    found: _Spent = {None: ({}, Decimal(0))}
    for row in rows:
        details = row.usage_details or {}
        request = row.type == "GENERATION" or (not row.type and details)
        if not request or not (details or row.output):
            continue  # an unanswered request costs nothing
        key = parents.get(row.id)
        if key is None:
            found[None] = {}, None
            continue
        usage, cost = found.get(key, ({"requests": 0}, Decimal(0)))
        usage["requests"] += 1
        parts = {part: details.get(part, 0) for part in USAGE_PARTS.values()}
        for whole in ("input", "output"):
            inside = sum(count for name, count in parts.items() if name.startswith(f"{whole}_"))
            usage[f"{whole}_tokens"] = usage.get(f"{whole}_tokens", 0) + details.get(whole, 0) + inside
        for name, part in USAGE_PARTS.items():
            usage[name] = usage.get(name, 0) + parts[part]
        price = row.total_cost
        known = isinstance(price, (int, float)) and isfinite(price) and (price or not details)
        found[key] = usage, cost + Decimal(str(price)) if known and cost is not None else None
    return found


def _call(row: ObservationV2, run_id: str, spent: _Spent) -> CallRow | None:
    """One call without parent and position; `None` when its input or output is incomplete."""
    given, output, status = _json(row.input), _json(row.output), _status(row)
    if given is None or (status == "succeeded" and output is None):
        return None
    if meta(row, "input_truncated") is not None or meta(row, "output_truncated") is not None:
        return None
    key, kind = str(meta(row, "key")), str(meta(row, "kind"))
    usage, cost = spent.get(key) or (spent[None] if kind == "stage" else ({}, Decimal(0)))
    type_, _, message = (row.status_message or "").partition(": ")
    started = row.start_time.timestamp()
    ended = row.end_time.timestamp() if row.end_time is not None else 0.0
    return CallRow(
        run_id=run_id,
        key=key,
        path=str(meta(row, "path") or ""),
        kind=_KINDS.get(kind, "graph"),
        parent=None,
        position=0,
        status=status,
        input=given,
        output=output if status == "succeeded" else None,
        input_whole=_whole(row, "input_whole"),
        output_whole=_whole(row, "output_whole"),
        error_type=type_ or "Error" if status == "failed" else None,
        error=message if status == "failed" else None,
        origin=None if (origin := meta(row, "origin")) is None else str(origin),
        transient=bool(meta(row, "transient")),
        usage=json.dumps({**usage, "details": {_REASONING: usage[_REASONING]} if usage.get(_REASONING) else {}}),
        cost=None if cost is None else str(cost),
        started=started,
        duration=max(0.0, ended - started),
        attempts=_count(meta(row, "attempts")) or 1,
        replayed=bool(meta(row, "replayed")),
    )


def _run(root: ObservationV2, run_id: str, calls: list[CallRow], resumed: list[float], begun: float) -> RunRow:
    first = calls[0]
    labels = {
        "metadata": {without_prefix(name): meta(root, name) for name in root.metadata or {} if _of_caller(name)},
        "tags": root.tags or [],
        "session_id": root.session_id,
        "user_id": root.user_id,
        "resumed": resumed,
    }
    usages = [json.loads(call.usage) for call in calls]
    costs = [call.cost for call in calls]
    return RunRow(
        run_id=run_id,
        graph=name_of(root),
        status=first.status,
        started=begun,
        duration=max(0.0, first.started + first.duration - begun),
        input=first.input,
        output=first.output,
        input_whole=first.input_whole,
        output_whole=first.output_whole,
        error_type=first.error_type,
        error=first.error,
        prompts_digest=root.version or "",
        labels=json.dumps(labels),
        requests=sum(usage.get("requests", 0) for usage in usages),
        input_tokens=sum(usage.get("input_tokens", 0) for usage in usages),
        output_tokens=sum(usage.get("output_tokens", 0) for usage in usages),
        cost=None if None in costs else str(sum((Decimal(cost or 0) for cost in costs), Decimal(0))),
    )


def _feedback(scores: Iterable[ScoreV3], run_id: str, places: Mapping[str, str], root_key: str) -> list[FeedbackRow]:
    found: list[FeedbackRow] = []
    for score in scores:
        subject = score.subject
        about = subject.id if subject is not None and subject.kind == "observation" else None
        key = None if about is None else places.get(about)
        if about is not None and key is None:
            continue  # its observation is not a call of the run
        found.append(
            FeedbackRow(
                id=score.id,
                run_id=run_id,
                key=None if key == root_key else key,
                name=CORRECTION if score.data_type == "CORRECTION" else score.name,
                value=json.dumps(score.value),
                comment=score.comment,
                time=_given(score).timestamp(),
            )
        )
    return sorted(found, key=lambda row: row.time)


def _given(score: ScoreV3) -> datetime:
    """The time a score was given, from its metadata: the timestamps of all scores are the start of the run."""
    try:
        return datetime.fromisoformat(str((score.metadata or {}).get("given")))
    except ValueError:
        return score.timestamp


def _whole(row: ObservationV2, name: str) -> str | None:
    """The second form of a value, sent in a list, since a server may return a text as it is or as JSON.

    Empty when it does not exist, or was cut.
    """
    found = meta(row, name)
    if found is None:
        return None
    with suppress(ValueError):
        found = json.loads(found) if isinstance(found, str) else found
    return "".join(map(json.dumps, found[:1])) if is_list(found) else ""


def _status(row: ObservationV2) -> Status:
    return _OPEN.get(str(meta(row, "status"))) or ("failed" if row.level == "ERROR" else "succeeded")


def _json(value: object) -> str | None:
    """A value as JSON text; `None` if it is not JSON."""
    if value is None or not isinstance(value, str):
        return None if value is None else json.dumps(value)
    try:
        json.loads(value)
    except ValueError:
        return None
    return value


def _count(value: object) -> int:
    return int(value) if isinstance(value, (int, float)) and isfinite(value) else 0


def _placed(calls: dict[str, CallRow], above: Mapping[str, str | None], root: str) -> list[CallRow]:
    """The calls with parents and positions: each after its parent, siblings in the order of their start.

    Servers keep milliseconds, so times alone do not show which call began first.
    """
    inside: dict[str, list[CallRow]] = {}
    for key, call in calls.items():
        if key != root:
            parent = above.get(key)
            call.parent = parent if parent in calls and parent != key else _around(key, calls, root)
            inside.setdefault(call.parent, []).append(call)
    ordered: list[CallRow] = []
    pending = [calls[root]]
    while pending or inside:
        if not pending:  # a circle of calls, possible only in corrupt data
            _, pending = inside.popitem()
            for call in pending:
                call.parent = root
        call = pending.pop()
        call.position = len(ordered)
        ordered.append(call)
        pending += reversed(_in_order(inside.pop(call.key, [])))
    return ordered


def _in_order(siblings: list[CallRow]) -> list[CallRow]:
    """Siblings in the order of their start; within one millisecond by their end, and a fan-out by its indices."""
    ends: dict[tuple[float, str], float] = {}
    for call in siblings:
        place, end = (call.started, call.path), call.started + call.duration
        ends[place] = min(end, ends.get(place, end))
    return sorted(siblings, key=lambda call: (call.started, ends[call.started, call.path], key_order(call.key)))


def _around(key: str, calls: Mapping[str, CallRow], root: str) -> str:
    """The nearest recorded call around *key*, according to the key itself."""
    known = [other for other in calls if other and key.startswith(f"{other}.")]
    return max(known, key=len, default=root)
