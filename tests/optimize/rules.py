"""A graph whose stages follow hidden rules, and models that learn them from the notes: small, fast, and exact."""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage
from words import asked

from stagegraph import Example, Graph, Run, Score, Stage, fan_out
from stagegraph.optimize import Budget, Candidates, Tuning, tune
from stagegraph.optimize.tuning.options import Options
from stagegraph.optimize.tuning.result import SearchResult
from stagegraph.optimize.tuning.search import search


class Chain(Graph[str, str]):
    """One stage, the same stage several times, and one more."""

    a = Stage(str, Agent(instructions="a: begin"))
    b = Stage(str, Agent(instructions="b: go on"))
    c = Stage(str, Agent(instructions="c: end"))

    async def flow(self, text: str) -> str:
        start = await self.a(text)
        parts = await fan_out(self.b, [f"{start}{number}" for number in range(2)])
        return await self.c("|".join(parts))


def rows(name: str, count: int) -> list[Example[str]]:
    return [Example(f"{name}{number}", id=f"{name}-{number}") for number in range(count)]


def student(log: Path | None = None, *, cost: str | None = None) -> tuple[FunctionModel, Counter[str]]:
    """A stage answers right when its instructions hold its rule; the counter has the requests of each stage."""
    requests: Counter[str] = Counter()

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        text = info.instructions or ""
        stage = text.partition(":")[0]
        requests[stage] += 1
        if log is not None:
            with log.open("a") as file:
                file.write(f"{stage}\n")
        good = "ok" if f"RULE-{stage}" in text else "no"
        usage = RequestUsage(input_tokens=10, output_tokens=5, cost=None if cost is None else Decimal(cost))
        return ModelResponse([TextPart(f"{asked(messages)} {stage}{good}")], usage=usage)

    return FunctionModel(answer, model_name="student"), requests


def learner() -> FunctionModel:
    """Writes the rules that it reads in the feedback into the instructions."""

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        question = asked(messages)
        found = re.search(r"```\n(.*?)\n```", question, re.DOTALL)
        assert found is not None
        rules = sorted(set(re.findall(r"RULE-\w", question.partition("# What happened")[2])))
        return ModelResponse([TextPart(f"Here you are:\n```\n{found[1]} {' '.join(rules)}\n```")])

    return FunctionModel(answer, model_name="learner")


def _faults(run: Run[str, str]) -> Score:
    wrong = [call for call in run.calls() if str(call.output).endswith("no")]
    return Score(len({call.path for call in wrong}), [call.note(f"missing RULE-{call.path}") for call in wrong])


def separate(_example: Example[str], run: Run[str, str]) -> Score:
    """Every stage that is right earns a third."""
    found = _faults(run)
    return Score(1 - found.value / 3, found.notes)


def coupled(_example: Example[str], run: Run[str, str]) -> Score:
    """All or nothing: two of three right stages are worth as much as none."""
    found = _faults(run)
    return Score(float(not found.value), found.notes)


def verdict(_example: Example[str], run: Run[str, str]) -> float:
    """The share of right stages, and not a word about whose fault it is."""
    return 1 - _faults(run).value / 3


TRAIN, VAL = rows("t", 4), rows("v", 3)
POOL = Candidates({path: [f"{path}: RULE-{path}"] for path in "abc"})
"""The right text of each stage."""


async def tuned(metric: Any = separate, graph: Graph[Any, Any] | None = None, **options: Any) -> Tuning:
    """A tuning with the pool."""
    known = {"budget": Budget(runs=100), "model": student()[0], "proposer": POOL, "retry_delays": (0, 0)}
    return await tune(graph or Chain(), metric, **{"train": TRAIN, "val": VAL} | known | options)


async def searched(metric: Any = separate, graph: Graph[Any, Any] | None = None, **options: Any) -> SearchResult:
    """A search, which is a tuning without the verdict at its end, with the notes."""
    train, val = options.pop("train", TRAIN), options.pop("val", VAL)
    known = {"budget": Budget(runs=120), "model": student()[0], "proposer": "notes", "retry_delays": (0, 0)}
    return await search(graph or Chain(), metric, train, val, Options(**known | options))
