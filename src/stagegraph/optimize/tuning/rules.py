"""How the search decides: which component to change, which candidate to keep, when to stop."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stagegraph.optimize.evaluation.report import blame_in
from stagegraph.optimize.evaluation.statistics import SAME
from stagegraph.schema.errors import TuningError

from .components import EngineName

if TYPE_CHECKING:
    from gepa.core.state import GEPAState
    from gepa.proposer.base import CandidateProposal

    from stagegraph.optimize.evaluation.budget import Spent
    from stagegraph.optimize.evaluation.report import Trial

    from .components import Target
    from .options import Options
    from .result import Progress

_log = logging.getLogger("stagegraph.optimize")


class Selector:
    """Selects the stage with the most blame. Each unsuccessful attempt lowers its turn, so that others follow.

    Of the components of a stage, the one that was changed least often in the whole search is next.
    """

    def __init__(self, perfect: float, target: Target) -> None:
        self._perfect, self._target = perfect, target
        self._turns: Counter[tuple[int, str]] = Counter()
        self._changed: Counter[str] = Counter()

    def __call__(
        self,
        state: GEPAState[Any, Any],
        trajectories: Sequence[Trial],
        subsample_scores: Sequence[float],
        candidate_idx: int,
        candidate: Mapping[str, str],
    ) -> list[str]:
        """The one component to change; none when no stage is to blame or no score can be improved."""
        if all(trial.score.value >= self._perfect for trial in trajectories):
            return []
        blamed = blame_in(trajectories, self._perfect)
        total = {path: blamed[path] for path in self._target.paths if blamed.get(path, 0.0) > 0}
        if not total:
            return []
        stage = min(total, key=lambda path: (-total[path] / (1 + self._turns[candidate_idx, path]), path))
        self._turns[candidate_idx, stage] += 1
        own = [name for name, component in self._target.components.items() if component.path == stage]
        chosen = min(own, key=lambda name: self._changed[name])
        self._changed[chosen] += 1
        return [EngineName(chosen)]


class Acceptance:
    """Keeps a child that scores better, or that scores the same while the stage it changed earns less blame.

    When two stages are at fault, repairing one of them often leaves the final score unchanged. A strict improvement
    would then reject every right step.
    """

    def __init__(self, perfect: float, target: Target) -> None:
        self._perfect, self._target = perfect, target

    def should_accept(self, proposal: CandidateProposal[Any], state: GEPAState[Any, Any]) -> bool:
        """Whether to run a child on the whole validation set."""
        before, after = sum(proposal.subsample_scores_before or []), sum(proposal.subsample_scores_after or [])
        if after > before + SAME:
            return True
        if after < before - SAME or proposal.eval_before is None or proposal.eval_after is None:
            return False
        parent = state.program_candidates[proposal.parent_program_ids[0]]
        changed = {
            self._target.components[str(name)].path for name, text in proposal.candidate.items() if parent[name] != text
        }
        blames = [
            blame_in(batch.trajectories or [], self._perfect) for batch in (proposal.eval_before, proposal.eval_after)
        ]
        earned_before, earned_after = (sum(one.get(path, 0.0) for path in changed) for one in blames)
        return earned_after < earned_before - SAME


class Stopper:
    """Stops before a step that the budget does not cover, and after many steps without a better candidate."""

    def __init__(self, options: Options, spent: Spent, progress: Progress, step: int) -> None:
        self._options, self._spent, self._progress = options, spent, progress
        self._step = step
        """The most runs that the next step can make."""
        self._best = float("-inf")
        self._since = 0
        self._warned = False

    def __call__(self, gepa_state: GEPAState[Any, Any]) -> bool:
        """Whether to stop before the next iteration; `progress` has the reason."""
        progress = self._progress
        progress.stopped = self._reason(gepa_state.i) or ""
        return bool(progress.stopped) or progress.error is not None

    def _reason(self, iteration: int) -> str | None:
        reached = self._spent.reached(self._options.budget, next_runs=self._step)
        if reached is not None:
            return reached
        best = max((one.mean for one in self._progress.candidates), default=float("-inf"))
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
            self._progress.error = TuningError(f"{what}; set another limit, too, as in Budget(runs=300)")
        elif not self._warned:
            self._warned = True
            _log.warning("%s, and they are not counted", what)
