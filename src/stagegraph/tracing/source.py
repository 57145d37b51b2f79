"""Recorded runs as data to learn from, wherever they were recorded."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pydantic import ValidationError

from stagegraph.data.examples import Example, digest_of
from stagegraph.record.run import run_of

from ._wanted import CORRECTION, Wanted

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from stagegraph.data.call import Call
    from stagegraph.data.score import Feedback
    from stagegraph.journal import CallRow, FeedbackRow, RunRow
    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run

__all__ = ["CORRECTION", "Pages", "RunSource", "Wanted"]

In = TypeVar("In")
Out = TypeVar("Out")
StageIn = TypeVar("StageIn")

Pages = tuple["RunRow", "list[CallRow]", "list[FeedbackRow]"]
"""One run as a journal keeps it."""


class RunSource(ABC):
    """Where recorded runs are read: `JournalRuns` from a local journal, `LangfuseRuns` from a server.

    What cannot be used is never an error: it is counted in `skipped`, by reason, over all that was read so far.
    """

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()

    @abstractmethod
    def pages(self, graph: Node[Any, Any], wanted: Wanted) -> AsyncGenerator[Pages]:
        """The recorded runs of a graph, the newest first."""

    async def runs(
        self,
        graph: Node[In, Out],
        *,
        since: datetime | timedelta | None = None,
        until: datetime | timedelta | None = None,
        tags: Sequence[str] = (),
        user: str | None = None,
        session: str | None = None,
        environment: str | None = None,
        status: str | None = None,
        score: str | None = None,
        min_score: float | None = None,
        max_score: float | None = None,
        experiments: bool = False,
        limit: int | None = None,
    ) -> AsyncGenerator[Run[In, Out]]:
        """Typed runs with their calls and scores, the newest first.

        Args:
            graph: Whose runs.
            since: Only runs that began then or later: a moment, or how long ago.
            until: Only runs that began before.
            tags: Only runs that have all of these.
            user: Only runs of this user.
            session: Only runs of this session.
            environment: Only runs of this environment; a local journal knows none.
            status: Only runs that ended this way: `succeeded`, `failed`.
            score: Only runs that have a score of this name.
            min_score: Only runs with a numeric score (of that name, if one is given) of at least this.
            max_score: The same for at most.
            experiments: Also runs that were made to evaluate something.
            limit: How many.

        Raises:
            TracingError: the server does not answer.
        """
        wanted = Wanted.of(
            since=since,
            until=until,
            tags=tags,
            user=user,
            session=session,
            environment=environment,
            status=status,
            score=score,
            min_score=min_score,
            max_score=max_score,
            experiments=experiments,
            limit=limit,
        )
        async with aclosing(self._read(graph, wanted)) as found:
            async for run, _ in found:
                yield run

    async def _read(self, graph: Node[In, Out], wanted: Wanted) -> AsyncGenerator[tuple[Run[In, Out], list[float]]]:
        """The runs, each with the moments when it was resumed."""
        count = 0
        if wanted.limit is not None and wanted.limit <= 0:
            return
        async with aclosing(self.pages(graph, wanted)) as pages:
            async for row, calls, scores in pages:
                run = run_of(row, calls, scores, graph)
                accepted = run.status != "succeeded" or graph.__node__.output_type.is_instance(run.output)
                if not (graph.__node__.input_type.is_instance(run.input) and accepted):
                    self.skipped["a run does not fit the graph's types any more"] += 1
                    continue
                if not wanted.scored(run.feedback):
                    continue
                yield run, json.loads(row.labels).get("resumed", [])
                count += 1
                if count == wanted.limit:
                    return

    @overload
    async def examples(self, graph: Node[In, Out], *, stage: None = None, **which: Any) -> list[Example[In]]: ...
    @overload
    async def examples(
        self, graph: Node[In, Out], *, stage: Node[StageIn, Any], **which: Any
    ) -> list[Example[StageIn]]: ...
    async def examples(
        self, graph: Node[In, Out], *, stage: Node[StageIn, Any] | None = None, **which: Any
    ) -> list[Example[In]] | list[Example[StageIn]]:
        """Data for the whole graph, or for one of its stages: what went in, and what should come out.

        A correction is the expected output; without one, it is what came out. Runs that failed give none unless
        they were corrected. Of equal inputs the newest stays, and one that was corrected before all.

        Args:
            graph: Whose runs.
            stage: Only the calls of this node: `Build.code`.
            which: What `runs` takes; with a stage, `score`, `min_score` and `max_score` are about its calls.

        Raises:
            TracingError: the server does not answer.
            DeclarationError: the graph has no such stage.
        """
        paths = {""} if stage is None else graph.__node__.tree.paths(stage)
        scores = {name: which.pop(name) for name in ("score", "min_score", "max_score") if name in which and stage}
        wanted = Wanted(**scores)
        limit: int | None = which.pop("limit", None)
        found: dict[str, Example[Any]] = {}
        async with aclosing(self._read(graph, Wanted.of(**which))) as runs:
            async for run, resumed in runs:
                calls = [run.root] if stage is None else [call for call in run.root.walk() if call.path in paths]
                for call in calls:
                    about = [
                        one for one in run.feedback if (one.key or "") == call.key or (stage is None and not one.key)
                    ]
                    if wanted.scored(about):
                        self._add(self._example(run, call, about, resumed), call, found)
                if limit is not None and len(found) >= limit:
                    break
        return list(found.values())[: max(0, limit) if limit is not None else None]

    def _add(self, example: Example[Any] | None, call: Call, found: dict[str, Example[Any]]) -> None:
        """Keep one example of each input: the newest, and before that one that was corrected."""
        if example is None:
            return
        digest = digest_of(call.input)
        before = found.get(digest)
        if before is not None:
            self.skipped["the same input again"] += 1
        if before is None or (example.metadata["corrected"] and not before.metadata["corrected"]):
            found[digest] = example

    def _example(
        self, run: Run[Any, Any], call: Call, about: Sequence[Feedback], resumed: Sequence[float]
    ) -> Example[Any] | None:
        node = run.tree.nodes[call.path]
        if not node.__node__.input_type.is_instance(call.input):
            self.skipped["an input does not fit its type any more"] += 1
            return None
        corrections = [one for one in about if one.name == CORRECTION]
        if corrections:
            try:
                expected = _corrected(corrections[-1].value, node)
            except (ValidationError, ValueError):
                self.skipped["a correction does not fit the output type"] += 1
                return None
        elif not call.ok:
            self.skipped["it failed, and nobody corrected it"] += 1
            return None
        elif not node.__node__.output_type.is_instance(call.output):
            self.skipped["an output does not fit its type any more"] += 1
            return None
        else:
            expected = call.output
        scores = {one.name: one.value for one in about if one.name != CORRECTION}
        metadata: dict[str, Any] = {
            "run_id": run.id,
            "key": call.key,
            "corrected": bool(corrections),
            "scores": scores,
        }
        if segment := sum(moment <= call.started.timestamp() for moment in resumed):
            metadata["segment"] = segment
        name = digest_of([run.id, call.key])
        return Example(call.input, expected, name, metadata)


def _corrected(value: object, node: Node[Any, Any]) -> Any:
    if not isinstance(value, str):
        return node.__node__.output_type.load(value)
    try:
        data = json.loads(value)
    except ValueError:
        data = value  # a plain text, for a stage that gives one
    try:
        return node.__node__.output_type.load(data)
    except ValidationError:
        return node.__node__.output_type.load(value)
