"""The arguments and options that several commands share, and what they mean."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from stagegraph.data import files
from stagegraph.schema.errors import JournalError

if TYPE_CHECKING:
    from stagegraph.journal import Journal, RunRow, SqliteJournal

P = TypeVar("P", Path, str, None)

DEFAULT_JOURNAL = files.DEFAULT_JOURNAL
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def _time(text: str) -> datetime:
    """A time that a person wrote: `2h` or `3d` ago, `2026-11-21`, `2026-11-21T10:00`."""
    try:
        if text[:-1].replace(".", "", 1).isdigit() and text[-1:] in _UNITS:
            return datetime.fromtimestamp(time.time() - float(text[:-1]) * _UNITS[text[-1]], UTC)
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        msg = f"{text!r} is no time: write `2h`, `3d`, `2026-11-21` or `2026-11-21T10:00`"
        raise typer.BadParameter(msg) from None


GraphArgument = Annotated[str, typer.Argument(help="A folder with a graph.py, FILE.py:Class, or module:Class.")]
MetricArgument = Annotated[str, typer.Argument(help="FILE.py:function or module:function, of an example and a run.")]
RunArgument = Annotated[str, typer.Argument(help="A run id, the beginning of one, or `last`.")]
ModelOption = Annotated[str | None, typer.Option(metavar="NAME", help="`openai:gpt-5-mini`, `local:smollm2`, ...")]
PromptsOption = Annotated[str | None, typer.Option(metavar="FILE", help="A prompts file.")]
DepsOption = Annotated[
    str | None,
    typer.Option(
        "--deps", metavar="FILE.py:FUNCTION", help="Makes the deps, once; what it yields is closed at the end."
    ),
]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=MODEL", help="Another model for a stage.")]
OnlyJsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")]
TimeOption = Annotated[datetime | None, typer.Option(parser=_time, metavar="<str>", help="`2h`, `3d`, or a date.")]
LangfuseOption = Annotated[
    bool, typer.Option("--langfuse", help="Read from Langfuse (its keys are in the environment), not from a journal.")
]
JournalOption = Annotated[
    str,
    typer.Option("--journal", envvar="STAGEGRAPH_JOURNAL", metavar="FILE", help="The journal file."),
]


def writable(place: P) -> P:
    """The callback of an option that names a file to write: a file that cannot be written is an error before any work.

    Raises:
        BadParameter: the place is a folder, its folder does not exist, or it may not be written.
    """
    if place is None:
        return place
    path = Path(place)
    problem = ""
    if path.is_dir():
        problem = "this is a folder; name a file in it"
    elif not path.parent.is_dir():
        problem = f"there is no folder {path.parent}; make it, or name another place"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        problem = "it may not be written by you; name another place"
    if problem:
        msg = f"{place}: {problem}"
        raise typer.BadParameter(msg)
    return place


def open_journal(path: str, *, create: bool = False) -> SqliteJournal:
    """The journal at *path*; without the right to write, an existing one is opened read only.

    Raises:
        JournalError: there is no journal, and *create* is false.
    """
    from stagegraph.journal import SqliteJournal

    file = Path(path)
    if create:
        file.parent.mkdir(parents=True, exist_ok=True)
    elif not file.exists():
        msg = f"{path}: there is no journal here; `stagegraph run` makes one, `--journal FILE` names another"
        raise JournalError(msg)
    may_write = create or (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))
    return SqliteJournal(file, read_only=not may_write)


async def find_run(journal: Journal, name: str, *, graph: str | None = None) -> RunRow:
    """A run by its id, the beginning of its id, or `last` (of a graph).

    Raises:
        JournalError: there is no such run, or several runs begin with *name*.
    """
    from stagegraph.journal import RunFilter

    if name == "last":
        found = await journal.runs(RunFilter(graph=graph, limit=1))
    elif exact := await journal.run(name):
        return exact
    else:
        found = [row for row in await journal.runs(RunFilter(limit=None)) if row.run_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    msg = f"there is no run {name!r} in the journal; `stagegraph runs` lists them"
    if found:
        some = ", ".join(row.run_id for row in found[:5])
        msg = f"{len(found)} runs begin with {name!r}: {some}; write more of it"
    raise JournalError(msg)
