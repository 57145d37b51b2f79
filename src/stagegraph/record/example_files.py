"""Files of examples: JSON lines, JSON, YAML and CSV tables.

They are read in this room and not in `data/`, because a bad row is an `InputError`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from pydantic import BaseModel, ValidationError

from stagegraph.data.examples import Example
from stagegraph.data.files import read_regular
from stagegraph.schema.errors import first_problem
from stagegraph.schema.schema import field_keys
from stagegraph.schema.types import is_dict

from .run import InputError

if TYPE_CHECKING:
    import os

    from stagegraph.nodes.node import Node
    from stagegraph.schema.schema import Schema

In = TypeVar("In")

_ABOUT = frozenset({"id", "metadata", "split", "expected"})
_CASE = {"inputs": "input", "expected_output": "expected", "name": "id", "metadata": "metadata"}
"""Field of a case of a pydantic_evals data set -> field of an example."""
_DECODER = json.JSONDecoder()

_Path: TypeAlias = "str | os.PathLike[str]"


def save_examples(examples: Iterable[Example[Any]], path: _Path) -> int:
    """Write one JSON object a line; returns the number of examples.

    Raises:
        InputError: an example has no JSON, or the file cannot be written.
    """
    rows: list[bytes] = []
    for number, example in enumerate(examples, 1):
        try:
            rows.append(_line(example.data()))
        except ValueError as error:
            msg = f"{path}: example {number} ({example.id}) cannot be written as JSON: {error}"
            raise InputError(msg) from error
    try:
        Path(path).write_bytes(b"".join(rows))
    except OSError as error:
        msg = f"the examples could not be written: {error}"
        raise InputError(msg) from error
    return len(rows)


def _line(row: dict[str, Any]) -> bytes:
    try:
        return f"{json.dumps(row, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only its escape is valid in a file
        return f"{json.dumps(row)}\n".encode()


@overload
def load_examples(path: _Path, graph: Node[In, Any], *, split: str | None = None) -> list[Example[In]]: ...
@overload
def load_examples(path: _Path, graph: None = None, *, split: str | None = None) -> list[Example[Any]]: ...
def load_examples(path: _Path, graph: Node[Any, Any] | None = None, *, split: str | None = None) -> list[Example[Any]]:
    """Read a file of JSON lines, a JSON or YAML list, a CSV table, or a data set of pydantic_evals.

    A row has an `input`, or the fields of the input model beside each other, and may have `id`, `metadata`, `split` and
    `expected`. Without `expected`, all other fields together are expected. The evaluators of a pydantic_evals data set
    are ignored.

    Args:
        path: The file; its suffix is the format.
        graph: The graph (or stage, or step) that takes the inputs; without it they stay plain data.
        split: Only rows with this `split` (`train`, `test`).

    Raises:
        InputError: the file cannot be read, or a row does not fit; the message has the file and the line.
    """
    rows = (example for _, example in read_examples(path, None if graph is None else graph.__node__.input_type))
    return [example for example in rows if split is None or example.metadata.get("split") == split]


def read_examples(path: _Path, input_type: Schema | None) -> Iterator[tuple[int, Example[Any]]]:
    """The examples of a file one by one, each with the line where it begins.

    Raises:
        InputError: as `load_examples`.
    """
    suffix = Path(path).suffix.lower()
    try:
        text = read_regular(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        msg = f"{path}: the examples cannot be read: {error.strerror or error}"
        raise InputError(msg) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _problem(path, line, f"the examples cannot be read: {error}") from error
    if suffix not in _READERS:
        msg = f"{path}: examples are read from {', '.join(sorted(_READERS))} files, not from `{suffix}`"
        raise InputError(msg)
    for line, row in _READERS[suffix](text, path):
        if not is_dict(row):
            raise _problem(path, line, f"this is no example: a row is a mapping, not {type(row).__name__}")
        try:
            given = _from_case(row)
            opened = {name: _cell(cell) for name, cell in given.items()} if suffix == ".csv" else given
            yield line, _example(given, opened, input_type)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _problem(path, line, f"this is no example: {_reason(error)}") from error


def _problem(path: _Path, line: int, problem: str) -> InputError:
    return InputError(f"{path}, line {line}: {problem}")


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return first_problem(error) if isinstance(error, ValidationError) else str(error).splitlines()[0]


def _from_case(row: dict[str, Any]) -> dict[str, Any]:
    """A case of a pydantic_evals data set as a row; every other row unchanged."""
    if "inputs" not in row or "input" in row or not row.keys() <= _CASE.keys() | {"evaluators"}:
        return row
    found = {_CASE[name]: value for name, value in row.items() if name in _CASE and value is not None}
    metadata = found.get("metadata", {})
    return {**found, "metadata": metadata if isinstance(metadata, dict) else {"metadata": metadata}}


def _example(row: dict[str, Any], opened: dict[str, Any], input_type: Schema | None) -> Example[Any]:
    """The example in a row; its cells are *opened* where they look like JSON."""
    given, own = _input(row, opened, input_type)
    rest = {name: value for name, value in opened.items() if name not in own | _ABOUT}
    metadata: object = opened.get("metadata") or {}
    if not is_dict(metadata):
        msg = "its metadata is no mapping"
        raise TypeError(msg)
    metadata = metadata | (rest if "expected" in row else {})
    if "split" in row:
        metadata["split"] = row["split"]
    name = row.get("id")
    return Example(given, opened.get("expected", rest or None), "" if name is None else str(name), metadata)


def _input(row: dict[str, Any], opened: dict[str, Any], input_type: Schema | None) -> tuple[Any, set[str]]:
    """A row's input, and the names of its fields in the row."""
    model = None if input_type is None else input_type.type
    keys = field_keys(model) if isinstance(model, type) and issubclass(model, BaseModel) else {}
    if not keys or "input" in row:
        try:
            return _loaded(input_type, row["input"], opened["input"]), {"input"}
        except ValidationError:
            if "input" not in keys:  # else it may be a field of that name
                raise
    named = {key: name if name in row else key for name, key in keys.items() if {name, key} & row.keys()}
    values = ({key: cells[name] for key, name in named.items()} for cells in (row, opened))
    return _loaded(input_type, *values), {*keys, *keys.values()}


