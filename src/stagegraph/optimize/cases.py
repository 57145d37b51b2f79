"""Examples as a data set of pydantic_evals, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

from pydantic import ValidationError

from stagegraph.data.examples import Example
from stagegraph.nodes.node import Node
from stagegraph.record.run import InputError
from stagegraph.schema.errors import problems_of
from stagegraph.schema.schema import Schema

if TYPE_CHECKING:
    from pydantic_evals import Dataset  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
    from typing_extensions import TypeForm

__all__ = ["from_pydantic_evals", "to_pydantic_evals"]

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 - an input type


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
