"""Examples from files and from data sets of pydantic_evals, and their split."""

import sys
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from words import ROWS, Doc, Upper, Words

from stagegraph import (
    DeclarationError,
    Example,
    Graph,
    InputError,
    Stage,
    TuningError,
    load_examples,
    split_examples,
)
from stagegraph.optimize import examples, from_pydantic_evals, stratified_split, to_pydantic_evals


class Order(BaseModel):
    day: date
    items: list[str] = []
    note: str = Field(default="", alias="remark")


class Orders(Graph[Order, str]):
    sum_up = Stage(Order, Agent(instructions="Sum up."))

    async def flow(self, order: Order) -> str:
        return await self.sum_up(order)


FILES = {
    "rows.jsonl": '{"id": "a", "input": {"day": "2026-01-02", "items": ["x"]}, "expected": {"total": 3}}\n\n'
    '{"day": "2026-01-03", "remark": "r", "total": 4, "split": "test"}\n',
    "rows.json": '[\n  {"id": "a", "input": {"day": "2026-01-02", "items": ["x"]}, "expected": {"total": 3}},\n'
    '  {"day": "2026-01-03", "remark": "r", "total": 4, "split": "test"}\n]\n',
    "rows.yaml": "- id: a\n  input:\n    day: 2026-01-02\n    items: [x]\n  expected: {total: 3}\n"
    "- day: 2026-01-03\n  remark: r\n  total: 4\n  split: test\n",
}


