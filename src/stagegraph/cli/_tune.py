"""`stagegraph eval`, `compare` and `tune`: how good a graph is, whether that changed, and better texts for it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from ._place import writable
from ._run import ModelOption, PromptsOption, make_runner
from ._text import console, plain

if TYPE_CHECKING:
    from stagegraph import Example, Node
    from stagegraph.optimize import Report

__all__ = ["compare", "evaluate", "tune"]

TOO_LOW = 3
"""The exit code of a score that is not good enough; a mistake gives 1."""
_WIDE = 80
"""Columns of a terminal that has room for a bar and a clock beside the numbers."""

GraphArgument = Annotated[str, typer.Argument(help="A folder with a graph.py, FILE.py:Class, or module:Class.")]
MetricArgument = Annotated[str, typer.Argument(help="FILE.py:function or module:function, of an example and a run.")]
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
    from stagegraph import TuningError, optimize  # noqa: PLC0415 - `--help` answers without loading the library

    from ._load import load_function, load_graph  # noqa: PLC0415

    node, judge = load_graph(graph), load_function(metric)
    before = None if no_worse_than is None else optimize.Report.load(no_worse_than)
    rows = _rows(examples, node, split)
    if before is not None:
        _check_gate(before, str(no_worse_than), {row.id for row in rows})
    runner = make_runner(node, model, prompts, None, None)
    with _progress("evaluating", len(rows) * repeats) as bar:
        bar.start()
        done: list[float] = []

        def judged(row: optimize.ReportRow) -> None:
            done.append(row.score)
            bar.update(bar.task_ids[0], completed=len(done), description=f"mean {sum(done) / len(done):.3f}")

        try:
            report = asyncio.run(
                optimize.evaluate(
                    node, judge, rows, runner=runner, prompts=runner.prompts, repeats=repeats, on_row=judged
                )
            )
        except TuningError as error:
            partial: Report | None = getattr(error, "report", None)
            if partial is not None and out is not None:
                partial.save(f"{out}.partial")
            raise
    if out is not None:
        report.save(out)
    _say(report.table())
    verdict = None if before is None else optimize.compare(before, report)
    if verdict is not None:
        _say(f"\nagainst {no_worse_than}: {verdict}")
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
    _say(found.table())
    if html is not None:
        found.html(html)
    if found.worse:
        raise typer.Exit(TOO_LOW)


def tune(
    graph: GraphArgument,
    metric: MetricArgument,
    train: Annotated[str, typer.Option(metavar="FILE", help="Examples to learn from.")],
    val: Annotated[str, typer.Option(metavar="FILE", help="Examples that choose the best candidate.")],
    runs: Annotated[int, typer.Option(min=1, help="Runs of the graph, at most.")],
    test: Annotated[str | None, typer.Option(metavar="FILE", help="Examples for the verdict at the end.")] = None,
    usd: Annotated[float | None, typer.Option(help="US dollars, at most.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds, at most.")] = None,
    model: ModelOption = None,
    reflection_model: Annotated[str | None, typer.Option(metavar="NAME", help="Writes the new texts.")] = None,
    proposer: Annotated[str | None, typer.Option(help="`notes`: the notes are written in, without a model.")] = None,
    component: Annotated[
        list[str] | None, typer.Option(help="What to change: instructions (without it), tools, fields; repeatable.")
    ] = None,
    prompts: PromptsOption = None,
    out: Annotated[
        str, typer.Option(metavar="FILE", help="The best prompts.", callback=writable)
    ] = "prompts.tuned.yaml",
    run_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Keep what is paid for; go on from there.")] = None,
    seed: Annotated[int, typer.Option(help="Another number searches otherwise.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Begin without asking.")] = False,
) -> None:
    """Search for better texts for a graph's stages, and say whether they are better."""
    from stagegraph import optimize  # noqa: PLC0415
    from stagegraph.optimize.budget import cost_text  # noqa: PLC0415

    from ._load import load_function, load_graph  # noqa: PLC0415

    node, judge = load_graph(graph), load_function(metric)
    parts = {name: _rows(file, node) for name, file in (("train", train), ("val", val))}
    held_out = None if test is None else _rows(test, node)
    runner = make_runner(node, model, prompts, None, None)  # a mistake in the names is found now
    best: float | None = None
    verdicts = 0
    with _progress("the texts to start from", runs) as bar:

        def confirm(preview: optimize.Preview) -> bool:
            _say(str(preview))
            return yes or typer.confirm("Begin?", abort=True, err=True)

        def tell(event: str, data: Mapping[str, Any]) -> None:
            nonlocal best, verdicts
            bar.start()  # after the question; further times do nothing
            said: dict[str, Any] = {}
            if event == "run":
                verdicts += data["kind"] == "verdict"
                doing = f"the verdict, run {verdicts}" if verdicts else None
                bar.update(
                    bar.task_ids[0],
                    completed=data["runs"],
                    spent=cost_text(data["usd"], data["unpriced"]),
                    description=doing,
                )
                return
            if event in {"proposing", "proposed"}:
                said["description"] = f"{'writing' if event == 'proposing' else 'trying'} `{data['component']}`"
            elif event in {"validated", "rejected"}:
                said["description"] = "looking for faults"
            if event == "validated":
                best = data["mean"] if best is None else max(best, data["mean"])
                said["best"] = f"best {best:.3f}"
            bar.update(bar.task_ids[0], refresh=True, **said)

        result = asyncio.run(
            optimize.tune(
                node,
                judge,
                train=parts["train"],
                val=parts["val"],
                test=held_out,
                budget=optimize.Budget(runs=runs, usd=usd, seconds=seconds),
                model=model,
                reflection_model=reflection_model,
                proposer=proposer,
                prompts=runner.prompts if prompts is not None else None,
                components=cast("Any", component or ["instructions"]),  # checked there
                run_dir=run_dir,
                seed=seed,
                tell=tell,
                confirm=confirm,
            )
        )
    result.save(out)
    _say(f"{result.comparison.table()}\n\n{result}\n\n{out}: the best prompts")
    if result.found.error is not None:
        raise result.found.error


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


def _rows(path: str, node: Node[Any, Any], split: str | None = None) -> Sequence[Example[Any]]:
    from stagegraph import InputError, optimize  # noqa: PLC0415

    rows = optimize.examples(path, node)
    if split is None:
        return rows
    known = sorted({str(row.metadata["split"]) for row in rows if "split" in row.metadata})
    chosen = [row for row in rows if row.metadata.get("split") == split]
    if not chosen:
        msg = f"{path}: no row has the split {split!r}; there are: {', '.join(known) or 'none'}"
        raise InputError(msg)
    return chosen


@contextmanager
def _progress(what: str, total: int) -> Generator[Progress, None, None]:
    """A bar that is shown from its `start` on, on a terminal; elsewhere nothing is printed."""
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
    bar.add_task(what, total=total, best="", spent="")
    try:
        yield bar
    finally:
        bar.stop()


def _say(text: str) -> None:
    console().print(Text(plain(text)))
