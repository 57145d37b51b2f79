"""What of a value may leave the process: changed by the user's function, cut to size, or only its shape."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence, Sized
from dataclasses import fields, is_dataclass
from typing import Any, Literal, cast

from pydantic import BaseModel

__all__ = [
    "Capture",
    "Redact",
    "cut",
    "redacted",
    "redacted_text",
    "shape",
    "without_files",
]

Capture = Literal["all", "shape", "none"]
"""Whole inputs, outputs and messages; only their types and sizes; nothing of them."""

Redact = Callable[[Any], Any]
"""Gets a JSON value (an input, an output, messages, a text) and gives what may be sent."""

_DEEP = 5
_FILE = re.compile(r"(?<=\"data\":\")[A-Za-z0-9+/=_-]{100,}(?=\",\"media_type\":)")


def redacted(text: str, redact: Redact) -> str:
    """JSON (or a plain text) through the user's function; what it fails on is not sent."""
    try:
        value = json.loads(text)
    except ValueError:
        return redacted_text(text, redact)
    try:
        return json.dumps(redact(value), ensure_ascii=False)
    except Exception as error:  # noqa: BLE001 - a user's function; its message may quote what must not be told
        return json.dumps(_failed(error))


def redacted_text(text: str, redact: Redact) -> str:
    """A text through the user's function; what it fails on is not sent."""
    try:
        return str(redact(text))
    except Exception as error:  # noqa: BLE001
        return _failed(error)


def _failed(error: Exception) -> str:
    return f"[not sent: `redact` raised {type(error).__name__}]"


def without_files(text: str) -> str:
    """JSON without the bytes of the files (`BinaryContent`) in it."""
    return _FILE.sub(lambda found: f"[{len(found[0])} characters of base64]", text)


def cut(text: str, limit: int) -> tuple[str, int | None]:
    """At most *limit* bytes of UTF-8, and how many there were when it is less than all."""
    if len(text) * 4 <= limit:
        return text, None
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return text, None
    return raw[:limit].decode("utf-8", "ignore"), len(raw)


def shape(value: object, depth: int = 0) -> Any:
    """The types and sizes in a value, and nothing that a user or a model wrote."""
    if value is None or isinstance(value, bool):
        return type(value).__name__
    if isinstance(value, (str, bytes)):
        return f"{type(value).__name__} of {len(value)}"
    if depth < _DEEP:
        if isinstance(value, BaseModel):
            return {name: shape(getattr(value, name), depth + 1) for name in type(value).model_fields}
        if is_dataclass(value) and not isinstance(value, type):
            return {field.name: shape(getattr(value, field.name, None), depth + 1) for field in fields(value)}
        if isinstance(value, (list, tuple)) and value:
            items = cast("Sequence[object]", value)
            return [f"{type(items).__name__} of {len(items)}", shape(items[0], depth + 1)]
    if isinstance(value, Sized):
        return (
            f"{type(cast('object', value)).__name__} of {len(cast('Sized', value))}"  # a mapping's keys are data, too
        )
    return type(value).__name__
