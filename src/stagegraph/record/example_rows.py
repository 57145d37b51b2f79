"""Files of examples as rows, each with the line that it begins on."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from json.decoder import JSONDecoder
from typing import Any, cast

from .run import InputError

__all__ = ["read_rows"]

Row = tuple[int, dict[str, Any]]

_DECODER = JSONDecoder()


def read_rows(text: str, suffix: str, name: str) -> Iterator[Row]:
    """The rows of a text in the format that its file's name ends with.

    Raises:
        InputError: it cannot be read, or a row is no mapping; it names the line.
    """
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".yaml": _yaml, ".yml": _yaml, ".csv": _csv}
    read = readers.get(suffix.lower())
    if read is None:
        msg = f"{name}: examples are read from {', '.join(sorted(readers))} files, not from `{suffix}`"
        raise InputError(msg)
    for line, row in read(text, name):
        if isinstance(row, dict):
            yield line, cast("dict[str, Any]", row)
        else:
            kind = type(row).__name__
            msg = f"{name}, line {line}: this is no example: a row is a mapping, not {kind}"
            raise InputError(msg)


def _jsonl(text: str, name: str) -> Iterator[tuple[int, object]]:
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                yield line, json.loads(content)
            except (ValueError, RecursionError) as error:
                msg = f"{name}, line {line}: this is no JSON: {error}"
                raise InputError(msg) from error


def _json(text: str, name: str) -> Iterator[tuple[int, object]]:
    """The items of a JSON list (or of the list `cases` of an object), so that each is known by its line."""
    try:
        whole: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{name}, line {getattr(error, 'lineno', 1)}: this is no JSON: {getattr(error, 'msg', error)}"
        raise InputError(msg) from error
    position = _after_space(text, 0)
    if isinstance(whole, dict):
        position = _value_of(text, position, "cases") or position
    if text[position] != "[":
        line = 1 + text.count("\n", 0, position)
        msg = f"{name}, line {line}: a JSON file of examples is a list, or an object with a list of `cases`"
        raise InputError(msg)
    position = _after_space(text, position + 1)
    while text[position] != "]":
        line = 1 + text.count("\n", 0, position)
        item, end = _DECODER.raw_decode(text, position)
        yield line, item
        position = _next(text, end)


def _value_of(text: str, position: int, name: str) -> int | None:
    """Where the value of an entry begins, of a JSON object that begins at *position* and is known to be one."""
    position, found = _after_space(text, position + 1), None
    while text[position] != "}":
        key, end = _DECODER.raw_decode(text, position)
        position = _after_space(text, _after_space(text, end) + 1)
        found = position if key == name else found
        position = _next(text, _DECODER.raw_decode(text, position)[1])
    return found


def _next(text: str, position: int) -> int:
    """Where the next item begins, or the closing bracket stands."""
    position = _after_space(text, position)
    return _after_space(text, position + 1) if text[position] == "," else position


def _after_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _yaml(text: str, name: str) -> Iterator[tuple[int, object]]:
    from stagegraph.data.prompts_yaml import parse_yaml_rows  # noqa: PLC0415 - PyYAML is loaded when a file is YAML

    try:
        yield from parse_yaml_rows(text)
    except ValueError as error:
        msg = f"{name}: these are no YAML examples: {error}"
        raise InputError(msg) from error


def _csv(text: str, name: str) -> Iterator[tuple[int, object]]:
    """Rows under a header; an empty cell is a value that is not there."""
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = next(reader, list[str]())
        if len(set(header)) < len(header) or not all(header):
            msg = f"{name}, line 1: each column has a name of its own"
            raise InputError(msg)
        before = reader.line_num
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                msg = f"{name}, line {line}: {len(cells)} cells under {len(header)} columns"
                raise InputError(msg)
            yield line, {column: cell for column, cell in zip(header, cells, strict=True) if cell}
    except csv.Error as error:
        msg = f"{name}, line {reader.line_num}: this is no CSV: {error}"
        raise InputError(msg) from error
