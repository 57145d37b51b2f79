"""Which call a failure is blamed on: the one in which its exception was first seen, whatever the texts say."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from stagegraph import Example, Graph, Run, RunError, Runner, StageError, fan_out, settle, step
from stagegraph.journal import Journal, MemoryJournal, SqliteJournal
from stagegraph.optimize import evaluate
from stagegraph.tracing import JournalRuns

pytestmark = pytest.mark.anyio

SHARED = LookupError("shared")
"""An exception object that several calls raise."""


@step
async def refuse(text: str) -> str:
    raise KeyError(text)


@step
async def refuse_too(text: str) -> str:
    raise KeyError(text)


@step
async def echo(text: str) -> str:
    return text


class Refusing(Graph[str, str]):
    """A graph with two steps that fail."""

    refuse = refuse
    refuse_too = refuse_too
    echo = echo


async def failed(graph: Graph[str, str], text: str = "no", runner: Runner | None = None) -> RunError:
    with pytest.raises(RunError) as caught:
        await (runner or Runner()).run(graph, text)
    return caught.value


def keys(error: RunError) -> list[str]:
    return [call.key for call in error.failures]


def origins(run: Run) -> dict[str, str | None]:
    return {call.key: call.error.origin for call in run.root.walk() if call.error is not None}


async def recorded(journal: Journal, graph: Graph[str, str], error: RunError) -> Run:
    """The run of an error, as the journal has it."""
    runs = [run async for run in JournalRuns(journal).runs(graph, status="failed")]
    return next(run for run in runs if run.id == error.run.id)


class Coincidence(Refusing):
    """What the flow raises contains the text of a failure that it caught."""

    async def flow(self, value: str) -> str:
        try:
            return await self.refuse(value)
        except KeyError:
            raise RuntimeError("'no' section may be empty") from None


async def test_a_caught_failure_is_not_blamed_for_another_one_with_its_text():
    error = await failed(Coincidence())
    assert str(error) == (
        "Coincidence failed: RuntimeError: 'no' section may be empty (and 1 more failed call, see `error.failures`)"
    )
    assert keys(error) == ["", "refuse"]
    assert origins(error.run) == {"": "", "refuse": "refuse"}


async def test_a_note_goes_to_the_call_that_ended_the_run():
    """What tuning learns from is not the failure that the flow had caught."""
    report = await evaluate(Coincidence(), lambda example, run: 1.0, [Example("no")])
    [row] = report.rows
    assert [(place, weight) for place, _, weight in row.notes] == [("", 1.0)]


async def test_the_context_of_an_exception_is_no_cause():
    """Raised while another one was handled is not raised because of it."""

    class Distracted(Refusing):
        async def flow(self, value: str) -> str:
            try:
                return await self.refuse(value)
            except KeyError:
                raise RuntimeError("unrelated")  # noqa: B904

    assert keys(await failed(Distracted())) == ["", "refuse"]


async def test_of_two_failures_with_the_same_text_the_one_that_ended_the_run_is_named():
    class Twice(Refusing):
        async def flow(self, value: str) -> str:
            try:
                return await self.refuse(value)
            except KeyError:
                return await self.refuse_too(value)

    error = await failed(Twice())
    assert str(error).startswith("Twice failed at `refuse_too`: KeyError: 'no' (and 1 more failed call")
    assert keys(error) == ["refuse", "refuse_too"]
    assert origins(error.run) == {"": "refuse_too", "refuse": "refuse", "refuse_too": "refuse_too"}


async def test_an_exception_raised_from_a_failure_has_its_origin():
    class Translating(Refusing):
        async def flow(self, value: str) -> str:
            try:
                return await self.refuse(value)
            except KeyError as error:
                raise RuntimeError("translated") from error

    error = await failed(Translating())
    assert str(error) == "Translating failed at `refuse`: RuntimeError: translated"
    assert keys(error) == ["refuse"]


@pytest.mark.parametrize("form", ["raised later", "of an outcome", "once more by a branch"])
async def test_the_same_exception_object_keeps_its_origin(form: str):
    class Later(Refusing):
        async def again(self, text: str) -> str:
            return await self.refuse_too(text)

        async def flow(self, value: str) -> str:
            if form == "of an outcome":
                [outcome] = await settle(self.refuse, [value])
                return outcome.value
            try:
                return await self.refuse(value)
            except KeyError as error:
                kept = error
            await self.echo("meanwhile")
            if form == "once more by a branch":
                return (await fan_out(self.again, [value]))[0]
            raise kept

    error = await failed(Later())
    expected = {"raised later": "refuse", "of an outcome": "refuse[0]", "once more by a branch": "refuse_too[0]"}[form]
    assert str(error).startswith(f"Later failed at `{expected}`: KeyError: 'no'")
    assert expected in keys(error)
    assert "" not in keys(error)


async def test_one_exception_object_raised_by_two_steps_belongs_to_the_last_one():
    @step
    async def share(text: str) -> str:
        raise SHARED

    @step
    async def share_too(text: str) -> str:
        raise SHARED

    class Sharing(Graph[str, str]):
        first = share
        second = share_too

        async def flow(self, value: str) -> str:
            with contextlib.suppress(LookupError):
                await self.first(value)
            return await self.second(value)

    for _ in range(2):  # the object remembers nothing of a run before
        error = await failed(Sharing())
        assert str(error).startswith("Sharing failed at `second`")
        assert keys(error) == ["first", "second"]

    class Alone(Graph[str, str]):
        async def flow(self, value: str) -> str:
            raise SHARED

    error = await failed(Alone())
    assert (str(error), keys(error)) == ("Alone failed: LookupError: shared", [""])


async def test_a_group_of_failures_leaves_the_graph_out_and_its_own_error_does_not():
    """A task group of the user's, as it is raised by `anyio` and `asyncio`."""

    class Grouped(Refusing):
        own = False

        async def fail(self, text: str) -> None:
            await anyio.lowlevel.checkpoint()
            raise OSError(text)

        async def flow(self, value: str) -> str:
            async with anyio.create_task_group() as group:
                group.start_soon(self.fail if self.own else self.refuse_too, value)
                group.start_soon(self.refuse, value)
            return value

    class Own(Grouped):
        own = True

    both = await failed(Grouped())
    assert keys(both) == ["refuse", "refuse_too"]
    assert origins(both.run)[""] in {"refuse", "refuse_too"}

    class Mixed(Refusing):
        async def flow(self, value: str) -> str:
            try:
                return await self.refuse(value)
            except KeyError as error:
                raise ExceptionGroup("both", [error, ValueError("of the flow")]) from None

    error = await failed(Mixed())
    assert keys(error) == ["", "refuse"]
    assert origins(error.run)[""] == ""
    single = await failed(Own())
    assert "OSError" in str(single) or "KeyError" in str(single)


