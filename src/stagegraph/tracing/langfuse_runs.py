"""Runs read back from Langfuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import anyio

from stagegraph.record.run import run_of
from stagegraph.schema.errors import TracingError

from ._connection import Connection
from ._ids import trace_id
from ._observation import Row, cut_metadata, is_root, label_of, meta
from ._rest import Rest
from ._rows import pages_of
from ._spans import EXPERIMENTS
from ._wanted import Wanted
from .source import Pages, RunSource

if TYPE_CHECKING:
    from datetime import datetime

    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run

__all__ = ["LangfuseRuns"]

_FIELDS = "core,basic,io,metadata,model,usage,prompt,trace_context"
_LONG = "key,path,run_id"
_PAGE = 200
_PAUSE, _LONGEST = 0.25, 2.0
"""Seconds between two looks for a run that is not there yet."""


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

    async def pages(self, graph: Node[Any, Any], wanted: Wanted) -> AsyncGenerator[Pages]:
        """The recorded runs of a graph, the newest first."""
        name = graph.__node__.name if graph.__node__.kind == "graph" else f"{graph.__node__.kind}:{graph.__node__.name}"
        async with aclosing(self.listed(graph.__node__.name, wanted, name)) as pages:
            async for found in pages:
                yield found

    async def listed(self, label: str | None, wanted: Wanted, name: str | None = None) -> AsyncGenerator[Pages]:
        """The runs of what is called *label* (of everything without one), the newest first.

        With the *name* of their root observations, the server has less to look through.
        """
        seen: set[str] = set()
        async with (
            Rest(self.connection, patience=self._patience) as rest,
            aclosing(
                rest.rows(
                    "v2/observations",
                    name=name,
                    fields="core,basic,metadata,trace_context",
                    expandMetadata=_LONG,
                    isRootObservation="true",
                    userId=wanted.user,
                    sessionId=wanted.session,
                    environment=wanted.environment,
                    fromStartTime=_milliseconds(wanted.since),
                    toStartTime=_milliseconds(wanted.until),
                    limit=_PAGE,
                )
            ) as rows,
        ):
            async for row in rows:
                if not is_root(row):
                    self.skipped["an observation does not say of which run it is"] += 1
                    continue
                trace = str(row.get("traceId") or trace_id(str(meta(row, "run_id"))))
                if trace in seen or not _wanted(row, wanted) or label not in {None, label_of(row)}:
                    continue
                seen.add(trace)
                found = await self._trace(rest, trace, self.skipped)
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
        pause = _PAUSE
        async with Rest(self.connection, patience=self._patience) as rest:
            while True:
                skipped: Counter[str] = Counter()
                found = await self._trace(rest, trace_id(run_id), skipped)
                late = anyio.current_time() >= until
                if found is not None or late:
                    self.skipped += skipped
                if found is not None:
                    return found
                if late:
                    if reasons := "; ".join(reason for reason in skipped if "(yet)" not in reason):
                        msg = f"run {run_id!r} cannot be read from {self.connection.base_url}: {reasons}"
                        raise TracingError(msg)
                    msg = (
                        f"{self.connection.base_url} has no run {run_id!r}; "
                        "one that ended just now takes up to 30 seconds to be seen"
                    )
                    raise TracingError(msg)
                await anyio.sleep(min(pause, max(0.0, until - anyio.current_time())))
                pause = min(2 * pause, _LONGEST)

    @staticmethod
    async def _trace(rest: Rest, trace: str, skipped: Counter[str]) -> Pages | None:
        rows: list[Row] = [
            row
            async for row in rest.rows(
                "v2/observations", traceId=trace, fields=_FIELDS, expandMetadata=_LONG, limit=_PAGE
            )
        ]
        if not rows:
            skipped["a trace has no run in it (yet)"] += 1
            return None
        if cut := cut_metadata(rows):
            whole = ",".join([_LONG, *cut])
            rows = [
                row
                async for row in rest.rows(
                    "v2/observations", traceId=trace, fields=_FIELDS, expandMetadata=whole, limit=_PAGE
                )
            ]
        scores: list[Row] = [
            row async for row in rest.rows("v3/scores", traceId=trace, fields="core,details,subject", limit=100)
        ]
        return pages_of(rows, scores, skipped)


def _wanted(row: Row, wanted: Wanted) -> bool:
    asked = wanted.experiments or wanted.environment == EXPERIMENTS
    if not asked and (row.get("environment") == EXPERIMENTS or meta(row, "experiment")):
        return False
    tags: Any = row.get("tags") or ()
    return set(wanted.tags) <= set(tags)


def _milliseconds(moment: datetime | None) -> str | None:
    """A moment as exact as a server keeps when a run began."""
    return None if moment is None else moment.isoformat(timespec="milliseconds")
