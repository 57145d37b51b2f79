"""Recorded runs that are read from Langfuse in place of a local journal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stagegraph.journal import RunFilter
    from stagegraph.tracing.source import Pages

__all__ = ["LangfuseOption", "page_from_langfuse", "runs_from_langfuse"]

LangfuseOption = Annotated[
    bool, typer.Option("--langfuse", help="Read from Langfuse (its keys are in the environment), not from a journal.")
]


async def runs_from_langfuse(wanted: RunFilter) -> list[Pages]:
    """The newest runs that fit, as a journal would have them."""
    from stagegraph.stored import feedback_of  # noqa: PLC0415
    from stagegraph.tracing import LangfuseRuns  # noqa: PLC0415
    from stagegraph.tracing.source import Wanted  # noqa: PLC0415

    which = Wanted(
        since=_moment(wanted.since),
        until=_moment(wanted.until),
        status=wanted.status,
        score=wanted.feedback,
        min_score=wanted.min_score,
        max_score=wanted.max_score,
        experiments=True,
    )
    found: list[Pages] = []
    async for row, calls, scores in LangfuseRuns().listed(wanted.graph, which):
        if which.scored([feedback_of(score) for score in scores]):
            found.append((row, calls, scores))
        if len(found) >= wanted.limit:
            break
    return found


async def page_from_langfuse(run: str) -> Pages:
    """One run by its id, or the `last` one."""
    from stagegraph.errors import TracingError  # noqa: PLC0415
    from stagegraph.journal import RunFilter  # noqa: PLC0415
    from stagegraph.tracing import LangfuseRuns  # noqa: PLC0415

    if run != "last":
        return await LangfuseRuns().page(run)
    for page in await runs_from_langfuse(RunFilter(limit=1)):
        return page
    msg = "there are no runs in this Langfuse project"
    raise TracingError(msg)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
