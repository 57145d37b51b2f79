"""What a reflection model is shown of a text, each part with a limit, and a word where something was left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_ai.messages import ToolCallPart, ToolReturnPart

if TYPE_CHECKING:
    from stagegraph.data.call import Call

__all__ = ["SCHEMA", "TEXT", "abridged", "cut", "restored", "tool_use"]

TEXT = 20_000
"""Characters of a text that is to be written anew."""
SCHEMA = 6_000
"""Characters of one JSON schema."""
_USE = 1_500
"""Characters of what one call did with a tool."""


def cut(text: str, limit: int) -> str:
    """The beginning of a text, saying so if that is not all."""
    return text if len(text) <= limit else f"{text[:limit]} ... (cut: {limit} of {len(text)} characters)"


def abridged(text: str, limit: int = TEXT) -> str:
    """A long text without its middle, for which a line stands in brackets."""
    if len(text) <= limit:
        return text
    begin, end = _hidden(text, limit)
    return f"{text[:begin]}{_marker(end - begin)}{text[end:]}"


def restored(answer: str, text: str, limit: int = TEXT) -> str:
    """A new text with the middle of the old one where the new one has the line that stands for it."""
    if len(text) <= limit:
        return answer
    begin, end = _hidden(text, limit)
    marker = _marker(end - begin)
    return answer.replace(marker if marker in answer else marker.strip(), text[begin:end], 1)


def _hidden(text: str, limit: int) -> tuple[int, int]:
    return limit * 2 // 3, len(text) - limit // 3


def _marker(count: int) -> str:
    return f"\n[... {count} characters that are not shown ...]\n"


def tool_use(call: Call, tool: str) -> str:
    """How a stage call used a tool: what it was given and what came back."""
    lines: list[str] = []
    for message in call.messages:
        for part in message.parts:
            if isinstance(part, ToolCallPart) and part.tool_name == tool:
                lines.append(f"called with {cut(part.args_as_json_str(), _USE // 3)}")
            elif isinstance(part, ToolReturnPart) and part.tool_name == tool:
                lines.append(f"gave {cut(part.model_response_str(), _USE // 3)}")
    return cut("\n".join(lines), _USE) or "(it was not called)"
