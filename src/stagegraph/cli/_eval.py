"""`stagegraph eval` and `compare`: how good a graph is, and whether that changed."""

from __future__ import annotations

import asyncio
from math import isfinite
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ._judged import GraphArgument, MetricArgument, progress, rows_of, say
from ._place import writable
from ._run import ModelOption, PromptsOption, make_runner
from ._text import console

if TYPE_CHECKING:
    from stagegraph.optimize import Report

__all__ = ["compare", "evaluate"]

TOO_LOW = 3
"""The exit code of a score that is not good enough; a mistake gives 1."""

ReportArgument = Annotated[str, typer.Argument(metavar="REPORT", help="What `stagegraph eval --out` wrote.")]


def _finite(value: float | None) -> float | None:
    if value is not None and not isfinite(value):
        msg = f"{value} is no score: it is a finite number"
        raise typer.BadParameter(msg)
    return value


def evaluate(
    graph: GraphArgument,
    metric: MetricArgument,
    examples: Annotated[str, typer.Argument(help="JSON lines, JSON, YAML or CSV, with `input` and `expected`.")],
    model: ModelOption = None,
    prompts: PromptsOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each example.")] = 1,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the report here, as JSON.", callback=writable)
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
) -> None:
    """Run a graph on examples, and say how good it is."""
    from stagegraph import Prompts, TuningError, optimize  # noqa: PLC0415 - `--help` answers without loading the library

    from ._load import load_function, load_graph  # noqa: PLC0415

    node, judge = load_graph(graph), load_function(metric)
    before = None if no_worse_than is None else optimize.Report.load(no_worse_than)
    rows = rows_of(examples, node, split)
    if before is not None:
        _check_gate(before, str(no_worse_than), {row.id for row in rows})
    deployed = Prompts() if prompts is None else Prompts.load(prompts)
    runner = make_runner(node, model, prompts, None, None)
    with progress("evaluating", len(rows) * repeats) as bar:
        bar.start()
        done: list[float] = []

        def judged(row: optimize.ReportRow) -> None:
            done.append(row.score)
            bar.update(bar.task_ids[0], completed=len(done), description=f"mean {sum(done) / len(done):.3f}")

        try:
            report = asyncio.run(
                optimize.evaluate(node, judge, rows, runner=runner, prompts=deployed, repeats=repeats, on_row=judged)
            )
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
    if min_score is not None and report.mean < min_score:
        console(stderr=True).print(Text(f"the mean score {report.mean:.3f} is below {min_score:g}", "red"))
        raise typer.Exit(TOO_LOW)
    if verdict is not None and verdict.worse:
        raise typer.Exit(TOO_LOW)


def compare(
    before: ReportArgument,
    after: ReportArgument,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a page with the changed examples.", callback=writable)
    ] = None,
) -> None:
    """Compare two evaluations of the same examples; exits with 3 when the second is shown to be worse."""
    from stagegraph import optimize  # noqa: PLC0415

    found = optimize.compare(optimize.Report.load(before), optimize.Report.load(after))
    say(found.table())
    if html is not None:
        found.html(html)
    if found.worse:
        raise typer.Exit(TOO_LOW)


def _check_gate(before: Report, name: str, ids: set[str]) -> None:
    """Say what a comparison cannot show, before anything is paid for it."""
    from stagegraph import TuningError  # noqa: PLC0415
    from stagegraph.optimize.comparison import FEW  # noqa: PLC0415

    common = len(before.scores.keys() & ids)
    if not common:
        msg = f"{name} has none of these examples, so nothing could be compared: evaluate the same examples"
        raise TuningError(msg)
    if common < FEW:
        text = f"{name} has {common} of these examples: fewer than {FEW} never show that it is worse"
        console(stderr=True).print(Text(text, "yellow"))
