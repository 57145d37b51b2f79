"""The file itself: whose it is, who may read it, and what is left alone."""

import asyncio
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from echoing import Echo
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from forked import python
from scripted import careful
from stagegraph import Graph, JournalError, Runner, Stage, feedback, step
from stagegraph.journal import RunFilter, SqliteJournal

SCHEMAS = Path(__file__).parent / "schemas"
"""A journal of each released schema, as those versions wrote it: runs that succeeded, that ask, and that were killed."""
RELEASED = sorted(int(file.stem.removeprefix("schema")) for file in SCHEMAS.iterdir())


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize(
    "made_with", ["CREATE TABLE x (y)", "PRAGMA journal_mode = WAL; CREATE TABLE x (y)", "PRAGMA application_id = 7"]
)
def test_the_database_of_another_program_stays_as_it_is(tmp_path: Path, made_with: str, is_open: bool) -> None:
    """Byte for byte, and nothing is put beside it; what makes it theirs may still be in its log."""
    path = tmp_path / "theirs.db"
    connection = sqlite3.connect(path)
    connection.executescript(made_with)
    if not is_open:
        connection.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="another program"):
        SqliteJournal(path)
    assert path.read_bytes() == before
    assert is_open or list(tmp_path.iterdir()) == [path]
    connection.close()


async def test_an_empty_file_becomes_its_owners_alone(tmp_path: Path) -> None:
    """Whatever mode it had, and its log as well; an older journal that was opened to others stays open."""
    path = tmp_path / "runs.db"
    path.touch()
    path.chmod(0o644)
    journal = SqliteJournal(path)
    await Runner(journal=journal).run(Echo(), "x")
    assert modes(tmp_path) == {0o600}
    await journal.aclose()
    path.chmod(0o640)
    await SqliteJournal(path).aclose()
    assert modes(tmp_path) == {0o640}


async def test_a_page_of_a_run_is_its_owners_alone(tmp_path: Path) -> None:
    """It holds every value, as the journal does."""
    journal = SqliteJournal(tmp_path / "runs.db")
    await Runner(journal=journal).run(Echo(), "x")
    await journal.aclose()
    page = tmp_path / "run.html"
    shown = await asyncio.to_thread(
        python, "-m", "stagegraph", "show", "last", "--html", str(page), "--journal", str(tmp_path / "runs.db")
    )
    assert shown.returncode == 0
    assert stat.S_IMODE(page.stat().st_mode) == 0o600


async def test_a_journal_can_be_looked_into_without_writing(tmp_path: Path) -> None:
    """Nothing is written, not even beside it; what would write says so. A journal that is in use is read with its log."""
    path = tmp_path / "runs.db"
    writing = SqliteJournal(path)
    runner = Runner(journal=writing)
    await runner.run(Echo(), "x", run_id="r")
    looking = SqliteJournal(path, read_only=True)
    assert [row.run_id for row in await looking.runs(RunFilter())] == ["r"]
    await writing.aclose()
    before = path.read_bytes()
    assert [call.key for call in await looking.calls("r")] == ["", "echo"]
    with pytest.raises(JournalError, match="read_only"):
        await feedback("r", "helpful", 1, runner=Runner(journal=looking))
    with pytest.raises(JournalError, match="read_only"):
        await looking.prune(keep=0)
    with pytest.raises(JournalError, match="read_only"):
        await Runner(journal=looking).run(Echo(), "x", run_id="new")
    await looking.aclose()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]  # noqa: ASYNC240


@pytest.mark.parametrize(
    ("name", "content", "read_only", "reason"),
    [
        ("runs.db", b"", True, "no journal"),
        ("runs.db", b"hello", True, "no journal"),
        ("runs.db", b"no database at all" * 100, False, "no journal"),
        (".", None, False, "journal failed"),
        ("none/runs.db", None, False, "journal failed"),
    ],
)
def test_what_is_no_journal_is_refused(
    tmp_path: Path, name: str, content: bytes | None, read_only: bool, reason: str
) -> None:
    """The message says so, and it stays as it is: also a folder, and a file in a folder that is missing."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JournalError, match=reason):
        SqliteJournal(path, read_only=read_only)
    assert content is None or path.read_bytes() == content


async def test_commands_look_into_a_journal_that_nobody_may_write(tmp_path: Path) -> None:
    """`runs` and `show` work on a read-only journal; `feedback` says why it does not."""
    folder = tmp_path / "archive"
    folder.mkdir()
    path = folder / "runs.db"
    journal = SqliteJournal(path)
    await Runner(journal=journal).run(Echo(), "x", run_id="r")
    await journal.aclose()
    path.chmod(0o400)
    folder.chmod(0o500)
    if os.access(path, os.W_OK):
        pytest.skip("this user may write everywhere")
    for words in (("runs",), ("show", "r")):
        shown = await asyncio.to_thread(python, "-m", "stagegraph", *words, "--journal", str(path))
        assert shown.returncode == 0, shown.stderr
        assert "Echo" in shown.stdout
    scored = await asyncio.to_thread(
        python, "-m", "stagegraph", "feedback", "r", "helpful", "1", "--journal", str(path)
    )
    assert scored.returncode == 1
    assert "nothing can be recorded" in scored.stderr


@step
async def look(text: str) -> str:
    return text.strip()


class Tidy(Graph[str, str]):
    """What those journals are of."""

    look = look
    clean = Stage(str, careful)

    async def flow(self, text: str) -> str:
        return await self.clean(await self.look(text))


def older(path: Path, version: int, *more: str) -> bytes:
    """A journal of a released schema; returns its bytes."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript((SCHEMAS / f"schema{version}.sql").read_text("utf-8"))
        for statement in more:
            connection.execute(statement)
    return path.read_bytes()


