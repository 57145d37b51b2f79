"""A journal with damaged records: a sentence for each of them, and every other run as before."""

import asyncio
import shutil
import sqlite3
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from stagegraph import Graph, Runner, Stage, StagegraphError, feedback, step
from stagegraph.cli.app import app
from stagegraph.journal import CallRow, FeedbackRow, OpRow, RunFilter, RunRow, SqliteJournal
from stagegraph.tracing import JournalRuns

RUBBISH: tuple[Any, ...] = (
    *(None, "", "abc", -1e300, 9e999, b"\xff\xfe", "null", "[]", "[1]", '{"a": 1}', '[{"a": 1}]', "[" * 3_000),
    '{"resumed": ["x"], "crashes": "x", "limits": {"requests": "x"}, "models": 3}',
    '{"origins": {"a": 1}, "ended": [1e300], "metadata": 3}',
)


class Number(BaseModel):
    n: int


@step
async def add(number: Number) -> Number:
    return Number(n=number.n + 1)


class Flow(Graph[Number, Number]):
    ask = Stage(Number, Agent(output_type=Number))
    add = add

    async def flow(self, number: Number) -> Number:
        return await self.add(await self.ask(number))


@pytest.fixture(name="sound", scope="module")
def _sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with the runs `one` and `other`, and scores of both."""
    path = tmp_path_factory.mktemp("sound") / "runs.db"
    asyncio.run(_record(path))
    return path


async def _record(path: Path) -> None:
    journal = SqliteJournal(path)
    runner = Runner(TestModel(), journal=journal)
    for name in ("one", "other"):
        await runner.run(Flow(), Number(n=1), run_id=name, metadata={"at": "home"}, tags=("t",))
        await feedback(name, "good", 1.0, key="add", runner=runner)
    await journal.aclose()


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (table, column.name)
        for table, row in {"runs": RunRow, "calls": CallRow, "ops": OpRow, "feedback": FeedbackRow}.items()
        for column in fields(row)
    ],
)
async def test_a_damaged_record_is_said_and_loses_no_other_run(
    sound: Path, tmp_path: Path, table: str, column: str
) -> None:
    """Whatever stands in a column, also of a run that a crash interrupted: no raw error, and the others are there."""
    path = tmp_path / "runs.db"
    for number, value in enumerate(RUBBISH):
        shutil.copy(sound, path)
        with closing(sqlite3.connect(path)) as damaged:
            if number % 2:
                damaged.execute("UPDATE runs SET status = 'running', owner = 'x' WHERE run_id = 'one'")
            try:
                damaged.execute(f"UPDATE OR REPLACE {table} SET {column} = ? WHERE run_id = 'one'", (value,))  # noqa: S608
            except sqlite3.IntegrityError:  # a part of the primary key
                continue
            damaged.commit()
        journal = SqliteJournal(path)
        runner = Runner(TestModel(), journal=journal)
        source = JournalRuns(journal)
        assert "other" in [run.id async for run in source.runs(Flow(), score="good")]
        assert "other" in [row.run_id for row in await journal.runs(RunFilter(tags=("t",), feedback="good"))]
        for use in (
            lambda: runner.resume("one", graph=Flow()),  # noqa: B023 - used at once
            lambda: runner.run(Flow(), Number(n=1), replay="one"),  # noqa: B023
            lambda: journal.prune(keep=50),  # noqa: B023
        ):
            with suppress(StagegraphError):
                await use()
        await journal.aclose()


@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(("runs", name) for name in ("status", "started", "duration", "labels", "output_tokens")),
        *(("calls", name) for name in ("input", "started", "usage", "attempts", "parts", "messages", "pending")),
        *(("feedback", name) for name in ("value", "time")),
    ],
)
def test_commands_say_what_is_damaged(sound: Path, tmp_path: Path, table: str, column: str) -> None:
    """Each command ends with a sentence, and the list still has the others."""
    path = tmp_path / "runs.db"
    for value in ("abc", "[1]", 9e999):
        shutil.copy(sound, path)
        with closing(sqlite3.connect(path)) as damaged:
            damaged.execute(f"UPDATE {table} SET {column} = ? WHERE run_id = 'one'", (value,))  # noqa: S608
            damaged.commit()
        for command in (
            *(
                ["runs"],
                ["runs", "--json"],
                ["show", "one"],
                ["show", "one", "--json"],
                ["show", "one", "--call", "ask"],
            ),
            *(["show", "one", "--html", str(tmp_path / "run.html")], ["diff", "one", "other"]),
        ):
            out = StringIO()
            with redirect_stdout(out), redirect_stderr(out):
                try:
                    app([*command, "--journal", str(path)], standalone_mode=False)
                except StagegraphError as error:
                    out.write(str(error))
            assert "other" in out.getvalue() if command[0] == "runs" else out.getvalue()


@pytest.mark.parametrize("read_only", [False, True])
async def test_columns_that_others_add_or_take_away(sound: Path, tmp_path: Path, *, read_only: bool) -> None:
    """An added one is not read; without one that every run has, each run is damaged."""
    path = tmp_path / "runs.db"
    shutil.copy(sound, path)
    for change, left in (("ADD COLUMN note TEXT", ["one", "other"]), ("DROP COLUMN input", [])):
        with closing(sqlite3.connect(path)) as other:
            other.execute(f"ALTER TABLE runs {change}")
        journal = SqliteJournal(path, read_only=read_only)
        assert sorted(row.run_id for row in await journal.runs(RunFilter())) == left
        await journal.aclose()
