"""One self-contained HTML page for one recorded run: no network, no text of the run that could become markup."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from stagegraph.record.edges import follow_contents
from stagegraph.record.reading import call_tree
from stagegraph.schema.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stagegraph.journal import CallRow, FeedbackRow, Journal, RunRow

__all__ = ["page_of", "run_page"]

_FOLLOWED = 3_000
"""With more calls than this the data flow is not looked for: nobody could read the drawing."""


async def page_of(journal: Journal, run_id: str) -> str:
    """The page of a run in a journal; it needs no code of the graph.

    Raises:
        JournalError: there is no such run.
    """
    row = await journal.run(run_id)
    if row is None:
        msg = f"there is no run {run_id!r} in this journal"
        raise JournalError(msg)
    return run_page(row, await journal.calls(run_id), await journal.feedback(run_id))


def run_page(run: RunRow, calls: Sequence[CallRow], feedback: Sequence[FeedbackRow]) -> str:
    """The page from a run's rows."""
    assets = files("stagegraph.draw")
    style, script = (assets.joinpath(name).read_text("utf-8") for name in ("run.css", "run.js"))
    data = json.dumps(_data(run, calls, feedback), ensure_ascii=False)
    # Inside a script element only `<` can end it; JSON may write it as an escape anywhere.
    safe = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    parts = {
        "title": html.escape(f"{run.graph} {run.run_id}"),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "style": style,
        "script": script,
        "data": safe,
    }
    # In one pass, so that nothing that is filled in is taken for a place to fill.
    template = assets.joinpath("run.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


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
