"""The front door to tuning: what it will cost, what it is doing, what it found, and whether that is really better."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import TuningError

from ._fingerprint import name_of
from ._missing import needing
from ._preview import Preview, confirmed, preview, preview_of
from ._saved import found_data
from ._start import check_overlap, starting
from .comparison import Comparison, compare
from .evaluation import SIDE_BY_SIDE, WAITS, checked_examples, report_of
from .grading import grader_of
from .search import Found, Options, Tell

if TYPE_CHECKING:
    import os

    from pydantic_ai.models import Model

    from stagegraph.data.examples import Example
    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node

    from ._adapter import Finding
    from ._components import Tuned
    from .budget import Budget, Spent
    from .grading import Grader, Metric
    from .proposers import Candidates, Proposer
    from .report import Report

__all__ = ["Preview", "Tuning", "preview", "tune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What came out of a tuning."""

    graph: str
    prompts: Prompts
    """The best candidate; the seed itself when nothing was better."""
    found: Found
    comparison: Comparison
    """The best candidate against the seed, on examples that decided nothing if there were any."""
    held_out: bool
    """Whether `comparison` is about held-out examples; otherwise it is about those that chose the candidate."""
    preview: Preview
    provenance: dict[str, Any]

    @property
    def report(self) -> Report:
        """The evaluation of the best candidate."""
        return self.comparison.after

    @property
    def spent(self) -> Spent:
        """What the search spent."""
        return self.found.spent

    @property
    def candidates(self) -> tuple[Finding, ...]:
        """Every candidate: parents, texts, scores by example and objective, runs; the first is the start.

        `found.changes(number)` says what one changed.
        """
        return self.found.candidates

    def __str__(self) -> str:
        return " ".join([self._summary, *(f"Beware: {one}" for one in self.found.warnings)])

    @property
    def _summary(self) -> str:
        if self.found.best == 0:
            return f"{self.graph}: nothing better than the start was found; stopped: {self.found.stopped}"
        kind = (
            "on held-out examples" if self.held_out else "on the validation examples, which also chose it (no `test=`)"
        )
        spent = self.spent
        return (
            f"{self.graph}: {self.comparison} {kind}; changed: {', '.join(self.found.changed)}; "
            f"{len(self.found.candidates)} candidates, {spent.runs} runs, {spent.proposals} proposals, "
            f"{spent.cost}; stopped: {self.found.stopped}"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the prompts file, and beside it (`.tuning.json`) where it comes from, and all that was tried.

        Of each candidate that is its parents, what changed, its texts, and by example its scores and objectives.
        """
        self.prompts.save(path)
        data = {"provenance": self.provenance, "summary": str(self), **found_data(self.found)}
        beside = Path(path).with_suffix(".tuning.json")
        beside.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8", errors="replace")


async def tune(
    graph: Node[Any, Any],
    metric: Metric | Grader,
    *,
    train: Sequence[Example[Any]],
    val: Sequence[Example[Any]],
    budget: Budget,
    model: Model[Any] | str | None = None,
    reflection_model: Model[Any] | str | None = None,
    proposer_model: Model[Any] | str | None = None,
    proposer: Proposer | Candidates | str | None = None,
    test: Sequence[Example[Any]] | None = None,
    optimizer: str = "gepa",
    runner: Runner | None = None,
    prompts: Prompts | None = None,
    components: Sequence[Tuned] = ("instructions",),
    run_dir: str | os.PathLike[str] | None = None,
    minibatch: int = 3,
    merge: bool = True,
    stagnation: int | None = 12,
    side_by_side: int = SIDE_BY_SIDE,
    seed: int = 0,
    waits: Sequence[float] = WAITS,
    tell: Tell = lambda _name, _data: None,
    confirm: Callable[[Preview], bool] | None = None,
) -> Tuning:
    """Find better texts for a graph's stages, and find out whether they are better.

    Args:
        graph: What to tune; what runs is the graph itself, with its agents, tools and validators.
        metric: `(example, run) -> Score | float | bool`; notes in the score say whose fault it was.
        train: Examples to learn from.
        val: Examples that choose the best candidate.
        budget: When to stop; the verdict at the end (two evaluations) comes on top.
        model: The model of stages that have none of their own.
        reflection_model: Reads what went wrong and writes new texts.
        proposer_model: Writes them instead; the reflection model without it.
        proposer: A function `Proposal -> text`, `"notes"` (no model: the notes go into the text) or
            `Candidates({component: [texts]})` (no model: a pool to choose from).
        test: Examples that nothing was chosen by, for the verdict; without them it is about *val*, and says so.
        optimizer: `"gepa"`; other optimizers of DSPy take a `GraphModule`.
        runner: Runs the graph; with a journal, a child does not repeat what its change does not touch.
        prompts: Where to start; without it the runner's, and for stages they do not name the texts of the code.
        components: Which texts to change: `"instructions"`, `"tools"` (the descriptions of the agents' tools, as far as
            they are known before a run), `"fields"` (of the fields of their answers). Each text is a component:
            `plan`, `plan:tool:search`, `plan:field:items.name`. Blame decides on the stage; its texts take turns.
        run_dir: Where every paid run and proposal is kept: a tuning that was killed goes on from there for free.
        minibatch: Training examples of one step.
        merge: Whether two candidates that are good at different texts may be put together; from 5 validation
            examples on.
        stagnation: Steps without a better candidate after which it stops.
        side_by_side: Runs that go on at once.
        seed: Another number searches otherwise.
        waits: Seconds between the attempts at what a provider did not do (429, 5xx, no connection).
        tell: Told what happens, for a progress bar; when it raises, that is logged, and the tuning goes on.
        confirm: Shown what the tuning may cost, measured on two runs that are made for it, before it begins; when it
            gives `False`, nothing more is run. A tuning that goes on from its `run_dir` is not asked about again.

    Raises:
        TuningError: the data, the metric or the budget cannot work, or *confirm* said no. When a provider or the metric
            fails later, the best candidate until then is given, and `Tuning.found.error` says what happened.
    """
    if optimizer != "gepa":
        msg = f"optimizer={optimizer!r}: only 'gepa' is built in; every optimizer of DSPy takes a GraphModule"
        raise TuningError(msg)
    grader = grader_of(metric)
    with needing("tune"):
        from ._work import Work  # noqa: PLC0415 - GEPA is loaded when it is used

    held_out = None if test is None else checked_examples(graph, test, "test examples")
    options = Options(
        model=model,
        reflection_model=proposer_model or reflection_model,
        proposer=proposer,
        runner=runner,
        prompts=await starting(prompts, runner),
        components=components,
        minibatch=minibatch,
        merge=merge,
        stagnation=stagnation,
        side_by_side=side_by_side,
        run_dir=None if run_dir is None else Path(run_dir),
        seed=seed,
        waits=waits,
    )
    work = Work(graph, grader, train, val, budget, options, tell)
    try:
        if held_out is not None:
            check_overlap(train=work.train, val=work.val, test=held_out)
        measured = None if confirm is None or work.resumes else await confirmed(confirm, work)
        found = await work.search()
        reports: list[Report] = []
        if found.error is None:
            try:
                reports = [
                    await work.verdict(found.candidates[one].texts, held_out or val) for one in sorted({0, found.best})
                ]
            except TuningError as error:
                found = replace(found, error=error, stopped=f"{found.stopped}; the verdict failed: {error}")
        if found.error is not None:  # what chose the candidate is all there is
            held_out = None
            reports = [
                report_of(graph, grader.name, prompts, found.candidates[one].rows)
                for one, prompts in ((0, found.seed), (found.best, found.prompts))
            ]
    finally:
        await work.close()
    return Tuning(
        graph=graph.__node__.name,
        prompts=found.prompts,
        found=found,
        comparison=compare(reports[0], reports[-1]),
        held_out=held_out is not None,
        preview=measured or preview_of(found, budget, reports[0]),
        provenance={
            "graph": graph.__node__.name,
            "optimizer": "gepa",
            "metric": grader.name,
            "model": name_of(model),
            "reflection_model": name_of(work.options.reflection_model),
            "components": list(work.components),
            "train": len(train),
            "val": len(val),
            "test": len(test or ()),
            "seed": seed,
            "seed_prompts": found.seed.digest,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
