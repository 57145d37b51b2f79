"""A search for better texts: GEPA (arXiv:2507.19457) on a graph, with blame that follows the recorded data flow."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
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
from .result import SearchResult, warnings_of
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
    ) -> None:
        self.train = checked_examples(graph, train, "training examples")
        self.val = checked_examples(graph, val, "validation examples")
        check_overlap(train=self.train, val=self.val)
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
        """Search, in a thread in which GEPA's engine may block.

        Raises:
            TuningError: it failed before the seed was evaluated.
        """
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

    async def verdict(self, texts: Mapping[str, str], rows: Sequence[Example[Any]]) -> Report:
        """Evaluate texts on examples with fresh runs; a resumed search reuses the runs of its earlier verdict.

        Raises:
            TuningError: a provider or the metric failed for good.
        """
        try:
            trials = await await_here(self._trials.of(rows, texts, "verdict"))
        except Exception as error:
            raise _as_tuning_error(error) from error
        return self.report(texts, [one.row for one in trials])

    def report(self, texts: Mapping[str, str], rows: Sequence[ReportRow]) -> Report:
        """The evaluation of texts that these runs are."""
        return report_of(self.target.graph, self._trials.grader.name, self.target.prompts(texts), rows)

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


def check_overlap(**parts: Sequence[Example[Any]]) -> None:
    """Make sure that no input is in two parts of the data.

    Raises:
        TuningError: a later part has an input of an earlier one.
    """
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
