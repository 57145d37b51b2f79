"""`stagegraph export`: recorded runs as examples in a file."""

from __future__ import annotations

from contextlib import aclosing, nullcontext
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer

from stagegraph.schema.errors import DeclarationError, closest

from . import options as opt
from .load import load_graph
from .text import say

if TYPE_CHECKING:
    from stagegraph.data.examples import Example
    from stagegraph.record.source import RunSource


def _shares(text: str) -> dict[str, float]:
    """`train=0.6,val=0.2` as shares by name."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = (word.strip() for word in part.partition("="))
        try:
            shares[name] = float(share) if name.isidentifier() and name not in shares else 0
        except ValueError:
            shares[name] = 0
    if not all(isfinite(share) and share > 0 for share in shares.values()):
        msg = f"{text!r} is no split: write train=0.6,val=0.2,test=0.2"
        raise typer.BadParameter(msg)
    return shares


def export(
    graph: opt.GraphArgument,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the examples go, one JSON object a line.", callback=opt.writable)
    ],
    stage: Annotated[str | None, typer.Option(metavar="PATH", help="Only the calls of this stage or step.")] = None,
    since: opt.TimeOption = None,
    until: opt.TimeOption = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only runs with this tag; may be given again.")] = None,
    user: Annotated[str | None, typer.Option(help="Only runs of this user.")] = None,
    session: Annotated[str | None, typer.Option(help="Only runs of this session.")] = None,
    environment: Annotated[str | None, typer.Option(help="Only runs of this environment (Langfuse).")] = None,
    score: Annotated[str | None, typer.Option(metavar="NAME", help="Only what has this score.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Only what has a score of at least this.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Only what has a score of at most this.")] = None,
    limit: Annotated[int | None, typer.Option(help="How many.", min=0)] = None,
    split: Annotated[
        dict[str, float] | None,
        typer.Option(parser=_shares, metavar="NAME=SHARE,...", help="Deal them out: train=0.6,val=0.2,test=0.2."),
    ] = None,
    split_by: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Each part gets its share of every value of this field.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another number deals otherwise.")] = 0,
    langfuse: opt.LangfuseOption = False,
    journal: opt.JournalOption = opt.DEFAULT_JOURNAL,
) -> None:
    """Write recorded runs as examples: what went in, and what came out or should have."""
    from stagegraph import save_examples, split_examples
    from stagegraph.record.source import JournalRuns

    if split_by is not None and split is None:
        msg = "--split-by says how to deal out; --split NAME=SHARE,... says into what"
        raise typer.BadParameter(msg)
    root = load_graph(graph)
    nodes = root.__node__.tree.nodes
    if stage is not None and stage not in nodes:
        msg = f"{root.__node__.name} has no `{stage}`{closest(stage, [path for path in nodes if path])}"
        raise DeclarationError(msg)

    async def read() -> tuple[list[Example[Any]], dict[str, int]]:
        async with nullcontext() if langfuse else aclosing(opt.open_journal(journal)) as store:
            source = _langfuse() if store is None else JournalRuns(store)
            found = await source.examples(
                root,
                stage=nodes[stage] if stage is not None else None,
                since=since,
                until=until,
                tags=tag or (),
                user=user,
                session=session,
                environment=environment,
                score=score,
                min_score=min_score,
                max_score=max_score,
                limit=limit,
            )
            return found, dict(source.skipped)

    examples, skipped = anyio.run(read)
    files = {out: examples}
    if split is not None:
        parts = split_examples(examples, split, by=split_by, seed=seed)
        files = {out.with_name(f"{out.stem}.{name}{out.suffix}"): part for name, part in parts.items()}
    for file, rows in files.items():
        say(f"wrote {save_examples(rows, file)} examples to {file}", stderr=True)
    for reason, count in skipped.items():
        say(f"left out {count}: {reason}", "dim", stderr=True)


def _langfuse() -> RunSource:
    from stagegraph.tracing import LangfuseRuns  # reading a journal loads nothing of it

    return LangfuseRuns()
