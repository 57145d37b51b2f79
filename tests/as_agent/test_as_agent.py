"""A graph as a Pydantic AI agent, and in the front ends that take one."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass

import anyio
import httpx
import pytest
from pydantic import BaseModel
from pydantic_ai import (
    Agent,
    BinaryContent,
    CancellationToken,
    DeferredToolRequests,
    DeferredToolResults,
    FunctionToolset,
    ToolDenied,
)
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.exceptions import RunCancelled, RunTimedOut, UserError
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    PartStartEvent,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.run import AgentRunResultEvent
from pydantic_ai.ui.vercel_ai import VercelAIAdapter
from pydantic_ai.usage import UsageLimits
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import scripted
from scripted import Say, Still, Turnstile, Who, deletes, echo, fails, others, priced, says, shows
from stagegraph import (
    DeclarationError,
    Graph,
    InputError,
    LimitError,
    Limits,
    ReplayError,
    RunError,
    Runner,
    Stage,
    fan_out,
    step,
)
from stagegraph.journal import MemoryJournal, RunFilter


class Question(BaseModel):
    text: str


class Answer(BaseModel):
    words: list[str]
    count: int


@step
async def count(words: list[str]) -> int:
    return len(words)


class Shout(Graph[Question, Answer]):
    """Shouts every word."""

    shout = Stage(str, Agent(output_type=str))
    count = count

    async def flow(self, question: Question) -> Answer:
        words = await fan_out(self.shout, question.text.split())
        return Answer(words=words, count=await self.count(words))


@pytest.fixture
def own_loop() -> Iterator[None]:
    """The loop that Pydantic AI's blocking doors take, closed when the test is over."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
    asyncio.set_event_loop(None)


async def settled(before: set[asyncio.Task[object]]) -> None:
    """Wait until no other tasks are alive than those; Pydantic AI lets some of its own end a little later."""
    with anyio.fail_after(30):
        while others() - before:
            await anyio.lowlevel.checkpoint()


def shouting() -> Agent[object, Answer]:
    return Shout().as_agent(runner=Runner(echo(str.upper)))


def shown(messages: list[ModelMessage]) -> list[tuple[str, str]]:
    """Stage and step calls as they stand in the messages: which began, and how they ended."""
    parts = [part for message in messages if isinstance(message, ModelResponse) for part in message.parts]
    found: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, NativeToolCallPart):
            found.append((part.args_as_dict()["call"], "began"))
        elif isinstance(part, NativeToolReturnPart):
            found.append((part.tool_call_id.partition(":")[2], part.content["status"]))
    return found


async def test_a_graph_runs_as_an_agent():
    """`run` gives the graph's own output object, its usage, and messages that tell which stages ran."""
    agent = shouting()
    assert isinstance(agent, AbstractAgent)
    assert (agent.name, agent.description) == ("shout", "Shouts every word.")
    result = await agent.run("a b")
    assert result.output == Answer(words=["A", "B"], count=2)
    assert result.usage.requests == 2
    request, response = result.all_messages()
    assert isinstance(request, ModelRequest)
    assert isinstance(response, ModelResponse)
    assert json.loads(response.text or "") == {"words": ["A", "B"], "count": 2}
    calls = shown(result.all_messages())
    assert sorted(calls) == sorted(
        [(key, how) for key in ("shout[0]", "shout[1]", "count") for how in ("began", "succeeded")]
    )
    assert calls[-2:] == [("count", "began"), ("count", "succeeded")]


async def test_messages_hold_nothing_that_went_in_or_out_of_a_stage():
    """Front ends show messages to people: a stage's data is not in them, only that it ran."""

    class Secret(Graph[str, str]):
        say = Stage(str, Agent(output_type=str, instructions="hidden words"))

        async def flow(self, text: str) -> str:
            return str(len(await self.say("inner words")))

    result = await Secret().as_agent(runner=Runner(echo())).run("hello")
    told = result.all_messages_json().decode()
    assert "hello" in told
    assert "hidden words" not in told
    assert "inner words" not in told


@pytest.mark.usefixtures("own_loop")
def test_run_sync_works_without_a_running_event_loop():
    """The agent's blocking door is there as well."""
    assert shouting().run_sync("a").output.words == ["A"]


