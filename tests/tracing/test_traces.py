"""Runs as Langfuse traces: one observation a call, with Pydantic AI's spans inside those of the stages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import date
from decimal import Decimal

import anyio
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelRateLimitError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from traced_runs import Asks, Watch, below, meta, named, one, streaming, trace_id

from scripted import Turnstile, asked, echo, fails, priced, says
from stagegraph import Graph, RunError, Runner, Stage, as_completed, fan_out, gather, step

pytestmark = pytest.mark.anyio

INPUT, OUTPUT = "langfuse.observation.input", "langfuse.observation.output"


class Part(BaseModel):
    name: str
    due: date
    price: Decimal


@step
async def plan(text: str) -> list[str]:
    return [f"{text}{number}" for number in range(3)]


class Build(Graph[str, str]):
    code = Stage(str, Agent(name="coder"))
    test = Stage(str, Agent(name="tester"))

    async def flow(self, text: str) -> str:
        return await self.test(await self.code(text))


class Product(Graph[str, list[str]]):
    plan = plan
    build = Build()

    async def flow(self, text: str) -> list[str]:
        return await fan_out(self.build, await self.plan(text))


class Each(Graph[list[str], list[str]]):
    say = Stage(str, Agent(name="sayer"), retries=1)

    async def flow(self, texts: list[str]) -> list[str]:
        return await fan_out(self.say, texts)


class Rows(Graph[list[list[str]], list[list[str]]]):
    each = Each()

    async def flow(self, rows: list[list[str]]) -> list[list[str]]:
        return await fan_out(self.each, rows)


async def test_a_run_is_one_trace_with_one_observation_a_call(watch: Watch) -> None:
    """The trace has the id that Langfuse derives from the run's, and its tree is that of the calls."""
    run = await Runner(echo(), tracing=watch.tracing()).run(Product(), "t")
    spans = await watch.trace(run)
    coder, tester = (
        (f"stage:build.{stage}", [(f"invoke_agent {name}", ["chat function:answer:"])])
        for stage, name in (("code", "coder"), ("test", "tester"))
    )
    assert await watch.tree(run) == [("Product", ["step:plan", *[("graph:build", [coder, tester])] * 3])]
    assert {span.trace_id for span in watch.server.spans} == {trace_id(run)}
    assert len({span.span_id for span in spans}) == len(spans)
    types = {span.name: span.type for span in spans}
    assert types["Product"] == types["graph:build"] == "chain"
    assert (types["step:plan"], types["stage:build.code"]) == ("tool", "agent")
    assert all(span.end >= span.start for span in spans)


async def test_metadata_tells_which_call_it_was(watch: Watch) -> None:
    """Path, key and the place in the fan-out are told, also of the calls inside a branch."""
    run = await Runner(echo(), tracing=watch.tracing()).run(Product(), "t")
    told = {meta(span)["key"]: meta(span) for span in await watch.trace(run) if span.type}
    assert set(told) == {call.key for call in run.root.walk()}
    assert told["build[2].code"].items() >= {"path": "build.code", "fan_out_index": 2, "fan_out_size": 3}.items()
    assert told["build[1]"].items() >= {"path": "build", "fan_out_index": 1, "fan_out_size": 3}.items()
    assert all(one["run_id"] == run.id for one in told.values())
    assert "fan_out_index" not in told["plan"]
    assert "status" not in told["plan"]


async def test_contents_are_json_by_their_types(watch: Watch) -> None:
    """Inputs and outputs are what the declared types make of them, not text around it."""

    @step
    async def double(part: Part) -> list[Part]:
        return [part, part]

    part = Part(name="é", due=date(2026, 1, 2), price=Decimal("1.50"))
    run = await Runner(tracing=watch.tracing()).run(double, part)
    (span,) = await watch.trace(run)
    data = {"name": "é", "due": "2026-01-02", "price": "1.50"}
    assert (span.name, span.type, span.parent_id) == ("step:double", "tool", None)
    assert json.loads(span.attributes[INPUT]) == data
    assert json.loads(span.attributes[OUTPUT]) == [data, data]


async def test_long_contents_are_cut_and_flagged(watch: Watch) -> None:
    """What is longer than the cap is cut at a character, and the metadata says how long it was."""
    long, short = "é" * 400, "e" * 10
    run = await Runner(echo(), tracing=watch.tracing(max_content=300)).run(Each(), [long, short])
    spans = await watch.trace(run)
    first, second = named(spans, "stage:say")
    assert len(first.attributes[OUTPUT].encode()) in {299, 300}
    assert meta(first)["output_truncated"] == meta(first)["input_truncated"] == 802
    assert "output_truncated" not in meta(second)
    chats = [span for span in spans if span.name.startswith("chat")]
    assert sorted("messages_truncated" in meta(span) for span in chats) == [False, True]
    assert all(len(value.encode()) <= 300 for span in spans for value in span.attributes.values() if type(value) is str)


