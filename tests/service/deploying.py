"""A service whose agents sit in tools, in every form of concurrency, until a file is there."""

import sys
from pathlib import Path

import anyio
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from serving import app_for, serve
from stagegraph import Graph, Runner, Stage, as_completed, fan_out, gather, settle
from stagegraph.journal import SqliteJournal

FOLDER, DRAIN = Path(sys.argv[1]), float(sys.argv[2])

agent = Agent(output_type=str)


async def gate() -> None:
    while not (FOLDER / "gate").exists():  # noqa: ASYNC110 - another process opens it
        await anyio.sleep(0.05)


@agent.tool_plain
async def look(text: str) -> str:
    """Waits in groups whose bodies are busy themselves."""
    async with anyio.create_task_group() as group:
        group.start_soon(look_twice)
        await gate()
    return text


async def look_twice() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(gate)
        await gate()


class Looks(Graph[int, int]):
    ask = Stage(str, agent)

    async def flow(self, number: int) -> int:
        texts = ["a", "b"]
        if number % 4 == 0:
            return len(await fan_out(self.ask, texts))
        if number % 4 == 1:
            return len(await gather(*map(self.ask, texts)))
        if number % 4 == 2:
            return sum(outcome.ok for outcome in await settle(self.ask, texts))
        async with as_completed(self.ask, texts) as outcomes:
            return len([outcome.value async for outcome in outcomes])


def main() -> None:
    journal = SqliteJournal(FOLDER / "runs.db")
    runner = Runner(TestModel(), journal=journal, drain_seconds=DRAIN, resume_interrupted=True)
    app = app_for(Looks(), runner)
    serve(app)


if __name__ == "__main__":
    main()
