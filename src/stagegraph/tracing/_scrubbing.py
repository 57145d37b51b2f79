"""Values without the secrets in them: JSON as the data that it is, and it stays JSON; anything else as text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, cast

from stagegraph.schema.serialize import encodable

from ._secrets import HIDDEN, is_secret, scrubbed_text

__all__ = ["scrubbed"]

_COUNTED = re.compile(
    r"(?i)(?:count|length|len|size|age|limit|total|used|attempts|ttl|seconds|expir\w*|version|index)$"
)
"""Names of numbers about secrets, which are none."""
_LARGEST_COUNT = 1000
_NAMES, _VALUES = ("name", "key", "header", "field", "variable"), ("value", "values")
"""What a pair is made of where it is written as an object: `{"name": "password", "value": ...}`."""
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"')


def scrubbed(text: str, secrets: Sequence[re.Pattern[str]] = ()) -> str:
    """A text, or a value as JSON, without *secrets* and without what looks like one."""
    if text.lstrip()[:1] not in {"{", "[", '"'}:
        return encodable(scrubbed_text(text, secrets))
    try:
        value = json.loads(text)
        clean = _Scrubber(secrets).value(value)
        return encodable(text if clean == value else _json(clean))
    except RecursionError:  # too deep to look at as a whole
        return encodable(_STRING.sub(lambda found: _json(scrubbed_text(_text(found[0]), secrets)), text))
    except ValueError:
        return encodable(scrubbed_text(text, secrets))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _text(string: str) -> str:
    try:
        return str(json.loads(string, strict=False))
    except ValueError:
        return string


class _Scrubber:
    """Gives JSON values without the secrets in them."""

    def __init__(self, secrets: Sequence[re.Pattern[str]]) -> None:
        self._secrets = secrets

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return scrubbed(value, self._secrets)
        if isinstance(value, list):
            items = cast("list[Any]", value)
            return [self._pair(item) for item in items] if _are_pairs(items) else [self.value(item) for item in items]
        if isinstance(value, dict):
            return self._fields(cast("dict[str, Any]", value))
        if isinstance(value, (int, float)) and any(secret.fullmatch(str(value)) for secret in self._secrets):
            return HIDDEN
        return value

    def _fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        called = next((fields[name] for name in _NAMES if isinstance(fields.get(name), str)), "")
        return {
            scrubbed_text(name, self._secrets): self._schemas(cast("dict[str, Any]", held))
            if name == "properties" and isinstance(held, dict)
            else self._named(called if name in _VALUES and is_secret(called, held) else name, held)
            for name, held in fields.items()
        }

    def _schemas(self, properties: dict[str, Any]) -> dict[str, Any]:
        """What a schema says of a field is no secret, whatever the field is called."""
        return {
            scrubbed_text(name, self._secrets): self.value(held) if isinstance(held, dict) else self._named(name, held)
            for name, held in properties.items()
        }

    def _pair(self, pair: list[Any]) -> list[Any]:
        return [self.value(pair[0]), self._named(pair[0], pair[1])]

    def _named(self, name: str, value: Any) -> Any:
        return _hidden(name, value) if is_secret(name, value) else self.value(value)


def _are_pairs(items: list[Any]) -> bool:
    """Whether a list is names and values, as headers often are."""
    return bool(items) and all(
        isinstance(item, list)
        and len(cast("list[Any]", item)) == 2  # noqa: PLR2004
        and isinstance(item[0], str)
        for item in items
    )


def _hidden(name: str, value: Any) -> Any:
    """Everything in the value of a secret field: what is no text, number or collection tells nothing."""
    if isinstance(value, dict):
        return {key: _hidden(name, held) for key, held in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_hidden(name, item) for item in cast("list[Any]", value)]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and (abs(value) < _LARGEST_COUNT or _COUNTED.search(name)):
        return value
    return HIDDEN
