"""`stagegraph draw` and `stagegraph prompts`: the nodes of a graph, and the texts for its models."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer

from . import options as opt
from .load import load_graph
from .text import say

if TYPE_CHECKING:
    from stagegraph import Node

prompts_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def _text_file(place: Path | None) -> Path | None:
    """The callback of `--out`."""
    if place is None:
        return None
    if place.suffix.lower() not in {"", ".mmd", ".mermaid", ".md", ".txt"}:
        msg = f"{place}: a drawing is Mermaid text, not a {place.suffix} file; name a .mmd or a .md file"
        raise typer.BadParameter(msg)
    return opt.writable(place)


def draw(
    graph: opt.GraphArgument,
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="Draw this recorded run of it: its id, or `last`.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the drawing to a .mmd or .md file.", callback=_text_file)
    ] = None,
    journal: opt.JournalOption = opt.DEFAULT_JOURNAL,
) -> None:
    """Draw a graph as a Mermaid flowchart: what it declares, or with `--run` the calls and the data of a run.

    The dotted arrows of a declared graph are guesses: they connect types that fit together. Those of a run are facts.
    """
    from stagegraph.record.mermaid import declared_chart

    node = load_graph(graph)
    if run is None:
        text = declared_chart(node)
        if "-.->" in text:
            text = f"%% The dotted arrows are guesses by type. `--run last` draws what a run did.\n{text}"
    else:
        text = anyio.run(_run_chart, node, run, journal)
    if out is None:
        print(text, end="")
    else:
        out.write_text(f"```mermaid\n{text}```\n" if out.suffix.lower() == ".md" else text, encoding="utf-8")


async def _run_chart(node: Node[Any, Any], name: str, journal: str) -> str:
    """The drawing of a recorded run."""
    from stagegraph import ReplayError
    from stagegraph.record.run import stored_run

    async with aclosing(opt.open_journal(journal)) as store:
        row = await opt.find_run(store, name, graph=node.__node__.name)
        if row.graph != node.__node__.name:
            msg = f"run {row.run_id} is a run of {row.graph}, not of {node.__node__.name}"
            raise ReplayError(msg)
        return (await stored_run(store, row, node)).mermaid()


@prompts_app.command()
def show(
    graph: opt.GraphArgument,
    prompts: Annotated[str | None, typer.Option(metavar="FILE", help="What a prompts file makes of it.")] = None,
) -> None:
    """Print what a graph says to its models."""
    from stagegraph import Prompts
    from stagegraph.nodes.stage import stages_of

    node = load_graph(graph)
    texts = Prompts.of(node)
    if prompts is not None:
        deployed = Prompts.load(prompts)
        deployed.check_known(stages_of(node), node.__node__.name)
        texts = texts.replace(deployed)
    print(texts.to_yaml(), end="")


@prompts_app.command()
def diff(
    before: Annotated[str, typer.Argument(help="A prompts file or a graph.")],
    after: Annotated[str, typer.Argument(help="A prompts file or a graph.")],
) -> None:
    """Compare two prompts files, or a graph and a file. Exits with 1 when they differ."""
    from stagegraph import Prompts

    def texts(name: str) -> Prompts:
        return Prompts.load(name) if name.endswith((".yaml", ".yml")) else Prompts.of(load_graph(name))

    text = texts(after).diff(texts(before))
    print(text, end="")
    raise typer.Exit(1 if text else 0)


@prompts_app.command()
def check(graph: opt.GraphArgument, file: Annotated[str, typer.Argument(help="A prompts file.")]) -> None:
    """Make sure that a prompts file and a graph name the same stages, and that demos, tools and fields fit."""
    from stagegraph import Prompts

    node = load_graph(graph)
    Prompts.load(file).check(node)
    say(f"{file} fits {node.__node__.name}", "green", stderr=True)
