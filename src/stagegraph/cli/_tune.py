"""`stagegraph tune`: better texts for a graph's stages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, cast

import typer

from ._judged import GraphArgument, MetricArgument, progress, rows_of, say
from ._place import writable
from ._run import ModelOption, PromptsOption, make_runner

__all__ = ["tune"]


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
    from stagegraph import Prompts, optimize  # noqa: PLC0415
    from stagegraph.optimize.budget import cost_text  # noqa: PLC0415

    from ._load import load_function, load_graph  # noqa: PLC0415

    node, judge = load_graph(graph), load_function(metric)
    parts = {name: rows_of(file, node) for name, file in (("train", train), ("val", val))}
    held_out = None if test is None else rows_of(test, node)
    make_runner(node, model, prompts, None, None)  # a mistake in the names is found now
    best: float | None = None
    verdicts = 0
    with progress("the texts to start from", runs) as bar:

        def confirm(preview: optimize.Preview) -> bool:
            say(str(preview))
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
                prompts=Prompts.load(prompts) if prompts is not None else None,
                components=cast("Any", component or ["instructions"]),  # checked there
                run_dir=run_dir,
                seed=seed,
                tell=tell,
                confirm=confirm,
            )
        )
    result.save(out)
    say(f"{result.comparison.table()}\n\n{result}\n\n{out}: the best prompts")
    if result.found.error is not None:
        raise result.found.error
