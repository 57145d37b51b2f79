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

from core import Chain, Wide, X, check
from stagegraph import Graph, Runner, Stage
from stagegraph.journal import SqliteJournal
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

        took = await interleaved({"chain": chain, "wide": wide}, 9)
        step, item = took["chain"] * 1e4, took["wide"] * 1e3
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
        dearer = (agents["durable"] - agents["fleeting"]) / 10 * 1e3
        await runner.run(Wide(), [X(v=i) for i in range(10_000)], run_id="large")
        await journal.aclose()
        shown = statistics.median(show(folder) for _ in range(3))
    return [
        Row("recorded step, one after the other", f"{step:.0f} us", "150 us", step <= 150),
        Row("recorded step, fan-out of 1,000", f"{item:.0f} us", "25 us", item <= 25),
        Row(
            "the same, faster than DBOS on SQLite",
            f"{peers['chain'] / step:.0f} x in a row, {peers['wide'] / item:.0f} x side by side",
            "15 x",
            min(peers["chain"] / step, peers["wide"] / item) >= 15,
        ),
        Row("a durable agent run, dearer by", f"{dearer:.1f} ms", "2 ms", dearer <= 2),
        Row("replaying 1,000 recorded calls", f"{replayed * 1e3:.0f} ms", "1 s", replayed < 1),
        Row("`stagegraph show` of 10,000 calls", f"{shown:.1f} s", "2 s", shown <= 2),
    ]


def show(folder: str) -> float:
    """Seconds of the whole command."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "stagegraph", "show", "large", "--journal", f"{folder}/runs.db"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began