def _loaded(input_type: Schema | None, value: Any, opened: Any) -> Any:
    if input_type is None:
        return value
    try:
        return input_type.load(opened)
    except ValidationError:
        if opened == value:
            raise
        return input_type.load(value)  # a text that only looks like JSON


def _cell(value: Any) -> Any:
    """A cell of a table may hold a list or a mapping as JSON."""
    with suppress(ValueError):
        return json.loads(value) if value[:1] in {"{", "["} else value
    return value


def _jsonl(text: str, path: _Path) -> Iterator[tuple[int, object]]:
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                yield line, json.loads(content)
            except (ValueError, RecursionError) as error:
                raise _problem(path, line, f"this is no JSON: {error}") from error


def _json(text: str, path: _Path) -> Iterator[tuple[int, object]]:
    """The items of a JSON list (or of the list `cases` of an object), each with its line."""
    try:
        whole: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _problem(path, getattr(error, "lineno", 1), f"this is no JSON: {getattr(error, 'msg', error)}") from error
    start = _after_gap(text, 0)
    if isinstance(whole, dict):
        entries = list(_parts(text, start))
        values = {key: position for (_, key), (position, _) in zip(entries[::2], entries[1::2], strict=True)}
        start = values.get("cases", start)
    if text[start] != "[":
        line = 1 + text.count("\n", 0, start)
        raise _problem(path, line, "a JSON file of examples is a list, or an object with a list of `cases`")
    line, before = 1, 0
    for position, item in _parts(text, start):
        line, before = line + text.count("\n", before, position), position
        yield line, item


def _parts(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """The items of a JSON list, or keys and values of an object in turn, each with its position in the valid *text*."""
    position = _after_gap(text, start + 1)
    while text[position] not in "]}":
        part, end = _DECODER.raw_decode(text, position)
        yield position, part
        position = _after_gap(text, end)


def _after_gap(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n,:":
        position += 1
    return position


def _yaml(text: str, path: _Path) -> Iterator[tuple[int, object]]:
    from stagegraph.data.prompts_yaml import parse_yaml_rows  # noqa: PLC0415 - PyYAML is loaded for a YAML file only

    try:
        yield from parse_yaml_rows(text)
    except ValueError as error:
        msg = f"{path}: these are no YAML examples: {error}"
        raise InputError(msg) from error


def _csv(text: str, path: _Path) -> Iterator[tuple[int, object]]:
    """Rows under a header; an empty cell is a missing value."""
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = next(reader, list[str]())
        if len(set(header)) < len(header) or not all(header):
            raise _problem(path, 1, "each column has a name of its own")
        before = reader.line_num
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                raise _problem(path, line, f"{len(cells)} cells under {len(header)} columns")
            yield line, {column: cell for column, cell in zip(header, cells, strict=True) if cell}
    except csv.Error as error:
        raise _problem(path, reader.line_num, f"this is no CSV: {error}") from error


_READERS = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".yaml": _yaml, ".yml": _yaml, ".csv": _csv}