CASES = {
    "cases.yaml": "# yaml-language-server: $schema=cases_schema.json\nname: orders\ncases:\n- name: a\n  inputs:\n"
    "    day: '2026-01-02'\n  metadata: {from: web}\n  expected_output: {total: 3}\n  evaluators: []\n"
    "- name: null\n  inputs: {day: '2026-01-03'}\n  metadata: note\n  expected_output: null\nevaluators: [IsInstance: str]\n",
    "cases.json": '{"$schema": "x.json", "name": "orders", "cases": [\n'
    '{"name": "a", "inputs": {"day": "2026-01-02"}, "metadata": {"from": "web"}, "expected_output": {"total": 3}},\n'
    '{"name": null, "inputs": {"day": "2026-01-03"}, "metadata": "note", "expected_output": null}],\n"evaluators": []}',
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_of_pydantic_evals_is_read(name: str, tmp_path: Path) -> None:
    """Its cases are examples; a case that does not fit is named with its line."""
    path = tmp_path / name
    path.write_text(CASES[name])
    first, second = examples(path, of=Orders())
    assert first == Example(Order(day=date(2026, 1, 2)), {"total": 3}, "a", {"from": "web"})
    assert second == Example(Order(day=date(2026, 1, 3)), None, metadata={"metadata": "note"})
    path.write_text(CASES[name].replace("2026-01-03", "never"))
    with pytest.raises(InputError, match=rf"{name}, line {10 if name.endswith('yaml') else 3}: .*day"):
        examples(path, of=Orders())


class Query(BaseModel):
    input: str


@pytest.mark.parametrize("row", ['{"input": "a"}', '{"input": {"input": "a"}}'])
def test_a_model_may_have_a_field_called_input(row: str, tmp_path: Path) -> None:
    """Whole or as a field: what fits is meant."""
    path = tmp_path / "rows.jsonl"
    path.write_text(row)
    assert examples(path, of=Query)[0].input == Query(input="a")


@pytest.mark.parametrize("name", FILES)
def test_rows_of_every_format_are_typed(name: str, tmp_path: Path) -> None:
    """With an `input`, or with the fields of the input beside each other; `load_examples` can choose a split."""
    path = tmp_path / name
    path.write_text(FILES[name])
    first, second = examples(path, of=Orders())
    assert load_examples(path, Orders()) == [first, second]
    assert load_examples(path, Orders(), split="test") == [second]
    assert first == Example(Order(day=date(2026, 1, 2), items=["x"]), {"total": 3}, "a")
    assert second.input == Order(day=date(2026, 1, 3), remark="r")
    assert second.expected == {"total": 4}
    assert second.metadata == {"split": "test"}
    assert second.id == examples(path, of=Order)[1].id


def test_a_table(tmp_path: Path) -> None:
    """Columns are fields; lists are written as JSON; an empty cell is nothing."""
    path = tmp_path / "rows.csv"
    path.write_text(
        'id,day,items,total,metadata\na,2026-01-02,"[""x"", ""y""]",3,"{""from"": ""web""}"\nb,2026-01-03,,,\n'
    )
    first, second = examples(path, of=Orders())
    assert first.input == Order(day=date(2026, 1, 2), items=["x", "y"])
    assert (first.expected, first.metadata) == ({"total": "3"}, {"from": "web"})
    assert (second.input, second.expected) == (Order(day=date(2026, 1, 3)), None)
    path.write_text("input,expected\nhello,HELLO\n[not json],X\n")
    assert [(one.input, one.expected) for one in examples(path, of=Upper())] == [
        ("hello", "HELLO"),
        ("[not json]", "X"),
    ]
    assert examples(path)[0].input == "hello"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"input": {"text": "x"}}\n{"input": {"text": 1}}\n', "a.jsonl, line 2: .*text"),
        ("a.jsonl", '{"input": {"text": "x"}}\n{"other": 1}\n', "a.jsonl, line 2: .*text"),
        ("a.jsonl", '{"text": "b"}\n{"text": "\xff"}\n', r"a\.jsonl, line 2: .* cannot be read: .*decode byte 0xff"),
        ("a.jsonl", '{"id": 1, "text": "x"}\n{"id": 1, "text": "y"}\n', "a.jsonl, line 2: the id '1' is that of line 1"),
        ("a.jsonl", "\n", "no examples"),
        ("a.json", '[\n{"text": "x"},\n{"text": 1}\n]', "a.json, line 3: .*text"),
        ("a.json", '[\n{"text": "x"}\n{"text": "y"}\n]', "a.json, line 3: .*JSON"),
        ("a.json", '{"text": "x"}', "a.json, line 1: .*list"),
        ("a.json", '[\n{"text": \n', "a.json, line .*JSON"),
        ("a.json", "", "a.json, line 1: .*JSON"),
        ("a.json", '{"a": {"cases": []}, "cases": 3}', "a.json, line 1: .*list"),
        ("a.json", '{"cases":\n [{"name": "x",\n "inputs": [1]}]}', "a.json, line 2: .*mapping"),
        ("a.jsonl", '{"text": "x"}\n{"text": "x"}\n', "line 2: the id .* equal inputs"),
        ("a.yaml", "- text: x\n- text: [1]\n", "a.yaml, line 2: .*text"),
        ("a.yaml", "text: x\n", "a.yaml: .*neither a list"),
        ("a.yaml", "- text: x\n- text: 'y\n", "a.yaml: .*line"),
        ("a.csv", "text,total\nx,1\ny\n", "a.csv, line 3: 1 cells under 2"),
        ("a.csv", "text,text\nx,1\n", "a.csv, line 1: .*name"),
        ("a.csv", "total\n1\n", "a.csv, line 2: .*text"),
        ("a.txt", "x", "read from"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    """The file, the line, and what is wrong there."""
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        examples(path, of=Words())


def test_a_split_has_every_kind_in_its_share() -> None:
    """The same each time, disjoint, complete, and another with another seed."""
    rows = [Example(number, {"mood": "good" if number % 4 else "bad"}) for number in range(40)]
    train, val = stratified_split(rows, by="mood", val=0.25, seed=1)
    assert (len(train), len(val)) == (30, 10)
    assert sum(row.expected["mood"] == "bad" for row in val) in {2, 3}
    assert {row.input for row in train} | {row.input for row in val} == set(range(40))
    assert stratified_split(rows, by="mood", val=0.25, seed=1) == (train, val)
    assert stratified_split(rows, by="mood", val=0.25, seed=2)[1] != val
    odd, held = stratified_split(rows, by=lambda row: row.input % 2, val=0.5)
    assert sum(row.input % 2 for row in held) == 10
    assert len(odd) == 20
    assert [len(part) for part in stratified_split(ROWS[:2], val=0.01)] == [1, 1]  # however small the share


@pytest.mark.parametrize(
    ("rows", "val", "message"),
    [
        ([], 0.3, "0 examples are too few"),
        (ROWS[:1], 0.3, "1 examples are too few"),
        ([*ROWS, ROWS[0]], 0.3, "two examples have the id"),
        (ROWS, 1.0, "each part needs a share above 0"),
    ],
)
def test_what_cannot_be_split(rows: list[Example[Doc]], val: float, message: str) -> None:
    """Is said before anything is paid for."""
    with pytest.raises(TuningError, match=message):
        stratified_split(rows, val=val)


@pytest.mark.parametrize("by", ["totl", "expected"])
def test_a_kind_that_no_example_has_is_a_mistake(by: str) -> None:
    """A typing error would leave the parts to chance; the error says what there is."""
    rows = [Example(Doc(text=str(n)), {"total": n % 2}, metadata={"split": "x"}) for n in range(8)]
    with pytest.raises(TuningError, match=f"no example has '{by}', .*there are: split, total"):
        stratified_split(rows, by=by)
    with pytest.raises(DeclarationError, match="there are: split, total"):
        split_examples(rows, {"a": 1, "b": 1}, by=by)


needs_it = pytest.mark.skipif(find_spec("pydantic_evals") is None, reason="pydantic-evals is not installed")


ORDERS = [
    Example(Order(day=date(2026, 1, 2), items=["x"]), {"total": 3}, "a", {"from": "web"}),
    Example(Order(day=date(2026, 1, 3)), None, "b"),
]


@needs_it
def test_there_and_back(tmp_path: Path) -> None:
    """Through the object, and through its file, which is read with and without pydantic_evals."""
    dataset = to_pydantic_evals(ORDERS, Orders())
    assert dataset.name == "Orders"
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert from_pydantic_evals(dataset, Orders()) == ORDERS
    for suffix in ("yaml", "json"):
        path = tmp_path / f"orders.{suffix}"
        dataset.to_file(path)
        assert load_examples(path, Orders()) == ORDERS
        assert from_pydantic_evals(type(dataset).from_file(path), of=Order) == ORDERS


@needs_it
@pytest.mark.anyio
async def test_its_evaluators_can_judge_a_graph() -> None:
    """A graph is a function of its input, which is all that pydantic_evals wants."""
    from pydantic_evals.evaluators import EqualsExpected

    dataset: Any = to_pydantic_evals([Example(ORDERS[0].input, "done", "a")], Orders(), name="orders")
    dataset.add_evaluator(EqualsExpected())

    async def task(order: Order) -> str:
        return (await Orders().run(order, model=TestModel(custom_output_text="done"))).output

    report = await dataset.evaluate(task, progress=False)
    assert report.cases[0].assertions["EqualsExpected"].value is True


def test_cases_are_typed_by_the_graph() -> None:
    """Plain data becomes the input type, metadata of any kind is kept, and what does not fit is named."""
    case = SimpleNamespace(name=None, inputs={"day": "2026-01-02"}, metadata="from the web", expected_output=3)
    (example,) = from_pydantic_evals(SimpleNamespace(cases=[case]), Orders())
    assert example == Example(Order(day=date(2026, 1, 2)), 3, metadata={"metadata": "from the web"})
    assert from_pydantic_evals(SimpleNamespace(cases=[case]))[0].input == {"day": "2026-01-02"}
    case.inputs = {"day": "never"}
    with pytest.raises(InputError, match=r"case 1 \(without a name\) is no example: day"):
        from_pydantic_evals(SimpleNamespace(cases=[case]), Order)


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pin makes an ordinary installation impossible, so the error tells."""
    monkeypatch.setitem(sys.modules, "pydantic_evals", None)
    with pytest.raises(ImportError, match="pip install --no-deps pydantic-evals"):
        to_pydantic_evals(ORDERS, Orders())
