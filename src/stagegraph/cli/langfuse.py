"""Recorded runs that are read from Langfuse instead of a local journal."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stagegraph.journal import RunFilter
    from stagegraph.record.source import RunRows


async def runs_from_langfuse(wanted: RunFilter) -> list[RunRows]:
    """The newest runs that match, as a journal would have them."""
    from stagegraph.record.calls import feedback_of
    from stagegraph.record.source import RunQuery
    from stagegraph.tracing import LangfuseRuns

    which = RunQuery(
        since=None if wanted.since is None else datetime.fromtimestamp(wanted.since, UTC),
        until=None if wanted.until is None else datetime.fromtimestamp(wanted.until, UTC),
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
