"""What a tuning that goes on from its `run_dir` has to find unchanged."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel

from stagegraph import Example, Graph, Run, Runner, Stage, TuningError, step
from stagegraph.optimize import Budget, Tuning, tune

pytestmark = pytest.mark.anyio

LIMIT = 1.0


def says(name: str = "good") -> FunctionModel:
    """Says *good* to an agent that was told the magic word."""
    return FunctionModel(
        lambda _, info: ModelResponse([TextPart("good" if "magic" in (info.instructions or "") else "bad")]),
        model_name=name,
    )


class First(Graph[str, str]):
    say = Stage(str, Agent(instructions="Seed."))

    async def flow(self, text: str) -> str:
        return await self.say(text)


def rows(*names: str, want: str = "good", **more: Any) -> list[Example[str]]:
    return [Example(f"in {name}", want, name, **more) for name in names]


def exact(example: Example[str], run: Run[str, str]) -> float:
    return float(run.output == example.expected)


async def tuned(run_dir: Path, **options: Any) -> Tuning:
    known: dict[str, Any] = {
        "graph": First(),
        "metric": exact,
        "train": rows("a", "b"),
        "val": rows("c", "d"),
        "budget": Budget(runs=40),
        "model": says(),
        "proposer": lambda proposal: f"{proposal.text} magic",
    }
    given = known | options
    return await tune(given.pop("graph"), given.pop("metric"), run_dir=run_dir, **given)


@pytest.mark.parametrize(
    "corrected",
    [
        rows(*"ghijkl", want="other"),
        [Example("another", "other", name) for name in "ghijkl"],
        rows(*"ghijkl", metadata={"weight": 0}),
    ],
    ids=["expected", "input", "metadata"],
)
async def test_a_test_set_that_was_corrected_is_judged_anew(tmp_path: Path, corrected: list[Example[str]]) -> None:
    """Also where its examples keep their ids: a verdict is about what they say."""

    def metric(example: Example[str], run: Run[str, str]) -> float:
        return exact(example, run) * float(example.metadata.get("weight", 1))

    first = await tuned(tmp_path, test=rows(*"ghijkl"), metric=metric)
    assert first.report.mean == 1
    again = await tuned(tmp_path, test=corrected, metric=metric)
    assert again.report.mean == 0
    assert again.spent.runs == first.spent.runs
    assert [row.input for row in again.report.rows] == [one.input for one in corrected]


class Flow(First):
    """The same with another flow."""

    async def flow(self, text: str) -> str:
        return f"edited {await self.say(text)}"


def with_step(suffix: str, *, other: bool = False, version: int = 1) -> Graph[str, str]:
    """A graph whose step has another body, or another helper."""

    def shorter(text: str) -> str:
        return text.strip() + suffix

    if other:

        @step(version=version)
        async def clean(text: str) -> str:
            return shorter(text).lower()
    else:

        @step(version=version)
        async def clean(text: str) -> str:
            return shorter(text)

    class Cleaned(Graph[str, str]):
        say = Stage(str, Agent(instructions="Seed."))
        tidy = clean

        async def flow(self, text: str) -> str:
            return await self.tidy(await self.say(text))

    return Cleaned()


def staged(**options: Any) -> Graph[str, str]:
    """A graph of one stage, told differently."""
    tool, stage = options.pop("tool", None), options.pop("stage", {})
    agent = Agent(instructions="Seed.", tools=[tool] if tool else [], **options)

    class Staged(Graph[str, str]):
        say = Stage(str, agent, **stage)

        async def flow(self, text: str) -> str:
            return await self.say(text)

    return Staged()


def search(word: str) -> list[str]:
    """Search."""
    return [word]


other_search = functools.wraps(search)(lambda word: [word, word])


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ({}, {"graph": type("First", (Flow,), {})()}, "the flow of First"),
        ({"graph": with_step("")}, {"graph": with_step("", other=True)}, "the step `tidy`"),
        ({"graph": with_step("")}, {"graph": with_step("!")}, "the step `tidy`"),
        ({"graph": with_step("")}, {"graph": with_step("", version=2)}, "the step `tidy`"),
        ({"model": says()}, {"model": says("another")}, "the model of `say`"),
        ({"model": None, "runner": Runner(says())}, {"model": None, "runner": Runner(says("2"))}, "the model of `say`"),
        ({}, {"runner": Runner(models={"say": says("by path")})}, "the model of `say`"),
        ({"graph": staged(model=says())}, {"graph": staged(model=says("2"))}, "the model of `say`"),
        ({"graph": staged()}, {"graph": staged(stage={"model": says("2")})}, "the model of `say`"),
        ({"graph": staged()}, {"graph": staged(model_settings={"temperature": 1})}, "the model settings of `say`"),
        ({"graph": staged()}, {"graph": staged(tool=search)}, "the tools of `say`"),
        ({"graph": staged(tool=search)}, {"graph": staged(tool=other_search)}, "the agent of `say`"),
        ({"graph": staged()}, {"graph": staged(stage={"render": str.upper})}, "the agent of `say`"),
        ({"graph": staged()}, {"graph": staged(stage={"version": 2})}, "the version of `say`"),
    ],
)
async def test_another_program_is_refused(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], name: str
) -> None:
    """What was paid for says nothing about it; the error names what changed, and the folder stays as it is."""
    first = await tuned(tmp_path, **before)
    with pytest.raises(TuningError, match=f"cannot go on: since then.*{name}.* changed"):
        await tuned(tmp_path, **after)
    assert (await tuned(tmp_path, **before)).prompts == first.prompts


def limited(limit: float, *, words: tuple[str, ...] = ()) -> Callable[..., float]:
    def metric(example: Example[str], run: Run[str, str]) -> float:
        return limit if run.output == example.expected or run.output in words else 0.0

    return metric


def weighted(weight: float, example: Example[str], run: Run[str, str]) -> float:
    return weight * exact(example, run)


def defaulting(limit: float) -> Callable[..., float]:
    def metric(example: Example[str], run: Run[str, str], limit: float = limit) -> float:
        return limit * exact(example, run)

    return metric


class Weighted:
    """A metric with a number in it."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, example: Example[str], run: Run[str, str]) -> float:
        return self.weight * exact(example, run)

    def halved(self, example: Example[str], run: Run[str, str]) -> float:
        return self(example, run) / 2


