"""Rows of data in files that people can read, and their fair division."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_ai import Agent

from stagegraph import DeclarationError, Stage, load_examples, save_examples
from stagegraph.data.examples import Example, split_examples
from stagegraph.record.run import InputError


class Ticket(BaseModel):
    text: str
    due: date = date(2026, 1, 2)
    tags: set[str] = set()


@dataclass
class Place:
    name: str


TEXTS = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@given(rows=st.lists(st.tuples(JSON, JSON, st.dictionaries(TEXTS, JSON, max_size=2)), max_size=4))
def test_examples_come_back_as_they_were_saved(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    """Any JSON data, whatever text is in it, one line each."""
    file = tmp_path_factory.mktemp("e") / "e.jsonl"
    examples = [Example(given, expected, metadata=metadata) for given, expected, metadata in rows]
    assert save_examples(examples, file) == len(examples)
    assert load_examples(file) == examples
    assert file.read_bytes().count(b"\n") == len(examples)


@pytest.mark.parametrize("text", ["a\u2028b", "\x85\x0b\x0c\x1c", "half \ud800", "é\r\n\t\\", "\x00", "\ufeff"])
def test_odd_text_is_kept(tmp_path: Path, text: str) -> None:
    """Not every separator ends a line, and half of a surrogate pair is written as its escape."""
    save_examples([Example(text, text), Example("next")], tmp_path / "e.jsonl")
    assert load_examples(tmp_path / "e.jsonl") == [Example(text, text), Example("next")]


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (Ticket(text="t", tags={"a", "b"}), Ticket),
        ([Ticket(text="t")], list[Ticket]),
        (Place("here"), Place),
        (date(2026, 1, 2), date),
        (b"\xff\x00", bytes),
        ("text", str),
        (None, None),
    ],
)
def test_inputs_are_typed_again(tmp_path: Path, value: object, type_: Any) -> None:
    """With the type of the inputs they are values of it, and have the id they had; without it, plain data."""
    example = Example(value, expected=value)
    save_examples([example], tmp_path / "e.jsonl")
    (again,) = load_examples(tmp_path / "e.jsonl", Stage(type_, Agent()))
    assert (again.input, again.id) == (value, example.id)
    assert Example(again.input).id == example.id
    (plain,) = load_examples(tmp_path / "e.jsonl")
    assert plain.input == example.data()["input"]


def test_a_split_is_kept(tmp_path: Path) -> None:
    """Rows of one part can be loaded by its name, also after they were saved again."""
    file = tmp_path / "e.jsonl"
    file.write_text(
        '\ufeff{"input": 1, "split": "train", "id": 0}\n\n  \n{"input": 2, "split": "test"}\r\n{"input": 3}'
    )
    for _ in range(2):
        assert [one.input for one in load_examples(file)] == [1, 2, 3]
        (train,) = load_examples(file, split="train")
        assert (train.input, train.id, train.metadata) == (1, "0", {"split": "train"})
        save_examples(load_examples(file), file)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1]", "a row is a mapping, not list"),
        ("5", "a row is a mapping, not int"),
        ("{}", "text: Field required"),
        ('{"input": {"txt": 1}}', "text: Field required"),
        ('{"input": {"text": "t"}, "metadata": [1]}', "metadata is no mapping"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    """The file, the number of the line and what is wrong with it."""
    file = tmp_path / "e.jsonl"
    file.write_text('{"input": {"text": "t"}}\n\n' + line, encoding="utf-8")
    with pytest.raises(InputError, match=rf"e.jsonl, line 3: .*{reason}"):
        load_examples(file, Stage(Ticket, Agent()))


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """It is not there, or is no text, or cannot be written, or what should be in it cannot."""
    with pytest.raises(InputError, match=r"none\.jsonl"):
        load_examples(tmp_path / "none.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.jsonl"):
        load_examples(tmp_path / "binary.jsonl")
    with pytest.raises(InputError, match=r"no/e\.jsonl"):
        save_examples([Example(1)], tmp_path / "no" / "e.jsonl")
    with pytest.raises(InputError, match=r"example 2 .* cannot be written"):
        save_examples([Example(1), Example(object(), id="x")], tmp_path / "e.jsonl")
    assert not (tmp_path / "e.jsonl").exists()


STABLE = """
from stagegraph import Example
from pydantic import BaseModel
from pydantic_ai import Agent
class M(BaseModel):
    words: set[str]
    deep: dict[str, frozenset[str]] = {"k": frozenset({"x", "y", "z"})}