async def test_the_cap_is_a_quarter_of_a_megabyte_by_itself(watch: Watch) -> None:
    """Without a word about it, 256 kB of an input are sent."""
    run = await Runner(echo(), tracing=watch.tracing()).run(plan, "x" * 300_000)
    (span,) = await watch.trace(run)
    assert len(span.attributes[INPUT]) == 256_000
    assert meta(span)["input_truncated"] == 300_002


async def test_a_failure_is_an_error_and_its_siblings_a_warning(watch: Watch) -> None:
    """The failed call and all above it say why; what was cancelled with it says so."""

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        raise ValueError("no luck with " + asked(messages))

    @step
    async def wait_for_ever(_text: str) -> None:
        await anyio.sleep_forever()

    class Two(Graph[str, tuple[str, None]]):
        say = Stage(str, Agent(FunctionModel(answer)))

        wait = wait_for_ever

        async def flow(self, text: str) -> tuple[str, None]:
            return await gather(self.say(text), self.wait(text))

    with pytest.raises(RunError) as caught:
        await Runner(tracing=watch.tracing()).run(Two(), "you")
    rows = {row["name"]: row for row in await watch.rows(caught.value.run)}
    for name in ("Two", "stage:say", "say run"):
        assert rows[name]["level"] == "ERROR"
        assert "no luck with you" in rows[name]["statusMessage"]
    assert (rows["step:wait"]["level"], rows["step:wait"]["statusMessage"]) == ("WARNING", "cancelled")
    assert rows["Two"]["output"] is None


async def test_a_retry_is_visible(watch: Watch) -> None:
    """Each attempt is an agent run of its own below the call, and the call says how many there were."""
    busy = ModelRateLimitError("m", "slow down", retry_after=0)
    run = await Runner(fails(busy), tracing=watch.tracing()).run(Each(), ["a"])
    spans = await watch.trace(run)
    stage = one(spans, "stage:say")
    assert meta(stage)["attempts"] == 2
    assert "langfuse.observation.level" not in stage.attributes
    attempts = below(spans, stage)
    assert [span.name for span in attempts] == ["invoke_agent sayer"] * 2
    assert [span.status[0] for span in attempts] == [2, 0]
    assert [len(below(spans, span)) for span in attempts] == [1, 1]


async def test_fifty_at_once_keep_their_own_spans(watch: Watch) -> None:
    """However many agents run at the same time, each one's spans stand under its own call."""
    gate = Turnstile()
    async with Runner(gate.model, tracing=watch.tracing()) as runner:
        live = runner.start(Each(), [f"word-{number}!" for number in range(50)])
        await gate.crowd(50)
        gate.open()
        run = await live.result()
    spans = await watch.trace(run)
    stages = named(spans, "stage:say")
    assert len(stages) == 50
    for stage in stages:
        (agent,) = below(spans, stage)
        (chat,) = below(spans, agent)
        word = json.loads(stage.attributes[INPUT])
        assert word in agent.attributes["pydantic_ai.all_messages"]
        assert word in chat.attributes["gen_ai.input.messages"]
        assert json.loads(stage.attributes[OUTPUT]) == word
        assert stage.start <= agent.start <= chat.start <= chat.end <= agent.end <= stage.end + 1_000_000


async def test_nested_fan_outs_have_their_own_places(watch: Watch) -> None:
    """A call says its place in the fan-out right around it, and stands below its own branch."""
    run = await Runner(echo(), tracing=watch.tracing()).run(Rows(), [["a", "b"], ["c"]])
    spans = await watch.trace(run)
    places = {meta(span)["key"]: span for span in spans if span.type}
    told = {key: (meta(span).get("fan_out_index"), meta(span).get("fan_out_size")) for key, span in places.items()}
    assert told == {
        "": (None, None),
        "each[0]": (0, 2),
        "each[1]": (1, 2),
        "each[0].say[0]": (0, 2),
        "each[0].say[1]": (1, 2),
        "each[1].say[0]": (0, 1),
    }
    assert places["each[1].say[0]"].parent_id == places["each[1]"].span_id


async def test_a_single_stage_is_a_trace_too(watch: Watch) -> None:
    """What is run without a graph around it is the root observation itself."""
    run = await Runner(echo(), tracing=watch.tracing()).run(Build.code, "x")
    root, agent, chat = await watch.trace(run)
    assert (root.name, root.type, root.parent_id) == ("stage:code", "agent", None)
    assert (agent.parent_id, chat.parent_id) == (root.span_id, agent.span_id)


async def test_runs_inside_runs_are_traces_of_their_own(watch: Watch) -> None:
    """A step or a tool that runs another graph does not get that graph's spans, nor the other way round."""
    tracing = watch.tracing()
    inner = Runner(says("inside"), tracing=tracing)
    ids: list[str] = []

    async def ask(text: str) -> str:
        found = await inner.run(Build(), text)
        ids.append(found.id)
        return found.output

    helper = Agent(name="helper")
    helper.tool_plain(ask, name="ask")

    class Outer(Graph[str, str]):
        look = step(ask)
        say = Stage(str, helper)

        async def flow(self, text: str) -> str:
            return await self.say(await self.look(text))

    run = await Runner(TestModel(), tracing=tracing).run(Outer(), "x")
    answers = ("invoke_agent coder", ["chat function:answer:"]), ("invoke_agent tester", ["chat function:answer:"])
    build = [("Build", [("stage:code", [answers[0]]), ("stage:test", [answers[1]])])]
    assert [await watch.tree(found) for found in ids] == [build, build]
    steps = ["chat test", "execute_tool ask", "chat test"]
    assert await watch.tree(run) == [("Outer", ["step:look", ("stage:say", [("invoke_agent helper", steps)])])]


