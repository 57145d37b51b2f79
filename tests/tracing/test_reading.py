"""Runs read back, from a journal and from Langfuse: as the typed runs they were, and as data to learn from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.tools import DeferredToolRequests
from recorded_runs import ITEMS, LABELS, Desk, Item, Many, One, found, price, same

from scripted import Turnstile, echo, fails, priced
from stagegraph import DeclarationError, Graph, Prompt, Prompts, Run, RunError, Stage
from stagegraph.tracing import JournalRuns

pytestmark = pytest.mark.anyio


async def test_a_run_comes_back_as_it_was(desk: Desk) -> None:
    """Keys, paths, types, parents, usage, cost and labels of nested graphs in a fan-out."""
    model, _ = priced("0.01")
    run = await desk.run(Many(), ITEMS, model, **LABELS, run_id="1e5")
    again = await same(desk, run, Many())
    assert again.cost == Decimal("0.12")
    assert isinstance(again.call("one[3].sort").input, Item)
    assert again.calls(Many.one.price)[2].output == Decimal(2)
    assert again.edges()


async def test_one_leaf_is_a_run_too(desk: Desk) -> None:
    """A stage and a step that were run by themselves."""
    for node in (One.sort, price):
        await same(desk, await desk.run(node, ITEMS[0], priced(None)[0]), node)


async def test_prompts_are_known_by_their_digest(desk: Desk) -> None:
    """What was deployed for a run can be told from it."""
    run = await desk.run(One(), ITEMS[0], prompts=Prompts({"sort": Prompt("Sort.")}))
    assert (await same(desk, run, One())).prompts_digest == Prompts({"sort": Prompt("Sort.")}).digest


async def test_a_failed_run_comes_back(desk: Desk) -> None:
    """With the error of each call that failed."""
    run = await desk.run(Many(), ITEMS[:2], fails(ValueError("a: b\\nc"), KeyError()))
    assert run.status == "failed"
    again = await same(desk, run, Many())
    assert again.failures()


async def test_a_cancelled_run_comes_back(desk: Desk) -> None:
    """With what it had done."""
    turnstile = Turnstile()
    live = desk.runner(turnstile.model).start(Many(), ITEMS[:2])
    with anyio.fail_after(10):
        await turnstile.crowd(2)
    await live.cancel()
    with pytest.raises(RunError) as raised:
        await live.result()
    run = raised.value.run
    assert run.status == "cancelled"
    await same(desk, run, Many())


asker = Agent(output_type=[str, DeferredToolRequests], name="asker")


class Asking(Graph[str, str]):
    aside = Stage(str, Agent(name="first"))
    ask = Stage(str, asker)

    async def flow(self, text: str) -> str:
        return await self.ask(await self.aside(text))


@asker.tool_plain(requires_approval=True)
def delete(path: str) -> str:
    return path


def careful(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    if info.function_tools and len(messages) == 1:
        return ModelResponse([ToolCallPart("delete", {"path": "x"}, tool_call_id="t")])
    return ModelResponse([TextPart("done")])


async def test_a_suspended_run_comes_back_and_so_does_its_end(desk: Desk) -> None:
    """A run that waits for an answer, and the same run after it got one."""
    run = await desk.run(Asking(), "x", FunctionModel(careful))
    assert run.status == "suspended"
    await same(desk, run, Asking())
    answers = {one.id: True for one in run.pending}
    model = FunctionModel(careful)
    run = await desk.runner(model).resume(run.id, answers=answers, graph=Asking())
    assert run.output == "done"
    again = await same(desk, run, Asking())
    assert again.call("aside").replayed


async def test_a_resumed_run_comes_back_whole(desk: Desk) -> None:
    """What was recalled and what was made anew are one run, each call as it went the last time."""
    refused: list[str] = []

    def answer(text: str) -> str:
        if "n1" in text and not refused:
            refused.append(text)
            raise ValueError("no")
        return text

    with pytest.raises(RunError) as raised:
        await desk.runner(echo(answer), fan_out_limit=1).run(Many(), ITEMS[:3])
    run = await desk.runner(echo(answer), fan_out_limit=1).resume(raised.value.run.id, graph=Many())
    again = await same(desk, run, Many())
    assert [call.replayed for call in again.calls(Many.one.sort)] == [True, False, False]


async def three(desk: Desk) -> list[Run]:
    """A run that went well, one that failed and one of somebody else, a bit apart."""
    runs = [
        await desk.run(One(), ITEMS[0], run_id="good", tags=("a", "b"), user_id="u", session_id="s"),
        await desk.run(One(), ITEMS[1], fails(ValueError("no")), run_id="bad", tags=("a",)),
        await desk.run(One(), ITEMS[2], run_id="other", user_id="v", tags=("c",)),
    ]
    await desk.score(runs[0], "helpful", 0.25)
    await desk.score(runs[0], "clear", True)
    await desk.score(runs[1], "helpful", 0.75)
    await desk.score(runs[2], "helpful", "very")
    return runs


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({}, ["other", "bad", "good"]),
        ({"tags": ["a"]}, ["bad", "good"]),
        ({"tags": ["a", "b"]}, ["good"]),
        ({"user": "u"}, ["good"]),
        ({"session": "s", "tags": ["a"]}, ["good"]),
        ({"user": "nobody"}, []),
        ({"status": "failed"}, ["bad"]),
        ({"status": "succeeded"}, ["other", "good"]),
        ({"score": "helpful"}, ["other", "bad", "good"]),
        ({"score": "clear"}, ["good"]),
        ({"score": "helpful", "min_score": 0.5}, ["bad"]),
        ({"score": "helpful", "max_score": 0.5}, ["good"]),
        ({"min_score": 0.5}, ["bad", "good"]),
        ({"score": "helpful", "min_score": 0.2, "max_score": 0.8, "limit": 1}, ["bad"]),
        ({"limit": 2}, ["other", "bad"]),
        ({"limit": 1, "status": "succeeded", "user": "u"}, ["good"]),
        ({"limit": 0}, []),
        ({"since": timedelta(hours=1)}, ["other", "bad", "good"]),
        ({"since": timedelta(hours=-1)}, []),
        ({"until": timedelta(hours=1)}, []),
        ({"until": datetime(2999, 1, 1, tzinfo=UTC)}, ["other", "bad", "good"]),
    ],
)
async def test_runs_are_chosen(desk: Desk, which: dict[str, Any], expected: list[str]) -> None:
    """The newest first, from either source the same."""
    await three(desk)
    for source in desk.sources():
        assert await found(source, **which) == expected, source


async def test_runs_are_chosen_by_time(desk: Desk) -> None:
    """From a moment on, and up to before another; a moment without a time zone could be any of many."""
    moments: list[datetime] = []
    for name in ("a", "b", "c"):
        moments.append(datetime.now(UTC))
        await desk.run(One(), ITEMS[0], run_id=name)
    for source in desk.sources():
        assert await found(source, since=moments[1]) == ["c", "b"]
        assert await found(source, until=moments[1]) == ["a"]
        assert await found(source, since=moments[1], until=moments[2]) == ["b"]
        assert await found(source, since=moments[1].astimezone(timezone(timedelta(hours=9)))) == ["c", "b"]
        with pytest.raises(DeclarationError, match="no time zone"):
            await found(source, since=datetime(2026, 1, 1))  # noqa: DTZ001 - this is what is refused


async def test_environments_are_known_to_the_server_alone(desk: Desk) -> None:
    """A journal says that it does not know, rather than giving what may be of another one."""
    await desk.run(One(), ITEMS[0], run_id="r")
    assert await found(desk.langfuse, environment="test") == ["r"]
    assert await found(desk.langfuse, environment="production") == []
    with pytest.raises(DeclarationError, match="does not know"):
        await found(JournalRuns(desk.journal), environment="test")


async def test_only_whole_runs_of_what_was_asked_for_count(desk: Desk) -> None:
    """A stage that ran inside a graph is no run of the stage, nor is a graph inside another one of its own."""
    await desk.run(Many(), ITEMS[:2], run_id="many")
    await desk.run(One(), ITEMS[0], run_id="one")
    await desk.run(One.sort, ITEMS[0], run_id="sort")
    for source in desk.sources():
        assert [await found(source, node) for node in (Many(), One(), One.sort)] == [["many"], ["one"], ["sort"]]
        assert not source.skipped
