"""`redact=`: every value of a row goes through the user's function before it is written.

What is written can always be read back: where the function leaves nothing that a record can hold, the record is written
without that value.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_ai.messages import ModelMessagesTypeAdapter

from stagegraph.record.labels import Labels
from stagegraph.record.rows import CallRow, FeedbackRow, OpRow, Row, RunRow
from stagegraph.schema.errors import JournalError
from stagegraph.schema.types import is_dict, is_list

Redact = Callable[[Any], Any]
"""Takes a JSON value (an input, an output, messages, a prompt, an error text) and returns what may be written."""

_JSON: dict[type[Row], tuple[str, ...]] = {
    RunRow: ("input", "output", "prompts"),
    CallRow: ("input", "output", "messages", "prompt"),
    OpRow: ("payload",),
    FeedbackRow: ("value",),
}
_TEXT: dict[type[Row], tuple[str, ...]] = {RunRow: ("error",), CallRow: ("error",), FeedbackRow: ("comment",)}
_NEEDED_TO_RESUME = ("input", "prompts")


def redacted(row: Row, redact: Redact) -> Row | None:
    """The row as it may be written; `None` for a recorded answer that can no longer be read.

    Raises:
        JournalError: the function failed, or returned something without JSON.
    """
    try:
        changes, changed = _values(row, redact)
        for name in _TEXT.get(type(row), ()):
            changes[name] = _redacted_text(getattr(row, name), redact)
        match row:
            case RunRow():
                changes["labels"] = _labels(row.labels, redact, changed & {*_NEEDED_TO_RESUME})
            case CallRow():
                if "output" in changed:
                    changes["identity"] = ""  # what is left is not what the call gave
                if changed and not _is_readable(ModelMessagesTypeAdapter, changes["messages"]):
                    changes["messages"] = "[]"
                if row.pending is not None:
                    changes["pending"] = _pending(row.pending, redact)
            case OpRow() if changed and not row.op.startswith("question:"):
                return None  # it is made again, and an answer is asked for again: nobody goes on with a mask
            case _:
                pass
        return replace(row, **changes)
    except Exception as error:
        msg = (
            f"`redact=` failed with {type(error).__name__}, so a record of run {row.run_id!r} was not written: "
            "it has to take every JSON value, and give one"
        )
        raise JournalError(msg) from error


def _values(row: Row, redact: Redact) -> tuple[dict[str, Any], set[str]]:
    """What is written of a row's values, and the columns that the function changes.

    The second form of a value (`output_whole`) is left out if it would say what the function takes out of the first.
    """
    changes: dict[str, Any] = {}
    changed: set[str] = set()
    for name in _JSON.get(type(row), ()):
        text, whole = getattr(row, name), getattr(row, f"{name}_whole", None)
        if text is not None:
            changes[name] = _dumped(redact(json.loads(text)))
        if text is not None and changes[name] != _dumped(json.loads(text)):
            changed.add(name)
        if whole and (name in changed or redact(json.loads(whole)) != json.loads(whole)):
            changes[f"{name}_whole"] = ""
            changed.add(name)
    return changes, changed


def _dumped(data: object) -> str:
    return json.dumps(data, ensure_ascii=False)


def _redacted_text(text: str | None, redact: Redact) -> str | None:
    new = None if text is None else redact(text)
    return None if new is None else str(new)


def _labels(text: str, redact: Redact, changed: set[str]) -> str:
    """The caller's labels go through the function; what resuming needs stays."""
    labels = Labels.from_json(text)
    metadata, tags = redact(dict(labels.metadata)), redact(list(labels.tags))
    return replace(
        labels,
        metadata=metadata if is_dict(metadata) else {},
        tags=tuple(map(str, tags)) if is_list(tags) else (),
        session_id=_redacted_text(labels.session_id, redact),
        user_id=_redacted_text(labels.user_id, redact),
        redacted=tuple(sorted({*labels.redacted, *changed})),
    ).to_json()


def _pending(text: str, redact: Redact) -> str:
    """The arguments of each question go through the function; an answer needs the call and the tool."""
    asked: list[dict[str, Any]] = json.loads(text)
    for one in asked:
        before, args = _dumped(one["args"]), redact(one["args"])
        one["args"] = args if is_dict(args) else {}
        one["masked"] = one.get("masked", False) or _dumped(one["args"]) != before
    return _dumped(asked)


def _is_readable(adapter: TypeAdapter[Any], text: str) -> bool:
    try:
        adapter.validate_json(text)
    except ValidationError:
        return False
    return True
