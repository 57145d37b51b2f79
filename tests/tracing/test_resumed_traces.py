"""Traces of runs that were interrupted, resumed, replayed, cancelled or suspended, and the scores of any of them."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.models.test import TestModel
from traced_runs import Asks, Watch, below, meta, named, one, trace_id

from scripted import Turnstile, echo
from stagegraph import Graph, JournalError, Limits, RunError, Runner, Stage, fan_out, feedback
from stagegraph.journal import MemoryJournal
from stagegraph.tracing import JournalRuns, LangfuseRuns

pytestmark = pytest.mark.anyio


class Letters(Graph[str, list[str]]):
    """One stage over the letters of a word, then another over all of it."""

    read = Stage(str, Agent(name="reader"))
    sum = Stage(str, Agent(name="summer"))

    async def flow(self, word: str) -> list[str]:
        letters = await fan_out(self.read, list(word), limit=1)
        return [*letters, await self.sum(word)]


class Flaky:
    """A model that does not answer prompts in which there is a word, as long as it is broken."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.broken = True
        self.model = echo(self._answer)

    def _answer(self, text: str) -> str:
        if self.broken and text == self.word:
            raise ValueError("broken")
        return text.upper()


async def interrupted(runner: Runner, graph: Graph[str, Any], text: str, limits: Limits | None = None) -> str:
    with pytest.raises(RunError) as caught:
        await runner.run(graph, text, limits=limits)
    assert caught.value.run is not None
    return caught.value.run.id


async def test_a_resumed_run_goes_on_in_its_trace(watch: Watch) -> None:
    """There is a second root; what was recalled is marked and has no requests, what ran now is not."""
    flaky = Flaky("abc")
    runner = Runner(flaky.model, journal=MemoryJournal(), tracing=watch.tracing())
    run_id = await interrupted(runner, Letters(), "abc")
    first = await watch.trace(run_id)
    flaky.broken = False
    run = await runner.resume(run_id)
    spans = (await watch.trace(run))[len(first) :]
    assert {span.trace_id for span in watch.server.spans} == {trace_id(run_id)}
    assert len({span.span_id for span in [*first, *spans]}) == len(first) + len(spans)
    root = one(spans, "Letters")
    assert root.parent_id is None
    assert root.attributes["langfuse.internal.is_app_root"] is True
    assert all("resumed" not in meta(span) for span in first)
    assert all((meta(span)["resumed"], meta(span)["segment"]) == (True, 1) for span in spans if span.type)
    assert [meta(span).get("replayed") for span in named(spans, "stage:read")] == [True] * 3
    assert [below(spans, span) for span in named(spans, "stage:read")] == [[]] * 3
    last = one(spans, "stage:sum")
    assert "replayed" not in meta(last)
    assert [span.name for span in below(spans, last)] == ["invoke_agent summer"]
    generations = [row for row in await watch.rows(run) if row["type"] == "GENERATION" and row["level"] != "ERROR"]
    assert sum(row["usageDetails"]["total"] for row in generations) == run.usage.total_tokens


async def test_recalled_requests_are_not_shown_again(watch: Watch) -> None:
    """An agent that was stopped after its tool goes on there: its first request and its tool are shown once."""
    agent = Agent(TestModel(), name="looker")
    agent.tool_plain(lambda: "seen", name="look")

    runner = Runner(journal=MemoryJournal(), tracing=watch.tracing())
    run_id = await interrupted(runner, Asks(agent), "x", limits=Limits(requests=1))
    run = await runner.resume(run_id, limits=Limits(requests=2))
    assert run.usage.requests == 2
    before, after = await watch.tree(run_id)
    whole = ["chat test", "execute_tool look", "chat test"]
    assert before == ("Asks", [("stage:ask", [("invoke_agent looker", whole)])])
    assert after == ("Asks", [("stage:ask", [("invoke_agent looker", ["chat test"])])])
    generations = [row for row in await watch.rows(run) if row["type"] == "GENERATION"]
    assert sum(row["usageDetails"].get("total", 0) for row in generations) == run.usage.total_tokens


