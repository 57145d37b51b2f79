"""A model that counts what it is asked, agents with tools, and ways to end a run halfway; for the tests of journals."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from scripted import asked

__all__ = ["Counting", "Text", "looker"]


class Text(BaseModel):
    text: str


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


looker = Agent(instructions="Look it up.")


@looker.tool_plain
async def look(what: str) -> str:
    """Look something up."""
    return f"seen {what}"
