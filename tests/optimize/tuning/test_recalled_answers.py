"""What a tuning recalls is what was recorded, also where the declared type leaves open which member of a union it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from rules import searched
from words import asked, before

from stagegraph import Example, Graph, Run, Score, Stage
from stagegraph.optimize import Candidates

pytestmark = pytest.mark.anyio


class Approve(BaseModel):
    reason: str


class Reject(BaseModel):
    reason: str


class Pay(Graph[str, str]):
    """What is said depends on which member of a union was answered, and their fields are equal."""

    decide = Stage(str, Agent(output_type=[Approve, Reject], instructions="decide: begin"))
    tell = Stage(str, Agent(instructions="tell: begin"))

    async def flow(self, text: str) -> str:
        decided = await self.decide(text)
        return await self.tell(f"{text} {type(decided).__name__}")


def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    if info.output_tools:
        return ModelResponse([ToolCallPart(info.output_tools[1].name, {"reason": "no"})])
    return ModelResponse([TextPart(f"{asked(messages)} {'ok' if 'RULE' in (info.instructions or '') else 'no'}")])


def metric(_example: Example[str], run: Run[str, str]) -> Score:
    good = "Reject" in run.output and run.output.endswith("ok")
    return Score(float(good), [] if good else [run.calls()[-1].note("RULE")])


def fails(*_: object) -> None:
    raise AssertionError


async def test_a_replayed_rejection_is_no_approval(tmp_path: Path) -> None:
    """So the better text wins; a second search in the same folder finds all of it and asks no model."""
    model = FunctionModel(answer, model_name="payer")
    for one in (model, before(model, fails)):
        pool = Candidates({"tell": ["tell: RULE"]})
        found = await searched(metric, Pay(), model=one, proposer=pool, run_dir=tmp_path)
        assert found.candidates[found.best].texts["tell"] == "tell: RULE"
        assert found.candidates[found.best].mean == 1
