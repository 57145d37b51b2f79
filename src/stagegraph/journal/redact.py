"""Every value of a row through the user's own function, before it is written.

What is written can always be read back: where the function leaves nothing of the form that a record needs, the record
goes without that value.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_ai import DeferredToolResults
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelResponse

from stagegraph.record.rows import CallRow, FeedbackRow, OpRow, Row, RunRow
from stagegraph.schema.errors import JournalError

__all__ = ["Redact", "redacted"]

Redact = Callable[[Any], Any]
"""Gets a JSON value (an input, an output, messages, a prompt, an error text) and gives what may be written."""

_JSON: dict[type[Row], tuple[str, ...]] = {
    RunRow: ("input", "output", "prompts"),
    CallRow: ("input", "output", "messages", "prompt"),
    OpRow: ("payload",),
    FeedbackRow: ("value",),
}
_TEXT: dict[type[Row], tuple[str, ...]] = {RunRow: ("error",), CallRow: ("error",), FeedbackRow: ("comment",)}
_NEEDED_TO_GO_ON = ("input", "prompts")


def redacted(row: Row, redact: Redact) -> Row | None:
    """The row as it may be written; `None` for an answer of which nothing readable is left.

    Raises:
        JournalError: the function failed, or gave something that is no JSON.
    """
    try:
        return _redacted(row, redact)
    except Exception as error:
        msg = (
            f"`redact=` failed with {type(error).__name__}, so a record of run {row.run_id!r} was not written: "
            "it has to take every JSON value, and give one"
        )
        raise JournalError(msg) from error


def _redacted(row: Row, redact: Redact) -> Row | None:
    changes: dict[str, Any] = {}
    changed: list[str] = []
    for name in _JSON.get(type(row), ()):
        text = getattr(row, name)
        if text is not None:
            new = changes[name] = json.dumps(redact(json.loads(text)), ensure_ascii=False)
            if new != json.dumps(json.loads(text), ensure_ascii=False):
                changed.append(name)
    for name in _TEXT.get(type(row), ()):
        text = getattr(row, name)
        if text is not None:
            said = redact(text)
            changes[name] = None if said is None else str(said)
    match row:
        case RunRow():
            changes["labels"] = _labels(row.labels, redact, [name for name in _NEEDED_TO_GO_ON if name in changed])
        case CallRow():
            if changed and not _is_readable(ModelMessagesTypeAdapter, changes["messages"]):
                changes["messages"] = "[]"
            if row.pending is not None:
                changes["pending"] = _pending(row.pending, redact)
        case OpRow():
            if changed and not _answers(row.op, row.payload, changes["payload"]):
                return None
        case _:
            pass
    return replace(row, **changes)


def _labels(text: str, redact: Redact, changed: list[str]) -> str:
    """What the caller said about the run; what the journal itself remembers of it stays."""
    labels: dict[str, Any] = json.loads(text)
    metadata, tags = redact(labels["metadata"]), redact(labels["tags"])
    labels["metadata"] = metadata if isinstance(metadata, dict) else {}
    labels["tags"] = [str(tag) for tag in cast("list[object]", tags)] if isinstance(tags, list) else []
    for name in ("session_id", "user_id"):
        if labels[name] is not None:
            said = redact(labels[name])
            labels[name] = None if said is None else str(said)
    if changed:
        labels["redacted"] = sorted({*labels.get("redacted", ()), *changed})
    return json.dumps(labels, ensure_ascii=False)


def _pending(text: str, redact: Redact) -> str:
    """What an agent asks to be allowed to do; which call asks, and by which tool, is needed to answer it."""
    asked: list[dict[str, Any]] = json.loads(text)
    for one in asked:
        args = redact(one["args"])
        one["args"] = args if isinstance(args, dict) else {}
    return json.dumps(asked, ensure_ascii=False)


def _answers(op: str, before: str, after: str) -> bool:
    """Whether an agent can still go on with what it was told."""
    if not op.startswith("tool:"):
        return _is_readable(_answer_of(ModelResponse if op.startswith("request:") else DeferredToolResults), after)
    told, left = json.loads(before), json.loads(after)
    return isinstance(left, dict) and cast("dict[str, object]", left).get("kind") == told.get("kind")


def _is_readable(adapter: TypeAdapter[Any], text: str) -> bool:
    try:
        adapter.validate_json(text)
    except ValidationError:
        return False
    return True


@cache
def _answer_of(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
