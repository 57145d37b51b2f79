"""A graph in the place of a model: the one request of an agent run is a run of the graph.

Each call of a stage or step appears in the response as a tool call, and the output as text. What a suspended run waits
for are tool calls as well: a front end shows them to a person, and sends the answers with the next request.
"""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio
from pydantic_ai import ExternalToolset, Tool, ToolDenied
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from stagegraph.data.events import CallFinished, CallStarted
from stagegraph.nodes.graph import BaseGraph
from stagegraph.record.run import InputError, LimitError, ReplayError, RunError, stored_run
from stagegraph.schema.errors import BusyError, JournalError, StagegraphError

from .caller import PROVIDER, call_in_run, limits_left, model_of, options
from .input import read_input
from .tool import snake_case

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from pydantic_ai import RunContext
    from pydantic_ai.messages import ModelMessage, ModelResponseStreamEvent
    from pydantic_ai.settings import ModelSettings

    from stagegraph.data.call import Pending
    from stagegraph.data.events import Event
    from stagegraph.record.rows import RunRow
    from stagegraph.record.run import Run
    from stagegraph.runner.calls import Open
    from stagegraph.runner.live import LiveRun
    from stagegraph.runner.runner import Runner

_PROFILE = ModelProfile(supported_native_tools=frozenset())
_SHOWN = 50
"""The calls of one path that a chat shows; those of a wide fan-out beyond it are left out."""
_OUTCOMES: dict[str, Literal["failed", "interrupted"]] = {"failed": "failed", "cancelled": "interrupted"}
_APPROVE = "approve_call"
_ANSWER = "answer_call"
ASKING_TOOLS = frozenset({_APPROVE, _ANSWER})
"""The names of the tools by which a run asks."""
_ARGUMENTS: dict[str, Any] = {
    "type": "object",
    "properties": {"call": {"type": "string"}, "tool": {"type": "string"}, "args": {}},
    "required": ["call", "tool", "args"],
}


@dataclass(eq=False, repr=False)
class UnboundModel(Model):
    """Holds the place of an agent's model; each request of an agent run replaces it by one of the models below."""

    graph: BaseGraph[Any, Any]

    def __post_init__(self) -> None:
        super().__init__(profile=_PROFILE)

    @property
    def model_name(self) -> str:
        """The graph's name."""
        return self.graph.__node__.name

    @property
    def system(self) -> str:
        """`stagegraph`."""
        return PROVIDER

    def answer(
        self, messages: list[ModelMessage], parameters: ModelRequestParameters
    ) -> AbstractAsyncContextManager[StreamedResponse]:
        """Run the graph with what the last message says.

        Raises:
            UserError: other agents cannot use this model.
        """
        name = self.graph.__node__.name
        msg = f"{name} can only be run by the agent that `{name}().as_agent()` returned"
        raise UserError(msg)

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Run the graph and return the whole response."""
        async with self.request_stream(messages, model_settings, model_request_parameters) as stream:
            async for _ in stream:
                pass
        return stream.get()

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Run the graph and stream its events."""
        _, parameters = self.prepare_request(model_settings, model_request_parameters)
        async with self.answer(messages, parameters) as stream:
            yield stream


@dataclass(eq=False, repr=False)
class CalledGraph(UnboundModel):
    """A graph that an agent runs inside a run: a part of that run, which has its events, usage and limits."""

    around: Open
    ctx: RunContext[Any]
    done: Callable[[Any], None]
    """Is given the output."""

    @asynccontextmanager
    async def answer(
        self, messages: list[ModelMessage], parameters: ModelRequestParameters
    ) -> AsyncGenerator[StreamedResponse]:
        name = snake_case(self.graph.__node__.name)
        output = await call_in_run(self.around, self.graph, read_input(self.graph, messages), self.ctx, name)
        self.done(output)
        self.ctx.usage.requests -= 1  # the agent counts the response itself as a request
        response = ModelResponse([TextPart(output_text(self.graph, output))], model_name=self.model_name)
        yield CompletedStreamedResponse(response, model_request_parameters=parameters, replay_events=True)


