"""Examples as data sets of pydantic_evals, and back."""

import sys
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from stagegraph import Example, Graph, InputError, Stage, load_examples
from stagegraph.optimize import from_pydantic_evals, to_pydantic_evals

needs_it = pytest.mark.skipif(find_spec("pydantic_evals") is None, reason="pydantic-evals is not installed")


class Order(BaseModel):
    day: date
    items: list[str] = []


class Orders(Graph[Order, str]):
    sum_up = Stage(Order, Agent(instructions="Sum up."))

    async def flow(self, order: Order) -> str:
        return await self.sum_up(order)


ROWS = [
    Example(Order(day=date(2026, 1, 2), items=["x"]), {"total": 3}, "a", {"from": "web"}),
    Example(Order(day=date(2026, 1, 3)), None, "b"),
]


@needs_it
def test_there_and_back(tmp_path: Path) -> None:
    """Through the object, and through its file, which is read with and without pydantic_evals."""
    dataset = to_pydantic_evals(ROWS, Orders())
    assert dataset.name == "Orders"
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert from_pydantic_evals(dataset, Orders()) == ROWS
    for suffix in ("yaml", "json"):
        path = tmp_path / f"orders.{suffix}"
        dataset.to_file(path)
        assert load_examples(path, Orders()) == ROWS
        assert from_pydantic_evals(type(dataset).from_file(path), of=Order) == ROWS


@needs_it
@pytest.mark.anyio
async def test_its_evaluators_can_judge_a_graph() -> None:
    """A graph is a function of its input, which is all that pydantic_evals wants."""
    from pydantic_evals.evaluators import EqualsExpected

    dataset: Any = to_pydantic_evals([Example(ROWS[0].input, "done", "a")], Orders(), name="orders")
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
        to_pydantic_evals(ROWS, Orders())
