"""The front door to tuning: what it may cost, what it found, and whether that is really better."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Unpack

from stagegraph.agent.models import name_of
from stagegraph.nodes.stage import stages_of
from stagegraph.optimize.evaluation.compare import Comparison, compare
from stagegraph.optimize.evaluation.evaluate import run_example
from stagegraph.optimize.evaluation.metric import grader_of
from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import TuningError

from .options import Options, TuningOptions
from .search import Search

if TYPE_CHECKING:
    import os

    from pydantic_ai.models import Model

    from stagegraph.data.examples import Example
    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node
    from stagegraph.optimize.evaluation.budget import Budget, Spent
    from stagegraph.optimize.evaluation.metric import Grader, Metric
    from stagegraph.optimize.evaluation.report import Report

    from .result import Candidate, SearchResult


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The result of a tuning."""

    graph: str
    prompts: Prompts
    """The best candidate; the seed itself when nothing was better."""
    found: SearchResult
    comparison: Comparison
    """The best candidate against the seed, on held-out examples if there are any."""
    held_out: bool
    """Whether `comparison` is about held-out examples; otherwise it is about those that selected the candidate."""
    preview: Preview
    provenance: dict[str, Any]

    @property
    def report(self) -> Report:
        """The evaluation of the best candidate."""
        return self.comparison.after

    @property
    def spent(self) -> Spent:
        """What the search cost."""
        return self.found.spent

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every candidate; the first is the seed. `found.changes(number)` has what one of them changed."""
        return self.found.candidates

    def __str__(self) -> str:
        found, spent = self.found, self.spent
        what = "nothing better than the start was found"
        if found.best:
            where = (
                "held-out examples" if self.held_out else "the validation examples, which also chose it (no `test=`)"
            )
            what = (
                f"{self.comparison} on {where}; changed: {', '.join(found.changed)}; {len(found.candidates)} "
                f"candidates, {spent.runs} runs, {spent.proposals} proposals, {spent.cost}"
            )
        warnings = "".join(f" Beware: {one}" for one in found.warnings)
        return f"{self.graph}: {what}; stopped: {found.stopped}{warnings}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the prompts file, and beside it (`.tuning.json`) the provenance and every candidate.

        A candidate has its parents, what it changed, its texts, and its scores and objectives per example.
        """
        self.prompts.save(path)
        data = {"provenance": self.provenance, "summary": str(self), **self.found.data()}
        beside = Path(path).with_suffix(".tuning.json")
        beside.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8", errors="replace")


async def tune(
    graph: Node[Any, Any],
    metric: Metric | Grader,
    *,
    train: Sequence[Example[Any]],
    val: Sequence[Example[Any]],
    budget: Budget,
    test: Sequence[Example[Any]] | None = None,
    model: Model[Any] | str | None = None,
    proposer_model: Model[Any] | str | None = None,
    runner: Runner | None = None,
    prompts: Prompts | None = None,
    optimizer: str = "gepa",
    confirm: Callable[[Preview], bool] | None = None,
    **options: Unpack[TuningOptions],
) -> Tuning:
    """Find better texts for a graph's stages, and find out whether they are better.

    Args:
        graph: What to tune. The graph itself runs, with its agents, tools and validators.
        metric: `(example, run) -> Score | float | bool`; notes in the score say which call went wrong.
        train: Examples to learn from.
        val: Examples that select the best candidate.
        budget: When to stop. The verdict at the end (two evaluations) is not part of it.
        test: Examples for the verdict, which selected nothing. Without them the verdict is about *val*.
        model: The model of stages that have none of their own.
        proposer_model: Writes the new texts instead of `reflection_model`.
        runner: Runs the graph. With a journal, a child does not repeat the calls that its change does not touch.
        prompts: Where to start; the runner's prompts by default. A stage that they do not name starts from its code.
        optimizer: `"gepa"`; DSPy's other optimizers take a `GraphModule`.
        confirm: Called with a preview, measured on two runs, before the search begins; `False` ends the tuning. A
            tuning that resumes from its `run_dir` does not ask again.
        options: See `TuningOptions`: `reflection_model`, `proposer`, `components`, `minibatch`, `merge`, `stagnation`,
            `concurrency`, `run_dir`, `seed`, `retry_delays`, `callback`.

    Raises:
        TuningError: the data, the metric or an option cannot work, or *confirm* returned `False`. When a provider or
            the metric fails later, the result has the best candidate until then, and `found.error` says what happened.
    """
    if optimizer != "gepa":
        msg = f"optimizer={optimizer!r}: only 'gepa' is built in; every optimizer of DSPy takes a GraphModule"
        raise TuningError(msg)
    grader = grader_of(metric)
    known = Options(budget=budget, model=model, runner=runner, prompts=prompts, **options)
    if proposer_model is not None:
        known = replace(known, reflection_model=proposer_model)
    async with aclosing(Search(graph, grader, train, val, await known.checked(), test=test)) as search:
        measured = None if confirm is None or search.resumes else await _confirmed(confirm, search)
        found, before, after = await search.judged()
    return Tuning(
        graph=graph.__node__.name,
        prompts=found.prompts,
        found=found,
        comparison=compare(before, after),
        held_out=test is not None and found.error is None,
        preview=measured or _preview_of(found, budget, before),
        provenance={
            "graph": graph.__node__.name,
            "optimizer": optimizer,
            "metric": grader.name,
            "model": name_of(model),
            "reflection_model": name_of(search.options.reflection_model),
            "components": list(search.target.components),
            "train": len(train),
            "val": len(val),
            "test": len(test or ()),
            "seed": search.options.seed,
            "seed_prompts": found.seed.digest,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


async def _confirmed(confirm: Callable[[Preview], bool], search: Search) -> Preview:
    """The preview to which *confirm* agreed."""
    options, target = search.options, search.target
    measured = await preview(
        target.graph,
        search.train,
        options.budget,
        val=len(search.val),
        minibatch=options.minibatch,
        model=options.model,
        runner=options.runner,
        prompts=target.base,
        samples=2,
    )
    shown = replace(measured, components=tuple(target.components))
    if not confirm(shown):
        msg = "the tuning was not begun: `confirm` said no"
        raise TuningError(msg)
    return shown


def _preview_of(found: SearchResult, budget: Budget, report: Report) -> Preview:
    """The same from the runs that a search has already made with the seed."""
    return Preview(
        runs=budget.runs or found.spent.runs,
        requests_a_run=fmean(row.requests for row in report.rows),
        dollars_a_run=None if report.cost is None else report.cost / len(report.rows),
        stage_calls=found.candidates[0].calls,
        components=tuple(found.candidates[0].texts),
    )