async def test_events_come_while_the_graph_runs():
    """A stage is shown when it begins, long before it ends; the result comes last."""
    gate = Turnstile()
    seen: list[object] = []
    with anyio.fail_after(30):
        async with Say().as_agent(runner=Runner(gate.model)).run_stream_events("hi") as events:
            async for event in events:
                seen.append(event)
                if isinstance(event, PartStartEvent) and isinstance(event.part, NativeToolCallPart):
                    assert event.part.tool_name == "say"
                    await gate.crowd(1)
                    gate.open()
    kinds = [type(event.part) for event in seen if isinstance(event, PartStartEvent)]
    assert kinds == [NativeToolCallPart, NativeToolReturnPart, TextPart]
    assert isinstance(seen[-1], AgentRunResultEvent)
    assert seen[-1].result.output == "hi"


async def test_run_stream_and_iter_give_the_same():
    """The other doors of an agent give the typed output and the usage as well."""
    async with shouting().run_stream("a b") as stream:
        assert await stream.get_output() == Answer(words=["A", "B"], count=2)
    assert stream.usage.requests == 2
    async with Say().as_agent(runner=Runner(says("x"))).run_stream("a") as stream:
        assert [text async for text in stream.stream_text()] == ["x"]
    async with shouting().iter("a") as run:
        nodes = [type(node).__name__ async for node in run]
    assert nodes == ["UserPromptNode", "ModelRequestNode", "CallToolsNode", "End"]
    assert run.result is not None
    assert run.result.output.count == 1


class Maybe(BaseModel):
    text: str = "nothing"
    times: int = 1


class Two(BaseModel):
    title: str
    text: str


@dataclass
class Plain:
    text: str | None
    loud: bool = False


class GiveText(Still):
    """Nothing else."""


@pytest.mark.parametrize(
    ("graph", "prompt", "output"),
    [
        (GiveText(), '{"not": "read"}', '{"not": "read"}'),
        (GiveText(), ["a", "b"], "a\nb"),
        (shows(Maybe), "hello", "Maybe(text='hello', times=1)"),
        (shows(Maybe), '{"text": "hello", "times": 2}', "Maybe(text='hello', times=2)"),
        (shows(Maybe), "[1]", "Maybe(text='[1]', times=1)"),
        (shows(Two), '{"title": "a", "text": "b"}', "Two(title='a', text='b')"),
        (shows(Plain), "hello", "Plain(text='hello', loud=False)"),
        (shows(Plain), '{"text": null, "loud": true}', "Plain(text=None, loud=True)"),
        (shows(list[int]), "[1, 2]", "[1, 2]"),
        (shows(Maybe | int | None), "3", "3"),
        (shows(Maybe | int | None), "null", "None"),
    ],
)
async def test_the_prompt_becomes_the_input(graph: Graph, prompt: str | list[str], output: str):
    """Text is taken as it is, read as JSON, or put into the one field that is meant for it."""
    assert (await graph.as_agent().run(prompt)).output == output


@pytest.mark.parametrize(
    ("graph", "prompt", "said"),
    [
        (shows(Two), "hello", "Shows takes Two: write it as JSON"),
        (shows(Two), '{"title": "a"}', "text: Field required"),
        (shows(list[int]), "hello", "Shows takes list"),
        (GiveText(), [BinaryContent(b"x", media_type="image/png")], "cannot be given files"),
        (GiveText(), None, "no user prompt"),
    ],
)
async def test_a_prompt_that_is_no_input_is_a_clear_error(graph: Graph, prompt: str | None, said: str):
    """The person who wrote it is told what the graph takes."""
    history = [ModelRequest([UserPromptPart("a")]), ModelResponse([TextPart("b")])] if prompt is None else None
    with pytest.raises((InputError, UserError), match=said):
        await graph.as_agent().run(prompt, message_history=history, instructions="x" if prompt is None else None)


class Talk(BaseModel):
    text: str
    before: list[ModelMessage] = []


class Remember(Graph[Talk, str]):
    async def flow(self, talk: Talk) -> str:
        prompts = [part.content for m in talk.before for part in m.parts if isinstance(part, UserPromptPart)]
        return f"{prompts} {talk.text}"


