"""`stagegraph resume`: finish an interrupted run."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, TextIO

import typer

from ._run import ModelOption, PromptsOption, SetOption, make_runner
from ._stored import DEFAULT_JOURNAL, JournalOption, find_run, open_journal
from ._text import json_output

__all__ = ["resume"]


def resume(
    run: Annotated[str, typer.Argument(help="A run id, the beginning of one, or `last`.")],
    graph: Annotated[str | None, typer.Argument(help="The graph; without it, what `stagegraph run` was given.")] = None,
    answer: Annotated[
        list[str] | None, typer.Option(metavar="ID=VALUE", help="Answer what a suspended run asks.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Fail where the program has changed.")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="The process on another host that held the run is gone for good.")
    ] = False,
    model: ModelOption = None,
    prompts: PromptsOption = None,
    models: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")] = False,
    journal: JournalOption = DEFAULT_JOURNAL,
) -> None:
    """Finish a run that a crash, a limit, an error or a question interrupted."""
    from stagegraph.record.run import ReplayError  # noqa: PLC0415

    from ._load import load_graph  # noqa: PLC0415
    from ._run import finish  # noqa: PLC0415

    answers: dict[str, object] = {}
    for pair in answer or []:
        name, equals, value = pair.rpartition("=")
        if not equals:
            msg = f"--answer {pair}: write ID=VALUE, with true, false or a JSON value"
            raise typer.BadParameter(msg)
        try:
            answers[name] = json.loads(value)
        except ValueError:
            answers[name] = value

    async def work(out: TextIO | None) -> None:
        store = open_journal(journal)
        try:
            row = await find_run(store, run)
            place = graph or json.loads(row.labels)["metadata"].get("graph")
            if not isinstance(place, str):
                msg = f"the run does not say where its graph {row.graph} is: stagegraph resume {row.run_id} GRAPH"
                raise ReplayError(msg)
            node = load_graph(place)
            async with make_runner(node, model, prompts, models, store) as runner:
                live = await runner.start_resume(
                    row.run_id, graph=node, answers=answers, strict=strict, model=model, take_over=take_over
                )
                await finish(live, node, out)
        finally:
            await store.aclose()

    with json_output(as_json) as out:
        asyncio.run(work(out))
