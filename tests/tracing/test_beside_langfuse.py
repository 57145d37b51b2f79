"""Beside a host that follows Langfuse's page: `get_client()`, `Agent.instrument_all()`, `propagate_attributes()`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from langfuse import Langfuse, propagate_attributes
from langfuse_server import close_client
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_ai import Agent, RunContext
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.test import TestModel
from traced_runs import Asks, Watch, meta, named, one, trace_id

from scripted import echo
from stagegraph import Graph, RunError, Runner, Stage, feedback, step
from stagegraph.journal import MemoryJournal

pytestmark = pytest.mark.anyio


@dataclass
class Host:
    """An application that traces to the same project with Langfuse's own client."""

    provider: TracerProvider
    client: Langfuse

    @property
    def settings(self) -> InstrumentationSettings:
        return InstrumentationSettings(tracer_provider=self.provider)

    def sent(self) -> None:
        assert self.provider.force_flush(30_000)


@pytest.fixture(name="host")
def _host(watch: Watch) -> Iterator[Host]:
    server, provider = watch.server, TracerProvider(shutdown_on_exit=False)
    client = Langfuse(**server.keys, tracer_provider=provider)
    host = Host(provider, client)
    Agent.instrument_all(host.settings)
    yield host
    Agent.instrument_all(False)
    close_client(client)


class Say(Graph[str, str]):
    say = Stage(str, Agent(name="sayer"))

    async def flow(self, text: str) -> str:
        return await self.say(text)


OURS = [("Say", [("stage:say", [("invoke_agent sayer", ["chat function:answer:"])])])]


def generations(watch: Watch) -> list[str]:
    """The trace of every request that the server counts."""
    return [span.trace_id for span in watch.server.spans if span.attributes.get("gen_ai.operation.name") == "chat"]


async def test_a_request_is_one_generation_in_one_trace(watch: Watch, host: Host) -> None:
    """The host instruments all agents for the same project, and nothing is counted twice."""
    run = await Runner(echo(), tracing=watch.tracing()).run(Say(), "x")
    host.sent()
    assert await watch.tree(run) == OURS
    assert generations(watch) == [trace_id(run)]
    assert {span.trace_id for span in watch.server.spans} == {trace_id(run)}


async def test_other_agents_of_the_host_stay_the_hosts(watch: Watch, host: Host) -> None:
    """An agent outside a run reports as before, and so does one of a run that is not traced."""
    await Agent(echo(), name="other").run("x")
    await Runner(echo(), tracing=None).run(Say(), "x")
    host.sent()
    assert len(generations(watch)) == 2


async def test_an_agent_inside_a_tool_is_in_the_trace_of_the_run(watch: Watch, host: Host) -> None:
    """The host's spans, also those of its own client, are children of the tool in which they were opened."""
    helper = Agent(echo(), name="helper")

    async def look(ctx: RunContext[Any]) -> str:
        with host.client.start_as_current_observation(name="lookup"):
            return (await helper.run("y", usage=ctx.usage)).output

    run = await Runner(tracing=watch.tracing()).run(Asks(Agent(TestModel(), name="asker", tools=[look])), "x")
    host.sent()
    helped = ("execute_tool look", [("lookup", [("invoke_agent helper", ["chat function:answer:"])])])
    assert await watch.tree(run) == [
        ("Asks", [("stage:ask", [("invoke_agent asker", ["chat test", helped, "chat test"])])])
    ]


async def test_the_host_keeps_its_other_backends(watch: Watch, host: Host) -> None:
    """A second exporter of the host has every span of Pydantic AI, in the host's own tree; Langfuse has each once."""
    other = InMemorySpanExporter()
    host.provider.add_span_processor(SimpleSpanProcessor(other))
    Agent.instrument_all(host.settings)
    with host.provider.get_tracer("host").start_as_current_span("request") as request:
        run = await Runner(echo(), tracing=watch.tracing()).run(Say(), "x")
    host.sent()
    spans = {span.name: span for span in other.get_finished_spans()}
    assert set(spans) == {"request", "invoke_agent sayer", "chat function:answer:"}
    parent = spans["invoke_agent sayer"].parent
    assert parent is not None
    assert parent.span_id == request.get_span_context().span_id
    assert await watch.tree(run) == OURS
    assert generations(watch) == [trace_id(run)]


