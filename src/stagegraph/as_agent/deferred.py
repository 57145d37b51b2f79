"""What a suspended run waits for, as tool calls that a front end shows to a person, and the answers to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic_ai import ExternalToolset, Tool, ToolDenied
from pydantic_ai.messages import ModelRequest, ToolCallPart, ToolReturnPart
from pydantic_ai.tools import ToolDefinition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_ai.messages import ModelMessage

    from stagegraph.data.call import Pending

_APPROVE = "approve_call"
_ANSWER = "answer_call"
TOOL_NAMES = frozenset({_APPROVE, _ANSWER})
_ARGUMENTS: dict[str, Any] = {
    "type": "object",
    "properties": {"call": {"type": "string"}, "tool": {"type": "string"}, "args": {}},
    "required": ["call", "tool", "args"],
}


def approval_tool() -> Tool[Any]:
    """Stands for every tool of a stage that needs an approval."""

    async def approve(**_question: object) -> str:
        return "approved"

    description = "A stage wants to call a tool, and needs your approval."
    tool = Tool[Any].from_schema(approve, _APPROVE, description, _ARGUMENTS)
    tool.requires_approval = True
    return tool


def external_tools() -> ExternalToolset[Any]:
    """Stands for every tool of a stage that runs outside the process."""
    description = "A stage needs the result of a tool that runs outside."
    return ExternalToolset([ToolDefinition(name=_ANSWER, parameters_json_schema=_ARGUMENTS, description=description)])


def deferred_call(run_id: str, pending: Pending) -> ToolCallPart:
    """One question of a run; the id of the tool call names the run."""
    return ToolCallPart(
        _APPROVE if pending.kind == "approval" else _ANSWER,
        {"call": pending.key, "tool": pending.tool, "args": pending.args},
        tool_call_id=f"{run_id}:{pending.id}",
    )


def answers_in(messages: Sequence[ModelMessage]) -> tuple[str, dict[str, object]] | None:
    """The id of the suspended run and its answers; `None` when the last message contains no answer."""
    last = messages[-1] if messages else None
    if not isinstance(last, ModelRequest):
        return None
    run_id, answers = "", dict[str, object]()
    for part in last.parts:
        if isinstance(part, ToolReturnPart) and part.tool_name in TOOL_NAMES:
            run_id, _, pending_id = part.tool_call_id.partition(":")
            answers[pending_id] = _answer(part)
    return (run_id, answers) if answers else None


def _answer(part: ToolReturnPart) -> object:
    if part.tool_name == _ANSWER:
        return part.content
    return True if part.outcome == "success" else ToolDenied(str(part.content))
