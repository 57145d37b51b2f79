"""What cannot be written: it fails whoever wrote it, and neither the others nor what comes later."""

import asyncio
import logging
import sqlite3
from collections.abc import Coroutine
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from echoing import Echo
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from scripted import Say
from stagegraph import DeclarationError, JournalError, Runner, feedback
from stagegraph.journal import CancelRow, FeedbackRow, Journal, RunFilter, RunRow, SqliteJournal

HALF = "\ud800"
"""Half a surrogate pair."""


def score(name: str, **changes: Any) -> FeedbackRow:
    row = FeedbackRow(id=name, run_id=name, key=None, name=name, value="1", comment=None, time=0.0)
    return replace(row, **changes)


@pytest.mark.parametrize("wrong", [{"comment": {"by": "ann"}}, {"time": 2**63}, {"value": [1]}])
async def test_a_row_that_can_never_be_written_fails_its_writer_alone(
    sqlite: SqliteJournal, wrong: dict[str, Any]
) -> None:
    """Others that are written in the same moment, and later ones, are there; the message names the value."""
    puts = [sqlite.put(score("before")), sqlite.put(score("wrong", **wrong)), sqlite.put(score("after"))]
    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        await sqlite.put(score("later"))
    assert [type(outcome) for outcome in outcomes] == [type(None), JournalError, type(None)]
    assert f"run 'wrong' was left out: its `{next(iter(wrong))}`" in str(outcomes[1])
    stored = [len(await sqlite.feedback(name)) for name in ("before", "wrong", "after", "later")]
    assert stored == [1, 0, 1, 1]


async def test_a_row_nobody_waited_for_is_told_to_its_own_run(sqlite: SqliteJournal) -> None:
    """The run's next `put` hears that something was left out, once; other runs hear nothing."""
    sqlite.put_soon(score("r", time=2**63))
    await sqlite.put(score("other"))
    with pytest.raises(JournalError, match="run 'r' was left out"):
        await sqlite.put(score("r", id="second"))
    await sqlite.put(score("r", id="third"))
    assert [row.id for row in await sqlite.feedback("r")] == ["second", "third"]


async def test_usage_that_no_file_can_hold_does_not_stop_a_run(sqlite: SqliteJournal) -> None:
    """A provider that reports nonsense costs the numbers, not the answers."""

    def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart("ok")], usage=RequestUsage(input_tokens=2**63))

    runner = Runner(FunctionModel(answer), journal=sqlite)
    async with asyncio.timeout(20):
        for _ in range(2):
            assert (await runner.run(Say(), "x")).output == "ok"
    assert [row.status for row in await sqlite.runs(RunFilter())] == ["succeeded", "succeeded"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": 5}, "needs a name"),
        ({"comment": {"by": "ann"}}, "comment of feedback `helpful` is a text or None, not dict"),
        ({"key": 3}, "key of feedback `helpful` is a text or None, not int"),
        ({"value": None}, "finite number, a boolean or a text, not None"),
        ({"value": 10**5000}, "finite number"),
    ],
)
async def test_feedback_that_cannot_be_kept_is_refused(journal: Journal, given: dict[str, Any], said: str) -> None:
    """At once, with what to write; the journal goes on."""
    runner = Runner(journal=journal)
    await runner.run(Echo(), "x", run_id="r")
    with pytest.raises(DeclarationError, match=said):
        await feedback("r", **{"name": "helpful", "value": 1, **given}, runner=runner)
    await feedback("r", "helpful", 1, runner=runner)
    assert len(await journal.feedback("r")) == 1


@pytest.mark.parametrize("metadata", [{"a": HALF}, {(1, 2): 2}, {"a": {(1, 2): object()}}])
async def test_odd_metadata_is_recorded_as_it_can_be(journal: Journal, metadata: dict[Any, Any]) -> None:
    """With a chosen id as without one."""
    runner = Runner(journal=journal)
    for options in ({"run_id": f"r{HALF}"}, {}):
        run = await runner.run(Echo(), "x", metadata=metadata, **options)  # type: ignore[arg-type]
        assert run.output == "x"
        await feedback(run.id, f"good{HALF}", 1, runner=runner)
    assert len(await journal.runs(RunFilter())) == 2


async def test_metadata_that_contains_itself_is_refused(journal: Journal) -> None:
    """There is no end to writing it down."""
    metadata: dict[str, Any] = {}
    metadata["me"] = metadata
    with pytest.raises(DeclarationError, match="metadata of a run cannot be recorded"):
        await Runner(journal=journal).run(Echo(), "x", metadata=metadata)


def test_a_journal_in_memory_has_its_own_class() -> None:
    """The name that SQLite knows for it would make a file of that name."""
    with pytest.raises(DeclarationError, match=r"MemoryJournal\(\)"):
        SqliteJournal(":memory:")


