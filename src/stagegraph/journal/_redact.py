"""Every value of a row through the user's own function, before it is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ._rows import CallRow, FeedbackRow, OpRow, Row, RunRow

__all__ = ["Redact", "redacted"]

Redact = Callable[[Any], Any]
"""Gets a JSON value (an input, an output, messages, a prompt, an error text) and gives what may be written."""

_JSON: dict[type[Row], tuple[str, ...]] = {
    RunRow: ("input", "output", "prompts", "labels"),
    CallRow: ("input", "output", "messages", "prompt", "pending"),
    OpRow: ("payload",),
    FeedbackRow: ("value",),
}
_TEXT: dict[type[Row], tuple[str, ...]] = {RunRow: ("error",), CallRow: ("error",), FeedbackRow: ("comment",)}


def redacted(row: Row, redact: Redact) -> Row:
    changes: dict[str, Any] = {}
    for name in _JSON.get(type(row), ()):
        text = getattr(row, name)
        if text is not None:
            changes[name] = json.dumps(redact(json.loads(text)), ensure_ascii=False)
    for name in _TEXT.get(type(row), ()):
        text = getattr(row, name)
        if text is not None:
            changes[name] = str(redact(text))
    return replace(row, **changes)
