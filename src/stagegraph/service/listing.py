"""The list of runs that a user may see: filters, and pages of a bounded size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from fastapi import Query
from pydantic import AwareDatetime, BaseModel, BeforeValidator

from stagegraph.data.call import GIVEN_UP, ShownStatus
from stagegraph.record.calls import listed
from stagegraph.record.rows import RunFilter

from .bodies import RunFacts, Spent

if TYPE_CHECKING:
    from stagegraph.record.rows import RunRow

    from .access import Access

_CHUNK = 200
_MOST = 5_000
"""Runs that one request looks at; a page may have fewer than its limit, and the next one continues."""
_CURSOR = r"^[0-9]{1,12}(\.[0-9]{1,9})?~.{1,200}$"


def _written(value: object) -> object:
    """Refuse the seconds that Pydantic takes for a moment as well."""
    if isinstance(value, str) and "t" not in value.lower():
        msg = "a moment is written as 2026-11-21T10:00:00Z"
        raise ValueError(msg)
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_written)]


class Listed(RunFacts):
    """One run of a list."""

    graph: str
    session_id: str | None
    tags: list[str]


class RunList(BaseModel):
    """A page of runs, the newest first."""

    runs: list[Listed]
    next: str | None
    """The `cursor` of the next page; `null` after the last one."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which runs to list; every parameter that is given must match."""

    graph: Annotated[str | None, Query(max_length=200, description="The name of the graph.")] = None
    status: Annotated[ShownStatus | None, Query()] = None
    since: Annotated[Moment | None, Query(description="Runs that began then or later.")] = None
    until: Annotated[Moment | None, Query(description="Runs that began then or earlier.")] = None
    tag: Annotated[list[str] | None, Query(max_length=20, description="Runs that have all of these.")] = None
    session: Annotated[str | None, Query(max_length=1000)] = None
    limit: Annotated[int, Query(ge=1, le=100)] = 30
    cursor: Annotated[str | None, Query(pattern=_CURSOR, description="`next` of the page before.")] = None

    def filter(self) -> RunFilter:
        """The same for a journal."""
        started, _, run_id = (self.cursor or "").partition("~")
        return RunFilter(
            status=self.status,
            since=None if self.since is None else self.since.timestamp(),
            until=None if self.until is None else self.until.timestamp(),
            tags=tuple(self.tag or ()),
            session=self.session,
            before=(float(started), run_id) if started else None,
            limit=_CHUNK,
        )


async def list_runs(access: Access, user: str | None, wanted: Wanted) -> RunList:
    """The newest runs of the served graph that a user may see."""
    own = access.graph.__node__.name
    if wanted.graph not in {None, own}:
        return RunList(runs=[], next=None)
    search = replace(wanted.filter(), graph=own, user=user if access.by_user else None)
    found: list[RunRow] = []
    seen, more = 0, True
    while more and len(found) < wanted.limit and seen < _MOST:
        rows = await access.journal.runs(search)
        seen, more = seen + len(rows), len(rows) == _CHUNK
        for place, row in enumerate(rows, 1):
            search = replace(search, before=(row.started, row.run_id))
            if await access.may_see(row, user):
                found.append(row)
            if len(found) == wanted.limit:
                more = more or place < len(rows)
                break
    following = f"{search.before[0]!r}~{search.before[1]}" if more and search.before else None
    return RunList(runs=[await _listed(access, row) for row in found], next=following)


async def _listed(access: Access, row: RunRow) -> Listed:
    row = await listed(access.journal, row)
    labels = row.read_labels()
    return Listed(
        run_id=row.run_id,
        graph=row.graph,
        status=row.shown_status,
        started=datetime.fromtimestamp(row.started, UTC),
        duration=row.duration,
        usage=Spent(
            requests=row.requests, input_tokens=row.input_tokens, output_tokens=row.output_tokens, cost=row.cost
        ),
        session_id=labels.session_id,
        tags=list(labels.tags),
        detail=row.error if row.error_type == GIVEN_UP else None,
    )
