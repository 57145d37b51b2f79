"""How far a search has come, and its rules: which component to change, which candidate to keep, when to stop."""

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
    from gepa.proposer.base import CandidateProposal, SubsampleEvaluation

    from stagegraph.optimize.evaluation.budget import Spent
    from stagegraph.optimize.evaluation.report import Trial

    from .components import Target
    from .options import Options
    from .result import Candidate

_log = logging.getLogger("stagegraph.optimize")


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