async def test_an_agents_own_instrumentation_is_not_doubled(watch: Watch, host: Host) -> None:
    """An agent that has the capability itself, for the same project, is sent once."""
    agent = Agent(name="sayer", capabilities=[Instrumentation(settings=host.settings)])

    run = await Runner(echo(), tracing=watch.tracing()).run(Asks(agent), "x")
    host.sent()
    await watch.sent()
    assert generations(watch) == [trace_id(run)]


async def test_what_the_host_propagates_is_the_runs(watch: Watch, host: Host) -> None:
    """User, session, tags, metadata and environment are on every observation, and read back; the run's own go first."""
    source = watch.source()
    runner = Runner(echo(), tracing=watch.tracing())
    shown: dict[str, object] = {"shop": "shoes", "nested": {"a": 1}, "digits": "7"}
    with propagate_attributes(
        user_id="ann", session_id="talk", tags=["web", "eu"], metadata=shown, environment="staging"
    ):
        taken = await runner.run(Say(), "x")
        live = runner.start(Say(), "x", user_id="ben", tags=("eu", "own"), metadata={"shop": "hats"})
        own = await live.result()
    for span in await watch.trace(taken):
        at = span.attributes
        assert (at["user.id"], at["session.id"], at["langfuse.environment"]) == ("ann", "talk", "staging")
        assert at["langfuse.trace.tags"] == ["web", "eu"]
    found = await source.run(taken.id, Say())
    assert (found.user_id, found.session_id, found.tags, dict(found.metadata)) == (
        "ann",
        "talk",
        ("web", "eu"),
        shown,
    )
    found = await source.run(own.id, Say())
    assert (found.user_id, found.session_id, set(found.tags)) == ("ben", "talk", {"own", "web", "eu"})
    assert dict(found.metadata) == {**shown, "shop": "hats"}
    after = await runner.run(Say(), "x")
    assert not any("user.id" in span.attributes for span in await watch.trace(after))


async def test_baggage_counts_too(watch: Watch, host: Host) -> None:
    """What came with a request from another service is taken over as well."""
    from opentelemetry import baggage, context

    with propagate_attributes(user_id="ann", metadata={"shop": "shoes"}, as_baggage=True):
        sent = baggage.get_all()
    arrived = context.Context()
    for name, value in sent.items():
        arrived = baggage.set_baggage(name, value, context=arrived)
    token = context.attach(arrived)
    try:
        run = await Runner(echo(), tracing=watch.tracing()).run(Say(), "x")
    finally:
        context.detach(token)
    spans = await watch.trace(run)
    assert {span.attributes["user.id"] for span in spans} == {"ann"}
    assert {span.attributes["langfuse.trace.metadata.shop"] for span in spans} == {'"shoes"'}


async def test_a_run_inside_a_span_of_the_host_is_linked(watch: Watch, host: Host) -> None:
    """By default it has its own trace, which names the host's span and is in the same session."""
    with (
        propagate_attributes(session_id="talk"),
        host.client.start_as_current_observation(name="request") as request,
    ):
        run = await Runner(echo(), tracing=watch.tracing()).run(Say(), "x")
    host.sent()
    root = one(await watch.trace(run), "Say")
    assert root.parent_id is None
    assert (meta(root)["host_trace"], meta(root)["host_observation"]) == (request.trace_id, request.id)
    assert one(list(watch.server.spans), "request").attributes["session.id"] == root.attributes["session.id"] == "talk"


