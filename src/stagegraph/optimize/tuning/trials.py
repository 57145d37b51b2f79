"""Runs of candidates on examples; nothing is paid for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stagegraph.optimize.evaluation.budget import BudgetReached
from stagegraph.optimize.evaluation.evaluate import run_example
from stagegraph.optimize.evaluation.report import Trial

from .components import Component, Texts, prompts_of, text_digest

if TYPE_CHECKING:
    from stagegraph.data.examples import Example
    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node
    from stagegraph.optimize.evaluation.budget import Budget, Spent
    from stagegraph.optimize.evaluation.metric import Grader
    from stagegraph.record.run import Run
    from stagegraph.runner.runner import Runner

    from .options import Options
    from .run_dir import Purpose, RunDir

__all__ = ["Trials"]


@dataclass(kw_only=True)
class Trials:
    """Runs candidates on the background loop while the budget lasts."""

    graph: Node[Any, Any]
    base: Prompts
    components: Mapping[str, Component]
    grader: Grader
    runner: Runner
    """It has a journal, so that a child does not repeat calls that its change does not touch."""
    options: Options
    budget: Budget
    spent: Spent
    run_dir: RunDir
    _newest: dict[str, Run[Any, Any]] = field(default_factory=dict[str, "Run[Any, Any]"])
    """Example -> its newest `trace` run, from which a child reuses calls."""
    _traced: dict[tuple[str, str], Trial] = field(default_factory=dict[tuple[str, str], Trial])
    """Candidate and example -> its `trace` run."""

    async def of(self, batch: Sequence[Example[Any]], candidate: Texts, purpose: Purpose) -> list[Trial]:
        """Run a candidate on all examples concurrently. A recorded run is not made again.

        Raises:
            BudgetReached: the budget ended before all were run. A `verdict` does not count.
        """
        name = text_digest(candidate)
        found: dict[int, Trial] = {}
        missing: dict[str, list[int]] = {}
        for place, example in enumerate(batch):
            known = await self._recorded(name, example, purpose)
            if known is not None:
                found[place] = known
            else:  # GEPA fills a minibatch up with examples that are already in it: their `trace` is made once
                missing.setdefault(example.id if purpose == "trace" else str(place), []).append(place)
        slots = asyncio.Semaphore(self.options.concurrency)
        prompts = prompts_of(self.base, candidate, self.components)
        reached: list[str] = []

        async def make(places: list[int]) -> None:
            async with slots:
                limit = None if purpose == "verdict" else self.spent.reached(self.budget)
                if limit is not None:
                    reached.append(limit)
                    return
                trial = await self._run(name, prompts, batch[places[0]], purpose)
                found.update(dict.fromkeys(places, trial))

        async with asyncio.TaskGroup() as group:
            for places in missing.values():
                group.create_task(make(places))
        if reached:
            raise BudgetReached(reached[0])
        return [found[place] for place in range(len(batch))]

    async def _recorded(self, name: str, example: Example[Any], purpose: Purpose) -> Trial | None:
        if purpose == "trace" and (known := self._traced.get((name, example.id))) is not None:
            return known
        trial = self.run_dir.trial(purpose, name, example, self.graph)
        return None if trial is None else self._counted(name, trial, purpose)

    async def _run(self, name: str, prompts: Prompts, example: Example[Any], purpose: Purpose) -> Trial:
        options = self.options
        newest = self._newest.get(example.id) if purpose == "trace" else None
        reusable = (self.run_dir.interrupted(purpose, name, example), newest.id if newest else None)
        run = await run_example(
            self.runner,
            self.graph,
            example,
            model=options.model,
            models=options.models,
            prompts=prompts,
            retry_delays=options.retry_delays,
            replay=await self._journaled(*reusable),
            begin=lambda run_id: self.run_dir.begin(purpose, name, example, run_id),
        )
        trial = Trial(example, run, await self.grader(example, run))
        self.run_dir.keep(purpose, name, trial)
        return self._counted(name, trial, purpose)

    def _counted(self, name: str, trial: Trial, purpose: Purpose) -> Trial:
        spent, example = self.spent, trial.example.id
        if purpose != "verdict":
            spent.add_run(trial.run)
            spent.add_verdict(trial.score)
        if purpose == "trace":
            self._traced[name, example] = trial
            self._newest[example] = trial.run
        costs = {"runs": spent.runs, "usd": spent.usd, "unpriced": spent.unpriced}
        self.options.callback("run", {"example": example, "score": trial.score.value, "kind": purpose, **costs})
        return trial

    async def _journaled(self, *run_ids: str | None) -> str | None:
        """The first of these runs that the journal has."""
        journal = self.runner.journal
        for run_id in run_ids:
            if journal is not None and run_id is not None and await journal.run(run_id) is not None:
                return run_id
        return None
