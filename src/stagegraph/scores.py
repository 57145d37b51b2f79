"""Scores that come later, from people and programs that use what a run gave."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING

from .errors import DeclarationError, JournalError
from .journal._identity import hashed
from .journal._rows import FeedbackRow
from .score import Scored
from .structure import closest

if TYPE_CHECKING:
    from .runner import Runner

__all__ = ["feedback"]


async def feedback(
    run_id: str, name: str, value: Scored, *, key: str | None = None, comment: str | None = None, runner: Runner
) -> None:
    """Score a run, or one call of it; the same name on the same call replaces the score that was there.

    Args:
        run_id: A run in the runner's journal; it may still be going on.
        name: What is scored: `helpful`, `accuracy`.
        value: A number, a yes or no, a category or a text.
        key: The call the score is for: `build[2].code`.
        comment: Why.
        runner: Whose journal keeps it.

    Raises:
        DeclarationError: the runner has no journal, or the value is none of these.
        JournalError: the journal has no such run or call.
    """
    if runner.journal is None:
        msg = (
            "feedback is stored with the run: give the runner a journal, as in Runner(journal=SqliteJournal('runs.db'))"
        )
        raise DeclarationError(msg)
    if not name.strip():
        msg = "feedback needs a name, such as `helpful`"
        raise DeclarationError(msg)
    if not isinstance(value, (int, float, str)) or (isinstance(value, float) and not math.isfinite(value)):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"feedback `{name}` is a finite number, a boolean or a text, not {value!r}"
        raise DeclarationError(msg)
    journal = runner.journal
    if await journal.run(run_id) is None:
        msg = f"there is no run {run_id!r} in this journal"
        raise JournalError(msg)
    if key is not None:
        keys = [row.key for row in await journal.calls(run_id)]
        if key not in keys:
            msg = f"run {run_id!r} has no call `{key}`{closest(key, keys)}"
            raise JournalError(msg)
    row = FeedbackRow(
        id=hashed(run_id, key or "", name),
        run_id=run_id,
        key=key,
        name=name,
        value=json.dumps(value),
        comment=comment,
        time=time.time(),
    )
    await journal.put(row)
