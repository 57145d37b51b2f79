"""What a suspended run asks, as tool calls that a front end lets a person decide; and the answers on their way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic_ai import ExternalToolset, Tool, ToolDenied
from pydantic_ai.messages import ModelRequest, ToolCallPart, ToolReturnPart
from pydantic_ai.tools import ToolDefinition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_ai.messages import ModelMessage

    from stagegraph.data.call import Pending

__all__ = ["TOOL_NAMES", "answers_in", "approval_tool", "external_tools", "question"]

_APPROVE = "approve_call"
_ANSWER = "answer_call"
TOOL_NAMES = frozenset({_APPROVE, _ANSWER})
_QUESTION: dict[str, Any] = {
    "type": "object",
    "properties": {"call": {"type": "string"}, "tool": {"type": "string"}, "args": {}},
    "required": ["call", "tool", "args"],
}


def approval_tool() -> Tool[Any]:
    """Stands for every tool of a stage that needs somebody's consent."""

    async def approve(**_question: object) -> str:
        return "approved"

    described = "A stage wants to call a tool, and needs your approval."
    tool = Tool[Any].from_schema(approve, _APPROVE, described, _QUESTION)
    tool.requires_approval = True
    return tool


def external_tools() -> ExternalToolset[Any]:
    """Stands for every tool of a stage that runs somewhere else."""
    described = "A stage needs the result of a tool that runs outside."
    return ExternalToolset([ToolDefinition(name=_ANSWER, parameters_json_schema=_QUESTION, description=described)])


def question(run_id: str, pending: Pending) -> ToolCallPart:
    """One question; its id says which run asks."""
    return ToolCallPart(
        _APPROVE if pending.kind == "approval" else _ANSWER,
        {"call": pending.key, "tool": pending.tool, "args": pending.args},
        tool_call_id=f"{run_id}:{pending.id}",
    )


def answers_in(messages: Sequence[ModelMessage]) -> tuple[str, dict[str, object]] | None:
    """The run that was waiting and what it is told; `None` when the last message answers nothing."""
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
