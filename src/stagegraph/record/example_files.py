"""Files of examples that people can read and write: JSON lines, JSON, YAML and tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ValidationError

from stagegraph.data.examples import Example
from stagegraph.schema.errors import first_problem
from stagegraph.schema.schema import field_keys

from .example_rows import read_rows
from .run import InputError

if TYPE_CHECKING:
    import os

    from stagegraph.schema.schema import Schema

__all__ = ["load_examples", "read_examples", "save_examples"]

_ABOUT = frozenset({"id", "metadata", "split", "expected"})
_CASE = {"inputs": "input", "expected_output": "expected", "name": "id", "metadata": "metadata"}
"""What a case of a pydantic_evals data set calls them."""


def save_examples(examples: Iterable[Example[Any]], path: str | os.PathLike[str]) -> int:
    """Write one JSON object a line; gives how many.

    Raises:
        InputError: an example cannot be written as JSON, or the file cannot be written.
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


def load_examples(
    path: str | os.PathLike[str], takes: Schema | None = None, *, split: str | None = None
) -> list[Example[Any]]:
    """Read a file of JSON lines, a JSON or YAML list, a CSV table, or a data set of pydantic_evals.

    A row has an `input`, or the fields of the input model beside each other. `id`, `metadata`, `split` and `expected`
    are what they say; without `expected`, all other fields together are what is expected. The evaluators of a
    pydantic_evals data set are not read.

    Args:
        path: The file; its name says the format.
        takes: The type of the inputs (`graph.__node__.input_type`); without it they stay plain data.
        split: Only rows with this `split` (`train`, `test`).

    Raises:
        InputError: the file cannot be read, or a row does not fit; it names the file and the line.
    """
    rows = (example for _, example in read_examples(path, takes))
    return [example for example in rows if split is None or example.metadata.get("split") == split]


def read_examples(path: str | os.PathLike[str], takes: Schema | None) -> Iterator[tuple[int, Example[Any]]]:
    """The same one by one, each with the line that it begins on.

    Raises:
        InputError: as `load_examples`.
    """
    name, suffix = str(path), Path(path).suffix.lower()
    try:
        text = Path(path).read_text("utf-8-sig")
    except OSError as error:
        msg = f"{name}: the examples cannot be read: {error.strerror or error}"
        raise InputError(msg) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        msg = f"{name}, line {line}: the examples cannot be read: {error}"
        raise InputError(msg) from error
    for line, row in read_rows(text, suffix, name):
        try:
            yield line, _example(_uncased(row), takes, flat=suffix == ".csv")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            msg = f"{name}, line {line}: this is no example: {_reason(error)}"
            raise InputError(msg) from error


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return first_problem(error) if isinstance(error, ValidationError) else str(error).splitlines()[0]


def _uncased(row: dict[str, Any]) -> dict[str, Any]:
    """A case of a pydantic_evals data set as a row; every other row as it is."""
    if "inputs" not in row or "input" in row or not row.keys() <= _CASE.keys() | {"evaluators"}:
        return row
    found = {_CASE[name]: value for name, value in row.items() if name in _CASE and value is not None}
    metadata = found.get("metadata", {})
    return {**found, "metadata": metadata if isinstance(metadata, dict) else {"metadata": metadata}}


def _example(row: dict[str, Any], takes: Schema | None, *, flat: bool) -> Example[Any]:
    given, own = _input(row, takes, flat=flat)
    rest = {name: _cell(value, flat=flat) for name, value in row.items() if name not in own | _ABOUT}
    expected = _cell(row["expected"], flat=flat) if "expected" in row else (rest or None)
    told: Any = _cell(row.get("metadata"), flat=flat) or {}
    if not isinstance(told, dict):
        msg = "its metadata is no mapping"
        raise TypeError(msg)
    metadata = cast("dict[str, Any]", told) | (rest if "expected" in row else {})
    if "split" in row:
        metadata["split"] = row["split"]
    name = row.get("id")
    return Example(given, expected, "" if name is None else str(name), metadata)


def _input(row: dict[str, Any], takes: Schema | None, *, flat: bool) -> tuple[Any, set[str]]:
    """A row's input, and the names that it stands under."""
    keys = _fields_of(takes)
    if not keys or "input" in row:
        try:
            return _loaded(takes, row["input"], flat=flat), {"input"}
        except ValidationError:
            if "input" not in keys:  # else it may be a field of that name
                raise
    named = {key: row[name] if name in row else row[key] for name, key in keys.items() if {name, key} & row.keys()}
    return _loaded(takes, named, flat=flat), {*keys, *keys.values()}


def _fields_of(takes: Schema | None) -> dict[str, str]:
    """Field of the input model -> the name that its JSON has for it; nothing when the input is no model."""
    model = None if takes is None else takes.type
    return field_keys(model) if isinstance(model, type) and issubclass(model, BaseModel) else {}


def _loaded(takes: Schema | None, value: Any, *, flat: bool) -> Any:
    if takes is None:
        return value
    opened = _opened(value, flat=flat)
    try:
        return takes.load(opened)
    except ValidationError:
        if opened == value:
            raise
        return takes.load(value)  # a text may look like JSON


def _opened(value: Any, *, flat: bool) -> Any:
    if flat and isinstance(value, Mapping):
        return {name: _cell(cell, flat=True) for name, cell in cast("Mapping[str, Any]", value).items()}
    return _cell(value, flat=flat)


def _cell(value: Any, *, flat: bool) -> Any:
    """A cell of a table may hold a list or a mapping, written as JSON."""
    if flat and isinstance(value, str) and value[:1] in {"{", "["}:
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
