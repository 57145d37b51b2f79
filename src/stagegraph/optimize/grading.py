"""A user's metric, asked once a run, whatever it gives and however it is written."""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeVar, cast
from weakref import WeakKeyDictionary

import anyio.to_thread

from stagegraph.data.score import Note, Score
from stagegraph.schema.errors import TuningError

from ._credit import check_targets

if TYPE_CHECKING:
    from stagegraph.data.examples import Example
    from stagegraph.record.run import Run

__all__ = ["Grader", "Metric", "failed_score", "graded", "grader_of", "stage_of", "wants_failed_runs"]

Verdict = Score | float | bool
Metric = Callable[["Example[Any]", "Run[Any, Any]"], "Verdict | Awaitable[Verdict]"]
"""What users write: how good a run is on an example, as a number, a yes or no, or a `Score` with notes."""

M = TypeVar("M", bound=Callable[..., Any])

_WANTS = "stagegraph_wants_failed_runs"
_KEPT = 10_000


def wants_failed_runs(metric: M) -> M:
    """Mark a metric that judges failed runs itself; otherwise they score 0, with a note on the call that failed."""
    setattr(metric, _WANTS, True)
    return metric


class Grader:
    """A metric with a memory: each run is judged once, also when several threads and loops ask at the same time."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.name: str = getattr(metric, "__name__", None) or type(metric).__name__
        self._lock = Lock()
        self._known: OrderedDict[str, Future[Score]] = OrderedDict()

    async def __call__(self, example: Example[Any], run: Run[Any, Any]) -> Score:
        """The verdict on a run.

        Raises:
            TuningError: the metric raised, or gave what is no score; it names the example and the run.
        """
        if run.status != "succeeded" and not getattr(self.metric, _WANTS, False):
            return failed_score(run)
        while True:
            with self._lock:
                known = self._known.get(run.id)
                mine = self._known[run.id] = known or Future[Score]()
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
            if known is None:
                return await self._judge(example, run, mine)
            try:
                return await asyncio.wrap_future(_shielded(known))
            except asyncio.CancelledError:
                if not known.cancelled():
                    raise
                # Whoever asked was cancelled, so it is asked again.

    async def _judge(self, example: Example[Any], run: Run[Any, Any], mine: Future[Score]) -> Score:
        try:
            score = await self._asked(example, run)
        except BaseException as error:
            with self._lock:
                self._known.pop(run.id, None)
            if isinstance(error, Exception):
                mine.set_exception(error)
            else:
                mine.cancel()
            raise
        mine.set_result(score)
        return score

    async def _asked(self, example: Example[Any], run: Run[Any, Any]) -> Score:
        where = f"the metric {self.name}, on example {example.id!r} (run {run.id})"
        ask = cast("Callable[..., Any]", self.metric)
        try:
            if inspect.iscoroutinefunction(ask) or inspect.iscoroutinefunction(type(ask).__call__):
                found = cast("object", await ask(example, run))
            else:  # it may wait for a judge, and others go on meanwhile
                found = await anyio.to_thread.run_sync(ask, example, run)
                if inspect.isawaitable(found):
                    found = cast("object", await found)
        except TuningError as error:
            msg = f"{where}: {error}"
            raise TuningError(msg) from error
        except Exception as error:
            msg = f"{where}, raised {type(error).__name__}: {error}"
            raise TuningError(msg) from error
        return _score(found, run, where)


def _score(found: object, run: Run[Any, Any], where: str) -> Score:
    if isinstance(found, Score):
        for note in found.notes:
            if not isinstance(note, Note):  # pyright: ignore[reportUnnecessaryIsInstance]
                msg = f"{where}, gave {note!r} among its notes: write call.note(text) or note(path, text)"
                raise TuningError(msg)
        try:
            check_targets(run, found.notes)
        except TuningError as error:
            msg = f"{where}: {error}"
            raise TuningError(msg) from error
        return found
    if not isinstance(found, SupportsFloat):
        hint = "; did you forget `return`?" if found is None else ""
        msg = f"{where}, gave {type(found).__name__} {found!r}; it gives a number, a bool or a Score{hint}"
        raise TuningError(msg)
    try:
        return Score(cast("float", found))
    except ValueError as error:
        msg = f"{where}, gave {found}: {error}"
        raise TuningError(msg) from error


def _shielded(future: Future[Score]) -> Future[Score]:
    """A future that ends like the other one; cancelling it leaves the other alone."""
    own = Future[Score]()

    def pass_on(done: Future[Score]) -> None:
        if not own.set_running_or_notify_cancel():
            return
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is None:
            own.set_result(done.result())
        else:
            own.set_exception(error)

    future.add_done_callback(pass_on)
    return own


def failed_score(run: Run[Any, Any]) -> Score:
    """What a run that ended without an output is worth: nothing, and the call that failed is told why."""
    notes = [
        Note(call.key, f"It failed: {call.error}" if call.error else f"It ended as {call.status}.")
        for call in run.failures()
    ]
    return Score(0.0, notes=notes or [Note("", f"The run ended as {run.status}: {run.error or 'no output'}")])


_graders: WeakKeyDictionary[Any, Grader] = WeakKeyDictionary()
_lock = Lock()


def grader_of(metric: Metric | Grader) -> Grader:
    """The one grader of a metric, so that all who ask share what it said."""
    if isinstance(metric, Grader):
        return metric
    if not callable(metric):
        msg = f"a metric is a function of an example and a run, not {metric!r}"
        raise TuningError(msg)
    try:
        with _lock:
            known = _graders.get(metric)
            if known is None:
                known = _graders[metric] = Grader(metric)
    except TypeError:  # a callable that cannot be remembered
        return Grader(metric)
    return known


async def graded(metric: Metric | Grader, example: Example[Any], run: Run[Any, Any]) -> Score:
    """What a metric says about a run.

    Raises:
        TuningError: the metric raised, or gave what is no score.
    """
    return await grader_of(metric)(example, run)


def stage_of(run: Run[Any, Any], target: str) -> str:
    """The path that a note's target stands for; empty for the run itself."""
    if target in run.tree.nodes:
        return target
    try:
        return run.call(target).path
    except KeyError:
        return ""
