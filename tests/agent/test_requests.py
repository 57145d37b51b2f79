"""Which agents may start where requests are limited, and that their requests are seen whatever the agent is like."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent, FunctionToolset, RunContext
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.capabilities import Hooks
from pydantic_ai.messages import ModelMessage, ModelResponse, PartDeltaEvent, TextPart, TextPartDelta
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from scripted import Turnstile, says
from stagegraph import Graph, LimitError, Limits, Prompt, Prompts, RunError, Runner, Stage, fan_out
from stagegraph.data.events import ToolCalled
from stagegraph.journal import SqliteJournal


class Many(Graph[list[str], list[str]]):
    """Runs one agent for each text; `began` has the texts whose agents have begun."""

    def __init__(self) -> None:
        self.began: list[str] = []
        agent = Agent(output_type=str)

        @agent.instructions
        def began(ctx: RunContext[object]) -> str:
            self.began.append(str(ctx.prompt))
            return "Answer."

        self.ask = Stage(str, agent)

    async def flow(self, texts: list[str]) -> list[str]:
        return await fan_out(self.ask, texts)


async def test_agents_begin_when_their_request_may_soon_be_made():
    """Of two hundred, no more have begun than twice as many as may ask at once; in the end all have their answer."""
    gate, graph, texts = Turnstile(), Many(), [str(number) for number in range(200)]
    live = Runner(gate.model, max_concurrency=3).start(graph, texts)
    await gate.crowd(3)
    await anyio.wait_all_tasks_blocked()
    assert len(graph.began) <= 6
    gate.open()
    assert (await live.result()).output == texts
    assert (len(graph.began), gate.most) == (200, 3)


async def test_a_function_of_an_agent_may_run_a_graph_where_one_request_is_allowed():
    """An agent that has begun keeps no other from asking, neither in its instructions nor in a tool."""
    runner = Runner(says("inner"), max_concurrency=1)
    inner = Stage(str, Agent(output_type=str))
    agent = Agent(output_type=str)

    @agent.instructions
    async def told() -> str:
        return (await runner.run(inner, "x")).output

    @agent.tool_plain
    async def look() -> str:
        return (await runner.run(inner, "x")).output

    with anyio.fail_after(60):
        run = await runner.run(Stage(str, agent), "x", model=TestModel())
    assert run.output == '{"look":"inner"}'
    assert "inner" in str(run.root.messages[0])


def streams(text: str) -> FunctionModel:
    async def pieces(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        yield text

    return FunctionModel(says(text).function, stream_function=pieces)


def plain() -> Agent[None, str]:
    return Agent(output_type=str)


def with_a_tool() -> Agent[None, str]:
    agent = plain()
    agent.tool_plain(lambda: "seen", name="look")
    return agent


def with_a_listener() -> Agent[None, str]:
    agent = plain()

    @agent.on_event(PartDeltaEvent)
    async def listen(_ctx: RunContext[None], event: PartDeltaEvent) -> None:
        pass

    return agent


def with_a_capability() -> Agent[None, str]:
    async def unchanged(_ctx: RunContext[Any], request_context: ModelRequestContext) -> ModelRequestContext:
        return request_context

    return Agent(output_type=str, capabilities=[Hooks(before_model_request=unchanged)])


@pytest.mark.parametrize("make", [plain, with_a_tool, with_a_listener, with_a_capability])
@pytest.mark.parametrize("prompt", [None, Prompt("Tuned.")], ids=["as it is", "tuned"])
@pytest.mark.parametrize("overridden", [False, True])
async def test_the_requests_of_every_agent_are_limited(
    make: Callable[[], Agent[None, str]], prompt: Prompt | None, overridden: bool
):
    """With tools, capabilities, a candidate's text, or a model that `Agent.override` puts in the place of the run's."""
    agent = make()

    class Thrice(Graph[str, str]):
        ask = Stage(str, agent)

        async def flow(self, text: str) -> str:
            for _ in range(3):
                text = await self.ask(text)
            return text

    prompts = None if prompt is None else Prompts({"ask": prompt})
    runner = Runner(streams("a"), limits=Limits(requests=2))
    with agent.override(model=streams("b")) if overridden else agent.override(), pytest.raises(LimitError) as caught:
        await runner.run(Thrice(), "x", prompts=prompts)
    assert caught.value.run.usage.requests == 2
    assert caught.value.run.calls()[0].output == ("b" if overridden else "a")


async def test_a_function_of_an_agent_may_lend_its_model():
    """`ctx.model` answers other agents as well, and has the name of the model that the run was given."""
    names: list[str] = []
    inner = Agent(output_type=str)
    agent = Agent(output_type=str)

    @agent.output_validator
    async def again(ctx: RunContext[None], text: str) -> str:
        names.append(f"{ctx.model.system}:{ctx.model.model_name}")
        return (await inner.run(text, model=ctx.model, usage=ctx.usage)).output

    async def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart(f"{messages[-1].parts[0].content}!")])  # type: ignore[union-attr]

    model = FunctionModel(answer)
    run = await Runner(model, limits=Limits(requests=2), max_concurrency=1).run(Stage(str, agent), "x")
    assert (run.output, run.usage.requests, names) == ("x!!", 2, [f"{model.system}:{model.model_name}"])


async def test_what_another_run_asks_the_lent_model_is_no_request_of_the_stage():
    """Without `usage=ctx.usage`, Pydantic AI does not count it either; its failure is one of the function."""
    asked: list[str] = []
    inner = Agent(output_type=str)
    agent = Agent(output_type=str)

    @agent.output_validator
    async def judged(ctx: RunContext[None], text: str) -> str:
        return (await inner.run(f"judge {text}", model=ctx.model)).output

    async def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        asked.append(str(messages[-1].parts[0].content))  # type: ignore[union-attr]
        if asked[-1] == "judge bad":
            raise RuntimeError(asked[-1])
        return ModelResponse([TextPart("bad" if asked[-1] == "x" else "good")])

    runner = Runner(FunctionModel(answer), limits=Limits(requests=1), max_concurrency=1)
    assert (await runner.run(Stage(str, agent), "y")).usage.requests == 1
    assert asked == ["y", "judge good"]
    with pytest.raises(RunError, match="judge bad; a validator"):
        await runner.run(Stage(str, agent), "x")


async def test_an_agent_whose_class_gives_its_runs_tools_is_seen_as_others(tmp_path: Path):
    """The tool is announced, and what it gave is recorded: it is not run again."""
    looked: list[str] = []
    toolset = FunctionToolset[None]()

    @toolset.tool_plain
    def look() -> str:
        looked.append("up")
        return "seen"

    class Looks(WrapperAgent[None, str]):
        async def run(self, *args: Any, **options: Any) -> Any:
            return await super().run(*args, **{**options, "toolsets": [toolset]})

    agent = Agent(output_type=str)

    @agent.output_validator
    def fails_once(text: str) -> str:
        looked.append(text)
        if len(looked) == 2:
            raise ConnectionError
        return text

    async with Runner(TestModel(), journal=SqliteJournal(tmp_path / "runs.db")) as runner:
        live = runner.start(Stage(str, Looks(agent), retries=1), "x")
        events = [type(event) async for event in live.events()]
        run = await live.result()
    assert run.output == '{"look":"seen"}'
    assert (looked.count("up"), events.count(ToolCalled)) == (1, 1)


async def test_an_agent_with_a_listener_streams_and_is_not_asked_twice(tmp_path: Path):
    """What came in pieces is recorded as a whole; an attempt that repeats it tells the same text again."""
    told: list[str] = []
    agent = Agent(output_type=str)

    @agent.on_event(PartDeltaEvent)
    async def listen(_ctx: RunContext[None], event: PartDeltaEvent) -> None:
        if isinstance(event.delta, TextPartDelta):
            told.append(event.delta.content_delta)

    @agent.output_validator
    async def fails_once(text: str) -> str:
        told.append(f"<{text}>")
        if told.count(f"<{text}>") == 1:
            raise ConnectionError
        return text

    async def stream(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        for piece in "abc":
            told.append(f"sends {piece}")
            yield piece

    async with Runner(FunctionModel(stream_function=stream), journal=SqliteJournal(tmp_path / "runs.db")) as runner:
        run = await runner.run(Stage(str, agent, retries=1), "x")
    assert (run.output, run.usage.requests, run.root.attempts) == ("abc", 1, 2)
    assert told.index("b") < told.index("sends c")
    assert [text for text in told if text.startswith("sends")] == ["sends a", "sends b", "sends c"]
    assert told[-1] == "<abc>"
