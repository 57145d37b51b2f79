"""Examples from files, dealt out for training and validation, and in DSPy's form and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import dspy
from pydantic import ValidationError

from stagegraph.errors import InputError, TuningError
from stagegraph.example import Example, split_examples
from stagegraph.failure import problems_of
from stagegraph.node import Node
from stagegraph.schema import Schema

from ._fields import Fields
from ._rows import read_rows

if TYPE_CHECKING:
    import os

    from typing_extensions import TypeForm

__all__ = ["examples", "from_dspy", "stratified_split", "to_dspy"]

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 - an input type

_ABOUT = frozenset({"id", "metadata", "split", "expected"})


@overload
def examples(path: str | os.PathLike[str], of: Node[I, Any]) -> list[Example[I]]: ...
@overload
def examples(path: str | os.PathLike[str], of: type[T] | TypeForm[T]) -> list[Example[T]]: ...
@overload
def examples(path: str | os.PathLike[str], of: None = None) -> list[Example[Any]]: ...
def examples(path: str | os.PathLike[str], of: Any = None) -> list[Example[Any]]:
    """Read examples from a file of JSON lines, a JSON or YAML list, or a CSV table.

    A row has an `input`, or the fields of the input model beside each other. `id`, `metadata`, `split` and `expected`
    are what they say; without `expected`, all other fields together are what is expected.

    Args:
        path: The file; its name says the format.
        of: The type of the inputs, or the graph that takes them; without it they stay plain data.

    Raises:
        InputError: the file cannot be read, has no rows, or a row does not fit; it names the file and the line.
    """
    name = str(path)
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{name}: the examples cannot be read: {getattr(error, 'strerror', None) or error}"
        raise InputError(msg) from error
    schema = None if of is None else of.takes if isinstance(of, Node) else Schema(of)
    takes = None if schema is None else Fields(schema, "input")
    lines: dict[str, int] = {}
    found: list[Example[Any]] = []
    for line, row in read_rows(text, Path(path).suffix, name):
        try:
            example = _example(row, takes, flat=Path(path).suffix.lower() == ".csv")
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            reason = problems_of(error) if isinstance(error, ValidationError) else _said(error)
            msg = f"{name}, line {line}: this is no example: {reason}"
            raise InputError(msg) from error
        if "id" in row and example.id in lines:
            msg = f"{name}, line {line}: the id {example.id!r} is that of line {lines[example.id]} already"
            raise InputError(msg)
        lines[example.id] = line
        found.append(example)
    if not found:
        msg = f"{name}: there are no examples in it"
        raise InputError(msg)
    return found


def _said(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]


def _example(row: dict[str, Any], takes: Fields | None, *, flat: bool) -> Example[Any]:
    if takes is None or takes.model is None or ("input" in row and "input" not in takes.names):
        own = {"input"}
        given = row["input"]
        if takes is not None:
            given = _loaded(takes.schema, given, flat=flat)
    else:
        own = takes.known_as()
        fields = takes.named(row)
        try:
            given = takes.join({name: _cell(value, flat=flat) for name, value in fields.items()})
        except ValidationError:
            given = takes.join(fields)  # a text may look like JSON
    rest = {name: _cell(value, flat=flat) for name, value in row.items() if name not in own | _ABOUT}
    expected = _cell(row["expected"], flat=flat) if "expected" in row else (rest or None)
    metadata = dict(_cell(row.get("metadata"), flat=flat) or {})
    if "expected" in row:
        metadata |= rest
    if "split" in row:
        metadata["split"] = row["split"]
    return Example(given, expected, str(row.get("id") or ""), metadata)


def _loaded(schema: Schema, value: object, *, flat: bool) -> Any:
    try:
        return schema.load(value)
    except ValidationError:
        if not flat or _cell(value, flat=True) == value:
            raise
        return schema.load(_cell(value, flat=True))


def _cell(value: Any, *, flat: bool) -> Any:
    """A cell of a table may hold a list or a mapping, written as JSON."""
    if flat and isinstance(value, str) and value[:1] in {"{", "["}:
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def stratified_split(
    examples: Sequence[Example[T]],
    by: str | Callable[[Example[T]], object] | None = None,
    val: float = 0.3,
    seed: int = 0,
) -> tuple[list[Example[T]], list[Example[T]]]:
    """Deal examples out into train and val, the same way each time, so that both have every kind in its share.

    Args:
        examples: What to deal out.
        by: What makes a kind: a field of `expected`, a name in the metadata, or a function; the whole `expected`
            without it.
        val: The share of the second part.
        seed: Another number deals otherwise.

    Raises:
        TuningError: there are too few examples for two parts, two have one id, or *val* is no share.
    """
    if not 0 < val < 1:
        msg = f"stratified_split(val={val}): a share is between 0 and 1"
        raise TuningError(msg)
    if len(examples) < 2:  # noqa: PLR2004 - one for each part
        msg = f"{len(examples)} examples are too few for training and validation; at least 2 are needed"
        raise TuningError(msg)
    by_id = {example.id: example for example in examples}
    if len(by_id) < len(examples):
        ids = [example.id for example in examples]
        twice = next(one for one in ids if ids.count(one) > 1)
        msg = f"two examples have the id {twice!r}, so training and validation could overlap: remove one of them"
        raise TuningError(msg)
    dealt = examples
    if callable(by):
        dealt = [Example(example.input, repr(by(example)), example.id) for example in examples]
    parts = split_examples(dealt, {"train": 1 - val, "val": val}, by=None if callable(by) else by, seed=seed)
    for name, other in (("train", "val"), ("val", "train")):
        if not parts[name]:
            parts[name].append(parts[other].pop())
    train, held = ([by_id[one.id] for one in parts[name]] for name in ("train", "val"))
    return train, held


def to_dspy(examples: Iterable[Example[Any]], graph: Node[Any, Any]) -> list[dspy.Example]:
    """Examples as DSPy has them: the fields of the graph's input model (or `input`) as inputs, the rest as labels.

    What is expected is the label `expected`, or, when it is a mapping, one label for each of its entries.
    """
    takes = Fields(graph.takes, "input")
    return [_to_dspy(example, takes) for example in examples]


def _to_dspy(example: Example[Any], takes: Fields) -> dspy.Example:
    inputs = takes.split(example.input)
    labels: dict[str, Any] = {} if example.expected is None else {"expected": example.expected}
    if isinstance(cast("object", example.expected), Mapping) and example.expected:
        expected = cast("Mapping[object, object]", example.expected)
        plain = all(isinstance(key, str) and key.isidentifier() and key[:1] != "_" for key in expected)
        if plain and not expected.keys() & (inputs.keys() | {"expected"}):
            labels = {str(key): value for key, value in expected.items()}
    # Names with `dspy_` are DSPy's own and show up nowhere, but they survive copying.
    about = {"dspy_id": example.id, "dspy_metadata": dict(example.metadata)}
    return cast("Any", dspy.Example(**inputs, **labels, **about)).with_inputs(*inputs)


@overload
def from_dspy(given: dspy.Example, graph: Node[I, Any]) -> Example[I]: ...
@overload
def from_dspy(given: Iterable[dspy.Example], graph: Node[I, Any]) -> list[Example[I]]: ...
def from_dspy(given: dspy.Example | Iterable[dspy.Example], graph: Node[I, Any]) -> Example[I] | list[Example[I]]:
    """What `to_dspy` made, or any `dspy.Example` that has the inputs of *graph*, as examples.

    Raises:
        InputError: the inputs do not fit the graph.
    """
    takes = Fields(graph.takes, "input")
    if isinstance(given, dspy.Example):
        return _from_dspy(given, takes, graph)
    return [_from_dspy(one, takes, graph) for one in given]


def _from_dspy(given: dspy.Example, takes: Fields, graph: Node[Any, Any]) -> Example[Any]:
    fields = dict(cast("Any", given).items())
    try:
        value = takes.join(fields)
    except (ValidationError, KeyError) as error:
        reason = problems_of(error) if isinstance(error, ValidationError) else _said(error)
        msg = f"a dspy.Example does not fit {graph.label}: {reason}"
        raise InputError(msg) from error
    labels = {name: label for name, label in fields.items() if name not in takes.names}
    expected = labels["expected"] if labels.keys() == {"expected"} else (labels or None)
    hidden = cast("dict[str, Any]", cast("Any", given).toDict()) if "dspy_id" in given else {}
    return Example(value, expected, str(hidden.get("dspy_id") or ""), hidden.get("dspy_metadata") or {})