def locked(path: Path) -> sqlite3.Connection:
    """Another writer, who holds the lock until the event loop's own thread gives it back: who waits there never gets it."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    connection.execute("BEGIN IMMEDIATE")
    return connection


async def turns(number: int = 20) -> None:
    """Let everybody go as far as they can."""
    for _ in range(number):
        await asyncio.sleep(0.01)


def run_row(run_id: str, owner: str) -> RunRow:
    return RunRow(run_id=run_id, graph="Echo", status="running", started=1.0, input='"x"', owner=owner)


async def test_nothing_waits_for_another_writer_on_the_event_loop(sqlite: SqliteJournal) -> None:
    """Whatever is asked of a journal meanwhile succeeds as soon as the lock is free."""
    runner = Runner(journal=sqlite)
    await runner.run(Echo(), "x", run_id="before")
    with closing(locked(sqlite.path)) as other:
        another = SqliteJournal(sqlite.path)
        asked: list[Coroutine[Any, Any, object]] = [
            sqlite.put(score("first")),
            *(runner.run(Echo(), "x", run_id=f"r{number}") for number in range(20)),
            *(runner.run(Echo(), "x") for _ in range(20)),
            runner.run(Echo(), "x", replay="before"),
            sqlite.claim(run_row("claimed", sqlite.owner), fresh=True),
            *(sqlite.put(score(f"s{number}")) for number in range(20)),
            sqlite.run("before"),
            sqlite.runs(RunFilter()),
            sqlite.calls("before"),
            sqlite.ops("before"),
            sqlite.feedback("before"),
            sqlite.cancels(),
            sqlite.prune(keep=1_000),
            feedback("before", "helpful", 1, runner=runner),
            another.put(score("another")),
            another.claim(run_row("theirs", another.owner), fresh=True),
            another.runs(RunFilter()),
        ]
        tasks = [asyncio.ensure_future(one) for one in asked]
        await turns()
        for task in tasks[:22]:
            assert not task.done()
        other.execute("ROLLBACK")
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks)
    assert len(await sqlite.runs(RunFilter(status="succeeded"))) == 42
    await another.aclose()


async def test_a_new_journal_in_a_locked_file_is_made_when_it_is_free(tmp_path: Path) -> None:
    """Opening it waits for nobody on the event loop either."""
    path = tmp_path / "runs.db"
    with closing(locked(path)) as other:
        other.execute("CREATE TABLE x (y)")  # which is taken back
        journals = [SqliteJournal(path) for _ in range(3)]
        tasks = [asyncio.create_task(Runner(journal=journal).run(Echo(), "x")) for journal in journals]
        await turns()
        assert not any(task.done() for task in tasks)
        other.execute("ROLLBACK")
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks)
    assert len(await journals[0].runs(RunFilter())) == 3
    for journal in journals:
        await journal.aclose()


async def test_waiting_for_another_writer_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However much is asked meanwhile; and it has an end."""
    caplog.set_level(logging.WARNING, "stagegraph")
    journal = SqliteJournal(tmp_path / "runs.db", timeout=1.5)
    await journal.put(score("before"))
    with closing(locked(journal.path)):
        for _ in range(2):
            failures = await asyncio.gather(
                *(journal.put(score(str(number))) for number in range(20)), return_exceptions=True
            )
            assert {type(failure) for failure in failures} == {JournalError}
            assert "another program holds the file" in str(failures[0])
    assert len([record for record in caplog.records if "another program is writing" in record.message]) == 1
    await journal.put(score("after"))
    assert [len(await journal.feedback(name)) for name in ("before", "0", "19", "after")] == [1] * 4
    await journal.aclose()


async def test_who_waits_for_another_writer_can_be_cancelled(sqlite: SqliteJournal) -> None:
    """At once; a claim that was cancelled takes nothing when the lock is free, and a row that was put is written."""
    await sqlite.put(score("before"), CancelRow(run_id="nobody", segment=0))
    with closing(locked(sqlite.path)) as other:
        asked: list[Coroutine[Any, Any, object]] = [
            sqlite.put(score("put")),
            sqlite.claim(run_row("claimed", sqlite.owner), fresh=True),
            sqlite.runs(RunFilter()),
            sqlite.prune(older_than=0),
        ]
        tasks = [asyncio.ensure_future(one) for one in asked]
        await turns()
        for task in tasks:
            task.cancel()
        async with asyncio.timeout(60):
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * 4
        other.execute("ROLLBACK")
    assert len(await sqlite.feedback("put")) == 1
    row = await sqlite.run("claimed")
    assert row is None or (row.status, row.owner) == ("cancelled", None)


async def test_a_journal_that_is_closed_while_it_waits_writes_first(tmp_path: Path) -> None:
    """What it cannot write until it gives up is said."""
    journal = SqliteJournal(tmp_path / "runs.db")
    await journal.put(score("before"))
    with closing(locked(journal.path)) as other:
        journal.put_soon(score("soon"))
        closing_ = asyncio.create_task(journal.aclose())
        await turns()
        assert not closing_.done()
        other.execute("ROLLBACK")
        async with asyncio.timeout(60):
            await closing_
    journal = SqliteJournal(tmp_path / "runs.db", timeout=0.1)
    assert len(await journal.feedback("soon")) == 1
    with closing(locked(journal.path)):
        journal.put_soon(score("late"))
        with pytest.raises(JournalError, match="closed before its last 1 records could be written"):
            await journal.aclose()
