"""Calls as rows, and rows as calls: where a field of a call is written, and where it is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_ai.messages import ModelMessagesTypeAdapter
from pydantic_ai.usage import RequestUsage, RunUsage

from stagegraph.data.call import Call, CallError, Pending, dump_pending
from stagegraph.data.usage import NO_MODEL, USAGE, ModelUse, summed
from stagegraph.schema.errors import first_problem
from stagegraph.schema.schema import Record, plain
from stagegraph.schema.serialize import escaped, json_of, without_json

from .rows import CallRow, DamagedError, OpRow, RunRow

if TYPE_CHECKING:
    from stagegraph.nodes.node import Declaration, Tree
    from stagegraph.schema.schema import Schema

    from .rows import Journal

_TYPES = {one.name: one.type for one in fields(CallRow)}
_SAME = tuple(one.name for one in fields(Call) if _TYPES.get(one.name) == one.type)
"""The fields that a call and its row declare with one type."""
GUEST = "~"
"""In the name of a graph that an agent called in a flow, between the nodes that the graph of the flow declares."""
_OF_RUN = ("run_id", "status", "input", "input_whole", "error_type", "error", "started", "duration")
"""The fields that the root call has in common with its run while no calls are recorded."""


def call_rows(root: Call, tree: Tree, run_id: str, pending: Iterable[Pending] = ()) -> list[CallRow]:
    """The rows of a tree of calls, in the order in which the calls began.

    Raises:
        ValueError: a value has no JSON; the message names the call.
    """
    asked: dict[str, list[Pending]] = {}
    for one in pending:
        asked.setdefault(one.key, []).append(one)
    parents = {id(child): call.key for call in root.walk() for child in call.children}
    rows: list[CallRow] = []
    for position, call in enumerate(sorted(root.walk(), key=lambda call: call.started)):
        found = tree.nodes.get(call.path)
        node = None if found is None else found.__node__
        try:
            given = _record(node and node.input_type, call.input)
            output = _record(node and node.output_type, call.output) if call.status == "succeeded" else None
        except ValueError as error:
            reason = str(error).splitlines()[0]
            where = call.key or tree.root.__node__.name
            msg = (
                f"call `{where}`: a value cannot be written as JSON: {reason}; give it a serializer "
                "(bytes: give its model `ConfigDict(ser_json_bytes='base64', val_json_bytes='base64')`)"
            )
            raise ValueError(msg) from error
        same: dict[str, Any] = {name: getattr(call, name) for name in _SAME}
        row = CallRow(
            run_id=run_id,
            parent=parents.get(id(call)),
            position=position,
            input=given.plain,
            output=None if output is None else output.plain,
            input_whole=given.whole,
            output_whole=None if output is None else output.whole,
            started=call.started.timestamp(),
            duration=call.duration,
            cost="0",
            pending=dump_pending(asked[call.key]) if call.key in asked else None,
            **same,
        )
        if call.error is not None:
            row.error_type, row.error = call.error.type, escaped(call.error.message)
            row.origin, row.transient = call.error.origin, call.error.transient
        if call.kind == "stage":
            inside, cost = summed(call.children)
            usage = call.usage - inside if call.children else call.usage
            row.usage = USAGE.dump_json(usage, exclude_defaults=True).decode()
            row.cost = None if call.cost is None else str(call.cost - (cost or 0))
            row.messages = json_of(ModelMessagesTypeAdapter, list(call.messages), fallback=without_json)
        rows.append(row)
    return rows


def _record(schema: Schema | None, value: object) -> Record:
    if schema is None:
        return Record(json.dumps(plain(value)), None)
    found = schema.recorded(value)
    if not found.holds and schema.is_instance(value):
        schema.check_written(value)
    return found


def root_call(row: RunRow, calls: Iterable[CallRow], tree: Tree, *, strict: bool = False) -> Call:
    """The calls of a run as a tree, typed by *tree*; a run that was interrupted at once has a root without calls.

    A value that does not fit its type is given as plain data, or refused if *strict*.

    Raises:
        ValueError: a row cannot be read, or (*strict*) does not fit *tree*; the message names the call.
    """
    node = tree.root.__node__
    name = "" if node.kind == "graph" else node.name
    same: dict[str, Any] = {name: getattr(row, name) for name in _OF_RUN}
    begun = CallRow(key=name, path=name, kind=node.kind, parent=None, position=0, cost="0", **same)
    return call_tree(calls, tree, strict=strict) or _Reader(tree, strict=strict).call(begun, {})


def call_tree(rows: Iterable[CallRow], tree: Tree | None, *, strict: bool = False) -> Call | None:
    """The same, without a tree as plain JSON data; `None` where no call was written."""
    inside: dict[str | None, list[CallRow]] = {}
    for row in sorted(rows, key=lambda row: row.position):
        inside.setdefault(row.parent, []).append(row)
    roots = inside.pop(None, [])
    root = _Reader(tree, strict=strict).call(roots[0], inside) if roots else None
    if strict and (inside or len(roots) != 1):
        lost = sorted(row.key for rows in (roots[1:], *inside.values()) for row in rows)
        msg = f"it has calls without a parent: {lost}" if lost else "it has no calls"
        raise ValueError(msg)
    return root


class _Reader:
    """Reads the calls of one run."""

    def __init__(self, tree: Tree | None, *, strict: bool) -> None:
        self._tree = tree
        self._strict = strict

    def call(self, row: CallRow, inside: dict[str | None, list[CallRow]]) -> Call:
        """A call with those inside it, whose rows it takes out of *inside* (key of the parent -> rows)."""
        children = tuple(self.call(child, inside) for child in inside.pop(row.key, ()))
        node = self._node(row)
        input_type, output_type = (None, None) if node is None else (node.input_type, node.output_type)
        usage = NO_MODEL.usage if row.usage == "{}" else USAGE.validate_json(row.usage)
        cost = None if row.cost is None else Decimal(row.cost)
        if children:
            own = [ModelUse(usage, unpriced=cost is None)] if row.kind == "stage" else []
            usage, cost = summed((*own, *children))
        try:
            messages = tuple(ModelMessagesTypeAdapter.validate_json(row.messages))
        except ValidationError as error:
            if self._strict:
                raise self._misfit(row, "messages", "cannot be read", error) from error
            messages = ()
        same: dict[str, Any] = {name: getattr(row, name) for name in _SAME}
        return Call(
            input=self._value(row, "input", input_type, row.input, row.input_whole),
            output=self._value(row, "output", output_type, row.output, row.output_whole)
            if row.status == "succeeded"
            else None,
            error=error_of(row),
            usage=usage,
            cost=cost,
            started=datetime.fromtimestamp(row.started, UTC),
            duration=row.duration,
            messages=messages,
            children=children,
            **same,
        )

    def _node(self, row: CallRow) -> Declaration | None:
        node = None if self._tree is None else self._tree.nodes.get(row.path)
        if self._strict and node is None and not self._called_by_agent(row.path):
            msg = f"it has a call `{row.key}` of `{row.path}`, which {self._name} does not declare"
            raise ValueError(msg)
        return None if node is None else node.__node__

    def _called_by_agent(self, path: str) -> bool:
        """Whether an agent in a stage or step called a graph here: the tree does not have each of them."""
        parts = path.split(".")
        above = [self._tree.nodes.get(".".join(parts[:end])) for end in range(1, len(parts))] if self._tree else []
        return any(one is not None and one.__node__.kind != "graph" for one in above) or GUEST in path

    def _value(self, row: CallRow, what: str, schema: Schema | None, text: str | None, whole: str | None) -> Any:
        text = text or "null"
        if schema is None:
            return json.loads(text)
        try:
            return schema.recall(text, whole)
        except ValueError as error:
            # A failed call may have failed because of its input; a hidden part may be what the type requires.
            if self._strict and row.status == "succeeded" and whole != "" and not schema.traits.hides:
                raise self._misfit(row, what, f"is no {schema.name}", error) from error
            return json.loads(text)

    @property
    def _name(self) -> str:
        return "the graph" if self._tree is None else self._tree.root.__node__.name

    def _misfit(self, row: CallRow, what: str, problem: str, error: ValueError) -> ValueError:
        reason = first_problem(error) if isinstance(error, ValidationError) else error
        return ValueError(f"{what} of `{row.key or self._name}` {problem}: {reason}")


class _Answered(BaseModel):
    """The part of a recorded answer that says what it cost."""

    usage: RequestUsage = Field(default_factory=RequestUsage)


def paid(ops: Iterable[OpRow]) -> dict[str, RunUsage]:
    """Key of a stage call -> usage of the answers that it got, also of those that a killed process left behind."""
    found: dict[str, RunUsage] = {}
    for op in ops:
        if op.op.startswith("request:"):
            usage = found.setdefault(op.key, RunUsage())
            usage.incr(RunUsage(requests=1))
            with suppress(ValidationError):  # whatever it cost, it was a request
                usage.incr(_Answered.model_validate_json(op.payload).usage)
    return found


async def rows_so_far(journal: Journal, row: RunRow) -> tuple[RunRow, list[CallRow]]:
    """The rows of a run and its calls; while it has not ended, with what it has spent so far.

    The journal writes what a run and a call have spent when they end, and each answer when it comes.
    """
    calls = await journal.calls(row.run_id)
    if row.status != "running":
        return row, calls
    answered = paid(await journal.ops(row.run_id))
    for place, call in enumerate(calls):
        if call.status == "running" and (spent := answered.get(call.key)) is not None:
            text, cost = USAGE.dump_json(spent, exclude_defaults=True).decode(), spent.cost
            calls[place] = replace(call, usage=text, cost=None if cost is None else str(cost))
    usage = RunUsage()
    for call in calls:
        usage.incr(USAGE.validate_json(call.usage))
    last = max((call.started + call.duration for call in calls), default=row.started)
    so_far = replace(
        row,
        duration=max(0.0, last - row.started),
        requests=usage.requests,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost=str(usage.cost or 0) if all(call.cost is not None for call in calls) else None,
    )
    return so_far, calls


async def listed(journal: Journal, row: RunRow) -> RunRow:
    """A run for a list: with what it has spent so far, unless its calls are damaged."""
    if row.status == "running":
        with suppress(DamagedError):
            row, _ = await rows_so_far(journal, row)
    return row


def error_of(row: RunRow | CallRow) -> CallError | None:
    """The error of a run or a call that failed."""
    if row.error_type is None:
        return None
    if isinstance(row, RunRow):
        return CallError(row.error_type, row.error or "", cause=row.read_labels().cause)
    return CallError(row.error_type, row.error or "", row.transient, row.origin)
