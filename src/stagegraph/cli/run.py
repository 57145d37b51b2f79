"""`stagegraph run` and `resume`: a run while its calls are shown, and then its output."""

from __future__ import annotations

import asyncio
import gc
import json
import sysconfig
from contextlib import aclosing, nullcontext
from traceback import extract_tb
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from stagegraph.schema.errors import closest

from . import options as opt
from .load import is_below_here, load_function, load_graph, made_deps
from .text import console, deferred, json_output, print_error, print_json

if TYPE_CHECKING:
    from stagegraph import LiveRun, Node, Run, Runner
    from stagegraph.journal import Journal
    from stagegraph.runner.options import ResumeOptions


def run(
    graph: opt.GraphArgument,
    input: Annotated[str, typer.Argument(help="A file, `-` for standard input, JSON, YAML or text.")],  # noqa: A002
    model: opt.ModelOption = None,
    prompts: opt.PromptsOption = None,
    models: opt.SetOption = None,
    deps: opt.DepsOption = None,
    as_json: opt.OnlyJsonOption = False,
    journal: opt.JournalOption = opt.DEFAULT_JOURNAL,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Keep the run in the journal.")] = True,
) -> None:
    """Run a graph, and show its calls while they go on."""
    from .input import read_input

    async def work(node: Node[Any, Any], value: object, out: TextIO | None) -> None:
        async with (
            aclosing(opt.open_journal(journal, create=True)) if record else nullcontext() as store,
            made_deps(make_deps) as made,
            make_runner(node, model, prompts, models, store) as runner,
        ):
            await _finish(runner.start(node, value, deps=made, metadata={"graph": graph}), node, out)

    with json_output(as_json) as out:
        node, make_deps = load_graph(graph), load_function(deps)  # before there is an event loop: a file may use one
        asyncio.run(work(node, read_input(input, node.__node__.input_type), out))


def resume(
    run: opt.RunArgument,
    graph: Annotated[
        str | None,
        typer.Argument(
            help="The graph; without it, the file that `stagegraph run` was given, if it is below this folder."
        ),
    ] = None,
    answer: Annotated[
        list[str] | None, typer.Option(metavar="ID=VALUE", help="Answer what a suspended run asks.")
    ] = None,
    input: Annotated[  # noqa: A002
        str | None,
        typer.Option(metavar="INPUT", help="The input again, where the journal does not hold all of it."),
    ] = None,
    strict: Annotated[bool, typer.Option(help="Fail where the program has changed.")] = False,
    model: opt.ModelOption = None,
    prompts: opt.PromptsOption = None,
    models: opt.SetOption = None,
    deps: opt.DepsOption = None,
    as_json: opt.OnlyJsonOption = False,
    journal: opt.JournalOption = opt.DEFAULT_JOURNAL,
) -> None:
    """Finish a run that a crash, a limit, an error or a question interrupted."""
    from stagegraph import ReplayError

    from .input import read_input

    answers = dict(_answer(pair) for pair in answer or [])
    make_deps = load_function(deps)

    async def work(out: TextIO | None) -> None:
        async with aclosing(opt.open_journal(journal)) as store:
            row = await opt.find_run(store, run)
            recorded = row.read_labels().metadata.get("graph")
            if graph is None and not (isinstance(recorded, str) and is_below_here(recorded)):
                there = (
                    f"is at {recorded}, which is no file below this folder" if recorded else "is nowhere in its record"
                )
                msg = f"the graph {row.graph} of the run {there}: say where: stagegraph resume {row.run_id} GRAPH"
                raise ReplayError(msg)
            node = load_graph(graph or str(recorded))
            options: ResumeOptions = {"graph": node, "answers": answers, "strict": strict, "model": model}
            if input is not None:
                options["input"] = read_input(input, node.__node__.input_type)
            async with made_deps(make_deps) as made, make_runner(node, model, prompts, models, store) as runner:
                options["deps"] = made
                live = await runner.start_resume(row.run_id, **options)
                await _finish(live, node, out)

    with json_output(as_json) as out:
        asyncio.run(work(out))


def _answer(pair: str) -> tuple[str, object]:
    name, equals, value = pair.rpartition("=")
    if not equals:
        msg = f"--answer {pair}: write ID=VALUE, with true, false or a JSON value"
        raise typer.BadParameter(msg)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def make_runner(
    node: Node[Any, Any],
    model: str | None,
    prompts: str | None,
    models: list[str] | None = None,
    journal: Journal | None = None,
    **options: Any,
) -> Runner:
    """A runner from the options of a command; a mistake in them is an error before anything runs.

    What was loaded until now stays until the process ends, so that the garbage collector need not look at it; and with
    its usual thresholds, it would take a third of the time of many agents at once.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    from stagegraph import Prompts, Runner
    from stagegraph.agent.models import Models
    from stagegraph.nodes.stage import stages_of

    stages = stages_of(node)
    by_path: dict[str, str] = {}
    for pair in models or []:
        path, equals, name = pair.partition("=")
        if not equals or not name.strip() or path not in stages:
            known = ", ".join(stages) or "none"
            meant = "" if path in stages else closest(path, list(stages))
            msg = f"--set {pair}: write PATH=MODEL; the stages are: {known}{meant}"
            raise typer.BadParameter(msg)
        by_path[path] = name
    known_models = Models()
    for name in (model, *by_path.values()):
        if name is not None:
            known_models.get(name)
    deployed = Prompts.load(prompts) if prompts is not None else None
    if deployed is not None:
        deployed.check_known(stages, node.__node__.name)
    return Runner(model, models=by_path, prompts=deployed, journal=journal, **options)


async def _finish(live: LiveRun[Any, Any], node: Node[Any, Any], out: TextIO | None) -> None:
    """Show a live run to its end, then its output, as JSON on *out* if that is given."""
    from stagegraph import RunError

    from .tree import watch

    try:
        await watch(live, node.__node__.name)
        result: Run[Any, Any] = await live.result()
        error = None
    except RunError as failed:
        result, error = failed.run, failed
    except asyncio.CancelledError:
        await live.cancel()
        raise
    if out is not None:
        print(json.dumps(_as_data(result, node), ensure_ascii=False), file=out)
    elif result.status == "succeeded":
        print_json(console(), node.__node__.output_type.show(result.output))
    if error is not None:
        print_error(str(error) + _place(error))
        raise typer.Exit(1)
    for pending in result.pending:
        console(stderr=True).print(deferred(result.id, pending, result.metadata.get("graph")))


def _place(error: BaseException) -> str:
    """The line of the user's code that the innermost cause was raised in, if there is one."""
    while error.__cause__ is not None:
        error = error.__cause__
    libraries = ("<", sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    frames = [one for one in extract_tb(error.__traceback__) if not one.filename.startswith(libraries)]
    return f"\n  {frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}" if frames else ""


def _as_data(result: Run[Any, Any], node: Node[Any, Any]) -> dict[str, Any]:
    return {
        "run_id": result.id,
        "status": result.status,
        "output": node.__node__.output_type.show(result.output) if result.status == "succeeded" else None,
        "error": str(result.error) if result.error is not None else None,
        "usage": {name: getattr(result.usage, name) for name in ("requests", "input_tokens", "output_tokens")},
        "cost": None if result.cost is None else str(result.cost),
    }