words = {"a", "b", "c", "d", "e"}
print(Example(M(words=words)).id, Example([words, M(words=words)]).id, Example({"b": 1, "a": words}).id)
"""


def test_ids_are_the_same_in_every_process() -> None:
    """Sets come in another order in each, and the order in which a mapping was made says nothing."""

    def ids(seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", STABLE], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert ids("1") == ids("2") == ids("3")
    assert Example({"a": 1, "b": 2}).id == Example({"b": 2, "a": 1}).id != Example({"a": 2, "b": 1}).id
    assert Example(Ticket(text="t")).id == Example(Ticket(text="t").model_dump(mode="json")).id
    assert Example(1, id="mine").id == "mine"


SHARES = st.dictionaries(st.sampled_from(["train", "val", "test", "rest"]), st.floats(0.01, 10), min_size=1)
ROWS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=60)


@given(kinds=ROWS, shares=SHARES, seed=st.integers(0, 3), by=st.sampled_from([None, "kind", "label"]))
def test_every_kind_is_divided_fairly(kinds: list[str], shares: dict[str, float], seed: int, by: str | None) -> None:
    """Parts are disjoint and complete, the same each time, and hold of each kind its share to within a row."""
    examples = [
        Example(number, {"kind": kind}, metadata={"label": kind}, id=f"i{number}") for number, kind in enumerate(kinds)
    ]
    parts = split_examples(examples, shares, by=by, seed=seed)
    assert list(parts) == list(shares)
    dealt = [one.id for part in parts.values() for one in part]
    assert sorted(dealt) == sorted(one.id for one in examples)
    shuffled = random.Random(1).sample(examples, len(examples))
    assert split_examples(shuffled, shares, by=by, seed=seed) == parts
    total = sum(map(Fraction, shares.values()))
    for kind, count in Counter(kinds).items():
        for name, share in shares.items():
            got = sum(one.expected["kind"] == kind for one in parts[name])
            assert abs(got - count * Fraction(share) / total) < 1
    for name, share in shares.items():
        assert abs(len(parts[name]) - len(kinds) * Fraction(share) / total) < len(shares) + 1


def test_small_kinds_are_spread_over_the_parts() -> None:
    """When every row is a kind of its own, the parts still have their sizes."""
    examples = [Example(number, number) for number in range(100)]
    parts = split_examples(examples, {"train": 3, "test": 1})
    assert {name: len(part) for name, part in parts.items()} == {"train": 75, "test": 25}
    assert split_examples(examples, {"train": 3, "test": 1}, seed=1) != parts


@pytest.mark.parametrize("shares", [{}, {"a": 0}, {"a": -1, "b": 2}, {"a": float("nan")}, {"a": float("inf")}])
def test_shares_are_positive_numbers(shares: dict[str, float]) -> None:
    """No rows are lost in a part that cannot be made."""
    with pytest.raises(DeclarationError, match="a share above 0"):
        split_examples([Example(1)], shares)


@pytest.mark.parametrize("name", ["e.json", "e.jsonl", "e.yaml", "e.csv"])
def test_what_is_no_file_of_examples_does_not_keep_the_reader(tmp_path: Path, name: str) -> None:
    """A pipe that nobody writes to and a device without an end are refused at once."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"cannot be read: it is not a regular file"):
        load_examples(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"cannot be read: it is not a regular file"):
        load_examples(tmp_path / name)


@pytest.mark.parametrize("form", ["list", "cases"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_long_json_file_is_read_in_one_pass(tmp_path: Path, form: str, indent: int | None) -> None:
    """Every row and the line of the one that is wrong; a reader that counts lines from the start takes minutes."""
    rows: list[object] = [{"input": f"text {number}", "expected": "x"} for number in range(20_000)]
    path = tmp_path / "e.json"
    path.write_text(json.dumps(rows if form == "list" else {"cases": rows}, indent=indent))
    assert [example.input for example in load_examples(path)[::10_000]] == ["text 0", "text 10000"]
    path.write_text(json.dumps([*rows, 3] if form == "list" else {"cases": [*rows, 3]}, indent=indent))
    line = 1 if indent is None else 20_000 * 4 + 2 + (form == "cases")
    with pytest.raises(InputError, match=rf"e\.json, line {line}: this is no example"):
        load_examples(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("e.jsonl", '{"input": "a"}\n{"input": "b"}\n'),
        ("e.json", '[{"input": "a"},\n{"input": "b"}]'),
        ("e.yaml", "- input: a\n- input: b\n"),
        ("e.csv", "input\na\nb\n"),
    ],
)
def test_line_ends_and_marks_of_other_systems_are_read(tmp_path: Path, name: str, text: str, end: str) -> None:
    """With or without the mark that some editors write first."""
    for head in ("", "\ufeff"):
        (tmp_path / name).write_bytes((head + text.replace("\n", end)).encode())
        assert [example.input for example in load_examples(tmp_path / name)] == ["a", "b"]
