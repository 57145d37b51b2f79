"""`stagegraph eval`, `compare` and `tune`: how good a graph is, whether that changed, and better texts for it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from stagegraph.schema.errors import TuningError

from . import options as opt
from .load import load_function, load_graph
from .run import make_runner
from .text import console, say

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from stagegraph import Example, Node
    from stagegraph.optimize import Preview, Report, ReportRow

_TOO_LOW = 3
"""The exit code for a score that is not good enough; a mistake gives 1."""
_WIDE = 80
"""Columns of a terminal that has room for a bar and a clock beside the numbers."""

ReportArgument = Annotated[str, typer.Argument(metavar="REPORT", help="What `stagegraph eval --out` wrote.")]


def _finite(value: float | None) -> float | None:
    if value is not None and not isfinite(value):
        msg = f"{value} is no score: it is a finite number"
        raise typer.BadParameter(msg)
    return value


def evaluate(
    graph: opt.GraphArgument,
    metric: opt.MetricArgument,
    examples: Annotated[str, typer.Argument(help="JSON lines, JSON, YAML or CSV, with `input` and `expected`.")],
    model: opt.ModelOption = None,
    prompts: opt.PromptsOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each example.")] = 1,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the report here, as JSON.", callback=opt.writable)
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(callback=_finite, help="Exit with 3 when the mean is below.")
    ] = None,
    no_worse_than: Annotated[
        str | None,
        typer.Option(
            metavar="REPORT",
            help="Exit with 3 when it is shown to be worse, which takes at least 6 examples that are in both.",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Only rows with this `split`.")] = None,
    accept_own_answers: Annotated[
        bool, typer.Option("--accept-own-answers", help="Also examples whose expected output nobody corrected.")
    ] = False,
) -> None:
    """Run a graph on examples, and say how good it is."""
    from stagegraph import Prompts, optimize

    node, judge = load_graph(graph), load_function(metric)
    before = None if no_worse_than is None else optimize.Report.load(no_worse_than)
    rows = _read_examples(examples, node, split)
    if before is not None:
        _check_common(before, str(no_worse_than), {row.id for row in rows})
    runner = make_runner(node, model, prompts)
    deployed = Prompts() if prompts is None else Prompts.load(prompts)
    with _progress("evaluating", len(rows) * repeats) as bar:
        bar.start()
        done: list[float] = []

        def count(row: ReportRow) -> None:
            done.append(row.score)
            bar.update(bar.task_ids[0], completed=len(done), description=f"mean {sum(done) / len(done):.3f}")

        evaluating = optimize.evaluate(
            node,
            judge,
            rows,
            runner=runner,
            prompts=deployed,
            repeats=repeats,
            on_row=count,
            accept_own_answers=accept_own_answers,
        )
        try:
            report = asyncio.run(evaluating)
        except TuningError as error:
            partial: Report | None = getattr(error, "report", None)
            if partial is not None and out is not None:
                partial.save(f"{out}.partial")
            raise
    if out is not None:
        report.save(out)
    say(report.table())
    verdict = None if before is None else optimize.compare(before, report)
    if verdict is not None:
        say(f"\nagainst {no_worse_than}: {verdict}")
    too_low = min_score is not None and report.mean < min_score
    if too_low:
        say(f"the mean score {report.mean:.3f} is below {min_score:g}", "red", stderr=True)
    if too_low or (verdict is not None and verdict.worse):
        raise typer.Exit(_TOO_LOW)


def compare(
    before: ReportArgument,
    after: ReportArgument,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a page with the changed examples.", callback=opt.writable)
    ] = None,
) -> None:
    """Compare two evaluations of the same examples; exits with 3 when the second is shown to be worse."""
    from stagegraph import optimize

    found = optimize.compare(optimize.Report.load(before), optimize.Report.load(after))
    say(found.table())
    if html is not None:
        found.html(html)
    if found.worse:
        raise typer.Exit(_TOO_LOW)


def tune(
    graph: opt.GraphArgument,
    metric: opt.MetricArgument,
    train: Annotated[str, typer.Option(metavar="FILE", help="Examples to learn from.")],
    val: Annotated[str, typer.Option(metavar="FILE", help="Examples that choose the best candidate.")],
    runs: Annotated[int, typer.Option(min=1, help="Runs of the graph, at most.")],
    test: Annotated[str | None, typer.Option(metavar="FILE", help="Examples for the verdict at the end.")] = None,
    usd: Annotated[float | None, typer.Option(help="US dollars, at most.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds, at most.")] = None,
    model: opt.ModelOption = None,
    reflection_model: Annotated[str | None, typer.Option(metavar="NAME", help="Writes the new texts.")] = None,
    proposer: Annotated[str | None, typer.Option(help="`notes`: the notes are written in, without a model.")] = None,
    component: Annotated[
        list[str] | None, typer.Option(help="What to change: instructions (without it), tools, fields; repeatable.")
    ] = None,
    prompts: opt.PromptsOption = None,
    out: Annotated[
        str, typer.Option(metavar="FILE", help="The best prompts.", callback=opt.writable)
    ] = "prompts.tuned.yaml",
    run_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Keep what is paid for; go on from there.")] = None,
    seed: Annotated[int, typer.Option(help="Another number searches otherwise.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Begin without asking.")] = False,
) -> None:
    """Search for better texts for a graph's stages, and say whether they are better."""
    from stagegraph import Prompts, optimize

    node, judge = load_graph(graph), load_function(metric)
    trains, vals = _read_examples(train, node), _read_examples(val, node)
    held_out = None if test is None else _read_examples(test, node)
    make_runner(node, model, prompts)  # a mistake in the names is an error now

    def confirm(preview: Preview) -> bool:
        say(str(preview))
        return yes or typer.confirm("Begin?", abort=True, err=True)

    with _progress("the texts to start from", runs) as bar:
        result = asyncio.run(
            optimize.tune(
                node,
                judge,
                train=trains,
                val=vals,
                test=held_out,
                budget=optimize.Budget(runs=runs, usd=usd, seconds=seconds),
                model=model,
                reflection_model=reflection_model,
                proposer=proposer,
                prompts=None if prompts is None else Prompts.load(prompts),
                components=cast("Any", component or ["instructions"]),  # checked there
                run_dir=run_dir,
                seed=seed,
                callback=_TuningProgress(bar),
                confirm=confirm,
            )
        )
    result.save(out)
    say(f"{result.comparison.table()}\n\n{result}\n\n{out}: the best prompts")
    if result.found.error is not None:
        raise result.found.error


