"""What a tuning may spend, and what it has spent."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stagegraph.schema.errors import TuningError

if TYPE_CHECKING:
    from stagegraph.data.score import Score
    from stagegraph.record.run import Run

__all__ = ["Budget", "BudgetReached", "Spent", "cost_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of one tuning; at least one is set, and the first that is reached ends it.

    They are looked at before each run and each proposal, so money and tokens overshoot by what was going on then at
    most: as many runs as go on side by side. What those find is kept.
    """

    runs: int | None = None
    """Runs of the graph, of train and validation examples together."""
    usd: float | None = None
    """US dollars, of the graph's models, of the reflection model and of a judge.

    What has no known price counts as nothing: where that is all and there is no other limit, the search ends after the
    texts to start from with an error.
    """
    tokens: int | None = None
    seconds: float | None = None
    """Of this process; what goes on when they are over is ended, and taken up again from a `run_dir`."""

    def __post_init__(self) -> None:
        limits = {name: getattr(self, name) for name in ("runs", "usd", "tokens", "seconds")}
        if all(limit is None for limit in limits.values()):
            msg = "a budget needs a limit, as in Budget(runs=300) or Budget(usd=5)"
            raise TuningError(msg)
        for name, limit in limits.items():
            if limit is None:
                continue
            kind = (int, "a whole number") if name in {"runs", "tokens"} else ((int, float), "a number")
            if isinstance(limit, bool) or not isinstance(limit, kind[0]):
                msg = f"Budget({name}={limit!r}): it is {kind[1]}"
                raise TuningError(msg)
            if not limit > 0:
                msg = f"Budget({name}={limit}): it has to be above 0"
                raise TuningError(msg)

    @property
    def only_money(self) -> bool:
        """Whether nothing but `usd` ends it."""
        return self.usd is not None and self.runs is self.tokens is self.seconds is None


def cost_text(usd: float, unpriced: int) -> str:
    """Money as far as it is known: nothing is no price."""
    if not unpriced:
        return f"${usd:.4f}"
    return f"at least ${usd:.4f}" if usd else "cost unknown"


class BudgetReached(Exception):  # noqa: N818 - how a search ends, no error
    """A limit of the budget was reached; the text says which."""


@dataclass(slots=True)
class Spent:
    """What a tuning has spent so far, also before it was interrupted."""

    runs: int = 0
    usd: float = 0.0
    unpriced: int = 0
    """Runs, proposals and verdicts whose price is not known; they are not in `usd`."""
    tokens: int = 0
    proposals: int = 0
    requests: int = 0
    """Model requests of the graph's stages; what came from the journal made none."""
    began: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add_run(self, run: Run[Any, Any]) -> None:
        with self.lock:
            self.runs += 1
            self.tokens += run.usage.total_tokens
            self.requests += run.usage.requests
            if run.cost is None:
                self.unpriced += 1
            else:
                self.usd += float(run.cost)

    def add_verdict(self, score: Score) -> None:
        """What a metric that asks a model says it spent."""
        with self.lock:
            self.tokens += score.tokens
            if score.cost is None:
                self.unpriced += 1
            else:
                self.usd += score.cost

    def add_proposal(self, tokens: int, usd: float | None) -> None:
        with self.lock:
            self.proposals += 1
            self.tokens += tokens
            if usd is None:
                self.unpriced += 1
            else:
                self.usd += usd

    @property
    def cost(self) -> str:
        """What it cost, for people; it says so where prices are not known."""
        return cost_text(self.usd, self.unpriced)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def reached(self, budget: Budget, *, next_runs: int = 0) -> str | None:
        """Which limit does not allow *next_runs* runs more, if one does not."""
        if budget.runs is not None and self.runs + next_runs > budget.runs:
            return f"the budget of {budget.runs} runs ({self.runs} made, the next step needs up to {next_runs})"
        if budget.usd is not None and self.usd >= budget.usd:
            return f"the budget of ${budget.usd:g}"
        if budget.tokens is not None and self.tokens >= budget.tokens:
            return f"the budget of {budget.tokens} tokens"
        if budget.seconds is not None and self.seconds >= budget.seconds:
            return f"the budget of {budget.seconds:g} seconds"
        return None
