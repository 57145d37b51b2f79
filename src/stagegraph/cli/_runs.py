"""`stagegraph runs`, `feedback` and `diff`: the list of recorded runs, scores for them, two of them side by side."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer
from rich.table import Table
from rich.text import Text

from ._langfuse import LangfuseOption, runs_from_langfuse
from ._stored import DEFAULT_JOURNAL, JournalOption, find_run, moment, open_journal
from ._text import console, plain, styled_status, took

if TYPE_CHECKING:
    from stagegraph.journal import CallRow, FeedbackRow, RunRow

__all__ = ["diff", "feedback", "runs"]

_MANY = 1_000_000


def runs(
    graph: Annotated[str | None, typer.Option(help="Only runs of this graph.")] = None,
    status: Annotated[
        str | None, typer.Option(help="succeeded, failed, cancelled, suspended, running or interrupted.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="`2h`, `3d`, or a date.")] = None,
    until: Annotated[str | None, typer.Option(help="`2h`, `3d`, or a date.")] = None,
    score: Annotated[str | None, typer.Option(metavar="NAME", help="Only runs with this score.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Only runs with a score of at least this.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Only runs with a score of at most this.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    langfuse: LangfuseOption = False,
    journal: JournalOption = DEFAULT_JOURNAL,
) -> None:
    """List recorded runs, the newest first."""
    from stagegraph.journal import RunFilter  # noqa: PLC0415
    from stagegraph.runner.recovery import GIVEN_UP  # noqa: PLC0415

    states = ("succeeded", "failed", "cancelled", "suspended", "running", "interrupted")
    if status is not None and status not in states:
        msg = f"{status!r} is no status; there are {', '.join(states)}"
        raise typer.BadParameter(msg)
    stored_as = "running" if status == "interrupted" else status  # a process that dies writes nothing any more
    wanted = RunFilter(
        graph=graph,
        status=stored_as,
        since=moment(since),
        until=moment(until),
        feedback=score,
        min_score=min_score,
        max_score=max_score,
        limit=_MANY if stored_as == "running" and not langfuse else limit,
    )

    async def read() -> list[tuple[RunRow, list[FeedbackRow]]]:
        if langfuse:
            return [(row, scores) for row, _, scores in await runs_from_langfuse(wanted)]
        store = open_journal(journal)
        try:
            rows = [row for row in await store.runs(wanted) if status in (None, _status(row))]
            return [(row, await store.feedback(row.run_id)) for row in rows[:limit]]
        finally:
            await store.aclose()

    found = anyio.run(read)
    if as_json:
        for row, scores in found:
            print(json.dumps(_run_json(row, scores)))  # noqa: T201
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "graph", "status", "started", "took", "requests", "tokens", "cost", "feedback"):
        table.add_column(name, justify="right" if name in ("took", "requests", "tokens", "cost") else "left")
    for row, scores in found:
        table.add_row(
            Text(plain(row.run_id)),
            Text(plain(row.graph)),
            styled_status(_status(row)),
            datetime.fromtimestamp(row.started, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            took(row.duration) if row.status != "running" else "",
            str(row.requests),
            str(row.input_tokens + row.output_tokens),
            "unknown" if row.cost is None else f"${float(row.cost):.4f}",
            Text(plain(", ".join(f"{score.name}={json.loads(score.value)}" for score in scores if score.key is None))),
        )
    console().print(table if found else "no runs")
    for row, _ in found:
        if row.error_type == GIVEN_UP:
            console().print(Text(plain(f"{row.run_id}: {row.error}"), "yellow"))


def _status(row: RunRow) -> str:
    from stagegraph.runner.recovery import is_interrupted  # noqa: PLC0415

    return "interrupted" if is_interrupted(row) else row.status


def _run_json(row: RunRow, scores: list[FeedbackRow]) -> dict[str, Any]:
    return {
        "run_id": row.run_id,
        "graph": row.graph,
        "status": _status(row),
        "started": datetime.fromtimestamp(row.started, UTC).isoformat(),
        "duration": row.duration,
        "requests": row.requests,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "cost": row.cost,
        "error": row.error,
        "feedback": {score.name: json.loads(score.value) for score in scores if score.key is None},
    }


def feedback(
    run: Annotated[str, typer.Argument(help="A run id, the beginning of one, or `last`.")],
    name: Annotated[str, typer.Argument(help="What is scored, such as `helpful`.")],
    value: Annotated[str, typer.Argument(help="A number, `true` or `false`, or a text.")],
    call: Annotated[str | None, typer.Option(metavar="KEY", help="Score one call of the run.")] = None,
    comment: Annotated[str | None, typer.Option(help="Why.")] = None,
    journal: JournalOption = DEFAULT_JOURNAL,
) -> None:
    """Score a run, or one call of it."""
    from stagegraph import Runner  # noqa: PLC0415
    from stagegraph.runner.feedback import feedback as store_feedback  # noqa: PLC0415

    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    scored: int | float | bool | str = parsed if isinstance(parsed, (int, float, bool)) else value

    async def store() -> str:
        opened = open_journal(journal)
        try:
            row = await find_run(opened, run)
            await store_feedback(row.run_id, name, scored, key=call, comment=comment, runner=Runner(journal=opened))
            return row.run_id
        finally:
            await opened.aclose()

    run_id = anyio.run(store)
    console(stderr=True).print(Text(plain(f"{name}={scored} for {call or 'the run'} of {run_id}")))


def diff(
    first: Annotated[str, typer.Argument(help="A run.")],
    second: Annotated[str, typer.Argument(help="Another run.")],
    journal: JournalOption = DEFAULT_JOURNAL,
) -> None:
    """Say how two runs differ, call by call. Exits with 1 when they do."""

    async def read() -> tuple[list[CallRow], list[CallRow]]:
        store = open_journal(journal)
        try:
            rows = [await find_run(store, name) for name in (first, second)]
            return await store.calls(rows[0].run_id), await store.calls(rows[1].run_id)
        finally:
            await store.aclose()

    one, other = ({row.key: row for row in rows} for rows in anyio.run(read))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("call", "difference", "took", "was"):
        table.add_column(name)
    differences = 0
    for key in [*one, *(key for key in other if key not in one)]:
        words = difference(one.get(key), other.get(key))
        if not words:
            continue
        differences += 1
        times = [took(row.duration) if row is not None else "" for row in (other.get(key), one.get(key))]
        table.add_row(Text(plain(key or "the graph")), Text(plain(words)), *times)
    console().print(table if differences else "the same calls with the same inputs and outputs")
    raise typer.Exit(1 if differences else 0)


def difference(one: CallRow | None, other: CallRow | None) -> str:
    """What changed from one call to the other, in words; empty when nothing did."""
    if one is None:
        return "only in the second run"
    if other is None:
        return "only in the first run"
    parts = [name for name in ("status", "input", "output", "error") if getattr(one, name) != getattr(other, name)]
    before, after = json.loads(one.parts), json.loads(other.parts)
    parts += [name.removeprefix("the ") for name in after if before.get(name) != after[name]]
    return ", ".join(parts)
