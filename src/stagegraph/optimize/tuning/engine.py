"""What GEPA's engine asks for: an adapter that runs candidates and gets new texts, and the rules of the search."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from gepa.core.adapter import EvaluationBatch

from stagegraph.optimize.evaluation.budget import BudgetReached
from stagegraph.optimize.evaluation.report import blame_in
from stagegraph.optimize.evaluation.shown import records, tool_use
from stagegraph.optimize.evaluation.statistics import SAME
from stagegraph.optimize.lms.loop import submit
from stagegraph.schema.errors import TuningError

from .components import EngineName, Texts, text_digest
from .proposers import Proposal, schema_text
from .result import Candidate
from .trials import Purpose

if TYPE_CHECKING:
    from gepa.core.state import GEPAState
    from gepa.proposer.base import CandidateProposal, SubsampleEvaluation

    from stagegraph.data.call import Call
    from stagegraph.data.examples import Example
    from stagegraph.optimize.evaluation.budget import Spent
    from stagegraph.optimize.evaluation.report import Trial

    from .components import Component, Target
    from .options import Options
    from .trials import Trials

T = TypeVar("T")


_log = logging.getLogger("stagegraph.optimize")
Row = tuple[Purpose, "Example[Any]"]
"""One row of GEPA's data: an example, and what its runs are for."""


class Rules:
    """The state of a search, which GEPA's adapter writes, and the decisions that GEPA asks for.

    *step* is the most runs that the next step can make.
    """

    def __init__(self, target: Target, options: Options, spent: Spent, step: int) -> None:
        self._target, self._options, self._spent, self._step = target, options, spent, step
        self.candidates: list[Candidate] = []
        """Those that were run on the whole validation set; the first is the seed."""
        self.error: TuningError | None = None
        """What ends the search where GEPA's engine would go on."""
        self.stopped = ""
        """Which rule ended the search."""
        self._turns: Counter[tuple[int, str]] = Counter()
        self._changed: Counter[str] = Counter()
        self._best, self._since = float("-inf"), 0
        self._warned = False

    @property
    def best(self) -> int:
        """The candidate with the highest mean; among equals the one with the least blame, then the earliest."""
        means = [(round(one.mean, 9), -sum(one.blame.values())) for one in self.candidates]
        return max(range(len(means)), key=lambda index: (means[index], -index))

    def select(
        self, _state: object, trials: Sequence[Trial], _scores: object, parent: int, _candidate: Mapping[str, str]
    ) -> list[str]:
        """The one component to change; none when no stage is to blame or no score can be improved.

        The stage with the most blame comes first. Each unsuccessful attempt lowers its turn, so that others follow. Of
        the components of a stage, the one that was changed least often in the whole search is next.
        """
        if all(trial.score.value >= self._options.perfect for trial in trials):
            return []
        blamed = blame_in(trials, self._options.perfect)
        total = {path: blamed[path] for path in self._target.paths if blamed.get(path, 0.0) > 0}
        if not total:
            return []
        stage = min(total, key=lambda path: (-total[path] / (1 + self._turns[parent, path]), path))
        self._turns[parent, stage] += 1
        own = [name for name, component in self._target.components.items() if component.path == stage]
        chosen = min(own, key=lambda name: self._changed[name])
        self._changed[chosen] += 1
        return [EngineName(chosen)]

    def should_accept(self, proposal: CandidateProposal[Any], state: GEPAState[Any, Any]) -> bool:
        """Whether to run a child on the whole validation set.

        It is, when it scores better, or when it scores the same while the stage that it changed earns less blame: when
        two stages are at fault, repairing one of them often leaves the final score unchanged.
        """
        before, after = sum(proposal.subsample_scores_before or []), sum(proposal.subsample_scores_after or [])
        if after > before + SAME:
            return True
        if after < before - SAME or proposal.eval_before is None or proposal.eval_after is None:
            return False
        parent = state.program_candidates[proposal.parent_program_ids[0]]
        changed = {name for name, text in proposal.candidate.items() if parent[name] != text}
        paths = {self._target.components[str(name)].path for name in changed}
        return self._earned(proposal.eval_after, paths) < self._earned(proposal.eval_before, paths) - SAME

    def _earned(self, evaluation: SubsampleEvaluation, paths: set[str]) -> float:
        blamed = blame_in(evaluation.trajectories or [], self._options.perfect)
        return sum(blamed.get(path, 0.0) for path in paths)

    def stop(self, gepa_state: GEPAState[Any, Any]) -> bool:
        """Whether to stop before the next step; `stopped` has the reason."""
        self.stopped = self._reason(gepa_state.i) or ""
        return bool(self.stopped) or self.error is not None

    def _reason(self, iteration: int) -> str | None:
        reached = self._spent.reached(self._options.budget, next_runs=self._step)
        if reached is not None:
            return reached
        best = max((one.mean for one in self.candidates), default=float("-inf"))
        if best >= self._options.perfect - SAME:
            return "every validation example scored as well as can be"
        self._check_prices()
        if best > self._best + SAME:
            self._best, self._since = best, iteration
        elif self._options.stagnation is not None and iteration - self._since >= self._options.stagnation:
            return f"nothing got better in {self._options.stagnation} iterations"
        return None

    def _check_prices(self) -> None:
        """A limit in dollars does not hold where prices are unknown: as the only limit an error, else a warning."""
        budget = self._options.budget
        if budget.usd is None or not self._spent.unpriced:
            return
        unknown = f"the price of {self._spent.unpriced} runs, verdicts or proposals is not known"
        what = f"Budget(usd={budget.usd:g}) does not hold: {unknown}"
        if budget.only_money and not self._spent.usd:
            self.error = TuningError(f"{what}; set another limit, too, as in Budget(runs=300)")
        elif not self._warned:
            self._warned = True
            _log.warning("%s, and they are not counted", what)


class Adapter:
    """GEPA's adapter, callbacks and logger. It is called in the engine's thread and works on the background loop."""

    def __init__(self, trials: Trials, rules: Rules) -> None:
        self._trials, self._target, self._options = trials, trials.target, trials.options
        self._rules = rules
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
                text = self._wait_for(self._trials.proposed(proposal))
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
