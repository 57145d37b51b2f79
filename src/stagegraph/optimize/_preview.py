"""What a tuning may cost, measured before it begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stagegraph.nodes.stage import stages_of
from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import TuningError

from .evaluation import run_example

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.data.examples import Example
    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node

    from ._work import Work
    from .budget import Budget
    from .report import Report
    from .search import Found

__all__ = ["Preview", "confirmed", "preview", "preview_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a tuning may cost, from a few runs that were really made."""

    runs: int
    """At most; the budget's, or what the given number of steps takes."""
    requests_a_run: float
    dollars_a_run: float | None
    stage_calls: dict[str, float]
    """Stage path -> calls in one run: how wide the fan-outs are."""
    components: tuple[str, ...] = ()
    """The texts that are to be changed, when that is known."""

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
    """What a tuning may cost, measured on a few runs: the width of a fan-out is only known when it has happened.

    Raises:
        TuningError: there are no examples, or a provider failed.
    """
    if not examples:
        msg = "there are no examples to measure on"
        raise TuningError(msg)
    own = runner or Runner(tracing=None)
    runs = [await run_example(own, graph, example, model=model, prompts=prompts) for example in examples[:samples]]
    calls: dict[str, list[int]] = {}
    for run in runs:
        for path in stages_of(run.tree.root):
            calls.setdefault(path, []).append(sum(call.path == path for call in run.calls()))
    costs = [run.cost for run in runs]
    return Preview(
        runs=budget.runs or val + steps * (2 * min(minibatch, len(examples)) + val),
        requests_a_run=fmean(run.usage.requests for run in runs),
        dollars_a_run=None if None in costs else float(sum(cost or 0 for cost in costs)) / len(runs),
        stage_calls={path: fmean(counts) for path, counts in calls.items()},
    )


def preview_of(found: Found, budget: Budget, report: Report) -> Preview:
    """What it was expected to cost, by the runs of the seed."""
    spent = found.spent
    return Preview(
        runs=budget.runs or spent.runs,
        requests_a_run=fmean(row.requests for row in report.rows),
        dollars_a_run=None if report.cost is None else report.cost / len(report.rows),
        stage_calls=found.candidates[0].calls,
        components=tuple(found.candidates[0].texts),
    )


async def confirmed(confirm: Callable[[Preview], bool], work: Work) -> Preview:
    """Measure what it may cost and ask; what was measured when the answer was yes.

    Raises:
        TuningError: the answer was no, or a provider failed.
    """
    options = work.options
    measured = await preview(
        work.graph,
        work.train,
        work.budget,
        val=len(work.val),
        minibatch=options.minibatch,
        model=options.model,
        runner=options.runner,
        prompts=work.base,
        samples=2,
    )
    shown = replace(measured, components=tuple(work.components))
    if not confirm(shown):
        msg = "the tuning was not begun: `confirm` said no"
        raise TuningError(msg)
    return shown
