"""Details of observations: first texts, kinds of tokens, environments, names, messages, metadata, headers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from importlib.metadata import version
from typing import Any

import pytest
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RequestUsage
from traced_runs import Asks, Watch, meta, one, trace_id

from scripted import echo
from stagegraph import DeclarationError, Graph, RunError, Runner, Stage, fan_out

pytestmark = pytest.mark.anyio


class Say(Graph[str, str]):
    say = Stage(str, Agent())

    async def flow(self, text: str) -> str:
        return await self.say(text)


async def test_the_first_text_of_a_streamed_answer_has_its_time(watch: Watch) -> None:
    """A request that streams has the time of its first piece; one that does not has none."""

    async def stream(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        yield "a"
        yield "b"

    runner = Runner(FunctionModel(stream_function=stream), tracing=watch.tracing())
    run = await runner.start(Say(), "x", deltas=True).result()
    (row,) = [row for row in await watch.rows(run) if row["type"] == "GENERATION"]
    begun, first, ended = (
        datetime.fromisoformat(row[name]) for name in ("startTime", "completionStartTime", "endTime")
    )
    assert begun.timestamp() - 0.001 <= first.timestamp() <= ended.timestamp() + 0.001
    run = await Runner(echo(), tracing=watch.tracing()).run(Say(), "x")
    assert not any(row["completionStartTime"] for row in await watch.rows(run))


async def test_every_kind_of_token_is_kept(watch: Watch) -> None:
    """Reasoning, audio and cached tokens have names of their own, the total is right, and all of it reads back."""
    used = RequestUsage(
        input_tokens=100,
        output_tokens=50,
        cache_read_tokens=20,
        cache_write_tokens=10,
        output_audio_tokens=5,
        details={"reasoning_tokens": 30},
    )

    def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart("x")], usage=used)

    run = await Runner(FunctionModel(answer), tracing=watch.tracing()).run(Say(), "x")
    (row,) = [row for row in await watch.rows(run) if row["type"] == "GENERATION"]
    assert row["usageDetails"] == {
        "input": 70,
        "input_cached_tokens": 20,
        "input_cache_creation": 10,
        "output": 15,
        "output_reasoning_tokens": 30,
        "output_audio_tokens": 5,
        "total": 150,
    }
    found = await watch.source().run(run.id, Say())
    usage = found.call("say").usage
    assert (usage.input_tokens, usage.output_tokens, usage.output_audio_tokens) == (100, 50, 5)
    assert (usage.cache_read_tokens, usage.cache_write_tokens) == (20, 10)
    assert usage.details == {"reasoning_tokens": 30}


async def test_an_environment_is_as_the_server_keeps_it(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Capitals become small letters, in an argument and in Langfuse's variable."""
    run = await Runner(echo(), tracing=watch.tracing(environment="Prod-EU_1")).run(Say(), "x")
    assert {row["environment"] for row in await watch.rows(run)} == {"prod-eu_1"}
    monkeypatch.setenv("LANGFUSE_TRACING_ENVIRONMENT", "QA")
    assert watch.tracing().connection.environment == "qa"


@pytest.mark.parametrize("name", ["prod eu", "prod.eu", "langfuse", "Langfuse-prompts", "e" * 41, "étape", "a/b"])
async def test_an_environment_that_the_server_refuses_is_an_error(watch: Watch, name: str) -> None:
    """The server would not keep it, so nobody would find the traces."""
    with pytest.raises(DeclarationError, match="at most 40"):
        watch.tracing(environment=name)


async def test_an_agent_without_a_name_has_that_of_its_stage(watch: Watch) -> None:
    """In the tree of the trace, every agent can be told from the others."""

    class Outer(Graph[str, list[str]]):
        inner = Say()

        async def flow(self, text: str) -> list[str]:
            return await fan_out(self.inner, [text])

    run = await Runner(echo(), tracing=watch.tracing()).run(Outer(), "x")
    rows = await watch.rows(run)
    assert [row["name"] for row in rows if row["type"] == "AGENT"] == ["stage:inner.say", "inner.say run"]
    span = one(await watch.trace(run), "invoke_agent inner.say")
    assert span.attributes["gen_ai.agent.name"] == "inner.say"


