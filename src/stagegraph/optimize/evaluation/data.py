"""Examples from files and from pydantic_evals, and their split into training and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

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

__all__ = ["examples", "from_pydantic_evals", "stratified_split", "to_pydantic_evals"]

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


class CaseLike(Protocol):
    """What is read of a `pydantic_evals.Case`."""

    name: str | None
    inputs: Any
    metadata: Any
    expected_output: Any


class DatasetLike(Protocol):
    """What is read of a `pydantic_evals.Dataset`."""

    @property
    def cases(self) -> Sequence[CaseLike]:
        """Its rows."""
        ...


# What is ignored by type checkers is unknown only where pydantic_evals is not installed.
def to_pydantic_evals(  # pyright: ignore[reportUnknownParameterType]
    examples: Iterable[Example[I]], graph: Node[I, Any], *, name: str | None = None
) -> Dataset[I, Any, dict[str, Any]]:
    """Examples as a `pydantic_evals.Dataset`, typed by the inputs of *graph*: it has no evaluators yet.

    Args:
        examples: Each becomes a case with its id as the name.
        graph: What takes the inputs.
        name: The data set's; the graph's own without it.

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
    evals = cast("Any", pydantic_evals)
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
    """The cases of a `pydantic_evals.Dataset` as examples; what evaluates them there is no part of an example.

    Args:
        dataset: A data set; `load_examples` reads its file without pydantic_evals.
        of: The type of the inputs, or the graph that takes them; without it they stay as they are.

    Raises:
        InputError: the inputs of a case do not fit; it names the case.
    """
    schema = None if of is None else of.__node__.input_type if isinstance(of, Node) else Schema(of)
    return [_example(case, place, schema) for place, case in enumerate(dataset.cases, 1)]


def _example(case: CaseLike, place: int, schema: Schema | None) -> Example[Any]:
    try:
        given = case.inputs if schema is None else schema.validate(case.inputs)
    except ValidationError as error:
        msg = f"case {place} ({case.name or 'without a name'}) is no example: {problems_of(error)}"
        raise InputError(msg) from error
    metadata = cast("object", case.metadata)
    if metadata is not None and not isinstance(metadata, Mapping):
        metadata = {"metadata": metadata}
    told = cast("Mapping[str, Any]", metadata or {})
    return Example(given, case.expected_output, case.name or "", dict(told))
