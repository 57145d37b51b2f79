"""Which journal and which run the commands for recorded runs are about."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagegraph.schema.errors import JournalError

if TYPE_CHECKING:
    from stagegraph.journal import Journal, RunRow, SqliteJournal

__all__ = ["DEFAULT_JOURNAL", "JournalOption", "find_run", "moment", "open_journal"]

DEFAULT_JOURNAL = ".stagegraph/runs.db"

JournalOption = Annotated[
    str,
    typer.Option("--journal", envvar="STAGEGRAPH_JOURNAL", metavar="FILE", help="The journal file."),
]


def open_journal(path: str, *, create: bool = False) -> SqliteJournal:
    """The journal at *path*; a missing one is only made when something will be written.

    One that cannot be written here, as on a read-only file system, can still be looked into.
    """
    from stagegraph.journal import SqliteJournal  # noqa: PLC0415 - `--help` needs no journal

    file = Path(path)
    if create:
        file.parent.mkdir(parents=True, exist_ok=True)
    elif not file.exists():
        msg = f"{path}: there is no journal here; `stagegraph run` makes one, `--journal FILE` names another"
        raise JournalError(msg)
    writable = create or (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))
    return SqliteJournal(file, read_only=not writable)


async def find_run(journal: Journal, name: str) -> RunRow:
    """A run by its id, the beginning of its id, or `last`."""
    from stagegraph.journal import RunFilter  # noqa: PLC0415

    exact = None if name == "last" else await journal.run(name)
    if exact is not None:
        return exact
    rows = await journal.runs(RunFilter(limit=1 if name == "last" else 100_000))
    found = rows if name == "last" else [row for row in rows if row.run_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if not found:
        msg = f"there is no run {name!r} in the journal; `stagegraph runs` lists them"
    else:
        some = ", ".join(row.run_id for row in found[:5])
        msg = f"{len(found)} runs begin with {name!r}: {some}; write more of it"
    raise JournalError(msg)


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def moment(text: str | None) -> float | None:
    """A time as people write it: `2h` or `3d` ago, `2026-11-21`, `2026-11-21T10:00`."""
    if text is None:
        return None
    if text[:-1].replace(".", "", 1).isdigit() and text[-1:] in _UNITS:
        return time.time() - float(text[:-1]) * _UNITS[text[-1]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        msg = f"{text!r} is no time: write `2h`, `3d`, `2026-11-21` or `2026-11-21T10:00`"
        raise typer.BadParameter(msg) from None
