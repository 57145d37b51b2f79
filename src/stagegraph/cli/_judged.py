"""What `stagegraph eval` and `tune` have in common: rows of examples, a bar while it goes on, and texts at the end."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from ._text import console, plain

if TYPE_CHECKING:
    from stagegraph import Example, Node

__all__ = ["GraphArgument", "MetricArgument", "progress", "rows_of", "say"]

_WIDE = 80
"""Columns of a terminal that has room for a bar and a clock beside the numbers."""

GraphArgument = Annotated[str, typer.Argument(help="A folder with a graph.py, FILE.py:Class, or module:Class.")]
MetricArgument = Annotated[str, typer.Argument(help="FILE.py:function or module:function, of an example and a run.")]


def rows_of(path: str, node: Node[Any, Any], split: str | None = None) -> Sequence[Example[Any]]:
    from stagegraph import InputError, optimize  # noqa: PLC0415

    rows = optimize.examples(path, node)
    if split is None:
        return rows
    known = sorted({str(row.metadata["split"]) for row in rows if "split" in row.metadata})
    chosen = [row for row in rows if row.metadata.get("split") == split]
    if not chosen:
        msg = f"{path}: no row has the split {split!r}; there are: {', '.join(known) or 'none'}"
        raise InputError(msg)
    return chosen


@contextmanager
def progress(what: str, total: int) -> Generator[Progress, None, None]:
    """A bar that is shown from its `start` on, on a terminal; elsewhere nothing is printed."""
    out = console(stderr=True)
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        MofNCompleteColumn(),
        TextColumn("{task.fields[best]}", markup=False),
        TextColumn("{task.fields[spent]}", markup=False),
    ]
    if out.width >= _WIDE:
        columns = [columns[0], BarColumn(), *columns[1:], TimeElapsedColumn()]
    bar = Progress(*columns, console=out, transient=True, disable=not out.is_terminal)
    bar.add_task(what, total=total, best="", spent="")
    try:
        yield bar
    finally:
        bar.stop()


def say(text: str) -> None:
    console().print(Text(plain(text)))
