"""From what a person typed to the input of a graph: a file, standard input, JSON, YAML or text."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagegraph.as_agent.input import text_field
from stagegraph.as_agent.tool import object_schema
from stagegraph.data.prompts_yaml import parse_yaml
from stagegraph.record.run import InputError
from stagegraph.schema.types import is_dict, is_list

if TYPE_CHECKING:
    from stagegraph.schema.schema import Schema

_LARGEST = 50_000_000
_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    ".json": ("JSON", json.loads),
    ".yaml": ("YAML", parse_yaml),
    ".yml": ("YAML", parse_yaml),
}
_LOOKS_LIKE_A_FILE = re.compile(r"[^\s{}\[\]\"']+\.[A-Za-z][A-Za-z0-9]{0,4}|\.{0,2}/\S+")


def read_input(text: str, schema: Schema) -> Any:
    """The input as data; the run validates it against the type.

    Raises:
        InputError: a file does not exist, is too large, is not UTF-8, or is not what its suffix says.
    """
    content, name = _content(text)
    if schema.type is str:
        return content
    suffix = Path(name).suffix.lower()
    if suffix in _READERS:
        format_, read = _READERS[suffix]
        try:
            return read(content)
        except (ValueError, RecursionError) as error:
            msg = f"{name}: no valid {format_}: {error}"
            raise InputError(msg) from error
    data = content if suffix else _data(content)
    return _as_text_field(content, schema) if isinstance(data, str) else data


def _content(text: str) -> tuple[str, str]:
    """The text itself, and the name of the file it came from."""
    if text == "-":
        return _decoded(sys.stdin.buffer.read(_LARGEST + 1), "standard input"), ""
    try:
        path = Path(text)
        is_file = path.is_file()
    except (OSError, ValueError):
        return text, ""  # longer than any file name
    if is_file:
        with path.open("rb") as file:
            return _decoded(file.read(_LARGEST + 1), text), text
    if _LOOKS_LIKE_A_FILE.fullmatch(text):
        msg = f"{text}: there is no such file; to use this as the text itself, give it by `-` from standard input"
        raise InputError(msg)
    return text, ""


def _decoded(raw: bytes, name: str) -> str:
    if len(raw) > _LARGEST:
        msg = f"{name}: larger than {_LARGEST:,} bytes"
        raise InputError(msg)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{name}: not UTF-8 text ({error.reason} at byte {error.start})"
        raise InputError(msg) from error


def _data(content: str) -> Any:
    """JSON, or YAML that is a mapping or a list; everything else is text."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass
    try:
        data = parse_yaml(content)
    except ValueError:
        return content
    return data if is_dict(data) or is_list(data) else content


def _as_text_field(content: str, schema: Schema) -> Any:
    """A text as the field of an input type that a plain text fills."""
    field = text_field(object_schema(schema))
    return content if field is None else {field: content}
