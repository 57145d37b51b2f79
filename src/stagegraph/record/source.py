"""Recorded runs as data to learn from, from a journal or from a server."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, overload

from typing_extensions import Unpack

from stagegraph.data.examples import Example, digest_of
from stagegraph.schema.errors import DeclarationError

from .calls import rows_so_far
from .rows import CORRECTION, DamagedError, RunFilter
from .run import ReplayError, run_of

if TYPE_CHECKING:
    from stagegraph.data.call import Call
    from stagegraph.data.score import Feedback
    from stagegraph.nodes.node import Node
    from stagegraph.schema.schema import Schema

    from .rows import CallRow, FeedbackRow, Journal, RunRow
    from .run import Run

In = TypeVar("In")
Out = TypeVar("Out")
StageIn = TypeVar("StageIn")

_PAGE = 100

RunRows = tuple["RunRow", "list[CallRow]", "list[FeedbackRow]"]
"""The rows of one run."""


class Which(TypedDict, total=False):
    """Which recorded runs."""

    since: datetime | timedelta | None
    """Only runs that began at this time or later: a moment, or how long ago."""
    until: datetime | timedelta | None
    """Only runs that began before this time."""
    tags: Sequence[str]
    """Only runs that have all of these."""
    user: str | None
    session: str | None
    environment: str | None
    """Only runs of this environment; a local journal has none."""
    status: str | None
    """Only runs with this status: `succeeded`, `failed`."""
    score: str | None
    """Only runs that have a score of this name."""
    min_score: float | None
    """Only runs with a numeric score (of that name, if one is given) of at least this."""
    max_score: float | None
    """The same for at most."""
    experiments: bool
    """Also runs that were made for an evaluation."""
    limit: int | None
    """The most runs, or examples."""


def _filter_of(which: Which) -> RunFilter:
    """The filter of a caller's keywords.

    Raises:
        DeclarationError: a moment has no time zone.
    """
    fields: dict[str, Any] = {"experiments": False, "limit": None, **which, "tags": tuple(which.get("tags", ()))}
    fields["feedback"] = fields.pop("score", None)
    for name in ("since", "until"):
        fields[name] = _moment(which.get(name))
    return RunFilter(**fields)


def _moment(value: datetime | timedelta | None) -> float | None:
    if isinstance(value, timedelta):
        value = datetime.now(UTC) - value
    if value is not None and value.tzinfo is None:
        msg = f"{value!r} has no time zone; write datetime(..., tzinfo=UTC), or how long ago as a timedelta"
        raise DeclarationError(msg)
    return None if value is None else value.timestamp()


class _UnusableError(Exception):
    """Why a call gives no example."""


class RunSource(ABC):
    """Where recorded runs are read: `JournalRuns` from a local journal, `LangfuseRuns` from a server.

    Data that cannot be used is not an error: it is counted in `skipped`, by reason, over everything that was read.
    """

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()

    @abstractmethod
    def pages(self, graph: Node[Any, Any], wanted: RunFilter) -> AsyncGenerator[RunRows]:
        """The recorded runs of a graph that are wanted, the newest first."""

    async def runs(self, graph: Node[In, Out], **which: Unpack[Which]) -> AsyncGenerator[Run[In, Out]]:
        """Typed runs with their calls and scores, the newest first.

        Args:
            graph: Whose runs.
            which: See `Which`; every keyword must match.

        Raises:
            TracingError: the server does not answer.
            DeclarationError: a moment has no time zone.
        """
        async with aclosing(self._read(graph, _filter_of(which))) as found:
            async for run, *_ in found:
                yield run

    async def _read(
        self, graph: Node[In, Out], wanted: RunFilter
    ) -> AsyncGenerator[tuple[Run[In, Out], RunRow, list[CallRow]]]:
        """The runs, each with its rows."""
        count = 0
        if wanted.limit is not None and wanted.limit <= 0:
            return
        async with aclosing(self.pages(graph, wanted)) as pages:
            async for row, calls, scores in pages:
                try:
                    run = run_of(row, calls, scores, graph)
                except ReplayError:
                    self.skipped["a record is damaged"] += 1
                    continue
                accepted = run.status != "succeeded" or graph.__node__.output_type.is_instance(run.output)
                if not (graph.__node__.input_type.is_instance(run.input) and accepted):
                    self.skipped["a run does not fit the graph's types any more"] += 1
                    continue
                yield run, row, calls
                count += 1
                if count == wanted.limit:
                    return

    @overload
    async def examples(
        self, graph: Node[In, Out], *, stage: None = None, **which: Unpack[Which]
    ) -> list[Example[In]]: ...
    @overload
    async def examples(
        self, graph: Node[In, Out], *, stage: Node[StageIn, Any], **which: Unpack[Which]
    ) -> list[Example[StageIn]]: ...
    async def examples(
        self, graph: Node[In, Out], *, stage: Node[StageIn, Any] | None = None, **which: Unpack[Which]
    ) -> list[Example[In]] | list[Example[StageIn]]:
        """Data for the whole graph, or for one of its stages: inputs and expected outputs.

        The expected output is the correction of a run, or else its own output; `corrected` in the metadata tells which,
        and `evaluate` refuses own outputs unless it is told to accept them. `score="correction"` gives corrected ones
        alone. A failed run without a correction is skipped. Of several runs with equal inputs, one with a correction
        counts, or else the newest.

        Args:
            graph: Whose runs.
            stage: Only the calls of this node: `Build.code`.
            which: See `Which`; with a stage, `score`, `min_score` and `max_score` are about its calls.

        Raises:
            TracingError: the server does not answer.
            DeclarationError: the graph has no such stage.
        """
        paths = {""} if stage is None else graph.__node__.tree.paths(stage)
        wanted = _filter_of(which)
        of_runs = replace(wanted, limit=None)
        if stage is not None:
            of_runs = replace(of_runs, feedback=None, min_score=None, max_score=None)
        found: dict[tuple[str, str | None], Example[Any]] = {}
        input_type = (graph if stage is None else stage).__node__.input_type
        async with aclosing(self._read(graph, of_runs)) as runs:
            async for run, row, recorded in runs:
                rows = {one.key: one for one in recorded}
                for call in [run.root] if stage is None else [call for call in run.root.walk() if call.path in paths]:
                    about = [
                        one for one in run.feedback if (one.key or "") == call.key or (stage is None and not one.key)
                    ]
                    if stage is not None and not wanted.has_score(about):
                        continue
                    try:
                        example = _example(run, row, call, rows.get(call.key), about)
                    except _UnusableError as why:
                        self.skipped[str(why)] += 1
                        continue
                    # Its content tells one input from another, and its class where the declared type leaves that open.
                    given = digest_of(example.input), input_type.recorded(example.input).whole
                    before = found.get(given)
                    if before is not None:
                        self.skipped["the same input again"] += 1
                    if before is None or (example.metadata["corrected"] and not before.metadata["corrected"]):
                        found[given] = example
                if wanted.limit is not None and len(found) >= wanted.limit:
                    break
        return list(found.values())[: max(0, wanted.limit) if wanted.limit is not None else None]


def _example(
    run: Run[Any, Any], row: RunRow, call: Call, recorded: CallRow | None, about: Sequence[Feedback]
) -> Example[Any]:
    """The example of a call, whose row is *recorded*, with the scores that are *about* it."""
    node = run.tree.nodes[call.path].__node__
    corrections = [one for one in about if one.name == CORRECTION]
    problem = ""
    if recorded is not None and recorded.input_whole == "":
        problem = "the record does not hold the whole input"
    elif not node.input_type.is_instance(call.input):
        problem = "an input does not fit its type any more"
    elif not (corrections or call.ok):
        problem = "it failed, and nobody corrected it"
    elif not corrections and recorded is not None and recorded.output_whole == "":
        problem = "the record does not hold the whole output"
    elif not (corrections or node.output_type.is_instance(call.output)):
        problem = "an output does not fit its type any more"
    if problem:
        raise _UnusableError(problem)
    expected = call.output
    if corrections:
        try:
            expected = corrected(corrections[-1].value, node.output_type)
        except ValueError:
            msg = "a correction does not fit the output type"
            raise _UnusableError(msg) from None
    scores = {one.name: one.value for one in about if one.name != CORRECTION}
    metadata: dict[str, Any] = {"run_id": run.id, "key": call.key, "corrected": bool(corrections), "scores": scores}
    if segment := sum(moment <= call.started.timestamp() for moment in row.read_labels().resumed):
        metadata["segment"] = segment
    return Example(call.input, expected, digest_of([run.id, call.key]), metadata)


class JournalRuns(RunSource):
    """Recorded runs of a journal, which can be learned from as those of Langfuse, without a server."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    async def pages(self, graph: Node[Any, Any], wanted: RunFilter) -> AsyncGenerator[RunRows]:
        """The recorded runs of a graph that are wanted, the newest first.

        Raises:
            DeclarationError: an environment is wanted.
        """
        if wanted.environment is not None:
            msg = f"environment={wanted.environment!r}: a journal does not know in which one a run was made"
            raise DeclarationError(msg)
        search = replace(wanted, graph=graph.__node__.name, limit=_PAGE)
        while rows := await self._journal.runs(search):
            search = replace(search, before=(rows[-1].started, rows[-1].run_id))
            for row in rows:
                try:
                    so_far, calls = await rows_so_far(self._journal, row)
                except DamagedError:
                    self.skipped["a record is damaged"] += 1
                    continue
                yield so_far, calls, await self._journal.feedback(row.run_id)


def corrected(value: object, type_: Schema) -> Any:
    """The expected output of a correction: its data, or a text that is its JSON; a plain text where one is returned.

    Raises:
        ValueError: it does not fit the type.
    """
    data = value
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            data = json.loads(value)
    try:
        return type_.load(data)
    except ValueError:
        if data is not value:
            with suppress(ValueError):
                return type_.load(value)
        raise
