"""A Langfuse trace as the rows of a journal, the form in which all other code reads runs."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any

from pydantic_ai.usage import RunUsage

from stagegraph.data.call import Kind, Status, key_order
from stagegraph.data.usage import NO_MODEL, USAGE, ModelUse
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
        with suppress(ValueError):
            return json.loads(value)
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
    keys = {row.id: str(meta(row, "key")) for row in own}
    spent = _spent(rows, keys)
    usable: dict[str, CallRow] = {}
    for key, row in latest.items():
        call = _call(row, run_id, spent)
        if call is not None:
            usable[key] = call
            continue
        skipped["an observation is truncated, or has no input"] += 1
        if row is root:
            return None
    root_key = keys[root.id]
    calls = _placed(usable, root_key)
    resumed = sorted({row.start_time.timestamp() for row in own if meta(row, "segment") and is_root(row)})
    begun = min(row.start_time.timestamp() for row in own if row is root or is_root(row))
    return _run(root, run_id, calls, resumed, begun), calls, _feedback(scores, run_id, keys, root_key)


def _spent(rows: Iterable[ObservationV2], keys: Mapping[str, str]) -> dict[str | None, ModelUse]:
    """Key -> usage of its model requests; that under `None` applies to all other calls.

    The price of those is unknown if a request cannot be assigned to a call.
    """
    above = {row.id: row.parent_observation_id or "" for row in rows}
    found: dict[str | None, ModelUse] = {None: ModelUse()}
    for row in rows:
        details = row.usage_details or {}
        request = row.type == "GENERATION" or (not row.type and details)
        if not request or not (details or row.output):
            continue  # an unanswered request costs nothing
        place, seen = row.id, set[str]()
        while place not in keys and place in above and place not in seen:
            seen.add(place)
            place = above[place]
        use, price = found.setdefault(keys.get(place), ModelUse()), row.total_cost
        if place not in keys or not (isinstance(price, (int, float)) and isfinite(price) and (price or not details)):
            use.unpriced, price = True, 0
        if place in keys:
            use.usage.incr(_usage(details, Decimal(str(price))))
    return found


def _usage(details: Mapping[str, int], price: Decimal) -> RunUsage:
    """The usage of one request: on the server, `input` and `output` are without their parts."""
    parts = {name: details.get(part, 0) for name, part in USAGE_PARTS.items()}
    for whole in ("input", "output"):
        parts[f"{whole}_tokens"] = sum(count for name, count in details.items() if name.partition("_")[0] == whole)
    reasoning = parts.pop(_REASONING)
    return RunUsage(requests=1, details={_REASONING: reasoning} if reasoning else {}, cost=price, **parts)


def _call(row: ObservationV2, run_id: str, spent: Mapping[str | None, ModelUse]) -> CallRow | None:
    """One call without parent and position; `None` when its input or output is incomplete."""
    given, output, status = _json(row.input), _json(row.output), _status(row)
    if given is None or (status == "succeeded" and output is None):
        return None
    if meta(row, "input_truncated") is not None or meta(row, "output_truncated") is not None:
        return None
    key, kind = str(meta(row, "key")), str(meta(row, "kind"))
    use = spent.get(key) or (spent[None] if kind == "stage" else NO_MODEL)
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
        usage=USAGE.dump_json(use.usage, exclude_defaults=True).decode(),
        cost=None if use.cost is None else str(use.cost),
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
    usage = RunUsage()
    for call in calls:
        usage.incr(USAGE.validate_json(call.usage))
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
        requests=usage.requests,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost=str(usage.cost or 0) if all(call.cost is not None for call in calls) else None,
    )


def _feedback(scores: Iterable[ScoreV3], run_id: str, keys: Mapping[str, str], root_key: str) -> list[FeedbackRow]:
    found: list[FeedbackRow] = []
    for score in scores:
        about = score.subject.id if score.subject is not None and score.subject.kind == "observation" else None
        if about is not None and about not in keys:
            continue  # its observation is not a call of the run
        key = keys.get(about or "")
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


def _placed(calls: Mapping[str, CallRow], root: str) -> list[CallRow]:
    """The calls with parents and positions: each after its parent, siblings in the order of their start.

    Servers keep milliseconds, so times alone do not show which call began first. The key of a call begins with that of
    the call that made it.
    """
    inside: defaultdict[str, list[CallRow]] = defaultdict(list)
    for key, call in calls.items():
        if key != root:
            above = key
            while above and (above == key or above not in calls):
                above = above.rpartition(".")[0]
            call.parent = above or root
            inside[call.parent].append(call)
    ordered: list[CallRow] = []
    pending = [calls[root]]
    while pending:
        call = pending.pop()
        call.position = len(ordered)
        ordered.append(call)
        pending += reversed(_in_order(inside[call.key]))
    return ordered


def _in_order(siblings: list[CallRow]) -> list[CallRow]:
    """Siblings in the order of their start; within one millisecond by their end, and a fan-out by its indices."""
    ends: dict[tuple[float, str], float] = {}
    for call in siblings:
        place, end = (call.started, call.path), call.started + call.duration
        ends[place] = min(end, ends.get(place, end))
    return sorted(siblings, key=lambda call: (call.started, ends[call.started, call.path], key_order(call.key)))
