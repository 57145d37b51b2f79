"""Rows of data: the input of a graph, and its expected output."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import blake2b
from itertools import islice
from math import isfinite
from typing import Any, Generic

import anyio
from pydantic_core import SchemaSerializer, core_schema, to_jsonable_python
from typing_extensions import TypeVar

from stagegraph.schema.errors import DeclarationError, TuningError, leaves
from stagegraph.schema.schema import ordered
from stagegraph.schema.types import is_dict

In = TypeVar("In", default=Any)


@dataclass(frozen=True, slots=True)
class Example(Generic[In]):
    """One row of data."""

    input: In
    """A value of the graph's (or the stage's) input type."""
    expected: Any = None
    """The expected output, or data about it for a metric; `None` if unknown."""
    id: str = ""
    """Unique within a data set, and the same whenever the row is created; by default a hash of the input."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The origin of the row."""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", digest_of(self.input))

    def data(self) -> dict[str, Any]:
        """The row as plain data, without its empty parts."""
        given = to_jsonable_python(self.input, bytes_mode="base64", round_trip=True)
        row: dict[str, Any] = {"id": self.id, "input": given}
        if self.expected is not None:
            row["expected"] = to_jsonable_python(self.expected, bytes_mode="base64")
        if self.metadata:
            row["metadata"] = to_jsonable_python(dict(self.metadata))
        return row


_PLAIN = SchemaSerializer(core_schema.any_schema())


def digest_of(value: object) -> str:
    """A hash as 16 hexadecimal digits, the same for equal values in every process."""
    return blake2b(_canonical(value).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _canonical(value: object) -> str:
    with suppress(TypeError, ValueError):  # a set of models: as dicts they cannot be in a set
        value = ordered(_PLAIN.to_python(value, warnings=False))
    data = to_jsonable_python(value, bytes_mode="base64", fallback=repr)
    return json.dumps(data, sort_keys=True)


def split_examples(
    examples: Sequence[Example[In]],
    shares: Mapping[str, float],
    *,
    by: str | Callable[[Example[In]], object] | None = None,
    seed: int = 0,
) -> dict[str, list[Example[In]]]:
    """Divide examples into parts, each with its share of every kind; the result is always the same.

    Args:
        examples: The examples to divide.
        shares: Name -> share: `{"train": 0.6, "val": 0.2, "test": 0.2}`; relative to their sum.
        by: The kind of an example: a field of `expected`, a name in the metadata, or a function; by default the whole
            `expected`.
        seed: A different number gives a different division.

    Raises:
        DeclarationError: a share is not a positive number, or no example has *by*.
    """
    if not shares or not all(isfinite(share) and share > 0 for share in shares.values()):
        msg = f"split_examples(shares={dict(shares)!r}): each part needs a share above 0"
        raise DeclarationError(msg)
    if isinstance(by, str) and examples and not any(by in _fields(example) for example in examples):
        known = sorted({name for example in examples for name in _fields(example)})
        msg = f"no example has {by!r}, by which they are to be split; there are: {', '.join(known) or 'no fields'}"
        raise DeclarationError(msg)
    kinds: dict[str, list[Example[In]]] = {}
    for example in examples:
        kinds.setdefault(_kind(example, by), []).append(example)
    total = sum(map(Fraction, shares.values()))
    parts: dict[str, list[Example[In]]] = {name: [] for name in shares}
    owed = dict.fromkeys(shares, Fraction(0))
    order = sorted(kinds)
    random.Random(str(seed)).shuffle(order)  # noqa: S311 - nothing secret
    for kind in order:
        rows = sorted(kinds[kind], key=lambda example: example.id)
        random.Random(f"{seed}:{kind}").shuffle(rows)  # noqa: S311
        exact = {name: len(rows) * Fraction(share) / total for name, share in shares.items()}
        counts = {name: int(share) for name, share in exact.items()}
        for name, share in exact.items():
            owed[name] += share - counts[name]
        # The rows that are left go to the parts that are furthest behind over all kinds, at most one to each.
        split = sorted((name for name in shares if exact[name] != counts[name]), key=lambda name: -owed[name])
        for name in split[: len(rows) - sum(counts.values())]:
            counts[name] += 1
            owed[name] -= 1
        rest = iter(rows)
        for name, count in counts.items():
            parts[name] += islice(rest, count)
    return parts


def _kind(example: Example[Any], by: str | Callable[[Example[Any]], object] | None) -> str:
    if callable(by):
        return _canonical(repr(by(example)))
    return _canonical(example.expected if by is None else _fields(example).get(by))


def _fields(example: Example[Any]) -> dict[str, Any]:
    """The metadata of an example and, with precedence, the fields of its expected output."""
    expected: object = to_jsonable_python(example.expected, bytes_mode="base64", fallback=repr)
    return {**example.metadata, **(expected if is_dict(expected) else {})}


async def in_parallel(work: Iterable[Callable[[], Awaitable[None]]], concurrency: int) -> None:
    """Do so much of the work for examples at a time; an error ends all of it, and is raised itself."""
    limiter = anyio.CapacityLimiter(concurrency)

    async def one(part: Callable[[], Awaitable[None]]) -> None:
        async with limiter:
            await part()

    try:
        async with anyio.create_task_group() as group:
            for part in work:
                group.start_soon(one, part)
    except BaseExceptionGroup as several:
        errors = leaves(several)
        error = next((one for one in errors if isinstance(one, TuningError)), errors[0])
        raise error from error.__cause__
