"""`stagegraph show`: one recorded run as a tree, one call of it, or a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer
from rich.text import Text
from rich.tree import Tree

from ._langfuse import LangfuseOption, page_from_langfuse
from ._place import writable
from ._stored import DEFAULT_JOURNAL, JournalOption, find_run, open_journal
from ._text import console, mark, plain, print_json, question, styled_status, took

if TYPE_CHECKING:
    from stagegraph.journal import CallRow, FeedbackRow, RunRow

__all__ = ["show"]

_SHOWN = 20
"""Siblings of one path that are shown in full; failed ones are always shown."""


def show(
    run: Annotated[str, typer.Argument(help="A run id, the beginning of one, or `last`.")],
    call: Annotated[
        str | None, typer.Option(metavar="KEY", help="Show what this call was given, said and gave.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page.", callback=writable)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show every call of a wide fan-out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    langfuse: LangfuseOption = False,
    journal: JournalOption = DEFAULT_JOURNAL,
) -> None:
    """Look into a recorded run."""

    async def read() -> tuple[RunRow, list[CallRow], list[FeedbackRow]]:
        if langfuse:
            return await page_from_langfuse(run)
        store = open_journal(journal)
        try:
            row = await find_run(store, run)
            return row, await store.calls(row.run_id), await store.feedback(row.run_id)
        finally:
            await store.aclose()

    row, calls, scores = anyio.run(read)
    if html is not None:
        from stagegraph.draw import run_page  # noqa: PLC0415

        html.touch(mode=0o600)  # every value of the run is in it; a file that was there keeps its mode
        html.write_text(run_page(row, calls, scores), encoding="utf-8")
        console(stderr=True).print(Text(plain(f"wrote {html}")))
    elif call is not None:
        _show_call(row, calls, scores, call, as_json=as_json)
    elif as_json:
        print(json.dumps({"run": _decoded(row), "calls": [_decoded(one) for one in calls]}, ensure_ascii=False))  # noqa: T201
    else:
        _show_run(row, calls, scores, everything=everything)


def _show_run(row: RunRow, calls: list[CallRow], scores: list[FeedbackRow], *, everything: bool) -> None:
    out = console()
    cost = "unknown" if row.cost is None else f"${float(row.cost):.4f}"
    out.print(
        Text.assemble((plain(row.graph), "bold"), " ", plain(row.run_id), " "),
        styled_status(row.status),
        f"{took(row.duration)}, {len(calls)} calls, {row.requests} requests, "
        f"{row.input_tokens} + {row.output_tokens} tokens, cost {cost}",
    )
    if row.error is not None:
        out.print(Text(plain(row.error), "red"))
    for score in scores:
        comment = f" ({score.comment})" if score.comment else ""
        place = f" for {score.key}" if score.key else ""
        out.print(Text(plain(f"feedback {score.name}={json.loads(score.value)}{place}{comment}"), "cyan"))
    children: dict[str | None, list[CallRow]] = {}
    for one in calls:
        children.setdefault(one.parent, []).append(one)
    for root in children.get(None, []):
        out.print(_branch(root, children, everything=everything))
    if row.status == "suspended":
        for one in calls:
            for asked in json.loads(one.pending or "[]"):
                place = f"{asked['key']}:{asked['tool_call_id']}"
                out.print(question(row.run_id, place, asked["kind"], asked["tool"], asked["args"]))


def _branch(call: CallRow, children: dict[str | None, list[CallRow]], *, everything: bool) -> Tree:
    tree = Tree(_line(call), guide_style="dim")
    inside = children.get(call.key, [])
    counts: dict[str, int] = {}
    hidden: dict[str, int] = {}
    for child in inside:
        counts[child.path] = counts.get(child.path, 0) + 1
        if everything or counts[child.path] <= _SHOWN or child.status != "succeeded":
            tree.add(_branch(child, children, everything=everything))
        else:
            hidden[child.path] = hidden.get(child.path, 0) + 1
    for path, count in hidden.items():
        tree.add(Text(plain(f"... {count} more calls of {path} (--all shows them)"), "dim"))
    return tree


def _line(call: CallRow) -> Text:
    usage = json.loads(call.usage)
    tokens = usage.get("input_tokens", 0) + usage.get("output_tokens", 0)
    notes = [took(call.duration)]
    if tokens:
        notes.append(f"{tokens} tokens")
    if call.cost not in (None, "0"):
        notes.append(f"${float(call.cost or 0):.4f}")
    if call.attempts > 1:
        notes.append(f"{call.attempts} attempts")
    if call.replayed:
        notes.append("replayed")
    line = Text.assemble(mark(call.status), " ", plain(call.key or "the graph"), ("  " + ", ".join(notes), "dim"))
    if call.error is not None and call.kind != "graph":
        line.append("  " + plain(" ".join(call.error.split()))[:160], "red")
    return line


def _show_call(row: RunRow, calls: list[CallRow], scores: list[FeedbackRow], key: str, *, as_json: bool) -> None:
    from stagegraph.schema.errors import JournalError  # noqa: PLC0415
    from stagegraph.schema.names import closest  # noqa: PLC0415

    found = next((one for one in calls if one.key == key), None)
    if found is None:
        msg = f"run {row.run_id} has no call `{key}`{closest(key, [one.key for one in calls])}"
        raise JournalError(msg)
    if as_json:
        print(json.dumps(_decoded(found), ensure_ascii=False))  # noqa: T201
        return
    out = console()
    out.print(_line(found))
    for score in scores:
        if score.key == key:
            out.print(Text(plain(f"feedback {score.name}={json.loads(score.value)} {score.comment or ''}"), "cyan"))
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
        out.print(Text(plain(f"{found.error_type}: {found.error}"), "red"))


def _decoded(row: RunRow | CallRow) -> dict[str, Any]:
    """A row as JSON data, its own JSON texts read."""
    texts = {"input", "output", "prompts", "labels", "parts", "usage", "messages", "prompt", "pending"}
    return {
        name: json.loads(value) if name in texts and value is not None else value
        for name in type(row).__slots__
        for value in [getattr(row, name)]
    }
