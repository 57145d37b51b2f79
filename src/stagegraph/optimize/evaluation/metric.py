"""A user's metric: called once for each run, whatever it returns and however it is written."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar, cast

from stagegraph.data.score import Note, Score
from stagegraph.optimize.lms.loop import call_user
from stagegraph.record.run import causes_of
from stagegraph.schema.errors import TuningError

from .blame import check_notes

if TYPE_CHECKING:
    from stagegraph.data.examples import Example
    from stagegraph.record.run import Run

Verdict = Score | float | bool
Metric = Callable[["Example[Any]", "Run[Any, Any]"], "Verdict | Awaitable[Verdict]"]
"""What users write: how good a run is on an example, as a number, a bool, or a `Score` with notes."""

M = TypeVar("M", bound=Callable[..., Any])

_WANTS = "stagegraph_wants_failed_runs"
_KEPT = 10_000
"""Scores that a grader keeps."""


def wants_failed_runs(metric: M) -> M:
    """Mark a metric that scores failed runs itself; otherwise they score 0, with a note on the call that failed."""
    setattr(metric, _WANTS, True)
    return metric


class Grader:
    """A metric that keeps its scores: each run is scored once, also when several threads and loops ask at once."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.name: str = getattr(metric, "__name__", None) or type(metric).__name__
        self._lock = Lock()
        self._known: OrderedDict[str, Future[Score]] = OrderedDict()

    async def __call__(self, example: Example[Any], run: Run[Any, Any]) -> Score:
        """The score of a run.

        Raises:
            TuningError: the metric raised, or returned no score; the message names the example and the run.
        """
        if run.status != "succeeded" and not getattr(self.metric, _WANTS, False):
            return failed_score(run)
        mine = Future[Score]()
        while (known := self._claimed(run.id, mine)) is not mine:
            try:
                return await asyncio.shield(asyncio.wrap_future(known))
            except asyncio.CancelledError:
                if not known.cancelled():
                    raise
                # The caller that scored this run was cancelled, so another one scores it.
        try:
            mine.set_result(await self._ask(example, run))
        except BaseException as error:
            with self._lock:
                self._known.pop(run.id, None)
            if isinstance(error, Exception):
                mine.set_exception(error)
            else:
                mine.cancel()
            raise
        return mine.result()

    def _claimed(self, run_id: str, mine: Future[Score]) -> Future[Score]:
        """The score of a run: *mine* if nobody else has it or works on it."""
        with self._lock:
            known = self._known.setdefault(run_id, mine)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return known

    async def _ask(self, example: Example[Any], run: Run[Any, Any]) -> Score:
        try:
            return _score_in(await call_user(self.metric, example, run), run)
        except Exception as error:
            reason = str(error) if isinstance(error, TuningError) else f"it raised {type(error).__name__}: {error}"
            msg = f"the metric {self.name}, on example {example.id!r} (run {run.id}): {reason}"
            raise TuningError(msg) from error


def _score_in(found: object, run: Run[Any, Any]) -> Score:
    if isinstance(found, Score):
        check_notes(run, found.notes)
        return found
    try:
        return Score(cast("float", found))
    except ValueError as error:
        hint = "; did you forget `return`?" if found is None else ""
        msg = f"it gave {type(found).__name__} {found!r}; it gives a finite number, a bool or a Score{hint}"
        raise TuningError(msg) from error


def failed_score(run: Run[Any, Any]) -> Score:
    """The score of a run without an output: 0, with a note on each call that failed."""
    notes = [
        Note(call.key, f"It failed: {call.error}" if call.error else f"It ended as {call.status}.")
        for call in causes_of(run)
    ]
    return Score(0.0, notes=notes or [Note("", f"The run ended as {run.status}: {run.error or 'no output'}")])


_grader = lru_cache(maxsize=16)(Grader)


def grader_of(metric: Metric | Grader) -> Grader:
    """The grader of a metric: the same one for each caller, so that they share its scores."""
    if isinstance(metric, Grader):
        return metric
    if not callable(metric):
        msg = f"a metric is a function of an example and a run, not {metric!r}"
        raise TuningError(msg)
    try:
        return _grader(metric)
    except TypeError:  # it is not hashable
        return Grader(metric)


async def graded(metric: Metric | Grader, example: Example[Any], run: Run[Any, Any]) -> Score:
    """The score that a metric gives a run.

    Raises:
        TuningError: the metric raised, or returned no score.
    """
    return await grader_of(metric)(example, run)