@dataclass(eq=False, repr=False)
class GraphModel(UnboundModel):
    """A graph with the deps, model and limits of one agent run, to which its usage is added."""

    runner: Runner
    ctx: RunContext[Any]
    done: Callable[[Run[Any, Any]], None]
    """Is given the run when it has ended."""
    user: str | None
    """Only this user can answer what a run asks."""
    errors: bool
    """Whether errors have their full text; front ends show that of a streamed run to people."""

    @asynccontextmanager
    async def answer(
        self, messages: list[ModelMessage], parameters: ModelRequestParameters
    ) -> AsyncGenerator[StreamedResponse]:
        """Run the graph and stream its events; leaving the context cancels the run."""
        ctx = self.ctx
        try:
            live, before = await self._start(messages)
            try:
                yield GraphStream(parameters, self.graph, live, self.done, before, ctx.run_id or live.run_id)
            finally:
                with anyio.CancelScope(shield=True):
                    await live.cancel()
                run = live.run
                ctx.usage.incr(run.usage if before is None else run.usage - before.usage)
                if run.status in {"succeeded", "suspended"}:
                    ctx.usage.requests -= 1  # the agent counts the response itself as a request
        except StagegraphError as error:
            shown = error if self.errors else _public_error(error, self.graph.__node__.name)
            raise shown from (error if shown is not error else error.__cause__)

    async def _start(self, messages: list[ModelMessage]) -> tuple[LiveRun[Any, Any], Run[Any, Any] | None]:
        """A new run, or one that was suspended and continues with the answers, and what is recorded of that."""
        ctx, runner = self.ctx, self.runner
        model = model_of(ctx)
        answered = _answers_in(messages)
        if answered is None:
            value = read_input(self.graph, messages)
            more = options(ctx, runner.limits, self.user)
            return runner.start(self.graph, value, model=model, deps=ctx.deps, **more), None
        run_id, answers = answered
        row = None if runner.journal is None else await runner.journal.run(run_id)
        if runner.journal is None or row is None or not self._may_answer(row):
            msg = f"there is no run {run_id!r} of {self.graph.__node__.name} here to answer"
            raise ReplayError(msg)
        before = await stored_run(runner.journal, row, self.graph)
        limits = limits_left(ctx, runner.limits)
        live = await runner.start_resume(
            run_id, graph=self.graph, answers=answers, model=model, deps=ctx.deps, limits=limits
        )
        return live, before

    def _may_answer(self, row: RunRow) -> bool:
        """Whether this user started the run, and it is one of this graph: a client may send any run id."""
        return row.graph == self.graph.__node__.name and row.read_labels().user_id == self.user


@dataclass
class GraphStream(StreamedResponse):
    """The events of a run as they happen, and then its output."""

    graph: BaseGraph[Any, Any]
    live: LiveRun[Any, Any]
    done: Callable[[Run[Any, Any]], None]
    before: Run[Any, Any] | None
    """The record of a resumed run; an earlier response has shown its calls."""
    agent_run_id: str
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        # The stages' usage is added to the agent run's usage, which includes every request.
        self._usage = RequestUsage(cost=Decimal(0))
        self.provider_response_id = self.live.run_id
        self._known = frozenset[str]() if self.before is None else {c.key for c in self.before.calls() if c.ok}
        self._calls: dict[str, int] = {}
        self._open: dict[str, str] = {}

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        async with aclosing(cast("AsyncGenerator[Event]", self.live.events())) as events:
            async for event in events:
                part = self._part(event)
                if part is not None:
                    yield self._parts_manager.handle_part(vendor_part_id=None, part=part)
        if self.cancelled:
            return
        run = await self.live.result()
        self.done(run)
        self.finish_reason = "stop" if run.status == "succeeded" else "tool_call"
        for pending in run.pending:
            yield self._parts_manager.handle_part(vendor_part_id=None, part=_deferred_call(run.id, pending))
        if run.status == "succeeded":
            text = output_text(self.graph, run.output)
            for written in self._parts_manager.handle_text_delta(vendor_part_id="output", content=text):
                yield written

    def _part(self, event: Event) -> NativeToolCallPart | NativeToolReturnPart | None:
        if isinstance(event, CallStarted) and event.kind != "graph" and event.key not in self._known:
            self._calls[event.path] = count = self._calls.get(event.path, 0) + 1
            if count > _SHOWN:
                return None
            name = self._open[event.key] = event.path.replace(".", "_")
            return NativeToolCallPart(
                name, {"call": event.key}, tool_call_id=self._call_id(event.key), provider_name=PROVIDER
            )
        if isinstance(event, CallFinished) and event.key in self._open:
            return NativeToolReturnPart(
                self._open.pop(event.key),
                {"status": event.status, "seconds": round(event.duration, 3)},
                tool_call_id=self._call_id(event.key),
                provider_name=PROVIDER,
                outcome=_OUTCOMES.get(event.status, "success"),
            )
        return None

    def _call_id(self, key: str) -> str:
        return f"{self.agent_run_id}:{key}"

    async def close_stream(self) -> None:
        """Cancel the run: the response has no reader any more."""
        await self.live.cancel()

    @property
    def model_name(self) -> str:
        return self.graph.__node__.name

    @property
    def provider_name(self) -> str:
        return PROVIDER

    @property
    def provider_url(self) -> None:
        return None

    @property
    def timestamp(self) -> datetime:
        return self.started


