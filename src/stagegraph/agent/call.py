"""What one call of a stage brings to its agent: its prompt, the run's limits, its deadline, and durable requests.

The runner implements `AgentCall`, and `Injection` carries it into the agent's run: it rewrites the agent's own
instruction part and the descriptions that the prompt names, and leaves dynamic, toolset and capability instructions
alone. The agent is never modified, so many candidates can run at once on one agent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import (
    BaseToolCallPart,
    FilePart,
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

from stagegraph.data.events import ToolCalled
from stagegraph.nodes.current import branched, key_part
from stagegraph.nodes.describe import envelope, with_fields
from stagegraph.nodes.render import demo_block, render_output
from stagegraph.nodes.stage import OWN_INSTRUCTIONS

if TYPE_CHECKING:
    from pydantic_ai import RunContext
    from pydantic_ai.messages import UserContent
    from pydantic_ai.models import Model, ModelRequestContext, ModelRequestParameters
    from pydantic_ai.tools import ToolDefinition
    from pydantic_ai.usage import RequestUsage, RunUsage

    from stagegraph.data.events import CallRetried, TextDelta
    from stagegraph.data.prompt import Prompt
    from stagegraph.data.usage import ModelUse
    from stagegraph.nodes.stage import Stage

    from .durable import DurableOperations


LONGEST_ANSWER = 5_000_000
"""Characters of text that one answer of a model may have: a longer one would hold up every run of the process."""
LARGEST_FILES = 50_000_000
"""Bytes that the files in one answer may have."""
MODEL = "the model"


class AnswerTooLongError(UnexpectedModelBehavior):
    """A model answered with more than is taken from one."""


class AttemptTimeoutError(TimeoutError):
    """An attempt took longer than its stage allows."""


class LimitReached(Exception):  # noqa: N818 - never leaves the runner, which turns it into a LimitError
    """A limit of the run does not allow another model request."""


class AgentCall(Protocol):
    """One call of a stage: what its agent is given, what it reports to the run, and how the run limits its requests."""

    key: str
    path: str
    input: Any
    deps: object
    """The run's deps."""
    model: Model[Any] | None
    """The model for this call; `None` leaves the agent's own."""
    prompt: Prompt | None
    content: str | list[UserContent] | None
    """The user prompt, where it was rendered already."""
    answers: Mapping[str, object]
    """Tool call id -> answer, for a call that was suspended."""
    observing: Sequence[AbstractCapability[Any]]
    """Capabilities that observe the agent and change nothing."""
    use: ModelUse
    """Usage and messages so far; the agent adds to them."""
    streams: bool
    """Whether the model streams, so that each piece of text is an event."""

    def emit(self, event_type: type[CallRetried | TextDelta | ToolCalled], /, **fields: object) -> None:
        """Log an event of this call: a piece of text, a tool call, a retry."""
        ...

    def tool_recalled(self, label: str) -> None:
        """The recorded result of a tool was used; what had been called with its *label* in the key is not repeated."""
        ...

    def attempt_began(self, usage: RunUsage) -> None:
        """An attempt begins; Pydantic AI counts its usage in *usage*."""
        ...

    def attempt_ended(self) -> None: ...

    async def request(
        self, ask: Callable[[], Awaitable[ModelResponse]], waiting: Callable[[], AbstractContextManager[None]]
    ) -> ModelResponse:
        """Make a model request as soon as the limits allow it; *waiting* surrounds the time until then.

        Raises:
            LimitReached: a limit of the run does not allow it.
        """
        ...

    def request_recalled(self, usage: RequestUsage) -> None:
        """A recorded answer was used; the attempt counts its usage as if the request had been made."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait before the next attempt."""
        ...


class Deadline:
    """The time limit of one attempt (`Stage(timeout=)`); it stands still while a request waits for the run's limits.

    The agent's own `timeout` would count that time, too.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._scope: anyio.CancelScope | None = None

    @contextmanager
    def running(self) -> Generator[None]:
        """Around one attempt.

        Raises:
            AttemptTimeoutError: the attempt took longer.
        """
        if self._seconds is None:
            yield
            return
        with anyio.CancelScope(deadline=anyio.current_time() + self._seconds) as self._scope:
            yield
            return
        msg = f"it took longer than {self._seconds} s"
        raise AttemptTimeoutError(msg)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Around the time that a request waits: a busy runner is no slow model."""
        scope = self._scope
        if scope is None:
            yield
            return
        left, scope.deadline = scope.deadline - anyio.current_time(), math.inf
        try:
            yield
        finally:
            scope.deadline = anyio.current_time() + left


