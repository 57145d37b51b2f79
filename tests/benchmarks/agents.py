"""Stages against their bare agents, and many agents that share the slots of one provider."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import anyio
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from stagegraph import Graph, Runner, Stage, fan_out
from table import Row, interleaved

CALLS = 50
RUNS, EACH, DELAY, SLOTS = 200, 12, 0.1, 32
AGENT = Agent(instructions="Answer.")


class Asks(Graph[str, str]):
    """Agents, one after the other."""

    ask = Stage(str, AGENT)

    async def flow(self, text: str) -> str:
        for _ in range(CALLS):
            await self.ask(text)
        return text


class Twelve(Graph[str, list[str]]):
    """Twelve model requests: one, ten at once, one."""

    first = Stage(str, Agent(instructions="Answer."))
    middle = Stage(str, Agent(instructions="Answer."))
    last = Stage(str, Agent(instructions="Answer."))

    async def flow(self, text: str) -> list[str]:
        text = await self.first(text)
        parts = await fan_out(self.middle, [f"{text}.{number}" for number in range(EACH - 2)])
        return [*parts, await self.last(text)]


def slow_model(delay: float) -> FunctionModel:
    """A provider that takes its time, in seconds."""

    async def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        await anyio.sleep(delay)
        return ModelResponse([TextPart("answer")])

    return FunctionModel(answer)


MAKESPAN = """
import asyncio, gc, json, sys, time
sys.path.insert(0, {folder!r})
import psutil
from agents import DELAY, RUNS, Runner, SLOTS, Twelve, slow_model
async def main():
    if {tuned}:
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)
    runner, graph, process = Runner(slow_model(DELAY), tracing=None, max_concurrency=SLOTS), Twelve(), psutil.Process()
    await runner.run(graph, "warm up")
    before, most, done = process.memory_info().rss, [0], asyncio.Event()
    async def watch():
        while not done.is_set():
            most[0] = max(most[0], process.memory_info().rss)
            await asyncio.sleep(0.05)
    watching = asyncio.create_task(watch())
    began = time.perf_counter()
    await asyncio.gather(*(runner.run(graph, str(number)) for number in range(RUNS)))
    took = time.perf_counter() - began
    done.set()
    await watching
    print(json.dumps([took, most[0] / 1e6, (most[0] - before) / 1e6]))
asyncio.run(main())
"""


def makespan(*, tuned: bool) -> tuple[float, float, float]:
    """Seconds until the last of many runs that begin at once has ended; the most megabytes of the process, and of them."""
    code = MAKESPAN.format(folder=__file__.rpartition("/")[0], tuned=tuned)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, most, theirs = json.loads(done.stdout)
    return seconds, most, theirs


async def rows() -> list[Row]:
    """Everything about agents."""
    runner, model = Runner(TestModel(), tracing=None), TestModel()

    async def stages() -> None:
        await runner.run(Asks(), "?")

    async def bare() -> None:
        for _ in range(CALLS):
            await AGENT.run("?", model=model)

    took = await interleaved({"stages": stages, "bare": bare}, 9)
    each = f"{took['stages'] / CALLS * 1e3:.2f} ms with its {took['bare'] / CALLS * 1e3:.2f} ms"
    ideal = RUNS * EACH * DELAY / SLOTS
    plain, most, theirs = await asyncio.to_thread(makespan, tuned=False)
    tuned, *_ = await asyncio.to_thread(makespan, tuned=True)
    what = f"{RUNS} runs of {EACH} agents at once, {SLOTS} model requests of {DELAY} s in flight"
    return [
        Row("a stage against its bare `agent.run`", took["stages"] / took["bare"], "x", 1.10, each),
        Row(f"{what}: makespan against the ideal", plain / ideal, "x", 1.4, f"{plain:.1f} s"),
        Row("the same with the collector set as the README says", tuned / ideal, "x", 1.4, f"{tuned:.1f} s"),
        Row("the same, memory of the process", most, "MB", 120, f"{theirs:.0f} MB of it for the runs"),
    ]
