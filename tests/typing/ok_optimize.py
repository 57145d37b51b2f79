"""What a type checker must understand about optimization without help."""

from typing import Any, assert_type

import dspy
from pydantic import BaseModel
from pydantic_ai import Agent

from stagegraph import Example, Graph, Prompts, Run, Score, Stage, load_examples
from stagegraph.optimize import (
    Budget,
    GraphModule,
    Judge,
    dspy_metric,
    evaluate,
    examples,
    from_dspy,
    graded,
    judge,
    lm,
    stratified_split,
    to_dspy,
    tune,
    wants_failed_runs,
)


class Spec(BaseModel):
    text: str


class Shout(Graph[Spec, str]):
    shout = Stage(Spec, Agent(instructions="Shout."))

    async def flow(self, spec: Spec) -> str:
        return await self.shout(spec)


def grade(example: Example[Spec], run: Run[Spec, str]) -> Score:
    return Score(float(run.output == example.expected))


@wants_failed_runs
async def slow(example: Example[Spec], run: Run[Spec, str]) -> float:
    return 0.5


def quick(example: Example[Spec], run: Run[Spec, str]) -> bool:
    return run.output == example.expected


async def uses(run: Run[Spec, str]) -> None:
    rows = examples("rows.jsonl", of=Spec)
    assert_type(rows, list[Example[Spec]])
    assert_type(load_examples("rows.csv", Shout()), list[Example[Spec]])
    assert_type(load_examples("rows.csv"), list[Example[Any]])
    assert_type(examples("rows.csv", of=Shout()), list[Example[Spec]])
    train, val = stratified_split(rows, by="kind", val=0.3, seed=1)
    assert_type(train, list[Example[Spec]])
    stratified_split(val, by=lambda example: len(example.input.text))
    assert_type(to_dspy(rows, Shout()), list[dspy.Example])
    assert_type(to_dspy(rows[0], Shout()), dspy.Example)
    assert_type(from_dspy(to_dspy(rows, Shout()), Shout()), list[Example[Spec]])
    assert_type(from_dspy(dspy.Example(text="a"), Shout()), Example[Spec])
    assert_type(lm("openai:gpt-5-mini", temperature=0.5), dspy.LM)
    module = GraphModule(Shout(), model="openai:gpt-5-mini", prompts=Prompts.of(Shout()))
    assert_type(module.prompts(), Prompts)
    assert_type(await graded(slow, rows[0], run), Score)
    tuned = await tune(
        Shout(), grade, train=train, val=val, budget=Budget(usd=1), components=["instructions", "fields"]
    )
    assert_type(tuned.prompts["shout"].fields["title"], str)
    assert_type(tuned.found.changed, tuple[str, ...])
    dspy_metric(grade)
    dspy_metric(quick)
    dspy_metric(slow)
    strict = judge("openai:gpt-5", {"loud": "In capitals."}, weights={"loud": 2})
    assert_type(strict, Judge)
    assert_type(await strict(rows[0], run), Score)
    await evaluate(Shout(), strict, rows, model="openai:gpt-5-mini")
    dspy_metric(strict)
