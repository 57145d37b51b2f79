"""What recording costs: SQLite with group commit, against DBOS on SQLite, and what durability adds to an agent."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from core import Chain, Trivial, Wide, X, check
from stagegraph import Graph, Runner, Stage, fan_out, feedback, step
from stagegraph.journal import RunFilter, SqliteJournal
from stagegraph.tracing import JournalRuns
from table import Row, interleaved

DBOS = """
import asyncio, json, logging, statistics, sys, time
from dbos import DBOS, DBOSConfig
logging.disable(logging.CRITICAL)
DBOS(config=DBOSConfig(name="bench", system_database_url="sqlite:///" + sys.argv[1], run_admin_server=False, log_level="CRITICAL"))
@DBOS.step()
async def inc(v: int) -> int:
    return v + 1
@DBOS.workflow()
async def chain() -> int:
    v = 0
    for _ in range(100):
        v = await inc(v)
    return v
@DBOS.workflow()
async def wide() -> int:
    return len(await asyncio.gather(*(inc(i) for i in range(300))))
async def main():
    times = {"chain": [], "wide": []}
    for number in range(4):
        began = time.perf_counter(); assert await chain() == 100; one = time.perf_counter()
        assert await wide() == 300; two = time.perf_counter()
        if number:
            times["chain"].append((one - began) / 100 * 1e6); times["wide"].append((two - one) / 300 * 1e6)
    print(json.dumps({name: statistics.median(values) for name, values in times.items()}))
DBOS.launch()
asyncio.run(main())
DBOS.destroy()
"""


class Ask(Graph[str, str]):
    """One agent."""

    ask = Stage(str, Agent(instructions="Answer."))

    async def flow(self, text: str) -> str:
        return await self.ask(text)


def dbos(folder: str) -> dict[str, float]:
    """Microseconds a step of DBOS on SQLite, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", DBOS, f"{folder}/dbos.sqlite"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print("DBOS did not run:", done.stderr[-400:], file=sys.stderr)
        return {"chain": float("nan"), "wide": float("nan")}
    return json.loads(done.stdout.strip().splitlines()[-1])


@step
async def waits(x: X) -> X:
    """Lets others run first, so that the row that says it began is written."""
    await asyncio.sleep(0)
    return X(v=x.v + 1)


class Waiting(Graph[list[X], list[X]]):
    """The same over many items."""

    waits = waits

    async def flow(self, xs: list[X]) -> list[X]:
        return await fan_out(self.waits, xs, limit=64)


async def rows() -> list[Row]:
    """Everything about the journal."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        journal = SqliteJournal(f"{folder}/runs.db")
        runner, plain = Runner(journal=journal), Runner()
        items = [X(v=i) for i in range(1_000)]

        async def chain() -> None:
            check((await runner.run(Chain(), X(v=0))).output.v, 100)

        async def wide() -> None:
            check(len((await runner.run(Wide(), items)).output), 1_000)

        async def begun() -> None:
            check(len((await runner.run(Waiting(), items)).output), 1_000)

        steps = {"chain": chain, "wide": wide, "begun": begun}
        took = await interleaved(steps, 9)
        passed = await interleaved(steps, 9, clock=time.perf_counter)
        peers = await asyncio.to_thread(dbos, folder)

        recorded = await runner.run(Wide(), items)

        async def replay() -> None:
            check(all(c.replayed for c in (await runner.run(Wide(), items, replay=recorded)).calls()), True)

        replayed = (await interleaved({"replay": replay}, 5))["replay"]

        async def durable() -> None:
            for _ in range(10):
                await runner.run(Ask(), "?", model=TestModel())

        async def fleeting() -> None:
            for _ in range(10):
                await plain.run(Ask(), "?", model=TestModel())

        agents = await interleaved({"durable": durable, "fleeting": fleeting}, 9)
        await runner.run(Wide(), [X(v=i) for i in range(10_000)], run_id="large")
        for name in ("small", "other"):
            await runner.run(Trivial(), X(v=0), run_id=name)
            await feedback(name, "helpful", value=True, runner=runner)
        for _ in range(100):
            await asyncio.gather(*(runner.run(Trivial(), X(v=0)) for _ in range(100)))
        reader = JournalRuns(journal)

        wanted = RunFilter(graph="Trivial", feedback="helpful", limit=100)

        async def listed() -> None:
            check(len(await journal.runs(RunFilter(graph="Trivial", limit=100))), 100)

        async def scored() -> None:
            check(len(await journal.runs(wanted)), 2)

        async def typed() -> None:
            check(len([run async for run in reader.runs(Trivial(), limit=100)]), 100)

        lists = await interleaved({"listed": listed, "scored": scored, "typed": typed}, 5)
        await journal.aclose()
        shown = {name: statistics.median(command(folder, *args) for _ in range(5)) for name, args in COMMANDS.items()}
        large = statistics.median(command(folder, "show", "large") for _ in range(3))
    in_a_row, side_by_side = peers["chain"] / (passed["chain"] * 1e4), peers["wide"] / (passed["wide"] * 1e3)
    return [
        Row(
            "recorded step, one after the other",
            took["chain"] * 1e4,
            "us",
            70,
            f"{passed['chain'] * 1e4:.0f} us passed",
        ),
        Row("the same, faster than DBOS on SQLite", in_a_row, "x", 15, more=True),
        Row("recorded step, fan-out of 1,000", took["wide"] * 1e3, "us", 20, f"{passed['wide'] * 1e3:.0f} us passed"),
        Row("the same, faster than DBOS on SQLite, side by side", side_by_side, "x", 15, more=True),
        Row("the same with the row that says that it began", took["begun"] * 1e3, "us", 27),
        Row("a durable agent run, dearer by", (agents["durable"] - agents["fleeting"]) * 1e2, "ms", 2),
        Row("replaying 1,000 recorded calls", replayed * 1e3, "ms", 1_000),
        Row("listing 100 of 10,000 runs of a graph", lists["listed"] * 1e3, "ms", 10),
        Row("finding the two with a score among them", lists["scored"] * 1e3, "ms", 10),
        Row("reading a typed run with its calls back", lists["typed"] * 10, "ms", None),
        *(Row(f"`{name}`", seconds, "s", 0.4) for name, seconds in shown.items()),
        Row("`stagegraph show` of 10,000 calls", large, "s", 2),
    ]


COMMANDS = {
    "stagegraph runs": ("runs",),
    "stagegraph show": ("show", "small"),
    "stagegraph diff": ("diff", "small", "other"),
}


def command(folder: str, *args: str) -> float:
    """Seconds of a whole command."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "stagegraph", *args, "--journal", f"{folder}/runs.db"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began
