"""Runs of candidates on examples; nothing is paid for twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from stagegraph.optimize.evaluation.budget import BudgetReached
from stagegraph.optimize.evaluation.evaluate import in_parallel, run_example
from stagegraph.optimize.evaluation.report import Trial

from .components import Texts, text_digest
from .run_dir import example_digest

if TYPE_CHECKING:
    from stagegraph.data.examples import Example
    from stagegraph.data.prompts import Prompts
    from stagegraph.optimize.evaluation.budget import Spent
    from stagegraph.optimize.evaluation.metric import Grader
    from stagegraph.record.run import Run
    from stagegraph.runner.runner import Runner

    from .components import Target
    from .options import Options
    from .run_dir import RunDir

Purpose = Literal["trace", "fresh", "verdict"]
"""What a run is for: only a `trace` may reuse calls of another candidate; a `verdict` is not part of the budget."""


@dataclass(kw_only=True)
class Trials:
    """Runs candidates on the background loop while the budget lasts."""

    target: Target
    grader: Grader
    runner: Runner
    """It has a journal, so that a child does not repeat calls that its change does not touch."""
    options: Options
    spent: Spent
    run_dir: RunDir
    _newest: dict[str, Run[Any, Any]] = field(default_factory=dict[str, "Run[Any, Any]"])
    """Example -> its newest `trace` run, from which a child reuses calls."""
    _traced: dict[str, Trial] = field(default_factory=dict[str, Trial])
    """Key of a run -> the `trace` run."""

    async def of(self, batch: Sequence[Example[Any]], candidate: Texts, purpose: Purpose) -> list[Trial]:
        """Run a candidate on all examples concurrently. A recorded run is not made again.

        Raises:
            BudgetReached: the budget ended before all were run. A `verdict` does not count.
        """
        name = text_digest(candidate)
        keys = [f"{purpose}:{name}:{one.id}:{example_digest(one)}" for one in batch]
        found: dict[int, Trial] = {}
        missing: dict[str, list[int]] = {}
        for place, example in enumerate(batch):
            known = self._traced.get(keys[place])
            if known is None and (known := self.run_dir.trial(keys[place], example, self.target.graph)) is not None:
                self._count(keys[place], known, purpose)
            if known is not None:
                found[place] = known
            else:  # GEPA fills a minibatch up with examples that are already in it: their `trace` is made once
                missing.setdefault(keys[place] if purpose == "trace" else str(place), []).append(place)
        prompts = self.target.prompts(candidate)
        reached: list[str] = []

        async def make(places: list[int]) -> None:
            limit = None if purpose == "verdict" else self.spent.reached(self.options.budget)
            if limit is not None:
                reached.append(limit)
                return
            trial = await self._run(keys[places[0]], prompts, batch[places[0]], purpose)
            found.update(dict.fromkeys(places, trial))

        await in_parallel([partial(make, places) for places in missing.values()], self.options.concurrency)
        if reached:
            raise BudgetReached(reached[0])
        return [found[place] for place in range(len(batch))]

    async def _run(self, key: str, prompts: Prompts, example: Example[Any], purpose: Purpose) -> Trial:
        newest = self._newest.get(example.id) if purpose == "trace" else None
        run = await run_example(
            self.runner,
            self.target.graph,
            example,
            model=self.options.model,
            models=self.options.models,
            prompts=prompts,
            retry_delays=self.options.retry_delays,
            replay=await self._journaled(self.run_dir.interrupted(key), newest.id if newest else None),
            begin=lambda run_id: self.run_dir.begin(key, run_id),
        )
        trial = Trial(example, run, await self.grader(example, run))
        self.run_dir.keep(key, trial)
        self._count(key, trial, purpose)
        return trial

    def _count(self, key: str, trial: Trial, purpose: Purpose) -> None:
        spent, example = self.spent, trial.example.id
        if purpose != "verdict":
            spent.add_run(trial.run)
            spent.add_verdict(trial.score)
        if purpose == "trace":
            self._traced[key] = trial
            self._newest[example] = trial.run
        costs = {"runs": spent.runs, "usd": spent.usd, "unpriced": spent.unpriced}
        self.options.report("run", example=example, score=trial.score.value, kind=purpose, **costs)

    async def _journaled(self, *run_ids: str | None) -> str | None:
        """The first of these runs that the journal has."""
        journal = self.runner.journal
        for run_id in run_ids:
            if journal is not None and run_id is not None and await journal.run(run_id) is not None:
                return run_id
        return None
