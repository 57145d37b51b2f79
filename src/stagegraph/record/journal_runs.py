"""Runs read from a local journal."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from stagegraph.schema.errors import DeclarationError

from .rows import RunFilter
from .source import EXPERIMENT, RunQuery, RunRows, RunSource

if TYPE_CHECKING:
    from stagegraph.nodes.node import Node

    from .rows import Journal

__all__ = ["JournalRuns"]

_ALL = 10_000_000


class JournalRuns(RunSource):
    """Recorded runs of a journal: everything that learns from Langfuse learns from it as well, without a server."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    async def pages(self, graph: Node[Any, Any], query: RunQuery) -> AsyncGenerator[RunRows]:
        """The recorded runs of a graph, the newest first.

        Raises:
            DeclarationError: an environment is asked for.
        """
        if query.environment is not None:
            msg = f"environment={query.environment!r}: a journal does not know in which one a run was made"
            raise DeclarationError(msg)
        rows = await self._journal.runs(
            RunFilter(
                graph=graph.__node__.name,
                since=query.since.timestamp() if query.since is not None else None,
                until=query.until.timestamp() if query.until is not None else None,
                limit=_ALL,
            )
        )
        for row in rows:
            labels = json.loads(row.labels)
            if not (
                query.status in {None, row.status}
                and query.user in {None, labels["user_id"]}
                and query.session in {None, labels["session_id"]}
                and set(query.tags) <= set(labels["tags"])
                and (query.experiments or not labels["metadata"].get(EXPERIMENT))
            ):
                continue
            calls = await self._journal.calls(row.run_id)
            yield row, calls, await self._journal.feedback(row.run_id)
