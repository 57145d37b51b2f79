"""A graph as a tool of a Pydantic AI agent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, RunContext
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    RetryPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import UsageLimits

from scripted import Say, Still, Tidy, Turnstile, Who, deletes, echo, fails, others, priced, says, shows
from stagegraph import Graph, LimitError, Limits, RunError, Runner, Stage
from stagegraph.journal import MemoryJournal, RunFilter


class Ticket(BaseModel):
    """What a customer wrote."""

    text: str = Field(description="The words themselves.")
    day: date | None = None


class Reply(BaseModel):
    answer: str
    team: str


class Support(Graph[Ticket, Reply]):
    """Answers a ticket.

    Knows everything about shoes.
    """

    answer = Stage(str, Agent(output_type=str))

    async def flow(self, ticket: Ticket) -> Reply:
        return Reply(answer=await self.answer(ticket.text), team=f"team of {ticket.day}")


class Node(BaseModel):
    name: str
    children: list[Node] = []


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: int = 0


def calls(name: str, *arguments: dict[str, object] | str, then: str = "done") -> FunctionModel:
    """A model that calls a tool with these arguments, one call per request, and then answers."""
    rest = list(arguments)

    def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart(name, rest.pop(0))] if rest else [TextPart(then)])

    return FunctionModel(answer)


def returned(messages: list[ModelMessage]) -> list[ToolReturnPart]:
    requests = [message for message in messages if isinstance(message, ModelRequest)]
    return [part for message in requests for part in message.parts if isinstance(part, ToolReturnPart)]


def retried(messages: list[ModelMessage]) -> list[str]:
    """What a model was told about calls that it has to make again."""
    requests = [message for message in messages if isinstance(message, ModelRequest)]
    parts = [part for message in requests for part in message.parts]
    return [
        str(part.content)
        for part in parts
        if isinstance(part, RetryPromptPart) or (isinstance(part, ToolReturnPart) and part.outcome == "retried")
    ]


async def test_the_tool_is_described_by_the_graph():
    """Its name, description and arguments come from the class and its input type; both texts can be chosen."""
    tool = Support().as_tool()
    assert tool.name == "support"
    assert tool.description == "Answers a ticket.\n\nKnows everything about shoes."
    schema = tool.tool_def.parameters_json_schema
    assert schema["required"] == ["text"]
    assert schema["properties"]["text"]["description"] == "The words themselves."
    chosen = Support().as_tool(name="ask", description="Ask.")
    assert (chosen.name, chosen.description) == ("ask", "Ask.")
    assert GivesText().as_tool().description == "GivesText: gives str for str."


async def test_an_agent_gets_the_output_of_the_graph():
    """The fields are the arguments, read as JSON; the output itself is the tool's return, with the run's id beside it."""
    runner = Runner(echo(str.upper), journal=MemoryJournal())
    agent = Agent(calls("support", {"text": "help", "day": "2026-01-02"}), tools=[Support().as_tool(runner=runner)])
    result = await agent.run("go")
    (part,) = returned(result.all_messages())
    assert part.content == Reply(answer="HELP", team="team of 2026-01-02")
    recorded = await runner.resume(part.metadata["run_id"])
    assert recorded.output == part.content


class GivesText(Still):
    pass  # a docstring would be its description


class Named(BaseModel):
    ctx: str
    graph: int


@pytest.mark.parametrize(
    ("type_", "argument", "output"),
    [
        (list[int], {"input": [1, 2]}, "[1, 2]"),
        (Node, {"name": "a", "children": [{"name": "b"}]}, repr(Node(name="a", children=[Node(name="b")]))),
        (list[Node], {"input": [{"name": "a"}]}, repr([Node(name="a")])),
        (Point, {"x": 3}, "Point(x=3, y=0)"),
        (Colour, {"input": "red"}, repr(Colour.RED)),
        (dict[str, int], {"input": {"a": 1, "b": 2}}, "{'a': 1, 'b': 2}"),
        (Named, {"ctx": "a", "graph": 1}, "Named(ctx='a', graph=1)"),
    ],
)
async def test_any_input_type_becomes_arguments(type_: Any, argument: object, output: object):
    """Types with fields give one argument per field; all others are the one argument `input`."""
    agent = Agent(calls("it", argument), tools=[shows(type_).as_tool(name="it")])  # type: ignore[arg-type]
    (part,) = returned((await agent.run("go")).all_messages())
    assert part.content == output


async def test_schemas_keep_their_references():
    """A type that contains itself is still described: references point at definitions that are there."""
    for graph in (shows(Node), shows(list[Node])):
        schema = graph.as_tool().tool_def.parameters_json_schema
        assert schema["type"] == "object"
        assert set(schema["$defs"]) == {"Node"}


async def test_arguments_that_do_not_fit_go_back_to_the_model():
    """The model is told what was wrong and may call again, as often as its agent retries; no run was started for it."""
    journal = MemoryJournal()
    tool = Support().as_tool(runner=Runner(echo(), journal=journal))
    agent = Agent(calls("support", {"day": "x"}, {"text": "help"}), tools=[tool])
    result = await agent.run("go")
    (said,) = retried(result.all_messages())
    assert "text: Field required" in said
    assert "day: " in said
    assert returned(result.all_messages())[-1].content == Reply(answer="help", team="team of None")
    assert len(await journal.runs(RunFilter())) == 1
    agent = Agent(calls("shows", {"input": "x"}, {"wrong": 1}, {}), tools=[shows(list[int]).as_tool()])
    with pytest.raises(UnexpectedModelBehavior, match="shows"):
        await agent.run("go")


async def test_the_run_gets_the_deps_of_the_calling_agent():
    """What the caller passed as deps is what steps and stages see."""
    agent = Agent(calls("who", {"input": "cake"}), tools=[Who().as_tool()], deps_type=str)
    result = await agent.run("go", deps="Ann")
    assert returned(result.all_messages())[0].content == "cake for Ann"

    async def ask(ctx: RunContext[int]) -> str:
        return str(ctx.deps)

    agent = Agent(calls("who", {"input": "cake"}), tools=[Who().as_tool(), ask], deps_type=int)  # beside plain ones
    result = await agent.run("go", deps=3)
    assert returned(result.all_messages())[0].content == "cake for 3"


async def test_the_model_of_the_calling_agent_serves_where_none_is_set():
    """A runner's own model goes first; without one the caller's is used."""

    def both(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if info.function_tools and not returned(messages):
            return ModelResponse([ToolCallPart("say", {"input": "hi"})])
        return ModelResponse([TextPart("from the caller's model")])

    for runner, answer in ((None, "from the caller's model"), (Runner(says("own")), "own")):
        agent = Agent(FunctionModel(both), tools=[Say().as_tool(runner=runner)])
        assert returned((await agent.run("go")).all_messages())[0].content == answer


async def test_usage_is_added_to_the_calling_run():
    """Requests, tokens and dollars of the graph are part of what the agent used, also when the graph failed."""
    model, _ = priced("0.25", tokens=7)
    agent = Agent(calls("say", {"input": "a"}), tools=[Say().as_tool(runner=Runner(model))])
    usage = (await agent.run("go")).usage
    assert usage.requests == 3
    assert usage.input_tokens >= 7

    class Twice(Graph[str, str]):
        one = Stage(str, Agent(output_type=str))
        two = Stage(str, Agent(fails(RuntimeError("no")), output_type=str))

        async def flow(self, text: str) -> str:
            return await self.two(await self.one(text))

    spent = (await Agent(says("x")).run("x")).usage
    failing = Agent(calls("twice", {"input": "a"}), tools=[Twice().as_tool(runner=Runner(model))])
    with pytest.raises(RunError, match="two"):
        await failing.run("go", usage=spent)
    assert spent.requests == 3


async def test_a_failed_run_is_the_error_it_is():
    """The `RunError` with its record reaches whoever ran the agent."""
    tool = Say().as_tool(runner=Runner(fails(RuntimeError("the stove is cold"))))
    with pytest.raises(RunError, match=r"Say failed.*the stove is cold") as caught:
        await Agent(calls("say", {"input": "a"}), tools=[tool]).run("go")
    assert [call.key for call in caught.value.failures] == ["say"]


async def test_what_the_caller_may_spend_holds_for_the_graph():
    """Usage limits of the agent run reach into the graph; the runner's own still hold where they are lower."""
    model, prompts = priced("1", tokens=10)

    class Many(Graph[str, str]):
        say = Stage(str, Agent(output_type=str))

        async def flow(self, text: str) -> str:
            for _ in range(9):
                await self.say(text)
            return text

    def agent(**limits: object) -> Agent:
        runner = Runner(model, limits=Limits(**limits))  # type: ignore[arg-type]
        return Agent(calls("many", {"input": "a"}), tools=[Many().as_tool(runner=runner)])

    with pytest.raises(LimitError):
        await agent().run("go", usage_limits=UsageLimits(request_limit=4))
    assert len(prompts) == 3  # the agent's own request was the first
    prompts.clear()
    with pytest.raises(LimitError):
        await agent(requests=2).run("go", usage_limits=UsageLimits(request_limit=5))
    assert len(prompts) == 2
    prompts.clear()
    with pytest.raises(LimitError):
        await agent(usd=Decimal(3)).run("go")
    assert len(prompts) == 3