async def test_a_new_error_with_the_text_of_a_caught_stage_error_is_the_graphs_own():
    class Copying(Refusing):
        async def flow(self, value: str) -> str:
            try:
                return await self.echo(7)  # type: ignore[arg-type]
            except StageError as error:
                text, key, path = str(error), error.key, error.path
            raise StageError(text, key=key, path=path)

    error = await failed(Copying())
    assert keys(error) == ["", "echo"]
    assert origins(error.run) == {"": "", "echo": "echo"}


class Inner(Refusing):
    """Fails by itself for `own`, with its step for anything else."""

    async def flow(self, value: str) -> str:
        if value == "own":
            raise ValueError(value)
        return await self.refuse(value)


class Outer(Graph[str, str]):
    """Passes on what an inner graph raises."""

    inner = Inner()

    async def flow(self, value: str) -> str:
        [first] = await fan_out(self.inner, [value])
        return first


@pytest.fixture(name="journal", params=["memory", "sqlite"])
async def _journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Journal]:
    journal: Journal = MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path / "runs.db")
    yield journal
    await journal.aclose()


@pytest.mark.parametrize(("text", "expected"), [("own", "inner[0]"), ("no", "inner[0].refuse")])
async def test_nested_graphs_pass_the_origin_on_and_records_keep_it(journal: Journal, text: str, expected: str):
    """In memory, in a journal, and in the JSON of a run."""
    error = await failed(Outer(), text, Runner(journal=journal))
    assert f"Outer failed at `{expected}`" in str(error)
    assert keys(error) == [expected]
    read = await recorded(journal, Outer(), error)
    for run in (error.run, read, Run.from_json(error.run.to_json(), Outer())):
        assert set(origins(run).values()) == {expected}
        assert [call.key for call in run.failures()] == [expected]


async def test_a_journal_of_an_older_schema_gets_the_columns_it_lacks(tmp_path: Path):
    """In one transaction when it is opened to record; where it is only read, a record without them is read."""
    path = tmp_path / "runs.db"
    journal = SqliteJournal(path)
    error = await failed(Outer(), "no", Runner(journal=journal))
    await journal.aclose()
    with closing(sqlite3.connect(path)) as connection:
        for column in ("origin", "transient"):
            connection.execute(f"ALTER TABLE calls DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 2")
        connection.commit()
    reading = SqliteJournal(path, read_only=True)
    run = await recorded(reading, Outer(), error)
    assert [call.key for call in run.failures()] == ["inner[0].refuse"]
    assert set(origins(run).values()) == {None}
    await reading.aclose()
    journal = SqliteJournal(path)
    again = await failed(Outer(), "own", Runner(journal=journal))
    run = await recorded(journal, Outer(), again)
    assert set(origins(run).values()) == {"inner[0]"}
    old = await recorded(journal, Outer(), error)
    assert [call.key for call in old.failures()] == ["inner[0].refuse"]
    await journal.aclose()


async def test_a_journal_keeps_whether_a_failure_was_transient(journal: Journal):
    @step
    async def disconnect(text: str) -> str:
        raise ConnectionError(text)

    class Cut(Refusing):
        cut_off = disconnect

        async def flow(self, value: str) -> str:
            await settle(self.refuse, [value])
            return await self.cut_off(value)

    error = await failed(Cut(), "no", Runner(journal=journal))
    read = await recorded(journal, Cut(), error)
    for run in (error.run, read):
        transient = {call.key: call.error.transient for call in run.root.walk() if call.error is not None}
        assert transient == {"": True, "cut_off": True, "refuse[0]": False}
