"""A recorded run, read back from a journal as the typed `Run` it was."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_ai.messages import ModelMessagesTypeAdapter
from pydantic_ai.usage import RunUsage

from stagegraph.data.call import Call, CallError
from stagegraph.data.score import Feedback
from stagegraph.data.usage import USAGE, summed
from stagegraph.nodes.node import Tree

from . import deferred as asking
from .edges import follow_contents
from .run import Run

if TYPE_CHECKING:
    from stagegraph.nodes.node import Node
    from stagegraph.schema.schema import Schema

    from .rows import CallRow, FeedbackRow, Journal, RunRow

__all__ = ["call_tree", "feedback_of", "run_of", "stored_run"]


async def stored_run(journal: Journal, row: RunRow, graph: Node[Any, Any]) -> Run[Any, Any]:
    """The run as it stands in the journal; a value that no longer fits its type is given as plain data."""
    return run_of(row, await journal.calls(row.run_id), await journal.feedback(row.run_id), graph)


def run_of(row: RunRow, calls: list[CallRow], scores: list[FeedbackRow], graph: Node[Any, Any]) -> Run[Any, Any]:
    """The same from rows that are at hand."""
    tree = graph.__node__.tree
    root = call_tree(calls, tree) or _bare_root(row, tree)
    labels = json.loads(row.labels)
    return Run(
        id=row.run_id,
        graph=row.graph,
        status=row.status,
        input=root.input,
        output=root.output,
        error=_error(row),
        started=datetime.fromtimestamp(row.started, UTC),
        duration=row.duration,
        metadata=labels["metadata"],
        tags=tuple(labels["tags"]),
        session_id=labels["session_id"],
        user_id=labels["user_id"],
        pending=tuple(one for call in calls if call.pending is not None for one in asking.load(call.pending)),
        feedback=tuple(map(feedback_of, scores)),
        prompts_digest=row.prompts_digest,
        tree=tree,
        read_root=lambda: root,
        read_edges=lambda: follow_contents(root),
    )


def feedback_of(row: FeedbackRow) -> Feedback:
    """One recorded score."""
    moment = datetime.fromtimestamp(row.time, UTC)
    return Feedback(name=row.name, value=json.loads(row.value), key=row.key, comment=row.comment, time=moment)


def call_tree(rows: list[CallRow], tree: Tree | None) -> Call | None:
    """The calls of a run, without a tree as plain JSON data; `None` when none was written."""
    children: dict[str, list[Call]] = {}
    for row in sorted(rows, key=lambda row: row.position, reverse=True):
        inside = children.pop(row.key, [])
        inside.reverse()
        call = _call(row, tuple(inside), tree)
        if row.parent is None:
            return call
        children.setdefault(row.parent, []).append(call)
    return None


def _call(row: CallRow, children: tuple[Call, ...], tree: Tree | None) -> Call:
    node = tree.nodes.get(row.path) if tree is not None else None
    usage, cost = USAGE.validate_json(row.usage), None if row.cost is None else Decimal(row.cost)
    if children:
        usage, cost = summed(children)
    return Call(
        path=row.path,
        key=row.key,
        kind=row.kind,
        status=row.status,
        input=_value(node.__node__.input_type if node is not None else None, row.input),
        output=_value(node.__node__.output_type if node is not None else None, row.output),
        error=_error(row),
        usage=usage,
        cost=cost,
        started=datetime.fromtimestamp(row.started, UTC),
        duration=row.duration,
        attempts=row.attempts,
        messages=tuple(ModelMessagesTypeAdapter.validate_json(row.messages)),
        children=children,
        replayed=row.replayed,
    )


def _bare_root(row: RunRow, tree: Tree) -> Call:
    """The root of a run that was interrupted before its first call was written."""
    root = tree.root
    name = "" if root.__node__.kind == "graph" else root.__node__.name
    return Call(
        path=name,
        key=name,
        kind=root.__node__.kind,
        status=row.status,
        input=_value(root.__node__.input_type, row.input),
        output=None,
        error=_error(row),
        usage=RunUsage(),
        cost=Decimal(0),
        started=datetime.fromtimestamp(row.started, UTC),
        duration=row.duration,
    )


def _value(schema: Schema | None, text: str | None) -> Any:
    if text is None:
        return None
    data = json.loads(text)
    if schema is None:
        return data
    try:
        return schema.recall(data)
    except ValidationError:
        return data


def _error(row: RunRow | CallRow) -> CallError | None:
    return None if row.error_type is None else CallError(row.error_type, row.error or "")
