"""The capability that one stage call adds to its agent's run: the candidate's texts, and the run's limits.

It rewrites the agent's own instruction part and the descriptions that the prompt names, and leaves dynamic, toolset and
capability instructions alone, so many candidates can run at once on one agent that is never modified.
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import anyio
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import (
    InstructionPart,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from stagegraph.nodes.describe import envelope, with_fields
from stagegraph.nodes.render import demo_block, render_output
from stagegraph.nodes.stage import OWN_INSTRUCTIONS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence

    from anyio import CancelScope
    from pydantic_ai import RunContext
    from pydantic_ai.messages import UserContent
    from pydantic_ai.models import ModelRequestContext, ModelRequestParameters
    from pydantic_ai.tools import ToolDefinition
    from pydantic_ai.usage import RequestUsage, RunUsage

    from stagegraph.data.prompts import Prompt
    from stagegraph.nodes.stage import Stage

    from .durable import OpMemory

__all__ = ["Injection", "RequestGate"]

Rendered = tuple["str | Sequence[UserContent]", object]
"""A demo's input as the stage renders it, and its output as a typed value."""


class RequestGate:
    """What every model request of a stage call passes through; the runner's own makes requests wait and counts them."""

    attempt: CancelScope | None = None
    """The attempt that is going on, when it has a deadline."""

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Put the deadline off while a request waits its turn: a busy runner is no slow model."""
        attempt = self.attempt
        if attempt is None:
            yield
            return
        left, attempt.deadline = attempt.deadline - anyio.current_time(), math.inf
        try:
            yield
        finally:
            attempt.deadline = anyio.current_time() + left

    def began(self, usage: RunUsage) -> None:
        """An attempt begins, which counts what it uses in here."""

    async def request(self, ask: Callable[[], Awaitable[ModelResponse]]) -> ModelResponse:
        return await ask()

    def recalled(self, usage: RequestUsage) -> None:
        """A request need not be made: a journal has its answer, which the attempt counts as ever."""

    def ended(self) -> None:
        """The attempt is over."""

    async def rest(self, seconds: float) -> None:
        """Wait before the next attempt."""
        await anyio.sleep(seconds)

    def tool_called(self, tool: str) -> None:
        """An agent is about to run a tool."""


@dataclass
class Injection(AbstractCapability[Any]):
    """One candidate's prompt for one stage call, and the gate its requests pass."""

    stage: Stage[Any, Any]
    prompt: Prompt | None
    gate: RequestGate
    memory: OpMemory | None = None

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        if self.prompt is None:
            return request_context
        parameters = request_context.model_request_parameters
        if self.prompt.fields:
            parameters = with_fields(parameters, self.prompt.fields)
        parts = list(parameters.instruction_parts or [])
        own = next((index for index, part in enumerate(parts) if part.id == OWN_INSTRUCTIONS), 0)
        if self.prompt.instructions is not None:
            parts = [part for part in parts if part.id != OWN_INSTRUCTIONS]
            if text := self.prompt.instructions.strip():
                parts.insert(own, InstructionPart(text, id=OWN_INSTRUCTIONS))
        if self.prompt.demos and self.stage.demos == "examples":
            after = own + 1 if any(part.id == OWN_INSTRUCTIONS for part in parts) else own
            demos = [
                (given, render_output(output, self.stage.__node__.output_type.answer))
                for given, output in self._rendered()
            ]
            parts.insert(after, InstructionPart(demo_block(demos)))
        return replace(request_context, model_request_parameters=replace(parameters, instruction_parts=parts))

    async def prepare_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        if self.prompt is None or not self.prompt.demos or self.stage.demos != "messages":
            return request_context
        # `prepare_request` resolves the output mode, and with it the shape that this model answers in.
        settings, parameters = request_context.model_settings, request_context.model_request_parameters
        _, parameters = request_context.model.prepare_request(settings, parameters)
        turns = _turns(self._rendered(), self.stage.__node__.output_type.answer, parameters)
        messages = _after_system_prompt(turns, request_context.messages)
        return replace(request_context, messages=messages)

    async def prepare_tools(self, ctx: RunContext[Any], tool_defs: list[ToolDefinition]) -> list[ToolDefinition]:
        if self.prompt is None:
            return tool_defs
        texts = self.prompt.tools
        return [replace(tool, description=texts.get(tool.name, tool.description)) for tool in tool_defs]

    async def wrap_model_request(
        self,
        ctx: RunContext[Any],
        *,
        request_context: ModelRequestContext,
        handler: Callable[[ModelRequestContext], Awaitable[ModelResponse]],
    ) -> ModelResponse:
        made = False

        async def ask() -> ModelResponse:
            nonlocal made
            made = True
            return await self.gate.request(lambda: handler(request_context))

        if self.memory is None:
            return await ask()
        response = await self.memory.request(request_context.messages, ask)
        if not made:
            self.gate.recalled(response.usage)
        return response

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: Callable[[dict[str, Any]], Awaitable[Any]],
    ) -> Any:
        async def execute() -> Any:
            self.gate.tool_called(call.tool_name)
            return await handler(args)

        return await execute() if self.memory is None else await self.memory.tool(call, len(ctx.messages), execute)

    def _rendered(self) -> list[Rendered]:
        stage = self.stage
        demos = self.prompt.demos if self.prompt is not None else ()
        return [
            (stage.render(stage.__node__.input_type.load(demo.input)), stage.__node__.output_type.load(demo.output))
            for demo in demos
        ]


