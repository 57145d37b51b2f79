"""Examples from files, dealt out for training and validation, and in DSPy's form and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import dspy
from pydantic import ValidationError

from stagegraph.data.examples import Example, split_examples
from stagegraph.nodes.node import Node
from stagegraph.record.example_files import read_examples
from stagegraph.record.run import InputError
from stagegraph.schema.errors import DeclarationError, TuningError, problems_of
from stagegraph.schema.schema import Schema

from ._fields import Fields

if TYPE_CHECKING:
    import os

    from typing_extensions import TypeForm

__all__ = ["examples", "from_dspy", "stratified_split", "to_dspy"]

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 - an input type


@overload
def examples(path: str | os.PathLike[str], of: Node[I, Any]) -> list[Example[I]]: ...
@overload
def examples(path: str | os.PathLike[str], of: type[T] | TypeForm[T]) -> list[Example[T]]: ...
@overload
def examples(path: str | os.PathLike[str], of: None = None) -> list[Example[Any]]: ...
def examples(path: str | os.PathLike[str], of: Any = None) -> list[Example[Any]]:
    """Read a data set for tuning from any file that `load_examples` reads; its rows can be told apart.

    Args:
        path: The file; its name says the format.
        of: The type of the inputs, or the graph that takes them; without it they stay plain data.

    Raises:
        InputError: the file cannot be read, has no rows, a row does not fit, or two have one id; it names the line.
    """
    schema = None if of is None else of.__node__.input_type if isinstance(of, Node) else Schema(of)
    lines: dict[str, int] = {}
    found: list[Example[Any]] = []
    for line, example in read_examples(path, schema):
        if example.id in lines:
            msg = (
                f"{path}, line {line}: the id {example.id!r} is that of line {lines[example.id]} already; "
                "without an `id`, equal inputs have the same one"
            )
            raise InputError(msg)
        lines[example.id] = line
        found.append(example)
    if not found:
        msg = f"{path}: there are no examples in it"
        raise InputError(msg)
    return found


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
        TuningError: there are too few examples for two parts, two have one id, *val* is no share, or no example has
            *by*.
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
    try:
        parts = split_examples(dealt, {"train": 1 - val, "val": val}, by=None if callable(by) else by, seed=seed)
    except DeclarationError as error:
        raise TuningError(str(error)) from error
    for name, other in (("train", "val"), ("val", "train")):
        if not parts[name]:
            parts[name].append(parts[other].pop())
    train, held = ([by_id[one.id] for one in parts[name]] for name in ("train", "val"))
    return train, held


@overload
def to_dspy(given: Example[Any], graph: Node[Any, Any]) -> dspy.Example: ...
@overload
def to_dspy(given: Iterable[Example[Any]], graph: Node[Any, Any]) -> list[dspy.Example]: ...
def to_dspy(given: Example[Any] | Iterable[Example[Any]], graph: Node[Any, Any]) -> dspy.Example | list[dspy.Example]:
    """One example, or many, as DSPy has them: the fields of the graph's input model (or `input`) as inputs.

    The rest are labels: what is expected is the label `expected`, or, when it is a mapping, one label for each of its
    entries.
    """
    takes = Fields(graph.__node__.input_type, "input")
    if isinstance(given, Example):
        return _to_dspy(given, takes)
    return [_to_dspy(example, takes) for example in given]


def _to_dspy(example: Example[Any], takes: Fields) -> dspy.Example:
    inputs = takes.split(example.input)
    labels: dict[str, Any] = {} if example.expected is None else {"expected": example.expected}
    if isinstance(cast("object", example.expected), Mapping) and example.expected:
        expected = cast("Mapping[object, object]", example.expected)
        plain = all(isinstance(key, str) and key.isidentifier() and key[:1] != "_" for key in expected)
        plain = plain and not any(str(key).startswith("dspy_") for key in expected)  # DSPy hides such names
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
    takes = Fields(graph.__node__.input_type, "input")
    if isinstance(given, dspy.Example):
        return _from_dspy(given, takes, graph)
    return [_from_dspy(one, takes, graph) for one in given]


def _from_dspy(given: dspy.Example, takes: Fields, graph: Node[Any, Any]) -> Example[Any]:
    fields = dict(cast("Any", given).items())
    try:
        value = takes.join(fields)
    except (ValidationError, KeyError) as error:
        reason = problems_of(error) if isinstance(error, ValidationError) else f"it has no {error}"
        msg = f"a dspy.Example does not fit {graph.__node__.name}: {reason}"
        raise InputError(msg) from error
    labels = {name: label for name, label in fields.items() if name not in takes.names}
    expected = labels["expected"] if labels.keys() == {"expected"} else (labels or None)
    hidden = cast("dict[str, Any]", cast("Any", given).toDict()) if "dspy_id" in given else {}
    return Example(value, expected, str(hidden.get("dspy_id") or ""), hidden.get("dspy_metadata") or {})
