"""What a tuning may spend, and what it has spent."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from stagegraph.schema.errors import TuningError

if TYPE_CHECKING:
    from stagegraph.data.score import Score
    from stagegraph.record.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of one tuning; at least one is set, and the first that is reached ends it.

    They are checked before each run and each proposal. Runs that are running then finish and are kept, so money and
    tokens can exceed the limit by the cost of as many runs as there are at a time.
    """

    runs: int | None = None
    """Runs of the graph, on train and validation examples together."""
    usd: float | None = None
    """US dollars, of the graph's models, of the reflection model and of a judge.

    A cost that is not known counts as nothing. If no cost is known and there is no other limit, the search ends with an
    error once the texts to start from have been evaluated.
    """
    tokens: int | None = None
    seconds: float | None = None
    """Of this process. Runs that are running at the end are cancelled; a `run_dir` continues them."""

    def __post_init__(self) -> None:
        limits = {name: limit for name, limit in asdict(self).items() if limit is not None}
        if not limits:
            msg = "a budget needs a limit, as in Budget(runs=300) or Budget(usd=5)"
            raise TuningError(msg)
        check_numbers(limits, shown="Budget({})", fractions=("usd", "seconds"))

    @property
    def only_money(self) -> bool:
        """Whether `usd` is the only limit."""
        return self.usd is not None and self.runs is self.tokens is self.seconds is None


def check_numbers(numbers: Mapping[str, object], *, shown: str = "{}", fractions: Collection[str] = ()) -> None:
    """Check that each number is above 0, and that it is whole unless its name is in *fractions*.

    Raises:
        TuningError: one is not; the message has `name=value` in the place of the braces of *shown*.
    """
    for name, number in numbers.items():
        setting = shown.format(f"{name}={number!r}")
        whole = name not in fractions
        if isinstance(number, bool) or not isinstance(number, int if whole else (int, float)):
            msg = f"{setting}: it is {'a whole number' if whole else 'a number'}"
            raise TuningError(msg)
        if not number > 0:
            msg = f"{setting}: {'at least 1 is needed' if whole else 'it has to be above 0'}"
            raise TuningError(msg)


def cost_text(usd: float, unpriced: int) -> str:
    """Money as far as it is known."""
    if not unpriced:
        return f"${usd:.4f}"
    return f"at least ${usd:.4f}" if usd else "cost unknown"


class BudgetReached(Exception):  # noqa: N818 - how a search ends, no error
    """A limit of the budget was reached; the message says which."""


@dataclass(slots=True)
class Spent:
    """What a tuning has spent so far, also before it was interrupted."""

    runs: int = 0
    usd: float = 0.0
    unpriced: int = 0
    """Runs, proposals and scores whose cost is not known; they are not in `usd`."""
    tokens: int = 0
    proposals: int = 0
    requests: int = 0
    """Model requests of the graph's stages; calls that were replayed from the journal made none."""
    began: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def _add(self, tokens: int, usd: float | None, *, runs: int = 0, requests: int = 0, proposals: int = 0) -> None:
        with self.lock:
            self.tokens += tokens
            self.usd += usd or 0.0
            self.unpriced += usd is None
            self.runs += runs
            self.requests += requests
            self.proposals += proposals

    def add_run(self, run: Run[Any, Any], score: Score) -> None:
        """Count a run of the graph, and what a metric that asks a model spent on its score."""
        cost = None if run.cost is None else float(run.cost)
        self._add(run.usage.total_tokens, cost, runs=1, requests=run.usage.requests)
        self._add(score.tokens, score.cost)

    def add_proposal(self, tokens: int, usd: float | None) -> None:
        """Count one request to a reflection model."""
        self._add(tokens, usd, proposals=1)

    @property
    def cost(self) -> str:
        """The cost for people to read; it says when a price is not known."""
        return cost_text(self.usd, self.unpriced)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def reached(self, budget: Budget, *, next_runs: int = 0) -> str | None:
        """The limit that forbids *next_runs* more runs, if there is one."""
        if budget.runs is not None and self.runs + next_runs > budget.runs:
            return f"the budget of {budget.runs} runs ({self.runs} made, the next step needs up to {next_runs})"
        if budget.usd is not None and self.usd >= budget.usd:
            return f"the budget of ${budget.usd:g}"
        if budget.tokens is not None and self.tokens >= budget.tokens:
            return f"the budget of {budget.tokens} tokens"
        if budget.seconds is not None and self.seconds >= budget.seconds:
            return f"the budget of {budget.seconds:g} seconds"
        return None