async def test_a_retry_has_its_message(watch: Watch) -> None:
    """What a tool or a validator told the model stands at the tool, and at the stage when it was the last time."""

    async def look() -> str:
        raise ModelRetry("the moon is down")

    with pytest.raises(RunError) as caught:
        await Runner(tracing=watch.tracing()).run(Asks(Agent(TestModel(), tools=[look], retries=0)), "x")
    rows = {row["name"]: row for row in await watch.rows(caught.value.run)}
    assert rows["look"]["level"] == "ERROR"
    assert "the moon is down" in rows["look"]["statusMessage"]


async def test_metadata_comes_back_as_it_was_given(watch: Watch) -> None:
    """Also under names that the server or tracing itself uses, nested, and with dots."""
    given: dict[str, Any] = {
        "scope": {"name": "mine"},
        "scope.name": "also mine",
        "resourceAttributes": 1,
        "resourceAttributes.service.name": "mine too",
        "attributes": [1],
        "key": "k",
        "host_trace": "t",
        "user_key": "u",
        "customer": {"id": 7, "tags": ["a"]},
        "a.b": None,
        "n": 1.5,
    }
    run = await Runner(echo(), tracing=watch.tracing()).run(Say(), "x", metadata=given)
    await watch.sent()
    found = await watch.source().run(run.id, Say())
    assert dict(found.metadata) == {name: value for name, value in given.items() if value is not None}
    plain = await Runner(echo(), tracing=watch.tracing()).run(Say(), "x")
    await watch.sent()
    assert dict((await watch.source().run(plain.id, Say())).metadata) == {}


async def test_requests_name_the_version_of_the_package(watch: Watch) -> None:
    """Spans, scores and reads say whose format they have, as does the scope of the spans."""
    run = await Runner(echo(), tracing=watch.tracing()).run(Say(), "x")
    await watch.sent()
    await watch.source().run(run.id, Say())
    versions = {request.headers.get("x-langfuse-sdk-version") for request in watch.server.requests}
    assert versions == {version("langfuse")}
    root = one(await watch.trace(run), "Say")
    assert (root.scope, root.scope_version) == ("langfuse-sdk", version("langfuse"))


async def test_a_run_read_back_names_the_call_that_failed(watch: Watch) -> None:
    """The origin of an error, and whether a provider caused it, survive the way through the server."""

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        raise ModelHTTPError(503, "m")

    class Caught(Graph[str, str]):
        first = Stage(str, Agent(FunctionModel(answer)))
        last = Stage(str, Agent(echo()))

        async def flow(self, text: str) -> str:
            try:
                await self.first(text)
            except Exception:
                await self.last("again")
                raise
            return text

    with pytest.raises(RunError) as caught:
        await Runner(tracing=watch.tracing()).run(Caught(), "x")
    await watch.sent()
    run = caught.value.run
    found = await watch.source().run(run.id, Caught())
    assert [call.key for call in found.failures()] == [call.key for call in run.failures()] == ["first"]
    for key in ("", "first"):
        seen, expected = found.call(key).error, run.call(key).error
        assert seen is not None
        assert expected is not None
        assert (seen.origin, seen.transient) == (expected.origin, expected.transient) == ("first", True)


async def test_leaving_a_runner_sends_what_is_queued(watch: Watch) -> None:
    """After the block, the server has every run of it, without a flush."""
    async with Runner(echo(), tracing=watch.tracing()) as runner:
        runs = [await runner.run(Say(), text) for text in "ab"]
        runs.append(await runner.start(Say(), "c").result())
    assert all(len(watch.server.trace(trace_id(run))) == 4 for run in runs)
    runner = Runner(echo(), tracing=watch.tracing())
    async with runner.lifespan():
        run = await runner.run(Say(), "d")
    assert len(watch.server.trace(trace_id(run))) == 4


async def test_a_tool_that_is_called_in_the_end_keeps_its_arguments(watch: Watch) -> None:
    """The message of a failure does not replace what the tool was given."""

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart("look", {"at": "moon"})])

    async def look(at: str) -> str:
        raise ValueError(f"no {at}")

    with pytest.raises(RunError) as caught:
        await Runner(tracing=watch.tracing()).run(Asks(Agent(FunctionModel(answer), tools=[look])), "x")
    rows = {row["name"]: row for row in await watch.rows(caught.value.run)}
    assert rows["look"]["input"] == '{"at":"moon"}'
    assert rows["look"]["statusMessage"].endswith("no moon")
    assert meta(one(await watch.trace(caught.value.run), "stage:ask"))["origin"] == "ask"