def schema_of(path: Path) -> tuple[int, dict[str, set[str]]]:
    """The version that is stamped on a file, and the columns of its tables."""
    with closing(sqlite3.connect(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        columns = {table: {row[1] for row in connection.execute(f"PRAGMA table_info({table})")} for table in tables}
        return connection.execute("PRAGMA user_version").fetchone()[0], columns


async def new_schema(folder: Path) -> tuple[int, dict[str, set[str]]]:
    path = folder / "new.db"
    await SqliteJournal(path).aclose()
    return schema_of(path)


async def go_on(journal: SqliteJournal) -> None:
    """What began before a deploy goes on after it: with what was recorded, and asking for nothing else."""
    asked: list[str] = []

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        asked.append(str(messages[0].parts[-1].content))  # type: ignore[union-attr]
        return ModelResponse([TextPart("answered")])

    runner = Runner(FunctionModel(answer), journal=journal)
    done = await runner.run(Tidy(), " all fine ", replay="done")
    row = await journal.run("done")
    assert row is not None
    assert (row.status, row.output, row.read_labels().user_id) == ("succeeded", '"tidied"', "ann")
    assert [score.comment for score in await journal.feedback("done")] == ["good"]
    crashed = await runner.resume("crashed", graph=Tidy())
    asks = await runner.resume("asks", graph=Tidy(), answers={"call-1": True})
    assert [run.output for run in (crashed, asks)] == ["answered"] * 2
    for run in (done, crashed, asks):
        assert run.call("look").replayed or run.rerun["look"]
    assert await journal.cancels() == []


@pytest.mark.parametrize("version", RELEASED)
async def test_runs_of_an_older_version_go_on(tmp_path: Path, version: int) -> None:
    """Each released schema is read as it is, and brought up to date as a whole when it is opened for writing."""
    path = tmp_path / "runs.db"
    before = older(path, version)
    looking = SqliteJournal(path, read_only=True)
    assert {(row.run_id, row.status) for row in await looking.runs(RunFilter())} == {
        ("done", "succeeded"),
        ("asks", "suspended"),
        ("crashed", "running"),
    }
    assert [row.run_id for row in await looking.runs(RunFilter(status="interrupted"))] == ["crashed"]
    assert [(call.transient, call.origin) for call in await looking.calls("done")] == [(False, None)] * 3
    await looking.aclose()
    assert path.read_bytes() == before
    journal = SqliteJournal(path)
    assert schema_of(path) == await new_schema(tmp_path)
    await go_on(journal)
    assert await journal.prune(keep=0) == 4
    await journal.aclose()


@pytest.mark.parametrize("version", RELEASED)
async def test_a_file_with_the_stamp_of_this_version_gets_what_it_lacks(tmp_path: Path, version: int) -> None:
    """The stamp alone does not make the columns."""
    wanted = await new_schema(tmp_path)
    path = tmp_path / "runs.db"
    older(path, version, f"PRAGMA user_version = {wanted[0]}")
    journal = SqliteJournal(path)
    assert schema_of(path) == wanted
    await go_on(journal)
    await journal.aclose()


@pytest.mark.parametrize("version", RELEASED)
@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
async def test_an_older_journal_that_is_in_use_stays_as_it_is(tmp_path: Path, version: int, mode: str) -> None:
    """The process that has it open is of the older version, and its runs would be taken for those of a dead one."""
    path = tmp_path / "runs.db"
    older(path, version, f"PRAGMA journal_mode = {mode}")
    was = schema_of(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as theirs:
        theirs.execute("BEGIN IMMEDIATE" if mode == "DELETE" else "SELECT count(*) FROM runs").fetchall()
        journal = SqliteJournal(path, timeout=0.1)
        with pytest.raises(JournalError, match=f"older stagegraph .schema {version}.*end that process"):
            await journal.run("done")
        with pytest.raises(JournalError, match="end that process"):
            await asyncio.to_thread(SqliteJournal, path, timeout=0.1)
        assert await asyncio.to_thread(schema_of, path) == was
    await go_on(journal)
    await journal.aclose()


async def test_an_older_journal_is_brought_up_to_date_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """Where that fails in the middle, the file is as it was, and the next try succeeds."""
    path = tmp_path / "runs.db"
    older(path, 1, "CREATE VIEW cancels AS SELECT 1")  # in the place of a table that is to be made after others
    was = schema_of(path)
    with pytest.raises(JournalError):
        SqliteJournal(path)
    assert schema_of(path) == was
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP VIEW cancels")
    journal = SqliteJournal(path)
    assert schema_of(path) == await new_schema(tmp_path)
    await go_on(journal)
    await journal.aclose()


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
async def test_a_newer_journal_stays_as_it_is(tmp_path: Path, mode: str) -> None:
    """Byte for byte, and nothing is left beside it."""
    path = tmp_path / "runs.db"
    before = older(path, 3, "PRAGMA user_version = 99", f"PRAGMA journal_mode = {mode}")
    for read_only in (False, True):
        with pytest.raises(JournalError, match=r"newer stagegraph .schema 99"):
            SqliteJournal(path, read_only=read_only)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["runs.db"]  # noqa: PTH208


@step
async def double(number: int) -> int:
    return 2 * number


async def test_a_new_file_is_read_while_it_is_made(tmp_path: Path) -> None:
    """The first reads and writes come at once: each waits for what another one locks."""
    for number in range(40):
        journal = SqliteJournal(tmp_path / f"{number}.db")
        beginning = Runner(journal=journal, tracing=None).run(double, 1, run_id="r")
        *_, run = await asyncio.gather(*(journal.run("r") for _ in range(6)), beginning)
        assert run.output == 2
        await journal.aclose()
