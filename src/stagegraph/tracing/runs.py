"""Runs read back from Langfuse."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from stagegraph.journal import CallRow, RunRow
from stagegraph.record.rows import EXPERIMENT, RunFilter, feedback_of
from stagegraph.record.run import run_of
from stagegraph.record.source import RunRows, RunSource
from stagegraph.schema.errors import TracingError

from .api import Api
from .attributes import EXPERIMENTS, observation_id, trace_id
from .connection import Connection
from .media import put_back, references
from .rows import NO_RUN, cut_metadata, is_root, meta, name_of, rows_of

if TYPE_CHECKING:
    from langfuse.api import ObservationV2, ScoreV3

    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run

Row = TypeVar("Row", RunRow, CallRow)

_FIELDS = "core,basic,io,metadata,model,usage,prompt,trace_context"
_WHOLE = "key,origin,path,run_id,input_whole,output_whole"
"""Names in the metadata whose values are read without truncation."""
_VALUES = ("input", "output", "input_whole", "output_whole")
"""The columns of a row that may refer to files."""
_PAGE = 200
_MOST_FILES = 1_000
"""Of one run; a hostile text may look like any number of references."""
_PAUSE, _LONGEST_PAUSE = 0.25, 2.0
"""Seconds between two attempts to read a run that the server does not show yet."""
_MISSING = {"projectId": "", "type": "", "startTime": "1970-01-01T00:00:00Z"}
"""Defaults for fields of an observation that older servers do not send."""


class LangfuseRuns(RunSource):
    """The recorded runs of a Langfuse project, as typed runs.

    Args:
        public_key: Defaults to the environment variable `LANGFUSE_PUBLIC_KEY`.
        secret_key: Defaults to `LANGFUSE_SECRET_KEY`.
        base_url: Defaults to `LANGFUSE_BASE_URL`, then to Langfuse's cloud.
        patience: Seconds in total for retries of one request while the server is busy (429) or unreachable.

    Raises:
        DeclarationError: the keys are missing.
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

    def pages(self, graph: Node[Any, Any], wanted: RunFilter) -> AsyncGenerator[RunRows]:
        """The recorded runs of a graph, the newest first."""
        label, kind = graph.__node__.name, graph.__node__.kind
        return self.listed(label, wanted, label if kind == "graph" else f"{kind}:{label}")

    async def listed(self, label: str | None, wanted: RunFilter, name: str | None = None) -> AsyncGenerator[RunRows]:
        """The runs of the node named *label* (`None`: of all nodes), the newest first.

        The *name* of their root observations lets the server search less.
        """
        seen: set[str] = set()
        async with Api(self.connection, patience=self._patience) as api:
            roots = self._observations(
                api,
                self.skipped,
                name=name,
                fields="core,basic,metadata,trace_context",
                expand_metadata=_WHOLE,
                is_root_observation=True,
                user_id=wanted.user,
                session_id=wanted.session,
                environment=wanted.environment,
                from_start_time=_milliseconds(wanted.since),
                to_start_time=_milliseconds(wanted.until),
            )
            async with aclosing(roots) as rows:
                async for row in rows:
                    if not is_root(row):
                        self.skipped["an observation has no run id"] += 1
                        continue
                    run_id = str(meta(row, "run_id"))
                    if run_id in seen or not _is_wanted(row, wanted) or label not in {None, name_of(row)}:
                        continue
                    seen.add(run_id)
                    found = await self._trace(api, row.trace_id or trace_id(run_id), run_id, "", self.skipped)
                    if found is None or wanted.status not in {None, found[0].status}:
                        continue
                    if wanted.has_score(map(feedback_of, found[2])):
                        yield found

    async def run(self, run_id: str, graph: Node[Any, Any], *, wait: float = 0.0) -> Run[Any, Any]:
        """One run.

        Args:
            run_id: Its id.
            graph: The node that ran.
            wait: Seconds to wait for a run that has just ended: a server takes 15 to 30 seconds to show it.

        Raises:
            TracingError: the server does not have the run (yet), or does not answer.
        """
        key = "" if graph.__node__.kind == "graph" else graph.__node__.name
        row, calls, scores = await self.page(run_id, wait=wait, key=key)
        return run_of(row, calls, scores, graph)

    async def page(self, run_id: str, *, wait: float = 0.0, key: str = "") -> RunRows:
        """One run as the rows of a journal, without its graph; *key* is that of its root.

        Raises:
            TracingError: the server does not have the run (yet), or does not answer.
        """
        until, pause = anyio.current_time() + wait, _PAUSE
        base = self.connection.base_url
        async with Api(self.connection, patience=self._patience) as api:
            while True:
                skipped: Counter[str] = Counter()
                found = await self._trace(api, trace_id(run_id), run_id, key, skipped)
                left = until - anyio.current_time()
                if found is not None or left <= 0:
                    break
                await anyio.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
        self.skipped.update(skipped)
        if found is not None:
            return found
        msg = f"{base} has no run {run_id!r}; a run that has just ended takes up to 30 seconds to appear"
        if reasons := "; ".join(reason for reason in skipped if reason != NO_RUN):
            msg = f"run {run_id!r} cannot be read from {base}: {reasons}"
        raise TracingError(msg)

    async def _joined(self, api: Api, run_id: str, key: str) -> str | None:
        """The trace of a run that joined one of the host's: that of the observation with the id of the run's root."""
        wanted = {"type": "string", "column": "id", "operator": "=", "value": observation_id(run_id, key)}
        async with aclosing(self._observations(api, Counter(), filter=json.dumps([wanted]), fields="core")) as rows:
            async for row in rows:
                return row.trace_id
        return None

    async def _trace(self, api: Api, trace: str, run_id: str, key: str, skipped: Counter[str]) -> RunRows | None:
        rows, scores = await self._read_trace(api, trace, skipped)
        own = [row for row in rows if meta(row, "run_id") == run_id]
        if all(meta(row, "segment") for row in own):  # it joined a trace of the host, and was maybe resumed outside
            key = next((str(meta(row, "key")) for row in own if is_root(row)), key)
            elsewhere = await self._joined(api, run_id, key)
            if elsewhere is not None and elsewhere != trace:
                more = await self._read_trace(api, elsewhere, skipped)
                rows, scores = rows + more[0], scores + more[1]
        found = rows_of(rows, scores, skipped, run_id)
        return None if found is None else await _with_files(api, found, skipped)

    async def _read_trace(
        self, api: Api, trace: str, skipped: Counter[str]
    ) -> tuple[list[ObservationV2], list[ScoreV3]]:
        odd: Counter[str] = Counter()
        rows = [row async for row in self._observations(api, odd, trace_id=trace, expand_metadata=_WHOLE)]
        if cut := cut_metadata(rows):
            odd.clear()
            whole = ",".join([_WHOLE, *cut])
            rows = [row async for row in self._observations(api, odd, trace_id=trace, expand_metadata=whole)]
        scores = [score async for score in self._scores(api, odd, trace)] if rows else []
        skipped.update(odd)
        return rows, scores

    def _observations(self, api: Api, skipped: Counter[str], **query: object) -> AsyncGenerator[ObservationV2]:
        from langfuse.api import ObservationV2  # noqa: PLC0415

        query = {"fields": _FIELDS, "limit": _PAGE, **query}
        unusable = partial(skipped.update, ["an observation cannot be read"])
        get = api.sdk.observations.get_many
        return api.rows("observations", get, query, ObservationV2, unusable=unusable, defaults=_MISSING)

    def _scores(self, api: Api, skipped: Counter[str], trace: str) -> AsyncGenerator[ScoreV3]:
        from langfuse.api import ScoreV3  # noqa: PLC0415

        query = {"trace_id": trace, "fields": "core,details,subject", "limit": 100}
        unusable = partial(skipped.update, ["a score cannot be read"])
        return api.rows("scores", api.sdk.scores.get_many, query, ScoreV3, unusable=unusable)


async def _with_files(api: Api, found: RunRows, skipped: Counter[str]) -> RunRows:
    """The rows with files in the place of references to them."""
    row, calls, scores = found
    files: dict[str, bytes] = {}
    texts = (getattr(call, name) for call in calls for name in _VALUES)
    for key in sorted(references(texts))[:_MOST_FILES]:
        try:
            files[key] = await api.file(key)
        except TracingError:
            skipped["a file cannot be read"] += 1
    return (_put_back(row, files), [_put_back(call, files) for call in calls], scores) if files else found


def _put_back(row: Row, files: Mapping[str, bytes]) -> Row:
    return replace(row, **{name: put_back(getattr(row, name), files) for name in _VALUES})


def _is_wanted(row: ObservationV2, wanted: RunFilter) -> bool:
    asked = wanted.experiments or wanted.environment == EXPERIMENTS
    if not asked and (row.environment == EXPERIMENTS or meta(row, EXPERIMENT)):
        return False
    return set(wanted.tags) <= set(row.tags or ())


def _milliseconds(seconds: float | None) -> datetime | None:
    """A time in the precision in which a server keeps the start of a run."""
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
