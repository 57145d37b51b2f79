"""What being watched costs a run: thread time of the event loop alone, with a contract server in another process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from pydantic_ai import Agent
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.test import TestModel

from core import Chain, X, check
from stagegraph import Graph, Runner, Stage
from stagegraph.tracing import LangfuseTracing
from table import Row

SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from langfuse_server import LangfuseServer
with LangfuseServer() as server:
    print(server.url, server.public_key, server.secret_key, flush=True)
    sys.stdin.read()
"""
TESTS = Path(__file__).parents[1] / "tracing"
CALLS = 100


class Asks(Graph[str, str]):
    """A hundred agents, one after the other."""

    ask = Stage(str, Agent(instructions="Answer."))

    def __init__(self, settings: InstrumentationSettings | None = None) -> None:
        if settings is not None:  # Pydantic AI's own instrumentation, into nothing
            self.ask = Stage(str, Agent(instructions="Answer.", capabilities=[Instrumentation(settings=settings)]))

    async def flow(self, text: str) -> str:
        for _ in range(CALLS):
            await self.ask(text)
        return text


async def rows() -> list[Row]:
    """Steps and stages, traced and not."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(TESTS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url, public, secret = server.stdout.readline().split()
        tracing = LangfuseTracing(public_key=public, secret_key=secret, base_url=url)
        watched, alone = Runner(TestModel(), tracing=tracing), Runner(TestModel(), tracing=None)
        step = await _beyond(Chain(), X(v=0), watched, alone, tracing)
        stage = await _beyond(Asks(), "x", watched, alone, tracing)
        settings = InstrumentationSettings(tracer_provider=TracerProvider())
        theirs = await _beyond(Asks(), "x", alone, alone, tracing, Asks(settings))
        exported = await _exported(tracing, watched)
        off = await _off()
        lost = tracing.lost
        tracing.close(5)
        server.terminate()
    note = f"{stage:.0f} us with its {theirs:.0f} us" + (f", {lost} lost" if lost else "")
    own = "a traced agent with one request, the same, beyond Pydantic AI's own instrumentation"
    return [
        Row("a traced step, of the run's own thread", step, "us", 250),
        Row(own, stage - theirs, "us", 250, note),
        Row("an observation, in the export thread", exported, "us", 120),
        Row("tracing off (no keys) against the runner alone", off, "x", 1.05),
    ]


async def _exported(tracing: LangfuseTracing, runner: Runner) -> float:
    """Microseconds an observation of a long chain takes in the thread that sends it, the median of the rounds."""
    found: list[float] = []
    for _ in range(7):
        before = _others()
        run = await runner.run(Chain(), X(v=0))
        await tracing.flush(10)
        found.append((_others() - before) / len(list(run.root.walk())) * 1e6)
    return statistics.median(found)


def _others() -> float:
    """CPU seconds of all threads but this one."""
    return time.process_time() - time.thread_time()


async def _beyond(  # noqa: PLR0917 - one measurement
    graph: Graph,
    value: object,
    watched: Runner,
    alone: Runner,
    tracing: LangfuseTracing,
    other: Graph | None = None,
) -> float:
    """Microseconds a call that tracing adds, the median of the rounds."""
    found: list[float] = []
    for number in range(12):
        seconds: list[float] = []
        for runner, node in ((alone, graph), (watched, other or graph)):
            began = time.thread_time()
            check((await runner.run(node, value)).status, "succeeded")
            seconds.append(time.thread_time() - began)
            await tracing.flush(10)
        if number > 1:
            found.append((seconds[1] - seconds[0]) / CALLS * 1e6)
    return statistics.median(found)


async def _off() -> float:
    """The cost of a runner that looks for keys and finds none, against one that was told not to look."""
    looking, told = Runner(tracing="auto"), Runner(tracing=None)
    times: dict[Runner, list[float]] = {looking: [], told: []}
    for _ in range(60):
        for runner, taken in times.items():
            began = time.thread_time()
            await runner.run(Chain(), X(v=0))
            taken.append(time.thread_time() - began)
    return statistics.median(times[looking]) / statistics.median(times[told])
