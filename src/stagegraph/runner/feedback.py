"""Scores that users and programs give to the output of a run later."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from stagegraph.data.score import Feedback, Scored
from stagegraph.record.rows import FeedbackRow, Journal
from stagegraph.schema.errors import DeclarationError, JournalError, closest
from stagegraph.schema.serialize import hashed

from .observer import by_environment

if TYPE_CHECKING:
    from .runner import Runner


async def feedback(
    run_id: str,
    name: str,
    value: Scored,
    *,
    key: str | None = None,
    comment: str | None = None,
    runner: Runner | None = None,
) -> None:
    """Score a run, or one call of it; the same name on the same call replaces the score that was there.

    Args:
        run_id: A run in the runner's journal; it may still be running.
        name: What is scored: `helpful`, `accuracy`.
        value: A number, a yes or no, a category or a text.
        key: The call the score is for: `build[2].code`.
        comment: Why.
        runner: Its journal stores the score, its tracing sends it; without a runner, the score only goes to Langfuse.

    The score is stored first and sent afterwards; sending neither waits nor fails.

    Raises:
        DeclarationError: there is neither a journal nor tracing, or an argument is none of these.
        JournalError: the journal has no such run or call.
    """
    _check(name, value, key, comment)
    journal = runner.journal if runner is not None else None
    tracing = runner.tracing if runner is not None else by_environment()
    if journal is None and tracing is None:
        msg = (
            "feedback is stored with the run: give the runner a journal, as in "
            "Runner(journal=SqliteJournal()), or set the keys of Langfuse"
        )
        raise DeclarationError(msg)
    given = Feedback(name=name, value=value, key=key, comment=comment, time=datetime.now(UTC))
    segment, begun = 0, given.time
    if journal is not None:
        segment, begun = await _store(journal, run_id, given)
    if tracing is not None:
        tracing.score(run_id, given, segment, begun)


def _check(name: object, value: object, key: object, comment: object) -> None:
    """Refuse values that no journal or server can store, before anything is written."""
    if not isinstance(name, str) or not name.strip():
        msg = f"feedback needs a name, such as `helpful`, not {name!r}"
        raise DeclarationError(msg)
    for what, text in (("key", key), ("comment", comment)):
        if text is not None and not isinstance(text, str):
            msg = f"the {what} of feedback `{name}` is a text or None, not {type(text).__name__}"
            raise DeclarationError(msg)
    if not isinstance(value, str) and not _is_finite(value):
        shown = repr(value) if not isinstance(value, int) else "a number of that size"
        msg = f"feedback `{name}` is a finite number, a boolean or a text, not {shown}"
        raise DeclarationError(msg)


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold, and so no server and no comparison with one
        return False


async def _store(journal: Journal, run_id: str, given: Feedback) -> tuple[int, datetime]:
    """Store a score; returns the segment of the run in which the call was made last, and when the run began."""
    run = await journal.run(run_id)
    if run is None:
        msg = f"there is no run {run_id!r} in this journal"
        raise JournalError(msg)
    resumed = run.read_labels().resumed
    segment, key = len(resumed), given.key
    if key is not None:
        rows = {row.key: row for row in await journal.calls(run_id)}
        if key not in rows:
            msg = f"run {run_id!r} has no call `{key}`{closest(key, list(rows))}"
            raise JournalError(msg)
        segment = sum(moment <= rows[key].started for moment in resumed)
    row = FeedbackRow(
        id=hashed(run_id, key or "", given.name),
        run_id=run_id,
        key=key,
        name=given.name,
        value=json.dumps(given.value),
        comment=given.comment,
        time=given.time.timestamp(),
    )
    await journal.put(row)
    return segment, datetime.fromtimestamp(run.started, UTC)