async def test_a_replayed_run_is_a_trace_whose_calls_are_marked(watch: Watch) -> None:
    """What another run gave is shown as replayed; what changed is shown as it ran."""
    runner = Runner(echo(), journal=MemoryJournal(), tracing=watch.tracing())
    source = await runner.run(Letters(), "ab")
    run = await runner.run(Letters(), "ac", replay=source)
    spans = await watch.trace(run)
    told = {meta(span)["key"]: meta(span).get("replayed", False) for span in spans if span.type}
    assert told == {"": False, "read[0]": True, "read[1]": False, "sum": False}
    assert all("resumed" not in meta(span) for span in spans)
    assert len([span for span in spans if span.name.startswith("chat")]) == 2


async def test_a_cancelled_run_is_a_whole_trace(watch: Watch) -> None:
    """What was going on when a run was cancelled is closed and marked, down to the request."""
    gate = Turnstile()
    live = Runner(gate.model, tracing=watch.tracing()).start(Letters(), "ab")
    await gate.crowd(1)
    await live.cancel()
    rows = await watch.rows(live.run_id)
    assert [row["name"] for row in rows] == ["Letters", "stage:read", "reader run", "chat function:_answer:"]
    for row in rows[:2]:
        assert (row["level"], row["statusMessage"], row["metadata"]["status"]) == ("WARNING", "cancelled", "cancelled")


