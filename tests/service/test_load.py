"""Many runs at once, and whatever a machine can think of to send."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Iterator
from typing import Literal

import anyio
import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, settings
from pydantic import BaseModel, Field
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from scripted import asked, others
from serving import serving
from stagegraph import Graph, Runner, Stage, fan_out, step
from stagegraph.journal import MemoryJournal
from stagegraph.service import router

ROUNDS = (20, 20, 200, 20, 20)


class Twelve(Graph[str, list[str]]):
    """Twelve calls: one, ten at once, one."""

    first = Stage(str, Agent(instructions="Answer."))
    middle = Stage(str, Agent(instructions="Answer."))
    last = Stage(str, Agent(instructions="Answer."))

    async def flow(self, text: str) -> list[str]:
        text = await self.first(text)
        parts = await fan_out(self.middle, [f"{text}.{number}" for number in range(10)])
        return [*parts, await self.last(text)]


async def delayed(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    """Answer with the prompt, in no particular order."""
    await anyio.sleep(random.random() * 0.01)
    return ModelResponse([TextPart(asked(messages))])


def test_two_hundred_runs_at_once():
    """All are answered with their own answers in order, round after round; no task is left, and memory is flat."""
    runner = Runner(FunctionModel(delayed), tracing=None)
    app = FastAPI(lifespan=runner.lifespan)
    app.include_router(router(Twelve(), runner, remember=20))
    left: list[int] = []
    used: list[int] = []

    @app.get("/left")
    async def tasks() -> None:
        """What is there between rounds, seen from inside the loop."""
        gc.collect()
        left.append(len([task for task in others() if "stagegraph" in task.get_name()]))
        used.append(len(gc.get_objects()))

    async def ask(client: httpx.AsyncClient, number: int, text: str) -> None:
        if number % 10:
            answer = await client.post("/runs", json=text)
            assert answer.json()["output"] == [*(f"{text}.{i}" for i in range(10)), text]
        else:
            stream = await client.post("/runs/stream", json=text)
            assert stream.text.count("event: call_finished") == 13
            assert f'"output":["{text}.0"' in stream.text

    async def main(url: str) -> None:
        limits = httpx.Limits(max_connections=max(ROUNDS))
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False) as client:
            for number, runs in enumerate(ROUNDS):
                async with asyncio.TaskGroup() as group:
                    for run in range(runs):
                        group.create_task(ask(client, run, f"round {number} run {run}"))
                await client.get("/left")

    with serving(app) as url:
        asyncio.run(main(url))
    assert left == [0] * len(ROUNDS)
    assert used[-1] < used[1] * 1.02


class Order(BaseModel):
    """Something with all kinds of fields."""

    kind: Literal["tea", "coffee"]
    cups: int = Field(ge=1, le=5)
    note: str | None = None
    extras: list[str] = []


class Bill(BaseModel):
    """What it costs."""

    cents: int
    order: Order


@step
async def price(order: Order) -> int:
    return order.cups * 250


class Cafe(Graph[Order, Bill]):
    """Take an order."""

    price = price

    async def flow(self, order: Order) -> Bill:
        return Bill(cents=await self.price(order), order=order)


def _cafe() -> FastAPI:
    runner = Runner(journal=MemoryJournal(), tracing=None)
    app = FastAPI(lifespan=runner.lifespan)
    app.include_router(router(Cafe(), runner, heartbeat=0.05), prefix="/cafe")
    return app


@pytest.fixture(scope="module", name="url")
def _url() -> Iterator[str]:
    with serving(_cafe()) as url:
        yield url


schema = schemathesis.openapi.from_dict(_cafe().openapi())


@schema.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_document_tells_the_truth(case: schemathesis.Case, url: str):
    """Whatever fits the OpenAPI document is answered as it says, and what does not is refused as it says."""
    case.call_and_validate(base_url=url, timeout=30)
