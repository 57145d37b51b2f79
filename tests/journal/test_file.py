"""The file itself: whose it is, who may read it, and what is left alone."""

import asyncio
import os
import sqlite3
import stat
from pathlib import Path

import pytest
from echoing import Echo

from forked import python
from stagegraph import JournalError, Runner, feedback
from stagegraph.journal import RunFilter, SqliteJournal


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


async def test_a_journal_of_an_older_version_is_read_and_brought_up_to_date(tmp_path: Path) -> None:
    """Reading it changes nothing; opening it for writing adds the columns and tables that it lacks."""
    path = tmp_path / "runs.db"
    journal = SqliteJournal(path)
    await Runner(journal=journal).run(Echo(), "x", run_id="r")
    await journal.aclose()
    connection = sqlite3.connect(path)
    connection.executescript(
        "ALTER TABLE calls DROP COLUMN origin; ALTER TABLE calls DROP COLUMN transient; DROP TABLE cancels;"
        "PRAGMA user_version = 1; PRAGMA journal_mode = DELETE"
    )
    connection.close()
    before = path.read_bytes()
    looking = SqliteJournal(path, read_only=True)
    assert [(call.key, call.transient, call.origin) for call in await looking.calls("r")] == [
        ("", False, None),
        ("echo", False, None),
    ]
    await looking.aclose()
    assert path.read_bytes() == before
    for _ in range(2):
        journal = SqliteJournal(path)
        again = await Runner(journal=journal).run(Echo(), "x", replay="r")
        assert (again.output, await journal.cancels()) == ("x", [])
        await journal.aclose()


@pytest.mark.parametrize("content", [b"", b"hello"])
async def test_what_is_no_journal_cannot_be_looked_into(tmp_path: Path, content: bytes) -> None:
    """The message says that it is none."""
    path = tmp_path / "runs.db"
    path.write_bytes(content)
    with pytest.raises(JournalError, match="no journal"):
        SqliteJournal(path, read_only=True)
    assert path.read_bytes() == content


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