async def test_a_run_that_joins_is_a_child_of_the_hosts_span(watch: Watch, host: Host) -> None:
    """With `join=True` there is one trace; two runs in it are read back each by itself, and scores reach theirs."""
    runner = Runner(echo(), tracing=watch.tracing(join=True))
    with host.client.start_as_current_observation(name="request") as request:
        runs = [await runner.run(Say(), text) for text in ("a", "b")]
        await feedback(runs[0].id, "good", 1, runner=runner)
        alone = await runner.run(Say.say, "c")
    host.sent()
    await watch.sent()
    await feedback(runs[1].id, "good", 2, runner=Runner(tracing=watch.tracing(join=True)))  # as another process does
    await watch.sent()
    spans = list(watch.server.spans)
    assert {span.trace_id for span in spans} == {request.trace_id}
    assert {span.parent_id for span in named(spans, "Say")} == {request.id}
    assert not any("langfuse.trace.name" in span.attributes for span in named(spans, "Say"))
    assert [score["traceId"] for score in watch.server.scores] == [request.trace_id] * 2
    source = watch.source()
    for run in runs:
        found = await source.run(run.id, Say())
        assert (found.id, found.input, found.output) == (run.id, run.input, run.output)
        assert [call.key for call in found.root.walk()] == ["", "say"]
        assert len(found.feedback) == 1
    assert (await source.run(alone.id, Say.say)).input == "c"
    listed = [found.input async for found in source.runs(Say())]
    assert sorted(listed) == ["a", "b"]
    outside = await runner.run(Say(), "c")
    assert await watch.tree(outside) == OURS


async def test_a_joined_run_that_is_resumed_elsewhere_is_read_whole(watch: Watch, host: Host) -> None:
    """Its second part has a trace of its own; calls and scores of both parts are found."""
    reached: list[str] = []

    @step
    async def first(text: str) -> str:
        return text.upper()

    @step
    async def second(text: str) -> bytes | str:
        reached.append(text)
        if len(reached) == 1:
            msg = "not yet"
            raise ValueError(msg)
        return text.encode()

    class Two(Graph[str, bytes | str]):
        one, two = first, second

        async def flow(self, text: str) -> bytes | str:
            return await self.two(await self.one(text))

    journal = MemoryJournal()
    with host.client.start_as_current_observation(name="request"), pytest.raises(RunError):
        await Runner(tracing=watch.tracing(join=True), journal=journal).run(Two(), "x", run_id="r")
    await watch.sent()
    runner = Runner(tracing=watch.tracing(join=True), journal=journal)
    runner.add(Two())
    await runner.resume("r")
    await feedback("r", "good", 1, key="one", runner=runner)
    await feedback("r", "fine", 2, runner=runner)
    await watch.sent()
    source = watch.source()
    found = await source.run("r", Two())
    assert (found.status, found.output, found.call("one").output) == ("succeeded", b"X", "X")
    assert {(one.name, one.key) for one in found.feedback} == {("good", "one"), ("fine", None)}
    assert [run.output async for run in source.runs(Two())] == [b"X"]


async def test_a_span_of_the_host_that_never_arrives_is_no_parent(watch: Watch, host: Host) -> None:
    """A web framework's span is not exported to Langfuse: the run is in its trace, as a root."""
    runner = Runner(echo(), tracing=watch.tracing(join=True))
    with host.provider.get_tracer("framework").start_as_current_span("GET /") as request:
        await runner.run(Say(), "x")
    await watch.sent()
    root = one(list(watch.server.spans), "Say")
    assert root.trace_id == f"{request.get_span_context().trace_id:032x}"
    assert root.parent_id is None


async def test_another_project_of_the_host_is_another_matter(watch: Watch, host: Host) -> None:
    """A host that traces to a project of its own has every request there, too."""
    tracing = watch.tracing(public_key="pk-lf-other")
    await Runner(echo(), tracing=tracing).run(Say(), "x")
    host.sent()
    assert len(generations(watch)) == 1  # the server of the tests refuses the other key
    tracing.close(0)
    watch.tracings.remove(tracing)
