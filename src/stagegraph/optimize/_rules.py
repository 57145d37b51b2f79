"""How the search decides: which stage to change, what to keep, when to stop."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stagegraph.schema.errors import TuningError

from ._components import EngineName
from .blame import Judged, blame

if TYPE_CHECKING:
    from gepa.core.state import GEPAState
    from gepa.proposer.base import CandidateProposal

    from ._adapter import Adapter
    from ._components import Component
    from .budget import Budget, Spent

__all__ = ["Acceptance", "Selector", "Stopper"]

_log = logging.getLogger("stagegraph.optimize")
_SAME = 1e-9


class Selector:
    """Change the stage that earned the most blame; one that was tried without success lets the next one have a turn.

    The texts of a stage take turns, too: the one that was changed least often in the whole search is next.
    """

    def __init__(self, perfect: float, components: Mapping[str, Component]) -> None:
        self._perfect = perfect
        self._components = components
        self._turns: Counter[tuple[int, str]] = Counter()
        self._changed: Counter[str] = Counter()

    def __call__(
        self,
        state: GEPAState[Any, Any],
        trajectories: Sequence[Judged],
        subsample_scores: Sequence[float],
        candidate_idx: int,
        candidate: Mapping[str, str],
    ) -> list[str]:
        """The one component to change, or none when nobody is to blame or nothing could be better."""
        if all(judged.score.value >= self._perfect for judged in trajectories):
            return []
        total: Counter[str] = Counter()
        paths = {component.path for component in self._components.values()}
        for judged in trajectories:
            for path, weight in blame(judged, perfect=self._perfect).items():
                if path in paths and weight > 0:
                    total[path] += weight  # pyright: ignore[reportArgumentType]
        if not total:
            return []
        stage = min(total, key=lambda path: (-total[path] / (1 + self._turns[candidate_idx, path]), path))
        self._turns[candidate_idx, stage] += 1
        own = [name for name, component in self._components.items() if component.path == stage]
        chosen = min(own, key=lambda name: self._changed[name])
        self._changed[chosen] += 1
        return [EngineName(chosen)]


class Acceptance:
    """Keep a child that scores better, and also one that scores no worse while the stage it changed earns less blame.

    When two stages are at fault, repairing one alone often leaves the final score where it was: a strict improvement
    would then reject every right step.
    """

    def __init__(self, perfect: float, components: Mapping[str, Component]) -> None:
        self._perfect = perfect
        self._components = components

    def should_accept(self, proposal: CandidateProposal[Any], state: GEPAState[Any, Any]) -> bool:
        """Whether a child is worth a run on the whole validation set."""
        before, after = sum(proposal.subsample_scores_before or []), sum(proposal.subsample_scores_after or [])
        if after > before + _SAME:
            return True
        if after < before - _SAME or proposal.eval_before is None or proposal.eval_after is None:
            return False
        parent = state.program_candidates[proposal.parent_program_ids[0]]
        changed = {
            self._components[str(name)].path for name, text in proposal.candidate.items() if parent[name] != text
        }
        earned: list[float] = []
        for found in (proposal.eval_before, proposal.eval_after):
            blames = [blame(judged, perfect=self._perfect) for judged in found.trajectories or []]
            earned.append(sum(one.get(path, 0.0) for one in blames for path in changed))
        return earned[1] < earned[0] - _SAME


class Stopper:
    """Stops before a step that the budget does not hold, and when nothing has got better for long."""

    def __init__(  # noqa: PLR0917 - made in one place
        self, budget: Budget, spent: Spent, step: int, stagnation: int | None, adapter: Adapter, perfect: float
    ) -> None:
        self._perfect = perfect
        self._budget, self._spent, self._step = budget, spent, step
        self._stagnation, self._adapter = stagnation, adapter
        self._seen = float("-inf")
        self._since = 0
        self._told = False
        self.reason = ""

    def __call__(self, gepa_state: GEPAState[Any, Any]) -> bool:
        """Whether to stop before the next iteration; `reason` says why."""
        if self._adapter.problem is not None:
            return True
        reached = self._spent.reached(self._budget, next_runs=self._step)
        if reached is not None:
            self.reason = reached
            return True
        best = max((finding.mean for finding in self._adapter.findings), default=float("-inf"))
        if best >= self._perfect - _SAME:
            self.reason = "every validation example scored as well as can be"
            return True
        if self._is_endless():
            return True
        if best > self._seen + _SAME:
            self._seen, self._since = best, gepa_state.i
        elif self._stagnation is not None and gepa_state.i - self._since >= self._stagnation:
            self.reason = f"nothing got better in {self._stagnation} iterations"
            return True
        return False

    def _is_endless(self) -> bool:
        """Whether money is the only limit, and nothing has a price; where it does limit something, a word is enough."""
        if self._budget.usd is None or not self._spent.unpriced:
            return False
        unknown = f"the price of {self._spent.unpriced} runs, verdicts or proposals is not known"
        what = f"Budget(usd={self._budget.usd:g}) does not hold: {unknown}"
        if self._budget.only_money and not self._spent.usd:
            self._adapter.problem = TuningError(f"{what}; set another limit, too, as in Budget(runs=300)")
            return True
        if not self._told:
            self._told = True
            _log.warning("%s, and they are not counted", what)
        return False