def output_text(graph: BaseGraph[Any, Any], output: Any) -> str:
    """An output as the text of a response: JSON where it is not a text."""
    if isinstance(output, str):
        return output or " "  # Pydantic AI would ask again after a response without text
    return json.dumps(graph.__node__.output_type.show(output), indent=2, ensure_ascii=False)


def _public_error(error: StagegraphError, graph: str) -> StagegraphError:
    """An error without the texts of models and stages: where the run failed and what to do."""
    if isinstance(error, (InputError, LimitError)):
        return error  # their texts are about what the caller sent, and about limits
    if isinstance(error, BusyError):
        return BusyError(f"{graph} accepts no more runs now: try again later", retry_after=error.retry_after)
    if isinstance(error, JournalError):
        return JournalError(f"runs of {graph} cannot be recorded now: try again later")
    if not isinstance(error, RunError) or not error.attached:
        return RunError(f"{graph} cannot be resumed like this")
    if error.run.status != "failed":
        return error  # cancelled, or it waits for an answer
    place = next((f" at `{call.key}`" for call in error.failures if call.key), "")
    return RunError(f"{graph} failed{place}", run=error.run)


# -- what a suspended run waits for, as tool calls that a front end shows to a person, and the answers to them


def approval_tool() -> Tool[Any]:
    """Stands for every tool of a stage that needs an approval."""

    async def approve(**_arguments: object) -> str:
        return "approved"

    description = "A stage wants to call a tool, and needs your approval."
    tool = Tool[Any].from_schema(approve, _APPROVE, description, _ARGUMENTS)
    tool.requires_approval = True
    return tool


def external_tools() -> ExternalToolset[Any]:
    """Stands for every tool of a stage that runs outside the process."""
    description = "A stage needs the result of a tool that runs outside."
    return ExternalToolset([ToolDefinition(name=_ANSWER, parameters_json_schema=_ARGUMENTS, description=description)])


def _deferred_call(run_id: str, pending: Pending) -> ToolCallPart:
    """One question of a run; the id of the tool call names the run."""
    return ToolCallPart(
        _APPROVE if pending.kind == "approval" else _ANSWER,
        {"call": pending.key, "tool": pending.tool, "args": pending.args},
        tool_call_id=f"{run_id}:{pending.id}",
    )


def _answers_in(messages: Sequence[ModelMessage]) -> tuple[str, dict[str, object]] | None:
    """The id of the suspended run and its answers; `None` when the last message contains no answer."""
    last = messages[-1] if messages else None
    if not isinstance(last, ModelRequest):
        return None
    run_id, answers = "", dict[str, object]()
    for part in last.parts:
        if isinstance(part, ToolReturnPart) and part.tool_name in ASKING_TOOLS:
            run_id, _, pending_id = part.tool_call_id.partition(":")
            answers[pending_id] = _answer(part)
    return (run_id, answers) if answers else None


def _answer(part: ToolReturnPart) -> object:
    if part.tool_name == _ANSWER:
        return part.content
    return True if part.outcome == "success" else ToolDenied(str(part.content))
