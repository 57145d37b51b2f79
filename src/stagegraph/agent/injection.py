"""How the prompt of a stage call reaches its agent: through the agent's own instruction part, tools and history.

Dynamic, toolset and capability instructions stay. The agent is never modified, so many candidates can run at once on
one agent.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

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
    from pydantic_ai import RunContext
    from pydantic_ai.messages import UserContent
    from pydantic_ai.models import ModelRequestContext, ModelRequestParameters
    from pydantic_ai.tools import ToolDefinition

    from stagegraph.data.prompt import Prompt
    from stagegraph.nodes.stage import Stage

    from .attempt import Attempt

Rendered = tuple["str | Sequence[UserContent]", object]
"""A demo's input as the stage renders it, and its output as a typed value."""


@dataclass
class Injection(AbstractCapability[Any]):
    """The prompt of one stage call, and the way of an agent's requests and tool calls through its attempt."""

    stage: Stage[Any, Any]
    prompt: Prompt
    attempt: Attempt

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        prompt = self.prompt
        if not prompt.data():
            return request_context
        parameters = request_context.model_request_parameters
        if prompt.fields:
            parameters = with_fields(parameters, prompt.fields)
        parts = list(parameters.instruction_parts or [])
        own = next((index for index, part in enumerate(parts) if part.id == OWN_INSTRUCTIONS), 0)
        if prompt.instructions is not None:
            parts = [part for part in parts if part.id != OWN_INSTRUCTIONS]
            if text := prompt.instructions.strip():
                parts.insert(own, InstructionPart(text, id=OWN_INSTRUCTIONS))
        if prompt.demos and self.stage.demos == "examples":
            after = own + 1 if any(part.id == OWN_INSTRUCTIONS for part in parts) else own
            dump = self.stage.__node__.output_type.answer
            demos = [(given, render_output(output, dump)) for given, output in self._rendered()]
            parts.insert(after, InstructionPart(demo_block(demos)))
        return replace(request_context, model_request_parameters=replace(parameters, instruction_parts=parts))

    async def prepare_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        if not self.prompt.demos or self.stage.demos != "messages":
            return request_context
        # `prepare_request` resolves the output mode, and with it the shape that this model answers in.
        settings, parameters = request_context.model_settings, request_context.model_request_parameters
        _, parameters = request_context.model.prepare_request(settings, parameters)
        turns = _turns(self._rendered(), self.stage.__node__.output_type.answer, parameters)
        messages = _after_system_prompt(turns, request_context.messages)
        return replace(request_context, messages=messages)

    async def prepare_tools(self, ctx: RunContext[Any], tool_defs: list[ToolDefinition]) -> list[ToolDefinition]:
        texts = self.prompt.tools
        return [replace(tool, description=texts.get(tool.name, tool.description)) for tool in tool_defs]

    async def wrap_model_request(
        self,
        ctx: RunContext[Any],
        *,
        request_context: ModelRequestContext,
        handler: Callable[[ModelRequestContext], Awaitable[ModelResponse]],
    ) -> ModelResponse:
        return await self.attempt.request(request_context.messages, partial(handler, request_context))

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: Callable[[dict[str, Any]], Awaitable[Any]],
    ) -> Any:
        return await self.attempt.tool(call, len(ctx.messages), partial(handler, args))

    def _rendered(self) -> list[Rendered]:
        render, own = self.stage.render, self.stage.__node__
        return [
            (render(own.input_type.load(demo.input)), own.output_type.load(demo.output)) for demo in self.prompt.demos
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
    """Each of several output types has a tool: that of a model has its name, that of another type has an envelope."""
    named = [tool for tool in tools if tool.parameters_json_schema.get("title") == type(output).__name__]
    return next(iter(named or [tool for tool in tools if tool.outer_typed_dict_key] or tools))


def _text_answer(output: object, dump: Callable[[object], Any], parameters: ModelRequestParameters) -> str:
    """The answer of a model that was asked for JSON, with the envelope that Pydantic AI puts around some types."""
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
