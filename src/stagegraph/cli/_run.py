"""`stagegraph run`: run a graph while its calls are shown."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.text import Text

from stagegraph.nodes.stage import stages_of

from ._stored import DEFAULT_JOURNAL, JournalOption, open_journal
from ._text import console, json_output, plain, print_json, question

if TYPE_CHECKING:
    from stagegraph import LiveRun, Node, Run, Runner

__all__ = ["ModelOption", "PromptsOption", "SetOption", "finish", "make_runner", "run"]

ModelOption = Annotated[str | None, typer.Option(metavar="NAME", help="`openai:gpt-5-mini`, `local:smollm2`, ...")]
PromptsOption = Annotated[str | None, typer.Option(metavar="FILE", help="A prompts file.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=MODEL", help="Another model for a stage.")]


def run(
    graph: Annotated[str, typer.Argument(help="A folder with a graph.py, FILE.py:Class, or module:Class.")],
    input: Annotated[str, typer.Argument(help="A file, `-` for standard input, JSON, YAML or text.")],  # noqa: A002
    model: ModelOption = None,
    prompts: PromptsOption = None,
    models: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")] = False,
    journal: JournalOption = DEFAULT_JOURNAL,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Keep the run in the journal.")] = True,
) -> None:
    """Run a graph, and show its calls while they go on."""
    from ._input import read_input  # noqa: PLC0415 - `--help` answers without loading the library
    from ._load import load_graph  # noqa: PLC0415

    async def work(node: Node[Any, Any], value: object, out: TextIO | None) -> None:
        store = open_journal(journal, create=True) if record else None
        try:
            async with make_runner(node, model, prompts, models, store) as runner:
                live = runner.start(node, value, metadata={"graph": graph})
                await finish(live, node, out)
        finally:
            if store is not None:
                await store.aclose()

    with json_output(as_json) as out:
        node = load_graph(graph)  # before there is an event loop: a file may use one of its own
        asyncio.run(work(node, read_input(input, node.__node__.input_type), out))


def make_runner(
    node: Node[Any, Any],
    model: str | None,
    prompts: str | None,
    models: list[str] | None,
    journal: Any,
    **options: Any,
) -> Runner:
    """A runner from the options, with every mistake in them found before anything runs."""
    from stagegraph import Prompts, Runner  # noqa: PLC0415
    from stagegraph.agent.models import Models  # noqa: PLC0415
    from stagegraph.schema.names import closest  # noqa: PLC0415

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


async def finish(live: LiveRun[Any, Any], node: Node[Any, Any], out: TextIO | None) -> None:
    """Show a live run to its end, then its output, as JSON on *out* if that is given; exits with 1 when it has none."""
    from stagegraph import RunError  # noqa: PLC0415

    from ._tree import watch  # noqa: PLC0415

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
    err = console(stderr=True)
    if error is not None:
        err.print(Text.assemble(("error: ", "bold red"), plain(str(error))))
        raise typer.Exit(1)
    for pending in result.pending:
        err.print(question(result.id, pending.id, pending.kind, pending.tool, pending.args))


def _as_data(result: Run[Any, Any], node: Node[Any, Any]) -> dict[str, Any]:
    usage = result.usage
    return {
        "run_id": result.id,
        "status": result.status,
        "output": node.__node__.output_type.show(result.output) if result.status == "succeeded" else None,
        "error": str(result.error) if result.error is not None else None,
        "usage": {
            "requests": usage.requests,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
        },
        "cost": None if result.cost is None else str(result.cost),
    }
