"""The page of one recorded run, made from its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagegraph.record.calls import call_tree, rows_so_far
from stagegraph.record.edges import follow_contents
from stagegraph.record.rows import CallRow, FeedbackRow, RunRecord, RunRow
from stagegraph.schema.errors import JournalError

from .html import Html, asset, document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stagegraph.record.rows import Journal

_NOT_SHOWN: dict[str, Any] = {
    "run": {"input", "output", "input_whole", "output_whole", "prompts", "model", "owner"},
    "calls": {
        "__all__": {
            *("run_id", "position", "identity", "parts", "source"),
            *("input_whole", "output_whole"),
        }
    },
    "feedback": {"__all__": {"id", "run_id", "time"}},
}
"""The fields of rows that the page does not use."""
_FOLLOWED = 3_000
"""Runs with more calls than this are drawn without their data flow, which would not be readable."""


async def page_of(journal: Journal, run_id: str) -> Html:
    """The page of a run in a journal; the code of the graph is not needed.

    Raises:
        JournalError: the journal has no such run.
    """
    row = await journal.run(run_id)
    if row is None:
        msg = f"there is no run {run_id!r} in this journal"
        raise JournalError(msg)
    return run_page(*await rows_so_far(journal, row), await journal.feedback(run_id))


def run_page(run: RunRow, calls: Sequence[CallRow], feedback: Sequence[FeedbackRow]) -> Html:
    """The page from a run's rows.

    Raises:
        JournalError: they are damaged.
    """
    try:
        root = call_tree(calls, None) if len(calls) <= _FOLLOWED else None
    except ValueError as error:
        msg = f"the record of run {run.run_id!r} is damaged: {error}"
        raise JournalError(msg) from error
    edges = follow_contents(root) if root is not None else []
    record = RunRecord(run=run, calls=list(calls), feedback=list(feedback), edges=edges)
    data = record.model_dump(exclude=_NOT_SHOWN, exclude_defaults=True)
    data["run"]["status"] = run.shown_status
    style, script, body = (asset("stagegraph.draw", f"run.{kind}") for kind in ("css", "js", "html"))
    return document(f"{run.graph} {run.run_id}", body, style=style, script=script, data=data)
