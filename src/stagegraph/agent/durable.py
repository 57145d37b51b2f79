"""What happens inside one stage call: model requests and tool calls, kept so that a crash loses none that was paid for.

A request is known by what it asks, a tool call by where in the conversation it stands, and both by the call's place and
content: identical calls that run at once keep their own answers, in whatever order they go on.

An attempt recalls what the ones before it were told, in this process or in another one, so only what failed is made
again. Where that leads to nothing but the same failure, the next attempt asks anew: every such *round* has records of
its own.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from pydantic import ConfigDict, TypeAdapter
from pydantic_ai import ModelRetry
from pydantic_ai.durable_exec import record_durable_unit
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse, ToolCallPart, ToolReturnPart
from pydantic_ai.usage import RunUsage
from pydantic_core import PydanticSerializationError

from stagegraph.record.rows import Journal, OpRow
from stagegraph.schema.serialize import encodable, hashed

if TYPE_CHECKING:
    from stagegraph.runner.state import Entry

__all__ = ["OpMemory", "json_of"]

_PASSING = {"timestamp", "run_id", "conversation_id", "instructions", "metadata"}
"""Fields of a message that differ between two runs that ask the same."""


@cache
def _responses() -> TypeAdapter[ModelResponse]:
    return TypeAdapter(ModelResponse)


@cache
def _tool_results() -> TypeAdapter[Any]:
    from pydantic_ai.durable_exec import CallToolResult  # noqa: PLC0415 - a twentieth of the time to import us

    # Bytes as messages have them, and no number lost: what is recalled has to read like what the model was shown.
    config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")
    return TypeAdapter(CallToolResult, config=config)


class OpMemory:
    """The requests and tool calls of one stage call, recorded and recalled."""

    def __init__(self, journal: Journal, run_id: str, entry: Entry, identity: str, known: Mapping[str, OpRow]) -> None:
        self._journal = journal
        self._run_id = run_id
        self._entry = entry
        self._identity = identity
        self._known = dict(known)
        self._counted: set[str] = set()
        self._round = 0
        self.begin()

    def begin(self) -> None:
        """Another attempt goes through the same conversation from its start."""
        self._times: dict[str, int] = {}
        self._recalled = 0
        self._made = 0
        self.miscounted = RunUsage()
        """What the agent's own count of this attempt has too much: answers that an earlier attempt was charged for. It
        leaves recalled tool calls out, so those that no attempt counted yet are negative here."""

    def ask_anew(self) -> None:
        """Recall nothing of what was recorded so far: it leads to nothing."""
        self._round += 1

    @property
    def only_recalled(self) -> bool:
        """Whether all that this attempt was told was on record, so that the same again would come to the same."""
        return self._recalled > 0 and self._made == 0

    async def request(self, messages: list[ModelMessage], ask: Callable[[], Awaitable[ModelResponse]]) -> ModelResponse:
        """The recorded answer to this request, or a new one, recorded before anybody acts on it."""
        digest = _digest(messages)
        op = self._named(f"request:{digest}")
        if (known := self._recall(op)) is not None:
            record_durable_unit(executed=False)
            response = _responses().validate_json(known.payload)
            self._entry.use.unpriced |= response.usage.cost is None
            if op in self._counted:
                self.miscounted.incr(RunUsage(requests=1))
                self.miscounted.incr(response.usage)
        else:
            self._made += 1
            response = await ask()
            await self.keep((op, digest, json_of(_responses(), response)))
            record_durable_unit(executed=True)
        self._counted.add(op)
        return response

    async def tool(self, call: ToolCallPart, turn: int, execute: Callable[[], Awaitable[Any]]) -> Any:
        """The recorded result of this tool call, or the result of running it now (at least once).

        *turn* is how many messages came before: there are providers that use the same ids again in every turn.
        """
        digest = hashed(call.tool_name, call.args_as_json_str())
        op = self._named(f"tool:{call.tool_call_id}:{turn}:{digest}")
        known = self._recall(op) or self._recall_unnumbered(call.tool_call_id, op, digest)
        if known is not None:
            record_durable_unit(executed=False)
            result = _recalled(known.payload)
            self.miscounted.tool_calls -= op not in self._counted
            self._counted.add(op)
            return result
        self._made += 1
        try:
            result = await execute()
            outcome = {"kind": _kind_of(result), "result": result}
        except ModelRetry as error:
            await self._keep_outcome(op, digest, {"kind": "model_retry", "message": error.message})
            raise
        except ToolFailed as error:
            await self._keep_outcome(op, digest, {"kind": "tool_failed", "message": error.message})
            raise
        await self._keep_outcome(op, digest, outcome)
        record_durable_unit(executed=True)
        self._counted.add(op)
        return result

    async def keep(self, *ops: tuple[str, str, str]) -> None:
        """Record names with digests and payloads, all of them or none."""
        rows = [
            OpRow(run_id=self._run_id, key=self._entry.key, identity=self._identity, op=op, digest=digest, payload=text)
            for op, digest, text in ops
        ]
        await self._journal.put(*rows)
        self._known.update((row.op, row) for row in rows)

    def _named(self, what: str) -> str:
        """The name under which this is on record: the same may be asked several times in one conversation."""
        number = self._times[what] = self._times.get(what, -1) + 1
        anew = f"~{self._round}" if self._round else ""
        return f"{what}#{number}{anew}"

    def _recall(self, op: str) -> OpRow | None:
        known = self._known.get(op)
        self._recalled += known is not None
        return known

    def _recall_unnumbered(self, call_id: str, op: str, digest: str) -> OpRow | None:
        """A result as journals had it before turns were numbered; it belongs to the first call with this id."""
        before = self._known.get(f"tool:{call_id}")
        if before is None or before.digest != digest or self._round:
            return None
        del self._known[before.op]
        self._known[op] = before
        return self._recall(op)

    async def _keep_outcome(self, op: str, digest: str, outcome: dict[str, Any]) -> None:
        try:
            payload = json_of(_tool_results(), _tool_results().validate_python(outcome))
        except (PydanticSerializationError, ValueError):
            return  # a result that cannot be written down is computed again after a crash
        await self.keep((op, digest, payload))


def json_of(adapter: TypeAdapter[Any], value: object) -> str:
    """A value as JSON text; half a surrogate pair, which a model may well send, is replaced.

    Raises:
        PydanticSerializationError: there is something in it that cannot be written down.
    """
    try:
        return adapter.dump_json(value).decode()
    except PydanticSerializationError:
        return encodable(json.dumps(adapter.dump_python(value, mode="json"), ensure_ascii=False))


def _kind_of(result: object) -> str:
    """How a result is written down: a dictionary may look like a `ToolReturn` as JSON without being one."""
    data = cast("dict[str, object]", result) if isinstance(result, dict) else {}
    return "tool_content_result" if data.get("kind") == "tool-return" else "tool_return"


def _recalled(payload: str) -> Any:
    outcome = _tool_results().validate_json(payload)
    if outcome.kind == "model_retry":
        raise ModelRetry(outcome.message)
    if outcome.kind == "tool_failed":
        raise ToolFailed(outcome.message)
    return outcome.result


def _digest(messages: list[ModelMessage]) -> str:
    """What a request asks: its last message, and how many came before (earlier answers are recorded themselves).

    It is taken of the message as it would be recalled. A tool's `datetime` comes back as a text, and half a surrogate
    pair as a question mark; the request that tells the model of them is the same.
    """
    text = json_of(ModelMessagesTypeAdapter, messages[-1:])
    last: Any = json.loads(text)
    if any(isinstance(part, ToolReturnPart) for part in messages[-1].parts):
        last = ModelMessagesTypeAdapter.dump_python(ModelMessagesTypeAdapter.validate_json(text), mode="json")
    return hashed(str(len(messages)), json.dumps(_lasting(last), sort_keys=True))


def _lasting(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _lasting(value) for name, value in data.items() if name not in _PASSING}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(data, list):
        return [_lasting(value) for value in data]  # pyright: ignore[reportUnknownVariableType]
    return data
