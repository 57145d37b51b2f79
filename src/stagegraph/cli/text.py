"""How the command line writes. Everything that comes from a run is plain text, whatever a model put into it."""

from __future__ import annotations

import json
import os
import shlex
import sys
import unicodedata
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .load import is_below_here

if TYPE_CHECKING:
    from stagegraph.data.call import Pending

_STATUSES = {
    "succeeded": ("✓", "green"),
    "failed": ("✗", "red"),
    "cancelled": ("-", "yellow"),
    "suspended": ("?", "yellow"),
    "running": ("…", "cyan"),
    "interrupted": ("?", "yellow"),
}
"""Status of a run or call -> its mark and its colour."""


def console(*, stderr: bool = False) -> Console:
    out = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not out.is_terminal:
        out.width = 200  # a file or a pipe has no width
    return out


def plain(text: str) -> str:
    """Text without control characters, which could move the cursor or change the colours of the terminal."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def say(text: str, style: str = "", *, stderr: bool = False) -> None:
    """Print a plain text."""
    console(stderr=stderr).print(Text(plain(text), style))


def print_error(text: str) -> None:
    """Print an error on standard error."""
    console(stderr=True).print(Text.assemble(("error: ", "bold red"), plain(text)))


def styled_status(status: str, *, mark: bool = False) -> Text:
    """A status, or its mark, in its colour."""
    sign, style = _STATUSES.get(status, ("?", ""))
    return Text(sign if mark else status, style)


def duration(seconds: float) -> str:
    if seconds < 0.001:  # noqa: PLR2004
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"  # noqa: PLR2004


def dollars(cost: Any) -> str:
    try:
        return "unknown" if cost is None else f"${float(cost):.4f}"
    except ValueError:  # as a journal has it that something else wrote
        return "unknown"


def new_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left")
    return table


def print_json(out: Console, value: Any) -> None:
    """A value for people: a text as it is, everything else as indented JSON, in colour on a terminal."""
    if isinstance(value, str):
        out.print(Text(plain(value)))
        return
    text = plain(json.dumps(value, ensure_ascii=False, indent=2))
    if not out.is_terminal:
        out.print(Text(text))
        return
    from rich.syntax import Syntax

    out.print(Syntax(text, "json", background_color="default", word_wrap=True))


@contextmanager
def json_output(wanted: bool) -> Generator[TextIO | None]:
    """Standard output for JSON alone, if *wanted*: whatever else is printed meanwhile goes to standard error.

    That includes the prints of the user's code and of programs that it starts.
    """
    if not wanted:
        yield None
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        try:
            yield out
        finally:
            sys.stdout.flush()
            os.dup2(out.fileno(), 1)


def deferred(run_id: str, pending: Pending, graph: object) -> Text:
    """One question of a suspended run, and the command that answers it; it names a *graph* that is not below here."""
    asks = f"{pending.id} asks ({pending.kind}): {pending.tool} {json.dumps(pending.args, ensure_ascii=False)}"
    answer, instead = ("true", ", or =false") if pending.kind == "approval" else ("JSON", "")
    named = f" {shlex.quote(graph)}" if isinstance(graph, str) and not is_below_here(graph) else ""
    command = f"  stagegraph resume {run_id}{named} --answer {shlex.quote(f'{pending.id}={answer}')}{instead}"
    return Text.assemble((plain(asks), "yellow"), "\n", plain(command))
