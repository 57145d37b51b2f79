"""How the command line writes: everything that came from a run as plain text, whatever a model put into it."""

from __future__ import annotations

import json
import os
import shlex
import sys
import unicodedata
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

__all__ = ["console", "json_output", "mark", "plain", "print_json", "question", "styled_status", "took"]

_STYLES = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "suspended": "yellow",
    "running": "cyan",
    "interrupted": "yellow",
}
_MARKS = {"succeeded": "✓", "failed": "✗", "cancelled": "-", "suspended": "?", "running": "…"}


def console(*, stderr: bool = False) -> Console:
    out = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not out.is_terminal:
        out.width = 200  # what goes into a file or a pipe is not cut to a screen
    return out


def plain(text: str) -> str:
    """Text without control characters, which could move the cursor or recolour the terminal."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def mark(status: str) -> tuple[str, str]:
    return _MARKS.get(status, "?"), _STYLES.get(status, "")


def styled_status(status: str) -> Text:
    return Text(status, _STYLES.get(status, ""))


def took(seconds: float) -> str:
    if seconds < 0.001:  # noqa: PLR2004
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"  # noqa: PLR2004


def print_json(out: Console, value: Any) -> None:
    """A value for people: a text as it is, everything else as indented JSON, in colour on a terminal."""
    if isinstance(value, str):
        out.print(Text(plain(value)))
        return
    text = plain(json.dumps(value, ensure_ascii=False, indent=2))
    out.print(Syntax(text, "json", background_color="default", word_wrap=True) if out.is_terminal else Text(text))


@contextmanager
def json_output(wanted: bool) -> Generator[TextIO | None]:
    """Standard output for our JSON alone, when that is *wanted*: what a user's code prints meanwhile goes to the error
    output, also where a program that it starts does it.
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


def question(run_id: str, place: str, kind: str, tool: str, args: object) -> Text:
    """What a suspended run asks, and the command that answers it."""
    asks = f"{place} asks ({kind}): {tool} {json.dumps(args, ensure_ascii=False)}"
    answer = "true" if kind == "approval" else "JSON"
    instead = ", or =false" if kind == "approval" else ""
    command = f"  stagegraph resume {run_id} --answer {shlex.quote(f'{place}={answer}')}{instead}"
    return Text.assemble((plain(asks), "yellow"), "\n", plain(command))
