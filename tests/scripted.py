"""Scripted models, and what several test files need to look at runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any

import anyio
from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from stagegraph import Graph, Stage, current_call, step

__all__ = [
    "JumpingLoop",
    "Say",
    "Still",
    "Tidy",
    "Turnstile",
    "Who",
    "asked",
    "careful",
    "deletes",
    "echo",
    "fails",
    "others",
    "priced",
    "says",
    "shows",
    "submits",
]


def asked(messages: list[ModelMessage]) -> str:
    """The newest user prompt that a model was sent."""
    for message in reversed(messages):
        if isinstance(message, ModelRequest):
            for part in reversed(message.parts):
                if isinstance(part, UserPromptPart):
                    assert isinstance(part.content, str)
                    return part.content
    raise AssertionError("no user prompt")


def says(*texts: str) -> FunctionModel:
    """A model that gives these answers in turn, then the last one for ever."""
    rest = list(texts)

    def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart(rest.pop(0) if len(rest) > 1 else rest[0])])

    return FunctionModel(answer)


def echo(change: Callable[[str], str] = lambda text: text) -> FunctionModel:
    """A model that answers with the prompt it was sent."""

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart(change(asked(messages)))])

    return FunctionModel(answer)


def submits(**fields: object) -> FunctionModel:
    """A model that calls its output tool with these fields."""

    def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart(info.output_tools[0].name, dict(fields))])

    return FunctionModel(answer)


def fails(*errors: Exception, then: str = "done") -> FunctionModel:
    """A model whose requests fail like this, one after another, before it answers."""
    rest = list(errors)

    def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        if rest:
            raise rest.pop(0)
        return ModelResponse([TextPart(then)])

    return FunctionModel(answer)


def priced(usd: str | None = "0.01", tokens: int = 10) -> tuple[FunctionModel, list[str]]:
    """A model whose every request costs the same, and the prompts it was sent."""
    prompts: list[str] = []

    async def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        prompts.append(asked(messages))
        for _ in range(3):  # others get a turn, as they would during a real request
            await anyio.lowlevel.checkpoint()
        cost = Decimal(usd) if usd is not None else None
        return ModelResponse([TextPart("paid")], usage=RequestUsage(input_tokens=tokens, cost=cost))

    return FunctionModel(answer), prompts


class Turnstile:
    """A model whose requests wait until they are let through."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        """The prompts of the requests that wait now."""
        self.most = 0
        self.seen: list[str] = []
        self._opened = anyio.Event()
        self._arrived = anyio.Event()
        self.model = FunctionModel(self._answer)

    async def _answer(self, messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        prompt = asked(messages)
        self.inside.append(prompt)
        self.seen.append(prompt)
        self.most = max(self.most, len(self.inside))
        self._arrived.set()
        try:
            await self._opened.wait()
        finally:
            self.inside.remove(prompt)
        return ModelResponse([TextPart(prompt)])

    async def crowd(self, size: int) -> None:
        """Wait until so many requests wait inside."""
        while len(self.inside) < size:
            self._arrived = anyio.Event()
            await self._arrived.wait()

    def open(self) -> None:
        """Let everything through from now on."""
        self._opened.set()


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put forward, so that nobody has to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead

    @classmethod
    def run(cls, main: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run a test on such a loop."""
        with asyncio.Runner(loop_factory=cls) as runner:
            runner.run(main())

    @staticmethod
    def jump(seconds: float) -> None:
        """Put the running loop's clock forward."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, JumpingLoop)
        loop.ahead += seconds


def others() -> set[asyncio.Task[object]]:
    """Every task that is alive besides the one that asks."""
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not current}


@step
async def who(text: str) -> str:
    return f"{text} for {current_call().deps}"


class Who(Graph[str, str]):
    """Says what deps reached it."""

    who = who

    async def flow(self, text: str) -> str:
        return await self.who(text)


def shows(type_: Any) -> Graph[Any, str]:
    """A graph that gives its input as Python writes it."""

    class Shows(Graph[type_, str]):
        async def flow(self, value: Any) -> str:
            return repr(value)

    return Shows()


class Still(Graph[str, str]):
    """Gives back what came in, and calls nothing."""

    async def flow(self, text: str) -> str:
        return text


class Say(Graph[str, str]):
    """One stage, which is asked what came in."""

    say = Stage(str, Agent(output_type=str))

    async def flow(self, text: str) -> str:
        return await self.say(text)


careful = Agent(output_type=[str, DeferredToolRequests], instructions="Tidy up.")


@careful.tool_plain(requires_approval=True)
def delete(path: str) -> str:
    """Delete a file."""
    return f"{path} is gone"


class Tidy(Graph[str, str]):
    """One stage, whose agent asks before it deletes."""

    clean = Stage(str, careful)

    async def flow(self, text: str) -> str:
        return await self.clean(text)


def deletes(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Ask to delete `old.log`, then answer with what came of it; an agent without tools answers `planned`."""
    results = [part for m in messages for part in m.parts if isinstance(part, ToolReturnPart)]
    if not info.function_tools:
        return ModelResponse([TextPart("planned")])
    return ModelResponse(
        [TextPart(str(results[-1].content)) if results else ToolCallPart("delete", {"path": "old.log"})]
    )