class _TuningProgress:
    """The progress callback of a tuning: shows its events in a bar."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._best: float | None = None
        self._verdicts = 0

    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        self._bar.start()  # after the question; further calls do nothing
        shown: dict[str, Any] = {"refresh": True}
        match event:
            case "run":
                shown = self._of_run(data)
            case "proposing":
                shown["description"] = f"writing `{data['component']}`"
            case "proposed":
                shown["description"] = f"trying `{data['component']}`"
            case "validated":
                self._best = data["mean"] if self._best is None else max(self._best, data["mean"])
                shown |= {"description": "looking for faults", "best": f"best {self._best:.3f}"}
            case "rejected":
                shown["description"] = "looking for faults"
            case _:
                pass
        self._bar.update(self._bar.task_ids[0], **shown)

    def _of_run(self, data: Mapping[str, Any]) -> dict[str, Any]:
        from stagegraph.optimize.evaluation.budget import cost_text

        self._verdicts += data["kind"] == "verdict"
        doing = f"the verdict, run {self._verdicts}" if self._verdicts else None
        return {"completed": data["runs"], "spent": cost_text(data["usd"], data["unpriced"]), "description": doing}


def _read_examples(path: str, node: Node[Any, Any], split: str | None = None) -> Sequence[Example[Any]]:
    """The examples in a file, or those of one split."""
    from stagegraph import InputError, optimize

    rows = optimize.examples(path, node)
    if split is None:
        return rows
    known = sorted({str(row.metadata["split"]) for row in rows if "split" in row.metadata})
    chosen = [row for row in rows if row.metadata.get("split") == split]
    if not chosen:
        msg = f"{path}: no row has the split {split!r}; there are: {', '.join(known) or 'none'}"
        raise InputError(msg)
    return chosen


def _check_common(before: Report, name: str, ids: set[str]) -> None:
    """Check before anything is paid for whether two evaluations can be compared."""
    from stagegraph.optimize.evaluation.compare import FEW

    common = len(before.scores.keys() & ids)
    if not common:
        msg = f"{name} has none of these examples, so nothing could be compared: evaluate the same examples"
        raise TuningError(msg)
    if common < FEW:
        say(
            f"{name} has {common} of these examples: fewer than {FEW} never show that it is worse",
            "yellow",
            stderr=True,
        )


@contextmanager
def _progress(description: str, total: int) -> Generator[Progress]:
    """A progress bar on a terminal, shown from its `start` on; elsewhere nothing is printed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    out = console(stderr=True)
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        MofNCompleteColumn(),
        TextColumn("{task.fields[best]}", markup=False),
        TextColumn("{task.fields[spent]}", markup=False),
    ]
    if out.width >= _WIDE:
        columns = [columns[0], BarColumn(), *columns[1:], TimeElapsedColumn()]
    bar = Progress(*columns, console=out, transient=True, disable=not out.is_terminal)
    bar.add_task(description, total=total, best="", spent="")
    try:
        yield bar
    finally:
        bar.stop()
