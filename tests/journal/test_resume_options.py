"""What a run that goes on keeps of how it began, and what ends it whatever its flow catches."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from scripted import asked, echo
from stagegraph import Graph, JournalError, Limits, ReplayError, RunError, Runner, Stage, as_completed, settle, step
from stagegraph.journal import MemoryJournal, SqliteJournal


@step
async def gate(closed: bool) -> bool:
    if closed:
        raise RuntimeError("closed")
    return closed


def asks(version: str, *, closed: bool, form: str = "settle") -> Graph[list[str], list[str]]:
    class Asks(Graph[list[str], list[str]]):
        ask = Stage(str, Agent(), version=version)
        gate = globals()["gate"]

        async def flow(self, texts: list[str]) -> list[str]:
            if form == "settle":
                said = [str(outcome.error or outcome.value) for outcome in await settle(self.ask, texts, limit=1)]
            elif form == "as_completed":
                async with as_completed(self.ask, texts) as outcomes:
                    said = [str(outcome.error or outcome.value) async for outcome in outcomes]
            else:
                try:
                    said = [await self.ask(texts[0])]
                except Exception as error:  # noqa: BLE001 - that is what this flow does
                    said = [str(error)]
            await self.gate(closed)
            return said

    return Asks()


@pytest.mark.parametrize("form", ["settle", "as_completed", "except"])
async def test_strict_is_strict_whatever_the_flow_catches(form: str) -> None:
    """A call that differs ends the run; it is no failed branch among others."""
    runner = Runner(echo(), journal=MemoryJournal())
    with pytest.raises(RunError, match="closed"):
        await runner.run(asks("1", closed=True, form=form), ["a", "b"], run_id="r")
    number = {"settle": r"\[0\]", "as_completed": r"\[[01]\]", "except": ""}[form]
    with pytest.raises(ReplayError, match=rf"call `ask{number}` differs from its record: the version changed"):
        await runner.resume("r", graph=asks("2", closed=False, form=form), strict=True)
    run = await runner.resume("r", graph=asks("2", closed=False, form=form))
    # `as_completed` hands out what ends first first.
    output = sorted(run.output) if form == "as_completed" else run.output
    assert output == (["a"] if form == "except" else ["a", "b"])
    assert {why for key, why in run.rerun.items() if key != "gate"} == {"the version"}


async def test_a_journal_that_fails_ends_the_run_whatever_the_flow_catches(tmp_path: Path) -> None:
    """What nobody could record is not paid for any further; when the file is free again, the run goes on."""
    path = tmp_path / "runs.db"
    journal = SqliteJournal(path, timeout=0.1)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    seen: list[str] = []

    def answer(text: str) -> str:
        seen.append(text)
        if text == "b" and len(seen) == 2:
            other.execute("BEGIN EXCLUSIVE")
        return text.upper()

    runner, graph = Runner(echo(answer), journal=journal), asks("1", closed=False)
    with pytest.raises(RunError, match="the journal failed: database is locked") as caught:
        await runner.run(graph, list("abcd"), run_id="r")
    assert isinstance(caught.value.__cause__, JournalError)
    assert seen == ["a", "b"]
    other.execute("ROLLBACK")
    other.close()
    assert (await runner.resume("r", graph=graph)).output == list("ABCD")
    assert seen.count("a") == 1
    await journal.aclose()


class Chain(Graph[str, str]):
    first = Stage(str, Agent())
    second = Stage(str, Agent())

    async def flow(self, text: str) -> str:
        return await self.second("to " + await self.first(text))


def chain_model(seen: list[str], down: list[bool]) -> FunctionModel:
    def answer(messages: list[Any], _info: Any) -> Any:
        text = asked(messages)
        seen.append(text)
        if text.startswith("to ") and down:
            raise ConnectionError
        return echo().function(messages, _info)  # type: ignore[misc]

    return FunctionModel(answer)


async def test_a_what_if_goes_on_as_a_what_if() -> None:
    """The output that a run was given for one call counts when the run is resumed, in another process as well."""
    seen: list[str] = []
    down, journal = [True], MemoryJournal()
    with pytest.raises(RunError):
        await Runner(chain_model(seen, down), journal=journal).run(
            Chain(), "x", run_id="r", override={"first": "given"}
        )
    down.clear()
    run = await Runner(chain_model(seen, down), journal=journal).resume("r", graph=Chain())
    assert (run.output, run.rerun) == ("to given", {})
    assert seen == ["to given", "to given"]


async def test_a_resumed_run_may_be_told_its_models_again() -> None:
    """Models that are objects are in no journal: a stage whose own model is given again is not asked again."""
    seen: list[str] = []
    down, journal, special = [True], MemoryJournal(), FunctionModel(echo().function, model_name="special")
    runner = Runner(chain_model(seen, down), journal=journal)
    with pytest.raises(RunError):
        await runner.run(Chain(), "x", run_id="r", models={"first": special})
    down.clear()
    run = await runner.resume("r", models={"first": special})
    assert (run.output, run.rerun, seen) == ("to x", {}, ["to x", "to x"])


async def test_another_graph_is_no_continuation() -> None:
    """A graph that has nothing of what was recorded is refused; strictly, one that lacks anything of it."""
    journal = MemoryJournal()
    with pytest.raises(RunError):
        await Runner(chain_model([], [True]), journal=journal).run(Chain(), "x", run_id="r")

    class Other(Graph[str, str]):
        other = Stage(str, Agent())

        async def flow(self, text: str) -> str:
            return await self.other(text)

    class Shorter(Graph[str, str]):
        second = Stage(str, Agent())

        async def flow(self, text: str) -> str:
            return await self.second(text)

    runner = Runner(echo(), journal=journal)
    with pytest.raises(ReplayError, match="called `first`, which is not part of Other"):
        await runner.resume("r", graph=Other())
    with pytest.raises(ReplayError, match="called `first`, which is not part of Shorter"):
        await runner.resume("r", graph=Shorter(), strict=True)
    assert (await runner.resume("r", graph=Shorter())).output == "x"


async def test_a_branch_that_failed_does_not_take_the_answer_of_an_equal_one() -> None:
    """Two branches ask the same; the one that was answered keeps its answer, and only the other asks again."""
    asked_now: list[str] = []
    trouble = [True]

    def answer(text: str) -> str:
        asked_now.append(text)
        if trouble and len(asked_now) == 1:
            raise ConnectionError
        return f"answer {len(asked_now)}"

    runner, graph = Runner(echo(answer), journal=MemoryJournal()), asks("1", closed=True)
    with pytest.raises(RunError, match="closed"):
        await runner.run(graph, ["same", "same"], run_id="r")
    trouble.clear()
    run = await runner.resume("r", graph=asks("1", closed=False))
    assert run.output == ["answer 3", "answer 2"]
    assert [call.usage.requests for call in run.calls() if call.path == "ask"] == [1, 1]


async def test_limits_of_a_resumed_run_are_for_what_is_still_to_be_done() -> None:
    """Requests on record are not made again, so they take nothing of what the resumed run may spend."""
    agent: Agent[object, str] = Agent(output_type=str)

    @agent.tool_plain
    def look(number: int) -> int:
        return number

    down = [True]

    def lead(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        if turn < 3:
            return ModelResponse([ToolCallPart("look", {"number": turn})])
        if down:
            raise ConnectionError
        return ModelResponse([TextPart("done")])

    class Looks(Graph[str, str]):
        look = Stage(str, agent)

        async def flow(self, text: str) -> str:
            return await self.look(text)

    runner = Runner(FunctionModel(lead), journal=MemoryJournal())
    with pytest.raises(RunError, match="ConnectionError"):
        await runner.run(Looks(), "x", run_id="r")
    down.clear()
    run = await runner.resume("r", limits=Limits(requests=1))
    assert (run.output, run.usage.requests) == ("done", 4)
