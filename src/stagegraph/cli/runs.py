"""`stagegraph runs`, `show`, `feedback` and `diff`: recorded runs."""

from __future__ import annotations

import json
from contextlib import aclosing
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer
from rich.text import Text

from stagegraph.schema.errors import JournalError, TracingError, closest

from . import options as opt
from .text import console, deferred, dollars, duration, new_table, plain, print_json, say, styled_status

if TYPE_CHECKING:
    from stagegraph.data.call import ShownStatus
    from stagegraph.journal import CallRow, FeedbackRow, Journal, RunFilter, RunRow
    from stagegraph.record.source import RunRows


_STATES: tuple[ShownStatus, ...] = ("succeeded", "failed", "cancelled", "suspended", "running", "interrupted")


def runs(
    graph: Annotated[str | None, typer.Option(help="Only runs of this graph.")] = None,
    status: Annotated[
        str | None, typer.Option(help="succeeded, failed, cancelled, suspended, running or interrupted.")
    ] = None,
    since: opt.TimeOption = None,
    until: opt.TimeOption = None,
    score: Annotated[str | None, typer.Option(metavar="NAME", help="Only runs with this score.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Only runs with a score of at least this.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Only runs with a score of at most this.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    langfuse: opt.LangfuseOption = False,
    journal: opt.JournalOption = opt.DEFAULT_JOURNAL,
) -> None:
    """List recorded runs, the newest first."""
    from stagegraph.data.call import GIVEN_UP
    from stagegraph.journal import RunFilter

    states: dict[str | None, ShownStatus | None] = {None: None, **{one: one for one in _STATES}}
    if status not in states:
        msg = f"{status!r} is no status; there are {', '.join(_STATES)}"
        raise typer.BadParameter(msg)
    wanted = RunFilter(
        graph=graph,
        status=states[status],
        since=None if since is None else since.timestamp(),
        until=None if until is None else until.timestamp(),
        feedback=score,
        min_score=min_score,
        max_score=max_score,
        limit=limit,
    )

    async def read() -> list[tuple[RunRow, list[FeedbackRow]]]:
        if langfuse:
            return [(row, scores) for row, _, scores in await _from_langfuse(graph, wanted)]
        async with aclosing(opt.open_journal(journal)) as store:
            rows = await store.runs(wanted)
            return [(await _listed(store, row), await store.feedback(row.run_id)) for row in rows]

    found = anyio.run(read)
    if as_json:
        for row, scores in found:
            print(json.dumps(_run_json(row, scores)))
        return
    numbers = ("took", "requests", "tokens", "cost")
    table = new_table("run", "graph", "status", "started", *numbers, "feedback", right=numbers)
    for row, scores in found:
        table.add_row(
            Text(plain(row.run_id)),
            Text(plain(row.graph)),
            styled_status(row.shown_status),
            datetime.fromtimestamp(row.started, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            duration(row.duration) if row.status != "running" else "",
            str(row.requests),
            str(row.input_tokens + row.output_tokens),
            dollars(row.cost),
            Text(plain(", ".join(f"{name}={value}" for name, value in _scores_of_run(scores).items()))),
        )
    console().print(table if found else "no runs")
    for row, _ in found:
        if row.error_type == GIVEN_UP:
            say(f"{row.run_id}: {row.error}", "yellow")


async def _listed(store: Journal, row: RunRow) -> RunRow:
    """A run for the list: what it has spent is counted while it goes on, for which Pydantic AI is loaded."""
    if row.status != "running":
        return row
    from stagegraph.record.calls import listed

    return await listed(store, row)


async def _rows(store: Journal, row: RunRow) -> tuple[RunRow, list[CallRow]]:
    """The rows of a run and its calls, in the same way."""
    if row.status != "running":
        return row, await store.calls(row.run_id)
    from stagegraph.record.calls import rows_so_far

    return await rows_so_far(store, row)


async def _from_langfuse(graph: str | None, wanted: RunFilter) -> list[RunRows]:
    """The newest runs that match, as a journal would have them."""
    from stagegraph.tracing import LangfuseRuns

    found: list[RunRows] = []
    async with aclosing(LangfuseRuns().listed(graph, wanted)) as pages:
        async for page in pages:
            found.append(page)
            if len(found) == wanted.limit:
                break
    return found


async def _one_of_langfuse(run: str) -> RunRows:
    """One run by its id, or the `last` one."""
    from stagegraph.journal import RunFilter
    from stagegraph.tracing import LangfuseRuns

    if run != "last":
        return await LangfuseRuns().page(run)
    for page in await _from_langfuse(None, RunFilter(limit=1)):
        return page
    msg = "there are no runs in this Langfuse project"
    raise TracingError(msg)


def _scores_of_run(scores: list[FeedbackRow]) -> dict[str, Any]:
    return {score.name: json.loads(score.value) for score in scores if score.key is None}


def _run_json(row: RunRow, scores: list[FeedbackRow]) -> dict[str, Any]:

    names = ("duration", "requests", "input_tokens", "output_tokens", "cost", "error")
    return {
        "run_id": row.run_id,
        "graph": row.graph,
        "status": row.shown_status,
        "started": datetime.fromtimestamp(row.started, UTC).isoformat(),
        **{name: getattr(row, name) for name in names},
        "feedback": _scores_of_run(scores),
    }


def show(
    run: opt.RunArgument,
    call: Annotated[
        str | None, typer.Option(metavar="KEY", help="Show what this call was given, said and gave.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page.", callback=opt.writable)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show every call of a wide fan-out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    langfuse: opt.LangfuseOption = False,
    journal: opt.JournalOption = opt.DEFAULT_JOURNAL,
) -> None:
    """Look into a recorded run."""

    async def read() -> RunRows:
        if langfuse:
            return await _one_of_langfuse(run)
        async with aclosing(opt.open_journal(journal)) as store:
            row = await opt.find_run(store, run)
            return *await _rows(store, row), await store.feedback(row.run_id)

    row, calls, scores = anyio.run(read)
    if html is not None:
        from stagegraph.draw import run_page
        from stagegraph.draw.html import write_page

        write_page(html, run_page(row, calls, scores))
        say(f"wrote {html}", stderr=True)
    elif call is not None:
        _show_call(row, calls, scores, call, as_json=as_json)
    elif as_json:
        from stagegraph.record.rows import RunRecord

        print(RunRecord(run=row, calls=calls, feedback=scores).to_json())
    else:
        _show_run(row, calls, scores, everything=everything)


def _show_run(row: RunRow, calls: list[CallRow], scores: list[FeedbackRow], *, everything: bool) -> None:
    from stagegraph.data.call import load_pending

    from .tree import CallTree

    out = console()
    out.print(
        Text.assemble((plain(row.graph), "bold"), " ", plain(row.run_id), " "),
        styled_status(row.shown_status),
        f"{duration(row.duration)}, {len(calls)} calls, {row.requests} requests, "
        f"{row.input_tokens} + {row.output_tokens} tokens, cost {dollars(row.cost)}",
    )
    if row.error is not None:
        say(row.error, "red")
    for score in scores:
        comment = f" ({score.comment})" if score.comment else ""
        place = f" for {score.key}" if score.key else ""
        say(f"feedback {score.name}={json.loads(score.value)}{place}{comment}", "cyan")
    tree = CallTree()
    for one in calls:
        tree.add(one)
    out.print(tree.drawn(inf) if everything else tree.drawn())
    for one in calls if row.status == "suspended" else ():
        for pending in load_pending(one.pending or "[]"):
            out.print(deferred(row.run_id, pending, row.read_labels().metadata.get("graph")))


def _show_call(row: RunRow, calls: list[CallRow], scores: list[FeedbackRow], key: str, *, as_json: bool) -> None:
    from stagegraph.record.rows import RunRecord

    from .tree import call_line

    found = next((one for one in calls if one.key == key), None)
    if found is None:
        msg = f"run {row.run_id} has no call `{key}`{closest(key, [one.key for one in calls])}"
        raise JournalError(msg)
    if as_json:
        [data] = RunRecord(run=row, calls=[found]).model_dump()["calls"]
        print(json.dumps(data, ensure_ascii=False))
        return
    out = console()
    out.print(call_line(found))
    for score in scores:
        if score.key == key:
            say(f"feedback {score.name}={json.loads(score.value)} {score.comment or ''}", "cyan")
    for title, text in (
        ("input", found.input),
        ("output", found.output),
        ("prompt", found.prompt),
        ("messages", found.messages if found.messages != "[]" else None),
        ("waits for", found.pending),
    ):
        if text is not None:
            out.rule(title, align="left", style="dim")
            print_json(out, json.loads(text))
    if found.error is not None:
        out.rule("error", align="left", style="dim")
        say(f"{found.error_type}: {found.error}", "red")


def feedback(
    run: opt.RunArgument,
    name: Annotated[str, typer.Argument(help="What is scored, such as `helpful`.")],
    value: Annotated[str, typer.Argument(help="A number, `true` or `false`, or a text.")],
    call: Annotated[str | None, typer.Option(metavar="KEY", help="Score one call of the run.")] = None,
    comment: Annotated[str | None, typer.Option(help="Why.")] = None,
    journal: opt.JournalOption = opt.DEFAULT_JOURNAL,
) -> None:
    """Score a run, or one call of it."""
    from stagegraph import Runner
    from stagegraph import feedback as store_feedback

    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    scored: float | bool | str = parsed if isinstance(parsed, (int, float, bool)) else value

    async def store() -> str:
        async with aclosing(opt.open_journal(journal)) as opened:
            row = await opt.find_run(opened, run)
            await store_feedback(row.run_id, name, scored, key=call, comment=comment, runner=Runner(journal=opened))
            return row.run_id

    run_id = anyio.run(store)
    say(f"{name}={scored} for {call or 'the run'} of {run_id}", stderr=True)


def diff(
    first: Annotated[str, typer.Argument(help="A run.")],
    second: Annotated[str, typer.Argument(help="Another run.")],
    journal: opt.JournalOption = opt.DEFAULT_JOURNAL,
) -> None:
    """Say how two runs differ, call by call. Exits with 1 when they do."""

    async def read() -> list[list[CallRow]]:
        async with aclosing(opt.open_journal(journal)) as store:
            rows = [await opt.find_run(store, name) for name in (first, second)]
            return [await store.calls(row.run_id) for row in rows]

    one, other = ({row.key: row for row in rows} for rows in anyio.run(read))
    table = new_table("call", "difference", "took", "was")
    for key in [*one, *(key for key in other if key not in one)]:
        words = _difference(one.get(key), other.get(key))
        if words:
            times = [duration(row.duration) if row is not None else "" for row in (other.get(key), one.get(key))]
            table.add_row(Text(plain(key or "the graph")), Text(plain(words)), *times)
    console().print(table if table.row_count else "the same calls with the same inputs and outputs")
    raise typer.Exit(1 if table.row_count else 0)


def _difference(one: CallRow | None, other: CallRow | None) -> str:
    """What changed from one call to the other, in words; empty when nothing did."""
    if one is None:
        return "only in the second run"
    if other is None:
        return "only in the first run"
    parts = [name for name in ("status", "input", "output", "error") if getattr(one, name) != getattr(other, name)]
    before, after = json.loads(one.parts), json.loads(other.parts)
    parts += [name.removeprefix("the ") for name in after if before.get(name) != after[name]]
    return ", ".join(parts)
