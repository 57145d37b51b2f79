"""Rows of data: what goes into a graph, and what is known about what should come out; in files that people can read."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, cast

from pydantic import ValidationError
from pydantic_core import to_jsonable_python
from typing_extensions import TypeVar

from .errors import InputError

if TYPE_CHECKING:
    import os

    from .schema import Schema

__all__ = ["Example", "load_examples", "save_examples", "split_examples"]

In = TypeVar("In", default=Any)


@dataclass(frozen=True, slots=True)
class Example(Generic[In]):
    """One row of data."""

    input: In
    """A value of the graph's (or the stage's) input type."""
    expected: Any = None
    """What should come out, or what a metric wants to know about it; `None` when nobody said."""
    id: str = ""
    """Unique within a data set, and the same each time the row is made; a hash of the input without one."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Where it came from."""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", digest_of(self.input))

    def data(self) -> dict[str, Any]:
        """The row as plain data; what is empty is left out."""
        row: dict[str, Any] = {"id": self.id, "input": to_jsonable_python(self.input)}
        if self.expected is not None:
            row["expected"] = to_jsonable_python(self.expected)
        if self.metadata:
            row["metadata"] = to_jsonable_python(dict(self.metadata))
        return row


def digest_of(value: object) -> str:
    """16 hexadecimal digits, equal for values that say the same."""
    text = json.dumps(to_jsonable_python(value, fallback=repr), sort_keys=True)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def save_examples(examples: Iterable[Example[Any]], path: str | os.PathLike[str]) -> int:
    """Write one JSON object a line; gives how many."""
    rows = [json.dumps(example.data(), ensure_ascii=False) for example in examples]
    Path(path).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8", errors="replace", newline="\n")
    return len(rows)


def load_examples(
    path: str | os.PathLike[str], takes: Schema | None = None, *, split: str | None = None
) -> list[Example[Any]]:
    """Read a file of JSON lines: `input`, and if they are there `expected`, `id`, `metadata` and `split`.

    Args:
        path: The file.
        takes: The type of the inputs (`graph.takes`); without it they stay plain data.
        split: Only rows with this `split` (`train`, `test`).

    Raises:
        InputError: a line is no such row, or its input does not fit; it names the line.
    """
    found: list[Example[Any]] = []
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            data = cast("dict[str, Any]", row)
            given = data["input"] if takes is None else takes.load(data["input"])
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            msg = f"{path}, line {number}: this is no example: {reason}"
            raise InputError(msg) from error
        if split is None or data.get("split") == split:
            metadata = dict(data.get("metadata") or {}) | ({"split": data["split"]} if "split" in data else {})
            found.append(Example(given, data.get("expected"), str(data.get("id") or ""), metadata))
    return found


def split_examples(
    examples: Sequence[Example[In]], shares: Mapping[str, float], *, by: str | None = None, seed: int = 0
) -> dict[str, list[Example[In]]]:
    """Deal examples out, the same way each time, so that each part has every kind in its share.

    Args:
        examples: What to deal out.
        shares: Name -> share: `{"train": 0.6, "val": 0.2, "test": 0.2}`; they are taken relative to their sum.
        by: What makes a kind: a field of `expected` or a name in the metadata; the whole `expected` without it.
        seed: Another number deals otherwise.
    """
    kinds: dict[str, list[Example[In]]] = {}
    for example in examples:
        kinds.setdefault(_kind(example, by), []).append(example)
    total = sum(shares.values())
    parts: dict[str, list[Example[In]]] = {name: [] for name in shares}
    owed = dict.fromkeys(shares, 0.0)
    for kind in sorted(kinds):
        rows = sorted(kinds[kind], key=lambda example: example.id)
        random.Random(f"{seed}:{kind}").shuffle(rows)  # noqa: S311 - nothing secret
        for row in rows:
            for name, share in shares.items():
                owed[name] += share / total
            name = max(owed, key=lambda one: owed[one])  # the part that is furthest behind its share
            owed[name] -= 1
            parts[name].append(row)
    return parts


def _kind(example: Example[Any], by: str | None) -> str:
    expected = to_jsonable_python(example.expected, fallback=repr)
    if by is None:
        return json.dumps(expected, sort_keys=True)
    if isinstance(expected, dict) and by in expected:
        return json.dumps(expected[by], sort_keys=True)
    return json.dumps(to_jsonable_python(example.metadata.get(by), fallback=repr), sort_keys=True)
