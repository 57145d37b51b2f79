"""`stagegraph draw` and `stagegraph prompts`: the nodes of a graph, and the texts for its models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as opt
from .load import load_graph
from .text import say

prompts_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def draw(
    graph: opt.GraphArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the drawing to a file.", callback=opt.writable)
    ] = None,
) -> None:
    """Draw what a graph declares, as a Mermaid flowchart."""
    from stagegraph.record.mermaid import declared_chart

    text = declared_chart(load_graph(graph))
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")


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
