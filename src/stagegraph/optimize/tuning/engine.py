"""The adapter between GEPA's engine and the graph: runs a candidate, collects what went wrong, gets a new text."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from gepa.core.adapter import EvaluationBatch

from stagegraph.optimize.evaluation.budget import BudgetReached
from stagegraph.optimize.evaluation.report import blame_in
from stagegraph.optimize.evaluation.shown import records, tool_use
from stagegraph.optimize.lms.loop import submit
from stagegraph.schema.errors import TuningError

from .components import EngineName, Texts, text_digest
from .proposers import Proposal, Proposer, schema_text
from .result import Candidate
from .trials import Purpose

if TYPE_CHECKING:
    from stagegraph.data.call import Call
    from stagegraph.data.examples import Example
    from stagegraph.optimize.evaluation.report import Trial

    from .components import Component
    from .rules import Rules
    from .trials import Trials

T = TypeVar("T")


Row = tuple[Purpose, "Example[Any]"]
"""One row of GEPA's data: an example, and what its runs are for."""


class Adapter:
    """GEPA's adapter, callbacks and logger. It is called in the engine's thread and works on the background loop."""

    def __init__(self, trials: Trials, proposer: Proposer, rules: Rules) -> None:
        self._trials, self._target, self._options = trials, trials.target, trials.options
        self._proposer, self._rules = proposer, rules
        self._tried: dict[str, set[str]] = {}
        """A component within a candidate -> texts that were tried for it."""
        self._seeds: list[Trial] = []
        """The first validation, which GEPA does not hand over with its event."""
        self._lift = 1.0
        """Added to each score that the engine sees: it merges only candidates whose scores sum up to more than 0."""
        self._left_out: dict[str, int] = {}
        self._current: Future[Any] | None = None
        self._cancelled = False
        self.propose_new_texts = self._propose

    def cancel(self) -> None:
        """Cancel the current work and start nothing more."""
        self._cancelled = True
        if self._current is not None:
            self._current.cancel()

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        if self._cancelled:
            work.close()
            raise CancelledError
        future = submit(self._in_time(work))
        self._current = future
        if self._cancelled:
            future.cancel()
        return future.result()

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work within the seconds that the budget has left."""
        limit = self._options.budget.seconds
        deadline = asyncio.timeout(None if limit is None else limit - self._trials.spent.seconds)
        try:
            async with deadline:
                return await work
        except TimeoutError:
            if not deadline.expired():
                raise
            msg = f"the budget of {limit:g} seconds"
            raise BudgetReached(msg) from None

    def evaluate(
        self, batch: list[Row], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Trial, Trial]:
        """Run a candidate on rows of one purpose, concurrently.

        Raises:
            TuningError: a provider or the metric failed for good.
            BudgetReached: not all of them could be run.
        """
        purpose = batch[0][0]  # whether traces are asked for does not say it
        trials = self._wait_for(self._trials.of([example for _, example in batch], _plain(candidate), purpose))
        scores = [one.score.value for one in trials]
        if not self._rules.candidates:
            self._seeds, self._lift = trials, 1 - min(0.0, *scores)
        lifted = [score + self._lift for score in scores]
        return EvaluationBatch(trials, lifted, trials, self._objectives(trials))

    def _objectives(self, trials: Sequence[Trial]) -> list[dict[str, float]]:
        """What a candidate can be good at besides the score: that a stage earns no blame."""
        rows: list[dict[str, float]] = []
        for one in trials:
            blamed = one.blame(self._options.perfect)
            own = {f"blame:{path}": -blamed.get(path, 0.0) for path in self._target.paths}
            rows.append({**one.score.objectives, "score": one.score.value, **own})
        return rows

    def on_valset_evaluated(self, event: Mapping[str, Any]) -> None:
        """Keep a candidate that the engine has taken into its population."""
        trials: list[Trial] = [*(event["outputs_by_val_id"] or {}).values()] or self._seeds
        self._seeds = []
        calls = Counter(call.path for one in trials for call in one.run.root.walk())
        candidate = Candidate(
            texts=_plain(event["candidate"]),
            parents=tuple(event["parent_ids"]),
            rows=[one.row for one in trials],
            objectives=self._objectives(trials),
            blame=blame_in(trials, self._options.perfect),
            calls={path: calls[path] / len(trials) for path in self._target.stages},
        )
        self._rules.candidates.append(candidate)
        self._options.report("validated", candidate=event["candidate_idx"], mean=candidate.mean)

    def on_candidate_accepted(self, event: Mapping[str, Any]) -> None:
        """Report that a child is kept."""
        parents, candidate = tuple(event["parent_ids"]), event["new_candidate_idx"]
        self._options.report("accepted", iteration=event["iteration"], candidate=candidate, parents=parents)

    def on_candidate_rejected(self, event: Mapping[str, Any]) -> None:
        """Report that a child is dropped."""
        self._options.report("rejected", iteration=event.get("iteration"))

    def log(self, message: str) -> None:
        """Drop GEPA's own log, which is for its developers."""

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: EvaluationBatch[Trial, Any], components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """All calls of each stage that is to be changed, the worst first."""
        found: dict[str, Sequence[Mapping[str, Any]]] = {}
        trials = eval_batch.trajectories or []
        for name in map(str, components_to_update):
            component = self._target.components[name]

            def use(call: Call, tool: str = component.part) -> dict[str, str]:
                return {"tool": tool_use(call, tool)}

            found[name] = records(trials, component.path, more=use if component.kind == "tool" else None)
            calls = sum(call.path == component.path for one in trials for call in one.run.root.walk())
            self._left_out[name] = calls - len(found[name])
        return found

    def _propose(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        spent, texts = self._trials.spent, _plain(candidate)
        found: dict[str, str] = {}
        for name in map(str, components_to_update):
            if spent.reached(self._options.budget) is not None:
                break
            component = self._target.components[name]
            self._options.report("proposing", stage=component.path, component=name)
            tried = self._tried.setdefault(f"{text_digest({**texts, name: ''})}:{name}", set())
            proposal = self._proposal(component, texts, reflective_dataset.get(name, ()), tried)
            try:
                text = self._wait_for(self._trials.run_dir.proposed(self._proposer, proposal, spent))
            except TuningError as error:
                self._rules.error = error  # the engine ignores a failed proposal, so the stopper looks here
                return {}
            except BudgetReached:  # the stopper notices it before the next iteration
                return {}
            if text is not None:
                tried.add(text)
                found[EngineName(name)] = text
                self._options.report("proposed", stage=component.path, component=name)
        return found

    def _proposal(
        self, component: Component, texts: Texts, shown: Sequence[Mapping[str, Any]], tried: set[str]
    ) -> Proposal:
        path, stage = component.path, self._target.stages[component.path]
        return Proposal(
            path=path,
            text=texts[component.name],
            records=shown,
            input_schema=schema_text(stage.__node__.input_type),
            output_schema=schema_text(stage.__node__.output_type),
            tried=frozenset(tried),
            kind=component.kind,
            part=component.part,
            schema=component.schema,
            instructions="" if component.kind == "instructions" else self._target.instructions(path, texts),
            left_out=self._left_out.get(component.name, 0),
        )


def _plain(candidate: Texts) -> dict[str, str]:
    """A candidate of the engine with plain names."""
    return {str(name): text for name, text in candidate.items()}
