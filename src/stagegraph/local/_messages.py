"""From Pydantic AI's message history to the turns of a plain chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    CachePoint,
    InstructionPart,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    RetryFeedbackPart,
    RetryPromptPart,  # pyright: ignore[reportDeprecated] - a history made by hand may still hold it
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolReturnPart,
    UserPromptPart,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["NO_TOOLS", "Turn", "read_turns"]

NO_TOOLS = "local models have no tools: use a model of a provider for this agent, or take the tools away"

Role = Literal["system", "user", "assistant"]


class Turn(NamedTuple):
    role: Role
    content: str


def read_turns(messages: Sequence[ModelMessage], instructions: Sequence[InstructionPart] | None) -> list[Turn]:
    """The conversation as this model's chat template wants it: one system turn, then users and assistants in turns.

    Raises:
        UserError: something in the history is not text.
    """
    said = [turn for message in messages for turn in _read(message)]
    system = [turn.content for turn in said if turn.role == "system"]
    if instructions is None:  # a direct request, without an agent
        last = next(
            (m.instructions for m in reversed(messages) if isinstance(m, ModelRequest) and m.instructions), None
        )
        instructions = [InstructionPart(last)] if last else []
    system += [part.content for part in instructions]
    turns: list[Turn] = [Turn("system", "\n\n".join(system))] if system else []
    for turn in said:
        if turn.role == "system":
            continue
        if turns and turns[-1].role == turn.role:
            turns[-1] = Turn(turn.role, f"{turns[-1].content}\n\n{turn.content}")
        else:
            turns.append(turn)
    if not turns or turns[-1].role != "user":
        turns.append(Turn("user", ""))  # the template expects somebody to answer to
    return turns


def _read(message: ModelMessage) -> Iterator[Turn]:
    if isinstance(message, ModelResponse):
        for part in message.parts:
            if isinstance(part, TextPart):
                yield Turn("assistant", part.content)
            elif not isinstance(part, ThinkingPart):
                msg = f"the message history has a {part.part_kind} part, but {NO_TOOLS}"
                raise UserError(msg)
    else:
        for part in message.parts:
            yield _read_part(part)


def _read_part(part: ModelRequestPart) -> Turn:
    if isinstance(part, SystemPromptPart):
        return Turn("system", part.content)
    if isinstance(part, UserPromptPart):
        return Turn("user", _read_prompt(part))
    if isinstance(part, RetryFeedbackPart):
        return Turn("user", part.model_response())
    if isinstance(part, RetryPromptPart) and part.tool_name is None:  # pyright: ignore[reportDeprecated]
        return Turn("user", part.model_response())
    if isinstance(part, (ToolReturnPart, RetryPromptPart)):  # pyright: ignore[reportDeprecated]
        msg = f"the message history has the result of a tool ({part.tool_name!r}), but {NO_TOOLS}"
        raise UserError(msg)
    msg = f"{part.part_kind} parts have to become text first: pass the messages through `model.prepare_messages`"
    raise UserError(msg)


def _read_prompt(part: UserPromptPart) -> str:
    if isinstance(part.content, str):
        return part.content
    texts: list[str] = []
    for item in part.content:
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, TextContent):
            texts.append(item.content)
        elif not isinstance(item, CachePoint):
            msg = (
                f"local models read text only, and there is {type(item).__name__} content in the prompt: leave it out, "
                "describe it in words, or use a model of a provider"
            )
            raise UserError(msg)
    return "\n\n".join(texts)