async def test_only_the_newest_prompt_is_the_input():
    """What was said before is kept in the messages; an input may ask for it with a field `list[ModelMessage]`."""
    agent = GiveText().as_agent()
    first = await agent.run("one")
    second = await agent.run("two", message_history=first.all_messages())
    assert second.output == "two"
    assert len(second.all_messages()) == 4
    again = ModelMessagesTypeAdapter.validate_json(second.all_messages_json())
    assert (await agent.run("three", message_history=again)).output == "three"
    agent = Remember().as_agent()
    first = await agent.run("one")
    assert first.output == "[] one"
    assert (await agent.run('{"text": "two"}', message_history=first.all_messages())).output == "['one'] two"


async def test_the_agent_run_has_deps_and_a_model():
    """They go before the runner's and reach the graph and its stages, and so does what `override` puts in their place."""
    agent = Who().as_agent()
    assert (await agent.run("cake", deps="Ann")).output == "cake for Ann"
    with agent.override(deps="Bob"):
        assert (await agent.run("cake", deps="Ann")).output == "cake for Bob"
    agent = Say().as_agent(runner=Runner(says("runner's")))
    assert (await agent.run("a")).output == "runner's"
    assert (await agent.run("a", model=says("given"))).output == "given"
    with agent.override(model=says("overridden")):
        assert (await agent.run("a")).output == "overridden"
    with pytest.raises(RunError, match="no model is set"):
        await Say().as_agent().run("a")


async def test_the_output_type_is_the_graphs_own():
    """Another one is a mistake, not a silent loss; tools of a front end are left aside; a stage around it could block."""
    with pytest.raises(UserError, match="Shout gives Answer; a run cannot have another `output_type`"):
        await shouting().run("a", output_type=int)
    toolset = FunctionToolset([lambda: 1])  # type: ignore[list-item]
    assert (await shouting().run("a", toolsets=[toolset])).output.count == 1
    with pytest.raises(DeclarationError, match="declare the graph itself as a node"):
        Stage(str, Say().as_agent())


async def test_outputs_without_text_are_no_reason_to_ask_again():
    """An empty text and `None` are outputs like any other; the graph runs once."""
    model, prompts = priced()

    class Empty(Graph[str, str]):
        say = Stage(str, Agent(output_type=str))

        async def flow(self, text: str) -> str:
            await self.say(text)
            return ""

    class Nothing(Graph[str, None]):
        async def flow(self, text: str) -> None:
            return None

    result = await Empty().as_agent(runner=Runner(model)).run("a")
    assert (result.output, prompts) == ("", ["a"])
    assert (await Nothing().as_agent().run("a")).output is None


async def test_a_failed_run_is_the_error_it_is_and_is_paid_for():
    """The `RunError` has the record; what was used until then is in the usage."""
    usage = (await Agent(says("x")).run("x")).usage

    class Twice(Graph[str, str]):
        one = Stage(str, Agent(says("x"), output_type=str))
        two = Stage(str, Agent(fails(RuntimeError("the stove is cold")), output_type=str))

        async def flow(self, text: str) -> str:
            return await self.two(await self.one(text))

    with pytest.raises(RunError, match="the stove is cold") as caught:
        await Twice().as_agent().run("a", usage=usage)
    assert [call.key for call in caught.value.failures] == ["two"]
    assert usage.requests == 2


async def test_usage_limits_of_the_agent_run_hold_for_the_graph():
    """The lower of the caller's and the runner's limits holds."""
    model, prompts = priced()
    with pytest.raises(LimitError):
        await Shout().as_agent(runner=Runner(model)).run("a b c", usage_limits=UsageLimits(request_limit=2))
    assert len(prompts) == 2
    prompts.clear()
    with pytest.raises(LimitError):
        await Shout().as_agent(runner=Runner(model, limits=Limits(requests=1))).run("a b c")
    assert len(prompts) == 1
    wide = await Shout().as_agent(runner=Runner(model)).run(" ".join("a" * 70))
    assert wide.usage.requests == 70
    assert len([key for key, how in shown(wide.all_messages()) if how == "began"]) == 51


