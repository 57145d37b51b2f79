"""A model that counts what it is asked, agents with tools, and ways to end a run halfway; for the tests of journals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from scripted import asked
from stagegraph import Graph, LiveRun, Stage, fan_out, step
from stagegraph.journal import Journal, OpRow

__all__ = ["Chain", "Counting", "Item", "Looking", "Text", "Wide", "cancel_when", "looked", "ops", "stepped"]


class Text(BaseModel):
    text: str


class Item(BaseModel):
    text: str
    number: int = 0


class Counting:
    """Answers `<prompt>!`, after one call of each tool that the agent has; keeps every prompt it was sent."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """One entry a request: the prompt, and a `+` for every tool result that came before."""
        self.fails: set[str] = set()
        self.model = FunctionModel(self.answer)

    async def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        prompt = asked(messages)
        returns = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
        name = prompt + "+" * len(returns)
        self.asked.append(name)
        if name in self.fails:
            raise ConnectionError(name)
        await asyncio.sleep(0)
        if info.function_tools and not returns:
            calls = [ToolCallPart(tool.name, {"what": prompt}) for tool in info.function_tools]
            return ModelResponse([*calls])
        return ModelResponse([TextPart(" ".join([*(str(part.content) for part in returns), f"{prompt}!"]))])

    def take(self) -> list[str]:
        """What was asked since the last time, sorted."""
        taken, self.asked = sorted(self.asked), []
        return taken


stepped: list[str] = []
"""What the step `shout` was given."""
looked: list[str] = []
"""What the tool `look` was given."""


@step
async def shout(text: str) -> Text:
    stepped.append(text)
    return Text(text=text.upper())


looker = Agent(instructions="Look it up.")


@looker.tool_plain
async def look(what: str) -> str:
    """Look something up."""
    looked.append(what)
    return f"seen {what}"


class Chain(Graph[str, Text]):
    """A stage, a stage, a step."""

    first = Stage(str, Agent(instructions="First."))
    second = Stage(str, Agent(instructions="Second."))
    shout = shout

    async def flow(self, text: str) -> Text:
        return await self.shout(await self.second(await self.first(text)))


class Wide(Graph[list[str], list[Text]]):
    """The same for many items at once."""

    first = Stage(str, Agent(instructions="First."))
    second = Stage(str, Agent(instructions="Second."))
    shout = shout

    async def branch(self, text: str) -> Text:
        return await self.shout(await self.second(await self.first(text)))

    async def flow(self, texts: list[str]) -> list[Text]:
        return await fan_out(self.branch, texts)


class Looking(Graph[list[str], list[str]]):
    """Agents with a tool."""

    ask = Stage(str, looker)

    async def flow(self, texts: list[str]) -> list[str]:
        return await fan_out(self.ask, texts)


async def cancel_when(live: LiveRun[object, object], kind: str, key: str) -> None:
    """Cancel a run as soon as an event of this kind came from this call."""
    async for event in live.events():
        if event.type == kind and getattr(event, "key", None) == key:
            await live.cancel()


async def ops(journal: Journal, run_id: str, wanted: Callable[[OpRow], bool] = lambda _: True) -> list[str]:
    """The names of the recorded requests and tool calls."""
    return sorted(f"{op.key} {op.op.partition(':')[0]}" for op in await journal.ops(run_id) if wanted(op))
