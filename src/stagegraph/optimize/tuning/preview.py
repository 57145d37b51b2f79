"""What a tuning may cost, measured before it begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stagegraph.nodes.stage import stages_of
from stagegraph.optimize.evaluation.evaluate import run_example
from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import TuningError

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.data.examples import Example
    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node
    from stagegraph.optimize.evaluation.budget import Budget
    from stagegraph.optimize.evaluation.report import Report

    from .result import SearchResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a tuning may cost, from a few real runs."""

    runs: int
    """The most runs: the budget's, or those of the given number of steps."""
    requests_a_run: float
    dollars_a_run: float | None
    """`None` when a price is unknown."""
    stage_calls: dict[str, float]
    """Stage path -> calls per run: the width of the fan-outs."""
    components: tuple[str, ...] = ()
    """The texts to change, where they are known."""

    def __str__(self) -> str:
        cost = "unknown" if self.dollars_a_run is None else f"${self.runs * self.dollars_a_run:.2f}"
        calls = ", ".join(f"{path} {count:.1f}" for path, count in self.stage_calls.items())
        requests = self.runs * self.requests_a_run
        texts = f"; {len(self.components)} texts to change: {', '.join(self.components)}" if self.components else ""
        return f"up to {self.runs} runs, about {requests:.0f} model requests, {cost}; calls a run: {calls}{texts}"


async def preview(
    graph: Node[Any, Any],
    examples: Sequence[Example[Any]],
    budget: Budget,
    *,
    steps: int = 30,
    val: int = 20,
    minibatch: int = 3,
    model: Model[Any] | str | None = None,
    runner: Runner | None = None,
    prompts: Prompts | None = None,
    samples: int = 3,
) -> Preview:
    """Measure on a few runs what a tuning may cost: the width of a fan-out is not known before it happens.

    Raises:
        TuningError: there are no examples, or a provider failed.
    """
    if not examples:
        msg = "there are no examples to measure on"
        raise TuningError(msg)
    own = runner or Runner(tracing=None)
    runs = [await run_example(own, graph, example, model=model, prompts=prompts) for example in examples[:samples]]
    costs = [run.cost for run in runs]
    calls = Counter(call.path for run in runs for call in run.calls())
    return Preview(
        runs=budget.runs or val + steps * (2 * min(minibatch, len(examples)) + val),
        requests_a_run=fmean(run.usage.requests for run in runs),
        dollars_a_run=None if None in costs else float(sum(cost or 0 for cost in costs)) / len(runs),
        stage_calls={path: calls[path] / len(runs) for path in stages_of(graph)},
    )


def preview_of(found: SearchResult, budget: Budget, report: Report) -> Preview:
    """The same from the runs that a search has already made with the seed."""
    return Preview(
        runs=budget.runs or found.spent.runs,
        requests_a_run=fmean(row.requests for row in report.rows),
        dollars_a_run=None if report.cost is None else report.cost / len(report.rows),
        stage_calls=found.candidates[0].calls,
        components=tuple(found.candidates[0].texts),
    )