def _turns(
    demos: Sequence[Rendered], dump: Callable[[object], Any], parameters: ModelRequestParameters
) -> list[ModelMessage]:
    """Demos as earlier turns, in the shape the model answers in."""
    turns: list[ModelMessage] = []
    for number, (given, output) in enumerate(demos):
        prompt = UserPromptPart(given if isinstance(given, str) else list(given))
        tools = parameters.output_tools if parameters.output_mode == "tool" else []
        if not tools or (isinstance(output, str) and parameters.allow_text_output):
            turns += [ModelRequest([prompt]), ModelResponse([TextPart(_text_answer(output, dump, parameters))])]
            continue
        tool = _tool_for(output, tools)
        key = tool.outer_typed_dict_key
        args = dump(output) if key is None else {key: dump(output)}
        call = ToolCallPart(tool.name, args, tool_call_id=f"demo_{number}")
        done = ToolReturnPart(tool.name, "Final result processed.", tool_call_id=call.tool_call_id)
        turns += [ModelRequest([prompt]), ModelResponse([call]), ModelRequest([done])]
    return turns


def _tool_for(output: object, tools: Sequence[ToolDefinition]) -> ToolDefinition:
    """Of several output types, each has a tool; a model's bears its name, what is no model stands in an envelope."""
    named = [tool for tool in tools if tool.parameters_json_schema.get("title") == type(output).__name__]
    return next(iter(named or [tool for tool in tools if tool.outer_typed_dict_key] or tools))


def _text_answer(output: object, dump: Callable[[object], Any], parameters: ModelRequestParameters) -> str:
    """The text of a model that was asked for JSON, with the envelope that Pydantic AI asks for around some types."""
    if parameters.output_object is None:
        return render_output(output, dump)
    data, schema = dump(output), parameters.output_object.json_schema
    around = envelope(schema)
    if around == "result.data.":
        kinds = [option["properties"]["kind"]["const"] for option in schema["properties"]["result"]["anyOf"]]
        name = type(output).__name__
        data = {"result": {"kind": name if name in kinds else kinds[0], "data": data}}
    elif around == "response.":
        data = {"response": data}
    return json.dumps(data, ensure_ascii=False)


def _after_system_prompt(turns: Sequence[ModelMessage], messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """The turns before all messages; a leading system prompt stays first."""
    first, rest = messages[0], messages[1:]
    system = [part for part in first.parts if isinstance(part, SystemPromptPart)]
    if not system or not isinstance(first, ModelRequest):
        return [*turns, *messages]
    others = [part for part in first.parts if not isinstance(part, SystemPromptPart)]
    return [ModelRequest(system), *turns, replace(first, parts=others), *rest]
