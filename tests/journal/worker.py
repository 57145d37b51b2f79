"""A process that runs one workload on a journal file and may be killed at any moment; see `test_kill.py`.

Every model request and tool call prints one line when it *begins*: the call's key and what it is. Answers are unique
(`<key>/<what>/<number>`), so an answer that ends up in another branch, or that was asked for twice, shows.
"""

import asyncio
import itertools
import os
import random
import sys

import anyio
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Graph, Runner, Stage, current_call, fan_out, step
from stagegraph.journal import SqliteJournal

PROCESS = sys.argv[3]
_numbers = itertools.count()
_random = random.Random(int(sys.argv[4]))


def unique(what: str) -> str:
    """Say that something begins, and give it a name that nothing else has."""
    name = f"<{current_call().key}/{what}/{PROCESS}{next(_numbers)}>"
    os.write(1, f"{name}\n".encode())
    return name


async def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Call the tool twice, then answer with everything that was said."""
    returns = [part.content for m in messages for part in m.parts if isinstance(part, ToolReturnPart)]
    name = unique(f"request{len(returns)}")
    await anyio.sleep(_random.random() * 0.004)
    if info.function_tools and len(returns) < 2:
        said = " ".join([*map(str, returns), name])
        return ModelResponse([ToolCallPart("look", {"said": said}, tool_call_id=f"call{len(returns)}")])
    return ModelResponse([TextPart(" ".join([*map(str, returns), name]))])


agent = Agent(instructions="Answer.", retries=3)


@agent.tool_plain
async def look(said: str) -> str:
    """Look something up."""
    name = unique("tool")
    await anyio.sleep(_random.random() * 0.002)
    return f"{said} {name}"


plain = Agent(instructions="Answer at once.")


class Item(BaseModel):
    """One item of a workload."""

    text: str


@step
async def note(text: str) -> Item:
    """Do something with a side effect."""
    return Item(text=f"{text} {unique('step')}")


class Chain(Graph[str, str]):
    """Five agents in a row, with a step between."""

    first = Stage(str, agent)
    note = note
    second = Stage(Item, agent)

    async def flow(self, text: str) -> str:
        for _ in range(3):
            item = await self.note(await self.first(text))
            text = await self.second(Item(text=str(len(item.text))))
        return text


class Branch(Graph[str, str]):
    """Two agents that loop."""

    draft = Stage(str, agent)
    check = Stage(Item, plain)

    async def flow(self, text: str) -> str:
        said = ""
        for number in range(2):
            draft = await self.draft(f"{text} round {number}")
            said += draft + " " + await self.check(Item(text=f"{text} check {number}"))
        return said


class Wide(Graph[str, str]):
    """A fan-out of agents with tools."""

    ask = Stage(str, agent)

    async def flow(self, text: str) -> str:
        return "|".join(await fan_out(self.ask, [f"{text} {i}" for i in range(8)]))


class Nested(Graph[str, str]):
    """A fan-out of fan-outs of loops."""

    branch = Branch()

    async def group(self, text: str) -> str:
        return "|".join(await fan_out(self.branch, [f"{text}.{i}" for i in range(2)]))

    async def flow(self, text: str) -> str:
        return "|".join(await fan_out(self.group, [f"{text}{i}" for i in range(3)]))


class Same(Graph[str, str]):
    """One stage asked the very same thing five times at once."""

    ask = Stage(str, agent)

    async def flow(self, text: str) -> str:
        return "|".join(await fan_out(self.ask, [text] * 5))


WORKLOADS: dict[str, Graph[str, str]] = {"chain": Chain(), "wide": Wide(), "nested": Nested(), "same": Same()}


async def main() -> None:
    """Start or resume the run `r` and print its output."""
    journal = SqliteJournal(sys.argv[1])
    runner = Runner(FunctionModel(model), journal=journal)
    graph = WORKLOADS[sys.argv[2]]
    if PROCESS == "a":
        run = await runner.run(graph, "go", run_id="r")
    else:
        run = await runner.resume("r", graph=graph)
    os.write(1, f"OUTPUT {run.output}\n".encode())
    await journal.aclose()


if __name__ == "__main__":
    asyncio.run(main())