async def test_usage_and_cost_are_counted_once(watch: Watch) -> None:
    """The generations of a trace add up to what the run spent, and nothing else has usage."""
    model, _ = priced("0.25", tokens=7)
    run = await Runner(model, tracing=watch.tracing()).run(Product(), "t")
    rows = await watch.rows(run)
    spent = [row for row in rows if row["type"] == "GENERATION"]
    assert len(spent) == run.usage.requests == 6
    assert sum(row["usageDetails"].get("input", 0) for row in spent) == run.usage.input_tokens
    assert sum(row["usageDetails"]["total"] for row in spent) == run.usage.input_tokens + run.usage.output_tokens
    assert sum(Decimal(str(row["totalCost"])) for row in spent) == run.cost == Decimal("1.50")
    assert all(not row["usageDetails"] and row["totalCost"] is None for row in rows if row not in spent)


async def test_every_observation_carries_the_labels(watch: Watch) -> None:
    """Session, user, tags, version, environment, release and the trace's name stand on Pydantic AI's spans, too."""
    tracing = watch.tracing(environment="staging", release="r7")
    run = await Runner(TestModel(), tracing=tracing).run(
        Product(), "t", session_id="s", user_id="u", tags=("a", "b"), metadata={"team": {"id": 7}}
    )
    rows = await watch.rows(run)
    assert len(rows) == 1 + 1 + 3 * (1 + 2 * 3)
    for row in rows:
        assert (row["sessionId"], row["userId"], row["tags"]) == ("s", "u", ["a", "b"])
        assert (row["environment"], row["release"], row["traceName"]) == ("staging", "r7", "Product")
        assert row["version"] == run.prompts_digest
        assert row["metadata"]["team"] == {"id": 7}
    assert [row["name"] for row in rows if row["isRootObservation"]] == ["Product"]


async def test_without_labels_there_are_none(watch: Watch) -> None:
    """A run that nobody labelled has no session that would be shared with others."""
    run = await Runner(TestModel(), tracing=watch.tracing()).run(Build(), "t")
    rows = await watch.rows(run)
    assert {(row["userId"], *row["tags"]) for row in rows} == {(None,)}
    assert {row["sessionId"] for row in rows} == {None}


async def test_streams_end_where_they_began(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    """Streamed answers and items that come one by one leave no span open and no context behind."""

    async def items() -> AsyncIterator[str]:
        for word in ("one two", "three four"):
            await anyio.lowlevel.checkpoint()
            yield word

    class Stream(Graph[str, list[str]]):
        say = Stage(str, Agent(name="sayer"))

        async def flow(self, _text: str) -> list[str]:
            async with as_completed(self.say, items()) as outcomes:
                return [outcome.value async for outcome in outcomes]

    live = Runner(streaming(), tracing=watch.tracing()).start(Stream(), "x", deltas=True)
    texts = [event.text async for event in live.events() if event.type == "text_delta"]
    run = await live.result()
    assert sorted(run.output) == ["one two ", "three four "]
    assert len(texts) == 4
    spans = await watch.trace(run)
    say = ("stage:say", [("invoke_agent sayer", ["chat function::answer"])])
    assert await watch.tree(run) == [("Stream", [say, say])]
    assert [meta(span)["fan_out_index"] for span in named(spans, "stage:say")] == [0, 1]
    assert "Context" not in caplog.text
    assert caplog.records == []


async def test_a_graph_that_a_tool_calls_is_in_the_trace_of_its_run(watch: Watch) -> None:
    """Its observations are below the calling stage, with the run's user and session."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if info.function_tools and len(messages) == 1:
            return ModelResponse([ToolCallPart("build", {"input": "t"}, tool_call_id="c1")])
        return ModelResponse([TextPart("done")])

    runner = Runner(FunctionModel(answer), tracing=watch.tracing())
    run = await runner.run(Asks(Agent(name="asker", tools=[Build().as_tool()])), "t", user_id="ann", session_id="talk")
    spans = await watch.trace(run)
    inner = one(spans, "stage:ask.build.code")
    graph = one(spans, "graph:ask.build")
    assert inner in below(spans, graph)
    assert graph in below(spans, one(spans, "stage:ask"))
    assert meta(inner)["key"] == "ask.build[c1].code"
    assert {(span.attributes["user.id"], span.attributes["session.id"]) for span in spans} == {("ann", "talk")}
    assert len(named(spans, "chat function:answer:")) == 4