class Doubled(Weighted):
    """The same with other code."""

    def __call__(self, example: Example[str], run: Run[str, str]) -> float:
        return 2 * super().__call__(example, run)


def capped(example: Example[str], run: Run[str, str]) -> float:
    return min(LIMIT, exact(example, run))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (limited(1.0), limited(0.1)),
        (limited(1.0), limited(1.0, words=("bad",))),
        (defaulting(1.0), defaulting(0.5)),
        (functools.partial(weighted, 1.0), functools.partial(weighted, 0.5)),
        (Weighted(1.0), Weighted(0.5)),
        (Weighted(1.0), type("Weighted", (Doubled,), {"__module__": __name__})(1.0)),
        (Weighted(1.0).halved, Weighted(0.5).halved),
    ],
)
async def test_another_metric_is_refused(tmp_path: Path, before: Any, after: Any) -> None:
    """Also one that differs only in what it holds on to."""
    await tuned(tmp_path, metric=before)
    with pytest.raises(TuningError, match="cannot go on: since then, the metric changed"):
        await tuned(tmp_path, metric=after)
    await tuned(tmp_path, metric=before)


async def test_a_constant_and_a_helper_belong_to_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a metric names something of its module, that is part of what it says."""
    await tuned(tmp_path, metric=capped)
    monkeypatch.setitem(globals(), "LIMIT", 0.5)
    with pytest.raises(TuningError, match="the metric changed"):
        await tuned(tmp_path, metric=capped)
    monkeypatch.undo()
    monkeypatch.setitem(globals(), "exact", lambda _example, _run: 0.25)
    with pytest.raises(TuningError, match="the metric changed"):
        await tuned(tmp_path, metric=capped)


async def test_the_same_metric_made_again_goes_on(tmp_path: Path) -> None:
    """Equal code with equal values is equal, however often it is made, and whatever it has counted."""
    asked = 0

    def counting() -> Callable[..., float]:
        def metric(example: Example[str], run: Run[str, str]) -> float:
            nonlocal asked
            asked += 1
            return exact(example, run)

        return metric

    first = await tuned(tmp_path, metric=counting())
    before = asked
    assert (await tuned(tmp_path, metric=counting())).spent.runs == first.spent.runs
    assert asked == before


async def test_a_metric_that_cannot_be_looked_into_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only where it matters: in a folder from which the tuning may go on."""
    hidden = object()

    def metric(example: Example[str], run: Run[str, str]) -> float:
        return exact(example, run) if hidden else 0.0

    with caplog.at_level(logging.WARNING, "stagegraph.optimize"):
        await tune(
            First(), metric, train=rows("a"), val=rows("b"), budget=Budget(runs=9), model=says(), proposer="notes"
        )
        assert not caplog.records
        await tuned(tmp_path, metric=metric)
    (record,) = caplog.records
    assert "the metric metric holds a object, which cannot be looked into" in record.message
