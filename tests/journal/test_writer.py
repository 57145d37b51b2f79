"""What cannot be written: it fails whoever wrote it, and neither the others nor what comes later."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from echoing import Echo
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from scripted import Say
from stagegraph import DeclarationError, JournalError, Runner, feedback
from stagegraph.journal import FeedbackRow, Journal, RunFilter, SqliteJournal

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
