"""What is seen of a run that was interrupted, and of when it ran: calls, requests, tokens and times."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic_ai import Agent

from forked import cli, python
from scripted import echo
from stagegraph import Graph, RunError, Runner, Stage, step
from stagegraph.draw import page_of
from stagegraph.journal import Journal, MemoryJournal, SqliteJournal
from stagegraph.tracing import JournalRuns

KILLED = """
import asyncio, os, sys
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.usage import RequestUsage
from stagegraph import Graph, Runner, Stage
from stagegraph.journal import SqliteJournal

agent = Agent(name="looker")

@agent.tool_plain
def look(number: int) -> int:
    return number

def model(messages, info):
    usage = RequestUsage(input_tokens=10, output_tokens=3)
    if len(messages) == 5 and messages[0].parts[0].content == "second":
        os.kill(os.getpid(), 9)
    if len(messages) < 5:
        return ModelResponse([ToolCallPart("look", {"number": len(messages)})], usage=usage)
    return ModelResponse([TextPart("done")], usage=usage)

class Looks(Graph[str, str]):
    look = Stage(str, agent)

    async def flow(self, text: str) -> str:
        return await self.look("first") + await self.look("second")

async def main():
    await Runner(FunctionModel(model), journal=SqliteJournal(sys.argv[1])).run(Looks(), "x", run_id="r")

if sys.argv[1:]:
    asyncio.run(main())
"""


class Looks(Graph[str, str]):
    """The same for reading it."""

    look = Stage(str, Agent(name="looker"))

    async def flow(self, text: str) -> str:
        return await self.look(text)


async def test_an_interrupted_run_shows_what_it_has_everywhere(tmp_path: Path) -> None:
    """Three requests of the first agent and two of the second, which was killed in its third."""
    python("-c", KILLED, tmp_path / "runs.db")
    [listed] = [json.loads(line) for line in cli(tmp_path, "runs", "--json").stdout.splitlines()]
    assert listed["status"] == "interrupted"
    assert (listed["requests"], listed["input_tokens"], listed["output_tokens"]) == (5, 50, 15)
    shown = json.loads(cli(tmp_path, "show", "r", "--json").stdout)
    assert (shown["run"]["requests"], shown["run"]["input_tokens"]) == (5, 50)
    assert {call["key"]: call["usage"].get("requests") for call in shown["calls"]} == {"": None, "look": 3, "look#1": 2}
    assert "3 calls, 5 requests, 50 + 15 tokens" in cli(tmp_path, "show", "r").stdout
    journal = SqliteJournal(tmp_path / "runs.db", read_only=True)
    assert '"requests":5' in str(await page_of(journal, "r")).replace(" ", "")
    [run] = [run async for run in JournalRuns(journal).runs(Looks())]
    assert (run.usage.requests, run.usage.input_tokens, run.call("look#1").usage.requests) == (5, 50, 2)
    assert run.duration >= 0
    await journal.aclose()


class Bell(Graph[str, str]):
    """Something that is asked, and something that fails the first time."""

    ask = Stage(str, Agent())

    def __init__(self) -> None:
        self.broken = True
        bell = self

        @step
        async def rings(text: str) -> str:
            if bell.broken:
                raise OSError("broken")
            return text

        self.ring = rings

    async def flow(self, text: str) -> str:
        return await self.ring(await self.ask(text))


async def begun(journal: Journal, seconds: float) -> Bell:
    """A run `r` that was interrupted so many seconds ago."""
    bell = Bell()
    with pytest.raises(RunError, match="broken"):
        await Runner(echo("what is said about {}, at some length".format), journal=journal).run(bell, "x", run_id="r")
    bell.broken = False
    row = await journal.run("r")
    assert row is not None
    labels = row.read_labels()
    labels = replace(labels, ended=tuple(moment - seconds for moment in labels.ended))
    await journal.put(replace(row, started=row.started - seconds, labels=labels.to_json()))
    for call in await journal.calls("r"):
        await journal.put(replace(call, started=call.started - seconds))
    return bell


async def test_the_times_of_a_resumed_run_are_those_at_which_it_ran(journal: Journal) -> None:
    """What was recalled ran before the pause, what is new after it; the run's own row says when it went on."""
    bell = await begun(journal, 3600)
    before = {call.key: call for call in await journal.calls("r")}
    run = await Runner(echo("what is said about {}, at some length".format), journal=journal).resume("r", graph=bell)
    row = await journal.run("r")
    assert row is not None
    (first, interrupted), (again, ended) = row.segments()
    assert first == row.started <= interrupted <= again - 3590 < ended
    rows = {call.key: call for call in await journal.calls("r")}
    assert [rows[key].started for key in ("", "ask")] == [before[key].started for key in ("", "ask")]
    assert rows["ask"].duration == before["ask"].duration
    assert rows["ring"].started >= again
    for read in (run, await Runner(journal=journal).resume("r", graph=bell)):
        assert 3590 < (read.call("ring").started - read.call("ask").started).total_seconds() < 3700
        assert 3590 < (read.call("ring").started - read.started).total_seconds() < read.duration < 3700
        assert read.call("ask").duration < 10


async def test_a_clock_that_was_set_back_while_a_run_was_interrupted(journal: Journal) -> None:
    """By two hours: nothing has a negative duration, and what ran later is later."""
    bell = await begun(journal, -7199)
    run = await Runner(echo("what is said about {}, at some length".format), journal=journal).resume("r", graph=bell)
    row = await journal.run("r")
    assert row is not None
    assert row.duration >= 0
    moments = [moment for segment in row.segments() for moment in segment]
    assert moments == sorted(moments)
    assert sum(end - begin for begin, end in row.segments()) < 600
    assert all(call.duration >= 0 for call in run.root.walk())
    assert run.call("ring").started >= run.call("ask").started >= run.started
    assert ("ask", "ring") in run.edges()


async def test_a_clock_that_is_set_back_while_a_run_is_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long something took is no question of the calendar."""
    real = time.time

    @step
    async def set_back(text: str) -> str:
        monkeypatch.setattr(time, "time", lambda: real() - 7199)
        return text

    class Sets(Graph[str, str]):
        clock = set_back

        async def flow(self, text: str) -> str:
            return await self.clock(text)

    journal = MemoryJournal()
    await Runner(journal=journal).run(Sets(), "x", run_id="r")
    row = await journal.run("r")
    assert row is not None
    assert 0 <= row.duration < 600
    assert all(0 <= call.duration < 600 for call in await journal.calls("r"))
