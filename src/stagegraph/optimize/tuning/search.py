"""A search for better texts: GEPA (arXiv:2507.19457) on a graph, with blame that follows the recorded data flow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stagegraph.data.examples import digest_of
from stagegraph.optimize.evaluation.budget import BudgetReached
from stagegraph.optimize.evaluation.evaluate import checked_examples
from stagegraph.optimize.evaluation.metric import Grader, Metric, grader_of
from stagegraph.optimize.evaluation.report import report_of
from stagegraph.optimize.lms.loop import await_here
from stagegraph.schema.errors import TuningError

from .components import Target
from .engine import Engine
from .result import Candidate, SearchResult, warnings_of
from .trials import Trials

if TYPE_CHECKING:
    from stagegraph.data.examples import Example
    from stagegraph.nodes.node import Node
    from stagegraph.optimize.evaluation.report import Report, ReportRow

    from .options import Options

_MERGE = 5
"""Runs on which GEPA tries a merge of two candidates."""


async def search(
    graph: Node[Any, Any],
    metric: Metric | Grader,
    train: Sequence[Example[Any]],
    val: Sequence[Example[Any]],
    options: Options,
) -> SearchResult:
    """Search for better texts of a graph's stages: learn from *train*, select by *val*.

    Raises:
        TuningError: the search cannot begin. What fails later is `SearchResult.error`.
    """
    async with aclosing(Search(graph, metric, train, val, await options.checked())) as one:
        return await one.run()


class Search:
    """One search. Creating it checks everything that can be checked before anything is paid for.

    *options* are already checked.
    """

    def __init__(
        self,
        graph: Node[Any, Any],
        metric: Metric | Grader,
        train: Sequence[Example[Any]],
        val: Sequence[Example[Any]],
        options: Options,
        *,
        test: Sequence[Example[Any]] | None = None,
    ) -> None:
        self.train = checked_examples(graph, train, "training examples")
        self.val = checked_examples(graph, val, "validation examples")
        self.test = None if test is None else checked_examples(graph, test, "test examples")
        """Examples for the verdict; without them it is about the validation examples."""
        _check_overlap(train=self.train, val=self.val, test=self.test or [])
        self.options = options
        self.target = Target.of(graph, options.prompts, options.components)
        minibatch = min(options.minibatch, len(self.train))
        step = max(2 * minibatch, _MERGE) + len(self.val)
        if options.budget.runs is not None and options.budget.runs < len(self.val):
            msg = (
                f"Budget(runs={options.budget.runs}) does not even pay for the seed on {len(self.val)} validation "
                f"examples; one step more takes up to {step}"
            )
            raise TuningError(msg)
        parts = {"training": self.train, "validation": self.val}
        self._trials = Trials(self.target, grader_of(metric), options, parts)
        self._engine = Engine(self._trials, minibatch, step)
        self.resumes = self._trials.resumes
        """Whether an earlier process began it."""
        self.aclose = self._trials.aclose

    async def run(self) -> SearchResult:
        """Search, in a thread in which GEPA's engine may block; an error before the seed was evaluated is raised."""
        engine, error = self._engine, None
        try:
            await asyncio.to_thread(engine.run, self.train, self.val)
        except asyncio.CancelledError:
            engine.cancel()  # the thread cannot be interrupted, but what it waits for can
            raise
        except BudgetReached as limit:
            engine.stopped = str(limit)
        except Exception as failed:  # noqa: BLE001 - a search that fails still gives what it has found
            error = _as_tuning_error(failed)
        return self._result(error)

    async def judged(self) -> tuple[SearchResult, Report, Report]:
        """What the search found, and fresh evaluations of the seed and of the best candidate.

        After an error, the runs that selected the candidate are the only evidence.
        """
        found = await self.run()
        seed, best = found.candidates[0], found.candidates[found.best]
        if found.error is None:
            try:
                before = await self._verdict(seed)
                return found, before, before if best is seed else await self._verdict(best)
            except Exception as failed:  # noqa: BLE001 - what was found stays
                error = _as_tuning_error(failed)
                found = replace(found, error=error, stopped=f"{found.stopped}; the verdict failed: {error}")
        return found, self._report(seed, seed.rows), self._report(best, best.rows)

    async def _verdict(self, candidate: Candidate) -> Report:
        trials = await await_here(self._trials.of(self.test or self.val, candidate.texts, "verdict"))
        return self._report(candidate, [one.row for one in trials])

    def _report(self, candidate: Candidate, rows: Sequence[ReportRow]) -> Report:
        return report_of(self.target.graph, self._trials.grader.name, self.target.prompts(candidate.texts), rows)

    def _result(self, error: TuningError | None) -> SearchResult:
        engine, target, spent = self._engine, self.target, self._trials.spent
        stopped = str(error or engine.stopped or "the search ended")
        if not engine.candidates:
            if error is not None:
                raise error
            msg = (
                f"the texts to start from could not be evaluated on all {len(self.val)} validation examples: {stopped} "
                f"was reached after {spent.runs} of them; give it more"
            )
            raise TuningError(msg)
        best = engine.candidates[engine.best]
        kinds = " or ".join(self.options.components)
        untuned = {path: kinds for path in target.stages if path not in target.paths}
        return SearchResult(
            seed=target.prompts(target.seed),
            candidates=tuple(engine.candidates),
            best=engine.best,
            stopped=stopped,
            error=error,
            spent=spent,
            prompts=target.prompts(best.texts),
            warnings=() if error else warnings_of(self.options.budget, spent, untuned, best.rows),
        )


def _check_overlap(**parts: Sequence[Example[Any]]) -> None:
    """Make sure that no input is in two parts of the data."""
    known: dict[str, str] = {}
    for part, rows in parts.items():
        both = [(one.id, known[digest]) for one in rows if (digest := digest_of(one.input)) in known]
        if both:
            some = ", ".join(f"{name!r} (in `{where}`)" for name, where in both[:5])
            msg = f"{len(both)} examples of `{part}` are there already: {some}; what was learnt by heart would win"
            raise TuningError(msg)
        known |= dict.fromkeys((digest_of(one.input) for one in rows), part)


def _as_tuning_error(error: Exception) -> TuningError:
    if isinstance(error, TuningError):
        return error
    found = TuningError(f"the search broke off: {type(error).__name__}: {error}")
    found.__cause__ = error
    return found
