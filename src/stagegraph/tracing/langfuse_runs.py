"""Runs read back from Langfuse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import anyio

from stagegraph.errors import TracingError
from stagegraph.stored import run_of

from ._connection import Connection
from ._ids import trace_id
from ._rest import Rest
from ._rows import Row, is_root, meta, pages_of
from .source import Pages, RunSource, Wanted

if TYPE_CHECKING:
    from stagegraph.node import Node
    from stagegraph.run import Run

__all__ = ["LangfuseRuns"]

EXPERIMENTS = "sdk-experiment"
_FIELDS = "core,basic,io,metadata,model,usage,prompt,trace_context"
_LONG = "key,path,run_id"
_PAGE = 200


class LangfuseRuns(RunSource):
    """Recorded runs of a Langfuse project, as the typed runs they were.

    Args:
        public_key: Like everything that is `None`, from Langfuse's own variable: `LANGFUSE_PUBLIC_KEY`.
        secret_key: `LANGFUSE_SECRET_KEY`.
        base_url: `LANGFUSE_BASE_URL`.
        patience: Seconds in all that one request may be tried again for, while the server is busy (429) or away.

    Raises:
        DeclarationError: there are no keys.
    """

    def __init__(
        self,
        *,
        public_key: str | None = None,
        secret_key: str | None = None,
        base_url: str | None = None,
        patience: float = 60.0,
    ) -> None:
        super().__init__()
        self.connection = Connection.of(public_key, secret_key, base_url)
        self._patience = patience

    async def pages(self, graph: Node[Any, Any], wanted: Wanted) -> AsyncIterator[Pages]:
        """The recorded runs of a graph, the newest first."""
        name = graph.label if graph.kind == "graph" else f"{graph.kind}:{graph.label}"
        async for found in self.listed(name, wanted):
            yield found

    async def listed(self, name: str | None, wanted: Wanted) -> AsyncIterator[Pages]:
        """The runs whose root observation has that name (all of them without one), the newest first."""
        seen: set[str] = set()
        async with Rest(self.connection, patience=self._patience) as rest:
            async for row in rest.rows(
                "v2/observations",
                name=name,
                fields="core,basic,metadata,trace_context",
                expandMetadata=_LONG,
                isRootObservation=None if name is not None else "true",
                userId=wanted.user,
                sessionId=wanted.session,
                environment=wanted.environment,
                fromStartTime=wanted.since.isoformat() if wanted.since is not None else None,
                toStartTime=wanted.until.isoformat() if wanted.until is not None else None,
                limit=_PAGE,
            ):
                trace = str(row.get("traceId"))
                if trace in seen or not is_root(row) or not _wanted(row, wanted):
                    continue
                seen.add(trace)
                found = await self._trace(rest, trace)
                if found is not None and wanted.status in {None, found[0].status}:
                    yield found

    async def run(self, run_id: str, graph: Node[Any, Any], *, wait: float = 0.0) -> Run[Any, Any]:
        """One run.

        Args:
            run_id: Its id.
            graph: What ran.
            wait: Seconds to wait for a run that ended just now: a server takes 15 to 30 to show it.

        Raises:
            TracingError: the server does not know it (yet), or does not answer.
        """
        row, calls, scores = await self.page(run_id, wait=wait)
        return run_of(row, calls, scores, graph)

    async def page(self, run_id: str, *, wait: float = 0.0) -> Pages:
        """The same as rows, without knowing the graph.

        Raises:
            TracingError: the server does not know it (yet), or does not answer.
        """
        until = anyio.current_time() + wait
        async with Rest(self.connection, patience=self._patience) as rest:
            while True:
                found = await self._trace(rest, trace_id(run_id))
                if found is not None:
                    return found
                if anyio.current_time() >= until:
                    msg = (
                        f"{self.connection.base_url} has no run {run_id!r}; "
                        "one that ended just now takes up to 30 seconds to be seen"
                    )
                    raise TracingError(msg)
                await anyio.sleep(min(1.0, max(0.0, until - anyio.current_time())))

    async def _trace(self, rest: Rest, trace: str) -> Pages | None:
        rows: list[Row] = [
            row
            async for row in rest.rows(
                "v2/observations", traceId=trace, fields=_FIELDS, expandMetadata=_LONG, limit=_PAGE
            )
        ]
        if not rows:
            return None
        scores: list[Row] = [
            row async for row in rest.rows("v3/scores", traceId=trace, fields="core,details,subject", limit=100)
        ]
        return pages_of(rows, scores, self.skipped)


def _wanted(row: Row, wanted: Wanted) -> bool:
    if not wanted.experiments and (row.get("environment") == EXPERIMENTS or meta(row, "experiment")):
        return False
    tags: Any = row.get("tags") or ()
    return set(wanted.tags) <= set(tags)
