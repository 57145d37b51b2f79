"""Deferred tool calls of a suspended stage call: what its agent waits for, and the answers, which may come one by one.

Answers are recorded before they are used, under the number of messages before the deferral. An agent that defers
twice, even with the same tool call id, never takes the answer to one deferral for the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pydantic import TypeAdapter
from pydantic_ai import DeferredToolResults
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter

from stagegraph.data.call import load_pending
from stagegraph.data.usage import USAGE

if TYPE_CHECKING:
    from pydantic_ai.usage import RunUsage

    from stagegraph.data.call import Pending
    from stagegraph.record.rows import Journal, Recorded

    from .durable import DurableOperations


@cache
def _answers() -> TypeAdapter[DeferredToolResults]:
    return TypeAdapter(DeferredToolResults)


@dataclass(frozen=True, slots=True)
class Deferral:
    """Where an agent continues as soon as everything is answered."""

    text: str
    """JSON: the messages before it, the usage until then, and the deferred tool calls."""
    history: list[ModelMessage]
    usage: RunUsage
    open: tuple[Pending, ...]
    """The tool calls without an answer."""
    answers: DeferredToolResults

    @classmethod
    def last(cls, found: Recorded | None) -> Deferral | None:
        """Where a recorded call continues: the deferral in its row, or the last one that was answered."""
        if found is None:
            return None
        row = found.row
        if row.status == "suspended":
            text = f'{{"messages": {row.messages}, "usage": {row.usage}, "pending": {row.pending or "[]"}}}'
        else:
            kept = {int(op.partition(":")[2]): one for op, one in found.ops.items() if op.startswith("question:")}
            if not kept:
                return None
            text = kept[max(kept)].payload
        data = json.loads(text)
        history = ModelMessagesTypeAdapter.validate_json(json.dumps(data["messages"]))
        answers = DeferredToolResults()
        for op, one in found.ops.items():
            if op.startswith(_answer(len(history), "")):
                answers.update(_answers().validate_json(one.payload))
        pending = load_pending(json.dumps(data["pending"]))
        still_open = tuple(one for one in pending if one.tool_call_id not in _ids(answers))
        return cls(text, history, USAGE.validate_python(data["usage"]), still_open, answers)

    async def answered(self, given: Mapping[str, object], durable: DurableOperations) -> tuple[Pending, ...]:
        """Record new answers, so that they survive a crash; returns what is still open.

        The deferral is recorded with them, since a later failure overwrites the row of the call.
        """
        new = [one for one in self.open if one.tool_call_id in given]
        number = len(self.history)
        kept: list[tuple[str, str, str]] = []
        for one in new:
            answer = DeferredToolResults()
            of_kind = answer.approvals if one.kind == "approval" else answer.calls
            of_kind[one.tool_call_id] = given[one.tool_call_id]  # pyright: ignore[reportArgumentType] - `record.deferred.check` has checked it
            kept.append((_answer(number, one.tool_call_id), "", _answers().dump_json(answer, fallback=repr).decode()))
            self.answers.update(answer)
        if kept:
            await durable.keep((f"question:{number}", "", self.text), *kept)
        return tuple(one for one in self.open if one not in new)


async def unanswered_in(journal: Journal, run_id: str, pending: tuple[Pending, ...]) -> tuple[Pending, ...]:
    """The part of *pending* without a recorded answer: a process may have ended after an answer was recorded."""
    ops = {(op.key, op.identity, op.op) for op in await journal.ops(run_id)}
    rows = {row.key: row for row in await journal.calls(run_id)}

    def is_open(one: Pending) -> bool:
        row = rows[one.key]
        name = _answer(len(json.loads(row.messages)), one.tool_call_id)
        return (row.key, row.identity, name) not in ops

    return tuple(filter(is_open, pending))


def _answer(number: int, tool_call_id: str) -> str:
    return f"answer:{number}:{tool_call_id}"


def _ids(answers: DeferredToolResults) -> set[str]:
    return {*answers.approvals, *answers.calls}
