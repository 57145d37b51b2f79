"""Recorded runs that are read from Langfuse in place of a local journal."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from .options import moment

if TYPE_CHECKING:
    from stagegraph.journal import RunFilter
    from stagegraph.record.source import RunRows

__all__ = ["LangfuseOption", "page_from_langfuse", "runs_from_langfuse", "time_of"]

LangfuseOption = Annotated[
    bool, typer.Option("--langfuse", help="Read from Langfuse (its keys are in the environment), not from a journal.")
]


async def runs_from_langfuse(wanted: RunFilter) -> list[RunRows]:
    """The newest runs that fit, as a journal would have them."""
    from stagegraph.record.calls import feedback_of
    from stagegraph.record.source import RunQuery
    from stagegraph.tracing import LangfuseRuns

    which = RunQuery(
        since=None if wanted.since is None else _time(wanted.since, wanted.since),
        until=None if wanted.until is None else _time(wanted.until, wanted.until),
        status=wanted.status,
        score=wanted.feedback,
        min_score=wanted.min_score,
        max_score=wanted.max_score,
        experiments=True,
    )
    found: list[RunRows] = []
    if wanted.limit <= 0:
        return found
    async with aclosing(LangfuseRuns().listed(wanted.graph, which)) as pages:
        async for row, calls, scores in pages:
            if which.scored([feedback_of(score) for score in scores]):
                found.append((row, calls, scores))
            if len(found) >= wanted.limit:
                break
    return found


async def page_from_langfuse(run: str) -> RunRows:
    """One run by its id, or the `last` one."""
    from stagegraph.journal import RunFilter
    from stagegraph.schema.errors import TracingError
    from stagegraph.tracing import LangfuseRuns

    if run != "last":
        return await LangfuseRuns().page(run)
    for page in await runs_from_langfuse(RunFilter(limit=1)):
        return page
    msg = "there are no runs in this Langfuse project"
    raise TracingError(msg)


def time_of(text: str | None) -> datetime | None:
    """A time as people write it, with a time zone."""
    seconds = moment(text)
    return None if seconds is None else _time(seconds, text)


def _time(seconds: float, text: object) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        msg = f"{text!r} is no time that a calendar has"
        raise typer.BadParameter(msg) from None