async def test_leaving_ends_the_run():
    """Cancelling, Pydantic AI's token, a time limit, and walking out of a stream leave no task and no request behind."""
    before = others()
    gate, journal = Turnstile(), MemoryJournal()
    agent = Say().as_agent(runner=Runner(gate.model, journal=journal))
    with anyio.fail_after(30):
        task = asyncio.create_task(agent.run("a"))
        await gate.crowd(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with agent.run_stream_events("a") as events:
            async for _ in events:
                await gate.crowd(1)
                break
        token = CancellationToken()
        task = asyncio.create_task(agent.run("a", cancellation_token=token))
        await gate.crowd(1)
        token.cancel()
        with pytest.raises(RunCancelled):
            await task
        assert {row.status for row in await journal.runs(RunFilter())} == {"cancelled"}
        with pytest.raises(RunTimedOut):
            await agent.run("a", timeout=0.01)
    assert gate.inside == []
    # A time limit also holds for the agents inside, and it may be theirs that is noticed first.
    assert {row.status for row in await journal.runs(RunFilter())} <= {"cancelled", "failed"}
    await settled(before)


async def test_one_agent_serves_many_runs_at_once():
    """Runs of one agent do not see each other's outputs or usage."""
    agent = Shout().as_agent(runner=Runner(echo(str.upper), max_concurrency=4))
    results = await asyncio.gather(*(agent.run(f"a{number} b") for number in range(20)))
    assert [result.output.words[0] for result in results] == [f"A{number}" for number in range(20)]
    assert {result.usage.requests for result in results} == {2}


async def test_the_conversation_is_the_session_of_its_runs():
    """Runs of one conversation are found together; the answer says which run gave it."""
    runner = Runner(echo(), journal=MemoryJournal())
    agent = Say().as_agent(runner=runner)
    first = await agent.run("one")
    second = await agent.run("two", message_history=first.all_messages())
    runs = [await runner.resume(result.response.provider_response_id or "") for result in (first, second)]
    assert [run.output for run in runs] == ["one", "two"]
    assert runs[0].session_id == runs[1].session_id == first.conversation_id


class Tidy(scripted.Tidy):
    plan = Stage(str, Agent(output_type=str))

    async def flow(self, text: str) -> str:
        return await self.clean(await self.plan(text))


@pytest.mark.parametrize(("answer", "output"), [(True, "old.log is gone"), (ToolDenied("keep it"), "keep it")])
async def test_a_run_that_asks_goes_on_with_the_answer(answer: bool | ToolDenied, output: str):
    """With `asks=True` a suspended run is a deferred tool call; the answer resumes it, and nothing runs or counts twice."""
    runner = Runner(FunctionModel(deletes), journal=MemoryJournal())
    agent = Tidy().as_agent(runner=runner, asks=True)
    first = await agent.run("go")
    assert isinstance(first.output, DeferredToolRequests)
    (call,) = first.output.approvals
    given = {"call": "clean", "tool": "delete", "args": {"path": "old.log"}}
    assert (call.tool_name, call.args_as_dict()) == ("approve_call", given)
    ran = [("plan", "began"), ("plan", "succeeded"), ("clean", "began"), ("clean", "suspended")]
    assert shown(first.all_messages()) == ran
    again = ModelMessagesTypeAdapter.validate_json(first.all_messages_json())
    answers = DeferredToolResults(approvals={call.tool_call_id: answer})
    other = Tidy().as_agent(runner=Runner(FunctionModel(deletes), journal=runner.journal), asks=True)
    second = await other.run(message_history=again, deferred_tool_results=answers)
    assert second.output == output
    assert shown(second.new_messages()) == [("clean", "began"), ("clean", "succeeded")]
    assert (first.usage.requests, second.usage.requests) == (2, 1)


async def test_answers_count_only_from_who_began_the_run():
    """With `user=`, a run belongs to somebody: another user's answer is told what a made-up run is told."""
    runner = Runner(FunctionModel(deletes), journal=MemoryJournal())
    agent = Tidy().as_agent(runner=runner, asks=True, user=lambda ctx: ctx.deps)
    first = await agent.run("go", deps="anna")
    assert isinstance(first.output, DeferredToolRequests)
    (call,) = first.output.approvals
    answers = DeferredToolResults(approvals={call.tool_call_id: True})
    unbound = Tidy().as_agent(runner=runner, asks=True)
    for other, deps in ((agent, "ben"), (agent, None), (unbound, "anna")):
        with pytest.raises(ReplayError, match="there is no run"):
            await other.run(message_history=first.all_messages(), deferred_tool_results=answers, deps=deps)
    [row] = await runner.journal.runs(RunFilter())
    assert (row.status, json.loads(row.labels)["user_id"]) == ("suspended", "anna")
    second = await agent.run(message_history=first.all_messages(), deferred_tool_results=answers, deps="anna")
    assert second.output == "old.log is gone"


async def test_an_external_tool_is_answered_by_its_result():
    """What a tool outside the process gave goes to the stage that waits for it."""
    from pydantic_ai import ExternalToolset
    from pydantic_ai.tools import ToolDefinition

    weather = ToolDefinition(name="weather", parameters_json_schema={"type": "object", "properties": {}})

    def asks(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        results = [part for m in messages for part in m.parts if isinstance(part, ToolReturnPart)]
        return ModelResponse([TextPart(f"it is {results[-1].content}") if results else ToolCallPart("weather", {})])

    class Outside(Graph[str, str]):
        say = Stage(str, Agent(output_type=[str, DeferredToolRequests], toolsets=[ExternalToolset([weather])]))

        async def flow(self, text: str) -> str:
            return await self.say(text)

    agent = Outside().as_agent(runner=Runner(FunctionModel(asks), journal=MemoryJournal()), asks=True)
    first = await agent.run("go")
    assert isinstance(first.output, DeferredToolRequests)
    (call,) = first.output.calls
    answers = DeferredToolResults(calls={call.tool_call_id: "sunny"})
    second = await agent.run(message_history=first.all_messages(), deferred_tool_results=answers)
    assert second.output == "it is sunny"


async def test_without_asks_a_question_is_a_clear_error():
    """The error says how to answer; asking needs a journal."""
    runner = Runner(FunctionModel(deletes), journal=MemoryJournal())
    with pytest.raises(RunError, match=r"waits for clean:.*as_agent\(asks=True\)") as caught:
        await Tidy().as_agent(runner=runner).run("go")
    run = await runner.resume(caught.value.run.id, answers={caught.value.run.pending[0].id: True})
    assert run.output == "old.log is gone"
    with pytest.raises(DeclarationError, match="journal"):
        Tidy().as_agent(runner=Runner(), asks=True)


def vercel_body(*messages: dict[str, object]) -> dict[str, object]:
    return {"trigger": "submit-message", "id": "chat", "messages": list(messages)}


def user(text: str, name: str = "u1") -> dict[str, object]:
    return {"id": name, "role": "user", "parts": [{"type": "text", "text": text}]}


def chunks(text: str) -> list[dict[str, object]]:
    """The events of a Vercel AI data stream."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def streamed(events: list[dict[str, object]]) -> str:
    """The text that they bring piece by piece."""
    return "".join(str(event["delta"]) for event in events if event["type"] == "text-delta")


def served(agent: AbstractAgent[object, object], **options: object) -> httpx.AsyncClient:
    """The agent behind Pydantic AI's Vercel AI adapter."""

    async def chat(request: Request) -> Response:
        return await VercelAIAdapter.dispatch_request(request, agent=agent, sdk_version=6, **options)  # type: ignore[arg-type]

    app = Starlette(routes=[Route("/chat", chat, methods=["POST"])])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_the_vercel_adapter_streams_stages_and_the_answer():
    """Each call is a tool part that begins and ends, then comes the output as text."""
    async with served(shouting()) as client:
        answer = await client.post("/chat", json=vercel_body(user("a b")))
    assert answer.status_code == 200
    events = chunks(answer.text)
    begun = [event for event in events if event["type"] == "tool-input-start"]
    assert [event["toolName"] for event in begun] == ["shout", "shout", "count"]
    ended = [event for event in events if event["type"] == "tool-output-available"]
    assert {event["toolCallId"] for event in ended} == {event["toolCallId"] for event in begun}
    assert all(event["output"]["status"] == "succeeded" for event in ended)  # type: ignore[index]
    assert json.loads(streamed(events)) == {"words": ["A", "B"], "count": 2}
    assert events[-1]["type"] == "finish"


async def test_the_vercel_adapter_takes_its_own_history_back():
    """A second turn of a chat, with the first one's tool parts in it, works like the first."""
    agent = GiveText().as_agent()
    echoing = Say().as_agent(runner=Runner(echo()))
    first = await echoing.run("one")
    dumped = [json.loads(m.model_dump_json(by_alias=True)) for m in VercelAIAdapter.dump_messages(first.all_messages())]
    for target in (agent, echoing):
        async with served(target) as client:
            answer = await client.post("/chat", json=vercel_body(*dumped, user("two", "u2")))
        assert streamed(chunks(answer.text)) == "two"


async def test_the_vercel_adapter_tells_of_a_failure():
    """A stage that fails is a failed tool part, and the run's error ends the stream."""
    async with served(Say().as_agent(runner=Runner(fails(RuntimeError("cold stove"))))) as client:
        events = chunks((await client.post("/chat", json=vercel_body(user("a")))).text)
    kinds = [event["type"] for event in events]
    assert "tool-output-error" in kinds
    assert "error" in kinds


async def test_the_vercel_adapter_lets_a_person_decide():
    """The approval request is shown with its arguments; the person's answer, sent back by the client, resumes the run."""
    runner = Runner(FunctionModel(deletes), journal=MemoryJournal())
    agent = Tidy().as_agent(runner=runner, asks=True)
    async with served(agent) as client:
        events = chunks((await client.post("/chat", json=vercel_body(user("go")))).text)
        (asked,) = [event for event in events if event["type"] == "tool-approval-request"]
        inputs = {event["toolCallId"]: event for event in events if event["type"] == "tool-input-available"}
        given = inputs[asked["toolCallId"]]
        assert given["input"] == {"call": "clean", "tool": "delete", "args": {"path": "old.log"}}
        approved = {
            "type": "tool-approve_call",
            "toolCallId": asked["toolCallId"],
            "state": "approval-responded",
            "input": given["input"],
            "approval": {"id": asked["approvalId"], "approved": True},
        }
        assistant = {"id": "a1", "role": "assistant", "parts": [approved]}
        events = chunks((await client.post("/chat", json=vercel_body(user("go"), assistant))).text)
    assert streamed(events) == "old.log is gone"


async def test_the_web_chat_takes_a_graph():
    """`to_web()` serves it: its models are the graph and those that may serve its stages."""
    app = Say().as_agent(runner=Runner(says("runner's"))).to_web(models={"Other": says("other's")})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        models = (await client.get("/api/configure")).json()["models"]
        assert models[0]["id"] == "stagegraph:Say"
        for model, text in zip(models, ("runner's", "other's"), strict=True):
            body = {**vercel_body(user("a")), "model": model["id"]}
            events = chunks((await client.post("/api/chat", json=body)).text)
            assert streamed(events) == text


@pytest.mark.skipif(importlib.util.find_spec("ag_ui") is None, reason="ag-ui-protocol is not installed")
async def test_the_ag_ui_adapter_streams_stages_and_the_answer():
    """Each call is an AG-UI tool call with its result, then comes the output as a text message."""
    from ag_ui.core import RunAgentInput, UserMessage  # type: ignore[import-not-found]
    from pydantic_ai.ui.ag_ui import AGUIAdapter

    message = UserMessage(id="u1", role="user", content="a b")
    given = RunAgentInput(
        thread_id="t", run_id="r", state=None, messages=[message], tools=[], context=[], forwarded_props=None
    )
    events = [event async for event in AGUIAdapter(agent=shouting(), run_input=given).run_stream()]
    kinds = [str(event.type.value) for event in events]
    assert kinds.count("TOOL_CALL_START") == kinds.count("TOOL_CALL_RESULT") == 3
    text = "".join(event.delta for event in events if event.type.value == "TEXT_MESSAGE_CONTENT")
    assert json.loads(text) == {"words": ["A", "B"], "count": 2}


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("prompt_toolkit", "argcomplete", "pyperclip")),
    reason="the CLI's packages are not installed",
)
async def test_the_cli_takes_a_graph(capsys: pytest.CaptureFixture[str]):
    """One turn of `to_cli()` prints the answer."""
    from pydantic_ai._cli import ask_agent
    from rich.console import Console

    for stream in (True, False):
        await ask_agent(Say().as_agent(runner=Runner(says("shoes"))), "a", stream, Console(), "ansi_dark")
    assert capsys.readouterr().out.count("shoes") >= 2
