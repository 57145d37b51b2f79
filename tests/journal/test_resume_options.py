"""What a run that goes on keeps of how it began, and what ends it whatever its flow catches."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from scripted import JumpingLoop, asked, echo, priced
from stagegraph import (
    Graph,
    JournalError,
    LimitError,
    Limits,
    ReplayError,
    RunError,
    Runner,
    Stage,
    as_completed,
    settle,
    step,
)
from stagegraph.journal import Journal, MemoryJournal, SqliteJournal


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


@pytest.mark.parametrize(
    "labels",
    [
        "{",
        "[]",
        '{"limits": 5}',
        '{"limits": {"usd": "x"}}',
        '{"limits": {"requests": -1}}',
        '{"resumed": [null]}',
        '{"origins": {"first": [1]}}',
        '{"override": []}',
    ],
)
async def test_a_damaged_record_is_said_to_be_one(labels: str) -> None:
    """Whatever a file says about a run, resuming it raises no other error."""
    journal = MemoryJournal()
    runner = Runner(chain_model([], [True]), journal=journal)
    with pytest.raises(RunError):
        await runner.run(Chain(), "x", run_id="r")
    row = await journal.run("r")
    assert row is not None
    await journal.put(replace(row, labels=labels))
    with pytest.raises(ReplayError, match="the record of run 'r' is damaged"):
        await runner.resume("r")


async def test_an_input_that_was_given_anew_is_the_runs_input_from_then_on(journal: Journal) -> None:
    """Also for whoever resumes the run the next time."""
    down = [True]
    runner = Runner(chain_model([], down), journal=journal)
    with pytest.raises(RunError):
        await runner.run(Chain(), "x", run_id="r")
    with pytest.raises(RunError):
        await runner.resume("r", input="y")
    down.clear()
    run = await runner.resume("r")
    assert (run.input, run.output) == ("y", "to y")


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


class Looks(Graph[str, str]):
    """An agent that looks three times before it answers."""

    def __init__(self) -> None:
        agent: Agent[object, str] = Agent(output_type=str)

        @agent.tool_plain
        def look(number: int) -> int:
            return number

        self.look = Stage(str, agent)
        self.made = 0
        """Requests that were really made, answered or not."""
        self.fails_at: set[int] = set()
        self.seconds = 0
        """How long each request takes."""
        self.model = FunctionModel(self.lead)

    async def lead(self, messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        self.made += 1
        if self.seconds:
            JumpingLoop.jump(self.seconds)
            await anyio.wait_all_tasks_blocked()
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        if turn in self.fails_at:
            raise ConnectionError
        if turn < 3:
            return ModelResponse([ToolCallPart("look", {"number": turn})])
        return ModelResponse([TextPart("done")])

    async def flow(self, text: str) -> str:
        return await self.look(text)


async def test_what_a_run_spent_counts_when_it_is_resumed(journal: Journal) -> None:
    """Also a request that failed; what is on record is not made again, and so nothing is counted twice."""
    graph = Looks()
    graph.fails_at = {3}
    runner = Runner(graph.model, journal=journal)
    with pytest.raises(RunError, match="ConnectionError"):
        await runner.run(graph, "x", run_id="r", limits=Limits(requests=5))
    with pytest.raises(RunError, match="ConnectionError"):
        await runner.resume("r")
    graph.fails_at = set()
    for _ in range(2):
        with pytest.raises(LimitError, match="5 model requests were made, and the limit is 5"):
            await Runner(graph.model, journal=journal).resume("r", graph=graph)
    assert graph.made == 5
    run = await Runner(graph.model, journal=journal).resume("r", graph=graph, limits=Limits(requests=6))
    assert (run.output, run.usage.requests, graph.made) == ("done", 4, 6)


@pytest.mark.parametrize("limits", [Limits(requests=9), Limits(tokens=90), Limits(usd=0.09)], ids=repr)
async def test_no_number_of_interruptions_gives_more_than_the_limit(journal: Journal, limits: Limits) -> None:
    """The run is interrupted after every answer, and resumed until its limit is reached."""
    reached: set[str] = set()

    @step
    async def stumble(text: str) -> str:
        if text not in reached:
            reached.add(text)
            raise OSError("interrupted")
        return text

    class Stumbles(Graph[int, int]):
        ask = Stage(str, Agent())
        trip = stumble

        async def flow(self, count: int) -> int:
            for number in range(count):
                await self.ask(str(number))
                await self.trip(str(number))
            return count

    model, prompts = priced("0.01", tokens=10)
    with pytest.raises(RunError, match="interrupted"):
        await Runner(model, journal=journal).run(Stumbles(), 20, run_id="r", limits=limits)
    for _ in range(8):
        with pytest.raises(RunError, match="interrupted"):
            await Runner(model, journal=journal).resume("r", graph=Stumbles())
    for _ in range(2):
        with pytest.raises(LimitError):
            await Runner(model, journal=journal).resume("r", graph=Stumbles())
    assert prompts == [str(number) for number in range(9)]


async def test_limits_that_a_run_was_not_given_itself_are_those_of_the_runner_that_goes_on() -> None:
    """They are not recorded with the run; what it spent without a limit counts all the same."""
    graph, journal = Looks(), MemoryJournal()
    graph.fails_at = {3}
    with pytest.raises(RunError, match="ConnectionError"):
        await Runner(graph.model, journal=journal).run(graph, "x", run_id="r")
    with pytest.raises(LimitError, match="3 model requests were made, and the limit is 2"):
        await Runner(graph.model, journal=journal, limits=Limits(requests=2)).resume("r", graph=graph)
    assert graph.made == 4


def test_the_time_while_a_run_is_not_going_on_does_not_count() -> None:
    """A run may take 100 s and went on for 90; an hour later it has 10, whatever the clock says."""

    async def main() -> None:
        graph, journal = Looks(), MemoryJournal()
        graph.fails_at = {1}
        with pytest.raises(RunError, match="ConnectionError"):
            await Runner(graph.model, journal=journal).run(graph, "x", run_id="r", limits=Limits(seconds=100))
        row = await journal.run("r")
        assert row is not None
        began = row.started - 3690
        await journal.put(replace(row, started=began, labels=replace(row.read_labels(), ended=(began + 90,)).to_json()))
        graph.fails_at, graph.seconds = set(), 4
        with pytest.raises(LimitError, match="it took longer than 100 s") as caught:
            await Runner(graph.model, journal=journal).resume("r", graph=graph)
        assert caught.value.timed_out
        assert graph.made == 5
        run = await Runner(graph.model, journal=journal).resume("r", graph=graph, limits=Limits(seconds=200))
        assert run.output == "done"

    JumpingLoop.run(main)
