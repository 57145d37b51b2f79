"""Examples from files and from pydantic_evals, and their split into training and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from pydantic import ValidationError

from stagegraph.data.examples import Example, split_examples
from stagegraph.nodes.node import Node
from stagegraph.record.example_files import read_examples
from stagegraph.record.run import InputError
from stagegraph.schema.errors import DeclarationError, TuningError, problems_of
from stagegraph.schema.schema import Schema

if TYPE_CHECKING:
    import os

    from pydantic_evals import Dataset  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
    from typing_extensions import TypeForm

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 - an input type


@overload
def examples(path: str | os.PathLike[str], of: Node[I, Any]) -> list[Example[I]]: ...
@overload
def examples(path: str | os.PathLike[str], of: type[T] | TypeForm[T]) -> list[Example[T]]: ...
@overload
def examples(path: str | os.PathLike[str], of: None = None) -> list[Example[Any]]: ...
def examples(path: str | os.PathLike[str], of: Any = None) -> list[Example[Any]]:
    """Read a data set for tuning from any file that `load_examples` reads; the ids of its rows differ.

    Args:
        path: The file; its suffix says the format.
        of: The type of the inputs, or the graph that takes them; without it they stay plain data.

    Raises:
        InputError: the file cannot be read, has no rows, a row does not fit, or two have the same id; the message has
            the line.
    """
    lines: dict[str, int] = {}
    found: list[Example[Any]] = []
    for line, example in read_examples(path, _schema(of)):
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


def _schema(of: Any) -> Schema | None:
    return None if of is None else of.__node__.input_type if isinstance(of, Node) else Schema(of)


def stratified_split(
    examples: Sequence[Example[T]],
    by: str | Callable[[Example[T]], object] | None = None,
    val: float = 0.3,
    seed: int = 0,
) -> tuple[list[Example[T]], list[Example[T]]]:
    """Split examples into train and val, so that both have every kind in its share; equal arguments split alike.

    Args:
        examples: The examples, with ids that differ.
        by: The kind of an example: a field of `expected`, a name in the metadata, or a function; by default the whole
            `expected`.
        val: The share of the second part.
        seed: Of the random order.

    Raises:
        TuningError: there are fewer than 2 examples, two have the same id, *val* is not between 0 and 1, or no example
            has *by*.
    """
    ids = [example.id for example in examples]
    if len(ids) < 2:  # noqa: PLR2004 - one for each part
        msg = f"{len(ids)} examples are too few for training and validation; at least 2 are needed"
        raise TuningError(msg)
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        msg = f"two examples have the id {twice!r}, so training and validation could overlap: remove one of them"
        raise TuningError(msg)
    try:
        train, held = split_examples(examples, {"train": 1 - val, "val": val}, by=by, seed=seed).values()
    except DeclarationError as error:
        raise TuningError(str(error)) from error
    for part, other in ((train, held), (held, train)):
        if not part:
            part.append(other.pop())
    return train, held


class DatasetLike(Protocol):
    """The part of a `pydantic_evals.Dataset` that is read."""

    @property
    def cases(self) -> Sequence[Any]:
        """Its rows."""
        ...


# What is ignored by type checkers is unknown only where pydantic_evals is not installed.
def to_pydantic_evals(  # pyright: ignore[reportUnknownParameterType]
    examples: Iterable[Example[I]], graph: Node[I, Any], *, name: str | None = None
) -> Dataset[I, Any, dict[str, Any]]:
    """Examples as a `pydantic_evals.Dataset`, typed by the inputs of *graph*: it has no evaluators yet.

    Args:
        examples: Each becomes a case with its id as the name.
        graph: Its input type is the type of the inputs.
        name: The name of the data set; by default that of the graph.

    Raises:
        ImportError: pydantic_evals is not installed.
    """
    try:
        import pydantic_evals  # noqa: PLC0415 # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name != "pydantic_evals":
            raise
        msg = (
            "to_pydantic_evals needs pydantic-evals: pip install --no-deps pydantic-evals (its releases pin an older "
            "Pydantic AI than this package needs, which pip would install without --no-deps)"
        )
        raise ImportError(msg) from error
    evals: Any = pydantic_evals
    typed = evals.Dataset[graph.__node__.input_type.type, Any, dict[str, Any]]
    cases = [
        evals.Case(name=one.id, inputs=one.input, expected_output=one.expected, metadata=dict(one.metadata))
        for one in examples
    ]
    return typed(name=name or graph.__node__.name, cases=cases)


@overload
def from_pydantic_evals(dataset: DatasetLike, of: Node[I, Any]) -> list[Example[I]]: ...
@overload
def from_pydantic_evals(dataset: DatasetLike, of: type[T] | TypeForm[T]) -> list[Example[T]]: ...
@overload
def from_pydantic_evals(dataset: DatasetLike, of: None = None) -> list[Example[Any]]: ...
def from_pydantic_evals(dataset: DatasetLike, of: Any = None) -> list[Example[Any]]:
    """The cases of a `pydantic_evals.Dataset` as examples; its evaluators are left out.

    Args:
        dataset: A data set; `load_examples` reads its file without pydantic_evals.
        of: The type of the inputs, or the graph that takes them; without it they stay as they are.

    Raises:
        InputError: the inputs of a case do not fit; the message names the case.
    """
    schema, found = _schema(of), list[Example[Any]]()
    for place, case in enumerate(dataset.cases, 1):
        metadata: Any = dict[str, Any]() if case.metadata is None else case.metadata
        if not hasattr(metadata, "keys"):
            metadata = {"metadata": metadata}
        try:
            given = case.inputs if schema is None else schema.validate(case.inputs)
        except ValidationError as error:
            msg = f"case {place} ({case.name or 'without a name'}) is no example: {problems_of(error)}"
            raise InputError(msg) from error
        found.append(Example(given, case.expected_output, case.name or "", dict(metadata)))
    return found