async def test_cancelling_the_agent_cancels_the_graph():
    """Nothing of the run is left behind."""
    before = others()
    gate = Turnstile()
    journal = MemoryJournal()
    agent = Agent(calls("say", {"input": "a"}), tools=[Say().as_tool(runner=Runner(gate.model, journal=journal))])
    task = asyncio.create_task(agent.run("go"))
    with anyio.fail_after(30):
        await gate.crowd(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert gate.inside == []
    assert [row.status for row in await journal.runs(RunFilter())] == ["cancelled"]
    assert others() == before


async def test_a_graph_whose_agent_calls_a_graph():
    """A stage's agent may have a graph as its tool: the inner run is a run of its own, paid for by the stage."""
    inner = Say().as_tool(runner=Runner(says("inner")))

    class Outer(Graph[str, str]):
        ask = Stage(str, Agent(calls("say", {"input": "x"}), output_type=str, tools=[inner]))

        async def flow(self, text: str) -> str:
            return await self.ask(text)

    run = await Outer().run("go")
    assert (run.output, run.usage.requests) == ("done", 3)


async def test_a_run_that_waits_defers_the_call():
    """The calling agent ends with a deferred call that names the run; its output is the call's result later."""
    runner = Runner(FunctionModel(deletes), journal=MemoryJournal())
    agent = Agent(
        calls("tidy", {"input": "a"}), output_type=[str, DeferredToolRequests], tools=[Tidy().as_tool(runner=runner)]
    )
    result = await agent.run("go")
    assert isinstance(result.output, DeferredToolRequests)
    (call,) = result.output.calls
    told = result.output.metadata[call.tool_call_id]
    run = await runner.resume(told["run_id"], graph=Tidy(), answers=dict.fromkeys(told["pending"], True))
    answers = DeferredToolResults(calls={call.tool_call_id: run.output})
    done = await agent.run(message_history=result.all_messages(), deferred_tool_results=answers)
    assert returned(done.new_messages())[0].content == "old.log is gone"


async def test_the_conversation_is_the_session_of_the_run():
    """Runs of one conversation are found together, with what the agent run was labelled."""
    runner = Runner(echo(), journal=MemoryJournal())
    agent = Agent(calls("say", {"input": "a"}), tools=[Say().as_tool(runner=runner)])
    result = await agent.run("go", conversation_id="talk", metadata={"shop": "shoes"})
    run = await runner.resume(returned(result.all_messages())[0].metadata["run_id"])
    assert (run.session_id, dict(run.metadata)) == ("talk", {"shop": "shoes"})