async def test_a_suspended_run_waits_and_goes_on(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    """A question is no error; the answer's part of the run is a second root in the same trace."""
    agent = Agent(output_type=[str, DeferredToolRequests], name="asker")
    agent.tool_plain(lambda: "deleted", name="delete", requires_approval=True)

    runner = Runner(TestModel(), journal=MemoryJournal(), tracing=watch.tracing())
    run = await runner.run(Asks(agent), "x")
    assert run.status == "suspended"
    first = [span for span in await watch.trace(run) if span.type]
    assert [(span.name, meta(span)["status"]) for span in first] == [("Asks", "suspended"), ("stage:ask", "suspended")]
    assert all("langfuse.observation.level" not in span.attributes for span in first)
    assert (await runner.resume(run.id, answers={run.pending[0].id: True})).status == "succeeded"
    before, after = await watch.tree(run)
    assert before[0] == after[0] == "Asks"
    assert before[1][0][1][0][1][0] == "chat test"
    assert after[1] == [("stage:ask", [("invoke_agent asker", ["execute_tool delete", "chat test"])])]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def scored(watch: Watch) -> dict[str, dict[str, Any]]:
    """The scores on the server, by name."""
    await watch.sent()
    return {score["name"]: score for score in watch.server.scores_by_id.values()}


@pytest.mark.parametrize("journal", [True, False])
async def test_feedback_reaches_the_trace_and_the_call(watch: Watch, journal: bool) -> None:
    """A score of the run is on its trace, one of a call on its observation, with or without a journal."""
    runner = Runner(echo(), journal=MemoryJournal() if journal else None, tracing=watch.tracing(environment="qa"))
    run = await runner.run(Letters(), "ab")
    spans = await watch.trace(run)
    await feedback(run.id, "good", 0.5, comment="why", runner=runner)
    await feedback(run.id, "right", False, key="read[1]", runner=runner)
    found = await scored(watch)
    (call,) = [span for span in spans if span.type and meta(span)["key"] == "read[1]"]
    assert (found["good"]["traceId"], found["good"].get("observationId")) == (trace_id(run), None)
    assert (found["good"]["comment"], found["good"]["environment"]) == ("why", "qa")
    assert (found["right"]["traceId"], found["right"]["observationId"]) == (trace_id(run), call.span_id)


@pytest.mark.parametrize(
    ("value", "kind", "sent"),
    [
        (0.5, "NUMERIC", 0.5),
        (3, "NUMERIC", 3),
        (True, "BOOLEAN", 1),
        (False, "BOOLEAN", 0),
        ("fine", "CATEGORICAL", "fine"),
        ("x" * 100, "CATEGORICAL", "x" * 100),
        ("x" * 101, "TEXT", "x" * 101),
        ("two\nlines", "TEXT", "two\nlines"),
    ],
)
async def test_feedback_of_every_type(watch: Watch, value: Any, kind: str, sent: Any) -> None:
    """A number, a yes or no, a category and a text are what they are on the server, too."""
    runner = Runner(echo(), tracing=watch.tracing())
    await feedback("some-run", "good", value, runner=runner)
    found = (await scored(watch))["good"]
    assert (found["dataType"], found["value"], type(found["value"])) == (kind, sent, type(sent))


async def test_feedback_given_twice_is_one_score(watch: Watch) -> None:
    """The same name on the same call replaces the score; another call's, another name's and the run's stay."""
    runner = Runner(echo(), journal=MemoryJournal(), tracing=watch.tracing())
    run = await runner.run(Letters(), "ab")
    for value in (0, 1):
        for key in (None, "read[0]", "read[1]"):
            await feedback(run.id, "good", value, key=key, runner=runner)
    await feedback(run.id, "kind", "new", runner=runner)
    await watch.sent()
    assert len(watch.server.scores) == 7
    assert sorted(str(score["value"]) for score in watch.server.scores_by_id.values()) == ["1", "1", "1", "new"]
    assert len({score["timestamp"] for score in watch.server.scores}) == 1


async def test_feedback_finds_the_part_in_which_the_call_ran(watch: Watch) -> None:
    """Before a resume, a score is on the call's first observation, afterwards on that of the part in which it ran."""
    flaky = Flaky("abc")
    runner = Runner(flaky.model, journal=MemoryJournal(), tracing=watch.tracing())
    run_id = await interrupted(runner, Letters(), "abc")
    await feedback(run_id, "early", 1, key="sum", runner=runner)
    flaky.broken = False
    await runner.resume(run_id)
    for key in ("read[0]", "sum"):
        await feedback(run_id, key, 1, key=key, runner=runner)
    found = await scored(watch)
    spans = {span.span_id: span for span in await watch.trace(run_id)}
    told = {name: meta(spans[score["observationId"]]) for name, score in found.items()}
    assert {name: one["key"] for name, one in told.items()} == {"early": "sum", "read[0]": "read[0]", "sum": "sum"}
    assert (told["early"].get("segment", 0), told["sum"]["segment"]) == (0, 1)


async def test_feedback_of_an_unknown_call_is_not_sent(watch: Watch) -> None:
    """What the journal does not know gets no score anywhere."""
    runner = Runner(echo(), journal=MemoryJournal(), tracing=watch.tracing())
    run = await runner.run(Letters(), "ab")
    with pytest.raises(JournalError, match="no call `raed"):
        await feedback(run.id, "good", 1, key="raed[0]", runner=runner)
    assert await scored(watch) == {}


async def test_a_runs_own_metadata_comes_back_as_it_was(watch: Watch) -> None:
    """Whatever its names are: those that tracing uses itself, and those that look like what it makes of them."""
    told = {"key": "mine", "status": "x", "user_key": "theirs", "user_name": "ann", "team": "blue"}
    run = await Runner(echo(), tracing=watch.tracing()).run(Letters(), "a", metadata=told)
    await watch.sent()
    back = await reader(watch).run(run.id, Letters())
    assert dict(back.metadata) == told


async def test_a_resumed_run_began_when_it_first_did(watch: Watch) -> None:
    """Read from Langfuse, it has the beginning and the length that it has in the journal."""
    flaky = Flaky("abc")
    journal = MemoryJournal()
    runner = Runner(flaky.model, journal=journal, tracing=watch.tracing())
    run_id = await interrupted(runner, Letters(), "abc")
    flaky.broken = False
    await anyio.sleep(0.3)
    await runner.resume(run_id)
    await watch.sent()
    back = await reader(watch).run(run_id, Letters())
    (kept,) = [one async for one in JournalRuns(journal).runs(Letters())]
    assert abs((back.started - kept.started).total_seconds()) < 0.01
    assert abs(back.duration - kept.duration) < 0.02


def reader(watch: Watch) -> LangfuseRuns:
    server = watch.server
    return LangfuseRuns(public_key=server.public_key, secret_key=server.secret_key, base_url=server.url)
