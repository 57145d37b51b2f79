"""Runs read from a local journal."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from stagegraph.journal import RunFilter
from stagegraph.schema.errors import DeclarationError

from ._spans import EXPERIMENT
from ._wanted import Wanted
from .source import Pages, RunSource

if TYPE_CHECKING:
    from stagegraph.journal import Journal
    from stagegraph.nodes.node import Node

__all__ = ["JournalRuns"]

_ALL = 10_000_000


class JournalRuns(RunSource):
    """Recorded runs of a journal: everything that learns from Langfuse learns from it as well, without a server."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    async def pages(self, graph: Node[Any, Any], wanted: Wanted) -> AsyncGenerator[Pages]:
        """The recorded runs of a graph, the newest first.

        Raises:
            DeclarationError: an environment is asked for.
        """
        if wanted.environment is not None:
            msg = f"environment={wanted.environment!r}: a journal does not know in which one a run was made"
            raise DeclarationError(msg)
        rows = await self._journal.runs(
            RunFilter(
                graph=graph.__node__.name,
                since=wanted.since.timestamp() if wanted.since is not None else None,
                until=wanted.until.timestamp() if wanted.until is not None else None,
                limit=_ALL,
            )
        )
        for row in rows:
            labels = json.loads(row.labels)
            if not (
                wanted.status in {None, row.status}
                and wanted.user in {None, labels["user_id"]}
                and wanted.session in {None, labels["session_id"]}
                and set(wanted.tags) <= set(labels["tags"])
                and (wanted.experiments or not labels["metadata"].get(EXPERIMENT))
            ):
                continue
            calls = await self._journal.calls(row.run_id)
            yield row, calls, await self._journal.feedback(row.run_id)
