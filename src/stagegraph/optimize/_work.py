"""One search at work: GEPA's engine in a thread of its own, told what to run, what to keep and when to stop."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gepa.api import optimize  # pyright: ignore[reportUnknownVariableType]

from stagegraph.data.prompts import Prompts
from stagegraph.journal import MemoryJournal, SqliteJournal
from stagegraph.nodes.stage import stages_of
from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import TuningError

from ._adapter import Adapter
from ._components import EngineName, checked_kinds, components_of, prompts_of
from ._counts import check_counts
from ._loop import await_here
from ._manifest import manifest
from ._rules import Acceptance, Selector, Stopper
from ._runs import Runs
from ._start import check_overlap, model_of, proposer_of
from ._store import Store
from ._told import Events, Quiet, Teller
from ._warnings import warnings_of
from .budget import Budget, BudgetReached, Spent
from .evaluation import checked_examples, report_of
from .grading import Grader, Metric, grader_of
from .search import Found, Options, Tell

if TYPE_CHECKING:
    from stagegraph.data.examples import Example
    from stagegraph.nodes.node import Node

    from .report import Report

__all__ = ["Work"]

_MERGE = 5
"""Runs that GEPA tries a merge of two candidates on."""


class Work:
    """One search; making it checks everything that can be checked before anything is paid for."""

    def __init__(  # noqa: PLR0917 - the search itself
        self,
        graph: Node[Any, Any],
        metric: Metric | Grader,
        train: Sequence[Example[Any]],
        val: Sequence[Example[Any]],
        budget: Budget,
        options: Options,
        tell: Tell,
    ) -> None:
        self.graph, self.budget, self.tell = graph, budget, (tell := Teller(tell))
        if not isinstance(budget, Budget):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"budget={budget!r}: write Budget(runs=300), Budget(usd=5) or both"
            raise TuningError(msg)
        self.train, self.val = (
            checked_examples(graph, train, "training examples"),
            checked_examples(graph, val, "validation examples"),
        )
        check_overlap(train=self.train, val=self.val)
        check_counts(minibatch=options.minibatch, side_by_side=options.side_by_side)
        if options.stagnation is not None:
            check_counts(stagnation=options.stagnation)
        self.stages = stages_of(graph)
        grader = grader_of(metric)
        start = options.prompts or Prompts()
        self.base = start if start.graph else Prompts(start, graph=graph.__node__.name, origins=start.origins)
        self.base.check_known(self.stages, graph.__node__.name)
        kinds = checked_kinds(options.components)
        writer = model_of(options.reflection_model)
        self.options = options = replace(options, components=kinds, reflection_model=writer)
        self.components = components_of(self.base, self.stages, kinds)
        self.seed = {name: component.seed for name, component in self.components.items()}
        tuned = {component.path for component in self.components.values()}
        self._untuned = {path: " or ".join(kinds) for path in self.stages if path not in tuned}
        if not self.seed:
            msg = f"no stage of {graph.__node__.name} has {' or '.join(kinds)} to tune"
            raise TuningError(msg)
        self._minibatch = min(options.minibatch, len(self.train))
        self._step = max(2 * self._minibatch, _MERGE) + len(self.val)
        if budget.runs is not None and budget.runs < len(self.val):
            msg = (
                f"Budget(runs={budget.runs}) does not even pay for the seed on {len(self.val)} validation "
                f"examples; one step more takes up to {self._step}"
            )
            raise TuningError(msg)
        self.spent = Spent()
        facts = manifest(graph, self.base, self.seed, grader, self.train, self.val, options)
        folder = None if options.run_dir is None else Path(options.run_dir)
        store, proposer = Store(folder, facts, self.spent), proposer_of(options, self.seed, self.spent)
        self.resumes = store.known
        """Whether an earlier process has begun it."""
        self.grader = grader
        self.runs = Runs(
            graph=graph,
            components=self.components,
            base=self.base,
            grader=grader,
            runner=_journaled(options.runner, folder),
            model=options.model,
            models=options.models,
            spent=self.spent,
            budget=budget,
            store=store,
            side_by_side=options.side_by_side,
            waits=options.waits,
            tell=tell,
        )
        self.adapter = Adapter(
            runs=self.runs,
            stages=self.stages,
            proposer=proposer,
            perfect=options.perfect,
            validation=self.val,
        )

    async def search(self) -> Found:
        """Search, in a thread where GEPA's engine may block as it likes."""
        try:
            return await asyncio.to_thread(self._run)
        except asyncio.CancelledError:
            self.adapter.cancel()  # the thread cannot be interrupted, but what it waits for can
            raise

    async def verdict(self, texts: Mapping[str, str], rows: Sequence[Example[Any]]) -> Report:
        """Texts evaluated on examples, each run anew; a resumed search finds what it had run already.

        Raises:
            TuningError: a provider or the metric failed for good.
        """
        try:
            judged = await await_here(self.runs.of(rows, texts, "verdict"))
        except Exception as error:
            raise _as_tuning_error(error) from error
        return report_of(
            self.graph, self.grader.name, prompts_of(self.base, texts, self.components), [one.row for one in judged]
        )

    async def close(self) -> None:
        """Let go of the journal, if this search made it."""
        journal = self.runs.runner.journal
        if isinstance(journal, SqliteJournal) and journal is not getattr(self.options.runner, "journal", None):
            await journal.aclose()

    def _run(self) -> Found:
        options, adapter = self.options, self.adapter
        stopper = Stopper(self.budget, self.spent, self._step, options.stagnation, adapter, options.perfect)
        error: TuningError | None = None
        try:
            optimize(
                seed_candidate=EngineName.given(self.seed),
                trainset=list(self.train),
                valset=list(self.val),
                adapter=adapter,  # pyright: ignore[reportArgumentType]
                frontier_type="hybrid",
                skip_perfect_score=False,  # what GEPA sees is lifted; the selector looks at the scores themselves
                reflection_minibatch_size=self._minibatch,
                module_selector=Selector(options.perfect, self.components),  # pyright: ignore[reportArgumentType]
                acceptance_criterion=Acceptance(options.perfect, self.components),
                use_merge=options.merge and len(self.seed) > 1,
                stop_callbacks=stopper,
                callbacks=[Events(adapter, self.tell)],  # pyright: ignore[reportArgumentType]
                logger=Quiet(),
                seed=options.seed,
                raise_on_exception=True,
            )
        except CancelledError:
            raise
        except BudgetReached as limit:
            stopper.reason = str(limit)
        except Exception as raised:  # noqa: BLE001 - what was found until now is worth more than where it broke
            error = _as_tuning_error(raised)
        error = error or adapter.problem
        return self._found(str(error) if error else stopper.reason or "the search ended", error)

    def _found(self, stopped: str, error: TuningError | None) -> Found:
        findings = self.adapter.findings
        if not findings:
            if error is not None:
                raise error
            msg = (
                f"the texts to start from could not be evaluated on all {len(self.val)} validation examples: {stopped} "
                f"was reached after {self.spent.runs} of them; give it more"
            )
            raise TuningError(msg)
        best = max(
            range(len(findings)), key=lambda i: (round(findings[i].mean, 9), -sum(findings[i].blame.values()), -i)
        )
        return Found(
            seed=prompts_of(self.base, self.seed, self.components),
            candidates=tuple(findings),
            best=best,
            stopped=stopped,
            error=error,
            spent=self.spent,
            prompts=prompts_of(self.base, findings[best].texts, self.components),
            warnings=() if error else warnings_of(self.budget, self.spent, self._untuned, findings[best].rows),
        )


def _as_tuning_error(error: BaseException) -> TuningError:
    while isinstance(error, BaseExceptionGroup):
        inner = cast("BaseExceptionGroup[BaseException]", error).exceptions
        error = next((one for one in inner if isinstance(one, TuningError)), inner[0])
    if isinstance(error, TuningError):
        return error
    found = TuningError(f"the search broke off: {type(error).__name__}: {error}")
    found.__cause__ = error
    return found


def _journaled(runner: Runner | None, run_dir: str | Path | None) -> Runner:
    """A runner that records its runs, so that a child does not repeat what its change does not touch."""
    if runner is not None and runner.journal is not None:
        return runner
    own = Runner(tracing=None) if runner is None else copy.copy(runner)
    if run_dir is None:
        own.journal = MemoryJournal()
    else:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        own.journal = SqliteJournal(Path(run_dir) / "runs.db")
    return own
