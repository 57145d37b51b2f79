"""What of a value may leave the process: cut to size, freed of secrets, or only its shape."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence, Sized
from dataclasses import fields, is_dataclass
from typing import Any, Literal, cast

from pydantic import BaseModel

__all__ = [
    "HIDDEN",
    "Capture",
    "Redact",
    "cut",
    "known_secrets",
    "redacted",
    "redacted_text",
    "scrubbed",
    "shape",
    "sounds_secret",
]

Capture = Literal["all", "shape", "none"]
"""Whole inputs, outputs and messages; only their types and sizes; nothing of them."""

Redact = Callable[[Any], Any]
"""Gets a JSON value (an input, an output, messages, a text) and gives what may be sent."""

HIDDEN = "[secret]"
_DEEP = 5
_LONG_ENOUGH = 8
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_WORDS = (
    r"pass(?:word|wd|phrase)|api[_-]?key|secret(?:[_-]?key)?|authorization|(?:access|auth|refresh|bearer)[_-]?token"
    r"|private[_-]?key|client[_-]?secret|cookie"
)
_PATTERNS = (
    re.compile(r"(?i)\b(?:bearer|basic)\s+[A-Za-z0-9+/=_.~-]{8,}"),
    re.compile(r"\b(?:sk|pk|rk|xox[abp]|gh[pousr]|glpat|hf|AKIA)[-_A-Za-z0-9]{16,}"),
    re.compile(r"\bAIza[-_A-Za-z0-9]{30,}"),
    re.compile(r"(?<=://)[^/\s:@\"']+:[^/\s@\"']+(?=@)"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*"),
)
_IN_JSON = re.compile(rf'(?i)("[\w.-]*(?:{_WORDS})[\w-]*"\s*:\s*)"(?:[^"\\]|\\.)*"')
_IN_NESTED_JSON = re.compile(rf'(?i)(\\"[\w.-]*(?:{_WORDS})[\w-]*\\"\s*:\s*)\\"(?:[^"\\]|\\\\.)*\\"')
_IN_TEXT = re.compile(
    rf"(?i)(\b[\w-]*(?:{_WORDS})\s*(?:=\s*|:\s*(?=\S*[\d_-])))(?!\[secret\])[^\s\"'\\,;&{{}}\[\])]{{3,}}"
)


def scrubbed(text: str, secrets: Sequence[str] = ()) -> str:
    """A text without *secrets* and without what looks like a key, a password or a header that carries one."""
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(HIDDEN, text)
    text = _IN_JSON.sub(rf'\1"{HIDDEN}"', text)
    text = _IN_NESTED_JSON.sub(rf'\1\\"{HIDDEN}\\"', text)
    return _IN_TEXT.sub(rf"\1{HIDDEN}", text)


def sounds_secret(name: str) -> bool:
    """Whether a field of that name holds what nobody should see."""
    return re.search(rf"(?i)({_WORDS})$", name) is not None


def known_secrets() -> tuple[str, ...]:
    """The values of this process's environment variables that are named like secrets, the longest first."""
    variables = os.environ.items()
    found = {value for name, value in variables if _SECRET_NAME.search(name) and len(value) >= _LONG_ENOUGH}
    return tuple(sorted(found, key=len, reverse=True))


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
