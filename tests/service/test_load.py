"""Many runs at once, and whatever a machine can think of to send."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, settings
from pydantic import BaseModel, Field

from serving import Worker, app_for, serving
from stagegraph import Graph, Runner, step
from stagegraph.journal import MemoryJournal

RUNS, ROUNDS = 200, 3
BLOCKS_A_RUN = 5
"""What a run may leave behind, in Python's own memory blocks; the record of one has hundreds."""
BYTES_A_RUN = 50_000
"""The same as the system counts it, which is coarse."""


async def _ask(client: httpx.AsyncClient, number: int, text: str) -> None:
    if number % 10:
        answer = await client.post("/runs", json=text)
        assert answer.json()["output"] == [*(f"{text}.{i}" for i in range(10)), text]
    else:
        stream = await client.post("/runs/stream", json=text)
        assert stream.text.count("event: call_finished") == 13
        assert f'"output":["{text}.0"' in stream.text


async def _rounds(url: str) -> list[dict[str, int]]:
    """What is left in the server after each round of runs that all go on at once, and whose clients have gone."""
    left: list[dict[str, int]] = []
    limits = httpx.Limits(max_connections=RUNS)
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as looking:
        before = (await looking.get("/left")).json()
        for number in range(ROUNDS):
            async with (
                httpx.AsyncClient(base_url=url, timeout=250, limits=limits, trust_env=False) as client,
                asyncio.TaskGroup() as group,
            ):
                for run in range(RUNS):
                    group.create_task(_ask(client, run, f"round {number} run {run}"))
            left.append((await looking.get("/left")).json())
            while left[-1]["sockets"] > before["sockets"]:  # the server hears of it a little later
                left[-1] = (await looking.get("/left")).json()
            looks = [(await looking.get("/left")).json() for _ in range(20)]  # ended runs are weighed in other threads
            left[-1] = min(left[-1], *looks, key=lambda look: look["blocks"])
    return left


def test_two_hundred_runs_at_once(tmp_path: Path):
    """All are answered with their own answers in order, three times; no task or span is left, and memory is flat."""
    with Worker(tmp_path, program="crowd.py") as worker:
        left = asyncio.run(_rounds(worker.url))
    assert {(one["tasks"], one["open_runs"], one["open_spans"]) for one in left} == {(0, 0, 0)}
    assert left[-1]["spans"] == ROUNDS * RUNS * 3 * 2  # of each agent's run and of its request
    first, last = left[1], left[-1]  # in the first round, caches fill
    runs = RUNS * (ROUNDS - 2)
    assert last["blocks"] - first["blocks"] < runs * BLOCKS_A_RUN
    assert last["bytes"] - first["bytes"] < runs * BYTES_A_RUN


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
    return app_for(Cafe(), runner, heartbeat=0.05, prefix="/cafe")


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
