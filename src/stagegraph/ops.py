"""What happens inside one stage call: model requests and tool calls, kept so that a crash loses none that was paid for.

A request is known by what it asks, a tool call by the id that the model's (recorded) answer gave it, and both by the
call's place and content: identical calls that run at once keep their own answers, in whatever order they go on.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from pydantic_ai import DeferredToolResults, ModelRetry
from pydantic_ai.durable_exec import record_durable_unit
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse, ToolCallPart
from pydantic_core import PydanticSerializationError

from .journal._identity import hashed
from .journal._rows import Journal, OpRow
from .json_form import encodable

if TYPE_CHECKING:
    from .record import Entry

__all__ = ["OpMemory", "json_of"]

_PASSING = {"timestamp", "run_id", "conversation_id", "instructions", "metadata"}
"""Fields of a message that differ between two runs that ask the same."""


@cache
def _responses() -> TypeAdapter[ModelResponse]:
    return TypeAdapter(ModelResponse)


@cache
def _tool_results() -> TypeAdapter[Any]:
    from pydantic_ai.durable_exec import CallToolResult  # noqa: PLC0415 - a twentieth of the time to import us

    return TypeAdapter(CallToolResult)


@cache
def _answers() -> TypeAdapter[DeferredToolResults]:
    return TypeAdapter(DeferredToolResults)


class OpMemory:
    """The requests and tool calls of one stage call, recorded and recalled."""

    def __init__(self, journal: Journal, run_id: str, entry: Entry, identity: str, known: Mapping[str, OpRow]) -> None:
        self._journal = journal
        self._run_id = run_id
        self._entry = entry
        self._identity = identity
        self._known = dict(known)
        self._asked: dict[str, int] = {}

    async def answers(self, given: DeferredToolResults | None) -> DeferredToolResults | None:
        """The answers to what the agent asked, kept before they are used, so that a crash does not ask them again."""
        if given is not None:
            await self._keep("answers", "", _answers().dump_json(given, fallback=repr).decode())
            return given
        known = self._known.get("answers")
        return None if known is None else _answers().validate_json(known.payload)

    async def request(self, messages: list[ModelMessage], ask: Callable[[], Awaitable[ModelResponse]]) -> ModelResponse:
        """The recorded answer to this request, or a new one, recorded before anybody acts on it."""
        digest = _digest(messages)
        number = self._asked[digest] = self._asked.get(digest, -1) + 1
        op = f"request:{digest}#{number}"
        known = self._known.get(op)
        if known is not None:
            record_durable_unit(executed=False)
            response = _responses().validate_json(known.payload)
            self._entry.use.unpriced |= response.usage.cost is None
            return response
        response = await ask()
        await self._keep(op, digest, json_of(_responses(), response))
        record_durable_unit(executed=True)
        return response

    async def tool(self, call: ToolCallPart, execute: Callable[[], Awaitable[Any]]) -> Any:
        """The recorded result of this tool call, or the result of running it now (at least once)."""
        op, digest = f"tool:{call.tool_call_id}", hashed(call.tool_name, call.args_as_json_str())
        known = self._known.get(op)
        if known is not None and known.digest == digest:
            record_durable_unit(executed=False)
            return _recalled(known.payload)
        try:
            result = await execute()
            outcome: dict[str, Any] = {"kind": "tool_return", "result": result}
        except ModelRetry as error:
            await self._keep_outcome(op, digest, {"kind": "model_retry", "message": error.message})
            raise
        except ToolFailed as error:
            await self._keep_outcome(op, digest, {"kind": "tool_failed", "message": error.message})
            raise
        await self._keep_outcome(op, digest, outcome)
        record_durable_unit(executed=True)
        return result

    async def _keep_outcome(self, op: str, digest: str, outcome: dict[str, Any]) -> None:
        try:
            payload = json_of(_tool_results(), _tool_results().validate_python(outcome))
        except (PydanticSerializationError, ValueError):
            return  # a result that cannot be written down is computed again after a crash
        await self._keep(op, digest, payload)

    async def _keep(self, op: str, digest: str, payload: str) -> None:
        row = OpRow(
            run_id=self._run_id, key=self._entry.key, identity=self._identity, op=op, digest=digest, payload=payload
        )
        await self._journal.put(row)


def json_of(adapter: TypeAdapter[Any], value: object) -> str:
    """A value as JSON text; half a surrogate pair, which a model may well send, is replaced.

    Raises:
        PydanticSerializationError: there is something in it that cannot be written down.
    """
    try:
        return adapter.dump_json(value).decode()
    except PydanticSerializationError:
        return encodable(json.dumps(adapter.dump_python(value, mode="json"), ensure_ascii=False))


def _recalled(payload: str) -> Any:
    outcome = _tool_results().validate_json(payload)
    if outcome.kind == "model_retry":
        raise ModelRetry(outcome.message)
    if outcome.kind == "tool_failed":
        raise ToolFailed(outcome.message)
    return outcome.result


def _digest(messages: list[ModelMessage]) -> str:
    """What a request asks: its last message, and how many came before (earlier answers are recorded themselves)."""
    last = ModelMessagesTypeAdapter.dump_python(messages[-1:], mode="json")
    return hashed(str(len(messages)), json.dumps(_lasting(last), sort_keys=True))


def _lasting(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _lasting(value) for name, value in data.items() if name not in _PASSING}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(data, list):
        return [_lasting(value) for value in data]  # pyright: ignore[reportUnknownVariableType]
    return data