Rendered = tuple["str | Sequence[UserContent]", object]
"""A demo's input as the stage renders it, and its output as a typed value."""


@dataclass
class Injection(AbstractCapability[Any]):
    """The prompt of one stage call; its requests and tool calls pass through the run's limits and records."""

    stage: Stage[Any, Any]
    call: AgentCall
    deadline: Deadline
    durable: DurableOperations | None
    raised: list[tuple[BaseException, str]] = field(default_factory=list[tuple[BaseException, str]])
    """What was raised by the model and the tools, each with the words for its source."""

    @contextmanager
    def _watching(self, source: str) -> Generator[None]:
        try:
            yield
        except Exception as error:
            self.raised.append((error, source))
            raise

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        prompt = self.call.prompt
        if prompt is None:
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
            demos = [
                (given, render_output(output, self.stage.__node__.output_type.answer))
                for given, output in self._rendered()
            ]
            parts.insert(after, InstructionPart(demo_block(demos)))
        return replace(request_context, model_request_parameters=replace(parameters, instruction_parts=parts))

    async def prepare_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        prompt = self.call.prompt
        if prompt is None or not prompt.demos or self.stage.demos != "messages":
            return request_context
        # `prepare_request` resolves the output mode, and with it the shape that this model answers in.
        settings, parameters = request_context.model_settings, request_context.model_request_parameters
        _, parameters = request_context.model.prepare_request(settings, parameters)
        turns = _turns(self._rendered(), self.stage.__node__.output_type.answer, parameters)
        messages = _after_system_prompt(turns, request_context.messages)
        return replace(request_context, messages=messages)

    async def prepare_tools(self, ctx: RunContext[Any], tool_defs: list[ToolDefinition]) -> list[ToolDefinition]:
        if self.call.prompt is None:
            return tool_defs
        texts = self.call.prompt.tools
        return [replace(tool, description=texts.get(tool.name, tool.description)) for tool in tool_defs]

    async def wrap_model_request(
        self,
        ctx: RunContext[Any],
        *,
        request_context: ModelRequestContext,
        handler: Callable[[ModelRequestContext], Awaitable[ModelResponse]],
    ) -> ModelResponse:
        made = False

        async def send() -> ModelResponse:
            with self._watching(MODEL):
                return await handler(request_context)

        async def ask() -> ModelResponse:
            nonlocal made
            made = True
            response = await self.call.request(send, self.deadline.paused)
            _check_length(response)
            return response

        if self.durable is None:
            response = await ask()
        else:
            response = await self.durable.request(request_context.messages, ask)
        if not made:
            self.call.request_recalled(response.usage)
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
        made, label = False, key_part(call.tool_call_id)

        async def execute() -> Any:
            nonlocal made
            made = True
            self.call.emit(ToolCalled, tool=call.tool_name)
            # Graphs that the tool runs have its call in their key.
            with branched(label), self._watching(f"a tool, `{call.tool_name}`,"):
                return await handler(args)

        if self.durable is None:
            return await execute()
        try:
            return await self.durable.tool(call, len(ctx.messages), execute)
        finally:
            if not made:
                self.call.tool_recalled(label)

    def _rendered(self) -> list[Rendered]:
        stage = self.stage
        demos = self.call.prompt.demos if self.call.prompt is not None else ()
        return [
            (stage.render(stage.__node__.input_type.load(demo.input)), stage.__node__.output_type.load(demo.output))
            for demo in demos
        ]


def _check_length(response: ModelResponse) -> None:
    """Refuse an answer that is too long, before it is validated, recorded and traced.

    Raises:
        AnswerTooLongError: it is.
    """
    texts, files = 0, 0
    for part in response.parts:
        if isinstance(part, FilePart):
            files += len(part.content.data)
        else:
            content = part.args if isinstance(part, BaseToolCallPart) else getattr(part, "content", None)
            texts += len(content if isinstance(content, str) else repr(content))
    for size, most, unit in ((texts, LONGEST_ANSWER, "characters"), (files, LARGEST_FILES, "bytes of files")):
        if size > most:
            msg = f"the model answered with {size:,} {unit}, and no more than {most:,} are taken"
            raise AnswerTooLongError(msg)


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
