"""The page of one recorded run, made from its rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from stagegraph.record.edges import follow_contents
from stagegraph.record.reading import call_tree
from stagegraph.schema.errors import JournalError

from .html import Html, asset, document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stagegraph.record.rows import CallRow, FeedbackRow, Journal, RunRow

__all__ = ["page_of", "run_page"]

_FOLLOWED = 3_000
"""Runs with more calls than this are drawn without their data flow, which would not be readable."""


async def page_of(journal: Journal, run_id: str) -> Html:
    """The page of a run in a journal; the code of the graph is not needed.

    Raises:
        JournalError: the journal has no such run.
    """
    row = await journal.run(run_id)
    if row is None:
        msg = f"there is no run {run_id!r} in this journal"
        raise JournalError(msg)
    return run_page(row, await journal.calls(run_id), await journal.feedback(run_id))


def run_page(run: RunRow, calls: Sequence[CallRow], feedback: Sequence[FeedbackRow]) -> Html:
    """The page from a run's rows."""
    style, script, body = (asset("stagegraph.draw", f"run.{kind}") for kind in ("css", "js", "html"))
    data = _data(run, calls, feedback)
    return document(f"{run.graph} {run.run_id}", body, style=style, script=script, data=data)


def _data(run: RunRow, calls: Sequence[CallRow], feedback: Sequence[FeedbackRow]) -> dict[str, Any]:
    root = call_tree(list(calls), None) if len(calls) <= _FOLLOWED else None
    return {
        "run": {
            "id": run.run_id,
            "graph": run.graph,
            "status": run.status,
            "started": run.started,
            "duration": run.duration,
            "requests": run.requests,
            "inputTokens": run.input_tokens,
            "outputTokens": run.output_tokens,
            "cost": run.cost,
            "error": _error(run),
            "labels": json.loads(run.labels),
            "promptsDigest": run.prompts_digest,
        },
        "calls": [_call(call) for call in calls],
        "edges": follow_contents(root) if root is not None else [],
        "feedback": [
            {"key": f.key, "name": f.name, "value": json.loads(f.value), "comment": f.comment} for f in feedback
        ],
    }


def _call(call: CallRow) -> dict[str, Any]:
    usage = json.loads(call.usage)
    return {
        "key": call.key,
        "path": call.path,
        "kind": call.kind,
        "parent": call.parent,
        "status": call.status,
        "started": call.started,
        "duration": call.duration,
        "attempts": call.attempts,
        "replayed": call.replayed,
        "cost": call.cost,
        "requests": usage.get("requests", 0),
        "tokens": usage.get("input_tokens", 0) + usage.get("output_tokens", 0),
        "error": _error(call),
        "input": json.loads(call.input),
        "output": json.loads(call.output) if call.output is not None else None,
        "prompt": json.loads(call.prompt) if call.prompt is not None else None,
        "messages": json.loads(call.messages),
        "pending": json.loads(call.pending) if call.pending is not None else None,
    }


def _error(row: RunRow | CallRow) -> str | None:
    return None if row.error_type is None else f"{row.error_type}: {row.error}"
