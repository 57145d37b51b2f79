"""A stage that answers with one of several types of equal fields is tuned as any other."""

from __future__ import annotations

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from scripted import asked
from stagegraph import Example, Graph, Run, Score, Stage, step
from stagegraph.optimize import Budget, tune


class Approve(BaseModel):
    reason: str = ""


class Reject(BaseModel):
    reason: str = ""


@step
async def act(decision: Approve | Reject) -> str:
    return "paid" if isinstance(decision, Approve) else "kept"


class Pay(Graph[str, str]):
    decide = Stage(str, Agent(output_type=[Approve, Reject], instructions="Decide."))
    act = act

    async def flow(self, text: str) -> str:
        return await self.act(await self.decide(text))


def decide(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    careful = "careful" in (info.instructions or "")
    answer = "Reject" if careful and "bad" in asked(messages) else "Approve"
    tool = next(tool for tool in info.output_tools if tool.name.endswith(answer))
    return ModelResponse([ToolCallPart(tool.name, {"reason": ""})])


def reflect(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    return ModelResponse([TextPart("```\nBe careful.\n```")])


def grade(example: Example[str], run: Run[str, str]) -> Score:
    right = run.output == example.expected
    return Score(float(right), notes=[] if right else [run.call("decide").note("wrong")])


async def test_the_candidate_that_tells_the_types_apart_wins() -> None:
    """Its replayed answers are what they were, so that the fresh verdict agrees with the search."""
    rows = [Example(f"{'bad' if n % 2 else 'good'} {n}", "kept" if n % 2 else "paid") for n in range(24)]
    tuned = await tune(
        Pay(),
        grade,
        train=rows[:4],
        val=rows[4:14],
        test=rows[14:],
        budget=Budget(runs=60),
        model=FunctionModel(decide),
        reflection_model=FunctionModel(reflect),
    )
    assert tuned.prompts["decide"].instructions == "Be careful."
    assert tuned.report.mean == 1.0
