"""Durable model requests and tool calls of one stage call: recorded, so that a crash loses none that was paid for.

A request is identified by its content, a tool call by its position in the conversation, and both belong to the key and
identity of their stage call: identical calls that run at once keep their own answers, in whatever order they continue.

An attempt recalls the answers of earlier attempts, in this process or in another one, so only what failed is made
again. If that leads to the same failure, the next attempt starts afresh, with records of its own.

A suspended call waits for answers to its deferred tool calls, which may come one by one. They are recorded before they
are used, under the number of messages before the deferral: an agent that defers twice, even with the same tool call id,
never takes the answer to one deferral for the other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from pydantic import ConfigDict, TypeAdapter
from pydantic_ai import DeferredToolResults, ModelRetry
from pydantic_ai.durable_exec import record_durable_unit
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse, ToolCallPart, ToolReturnPart
from pydantic_ai.usage import RunUsage

from stagegraph.data.call import load_pending, path_of
from stagegraph.data.usage import USAGE
from stagegraph.record.rows import Journal, OpRow
from stagegraph.schema.serialize import NO_JSON, hashed, json_of, without_json

if TYPE_CHECKING:
    from stagegraph.data.call import Pending
    from stagegraph.record.rows import Recorded

_log = logging.getLogger("stagegraph")

_VARYING = {"timestamp", "run_id", "conversation_id", "instructions", "metadata"}
"""Fields of a message that differ between two runs that ask the same."""


@cache
def _adapter(of: Any) -> TypeAdapter[Any]:
    return TypeAdapter(of)


@cache
def _tool_results() -> TypeAdapter[Any]:
    from pydantic_ai.durable_exec import CallToolResult  # noqa: PLC0415 - a twentieth of the time to import us

    # Bytes as in messages, and every number: a recalled result must look like the one that the model was shown.
    config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")
    return TypeAdapter(CallToolResult, config=config)


class DurableOperations:
    """The requests and tool calls of one stage call, recorded and recalled."""

    def __init__(self, journal: Journal, run_id: str, key: str, identity: str, recorded: Recorded | None) -> None:
        self.recorded = recorded
        """What the journal has of this call."""
        self._journal = journal
        self._run_id = run_id
        self._key = key
        self._identity = identity
        self._known = {} if recorded is None else dict(recorded.ops)
        self._counted: set[str] = set()
        self._restarts = 0
        self.attempt_began()

    def attempt_began(self) -> None:
        """Another attempt goes through the same conversation from its start."""
        self._times: dict[str, int] = {}
        self._recalled = 0
        self._made = 0
        self.overcounted = RunUsage()
        """What Pydantic AI counts for this attempt and must not count: answers that an earlier attempt has paid for.
        Recalled tool calls are not counted by Pydantic AI; those that no attempt has counted are negative in here."""

    def start_afresh(self) -> None:
        """Recall nothing that was recorded so far, since it leads to the same failure."""
        self._restarts += 1

    @property
    def only_recalled(self) -> bool:
        """Whether every answer of this attempt was recalled, so that a repetition would end the same way."""
        return self._recalled > 0 and self._made == 0

    @asynccontextmanager
    async def request(self, messages: list[ModelMessage], answers: list[ModelResponse]) -> AsyncGenerator[None]:
        """Around a request: *answers* gets the recorded answer, or the new one in it is recorded before it is used."""
        digest = _digest(messages)
        if digest is None:
            self._made += 1
            _say_unrecorded(path_of(self._key), "a request to the model")
            yield
            return
        op = self._named(f"request:{digest}")
        if (known := self._recall(op)) is not None:
            record_durable_unit(executed=False)
            response: ModelResponse = _adapter(ModelResponse).validate_json(known.payload)
            if op in self._counted:
                self.overcounted.incr(RunUsage(requests=1))
                self.overcounted.incr(response.usage)
            answers.append(response)
            yield
        else:
            self._made += 1
            yield
            for response in answers:
                await self._keep_if_json(op, digest, _adapter(ModelResponse), response)
                record_durable_unit(executed=True)
        self._counted.add(op)

    async def tool(self, call: ToolCallPart, turn: int, execute: Callable[[], Awaitable[Any]]) -> Any:
        """The recorded result of this tool call, or the result of running it now (at least once).

        *turn* is the number of messages before it: some providers use the same ids again in every turn.
        """
        try:
            args = call.args_as_json_str()
        except ValueError:  # half a surrogate pair
            args = json.dumps(call.args_as_dict(), default=repr)
        digest = hashed(call.tool_name, args)
        op = self._named(f"tool:{call.tool_call_id}:{turn}:{digest}")
        known = self._recall(op) or self._recall_unnumbered(call.tool_call_id, op, digest)
        if known is not None:
            record_durable_unit(executed=False)
            result = _recalled(known.payload)
            self.overcounted.tool_calls -= op not in self._counted
            self._counted.add(op)
            return result
        self._made += 1
        try:
            result = await execute()
        except (ModelRetry, ToolFailed) as error:
            kind = "model_retry" if isinstance(error, ModelRetry) else "tool_failed"
            await self._keep_if_json(op, digest, _tool_results(), {"kind": kind, "message": error.message})
            raise
        await self._keep_if_json(op, digest, _tool_results(), {"kind": _kind_of(result), "result": result})
        record_durable_unit(executed=True)
        self._counted.add(op)
        return result

    async def keep(self, *ops: tuple[str, str, str]) -> None:
        """Record operations, each a name, a digest and a payload: all of them or none."""
        rows = [
            OpRow(run_id=self._run_id, key=self._key, identity=self._identity, op=op, digest=digest, payload=text)
            for op, digest, text in ops
        ]
        await self._journal.put(*rows)
        self._known.update((row.op, row) for row in rows)

    def _named(self, what: str) -> str:
        """The name of an operation in the journal: one conversation may ask the same several times."""
        number = self._times[what] = self._times.get(what, -1) + 1
        restart = f"~{self._restarts}" if self._restarts else ""
        return f"{what}#{number}{restart}"

    def _recall(self, op: str) -> OpRow | None:
        known = self._known.get(op)
        self._recalled += known is not None
        return known

    def _recall_unnumbered(self, call_id: str, op: str, digest: str) -> OpRow | None:
        """A result as journals had it before turns were numbered; it belongs to the first call with this id."""
        before = self._known.get(f"tool:{call_id}")
        if before is None or before.digest != digest or self._restarts:
            return None
        del self._known[before.op]
        self._known[op] = before
        return self._recall(op)

    async def _keep_if_json(self, op: str, digest: str, adapter: TypeAdapter[Any], result: object) -> None:
        try:
            payload = json_of(adapter, adapter.validate_python(result))
        except ValueError:
            _say_unrecorded(path_of(self._key), f"what `{op.partition(':')[0]}` gave")
            return  # a result that JSON cannot hold is computed again after a crash
        await self.keep((op, digest, payload))


def _kind_of(result: object) -> str:
    """How a result is recorded: a dictionary may look like a `ToolReturn` in JSON without being one."""
    data = cast("dict[str, object]", result) if isinstance(result, dict) else {}
    return "tool_content_result" if data.get("kind") == "tool-return" else "tool_return"


def _recalled(payload: str) -> Any:
    outcome = _tool_results().validate_json(payload)
    if outcome.kind == "model_retry":
        raise ModelRetry(outcome.message)
    if outcome.kind == "tool_failed":
        raise ToolFailed(outcome.message)
    return outcome.result


@cache
def _say_unrecorded(path: str, what: str) -> None:
    _log.warning(
        "%s in stage `%s` has no record, since an object in it has no JSON: after a crash it is made again", what, path
    )


def _digest(messages: list[ModelMessage]) -> str | None:
    """What a request asks: its last message, and how many came before (earlier answers are recorded themselves).

    The digest is taken of the message as it would be recalled, where a tool's `datetime` is a text and half a surrogate
    pair a question mark: the request that contains them is the same. Metadata is not shown to a model; any other object
    without JSON leaves the request without a digest.
    """
    text = json_of(ModelMessagesTypeAdapter, messages[-1:], fallback=without_json)
    last: Any = json.loads(text)
    if any(isinstance(part, ToolReturnPart) for part in messages[-1].parts):
        last = ModelMessagesTypeAdapter.dump_python(ModelMessagesTypeAdapter.validate_json(text), mode="json")
    asked = json.dumps(_stable(last), sort_keys=True)
    return None if NO_JSON in asked else hashed(str(len(messages)), asked)


def _stable(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _stable(value) for name, value in data.items() if name not in _VARYING}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(data, list):
        return [_stable(value) for value in data]  # pyright: ignore[reportUnknownVariableType]
    return data


# -- deferred tool calls


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
        if row.status == "suspended" and row.pending:  # else a graph waits that one of its tools has called
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
                answers.update(_adapter(DeferredToolResults).validate_json(one.payload))
        pending = load_pending(json.dumps(data["pending"]))
        still_open = tuple(one for one in pending if one.tool_call_id not in {*answers.approvals, *answers.calls})
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
            kept.append(
                (
                    _answer(number, one.tool_call_id),
                    "",
                    _adapter(DeferredToolResults).dump_json(answer, fallback=repr).decode(),
                )
            )
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
