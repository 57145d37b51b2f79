"""What a journal forgets, what it keeps for somebody who is to go on with it, and the room that this takes."""

import asyncio
from dataclasses import replace
from pathlib import Path

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from forked import python
from scripted import Tidy
from stagegraph import Runner
from stagegraph.journal import FeedbackRow, Journal, RunFilter, SqliteJournal


def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    asks = messages[0].parts[0].content == "ask"  # type: ignore[union-attr]
    return ModelResponse([ToolCallPart("delete", {"path": "p"})] if asks and len(messages) == 1 else [TextPart("ok")])


def owner_that_died(folder: Path) -> str:
    """Who held a run: a real process, which was killed."""
    code = (
        "import os, sys; from stagegraph.journal import SqliteJournal; journal = SqliteJournal(sys.argv[1]); "
        "print(journal.owner, flush=True); os.kill(os.getpid(), 9)"
    )
    return python("-c", code, folder / "runs.db").stdout.strip()


async def test_runs_that_wait_to_go_on_are_forgotten_by_their_age_alone(journal: Journal, tmp_path: Path) -> None:
    """`keep` is about ended runs; a question to a person and a crash are no reason to forget what was paid for."""
    runner = Runner(FunctionModel(answer), journal=journal)
    for name, text in (("old", "x"), ("asks", "ask"), ("new", "x"), ("crashed", "x")):
        await runner.run(Tidy(), text, run_id=name)
    row = await journal.run("crashed")
    assert row is not None
    await journal.put(replace(row, status="running", owner=owner_that_died(tmp_path)))
    await journal.put(replace(row, run_id="here", status="running", owner=journal.owner))
    assert await journal.prune(keep=1) == 1
    assert {one.run_id for one in await journal.runs(RunFilter())} == {"asks", "new", "here", "crashed"}
    assert await journal.prune(older_than=3600) == 0
    assert await journal.prune(older_than=0) == 3
    assert [one.run_id for one in await journal.runs(RunFilter())] == ["here"]
    assert await journal.calls("asks") == []


async def test_a_kept_question_is_still_answered(journal: Journal) -> None:
    """After everything else was forgotten."""
    runner = Runner(FunctionModel(answer), journal=journal)
    await runner.run(Tidy(), "x")
    asks = await runner.run(Tidy(), "ask", run_id="asks")
    assert await journal.prune(keep=0) == 1
    run = await runner.resume("asks", answers={asks.pending[0].id: True})
    assert run.output == "ok"


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


async def test_the_room_of_forgotten_runs_is_given_back(sqlite: SqliteJournal, tmp_path: Path) -> None:
    """At once, not only when the journal is closed."""
    runner = Runner(FunctionModel(answer), journal=sqlite)
    for _ in range(3):
        await runner.run(Tidy(), "x" * 500_000)
    assert size_of(tmp_path) > 3_000_000
    assert await sqlite.prune(keep=0) == 3
    assert size_of(tmp_path) < 300_000


async def test_the_log_of_large_values_does_not_grow_without_end(sqlite: SqliteJournal, tmp_path: Path) -> None:
    """It is moved into the file by its size, not only by the number of records."""
    log = tmp_path / "runs.db-wal"
    row = FeedbackRow(id="", run_id="r", key=None, name="note", value="1", comment="x" * 1_000_000, time=0.0)
    for number in range(20):
        await sqlite.put(replace(row, id=str(number)))
    async with asyncio.timeout(200):
        while log.stat().st_size > 10_000_000:  # it begins anew at a moment when nobody else writes
            await sqlite.put(replace(row, id="another"))
            await asyncio.to_thread(log.stat)
    assert len(await sqlite.feedback("r")) >= 20
