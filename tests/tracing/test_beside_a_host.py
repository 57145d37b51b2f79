"""What tracing leaves alone: the host's OpenTelemetry, runs outside the sample, programs without keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_ai import Agent
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.test import TestModel
from traced_runs import Watch

from scripted import echo
from stagegraph import Graph, Runner, Stage, fan_out, feedback, step

pytestmark = pytest.mark.anyio


@dataclass
class Host:
    """An application with tracing of its own."""

    provider: TracerProvider
    exporter: InMemorySpanExporter

    @property
    def tracer(self) -> trace.Tracer:
        return self.provider.get_tracer("host")

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def tree(self) -> set[tuple[str, str | None]]:
        """Name and parent's name of every span."""
        names = {span.context.span_id: span.name for span in self.spans.values() if span.context}
        return {(span.name, names[span.parent.span_id] if span.parent else None) for span in self.spans.values()}


@pytest.fixture(name="host")
def _host() -> Iterator[Host]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Host(provider, exporter)
    provider.shutdown()


class Work(Graph[str, str]):
    """A step and an agent with a tool, both of which the host watches."""

    def __init__(self, host: Host) -> None:
        async def fetch(text: str) -> str:
            with host.tracer.start_as_current_span("host step"):
                return text

        async def look() -> str:
            trace.get_current_span().set_attribute("asked", "politely")
            with host.tracer.start_as_current_span("host tool"), host.tracer.start_as_current_span("host query"):
                return "seen"

        agent = Agent(name="worker")
        agent.tool_plain(look)
        self.fetch = step(fetch)
        self.work = Stage(str, agent)

    async def flow(self, text: str) -> str:
        return await self.work(await self.fetch(text))


TOOLS = ["chat test", "execute_tool look", "chat test"]
OURS = [("Work", ["step:fetch", ("stage:work", [("invoke_agent worker", TOOLS)])])]


async def test_the_hosts_spans_stay_the_hosts(watch: Watch, host: Host) -> None:
    """Spans that the host opens around, in steps and in tools keep their trace and parent, and neither side gets more."""
    before = trace.get_tracer_provider()
    with host.tracer.start_as_current_span("host request") as request:
        run = await Runner(TestModel(), tracing=watch.tracing()).run(Work(host), "x")
        assert trace.get_current_span() is request
    assert trace.get_tracer_provider() is before
    assert host.tree() == {
        ("host request", None),
        ("host step", "host request"),
        ("host tool", "host request"),
        ("host query", "host tool"),
    }
    assert len({span.context.trace_id for span in host.spans.values() if span.context}) == 1
    assert await watch.tree(run) == OURS
    assert len(watch.server.spans) == 7


async def test_a_host_without_an_open_span_gets_roots(watch: Watch, host: Host) -> None:
    """Where the host has no span open, its spans begin traces of their own, and our trace has the run's id anyway."""
    run = await Runner(TestModel(), tracing=watch.tracing()).run(Work(host), "x")
    assert host.tree() == {("host step", None), ("host tool", None), ("host query", "host tool")}
    assert await watch.tree(run) == OURS
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_what_the_host_asks_of_pydantic_ai_it_still_gets(watch: Watch, host: Host) -> None:
    """With `Agent.instrument_all`, the host has every span of Pydantic AI, and Langfuse has its own in their places."""
    Agent.instrument_all(InstrumentationSettings(tracer_provider=host.provider))
    try:
        with host.tracer.start_as_current_span("host request"):
            run = await Runner(TestModel(), tracing=watch.tracing()).run(Work(host), "x")
    finally:
        Agent.instrument_all(False)
    assert host.tree() == {
        ("host request", None),
        ("host step", "host request"),
        ("invoke_agent worker", "host request"),
        ("chat test", "invoke_agent worker"),
        ("execute_tool look", "invoke_agent worker"),
        ("host tool", "execute_tool look"),
        ("host query", "host tool"),
    }
    assert len(host.exporter.get_finished_spans()) == 8
    assert (host.spans["execute_tool look"].attributes or {})["asked"] == "politely"
    assert not any(name.startswith("langfuse.") for span in host.spans.values() for name in span.attributes or {})
    assert await watch.tree(run) == OURS


async def test_an_agents_own_instrumentation_is_kept(watch: Watch, host: Host) -> None:
    """An agent that was instrumented by itself reports to the host and to Langfuse."""
    agent = Agent(name="own")
    agent.instrument = InstrumentationSettings(tracer_provider=host.provider)
    run = await Runner(echo(), tracing=watch.tracing()).run(Say(agent), "x")
    assert host.tree() == {("invoke_agent own", None), ("chat function:answer:", "invoke_agent own")}
    assert await watch.tree(run) == [("Say", [("stage:say", [("invoke_agent own", ["chat function:answer:"])])])]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_TRACES_SAMPLER", "always_off"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "3"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "3"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3"),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3"),
    ],
)
async def test_limits_of_the_hosts_spans_are_not_ours(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """OpenTelemetry's own variables thin out the host's spans, never ours."""
    monkeypatch.setenv(variable, value)
    run = await Runner(echo(), tracing=watch.tracing()).run(Say(), "some words")
    rows = await watch.rows(run)
    assert [row["traceName"] for row in rows] == ["Say"] * 4
    assert all("some words" in row["input"] for row in rows)


class Say(Graph[str, list[str]]):
    """One agent, three times."""

    def __init__(self, agent: Agent[None, str] | None = None) -> None:
        self.say = Stage(str, agent or Agent(name="sayer"))

    async def flow(self, text: str) -> list[str]:
        return await fan_out(self.say, [text])


@pytest.mark.parametrize(("rate", "expected"), [(0, 0), (1, 40)])
async def test_all_or_nothing_of_the_runs(watch: Watch, rate: float, expected: int) -> None:
    """A sample of none shows no run, a sample of all shows each."""
    runner = Runner(echo(), tracing=watch.tracing(sample_rate=rate))
    for _ in range(40):
        await runner.run(Say(), "x")
    await watch.sent()
    assert len({span.trace_id for span in watch.server.spans}) == expected
    assert len(watch.server.spans) == 4 * expected


async def test_a_run_is_in_the_sample_whole_or_not_at_all(watch: Watch) -> None:
    """The run's id decides, for its spans and its scores alike, and a larger sample holds the smaller one."""
    shown: list[set[str]] = []
    for name, rate in (("few", 0.4), ("more", 0.6)):
        runner = Runner(echo(), tracing=watch.tracing(sample_rate=rate, environment=name))
        for number in range(60):
            await runner.run(Say(), "x", run_id=f"run-{number}")
            await feedback(f"run-{number}", "good", 1, runner=runner)
        await watch.sent()
        spans = [span for span in watch.server.spans if span.attributes["langfuse.environment"] == name]
        counts = Counter(span.trace_id for span in spans)
        assert set(counts.values()) == {4}
        assert {score["traceId"] for score in watch.server.scores if score["environment"] == name} == set(counts)
        shown.append(set(counts))
    assert 0 < len(shown[0]) < len(shown[1]) < 60
    assert shown[0] < shown[1]


async def test_variables_of_the_host_are_not_for_us(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that switched its own OpenTelemetry off has whole traces here, and its labels stay with it."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "api_token=hunter2hunter2,team=x")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-collector-key=hunter2hunter2")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem")
    run = await Runner(echo(), tracing=watch.tracing()).run(Stage(str, Agent()), "x")
    assert len(await watch.trace(run)) == 3
    assert "hunter2" not in watch.everything()
    assert not any("hunter2" in value for one in watch.server.requests for value in one.headers.values())
