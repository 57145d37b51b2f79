"""What the tests of journals share: each kind of journal, closed when its test is over."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stagegraph.journal import Journal, MemoryJournal, SqliteJournal


@pytest.fixture(name="journal", params=["memory", "sqlite"])
async def _journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Journal]:
    journal: Journal = MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path / "runs.db")
    yield journal
    await journal.aclose()


@pytest.fixture(name="sqlite")
async def _sqlite(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    """The journal in `runs.db`."""
    journal = SqliteJournal(tmp_path / "runs.db")
    yield journal
    await journal.aclose()
